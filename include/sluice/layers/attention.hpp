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
    double eps = 1e-6;                      // of the norm
    key_storage cache = key_storage::plain; // what decoding keeps keys and values in
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

// Queries, keys and values of attention from rows of x, and their gradients: what all attention layers share.
template <class T, class W, class Arch>
class attention_heads {
public:
    // Queries or keys: `raw` before, `y` after norm and rotation (the same where there is no norm).
    struct heads {
        tensor_view<T> raw, y, inverse;
    };

    attention_heads(const attention_config& config, const attention_params<W>& params)
        : config_(config), params_(params) {
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
    const attention_params<W>& params() const { return params_; }
    attention_shape shape() const { return {config_.n_heads, config_.n_kv_heads, config_.head_dim}; }

    heads take_queries(arena& keep, idx rows) const { return take(keep, rows, config_.n_heads); }
    heads take_keys(arena& keep, idx rows) const { return take(keep, rows, config_.n_kv_heads); }
    heads pop_queries(arena& tape, idx rows) const { return pop(tape, rows, config_.n_heads); }
    heads pop_keys(arena& tape, idx rows) const { return pop(tape, rows, config_.n_kv_heads); }

    // Angles for the rows of b; empty without rotary positions.
    rotary_table<T> rotary(const batch& b, arena& workspace, executor_ref ex) const {
        if (config_.rotary.pairs == rotary_pairs::none) return {};
        const auto table = rotary_table<T>::bind(workspace, b.rows(), config_.head_dim);
        fill_rotary_table<Arch>(b, config_.rotary.base, table, workspace, ex);
        return table;
    }
    void queries(in<T> x, const rotary_table<T>& table, const heads& q, arena& workspace,
                 executor_ref ex) const {
        project(x, params_.w_q, params_.q_norm, table, q, workspace, ex);
    }
    void keys(in<T> x, const rotary_table<T>& table, const heads& k, arena& workspace,
              executor_ref ex) const {
        project(x, params_.w_k, params_.k_norm, table, k, workspace, ex);
    }
    void values(in<T> x, tensor_view<T> v, arena& workspace, executor_ref ex) const {
        matmul<Arch>(x, params_.w_v, v, {}, workspace, ex);
    }

    // From the gradient of what attention read, which is overwritten, to those of x (added to where `add`)
    // and of the weights.
    void queries_backward(in<T> x, const rotary_table<T>& table, const heads& q, tensor_view<T> dq,
                          tensor_view<T> dx, bool add, const attention_params<T>& grad, arena& workspace,
                          executor_ref ex) const {
        unturn(table, q, params_.q_norm, dq, grad.q_norm, ex);
        unproject(x, dq, dx, add, params_.w_q, grad.w_q, workspace, ex);
    }
    void keys_backward(in<T> x, const rotary_table<T>& table, const heads& k, tensor_view<T> dk,
                       tensor_view<T> dx, bool add, const attention_params<T>& grad, arena& workspace,
                       executor_ref ex) const {
        unturn(table, k, params_.k_norm, dk, grad.k_norm, ex);
        unproject(x, dk, dx, add, params_.w_k, grad.w_k, workspace, ex);
    }
    void values_backward(in<T> x, in<T> dv, tensor_view<T> dx, bool add, const attention_params<T>& grad,
                         arena& workspace, executor_ref ex) const {
        unproject(x, dv, dx, add, params_.w_v, grad.w_v, workspace, ex);
    }

private:
    bool normed() const { return config_.norm == qk_norm::per_head; }
    heads take(arena& keep, idx rows, idx n_heads) const {
        heads t;
        t.y = keep.take<T>(rows, n_heads * config_.head_dim);
        t.raw = normed() ? keep.take<T>(rows, n_heads * config_.head_dim) : t.y;
        if (normed()) t.inverse = keep.take<T>(1, rows * n_heads);
        return t;
    }
    heads pop(arena& tape, idx rows, idx n_heads) const {
        heads t;
        if (normed()) t.inverse = tape.pop<T>(1, rows * n_heads);
        if (normed()) t.raw = tape.pop<T>(rows, n_heads * config_.head_dim);
        t.y = tape.pop<T>(rows, n_heads * config_.head_dim);
        return t;
    }
    void project(in<T> x, const tensor_view<W>& w, in<T> scale, const rotary_table<T>& table, const heads& t,
                 arena& workspace, executor_ref ex) const {
        matmul<Arch>(x, w, t.raw, {}, workspace, ex);
        if (normed())
            normalise<Arch, T>(one_a_row(t.raw), scale, {}, one_a_row(t.y), t.inverse, {},
                               static_cast<T>(config_.eps), ex);
        if (config_.rotary.pairs != rotary_pairs::none)
            rotate<Arch>(t.y, table, config_.rotary.pairs, false, ex);
    }
    void unturn(const rotary_table<T>& table, const heads& t, in<T> scale, const tensor_view<T>& d,
                tensor_view<T> dscale, executor_ref ex) const {
        if (config_.rotary.pairs != rotary_pairs::none)
            rotate<Arch>(d, table, config_.rotary.pairs, true, ex);
        if (normed())
            normalise_backward<Arch, T>(one_a_row(t.raw), scale, t.inverse, {}, one_a_row(d), one_a_row(d),
                                        dscale, {}, ex);
    }
    void unproject(in<T> x, in<T> d, tensor_view<T> dx, bool add, const tensor_view<W>& w, tensor_view<T> dw,
                   arena& workspace, executor_ref ex) const {
        matmul_dx<Arch>(d, w, dx, add, workspace, ex);
        matmul_dw<Arch>(d, x, dw, workspace, ex);
    }
    // The same memory with one head a row.
    tensor_view<T> one_a_row(const tensor_view<T>& t) const {
        return {t.data(), t.size() / config_.head_dim, config_.head_dim};
    }

    attention_config config_;
    attention_params<W> params_;
};

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

