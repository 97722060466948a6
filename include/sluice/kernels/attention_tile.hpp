// What forward and backward attention share: which keys a policy shows a row, where keys and values lie, what
// a policy adds to the scores of a tile of keys, and the product of small blocks.
#pragma once

#include "gemm.hpp"

namespace sluice {

struct key_range {
    idx lo = 0, hi = 0; // [lo, hi)
};

// Of the 64 keys from `first` on, a row sees those whose bit is set (lowest bit: `first`); of the rest of its
// range, all.
struct key_tail {
    idx first = 0;
    std::uint64_t seen = ~std::uint64_t{0};
};

constexpr idx key_tile = 64; // keys per tile: 64 x 64 floats of scores stay in L1

// How the keys of a head lie in memory: a row each; or transposed, tile after tile of head_dim x key_tile,
// which is how scores read them.
enum class key_layout { rows, tiles };

// What keys and values are kept in: as they are computed, or smaller, of float caches. int8 has a scale for
// each key and each value of a head.
enum class key_storage { plain, bf16, int8 };

// Smaller keys and values in place of k and v, element for element, in `tiles`.
struct small_keys {
    key_storage storage = key_storage::plain;
    const void *k = nullptr, *v = nullptr;
    const float *k_scales = nullptr, *v_scales = nullptr; // of int8: a number for each key of a head
};

// Keys and values of one sequence from one origin. Key i is row i % ring; ring is a multiple of key_tile, or
// 0 where nothing wraps. Of `tiles` all memory is there, also beyond the last key.
template <class T>
struct attention_source {
    const T* k = nullptr;
    const T* v = nullptr;
    idx k_row = 0, v_row = 0; // from key to key; k_row of `tiles`: head_dim
    idx ring = 0;
    idx head = 0; // from head to head; 0: heads side by side in a row
    key_layout layout = key_layout::rows;
    small_keys small{};

    SLUICE_INLINE idx row(idx key) const { return ring == 0 ? key : key % ring; }
};

} // namespace sluice

namespace sluice::kernels {

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
concept has_blind_rows = requires(const Policy& p, idx i) {
    p.blind(i, i, i);
};
template <class Policy>
concept has_tail = requires(const Policy& p, idx i) {
    p.tail(i, i, i);
};

template <class Policy>
concept has_repeated_rows = requires(const Policy& p, idx i) {
    p.repeats(i, i);
};

template <class Policy>
SLUICE_INLINE bool is_blind(const Policy& p, idx sequence, idx row, idx source) {
    if constexpr (has_blind_rows<Policy>)
        return p.blind(sequence, row, source);
    else
        return false;
}

template <class Policy, class T>
SLUICE_INLINE void key_biases(const Policy& p, const tile_place& t, T* bias) {
    if constexpr (has_bias<Policy>)
        for (idx j = 0; j < t.width; ++j) bias[j] = static_cast<T>(p.bias(t.sequence, t.first + j, t.source));
}

// Applies the biases and the tail mask to one row's scores of keys [r.lo, r.hi) of the tile.
template <class Policy, class T>
SLUICE_INLINE void add_biases(const Policy& p, const tile_place& t, const T* bias, idx row, key_range r,
                              T* scores) {
    if constexpr (has_bias<Policy>)
        for (idx j = r.lo; j < r.hi; ++j) scores[j] += bias[j];
    if constexpr (has_last_bias<Policy>) {
        const idx last = p.range(t.sequence, row, t.source).hi - 1 - t.first;
        if (last >= r.lo && last < r.hi)
            scores[last] += static_cast<T>(p.last_bias(t.sequence, row, t.source));
    }
    if constexpr (has_tail<Policy>) {
        const key_tail tail = p.tail(t.sequence, row, t.source);
        const idx end = std::min(r.hi, tail.first - t.first + 64);
        for (idx j = std::max(r.lo, tail.first - t.first); j < end; ++j)
            if ((tail.seen >> (t.first + j - tail.first) & 1U) == 0)
                scores[j] = -std::numeric_limits<T>::infinity();
    }
}

// Elements of a row of n columns in whole panels.
template <class T, class Arch>
constexpr idx whole_panels(idx n) {
    return round_up(n, gemm_tile<T, Arch>::cols);
}

// c (+)= a B with B in panels that were packed with `packed_k` rows.
template <class Arch, class T>
gemm_block_args<T> tile_product(const T* a, idx a_row, idx a_k, const T* panels, idx packed_k, T* c,
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

} // namespace sluice::kernels
