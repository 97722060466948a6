// Attention from tokens to concepts, of which each token sees a prefix (Qu et al., "Dynamic large concept
// models", 2025, eqs. 12-17):
//   y = h + softmax(RMSNorm(h W_q^T) RMSNorm(z W_k^T)^T / sqrt(head_dim)) z W_v^T W_o^T
// A token that sees no concept is left as it is. The paper repeats each concept for its tokens, which is the
// same as the logarithm of their number added to its score; a learned gain of both norms, no positions.
#pragma once

#include "../core/layer.hpp"
#include "../core/random.hpp"
#include "../ops/attention.hpp"
#include "../ops/attention_state.hpp"
#include "../ops/elementwise.hpp"
#include "../ops/matmul.hpp"
#include "../ops/norm.hpp"
#include "../ops/segment.hpp"

namespace sluice {

// How much a concept weighs: as one key (eq. 14), or as one for each token of its segment, those up to the
// token that looks (eq. 17).
enum class concept_weight { one, segment_length };

struct concept_attention_config {
    idx d_model = 0, d_concept = 0;
    idx n_heads = 0, n_kv_heads = 0, head_dim = 0;
    concept_weight weight = concept_weight::one;
    double eps = 1e-6; // of the norms of queries and keys
};

template <class W>
struct concept_attention_params {
    tensor_view<W> w_q;                         // n_heads * head_dim x d_model
    tensor_view<W> w_k, w_v;                    // n_kv_heads * head_dim x d_concept
    tensor_view<W> w_o;                         // d_model x n_heads * head_dim
    tensor_view<vector_type<W>> q_norm, k_norm; // 1 x head_dim