    attention(const attention_config& config, const params_type& params) : heads_(config, params) {}

    const attention_config& config() const { return heads_.config(); }
    const params_type& params() const { return heads_.params(); }
    idx d_in() const { return config().d_model; }
    idx d_out() const { return config().d_model; }

    // Every sequence of the batch from its first token; y (n_tokens, d_model) from x of the same shape.
    void forward(const batch& b, in<T> x, tensor_view<T> y, arena* tape, arena& workspace,
                 executor_ref ex = {}) const {
        check_call(b, x, y);
        const arena::scope scope(workspace);
        const tensors t = take(b.n_tokens, tape == nullptr ? workspace : *tape);
        project(b, x, t, workspace, ex);
        attend<Arch>(b, heads_.shape(), t.q.y, packed_keys<T>{&b, t.k.y, t.v},
                     causal_attention{config().window}, t.y, t.lse, workspace, ex);
        matmul<Arch>(t.y, params().w_o, y, {}, workspace, ex);
    }

    void backward(const batch& b, in<T> x, in<T> dy, tensor_view<T> dx, arena& tape, const grad_type& grad,
                  arena& workspace, executor_ref ex = {}) const {
        check_backward<T>(b, x, dy, dx, d_in(), d_out(), "attention");
        rehearse(ex, &tape, [&](executor_ref dry) { backward(b, x, dy, dx, tape, grad, workspace, dry); });
        const arena::scope scope(workspace);
        const tensors t = pop(b.n_tokens, tape);
        const auto dheads = workspace.take<T>(b.n_tokens, t.y.cols());
        const auto dq = workspace.take<T>(b.n_tokens, t.y.cols());
        const auto dk = workspace.take<T>(b.n_tokens, t.v.cols()),
                   dv = workspace.take<T>(b.n_tokens, t.v.cols());
        matmul_dw<Arch>(dy, t.y, grad.w_o, workspace, ex);
        matmul_dx<Arch>(dy, params().w_o, dheads, false, workspace, ex);
        attend_backward<Arch, T>(b, heads_.shape(), t.q.y, t.k.y, t.v, t.y, t.lse, dheads,
                                 causal_attention{config().window}, dq, dk, dv, workspace, ex);
        const auto table = heads_.rotary(b, workspace, ex);
        heads_.queries_backward(x, table, t.q, dq, dx, false, grad, workspace, ex);
        heads_.keys_backward(x, table, t.k, dk, dx, true, grad, workspace, ex);
        heads_.values_backward(x, dv, dx, true, grad, workspace, ex);
    }

