// ggml as a peer: the graph that llama.cpp makes of a mixture of experts, on the CPU. Its backend is asked
// for by kind and not by name, as some builds load it, one of several for this processor, when the program
// runs.
//
// Its products by expert are dot products of single rows, made for few tokens and for quantized weights: in
// f32 they read memory as fast as it goes for one token and reach about a quarter of the peak for many
// (measured on Zen 5 with 0.21). That is what its users have in these formats, and not what ggml is best at.
#include "peers.hpp"

#if defined(SLUICE_BENCH_GGML)
#    include <ggml-cpp.h>

#    include <cstdint>
#    include <cstdio>
#    include <cstdlib>
#endif

namespace sluice::bench {

#if defined(SLUICE_BENCH_GGML)

namespace {

// Null where a build that loads its backends finds none.
ggml_backend_dev_t processor() {
    static const ggml_backend_dev_t found = [] {
        if (const auto linked = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU)) return linked;
        ggml_backend_load_all();
        return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    }();
    return found;
}
// What a backend offers beyond the functions that all have.
template <class F>
F offered(const char* name) {
    return reinterpret_cast<F>(
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(processor()), name));
}

// Descriptions of tensors; their data lies elsewhere.
ggml_context_ptr descriptions(std::size_t tensors) {
    const std::size_t bytes = tensors * ggml_tensor_overhead() + ggml_graph_overhead();
    return ggml_context_ptr(ggml_init({.mem_size = bytes, .mem_buffer = nullptr, .no_alloc = true}));
}

class expert_graph {
public:
    expert_graph(const experts_of_tokens& p, idx threads, expert_storage storage)
        : n_experts_(p.router.rows()),
          d_(p.router.cols()),
          f_(p.down.cols()),
          top_k_(p.top_k),
          backend_(ggml_backend_dev_init(processor(), nullptr)),
          space_(ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend_.get()))),
          weights_(descriptions(4)),
          router_(weight(p.router, 1, GGML_TYPE_F32)),
          bias_(weight(p.router_bias, 1, GGML_TYPE_F32)),
          gate_up_(weight(p.gate_up, n_experts_, of(storage))),
          down_(weight(p.down, n_experts_, of(storage))) {
        const auto set = offered<ggml_backend_set_n_threads_t>("ggml_backend_set_n_threads");
        if (set != nullptr) set(backend_.get(), static_cast<int>(threads));
    }
    expert_graph(const expert_graph&) = delete;

    void run(tensor_view<const float> x, tensor_view<float> y) {
        if (x.rows() != tokens_) build(x.rows());
        const std::size_t row = static_cast<std::size_t>(d_) * sizeof(float);
        for (idx t = 0; t < tokens_; ++t)
            ggml_backend_tensor_set(x_, x.row(t), static_cast<std::size_t>(t) * row, row);
        if (ggml_backend_graph_compute(backend_.get(), graph_) != GGML_STATUS_SUCCESS) {
            std::fprintf(stderr, "ggml did not compute a mixture of experts\n");
            std::exit(EXIT_FAILURE);
        }
        for (idx t = 0; t < tokens_; ++t)
            ggml_backend_tensor_get(y_, y.row(t), static_cast<std::size_t>(t) * row, row);
    }

