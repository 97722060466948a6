// Packed panels of smaller storage types as panels of floats, a few steps of k at a time: how a product reads
// what it does not multiply as it is. Exact.
#pragma once

#include "../core/quantised.hpp"
#include "../simd/dot.hpp"
#include "gemm.hpp"

namespace sluice::kernels {

// Writes rows k0 to k0 + n of a panel of S as floats in plain order, k0 a multiple of 128.
template <class S>
struct widen_panel {
    template <class Arch>
    void operator()(Arch, const typename element_of<packed<S>>::type* panel, idx k0, idx n, float* out) const;
};
template <class S>
using widen_calls =
    simd::calls<simd::call<widen_panel<S>, const typename element_of<packed<S>>::type*, idx, idx, float*>>;

// Columns `offset` onwards of either half of a panel's row.
template <class Arch>
SLUICE_INLINE simd::pack_pair<simd::pack<float, Arch>> load_both(const bf16* row, idx offset) {
    return simd::load_pairs<Arch>(row + 2 * offset);
}
template <class Arch>
SLUICE_INLINE simd::pack_pair<simd::pack<float, Arch>> load_both(const half* row, idx offset) {
    return {simd::widen<Arch>(row + offset), simd::widen<Arch>(row + gemm_tile<float, Arch>::half + offset)};
}

// Scales, or minima, of the columns of a tile.
template <class Arch, class S>
SLUICE_INLINE simd::pack_pair<simd::pack<float, Arch>> load_scales(const std::byte* at, idx offset) {
    constexpr idx half_cols = gemm_tile<float, Arch>::half;
    if constexpr (panel_format<S>::half_scales) {
        const auto* scales = reinterpret_cast<const half*>(at);
        return {simd::widen<Arch>(scales + offset), simd::widen<Arch>(scales + half_cols + offset)};
    } else {
        return {simd::bits_as<float>(simd::load_words<Arch>(at + 4 * offset)),
                simd::bits_as<float>(simd::load_words<Arch>(at + 4 * (half_cols + offset)))};
    }
}

// What 32 columns of W in a panel stand for: code times scale, plus what zero stands for.
template <class Arch, class S>
SLUICE_INLINE void widen_block(const std::byte* head, const std::byte* block, idx offset, idx n, float* out) {
    using P = simd::pack<float, Arch>;
    using W = simd::words<Arch>;
    using format = panel_format<S>;
    constexpr idx half_cols = gemm_tile<float, Arch>::half, cols = 2 * half_cols;
    if constexpr (is_f8<S>) {
        float one;
        std::memcpy(&one, block, sizeof(one));
        const auto* numbers = reinterpret_cast<const f8_e4m3*>(block + format::block_head) + offset;
        for (idx k = 0; k < n * cols; k += half_cols)
            (simd::widen<Arch>(numbers + k) * P(one)).store(out + k + offset);
        return;
    }
    const auto scale = load_scales<Arch, S>(format::half_scales ? block : head, offset);
    simd::pack_pair<P> least{P(0), P(0)};
    if constexpr (format::has_min) least = load_scales<Arch, S>(block + 64, offset);
    const std::byte* codes = block + format::block_head + 4 * offset;
    for (idx k = 0; k < n; ++k) {
        const idx line = format::bits == 8 ? k / 4 : k / 8,
                  shift = k % 4 * 8 + (format::bits == 8 ? 0 : k / 4 % 2 * 4);
        auto value = [&](idx at, P by, P from) {
            const W all = simd::load_words<Arch>(codes + 128 * line + 4 * at);
            const W code = (all >> static_cast<int>(shift)) & W(format::bits == 8 ? 255 : 15);
            const P q = to_floats(code - W(format::zero));
            return format::has_min ? fma(q, by, from) : q * by;
        };
        value(0, scale.low, least.low).store(out + k * cols + offset);
        value(half_cols, scale.high, least.high).store(out + k * cols + half_cols + offset);
    }
}

template <class S>
template <class Arch>
void widen_panel<S>::operator()(Arch, const typename element_of<packed<S>>::type* panel, idx k0, idx n,
                                float* out) const {
    using P = simd::pack<float, Arch>;
    constexpr idx half_cols = gemm_tile<float, Arch>::half, cols = 2 * half_cols;
    if constexpr (quantised<S>) {
        using format = panel_format<S>;
        for (idx k = k0; k < k0 + n; k += format::block) {
            const std::byte* block =
                panel + format::head + k / format::block * (format::block_head + format::codes);
            for (idx offset = 0; offset < half_cols; offset += P::size)
                widen_block<Arch, S>(panel, block, offset, std::min(format::block, k0 + n - k),
                                     out + (k - k0) * cols);
        }
    } else {
        for (idx k = k0; k < k0 + n; ++k, out += cols)
            for (idx offset = 0; offset < half_cols; offset += P::size) {
                const auto both = load_both<Arch>(panel + k * cols, offset);
                both.low.store(out + offset);
                both.high.store(out + half_cols + offset);
            }
    }
}

} // namespace sluice::kernels
