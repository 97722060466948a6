// Softmax attention for a block of query rows, tile by tile over the keys they see, with a running maximum
// (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018; Rabe and Staats, 2021), and its
// backward pass by recomputation (Dao et al., "FlashAttention", 2022, algorithm 4). Memory does not grow with
// the number of keys.
//
// Tiles are aligned to the absolute key index and a row touches only keys it sees, so a row's bits depend
// neither on the rows beside it nor on where a prompt was cut; NaN in a key reaches only rows that see it.
#pragma once

#include "gemm.hpp"
#include "softmax.hpp"

namespace sluice {

struct key_range {
    idx lo = 0, hi = 0; // [lo, hi)
};

// Of the keys from `first` on, at most 64, a row sees those whose bit is set (lowest bit: `first`).
struct key_tail {
    idx first = 0;
    std::uint64_t seen = ~std::uint64_t{0};
};

// Keys and values of one sequence from one origin. Key i is row i % ring; ring is a multiple of key_tile, or
// 0 where nothing wraps.
template <class T>
struct attention_source {
    const T* k = nullptr;
    const T* v = nullptr;
    idx k_row = 0, v_row = 0; // from key to key
    idx ring = 0;
    idx head = 0; // from head to head; 0: heads side by side in a row

    idx row(idx key) const { return ring == 0 ? key : key % ring; }
};

constexpr idx key_tile = 64; // keys per tile: 64 x 64 floats of scores stay in L1

} // namespace sluice

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
    T* scratch;             // attention_scratch<T, Arch>::forward(...) elements
};

// Elements of scratch that a worker needs.
template <class T, class Arch>
struct attention_scratch {
    static idx padded(idx n) { return round_up(n, gemm_tile<T, Arch>::cols); }
    static idx forward(idx rows, idx head_dim) {
        return rows * (2 * head_dim + key_tile + 1 + simd::pack<T, Arch>::size) +
               head_dim * padded(key_tile) + key_tile * padded(head_dim) + key_tile;
    }
    static idx backward(idx head_dim) {
        return 2 * key_tile * key_tile + 2 * head_dim * padded(key_tile) + 2 * key_tile * padded(head_dim) +
               key_tile;
    }
};

struct attention_block {
    template <class Arch, class T, class Policy, class Sources>
    void operator()(Arch, const attention_block_args<T, Policy, Sources>& g) const;
};

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
    T* scratch; // attention_scratch<T, Arch>::backward(head_dim) elements
};

struct attention_backward {
    template <class Arch, class T, class Policy>
    void operator()(Arch, const attention_backward_args<T, Policy>& g) const;
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
        using size = attention_scratch<T, Arch>;
        auto next = [&scratch](idx elements) { return std::exchange(scratch, scratch + elements); };
        q = next(n * d);
        o = next(n * d);
        s = next(n * key_tile);
        largest = next(n);
        totals = next(n * P::size);
        k_panels = next(d * size::padded(key_tile));
        v_panels = next(key_tile * size::padded(d));
        bias = next(key_tile);
        std::fill_n(o, n * d, T(0));
        std::fill_n(largest, n, -std::numeric_limits<T>::infinity());
        std::fill_n(totals, n * P::size, T(0));
    }

    // c (+)= a B with B in panels that were packed with `packed_k` rows.
    static gemm_block_args<T> product(const T* a, idx a_row, idx a_k, const T* panels, idx packed_k, T* c,
                                      idx c_row, bool add, idx m, idx n, idx k) {
        return {.a = a,
                .a_row = a_row,
                .a_k = a_k,
                .panels = panels,
                .panel_stride = packed_k * gemm_tile<T, Arch>::cols,
                .panel_row = gemm_tile<T, Arch>::cols,
                .start = add ? c : nullptr,
                .start_row = c_row,
                .c = c,
                .c_row = c_row,
                .m = m,
                .n = n,
                .k = k};
    }

    void scores(const T* k, idx k_row, idx width) const {
        gemm_pack{}(Arch{}, k, k_row, true, head_dim, width, k_panels);
        gemm_block{}(Arch{},
                     product(q, head_dim, 1, k_panels, head_dim, s, key_tile, false, n, width, head_dim));
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
        auto g = product(s + i * key_tile + lo, key_tile, 1, values + lo * value_row, 0, o + i * head_dim,
                         head_dim, true, m, head_dim, hi - lo);
        g.panel_row = value_row;
        g.panel_stride = value_panel;
        gemm_block{}(Arch{}, g);
    }
};