private:
    static ggml_type of(expert_storage s) {
        return s == expert_storage::bf16   ? GGML_TYPE_BF16
               : s == expert_storage::q8_0 ? GGML_TYPE_Q8_0
               : s == expert_storage::q4_0 ? GGML_TYPE_Q4_0
                                           : GGML_TYPE_F32;
    }
    // `parts` matrices one after another: our memory where ggml can read it, nothing written there, else a
    // copy.
    ggml_tensor* weight(tensor_view<const float> t, idx parts, ggml_type type) {
        ggml_tensor* const to = ggml_new_tensor_3d(weights_.get(), type, t.cols(), t.rows() / parts, parts);
        const auto kind = ggml_backend_get_default_buffer_type(backend_.get());
        const auto at = reinterpret_cast<std::uintptr_t>(t.data());
        ggml_backend_dev_props props;
        ggml_backend_dev_get_props(processor(), &props);
        if (type == GGML_TYPE_F32 && t.row_stride() == t.cols() && props.caps.buffer_from_host_ptr &&
            at % ggml_backend_buft_get_alignment(kind) == 0) {
            const std::size_t bytes = ggml_nbytes(to);
            place(to, ggml_backend_dev_buffer_from_host_ptr(processor(), const_cast<float*>(t.data()), bytes,
                                                            bytes));
            return to;
        }
        place(to, ggml_backend_buft_alloc_buffer(kind, ggml_backend_buft_get_alloc_size(kind, to)));
        const std::size_t row = ggml_row_size(type, t.cols());
        if (ggml_is_quantized(type)) { // all at once: a buffer may keep it in another order
            std::vector<std::byte> blocks(ggml_nbytes(to));
            for (idx i = 0; i < t.rows(); ++i)
                ggml_quantize_chunk(type, t.row(i), blocks.data() + static_cast<std::size_t>(i) * row, 0, 1,
                                    t.cols(), nullptr);
            ggml_backend_tensor_set(to, blocks.data(), 0, blocks.size());
            return to;
        }
        std::vector<ggml_bf16_t> narrow(static_cast<std::size_t>(t.cols()));
        for (idx i = 0; i < t.rows(); ++i) {
            const void* from = t.row(i);
            if (type == GGML_TYPE_BF16) {
                ggml_fp32_to_bf16_row(t.row(i), narrow.data(), t.cols());
                from = narrow.data();
            }
            ggml_backend_tensor_set(to, from, static_cast<std::size_t>(i) * row, row);
        }
        return to;
    }
    void place(ggml_tensor* t, ggml_backend_buffer_t buffer) {
        held_.emplace_back(buffer);
        ggml_backend_buffer_set_usage(buffer, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        ggml_backend_tensor_alloc(buffer, t, ggml_backend_buffer_get_base(buffer));
    }

    // As llama.cpp has it: all products of one kind in one node, which sorts the tokens by expert itself.
    void build(idx tokens) {
        tokens_ = tokens;
        described_ = descriptions(32 + 2 * static_cast<std::size_t>(top_k_));
        ggml_context* const c = described_.get();
        graph_ = ggml_new_graph(c);
        x_ = ggml_new_tensor_2d(c, GGML_TYPE_F32, d_, tokens);
        ggml_set_input(x_);
        ggml_tensor* const logits = ggml_add(c, ggml_mul_mat(c, router_, x_), bias_);
        ggml_tensor* const chosen = ggml_top_k(c, logits, static_cast<int>(top_k_));
        ggml_tensor* const best = ggml_get_rows(c, ggml_reshape_3d(c, logits, 1, n_experts_, tokens), chosen);
        ggml_tensor* const shares = ggml_soft_max(c, ggml_reshape_2d(c, best, top_k_, tokens));
        ggml_tensor* const inner =
            ggml_swiglu(c, ggml_mul_mat_id(c, gate_up_, ggml_reshape_3d(c, x_, d_, 1, tokens), chosen));
        ggml_tensor* const out = ggml_mul(c, ggml_mul_mat_id(c, down_, inner, chosen),
                                          ggml_reshape_3d(c, shares, 1, top_k_, tokens));
        auto slot = [&](idx j) {
            return ggml_view_2d(c, out, d_, tokens, out->nb[2], static_cast<std::size_t>(j) * out->nb[1]);
        };
        y_ = slot(0);
        for (idx j = 1; j < top_k_; ++j) y_ = ggml_add(c, y_, slot(j));
        if (top_k_ == 1) y_ = ggml_cont(c, y_);
        ggml_set_output(y_);
        ggml_build_forward_expand(graph_, y_);
        ggml_gallocr_alloc_graph(space_.get(), graph_);
    }

    idx n_experts_, d_, f_, top_k_, tokens_ = 0;
    ggml_backend_ptr backend_;
    ggml_gallocr_ptr space_; // of what the graph computes
    ggml_context_ptr weights_, described_;
    std::vector<ggml_backend_buffer_ptr> held_;
    ggml_tensor *router_, *bias_, *gate_up_, *down_, *x_ = nullptr, *y_ = nullptr;
    ggml_cgraph* graph_ = nullptr;
};

} // namespace

mixture_call ggml_mixture(const experts_of_tokens& p, idx threads, expert_storage storage) {
    if (processor() == nullptr) return {};
    const auto made = std::make_shared<expert_graph>(p, threads, storage);
    return [made](tensor_view<const float> x, tensor_view<float> y) { made->run(x, y); };
}

peer ggml_peer() {
    if (processor() == nullptr) return {"ggml", "absent: it has no backend for the CPU"};
    std::string text = ggml_version();
    const auto features = offered<ggml_backend_get_features_t>("ggml_backend_get_features");
    if (features == nullptr) return {"ggml", text};
    // Of a long list, what its products of f32 and bf16 make use of.
    for (auto* f = features(ggml_backend_dev_backend_reg(processor())); f->name != nullptr; ++f)
        for (const std::string name : {"AVX2", "AVX512", "AVX512_BF16", "NEON", "SVE", "OPENMP"})
            if (f->name == name) text += ", " + name;
    return {"ggml", text};
}

#else

mixture_call ggml_mixture(const experts_of_tokens&, idx, expert_storage) { return {}; }
peer ggml_peer() { return {"ggml", "absent"}; }

#endif

} // namespace sluice::bench
