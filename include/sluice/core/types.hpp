// Names of the scalar and index types, and the namespace rule.
//
// Data types that pass between translation units (views, configs, params, arenas) live in `sluice`;
// every function with a body that is compiled for one instruction set lives in the inline namespace
// SLUICE_ISA, so that files built with different -march never share a symbol.
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#if defined(__FAST_MATH__) && !defined(SLUICE_ALLOW_FAST_MATH)
#    error "sluice relies on NaN, infinity and the order of sums; -ffast-math breaks all three"
#endif

#if defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#    if defined(__AVX512VNNI__)
#        define SLUICE_ISA isa_avx512_vnni
#    else
#        define SLUICE_ISA isa_avx512
#    endif
#elif defined(__AVX2__) && defined(__FMA__) && defined(__AVXVNNI__)
#    define SLUICE_ISA isa_avx2_vnni
#elif defined(__AVX2__) && defined(__FMA__)
#    define SLUICE_ISA isa_avx2
#elif defined(__AVX__)
#    define SLUICE_ISA isa_avx
#elif defined(__SSE4_1__)
#    define SLUICE_ISA isa_sse4
#elif defined(__SSE2__)
#    define SLUICE_ISA isa_sse2
#elif defined(__ARM_FEATURE_SVE)
#    define SLUICE_ISA isa_sve
#elif defined(__aarch64__)
#    define SLUICE_ISA isa_neon64
#else
#    define SLUICE_ISA isa_generic
#endif

// What kernels call and is no kernel itself: never a symbol that files of other flags could share.
#define SLUICE_INLINE inline __attribute__((always_inline))

namespace sluice {

// Sizes, rows, positions: signed, so that differences are safe. (POSIX owns the name index.)
using idx = std::ptrdiff_t;
using token_id = std::int32_t; // an entry of the vocabulary

// Brain float: the upper half of a float. A storage type; arithmetic is done in float.
struct bf16 {
    std::uint16_t bits = 0;
    friend constexpr bool operator==(bf16, bf16) = default;
};

// IEEE 754 binary16. A storage type; arithmetic is done in float.
struct half {
    std::uint16_t bits = 0;
    friend constexpr bool operator==(half, half) = default;
};

// Eight bits in the variant without infinities that checkpoints use. A storage type.
struct f8_e4m3 {
    std::uint8_t bits = 0;
    friend constexpr bool operator==(f8_e4m3, f8_e4m3) = default;
};

// A power of two, 2^(bits - 127), or NaN where all bits are set: the scale of a block. A storage type.
struct f8_e8m0 {
    std::uint8_t bits = 127;
    friend constexpr bool operator==(f8_e8m0, f8_e8m0) = default;
};

template <class T>
concept real = std::same_as<T, float> || std::same_as<T, double>;

// The type a stored weight computes in: float for what is smaller than float, itself otherwise.
template <class W>
struct compute {
    using type = W;
};
template <>
struct compute<bf16> {
    using type = float;
};
template <>
struct compute<half> {
    using type = float;
};
template <>
struct compute<f8_e4m3> {
    using type = float;
};
template <>
struct compute<f8_e8m0> {
    using type = float;
};
template <class W>
using compute_type = typename compute<std::remove_const_t<W>>::type;

// Vectors (scales, biases) are kept in the compute type even where matrices are stored smaller; constness
// follows the matrices.
template <class W>
using vector_type = std::conditional_t<std::is_const_v<W>, const compute_type<W>, compute_type<W>>;

constexpr idx ceil_div(idx a, idx b) { return (a + b - 1) / b; }
constexpr idx round_up(idx a, idx b) { return ceil_div(a, b) * b; }

} // namespace sluice
