// libtorch as a peer. The only file that sees its headers: a module of its own, which peers.cpp loads when
// the program runs (see there why), so nothing here may be called by name from outside but the last function.
//
// Eager mode, which is what libtorch offers; what torch.compile makes of the same model is not measured here.
// Results are allocated by libtorch in every call, as its users have it, except by the products, which write
// where they are told to. Its products are those of the BLAS that it was built with: the MKL of Python's
// package reaches less than half of the peak on AVX-512 processors of AMD (measured on Zen 5 with 2.15),
// which explains most of what rows made of products show. That is what its users have, and not a bound on
// eager mode.
#include "peers.hpp"

#include <torch/nn/utils/clip_grad.h>
#include <torch/torch.h>

#include <unordered_map>

namespace sluice::bench {
namespace {

// Of OpenMP and of the bundled BLAS. Other peers set OpenMP's only, and that is all that libtorch can be
// asked about, so what we set is remembered here.
void use_threads(idx threads) {
    static int set = 0;
    const int n = static_cast<int>(threads);
    if (set == n && at::get_num_threads() == n) return;
    at::set_num_threads(n);
    set = n;
}

// A view of the same memory; nothing written through one of a const view.
at::Tensor shared(tensor_view<const float> t) {
    return at::from_blob(const_cast<float*>(t.data()), {t.rows(), t.cols()}, {t.row_stride(), 1});
}
void copy_into(tensor_view<float> to, const at::Tensor& from) {
    shared(to).copy_(from.reshape({to.rows(), to.cols()}));
}

// (1, heads, tokens, head_dim) of (tokens, heads * head_dim).
at::Tensor split_heads(const at::Tensor& x, idx n_heads) {
    return x.view({1, x.size(0), n_heads, -1}).transpose(1, 2);
}

std::string version() {
    return TORCH_VERSION ", " + at::get_cpu_capability() + (at::hasMKL() ? ", MKL" : "") +
           (at::hasMKLDNN() ? ", oneDNN" : "");
}

call multiply(const product& p, idx threads) {
    auto factor = [](tensor_view<const float> t, bool transposed) {
        return transposed ? shared(t).t() : shared(t);
    };
    return [a = factor(p.a, p.a_transposed), b = factor(p.b, p.b_transposed), c = shared(p.c),
            accumulate = p.accumulate, threads]() mutable {
        use_threads(threads);
        const c10::InferenceMode no_gradient;
        if (accumulate)
            at::addmm_out(c, c, a, b);
        else
            at::mm_out(c, a, b);
    };
}

// The first call, which comes before the clock starts, leaves its result in p.y.
call attend(const attended& p, idx threads, torch_gqa form) {
    at::Tensor q = split_heads(shared(p.q), p.n_heads);
    const at::Tensor k = split_heads(shared(p.k), p.n_kv_heads), v = split_heads(shared(p.v), p.n_kv_heads);
    const bool folded = form == torch_gqa::folded;
    if (folded) q = shared(p.q).view({1, p.n_kv_heads, p.n_heads / p.n_kv_heads, -1});
    std::optional<at::Tensor> mask;
    if (!p.mask.empty()) mask = shared(p.mask);
    return [q, k, v, mask, folded, y = p.y, causal = p.causal, threads, first = true]() mutable {
        use_threads(threads);
        const c10::InferenceMode no_gradient;
        const at::Tensor result =
            at::scaled_dot_product_attention(q, k, v, mask, 0, causal, std::nullopt, !folded);
        if (std::exchange(first, false)) copy_into(y, folded ? result : result.transpose(1, 2));
    };
}

// Expert by expert, as the models of transformers do it: rows picked, multiplied, added where they came from.
mixture_call mix(const experts_of_tokens& p, idx threads) {
    const idx n_experts = p.router.rows(), d = p.router.cols(), f = p.down.cols();
    return [router = shared(p.router), bias = shared(p.router_bias).flatten(),
            gate_up = shared(p.gate_up).view({n_experts, 2 * f, d}),
            down = shared(p.down).view({n_experts, d, f}), k = p.top_k,
            threads](tensor_view<const float> x_view, tensor_view<float> y_view) {
        use_threads(threads);
        const c10::InferenceMode no_gradient;
        const at::Tensor x = shared(x_view);
        const auto [best, chosen] = at::topk(at::linear(x, router, bias), k);
        const at::Tensor weights = at::softmax(best, -1);
        const at::Tensor y = at::zeros_like(x);
        const at::Tensor hit = std::get<0>(at::_unique(chosen));
        for (idx i = 0; i < hit.size(0); ++i) {
            const auto e = hit[i].item<std::int64_t>();
            const at::Tensor slots = (chosen == e).nonzero();
            const at::Tensor rows = slots.select(1, 0);
            const auto halves = at::linear(x.index_select(0, rows), gate_up[e]).chunk(2, -1);
            const at::Tensor out = at::linear(at::silu(halves[0]) * halves[1], down[e]);
            y.index_add_(0, rows, out * weights.index({rows, slots.select(1, 1)}).unsqueeze(1));
        }
        copy_into(y_view, y);
    };
}

// Written where the caller wants it where there is a function for that: one row for each.
bag_call sum_bags(tensor_view<const float> table, idx threads) {
    return [t = shared(table), threads](std::span<const std::int32_t> rows, tensor_view<float> y) {
        use_threads(threads);
        const c10::InferenceMode no_gradient;
        const auto n = static_cast<idx>(rows.size());
        const at::Tensor at = at::from_blob(const_cast<std::int32_t*>(rows.data()), {n}, at::kInt);
        at::Tensor out = shared(y);
        if (y.rows() == n)
            at::index_select_out(out, t, 0, at);
        else
            out.copy_(std::get<0>(at::embedding_bag(t, at, at::arange(0, n, n / y.rows(), at::kInt))));
    };
}

class training final : public torch_training {
public:
    training(const dense_model& m, idx threads) : m_(m), threads_(threads) {
        for (const auto& w : m.weights) {
            const at::Tensor made = shared(w.values).clone();
            const at::Tensor weight = (w.values.rows() == 1 ? made.flatten() : made).requires_grad_();
            named_[w.name] = weight;
            group& g = w.decays ? decaying_ : others_;
            g.weights.push_back(weight);
            all_.push_back(weight);
        }
        reset();
    }

