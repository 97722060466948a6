// Other libraries that do the same work. Each is found when the build is configured; where it is absent its
// functions return an empty call, and rows leave it out.
#pragma once

#include "measure.hpp"

#include <sluice/core/executor.hpp>
#include <sluice/core/tensor_view.hpp>

#include <memory>
#include <span>
#include <string>
#include <vector>

namespace sluice::bench {

struct peer {
    std::string name;
    std::string version; // and what it found out about the processor; "absent" without the library
};
std::vector<peer> peers();

// Starts the program again where the peers need environment variables, which they read before main: kernels
// for this processor instead of a fallback for an unknown one, and threads that soon sleep.
void enter_peer_environment(char** argv);

// c (+)= A B, each factor as it lies in memory or transposed.
struct product {
    tensor_view<const float> a;
    bool a_transposed = false;
    tensor_view<const float> b;
    bool b_transposed = false;
    tensor_view<float> c;
    bool accumulate = false;
};

// What oneDNN may do to the second factor before the clock starts.
enum class onednn_form {
    plain,
    packed,      // in the layout it likes best
    packed_bf16, // the same in bf16; the first factor is converted in every call
};

// All views have to stay alive as long as the call.
call openblas(const product& p, idx threads);
call onednn(const product& p, idx threads, onednn_form form);
call eigen(const product& p, executor_ref ex);

// For work made of many small products; `openblas_gemm` is sgemm, row-major, in the calling thread.
bool has_openblas();
void openblas_one_thread();
void openblas_gemm(bool a_transposed, bool b_transposed, idx m, idx n, idx k, float alpha, const float* a,
                   idx a_row, const float* b, idx b_row, float beta, float* c, idx c_row);

// Attention of every row of q (tokens x heads * head_dim), which are the last tokens of k and v.
struct attended {
    tensor_view<const float> q, k, v;
    tensor_view<float> y; // the result of the first call
    idx n_heads, n_kv_heads;
    bool causal;                     // with as many keys as queries; else every query sees every key
    tensor_view<const float> mask{}; // tokens x keys, added to scores; empty: none
};
// How query heads that share a key head are handed to scaled_dot_product_attention: its option, which repeats
// the keys in memory, or, for one token only, folded into its rows, so that the keys are read once.
enum class torch_gqa { option, folded };

// SwiGLU experts by the softmax over the logits of those chosen: gate and up of an expert one above the
// other, experts one after another.
struct experts_of_tokens {
    tensor_view<const float> router, router_bias; // n_experts x d_model, 1 x n_experts
    tensor_view<const float> gate_up, down; // n_experts * 2 * d_ff x d_model, n_experts * d_model x d_ff
    idx top_k;
};
// A call on x, whose result is y; empty where the library is absent.
using mixture_call = std::function<void(tensor_view<const float> x, tensor_view<float> y)>;

// y(i) = the sum of the rows that bag i names; bags are equally long. Of bags of one, the rows themselves.
using bag_call = std::function<void(std::span<const std::int32_t> rows, tensor_view<float> y)>;

call libtorch(const product& p, idx threads);
call libtorch_attention(const attended& p, idx threads, torch_gqa form);
mixture_call libtorch_mixture(const experts_of_tokens& p, idx threads);
bag_call libtorch_bags(tensor_view<const float> table, idx threads);

// The weights of experts are converted before the clock starts; the router is f32.
enum class expert_storage { f32, bf16, q8_0, q4_0 }; // the last two: ggml's blocks
mixture_call ggml_mixture(const experts_of_tokens& p, idx threads, expert_storage storage);
peer ggml_peer();

// A language model of pre-norm blocks, by the names that our parameters have.
struct dense_model {
    struct weight {
        std::string name;
        tensor_view<const float> values; // copied
        bool decays;
    };
    std::vector<weight> weights;
    idx n_layers, n_heads, n_kv_heads, head_dim;
    double rotary_base, eps;
};
struct adamw_numbers {
    double rate, beta1, beta2, eps, decay, clip;
};
class torch_training {
public:
    virtual ~torch_training() = default;
    // Of the mean cross-entropy; the gradient of the call before is forgotten.
    virtual double loss_and_gradient(std::span<const token_id> inputs, std::span<const token_id> targets) = 0;
    virtual void update(const adamw_numbers& n) = 0;
    // Weights as the model now has them, moments zero.
    virtual void reset() = 0;
    virtual void read_weight(const std::string& name, tensor_view<float> to) const = 0;
    virtual void read_gradient(const std::string& name, tensor_view<float> to) const = 0;
};
// Null where libtorch is absent.
std::shared_ptr<torch_training> libtorch_training(const dense_model& m, idx threads);

// What the module torch_peers.cpp hands out.
struct torch_functions {
    std::string (*version)();
    call (*multiply)(const product& p, idx threads);
    call (*attend)(const attended& p, idx threads, torch_gqa form);
    mixture_call (*mix)(const experts_of_tokens& p, idx threads);
    bag_call (*sum_bags)(tensor_view<const float> table, idx threads);
    std::shared_ptr<torch_training> (*train)(const dense_model& m, idx threads);
};

} // namespace sluice::bench
