// Causal self-attention with grouped queries: projections, optional RMSNorm of queries and keys per head,
// rotary positions, attention over all earlier tokens or a sliding window, output projection.
//   y = softmax(q k^T / sqrt(head_dim)) v W_o^T   (Vaswani et al., 2017; Ainslie et al., "GQA", 2023)
//
// State: a cache of keys and values, for a window a ring of only what can still be seen.
#pragma once

#include "../core/layer.hpp"
#include "../core/random.hpp"
#include "../ops/attention.hpp"
#include "../ops/attention_state.hpp"
#include "../ops/elementwise.hpp"
#include "../ops/matmul.hpp"
#include "../ops/norm.hpp"
#include "../ops/rotary.hpp"

namespace sluice {

enum class qk_norm { none, per_head };

struct rotary_config {
    rotary_pairs pairs = rotary_pairs::half_split;
    double base = 10000;
};

struct attention_config {
    idx d_model = 0;
    idx n_heads = 0, n_kv_heads = 0, head_dim = 0;
    idx window = 0; // keys a row sees, itself included; 0: all
    rotary_config rotary{};
    qk_norm norm = qk_norm::none;
    double eps = 1e-6; // of the norm
};

template <class W>
struct attention_params {
    tensor_view<W> w_q;                         // n_heads * head_dim x d_model
    tensor_view<W> w_k, w_v;                    // n_kv_heads * head_dim x d_model
    tensor_view<W> w_o;                         // d_model x n_heads * head_dim
    tensor_view<vector_type<W>> q_norm, k_norm; // 1 x head_dim, or empty

