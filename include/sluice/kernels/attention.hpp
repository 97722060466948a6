// Softmax attention for a block of query rows, tile by tile over the keys they see, with a running maximum
// (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018; Rabe and Staats, 2021). Memory
// does not grow with the number of keys.
//
// Tiles are aligned to the absolute key index and a row touches only keys it sees, so a row's bits depend
// neither on the rows beside it nor on where a prompt was cut; NaN in a key reaches only rows that see it.
#pragma once

#include "attention_tile.hpp"
#include "softmax.hpp"

namespace sluice::kernels {

// One block: `tokens` rows of a sequence, the `group` query heads that share one key/value head.
template <class T, class Policy, class Sources>
struct attention_block_args {
    const T* q; // first token, first head of the group
    idx q_row;
    T* y; // as q
    idx y_row;
    T* lse; // as q with one number per head; may be null
    idx lse_row;
    idx tokens, group, head_dim, kv_head;
    idx sequence, first_row; // first_row counts within the sequence
    T scale;
    const Policy* policy;   // range(sequence, row, source) -> key_range, both ends non-decreasing in row
    const Sources* sources; // (sequence, source) -> attention_source<T>
    T* scratch;             // attention_scratch<T, Arch>(tokens * group, head_dim) elements
};

// Elements of scratch that a worker needs.
template <class T, class Arch>
idx attention_scratch(idx rows, idx head_dim) {
    return rows * (2 * head_dim + key_tile + 1 + simd::pack<T, Arch>::size) +
           head_dim * whole_panels<T, Arch>(key_tile) + key_tile * whole_panels<T, Arch>(head_dim) + key_tile;
}

struct attention_block {
    template <class Arch, class T, class Policy, class Sources>
    void operator()(Arch, const attention_block_args<T, Policy, Sources>& g) const;
};

// The rows of a block while it walks over the tiles.
template <class Arch, class T>
struct attention_rows {
    using P = simd::pack<T, Arch>;
    idx n, head_dim;
    T *q, *o;   // n x head_dim: scaled queries; running sum of p v
    T* s;       // n x key_tile: scores, then weights
    T* largest; // running maximum
    T* totals;  // n registers: running sum of weights, lane by lane
    T *k_panels, *v_panels;
    T* bias; // of the keys of a tile
    const T* values = nullptr;
    idx value_row = 0, value_panel = 0;

    attention_rows(idx rows, idx d, T* scratch) : n(rows), head_dim(d) {
        auto next = [&scratch](idx elements) { return std::exchange(scratch, scratch + elements); };
        q = next(n * d);
        o = next(n * d);
        s = next(n * key_tile);
        largest = next(n);
        totals = next(n * P::size);
        k_panels = next(d * whole_panels<T, Arch>(key_tile));
        v_panels = next(key_tile * whole_panels<T, Arch>(d));
        bias = next(key_tile);
        std::fill_n(o, n * d, T(0));
        std::fill_n(largest, n, -std::numeric_limits<T>::infinity());
        std::fill_n(totals, n * P::size, T(0));
    }

    void scores(const T* k, idx k_row, idx width) const {
        gemm_pack{}(Arch{}, k, k_row, true, head_dim, width, k_panels);
        gemm_block{}(Arch{}, tile_product<Arch>(q, head_dim, 1, k_panels, head_dim, s, key_tile, false, n,
                                                width, head_dim));
    }

    // Turns row i's scores of keys [lo, hi) of the tile into weights and rescales what was summed before.
    // `masked`: a row may see none of them.
    void weigh(idx i, idx lo, idx hi, bool masked) const {
        T* row = s + i * key_tile + lo;
        const T before = largest[i];
        const T now = std::max(before, row_largest<Arch>(row, hi - lo));
        // a tail mask may hide all of a tile; NaN must not pass for that
        if (masked && now == -std::numeric_limits<T>::infinity() &&
            std::none_of(row, row + (hi - lo), [](T v) { return v != v; })) {
            std::fill_n(row, hi - lo, T(0));
            return;
        }
        P sum = P::load(totals + i * P::size);
        if (now != before) {
            largest[i] = now;
            const T shrink = std::exp(before - now); // 0 at first
            sum = sum * P(shrink);
            scale_row(o + i * head_dim, shrink, o + i * head_dim);
        }
        simd::for_each_pack<P>(hi - lo, [&](idx j, idx k) {
            P e = exp_nonpositive(P::load_partial(row + j, k) - P(now));
            if (k < P::size) e = zero_beyond(e, k);
            sum = sum + e;
            e.store_partial(row + j, k);
        });
        sum.store(totals + i * P::size);
    }

    void scale_row(const T* from, T factor, T* to) const {
        simd::for_each_pack<P>(head_dim, [&](idx j, idx k) {
            (P::load_partial(from + j, k) * P(factor)).store_partial(to + j, k);
        });
    }

    // The values of a tile: read where they are when heads are whole panels, else packed.
    void take_values(const T* v, idx v_row, idx width) {
        constexpr idx cols = gemm_tile<T, Arch>::cols;
        if (head_dim % cols == 0) {
            values = v;
            value_row = v_row;
            value_panel = cols;
        } else {
            gemm_pack{}(Arch{}, v, v_row, false, width, head_dim, v_panels);
            values = v_panels;
            value_row = cols;
            value_panel = width * cols;
        }
    }

