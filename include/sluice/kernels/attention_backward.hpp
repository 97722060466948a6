// The gradient of attention by recomputation (Dao et al., "FlashAttention", 2022, algorithm 4): tile by tile
// over the keys, the rows that see a tile found by bisection, as both ends of what a row sees never decrease.
//
// Here a tile is multiplied whole: NaN in a key reaches the gradients of rows of its tile that do not see it.
#pragma once

#include "../simd/math.hpp"
#include "attention_tile.hpp"

#include <utility>

namespace sluice::kernels {

// Gradients for all rows of a sequence and one key/value head.
template <class T, class Policy>
struct attention_backward_args {
    const T *q, *dy, *lse, *delta; // first row of the sequence, first head of the group; delta = sum(dy y)
    T* dq;
    idx q_row, dy_row, lse_row, delta_row, dq_row;
    attention_source<T> keys; // at the head
    T *dk, *dv;               // at the head, accumulated
    idx dk_row, dv_row;
    idx rows, n_keys, group, head_dim, sequence, source;
    T scale;
    const Policy* policy;
    T* scratch; // attention_backward_scratch<T, Arch>(head_dim) elements
};

// Elements of scratch that a worker needs.
template <class T, class Arch>
idx attention_backward_scratch(idx head_dim) {
    return 2 * key_tile * key_tile + 2 * head_dim * whole_panels<T, Arch>(key_tile) +
           2 * key_tile * whole_panels<T, Arch>(head_dim) + key_tile;
}

struct attention_backward {
    template <class Arch, class T, class Policy>
    void operator()(Arch, const attention_backward_args<T, Policy>& g) const;
};

template <class T, class Policy>
using attention_backward_calls =
    simd::calls<simd::call<attention_backward, const attention_backward_args<T, Policy>&>>;

// Scratch of the backward pass: scores and their gradients, and the packed forms of one tile.
template <class Arch, class T>
struct attention_backward_tile {
    T *p, *dp;    // key_tile rows x key_tile keys
    T *k_t, *v_t; // packed K^T and V^T
    T *k, *rows;  // packed K; packed block of dy or q
    T* bias;      // of the keys of the tile

    attention_backward_tile(idx d, T* scratch) {
        auto next = [&scratch](idx elements) { return std::exchange(scratch, scratch + elements); };
        p = next(key_tile * key_tile);
        dp = next(key_tile * key_tile);
        k_t = next(d * whole_panels<T, Arch>(key_tile));
        v_t = next(d * whole_panels<T, Arch>(key_tile));
        k = next(key_tile * whole_panels<T, Arch>(d));
        rows = next(key_tile * whole_panels<T, Arch>(d));
        bias = next(key_tile);
    }
};

// First row in [0, rows) for which `late(row)` holds, which must be false before it and true after.
template <class F>
idx first_row(idx rows, F&& late) {
    idx lo = 0, hi = rows;
    while (lo < hi) {
        const idx middle = (lo + hi) / 2;
        if (late(middle))
            hi = middle;
        else
            lo = middle + 1;
    }
    return lo;
}

// One tile of keys against rows [i, i + n) of one head.
template <class Arch, class T, class Policy>
void attention_backward_rows(const attention_backward_args<T, Policy>& g,
                             const attention_backward_tile<Arch, T>& t, idx tile, idx width, idx head, idx i,
                             idx n) {
    using P = simd::pack<T, Arch>;
    const idx d = g.head_dim;
    const T* q = g.q + i * g.q_row + head * d;
    const T* dy = g.dy + i * g.dy_row + head * d;
    const tile_place place{g.sequence, g.source, tile, width};
    gemm_block{}(Arch{}, tile_product<Arch>(q, g.q_row, 1, t.k_t, d, t.p, key_tile, false, n, width, d));
    gemm_block{}(Arch{}, tile_product<Arch>(dy, g.dy_row, 1, t.v_t, d, t.dp, key_tile, false, n, width, d));
    for (idx r = 0; r < n; ++r) {
        const key_range all = g.policy->range(g.sequence, i + r, g.source);
        const idx lo = std::clamp<idx>(all.lo - tile, 0, width);
        const bool blind = is_blind(*g.policy, g.sequence, i + r, g.source);
        const idx hi = blind ? lo : std::clamp<idx>(all.hi - tile, lo, width);
        T *p = t.p + r * key_tile, *dp = t.dp + r * key_tile;
        const P lse(g.lse[(i + r) * g.lse_row + head]), delta(g.delta[(i + r) * g.delta_row + head]);
        simd::for_each_pack<P>(hi - lo, [&](idx j, idx k) {
            (P::load_partial(p + lo + j, k) * P(g.scale)).store_partial(p + lo + j, k);
        });
        add_biases(*g.policy, place, t.bias, i + r, {lo, hi}, p);
        simd::for_each_pack<P>(hi - lo, [&](idx j, idx k) {
            const P weight = exp(P::load_partial(p + lo + j, k) - lse);
            const P slope = weight * (P::load_partial(dp + lo + j, k) - delta) * P(g.scale);
            weight.store_partial(p + lo + j, k);
            slope.store_partial(dp + lo + j, k);
        });
        for (T* row : {p, dp}) {
            std::fill_n(row, lo, T(0));
            std::fill_n(row + hi, width - hi, T(0));
        }
    }
    T* dv = g.dv + tile * g.dv_row;
    T* dk = g.dk + tile * g.dk_row;
    gemm_pack{}(Arch{}, dy, g.dy_row, false, n, d, t.rows);
    gemm_block{}(Arch{}, tile_product<Arch>(t.p, 1, key_tile, t.rows, n, dv, g.dv_row, true, width, d, n));
    gemm_pack{}(Arch{}, q, g.q_row, false, n, d, t.rows);
    gemm_block{}(Arch{}, tile_product<Arch>(t.dp, 1, key_tile, t.rows, n, dk, g.dk_row, true, width, d, n));
    gemm_block{}(Arch{}, tile_product<Arch>(t.dp, key_tile, 1, t.k, width, g.dq + i * g.dq_row + head * d,
                                            g.dq_row, true, n, d, width));
}

template <class Arch, class T, class Policy>
void attention_backward::operator()(Arch, const attention_backward_args<T, Policy>& g) const {
    const idx d = g.head_dim;
    const attention_backward_tile<Arch, T> t(d, g.scratch);
    auto seen = [&](idx row) { return g.policy->range(g.sequence, row, g.source); };
    for (idx tile = 0; tile < g.n_keys; tile += key_tile) {
        const idx width = std::min(key_tile, g.n_keys - tile);
        const idx first = first_row(g.rows, [&](idx row) { return seen(row).hi > tile; });
        const idx last = first_row(g.rows, [&](idx row) { return seen(row).lo >= tile + width; });
        if (first >= last) continue;
        const idx at = g.keys.row(tile);
        const T *k = g.keys.k + at * g.keys.k_row, *v = g.keys.v + at * g.keys.v_row;
        gemm_pack{}(Arch{}, k, g.keys.k_row, true, d, width, t.k_t);
        gemm_pack{}(Arch{}, v, g.keys.v_row, true, d, width, t.v_t);
        gemm_pack{}(Arch{}, k, g.keys.k_row, false, width, d, t.k);
        key_biases(*g.policy, {g.sequence, g.source, tile, width}, t.bias);
        for (idx head = 0; head < g.group; ++head)
            for (idx i = first; i < last; i += key_tile)
                attention_backward_rows<Arch>(g, t, tile, width, head, i, std::min(key_tile, last - i));
    }
}

} // namespace sluice::kernels