    static attention_params bind(arena& a, const attention_config& c) {
        attention_params p;
        const idx q = size_product(c.n_heads, c.head_dim), kv = size_product(c.n_kv_heads, c.head_dim);
        p.w_q = a.take<W>(q, c.d_model);
        p.w_k = a.take<W>(kv, c.d_model);
        p.w_v = a.take<W>(kv, c.d_model);
        p.w_o = a.take<W>(c.d_model, q);
        if (c.norm == qk_norm::none) return p;
        p.q_norm = a.take<vector_type<W>>(1, c.head_dim);
        p.k_norm = a.take<vector_type<W>>(1, c.head_dim);
        return p;
    }
    template <class F, class First, class... Sets>
    static void each(F& f, const param_name& at, First& first, Sets&... sets) {
        f(param_name(at, "w_q"), role::matrix, first.w_q, sets.w_q...);
        f(param_name(at, "w_k"), role::matrix, first.w_k, sets.w_k...);
        f(param_name(at, "w_v"), role::matrix, first.w_v, sets.w_v...);
        f(param_name(at, "w_o"), role::matrix, first.w_o, sets.w_o...);
        if (first.q_norm.empty()) return;
        f(param_name(at, "q_norm"), role::vector, first.q_norm, sets.q_norm...);
        f(param_name(at, "k_norm"), role::vector, first.k_norm, sets.k_norm...);
    }
};

// Input maps normal with deviation 1 / sqrt(d_model); the output map zero, so that a block starts as the
// identity (Zhang et al., "Fixup initialization", 2019).
template <class T>
void initialise(const attention_params<T>& p, const attention_config& c, const random_source& numbers) {
    const double deviation = 1 / std::sqrt(static_cast<double>(c.d_model));
    fill_normal(p.w_q, deviation, numbers.split(0));
    fill_normal(p.w_k, deviation, numbers.split(1));
    fill_normal(p.w_v, deviation, numbers.split(2));
    fill(p.w_o, T(0));
    fill(p.q_norm, T(1));
    fill(p.k_norm, T(1));
}

inline namespace SLUICE_ISA {

template <class T, class W = T, class Arch = simd::native>
class attention {
public:
    using scalar = T;
    using arch = Arch;
    static constexpr bool trainable = std::is_same_v<std::remove_const_t<W>, T>; // weights stored as T
    using config_type = attention_config;
    using params_type = attention_params<W>;
    using grad_type = attention_params<T>;
    using state_type = attention_state<T>;

    attention(const attention_config& config, const params_type& params) : config_(config), params_(params) {
        const auto& c = config;
        require_positive(c.d_model, "attention", "d_model");
        require_positive(c.n_heads, "attention", "n_heads");
        require_positive(c.n_kv_heads, "attention", "n_kv_heads");
        require_positive(c.head_dim, "attention", "head_dim");
        if (c.n_heads % c.n_kv_heads != 0)
            SLUICE_THROW(config_error("attention: n_heads (" + std::to_string(c.n_heads) +
                                      ") must be a multiple of n_kv_heads (" + std::to_string(c.n_kv_heads) +
                                      ")"));
        require(c.window >= 0, "attention", "window must not be negative");
        if (c.rotary.pairs != rotary_pairs::none) {
            if (c.head_dim % 2 != 0)
                SLUICE_THROW(config_error("attention: rotary positions need an even head_dim, is " +
                                          std::to_string(c.head_dim)));
            require(c.rotary.base > 0, "attention", "rotary base must be positive");
        }
        const idx q = size_product(c.n_heads, c.head_dim), kv = size_product(c.n_kv_heads, c.head_dim);
        require_shape(params.w_q, q, c.d_model, "attention", "w_q");
        require_shape(params.w_k, kv, c.d_model, "attention", "w_k");
        require_shape(params.w_v, kv, c.d_model, "attention", "w_v");
        require_shape(params.w_o, c.d_model, q, "attention", "w_o");
        const idx normed = c.norm == qk_norm::none ? 0 : 1;
        require_shape(params.q_norm, normed, normed * c.head_dim, "attention", "q_norm");
        require_shape(params.k_norm, normed, normed * c.head_dim, "attention", "k_norm");
    }

    const attention_config& config() const { return config_; }
    const params_type& params() const { return params_; }
    idx d_in() const { return config_.d_model; }
    idx d_out() const { return config_.d_model; }

    // Every sequence of the batch from its first token; y (n_tokens, d_model) from x of the same shape.
    void forward(const batch& b, in<T> x, tensor_view<T> y, arena* tape, arena& workspace,
                 executor_ref ex = {}) const {
        check_call(b, x, y);
        const arena::scope scope(workspace);
        const tensors t = take(b.n_tokens, tape == nullptr ? workspace : *tape);
        project(b, x, t, workspace, ex);
        attend<Arch>(b, shape(), t.q, packed_keys<T>{&b, t.k, t.v}, causal_attention{config_.window}, t.y,
                     t.lse, workspace, ex);
        matmul<Arch>(t.y, params_.w_o, y, {}, workspace, ex);
    }

    void backward(const batch& b, in<T> x, in<T> dy, tensor_view<T> dx, arena& tape, const grad_type& grad,
                  arena& workspace, executor_ref ex = {}) const {
        check_backward<T>(b, x, dy, dx, d_in(), d_out(), "attention");
        rehearse(ex, &tape, [&](executor_ref dry) { backward(b, x, dy, dx, tape, grad, workspace, dry); });
        const arena::scope scope(workspace);
        const tensors t = pop(b.n_tokens, tape);
        const auto dheads = workspace.take<T>(b.n_tokens, t.q.cols());
        const auto dq = workspace.take<T>(b.n_tokens, t.q.cols());
        const auto dk = workspace.take<T>(b.n_tokens, t.k.cols()),
                   dv = workspace.take<T>(b.n_tokens, t.k.cols());
        matmul_dw<Arch>(dy, t.y, grad.w_o, workspace, ex);
        matmul_dx<Arch>(dy, params_.w_o, dheads, false, workspace, ex);
        attend_backward<Arch>(b, shape(), t.q, t.k, t.v, t.y, t.lse, dheads, causal_attention{config_.window},
                              dq, dk, dv, workspace, ex);
        if (config_.rotary.pairs != rotary_pairs::none) {
            const auto table = rotary(b, workspace, ex);
            rotate<Arch>(dq, table, config_.rotary.pairs, true, ex);
            rotate<Arch>(dk, table, config_.rotary.pairs, true, ex);
        }
        if (config_.norm == qk_norm::per_head) {
            unnorm(t.raw_q, params_.q_norm, t.q_inverse, dq, grad.q_norm, ex);
            unnorm(t.raw_k, params_.k_norm, t.k_inverse, dk, grad.k_norm, ex);
        }
        unproject(x, dq, dx, false, params_.w_q, grad.w_q, workspace, ex);
        unproject(x, dk, dx, true, params_.w_k, grad.w_k, workspace, ex);
        unproject(x, dv, dx, true, params_.w_v, grad.w_v, workspace, ex);
    }

    state_type bind_state(arena& memory, const limits& most) const {
        return state_type::bind(memory, config_.n_kv_heads, config_.head_dim, config_.window, most);
    }

    // Appends the batch's tokens to their sequences. Nothing is written when the state cannot hold them.
    void extend(const batch& b, in<T> x, tensor_view<T> y, state_type& state, arena& workspace,
                executor_ref ex = {}) const {
        check_call(b, x, y);
        if (!ex.dry()) state.check_room(b);
        rehearse(ex, [&](executor_ref dry) { extend(b, x, y, state, workspace, dry); });
        const arena::scope scope(workspace);
        const tensors t = take(b.n_tokens, workspace);
        // as many as a batch can name, so that bytes() covers every batch
        const idx slots = state.n_sequences();
        const std::span<idx> past(workspace.take<idx>(slots), ex.dry() ? 0 : static_cast<std::size_t>(slots));
        project(b, x, t, workspace, ex);
        if (!ex.dry()) state.append(b, t.k, t.v, past);
        attend<Arch>(b, shape(), t.q, cached_keys<T>{&b, &state}, causal_attention{config_.window, past}, t.y,
                     {}, workspace, ex);
        matmul<Arch>(t.y, params_.w_o, y, {}, workspace, ex);
    }
    // Two names for what extend does: the prompt, and then a token at a time.
    void prefill(const batch& b, in<T> x, tensor_view<T> y, state_type& state, arena& workspace,
                 executor_ref ex = {}) const {
        extend(b, x, y, state, workspace, ex);
    }
    void decode(const batch& b, in<T> x, tensor_view<T> y, state_type& state, arena& workspace,
                executor_ref ex = {}) const {
        extend(b, x, y, state, workspace, ex);
    }

    sizes bytes(const limits& most) const { return layer_bytes(*this, most); }
    // Products and visible pairs of n tokens after `past` others; norms and rotations are not counted.
    double flops(idx n_tokens, idx past = 0) const {
        const idx weights = params_.w_q.size() + params_.w_k.size() + params_.w_v.size() + params_.w_o.size();
        double pairs = 0;
        for (idx i = past; i < past + n_tokens; ++i)
            pairs += static_cast<double>(config_.window == 0 ? i + 1 : std::min(i + 1, config_.window));
        return 2.0 * static_cast<double>(n_tokens) * static_cast<double>(weights) +
               4.0 * pairs * static_cast<double>(config_.n_heads * config_.head_dim);
    }

private:
    // What backward needs: raw_* are before, q and k after norm and rotation (the same where there is no
    // norm).
    struct tensors {
        tensor_view<T> raw_q, raw_k, q_inverse, k_inverse, q, k, v, y, lse;
    };
    tensors take(idx n, arena& keep) const {
        const idx h = config_.n_heads, g = config_.n_kv_heads, d = config_.head_dim;
        const bool normed = config_.norm == qk_norm::per_head;
        tensors t;
        t.q = keep.take<T>(n, h * d);
        t.k = keep.take<T>(n, g * d);
        t.v = keep.take<T>(n, g * d);
        t.y = keep.take<T>(n, h * d);
        t.lse = keep.take<T>(n, h);
        t.raw_q = normed ? keep.take<T>(n, h * d) : t.q;
        t.raw_k = normed ? keep.take<T>(n, g * d) : t.k;
        if (normed) t.q_inverse = keep.take<T>(1, n * h);
        if (normed) t.k_inverse = keep.take<T>(1, n * g);
        return t;
    }
    tensors pop(idx n, arena& tape) const {
        const idx h = config_.n_heads, g = config_.n_kv_heads, d = config_.head_dim;
        const bool normed = config_.norm == qk_norm::per_head;
        tensors t;
        if (normed) t.k_inverse = tape.pop<T>(1, n * g);
        if (normed) t.q_inverse = tape.pop<T>(1, n * h);
        if (normed) t.raw_k = tape.pop<T>(n, g * d);
        if (normed) t.raw_q = tape.pop<T>(n, h * d);
        t.lse = tape.pop<T>(n, h);
        t.y = tape.pop<T>(n, h * d);
        t.v = tape.pop<T>(n, g * d);
        t.k = tape.pop<T>(n, g * d);
        t.q = tape.pop<T>(n, h * d);
        return t;
    }
    void check_call(const batch& b, in<T> x, in<T> y) const {
        check_batch(b, "attention");
        require_shape(x, b.n_tokens, config_.d_model, "attention", "x");
        require_shape(y, b.n_tokens, config_.d_model, "attention", "y");
    }
    attention_shape shape() const { return {config_.n_heads, config_.n_kv_heads, config_.head_dim}; }
    rotary_table<T> rotary(const batch& b, arena& workspace, executor_ref ex) const {
        const auto table = rotary_table<T>::bind(workspace, b.n_tokens, config_.head_dim);
        fill_rotary_table<Arch>(b, config_.rotary.base, table, workspace, ex);
        return table;
    }
    // Queries, keys and values of a call, ready for attention.
    void project(const batch& b, in<T> x, const tensors& t, arena& workspace, executor_ref ex) const {
        matmul<Arch>(x, params_.w_q, t.raw_q, {}, workspace, ex);
        matmul<Arch>(x, params_.w_k, t.raw_k, {}, workspace, ex);
        matmul<Arch>(x, params_.w_v, t.v, {}, workspace, ex);
        if (config_.norm == qk_norm::per_head) {
            const T eps = static_cast<T>(config_.eps);
            normalise<Arch, T>(heads(t.raw_q), params_.q_norm, {}, heads(t.q), t.q_inverse, {}, eps, ex);
            normalise<Arch, T>(heads(t.raw_k), params_.k_norm, {}, heads(t.k), t.k_inverse, {}, eps, ex);
        }
        if (config_.rotary.pairs == rotary_pairs::none) return;
        const arena::scope scope(workspace);
        const auto table = rotary(b, workspace, ex);
        rotate<Arch>(t.q, table, config_.rotary.pairs, false, ex);
        rotate<Arch>(t.k, table, config_.rotary.pairs, false, ex);
    }
    // The same memory with one head a row.
    tensor_view<T> heads(const tensor_view<T>& t) const {
        return {t.data(), t.size() / config_.head_dim, config_.head_dim};
    }
    void unnorm(const tensor_view<T>& raw, in<T> scale, in<T> inverse, const tensor_view<T>& d,
                tensor_view<T> dscale, executor_ref ex) const {
        normalise_backward<Arch, T>(heads(raw), scale, inverse, {}, heads(d), heads(d), dscale, {}, ex);
    }
    void unproject(in<T> x, in<T> d, tensor_view<T> dx, bool add, const tensor_view<W>& w, tensor_view<T> dw,
                   arena& workspace, executor_ref ex) const {
        matmul_dx<Arch>(d, w, dx, add, workspace, ex);
        matmul_dw<Arch>(d, x, dw, workspace, ex);
    }

    attention_config config_;
    params_type params_;
};

} // namespace SLUICE_ISA
} // namespace sluice