// A tile of keys of one source of one sequence.
struct tile_place {
    idx sequence, source, first, width;
};

// What a policy may add to scores; see ops/attention.hpp.
template <class Policy>
concept has_bias = requires(const Policy& p, idx i) {
    p.bias(i, i, i);
};
template <class Policy>
concept has_last_bias = requires(const Policy& p, idx i) {
    p.last_bias(i, i, i);
};
template <class Policy>
concept has_tail = requires(const Policy& p, idx i) {
    p.tail(i, i, i);
};

template <class Policy, class T>
void key_biases(const Policy& p, const tile_place& t, T* bias) {
    if constexpr (has_bias<Policy>)
        for (idx j = 0; j < t.width; ++j) bias[j] = static_cast<T>(p.bias(t.sequence, t.first + j, t.source));
}

// Applies the biases and the tail mask to one row's scores of keys [r.lo, r.hi) of the tile.
template <class Policy, class T>
void add_biases(const Policy& p, const tile_place& t, const T* bias, idx row, key_range r, T* scores) {
    if constexpr (has_bias<Policy>)
        for (idx j = r.lo; j < r.hi; ++j) scores[j] += bias[j];
    if constexpr (has_last_bias<Policy>) {
        const idx last = p.range(t.sequence, row, t.source).hi - 1 - t.first;
        if (last >= r.lo && last < r.hi)
            scores[last] += static_cast<T>(p.last_bias(t.sequence, row, t.source));
    }
    if constexpr (has_tail<Policy>) {
        const key_tail tail = p.tail(t.sequence, row, t.source);
        for (idx j = std::max(r.lo, tail.first - t.first); j < r.hi; ++j)
            if ((tail.seen >> (t.first + j - tail.first) & 1U) == 0)
                scores[j] = -std::numeric_limits<T>::infinity();
    }
}

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

// Scratch of the backward pass: scores and their gradients, and the packed forms of one tile.
template <class Arch, class T>
struct attention_backward_tile {
    T *p, *dp;    // key_tile rows x key_tile keys
    T *k_t, *v_t; // packed K^T and V^T
    T *k, *rows;  // packed K; packed block of dy or q
    T* bias;      // of the keys of the tile

    attention_backward_tile(idx d, T* scratch) {
        using size = attention_scratch<T, Arch>;
        auto next = [&scratch](idx elements) { return std::exchange(scratch, scratch + elements); };
        p = next(key_tile * key_tile);
        dp = next(key_tile * key_tile);
        k_t = next(d * size::padded(key_tile));
        v_t = next(d * size::padded(key_tile));
        k = next(key_tile * size::padded(d));
        rows = next(key_tile * size::padded(d));
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
    auto product = attention_rows<Arch, T>::product;
    const T* q = g.q + i * g.q_row + head * d;
    const T* dy = g.dy + i * g.dy_row + head * d;
    const tile_place place{g.sequence, g.source, tile, width};
    gemm_block{}(Arch{}, product(q, g.q_row, 1, t.k_t, d, t.p, key_tile, false, n, width, d));
    gemm_block{}(Arch{}, product(dy, g.dy_row, 1, t.v_t, d, t.dp, key_tile, false, n, width, d));
    for (idx r = 0; r < n; ++r) {
        const key_range all = g.policy->range(g.sequence, i + r, g.source);
        const idx lo = std::clamp<idx>(all.lo - tile, 0, width),
                  hi = std::clamp<idx>(all.hi - tile, lo, width);
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
    gemm_block{}(Arch{}, product(t.p, 1, key_tile, t.rows, n, dv, g.dv_row, true, width, d, n));
    gemm_pack{}(Arch{}, q, g.q_row, false, n, d, t.rows);
    gemm_block{}(Arch{}, product(t.dp, 1, key_tile, t.rows, n, dk, g.dk_row, true, width, d, n));
    gemm_block{}(Arch{}, product(t.dp, key_tile, 1, t.k, width, g.dq + i * g.dq_row + head * d, g.dq_row,
                                 true, n, d, width));
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
