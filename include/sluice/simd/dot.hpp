// Exact sums of products of bytes, four to a 32-bit lane: the one place that knows the instruction for it
// (VNNI). Elsewhere bytes are widened to 16 bits; what saturates (vpmaddubsw) is used nowhere.
#pragma once

#include "pack.hpp"

#if defined(__SSE2__)
#    include <immintrin.h>
#endif

namespace sluice::simd {

// Lanes of four bytes, or of one sum.
template <class Arch>
using words = pack<std::int32_t, Arch>;

template <class Arch>
SLUICE_INLINE words<Arch> load_words(const void* p) {
    if constexpr (std::is_same_v<Arch, scalar>) {
        std::int32_t bits;
        std::memcpy(&bits, p, sizeof(bits));
        return bits;
    } else {
        return words<Arch>::load_bytes(p);
    }
}
// The same four bytes in every lane.
template <class Arch>
SLUICE_INLINE words<Arch> broadcast_bytes(const void* p) {
    std::int32_t bits;
    std::memcpy(&bits, p, sizeof(bits));
    return words<Arch>(bits);
}

// sum + u0 s0 + u1 s1 + u2 s2 + u3 s3 of one lane: u unsigned bytes, s signed ones.
SLUICE_INLINE std::int32_t dot4(std::int32_t sum, std::int32_t u, std::int32_t s) {
    for (int i = 0; i < 32; i += 8)
        sum += static_cast<std::int32_t>(static_cast<std::uint8_t>(static_cast<std::uint32_t>(u) >> i)) *
               static_cast<std::int8_t>(static_cast<std::uint8_t>(static_cast<std::uint32_t>(s) >> i));
    return sum;
}

#if defined(__SSE2__)
// Without the instruction: even bytes and odd ones, as 16-bit numbers.
SLUICE_INLINE __m128i dot4(__m128i sum, __m128i u, __m128i s) {
    const __m128i even =
        _mm_madd_epi16(_mm_and_si128(u, _mm_set1_epi16(255)), _mm_srai_epi16(_mm_slli_epi16(s, 8), 8));
    return _mm_add_epi32(_mm_add_epi32(sum, even),
                         _mm_madd_epi16(_mm_srli_epi16(u, 8), _mm_srai_epi16(s, 8)));
}
#endif
#if defined(__AVX2__)
SLUICE_INLINE __m256i dot4(__m256i sum, __m256i u, __m256i s) {
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(u, _mm256_set1_epi16(255)),
                                           _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
    return _mm256_add_epi32(_mm256_add_epi32(sum, even),
                            _mm256_madd_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(s, 8)));
}
#elif defined(__AVX__)
SLUICE_INLINE __m256i dot4(__m256i sum, __m256i u, __m256i s) {
    const __m128i low =
        dot4(_mm256_castsi256_si128(sum), _mm256_castsi256_si128(u), _mm256_castsi256_si128(s));
    const __m128i high = dot4(_mm256_extractf128_si256(sum, 1), _mm256_extractf128_si256(u, 1),
                              _mm256_extractf128_si256(s, 1));
    return _mm256_insertf128_si256(_mm256_castsi128_si256(low), high, 1);
}
#endif
#if defined(__AVX512BW__)
SLUICE_INLINE __m512i dot4(__m512i sum, __m512i u, __m512i s) {
    const __m512i even = _mm512_madd_epi16(_mm512_and_si512(u, _mm512_set1_epi16(255)),
                                           _mm512_srai_epi16(_mm512_slli_epi16(s, 8), 8));
    return _mm512_add_epi32(_mm512_add_epi32(sum, even),
                            _mm512_madd_epi16(_mm512_srli_epi16(u, 8), _mm512_srai_epi16(s, 8)));
}
#endif
#if defined(__aarch64__)
SLUICE_INLINE int32x4_t dot4(int32x4_t sum, int32x4_t u, int32x4_t s) {
    const uint8x16_t a = vreinterpretq_u8_s32(u);
    const int8x16_t b = vreinterpretq_s8_s32(s);
    const int16x8_t a0 = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(a))), b0 = vmovl_s8(vget_low_s8(b));
    const int16x8_t a1 = vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(a))), b1 = vmovl_s8(vget_high_s8(b));
    const int32x4_t p0 = vmull_s16(vget_low_s16(a0), vget_low_s16(b0)), p1 = vmull_high_s16(a0, b0);
    const int32x4_t p2 = vmull_s16(vget_low_s16(a1), vget_low_s16(b1)), p3 = vmull_high_s16(a1, b1);
    return vaddq_s32(sum, vpaddq_s32(vpaddq_s32(p0, p1), vpaddq_s32(p2, p3)));
}
#endif

