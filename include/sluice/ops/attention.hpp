// Grouped-query attention with a policy: y = softmax(scale q k^T, over the keys a row sees) v. One kernel for
// every pattern of visible keys; a policy only says, for each row, which range of keys it sees.
//
// A policy has `n_sources` and range(sequence, row, source) -> key_range, where row counts within the
// sequence and both ends never decrease from row to row. Sources are visited in order with one running
// maximum; rows that see two ranges of the same keys name them as two sources. A policy may also have
//   bias(sequence, key, source)       added to the score of a key
//   last_bias(sequence, row, source)  added to the score of the last key a row sees
//   tail(sequence, row, source)       -> key_tail: which of the last keys of its range a row really sees
//   blind(sequence, row, source)      whether the row sees nothing of its range, which only keeps the order
//   repeats(sequence, row)            whether its query and its range of source 0 are those of the row before,
//                                     so that what both take from that source need be computed once
// Kernels call these: where one program is compiled for several instruction sets they are SLUICE_INLINE.
// Workspace per worker does not grow with the number of keys.
#pragma once

#include "../core/arena.hpp"
#include "../core/batch.hpp"
#include "../core/executor.hpp"
#include "../kernels/attention.hpp"
#include "../kernels/attention_backward.hpp"
#include "../kernels/elementwise.hpp"

namespace sluice {

template <class P>
concept attention_policy = requires(const P& p, idx i) {
    { P::n_sources } -> std::convertible_to<idx>;
    { p.range(i, i, i) } -> std::same_as<key_range>;
};

// Row i of a sequence stands at key past + i and sees the keys up to itself: all of them (window 0), or the
// last `window`, itself included.
struct causal_attention {
    static constexpr idx n_sources = 1;
    idx window = 0;
    std::span<const idx> past{}; // keys each sequence had before this call; empty: none

    SLUICE_INLINE key_range range(idx sequence, idx row, idx) const {
        const idx at = row + (past.empty() ? 0 : past[static_cast<std::size_t>(sequence)]);
        return {window == 0 ? 0 : std::max<idx>(0, at + 1 - window), at + 1};
    }
};

struct attention_shape {
    idx n_heads = 0, n_kv_heads = 0, head_dim = 0;