    // o += p v for rows [i, i + m) and keys [lo, hi) of the tile.
    void accumulate(idx i, idx m, idx lo, idx hi) const {
        if (lo >= hi) return;
        auto g = tile_product<Arch>(s + i * key_tile + lo, key_tile, 1, values + lo * value_row, 0,
                                    o + i * head_dim, head_dim, true, m, head_dim, hi - lo);
        g.panel_row = value_row;
        g.panel_stride = value_panel;
        gemm_block{}(Arch{}, g);
    }
};

// Rows share one product where all of them see a key; the ragged edges are added for rows of one range at a
// time, so that no row meets a key it does not see.
template <class Arch, class T, class Range>
void attention_values(const attention_rows<Arch, T>& rows, const Range& range) {
    constexpr idx step = gemm_tile<T, Arch>::rows;
    for (idx i = 0; i < rows.n; i += step) {
        const idx m = std::min(step, rows.n - i);
        const idx lo = range(i + m - 1).lo, hi = range(i).hi; // seen by all: ends do not decrease
        auto alike = [&](auto&& add) {                        // heads of one token see the same
            for (idx r = i, n = 1; r < i + m; r += n) {
                const key_range mine = range(r);
                for (n = 1; r + n < i + m; ++n)
                    if (const key_range next = range(r + n); next.lo != mine.lo || next.hi != mine.hi) break;
                add(r, n, mine);
            }
        };
        alike([&](idx r, idx n, key_range mine) {
            rows.accumulate(r, n, mine.lo, lo < hi ? std::min(lo, mine.hi) : mine.hi);
        });
        if (lo >= hi) continue;
        rows.accumulate(i, m, lo, hi);
        alike([&](idx r, idx n, key_range mine) { rows.accumulate(r, n, std::max(hi, mine.lo), mine.hi); });
    }
}

// Asks for the rows of a tile ahead of time: they are too far apart for the hardware to guess.
template <class T>
void prefetch_tile(const T* rows, idx row_stride, idx n, idx width) {
    for (idx i = 0; i < n; ++i)
        for (idx j = 0; j < width; j += 64 / static_cast<idx>(sizeof(T)))
            __builtin_prefetch(rows + i * row_stride + j);
}

template <class Arch, class T, class Policy, class Sources>
void attention_block::operator()(Arch, const attention_block_args<T, Policy, Sources>& g) const {
    const idx d = g.head_dim;
    attention_rows<Arch, T> rows(g.tokens * g.group, d, g.scratch);
    for (idx i = 0; i < rows.n; ++i) {
        const T* from = g.q + i / g.group * g.q_row + i % g.group * d;
        rows.scale_row(from, g.scale, rows.q + i * d);
    }
    for (idx source = 0; source < Policy::n_sources; ++source) {
        const attention_source<T> keys = (*g.sources)(g.sequence, source);
        auto seen = [&](idx token) { return g.policy->range(g.sequence, g.first_row + token, source); };
        const idx first = seen(0).lo, last = seen(g.tokens - 1).hi;
        for (idx tile = first / key_tile * key_tile; tile < last; tile += key_tile) {
            const idx width = std::min(key_tile, last - tile);
            auto range = [&](idx row) -> key_range {
                const key_range all = seen(row / g.group);
                return {std::clamp<idx>(all.lo - tile, 0, width), std::clamp<idx>(all.hi - tile, 0, width)};
            };
            const idx head = g.kv_head * (keys.head == 0 ? d : keys.head), at = keys.row(tile);
            if (const idx next = tile + key_tile; next < last) {
                const idx ahead = keys.row(next), n = std::min(key_tile, last - next);
                prefetch_tile(keys.k + ahead * keys.k_row + head, keys.k_row, n, d);
                prefetch_tile(keys.v + ahead * keys.v_row + head, keys.v_row, n, d);
            }
            const tile_place place{g.sequence, source, tile, width};
            rows.scores(keys.k + at * keys.k_row + head, keys.k_row, width);
            key_biases(*g.policy, place, rows.bias);
            for (idx i = 0; i < rows.n; ++i) {
                const key_range r = range(i);
                if (r.lo >= r.hi) continue;
                add_biases(*g.policy, place, rows.bias, g.first_row + i / g.group, r, rows.s + i * key_tile);
                rows.weigh(i, r.lo, r.hi, has_tail<Policy>);
            }
            rows.take_values(keys.v + at * keys.v_row + head, keys.v_row, width);
            attention_values(rows, range);
        }
    }
    for (idx i = 0; i < rows.n; ++i) {
        T* to = g.y + i / g.group * g.y_row + i % g.group * d;
        const T total = simd::pack<T, Arch>::load(rows.totals + i * simd::pack<T, Arch>::size).sum();
        rows.scale_row(rows.o + i * d, total == T(0) ? T(0) : T(1) / total, to); // 0: sees no key at all
        if (g.lse != nullptr)
            g.lse[i / g.group * g.lse_row + i % g.group] = rows.largest[i] + std::log(total);
    }
}

} // namespace sluice::kernels