    static concept_attention_params bind(arena& a, const concept_attention_config& c) {
        concept_attention_params p;
        const idx q = size_product(c.n_heads, c.head_dim), kv = size_product(c.n_kv_heads, c.head_dim);
        p.w_q = a.take<W>(q, c.d_model);
        p.w_k = a.take<W>(kv, c.d_concept);
        p.w_v = a.take<W>(kv, c.d_concept);
        p.w_o = a.take<W>(c.d_model, q);
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
        f(param_name(at, "q_norm"), role::vector, first.q_norm, sets.q_norm...);
        f(param_name(at, "k_norm"), role::vector, first.k_norm, sets.k_norm...);
    }
};

// As attention's: normal with deviation 1 / sqrt(fan-in), the output map zero, norms one.
template <class T>
void initialise(const concept_attention_params<T>& p, const concept_attention_config& c,
                const random_source& numbers) {
    const double of_tokens = 1 / std::sqrt(static_cast<double>(c.d_model));
    const double of_concepts = 1 / std::sqrt(static_cast<double>(c.d_concept));
    fill_normal(p.w_q, of_tokens, numbers.split(0));
    fill_normal(p.w_k, of_concepts, numbers.split(1));
    fill_normal(p.w_v, of_concepts, numbers.split(2));
    fill(p.w_o, T(0));
    fill(p.q_norm, T(1));
    fill(p.k_norm, T(1));
}

// The keys and values of the concepts of each sequence, and where they are weighted the logarithms of their
// lengths.
template <class T>
struct concept_attention_state {
    attention_state<T> keys;
    tensor_view<T> lengths; // n_sequences x max_tokens, or empty
};

inline namespace SLUICE_ISA {

template <class T, class W = T, class Arch = simd::native>
class concept_cross_attention {
public:
    using scalar = T;
    using arch = Arch;
    static constexpr bool trainable = std::is_same_v<std::remove_const_t<W>, T>; // weights stored as T
    using config_type = concept_attention_config;
    using params_type = concept_attention_params<W>;
    using grad_type = concept_attention_params<T>;
    using state_type = concept_attention_state<T>;

    // What backward needs.
    struct heads {
        tensor_view<T> raw, y, inverse; // before and behind the norm
    };
    struct tensors {
        heads q, k;
        tensor_view<T> v, y, lse;
        tensor_view<T> own, lengths; // 1 x n_tokens, 1 x concepts: logarithms; empty where all weigh one
    };

    concept_cross_attention(const config_type& config, const params_type& params,
                            std::string_view layer = "concept_cross_attention")
        : config_(config), params_(params) {
        const auto& c = config;
        require_positive(c.d_model, layer, "cross.d_model");
        require_positive(c.d_concept, layer, "cross.d_concept");
        require_positive(c.n_heads, layer, "cross.n_heads");
        require_positive(c.n_kv_heads, layer, "cross.n_kv_heads");
        require_positive(c.head_dim, layer, "cross.head_dim");
        require(c.n_heads % c.n_kv_heads == 0, layer,
                "cross.n_heads (" + std::to_string(c.n_heads) + ") must be a multiple of cross.n_kv_heads (" +
                    std::to_string(c.n_kv_heads) + ")");
        const idx q = size_product(c.n_heads, c.head_dim), kv = size_product(c.n_kv_heads, c.head_dim);
        require_shape(params.w_q, q, c.d_model, layer, "w_q");
        require_shape(params.w_k, kv, c.d_concept, layer, "w_k");
        require_shape(params.w_v, kv, c.d_concept, layer, "w_v");
        require_shape(params.w_o, c.d_model, q, layer, "w_o");
        require_shape(params.q_norm, 1, c.head_dim, layer, "q_norm");
        require_shape(params.k_norm, 1, c.head_dim, layer, "k_norm");
    }
    const config_type& config() const { return config_; }
    const params_type& params() const { return params_; }
    attention_shape shape() const { return {config_.n_heads, config_.n_kv_heads, config_.head_dim}; }

    tensors take(arena& keep, idx n_tokens, idx n_concepts) const {
        const idx q = params_.w_q.rows(), kv = params_.w_k.rows();
        auto heads_of = [&](idx rows, idx width) {
            heads h;
            h.raw = keep.take<T>(rows, width);
            h.y = keep.take<T>(rows, width);
            h.inverse = keep.take<T>(1, rows * width / config_.head_dim);
            return h;
        };
        tensors t;
        t.q = heads_of(n_tokens, q);
        t.k = heads_of(n_concepts, kv);
        t.v = keep.take<T>(n_concepts, kv);
        t.y = keep.take<T>(n_tokens, q);
        t.lse = keep.take<T>(n_tokens, config_.n_heads);
        if (!weighted()) return t;
        t.own = keep.take<T>(1, n_tokens);
        t.lengths = keep.take<T>(1, n_concepts);
        return t;
    }

    // y (n_tokens, d_model) from h of the same shape and z (concepts, d_concept), those of s.to. `inclusive`:
    // the last concept that a token sees is its own.
    void forward(const batch& b, const segments<T>& s, bool inclusive, in<T> h, in<T> z, const tensors& t,
                 tensor_view<T> y, arena& workspace, executor_ref ex) const {
        check(b, s, h, z, y);
        const arena::scope scope(workspace);
        auto* const sources = workspace.take<attention_source<T>>(sequences(b));
        auto* const lengths = workspace.take<const T*>(sequences(b));
        project(h, z, t, workspace, ex);
        if (!ex.dry()) {
            weigh(b, s, t);
            for (idx i = 0; i < b.n_sequences(); ++i) {
                sources[i] = packed_keys<T>{&s.to, t.k.y, t.v}(i, 0);
                lengths[i] = t.lengths.data() + (weighted() ? s.to.first_token(i) : 0);
            }
        }
        look(b, s, inclusive, t, sources, lengths, h, y, workspace, ex);
    }

    // From dy to dh and dz, both overwritten.
    void backward(const batch& b, const segments<T>& s, bool inclusive, in<T> h, in<T> z, const tensors& t,
                  in<T> dy, tensor_view<T> dh, tensor_view<T> dz, const grad_type& grad, arena& workspace,
                  executor_ref ex) const {
        const arena::scope scope(workspace);
        const idx n = b.n_tokens, m = z.rows(), kv = params_.w_k.rows();
        const auto dheads = workspace.take<T>(n, t.y.cols()), dq = workspace.take<T>(n, t.y.cols());
        const auto dk = workspace.take<T>(m, kv), dv = workspace.take<T>(m, kv);
        auto* const lengths = workspace.take<const T*>(sequences(b));
        for (idx i = 0; i < b.n_sequences() && !ex.dry(); ++i)
            lengths[i] = t.lengths.data() + (weighted() ? s.to.first_token(i) : 0);
        matmul_dw<Arch>(dy, t.y, grad.w_o, workspace, ex);
        matmul_dx<Arch>(dy, params_.w_o, dheads, false, workspace, ex);
        const packed_keys_gradient<T> keys{{&s.to, t.k.y, t.v}, dk, dv};
        auto run = [&](const auto& sources, const auto& policy) {
            attend_backward<Arch, T>(b, shape(), t.q.y, sources, t.y, t.lse, dheads, policy, dq, workspace,
                                     ex);
        };
        if (!weighted()) {
            run(keys, ragged_prefix{&b, s.seen});
        } else { // gradients of a source are overwritten: the second has its own
            const auto dk_own = workspace.take<T>(m, kv), dv_own = workspace.take<T>(m, kv);
            const packed_keys_gradient<T> own{{&s.to, t.k.y, t.v}, dk_own, dv_own};
            run([&](idx sequence, idx source) { return (source == 0 ? keys : own)(sequence, source); },
                weighted_prefix<T>{&b, s.seen, inclusive ? t.own.data() : nullptr, lengths});
            add<Arch>(dk, dk_own, dk, ex);
            add<Arch>(dv, dv_own, dv, ex);
        }
        unnorm(t.q, params_.q_norm, dq, grad.q_norm, ex);
        unnorm(t.k, params_.k_norm, dk, grad.k_norm, ex);
        matmul_dw<Arch>(dq, h, grad.w_q, workspace, ex);
        matmul_dw<Arch>(dk, z, grad.w_k, workspace, ex);
        matmul_dw<Arch>(dv, z, grad.w_v, workspace, ex);
        matmul_dx<Arch>(dq, params_.w_q, dh, false, workspace, ex);
        add<Arch>(dh, dy, dh, ex);
        matmul_dx<Arch>(dk, params_.w_k, dz, false, workspace, ex);
        matmul_dx<Arch>(dv, params_.w_v, dz, true, workspace, ex);
    }

    // most.max_tokens concepts.
    state_type bind_state(arena& memory, const limits& most) const {
        state_type s;
        s.keys = attention_state<T>::bind(memory, config_.n_kv_heads, config_.head_dim, 0, most);
        if (weighted()) s.lengths = memory.take<T>(most.n_sequences, most.max_tokens);
        return s;
    }
    // Appends z, the concepts of s.to, and then forward over all that there are. `before` (n_sequences): what
    // the sequences bring along.
    void extend(const batch& b, const segments<T>& s, const segment_past<T>* before, bool inclusive, in<T> h,
                in<T> z, const tensors& t, tensor_view<T> y, state_type& state, arena& workspace,
                executor_ref ex) const {
        check(b, s, h, z, y);
        state.keys.check_shape(config_.n_kv_heads, config_.head_dim, 0);
        const arena::scope scope(workspace);
        const idx slots = state.keys.n_sequences();
        auto* const sources = workspace.take<attention_source<T>>(slots);
        auto* const lengths = workspace.take<const T*>(slots);
        idx* const past = workspace.take<idx>(slots);
        project(h, z, t, workspace, ex);
        if (!ex.dry()) {
            weigh(b, s, t);
            state.keys.append(s.to, t.k.y, t.v, {past, static_cast<std::size_t>(slots)});
            for (idx i = 0; i < b.n_sequences(); ++i) {
                const idx slot = b.slot(i), first = s.to.first_token(i), n = s.to.tokens(i);
                sources[i] = state.keys.keys.source(slot);
                if (!weighted()) continue;
                T* const to = state.lengths.row(slot);
                std::copy_n(t.lengths.data() + first, n, to + past[i]);
                if (inclusive && past[i] > 0) // the segment that was open, as long as it is by now
                    to[past[i] - 1] = log(before[i].open + (n > 0 ? s.begin[first] : b.end(i)) - b.begin(i));
                lengths[i] = to;
            }
        }
        look(b, s, inclusive, t, sources, lengths, h, y, workspace, ex);
    }

    // Products of n tokens and m concepts, which see `pairs` of them.
    double flops(idx n_tokens, double n_concepts, double pairs) const {
        return 2.0 * static_cast<double>(n_tokens) *
                   static_cast<double>(params_.w_q.size() + params_.w_o.size()) +
               2.0 * n_concepts * static_cast<double>(params_.w_k.size() + params_.w_v.size()) +
               4.0 * pairs * static_cast<double>(config_.n_heads * config_.head_dim);
    }
    bool weighted() const { return config_.weight == concept_weight::segment_length; }

private:
    static idx sequences(const batch& b) { return std::max(b.n_sequences(), b.counted_sequences); }
    void check(const batch& b, const segments<T>& s, in<T> h, in<T> z, in<T> y) const {
        require_shape(h, b.n_tokens, config_.d_model, "concept_cross_attention", "h");
        require_shape(z, s.to.n_tokens, config_.d_concept, "concept_cross_attention", "z");
        require_shape(y, b.n_tokens, config_.d_model, "concept_cross_attention", "y");
        SLUICE_ASSERT(apart(y, h, z));
    }
    static T log(idx n) { return std::log(static_cast<T>(n)); }
    tensor_view<T> one_a_row(const tensor_view<T>& t) const {
        return {t.data(), t.size() / config_.head_dim, config_.head_dim};
    }
    void project(in<T> h, in<T> z, const tensors& t, arena& workspace, executor_ref ex) const {
        const auto eps = static_cast<T>(config_.eps);
        matmul<Arch>(h, params_.w_q, t.q.raw, {}, workspace, ex);
        normalise<Arch, T>(one_a_row(t.q.raw), params_.q_norm, {}, one_a_row(t.q.y), t.q.inverse, {}, eps,
                           ex);
        matmul<Arch>(z, params_.w_k, t.k.raw, {}, workspace, ex);
        normalise<Arch, T>(one_a_row(t.k.raw), params_.k_norm, {}, one_a_row(t.k.y), t.k.inverse, {}, eps,
                           ex);
        matmul<Arch>(z, params_.w_v, t.v, {}, workspace, ex);
    }
    void unnorm(const heads& of, in<T> scale, const tensor_view<T>& d, tensor_view<T> dscale,
                executor_ref ex) const {
        normalise_backward<Arch, T>(one_a_row(of.raw), scale, of.inverse, {}, one_a_row(d), one_a_row(d),
                                    dscale, {}, ex);
    }
    void weigh(const batch& b, const segments<T>& s, const tensors& t) const {
        if (!weighted()) return;
        for (idx i = 0; i < b.n_tokens; ++i) t.own(0, i) = log(s.age[i]);
        for (idx k = 0; k < s.to.n_tokens; ++k) t.lengths(0, k) = log(s.length(k));
    }
    void look(const batch& b, const segments<T>& s, bool inclusive, const tensors& t,
              const attention_source<T>* sources, const T* const* lengths, in<T> h, tensor_view<T> y,
              arena& workspace, executor_ref ex) const {
        auto run = [&](const auto& policy) {
            attend<Arch>(b, shape(), t.q.y, concept_sources<T>{sources}, policy, t.y, t.lse, workspace, ex);
        };
        if (weighted())
            run(weighted_prefix<T>{&b, s.seen, inclusive ? t.own.data() : nullptr, lengths});
        else
            run(ragged_prefix{&b, s.seen});
        matmul<Arch>(t.y, params_.w_o, y, {}, workspace, ex);
        add<Arch>(h, y, y, ex);
    }

    config_type config_;
    params_type params_;
};

} // namespace SLUICE_ISA
} // namespace sluice
