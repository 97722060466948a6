// Brings a tile of keys and values, as a source keeps them, into the form that products of attention read:
// keys transposed, values in rows of whole registers, numbers as wide as those they are multiplied with.
#pragma once

#include "../simd/convert.hpp"
#include "attention_product.hpp"

namespace sluice::kernels {

// Where a tile goes that cannot be read in place.
template <class T>
struct tile_scratch {
    T* k;                // head_dim x key_tile
    T* v;                // key_tile x width
    idx head_dim, width; // width: head_dim in whole registers
    bool many_rows;      // read again and again
    bool once = false;   // read by one pass of a product: what is kept smaller stays as it is
};

// A tile of keys of one head: k transposed, v with rows of whole registers.
template <class T>
struct attention_keys {
    const T *k, *v;
    idx v_row;
    bool near = false;  // in L1: nothing of it need be asked for
    small_keys small{}; // where the tile is not plain, this in place of k and v
};

// Calls f with keys or values as they are kept: `small`, or else `plain`.
template <class T, class F>
SLUICE_INLINE void as_kept(key_storage storage, const void* small, const T* plain, const F& f) {
    if constexpr (std::is_same_v<T, float>) {
        if (storage == key_storage::bf16) return f(static_cast<const bf16*>(small));
        if (storage == key_storage::int8) return f(static_cast<const std::int8_t*>(small));
    }
    f(plain);
}

// Widens a tile of float keys that are kept smaller: `keys` of the values, of the keys all that share
// registers with those.
template <class Arch, class S>
void widen_tile(const tile_scratch<float>& to, const S* k, const S* v, const float* k_scales,
                const float* v_scales, key_range keys) {
    using P = simd::pack<float, Arch>;
    constexpr bool scaled = std::is_same_v<S, std::int8_t>;
    const idx d = to.head_dim, first = keys.lo / P::size * P::size, end = round_up(keys.hi, P::size);
    // The next tile lies behind this one, but in other pages, which the hardware does not guess.
    const auto ask_next = [d](const S* tile, idx row, idx elements) __attribute__((always_inline)) {
        for (idx j = 0; j < elements; j += 64 / static_cast<idx>(sizeof(S)))
            __builtin_prefetch(tile + key_tile * d + row * elements + j);
    };
    for (idx e = 0; e < d; ++e) {
        ask_next(k, e, key_tile);
        for (idx j = first; j < end; j += P::size) {
            const P x = simd::widen<Arch>(k + e * key_tile + j);
            (scaled ? x * P::load(k_scales + j) : x).store(to.k + e * key_tile + j);
        }
    }
    for (idx j = keys.lo; j < keys.hi; ++j) {
        ask_next(v, j, d);
        const P scale(scaled ? v_scales[j] : 1.0F);
        float* const row = to.v + j * to.width;
        idx e = 0;
        for (; e + P::size <= d; e += P::size) {
            const P x = simd::widen<Arch>(v + j * d + e);
            (scaled ? x * scale : x).store(row + e);
        }
        if (e == d) continue;
        S rest[static_cast<std::size_t>(P::size)] = {};
        std::copy_n(v + j * d + e, d - e, rest);
        const P x = simd::widen<Arch>(rest);
        (scaled ? x * scale : x).store(row + e);
    }
}

// The tile at row `at` of a source, of which `keys` are seen; in place where products can read it there.
template <class Arch, class T>
attention_keys<T> take_tile(const tile_scratch<T>& to, const attention_source<T>& source, idx head, idx at,
                            key_range keys) {
    using P = simd::pack<T, Arch>;
    const idx d = to.head_dim;
    if constexpr (std::is_same_v<T, float>) {
        const small_keys& small = source.small;
        const idx from = at * d + head, scale = at + head / d;
        auto widened = [&]<class S>(const S*) {
            const auto *k = static_cast<const S*>(small.k) + from, *v = static_cast<const S*>(small.v) + from;
            const bool scaled = small.k_scales != nullptr;
            const float *const k_scales = scaled ? small.k_scales + scale : nullptr,
                               *const v_scales = scaled ? small.v_scales + scale : nullptr;
            if (to.once && d == to.width)
                return attention_keys<T>{
                    nullptr, nullptr, d, false, {small.storage, k, v, k_scales, v_scales}};
            widen_tile<Arch>(to, k, v, k_scales, v_scales, keys);
            return attention_keys<T>{to.k, to.v, to.width, true, {}};
        };
        if (small.storage == key_storage::bf16) return widened(static_cast<const bf16*>(nullptr));
        if (small.storage == key_storage::int8) return widened(static_cast<const std::int8_t*>(nullptr));
    }
    attention_keys<T> tile{
        source.k + at * source.k_row + head, source.v + at * source.v_row + head, source.v_row, false, {}};
    if (source.layout == key_layout::rows) {
        transpose_rows<Arch>(tile.k, source.k_row, keys, d, to.k, key_tile);
        tile.k = to.k;
    }
    // rows far apart fall into few sets of L1 and would come from L2 again and again
    if (d != to.width || (source.v_row != d && to.many_rows)) {
        for (idx j = keys.lo; j < keys.hi; ++j)
            simd::for_each_pack<P>(d, [&](idx e, idx n) {
                const T* const from = tile.v + j * source.v_row + e;
                P::load_partial(from, n).store(to.v + j * to.width + e);
            });
        tile.v = to.v;
        tile.v_row = to.width;
    }
    return tile;
}

} // namespace sluice::kernels
