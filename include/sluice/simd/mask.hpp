// Masks as bits, and the lanes they pick as indices.
#pragma once

#include "pack.hpp"

namespace sluice::simd {

// Bit i is lane i.
template <class P>
SLUICE_INLINE std::uint32_t lane_bits(typename P::mask m) {
    using T [[maybe_unused]] = typename P::value_type;
    if constexpr (std::is_same_v<typename P::mask, bool>) {
        return m ? 1U : 0U;
    } else {
#if defined(__AVX512F__)
        if constexpr (P::size * sizeof(T) == 64) return static_cast<std::uint32_t>(m.data);
#endif
#if defined(__AVX__)
        if constexpr (P::size * sizeof(T) == 32) {
            if constexpr (sizeof(T) == 4)
                return static_cast<std::uint32_t>(_mm256_movemask_ps(m.data));
            else
                return static_cast<std::uint32_t>(_mm256_movemask_pd(m.data));
        }
#endif
#if XSIMD_VERSION_MAJOR >= 9
        return static_cast<std::uint32_t>(m.mask());
#else
        T lanes[static_cast<std::size_t>(P::size)];
        select(m, P(T(1)), P(T(0))).store(lanes);
        std::uint32_t bits = 0;
        for (idx i = 0; i < P::size; ++i) bits |= lanes[i] != 0 ? 1U << i : 0U;
        return bits;
#endif
    }
}

// Writes first + i for every bit i below 16 that is set, in order, and nothing behind them; returns how many.
template <class Arch>
SLUICE_INLINE idx store_set_bits(std::uint32_t bits, std::int32_t first, std::int32_t* out) {
    const int n = std::popcount(bits);
#if defined(__AVX512F__)
    if constexpr (has_registers<Arch>()) {
        const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        const __m512i all = _mm512_add_epi32(lanes, _mm512_set1_epi32(first));
        // compressing straight to memory takes ten times as long on some processors
        _mm512_mask_storeu_epi32(out, static_cast<__mmask16>((1U << n) - 1),
                                 _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), all));
        return n;
    }
#endif
    for (; bits != 0; bits &= bits - 1) *out++ = first + std::countr_zero(bits);
    return n;
}

} // namespace sluice::simd