// The same in every lane; exact as long as the sum fits 32 bits.
template <class Arch>
SLUICE_INLINE words<Arch> dot4(words<Arch> sum, words<Arch> u, words<Arch> s) {
    if constexpr (std::is_same_v<Arch, scalar>) {
        return dot4(sum.v, u.v, s.v);
    } else {
        using batch = typename words<Arch>::batch;
        if constexpr (std::is_same_v<Arch, avx512_vnni> || std::is_same_v<Arch, avx2_vnni>) {
#if defined(__x86_64__)
            // not by the intrinsic: g++ 12 copies every sum before and after it, which halves the speed
            if constexpr (std::is_same_v<Arch, avx512_vnni>)
                asm("vpdpbusd %2, %1, %0" : "+v"(sum.v.data) : "v"(u.v.data), "v"(s.v.data));
            else
                asm("{vex} vpdpbusd %2, %1, %0" : "+x"(sum.v.data) : "x"(u.v.data), "x"(s.v.data));
#endif
            return sum;
        } else if constexpr (requires { dot4(sum.v.data, u.v.data, s.v.data); })
            return batch(dot4(sum.v.data, u.v.data, s.v.data));
        else {
            constexpr auto n = static_cast<std::size_t>(words<Arch>::size);
            std::int32_t a[n], b[n], c[n];
            sum.store(a);
            u.store(b);
            s.store(c);
            for (std::size_t i = 0; i < n; ++i) a[i] = dot4(a[i], b[i], c[i]);
            return words<Arch>::load(a);
        }
    }
}

// Of every byte the lower four bits, or the upper four moved down.
template <class Arch>
SLUICE_INLINE words<Arch> nibbles(words<Arch> a, bool upper) {
    return (upper ? a >> 4 : a) & words<Arch>(0x0F0F0F0F);
}

template <class To, class From, class Arch>
SLUICE_INLINE pack<To, Arch> bits_as(pack<From, Arch> a) {
    if constexpr (std::is_same_v<Arch, scalar>)
        return std::bit_cast<To>(a.v);
    else
        return same_bits<To>(a.v);
}

// Integers below 2^22 as floats and back, halves to even: their bits in the fraction of 1.5 * 2^23.
constexpr std::int32_t integer_bits = 0x4B400000;
constexpr float integer_float = 12582912.0F;
template <class Arch>
SLUICE_INLINE pack<float, Arch> floats_of_bits(words<Arch> a) { // to which integer_bits was added
    return bits_as<float>(a) - pack<float, Arch>(integer_float);
}
template <class Arch>
SLUICE_INLINE pack<float, Arch> to_floats(words<Arch> a) {
    return floats_of_bits(a + words<Arch>(integer_bits));
}
template <class Arch>
SLUICE_INLINE words<Arch> to_integers(pack<float, Arch> a) {
    return bits_as<std::int32_t>(a + pack<float, Arch>(integer_float)) - words<Arch>(integer_bits);
}

#if defined(__SSE2__)
SLUICE_INLINE void store_bytes(__m128i a, std::int8_t* out) {
    const __m128i words = _mm_packs_epi32(a, a), bytes = _mm_packs_epi16(words, words);
    std::memcpy(out, &bytes, 4);
}
#endif
#if defined(__AVX__)
SLUICE_INLINE void store_bytes(__m256i a, std::int8_t* out) {
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extractf128_si256(a, 1));
    const __m128i bytes = _mm_packs_epi16(words, words);
    std::memcpy(out, &bytes, 8);
}
#endif
#if defined(__AVX512BW__)
SLUICE_INLINE void store_bytes(__m512i a, std::int8_t* out) {
    const __m128i bytes = _mm512_cvtepi32_epi8(a);
    std::memcpy(out, &bytes, 16);
}
#endif

// Integers from -128 to 127 as bytes.
template <class Arch>
SLUICE_INLINE void store_bytes(words<Arch> a, std::int8_t* out) {
    if constexpr (std::is_same_v<Arch, scalar>) {
        *out = static_cast<std::int8_t>(a.v);
    } else if constexpr (requires { store_bytes(a.v.data, out); }) {
        store_bytes(a.v.data, out);
    } else {
        std::int32_t lanes[static_cast<std::size_t>(words<Arch>::size)];
        a.store(lanes);
        for (idx i = 0; i < words<Arch>::size; ++i) out[i] = static_cast<std::int8_t>(lanes[i]);
    }
}

} // namespace sluice::simd