    double loss_and_gradient(std::span<const token_id> inputs, std::span<const token_id> targets) override {
        use_threads(threads_);
        for (at::Tensor& w : all_) w.mutable_grad().reset();
        const at::Tensor loss = mean_loss(numbers(inputs), numbers(targets));
        loss.backward();
        return loss.item<double>();
    }
    // clip_grad_norm_ adds 1e-6 to the norm that it divides by.
    void update(const adamw_numbers& n) override {
        use_threads(threads_);
        const at::NoGradGuard guard;
        torch::nn::utils::clip_grad_norm_(all_, n.clip);
        for (group* g : {&decaying_, &others_}) g->update(n, g == &decaying_ ? n.decay : 0);
    }
    void reset() override {
        const at::NoGradGuard guard;
        for (const auto& w : m_.weights)
            named_.at(w.name).view({w.values.rows(), -1}).copy_(shared(w.values));
        decaying_.reset();
        others_.reset();
    }
    void read_weight(const std::string& name, tensor_view<float> to) const override {
        const at::NoGradGuard guard;
        copy_into(to, named_.at(name));
    }
    void read_gradient(const std::string& name, tensor_view<float> to) const override {
        copy_into(to, named_.at(name).grad());
    }

private:
    struct group {
        std::vector<at::Tensor> weights, means, squares, steps;

