// Registers of bf16, half, fp8 and int8 as floats, and back; one by one they are converted in
// core/convert.hpp.
#pragma once

#include "../core/convert.hpp"
#include "pack.hpp"

namespace sluice::simd {

template <class P>
struct pack_pair {
    P low, high;
};

// Two registers of floats from one of word pairs: lane i of `low` is p[2 i], of `high` p[2 i + 1].
template <class Arch>
SLUICE_INLINE pack_pair<pack<float, Arch>> load_pairs(const bf16* p) {
    using P = pack<float, Arch>;
    if constexpr (std::is_same_v<Arch, scalar>) {
        return {P(to_float(p[0])), P(to_float(p[1]))};
    } else {
        const P both = P::load_bytes(p);
        return {upper_halves(both, true), upper_halves(both, false)};
    }
}

// A register of floats from as many smaller numbers.
template <class Arch, class S>
SLUICE_INLINE pack<float, Arch> widen(const S* p) {
    using P = pack<float, Arch>;
#if defined(__AVX512F__)
    if constexpr (P::size == 16) {
        if constexpr (sizeof(S) == 2) {
            const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
            if constexpr (std::is_same_v<S, half>) return typename P::batch(_mm512_cvtph_ps(x));
            const __m512i words = _mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16);
            return typename P::batch(_mm512_castsi512_ps(words));
        } else if constexpr (std::is_same_v<S, std::int8_t> || std::is_same_v<S, f8_e4m3>) {
            const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
            if constexpr (std::is_same_v<S, std::int8_t>)
                return typename P::batch(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(x)));
            // As halves, whose exponents begin 8 lower: those of subnormals come right by themselves. Of what
            // is all ones only NaN is left.
            const __m256i moved = _mm256_srai_epi16(_mm256_slli_epi16(_mm256_cvtepu8_epi16(x), 8), 1);
            const __m256i bits = _mm256_and_si256(moved, _mm256_set1_epi16(static_cast<short>(0xBFFF)));
            const __m256i nan = _mm256_cmpeq_epi16(_mm256_and_si256(bits, _mm256_set1_epi16(0x7FFF)),
                                                   _mm256_set1_epi16(0x3F80));
            const __m256i halves = _mm256_or_si256(bits, _mm256_and_si256(nan, _mm256_set1_epi16(0x7C00)));
            return typename P::batch(_mm512_cvtph_ps(halves)) * P(256.0F);
        }
    }
#endif
#if defined(__AVX2__)
    if constexpr (P::size == 8 && std::is_same_v<S, bf16>) {
        const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        const __m256i words = _mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16);
        return typename P::batch(_mm256_castsi256_ps(words));
    } else if constexpr (P::size == 8 && std::is_same_v<S, std::int8_t>) {
        const __m128i x = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
        return typename P::batch(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)));
    }
#endif
#if defined(__AVX2__) && defined(__F16C__)
    if constexpr (P::size == 8 && std::is_same_v<S, half>) {
        return typename P::batch(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
    } else if constexpr (P::size == 8 && std::is_same_v<S, f8_e4m3>) {
        const __m128i x = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
        const __m128i moved = _mm_srai_epi16(_mm_unpacklo_epi8(_mm_setzero_si128(), x), 1);
        const __m128i bits = _mm_and_si128(moved, _mm_set1_epi16(static_cast<short>(0xBFFF)));
        const __m128i nan =
            _mm_cmpeq_epi16(_mm_and_si128(bits, _mm_set1_epi16(0x7FFF)), _mm_set1_epi16(0x3F80));
        const __m128i halves = _mm_or_si128(bits, _mm_and_si128(nan, _mm_set1_epi16(0x7C00)));
        return typename P::batch(_mm256_cvtph_ps(halves)) * P(256.0F);
    }
#endif
    float lanes[static_cast<std::size_t>(P::size)];
    if constexpr (P::size > 1 && (std::is_same_v<S, f8_e4m3> || std::is_same_v<S, half>)) {
        // to_float's steps, which g++ does not take for four lanes at once by itself
        constexpr bool wide = std::is_same_v<S, half>;
        using words = std::uint32_t __attribute__((vector_size(16)));
        using integers = std::int32_t __attribute__((vector_size(16)));
        using floats = float __attribute__((vector_size(16)));
        for (idx i = 0; i < P::size; i += 4) {
            const words all = {p[i].bits, p[i + 1].bits, p[i + 2].bits, p[i + 3].bits};
            const words magnitude = all & (wide ? 0x7FFFU : 0x7FU);
            const auto whole = reinterpret_cast<integers>(magnitude);
            const floats small = __builtin_convertvector(whole, floats) * (wide ? 0x1p-24F : 0x1p-9F);
            const auto is_normal = reinterpret_cast<words>(whole >= (wide ? 0x400 : 8));
            const auto is_last = reinterpret_cast<words>(whole >= (wide ? 0x7C00 : 0x7F));
            const words normal = (magnitude << (wide ? 13 : 20)) + ((wide ? 112U : 120U) << 23);
            const words number = (normal & is_normal) | (reinterpret_cast<words>(small) & ~is_normal);
            const words result = number | (all ^ magnitude) << (wide ? 16 : 24) | (is_last & 0x7F800000U);
            std::memcpy(lanes + i, &result, sizeof(result));
        }
    } else {
        for (idx i = 0; i < P::size; ++i) lanes[i] = to_float(p[i]);
    }
    return P::load(lanes);
}

} // namespace sluice::simd