    idx group() const { return n_heads / n_kv_heads; }
    double scale() const { return 1 / std::sqrt(static_cast<double>(head_dim)); }
};

// The keys and values of a packed batch as the one source of every sequence: `per_token` rows for each token.
template <class T>
struct packed_keys {
    const batch* tokens;
    tensor_view<const T> k, v; // n_tokens * per_token x n_kv_heads * head_dim
    idx per_token = 1;
    SLUICE_INLINE attention_source<T> operator()(idx sequence, idx) const {
        const idx first = tokens->first_token(sequence) * per_token;
        return {k.row(first), v.row(first), k.row_stride(), v.row_stride(), 0};
    }
    idx n_keys(idx sequence) const { return tokens->tokens(sequence) * per_token; }
};

// A source of one sequence with its gradients, which are overwritten.
template <class T>
struct attention_source_gradient {
    attention_source<T> keys;
    T *dk = nullptr, *dv = nullptr;
    idx dk_row = 0, dv_row = 0, n_keys = 0;
};

template <class T>
struct packed_keys_gradient {
    packed_keys<T> keys;
    tensor_view<T> dk, dv; // as keys.k and keys.v
    attention_source_gradient<T> operator()(idx sequence, idx source) const {
        const idx first = keys.tokens->first_token(sequence) * keys.per_token;
        return {keys(sequence, source), dk.row(first),   dv.row(first),
                dk.row_stride(),        dv.row_stride(), keys.n_keys(sequence)};
    }
};

inline namespace SLUICE_ISA {
namespace detail {

// Query tokens of a block: about 256 rows, whatever the size of the group, so that packing a tile of keys
// costs little beside multiplying it.
inline idx attention_block_tokens(idx group, idx n_tokens) {
    return std::clamp<idx>(4 * key_tile / group, 1, std::max<idx>(n_tokens, 1));
}

inline void check_attention(const attention_shape& s, const batch& b, idx q_rows, idx q_cols) {
    require(s.n_kv_heads > 0 && s.n_heads > 0 && s.n_heads % s.n_kv_heads == 0, "attention",
            "n_heads must be a multiple of n_kv_heads");
    if (q_rows != b.rows() || q_cols != s.n_heads * s.head_dim)
        SLUICE_THROW(config_error("attention: q must be " + shape_text(b.rows(), s.n_heads * s.head_dim) +
                                  ", is " + shape_text(q_rows, q_cols)));
}

template <class T>
void check_attention_backward(const attention_shape& s, const batch& b, in<T> q, in<T> y, in<T> lse, in<T> dy,
                              in<T> dq) {
    check_attention(s, b, q.rows(), q.cols());
    require_shape(y, q.rows(), q.cols(), "attention", "y");
    require_shape(lse, q.rows(), s.n_heads, "attention", "lse");
    require_shape(dy, q.rows(), q.cols(), "attention", "dy");
    require_shape(dq, q.rows(), q.cols(), "attention", "dq");
}

} // namespace detail

// y (n_tokens, n_heads * head_dim) from q of the same shape; lse (n_tokens, n_heads) may be empty. `sources`
// is called as sources(sequence, source). y may be q.
template <class Arch = simd::native, class T, class Sources, attention_policy Policy>
void attend(const batch& b, const attention_shape& shape, in<T> q, const Sources& sources,
            const Policy& policy, tensor_view<T> y, tensor_view<T> lse, arena& workspace, executor_ref ex) {
    detail::check_attention(shape, b, q.rows(), q.cols());
    require_shape(y, q.rows(), q.cols(), "attention", "y");
    if (!lse.empty()) require_shape(lse, q.rows(), shape.n_heads, "attention", "lse");
    SLUICE_ASSERT(apart_or_same(y, q));
    const idx group = shape.group(), d = shape.head_dim;
    const idx block = detail::attention_block_tokens(group, b.rows());
    // whole registers, so that every worker's rows begin where registers do
    const idx scratch = round_up(kernels::attention_scratch<T, Arch>(block * group, d), panel_cols<T>);
    const arena::scope scope(workspace);
    T* memory = workspace.take<T>(ex.concurrency(), scratch).data();
    // late blocks see most keys: hand them out first, so that workers end together
    idx most_blocks = 0;
    for (idx s = 0; s < b.n_sequences(); ++s)
        most_blocks = std::max(most_blocks, ceil_div(b.end(s) - b.begin(s), block));
    struct place {
        idx sequence, head, first, tokens; // tokens <= 0: a shorter sequence has no such block
    };
    auto place_of = [&](idx task) {
        const idx head = task % shape.n_kv_heads, rest = task / shape.n_kv_heads;
        const idx s = rest % b.n_sequences(), first = (most_blocks - 1 - rest / b.n_sequences()) * block;
        return place{s, head, first, std::min(block, b.end(s) - b.begin(s) - first)};
    };
    ex(most_blocks * b.n_sequences() * shape.n_kv_heads, [&](idx from, idx to, idx worker) {
        for (idx task = from; task < to; ++task) {
            const place at = place_of(task), next = place_of(std::min(task + 1, to - 1));
            if (at.tokens <= 0) continue;
            const idx row = b.begin(at.sequence) + at.first, head = at.head * group;
            const idx next_row = b.begin(next.sequence) + next.first;
            simd::invoke(Arch{}, kernels::attention_block{},
                         kernels::attention_block_args<T, Policy, Sources>{
                             .q = q.row(row) + head * d,
                             .q_row = q.row_stride(),
                             .y = y.row(row) + head * d,
                             .y_row = y.row_stride(),
                             .lse = lse.empty() ? nullptr : lse.row(row) + head,
                             .lse_row = lse.row_stride(),
                             .tokens = at.tokens,
                             .group = group,
                             .head_dim = d,
                             .kv_head = at.head,
                             .sequence = at.sequence,
                             .first_row = at.first,
                             .scale = static_cast<T>(shape.scale()),
                             .policy = &policy,
                             .sources = &sources,
                             .scratch = memory + worker * scratch,
                             .next_q = q.row(next_row) + next.head * group * d,
                             .next_tokens = next.tokens});
        }
    });
}

// Gradients for queries and for the keys and values of every source: sources(sequence, source) ->
// attention_source_gradient. dq, dk, dv are overwritten; y and lse are forward's.
template <class Arch = simd::native, class T, class Sources, attention_policy Policy>
void attend_backward(const batch& b, const attention_shape& shape, in<T> q, const Sources& sources, in<T> y,
                     in<T> lse, in<T> dy, const Policy& policy, tensor_view<T> dq, arena& workspace,
                     executor_ref ex) {
    detail::check_attention_backward<T>(shape, b, q, y, lse, dy, dq);
    SLUICE_ASSERT(apart(dq, q, y, dy));
    const idx group = shape.group(), d = shape.head_dim;
    const arena::scope scope(workspace);
    const auto delta = workspace.take<T>(b.rows(), shape.n_heads);
    const idx scratch = kernels::attention_backward_scratch<T, Arch>(d);
    T* memory = workspace.take<T>(ex.concurrency(), scratch).data();
    ex(b.rows(), [&](idx begin, idx end, idx) {
        for (idx i = begin; i < end; ++i)
            for (idx h = 0; h < shape.n_heads; ++h)
                simd::invoke(Arch{}, kernels::dot{}, dy.row(i) + h * d, y.row(i) + h * d, d, &delta(i, h));
    });
    ex(b.n_sequences() * shape.n_kv_heads, [&](idx begin, idx end, idx worker) {
        for (idx task = begin; task < end; ++task) {
            const idx s = task / shape.n_kv_heads, head = task % shape.n_kv_heads;
            const idx first = b.begin(s), rows = b.end(s) - first;
            fill(dq.row_block(first, rows).col_block(head * group * d, group * d), T(0));
            for (idx source = 0; source < Policy::n_sources; ++source) {
                attention_source_gradient<T> from = sources(s, source);
                from.keys.k += head * d;
                from.keys.v += head * d;
                T *const dk = from.dk + head * d, *const dv = from.dv + head * d;
                fill(tensor_view<T>(dk, from.n_keys, d, from.dk_row), T(0));
                fill(tensor_view<T>(dv, from.n_keys, d, from.dv_row), T(0));
                if (rows == 0) continue;
                simd::invoke(
                    Arch{}, kernels::attention_backward{},
                    kernels::attention_backward_args<T, Policy>{.q = q.row(first) + head * group * d,
                                                                .dy = dy.row(first) + head * group * d,
                                                                .lse = lse.row(first) + head * group,
                                                                .delta = delta.row(first) + head * group,
                                                                .dq = dq.row(first) + head * group * d,
                                                                .q_row = q.row_stride(),
                                                                .dy_row = dy.row_stride(),
                                                                .lse_row = lse.row_stride(),
                                                                .delta_row = delta.row_stride(),
                                                                .dq_row = dq.row_stride(),
                                                                .keys = from.keys,
                                                                .dk = dk,
                                                                .dv = dv,
                                                                .dk_row = from.dk_row,
                                                                .dv_row = from.dv_row,
                                                                .rows = rows,
                                                                .n_keys = from.n_keys,
                                                                .group = group,
                                                                .head_dim = d,
                                                                .sequence = s,
                                                                .source = source,
                                                                .scale = static_cast<T>(shape.scale()),
                                                                .policy = &policy,
                                                                .scratch = memory + worker * scratch});
            }
        }
    });
}

// The same for one source, the call's own keys.
template <class Arch = simd::native, class T, attention_policy Policy>
void attend_backward(const batch& b, const attention_shape& shape, in<T> q, in<T> k, in<T> v, in<T> y,
                     in<T> lse, in<T> dy, const Policy& policy, tensor_view<T> dq, tensor_view<T> dk,
                     tensor_view<T> dv, arena& workspace, executor_ref ex) {
    static_assert(Policy::n_sources == 1);
    detail::check_attention_backward<T>(shape, b, q, y, lse, dy, dq);
    require_shape(k, q.rows(), shape.n_kv_heads * shape.head_dim, "attention", "k");
    require_shape(v, k.rows(), k.cols(), "attention", "v");
    require_shape(dk, k.rows(), k.cols(), "attention", "dk");
    require_shape(dv, v.rows(), v.cols(), "attention", "dv");
    SLUICE_ASSERT(apart(dq, q, k, v, y, dy, dk, dv) && apart(dk, q, k, v, y, dy, dv) &&
                  apart(dv, q, k, v, y, dy));
    attend_backward<Arch, T>(b, shape, q, packed_keys_gradient<T>{{&b, k, v}, dk, dv}, y, lse, dy, policy, dq,
                             workspace, ex);
}

} // namespace SLUICE_ISA
} // namespace sluice