        void reset() {
            means.clear(), squares.clear(), steps.clear();
            for (const at::Tensor& w : weights) {
                means.push_back(at::zeros_like(w.detach()));
                squares.push_back(at::zeros_like(w.detach()));
                steps.push_back(at::zeros({}));
            }
        }
        // What torch.optim.AdamW(..., fused=True) calls: one pass over the memory, the fastest it has.
        void update(const adamw_numbers& n, double decay) {
            std::vector<at::Tensor> gradients;
            for (const at::Tensor& w : weights) gradients.push_back(w.grad());
            at::_foreach_add_(steps, 1);
            at::_fused_adamw_(weights, gradients, means, squares, {}, steps, n.rate, n.beta1, n.beta2, decay,
                              n.eps, false, false);
        }
    };

    static at::Tensor numbers(std::span<const token_id> ids) {
        return at::from_blob(const_cast<token_id*>(ids.data()), {static_cast<idx>(ids.size())}, at::kInt)
            .to(at::kLong);
    }
    const at::Tensor& weight(const std::string& name) const { return named_.at(name); }

    at::Tensor norm(const at::Tensor& x, const std::string& at) const {
        return at::rms_norm(x, {x.size(-1)}, weight(at + ".scale"), m_.eps);
    }
    // Cosines and sines of half a head, made once for each length; ours makes them in every step.
    void make_angles(idx n_tokens) {
        if (cosine_.defined() && cosine_.size(0) == n_tokens) return;
        const idx half = m_.head_dim / 2;
        const at::Tensor position = at::arange(n_tokens, at::kDouble);
        const at::Tensor frequency =
            at::pow(m_.rotary_base, -at::arange(half, at::kDouble) / static_cast<double>(half));
        const at::Tensor angle = at::outer(position, frequency);
        cosine_ = angle.cos().to(at::kFloat);
        sine_ = angle.sin().to(at::kFloat);
    }
    at::Tensor rotated(const at::Tensor& x) const {
        const auto halves = x.chunk(2, -1);
        return at::cat({halves[0] * cosine_ - halves[1] * sine_, halves[1] * cosine_ + halves[0] * sine_},
                       -1);
    }
    at::Tensor attention(const at::Tensor& x, const std::string& at) const {
        const at::Tensor q = rotated(split_heads(at::linear(x, weight(at + ".w_q")), m_.n_heads));
        const at::Tensor k = rotated(split_heads(at::linear(x, weight(at + ".w_k")), m_.n_kv_heads));
        const at::Tensor v = split_heads(at::linear(x, weight(at + ".w_v")), m_.n_kv_heads);
        const at::Tensor y = at::scaled_dot_product_attention(q, k, v, {}, 0, true, std::nullopt, true);
        return at::linear(y.transpose(1, 2).reshape({x.size(0), -1}), weight(at + ".w_o"));
    }
    at::Tensor feed_forward(const at::Tensor& x, const std::string& at) const {
        const at::Tensor gate = at::silu(at::linear(x, weight(at + ".w_gate")));
        return at::linear(gate * at::linear(x, weight(at + ".w_up")), weight(at + ".w_down"));
    }
    at::Tensor mean_loss(const at::Tensor& inputs, const at::Tensor& targets) {
        make_angles(inputs.size(0));
        at::Tensor x = at::embedding(weight("embedding.table"), inputs);
        for (idx i = 0; i < m_.n_layers; ++i) {
            const std::string layer = "layers." + std::to_string(i);
            x = x + attention(norm(x, layer + ".attention_norm"), layer + ".attention");
            x = x + feed_forward(norm(x, layer + ".feed_forward_norm"), layer + ".feed_forward");
        }
        return at::cross_entropy_loss(at::linear(norm(x, "norm"), weight("embedding.head")), targets);
    }

    dense_model m_;
    idx threads_;
    std::unordered_map<std::string, at::Tensor> named_;
    std::vector<at::Tensor> all_;
    group decaying_, others_;
    at::Tensor cosine_, sine_;
};

std::shared_ptr<torch_training> train(const dense_model& m, idx threads) {
    return std::make_shared<training>(m, threads);
}

} // namespace
} // namespace sluice::bench

extern "C" const sluice::bench::torch_functions* sluice_bench_torch() {
    using namespace sluice::bench;
    static const torch_functions all{version, multiply, attend, mix, sum_bags, train};
    return &all;
}