    state_type bind_state(arena& memory, const limits& most) const {
        return state_type::bind(memory, config().n_kv_heads, config().head_dim, config().window, most,
                                config().cache);
    }

    // Appends the batch's tokens to their sequences. Nothing is written when the state cannot hold them.
    void extend(const batch& b, in<T> x, tensor_view<T> y, state_type& state, arena& workspace,
                executor_ref ex = {}) const {
        check_call(b, x, y);
        state.check_shape(config().n_kv_heads, config().head_dim, config().window);
        if (!ex.dry()) state.check_room(b);
        rehearse(ex, [&](executor_ref dry) { extend(b, x, y, state, workspace, dry); });
        const arena::scope scope(workspace);
        const tensors t = take(b.n_tokens, workspace);
        // as many as a batch can name, so that bytes() covers every batch
        const idx slots = state.n_sequences();
        const std::span<idx> past(workspace.take<idx>(slots), ex.dry() ? 0 : static_cast<std::size_t>(slots));
        project(b, x, t, workspace, ex);
        if (!ex.dry()) state.append(b, t.k.y, t.v, past);
        attend<Arch>(b, heads_.shape(), t.q.y, cached_keys<T>{&b, &state},
                     causal_attention{config().window, past}, t.y, {}, workspace, ex);
        matmul<Arch>(t.y, params().w_o, y, {}, workspace, ex);
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
        const auto& p = params();
        const idx weights = p.w_q.size() + p.w_k.size() + p.w_v.size() + p.w_o.size();
        double pairs = 0;
        for (idx i = past; i < past + n_tokens; ++i)
            pairs += static_cast<double>(config().window == 0 ? i + 1 : std::min(i + 1, config().window));
        return 2.0 * static_cast<double>(n_tokens) * static_cast<double>(weights) +
               4.0 * pairs * static_cast<double>(config().n_heads * config().head_dim);
    }

private:
    using heads = attention_heads<T, W, Arch>;
    struct tensors { // what backward needs
        typename heads::heads q, k;
        tensor_view<T> v, y, lse;
    };
    tensors take(idx n, arena& keep) const {
        tensors t;
        t.q = heads_.take_queries(keep, n);
        t.k = heads_.take_keys(keep, n);
        t.v = keep.take<T>(n, config().n_kv_heads * config().head_dim);
        t.y = keep.take<T>(n, config().n_heads * config().head_dim);
        t.lse = keep.take<T>(n, config().n_heads);
        return t;
    }
    tensors pop(idx n, arena& tape) const {
        tensors t;
        t.lse = tape.pop<T>(n, config().n_heads);
        t.y = tape.pop<T>(n, config().n_heads * config().head_dim);
        t.v = tape.pop<T>(n, config().n_kv_heads * config().head_dim);
        t.k = heads_.pop_keys(tape, n);
        t.q = heads_.pop_queries(tape, n);
        return t;
    }
    void check_call(const batch& b, in<T> x, in<T> y) const {
        check_batch(b, "attention");
        if (b.copies != 1)
            SLUICE_THROW(input_error("attention: batch: copies is " + std::to_string(b.copies) +
                                     "; cswa is the attention of repeated tokens"));
        require_shape(x, b.n_tokens, d_in(), "attention", "x");
        require_shape(y, b.n_tokens, d_in(), "attention", "y");
    }
    void project(const batch& b, in<T> x, const tensors& t, arena& workspace, executor_ref ex) const {
        const arena::scope scope(workspace);
        const auto table = heads_.rotary(b, workspace, ex);
        heads_.queries(x, table, t.q, workspace, ex);
        heads_.keys(x, table, t.k, workspace, ex);
        heads_.values(x, t.v, workspace, ex);
    }

    heads heads_;
};

} // namespace SLUICE_ISA
} // namespace sluice
