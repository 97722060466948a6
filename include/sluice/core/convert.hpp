// bf16, half, fp8, int8 and float, one number at a time. Widening is exact; narrowing rounds to nearest,
// halves to even, turns what is too large into infinity and any NaN into a quiet one.
#pragma once

#include "types.hpp"

namespace sluice {

SLUICE_INLINE constexpr float to_float(float x) { return x; }
SLUICE_INLINE constexpr float to_float(std::int8_t x) { return static_cast<float>(x); }
SLUICE_INLINE constexpr float to_float(bf16 x) { return std::bit_cast<float>(std::uint32_t{x.bits} << 16); }

constexpr bf16 to_bf16(float x) {
    const auto bits = std::bit_cast<std::uint32_t>(x);
    if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return {static_cast<std::uint16_t>(bits >> 16 | 0x40U)};
    return {static_cast<std::uint16_t>((bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16)};
}

SLUICE_INLINE constexpr float to_float(half x) {
    const std::uint32_t sign = std::uint32_t{x.bits & 0x8000U} << 16, magnitude = x.bits & 0x7FFFU;
    // no branches: compilers make registers of loops
    const float small =
        static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1p-24F; // subnormal, or zero
    const std::uint32_t infinite = 0x7F800000U | (magnitude & 0x3FFU) << 13,
                        normal = (magnitude << 13) + (112U << 23),
                        number = magnitude >= 0x400U ? normal : std::bit_cast<std::uint32_t>(small);
    return std::bit_cast<float>(sign | (magnitude >= 0x7C00U ? infinite : number));
}

constexpr half to_half(float x) {
    const auto bits = std::bit_cast<std::uint32_t>(x);
    const std::uint32_t sign = bits >> 16 & 0x8000U, magnitude = bits & 0x7FFFFFFFU;
    auto make = [sign](std::uint32_t rest) { return half{static_cast<std::uint16_t>(sign | rest)}; };
    if (magnitude > 0x7F800000U) return make(0x7E00U | (magnitude >> 13 & 0x3FFU));
    if (magnitude >= 0x47800000U) return make(0x7C00U); // 65536 and above
    if (magnitude >= 0x38800000U) {                     // normal; rounding may carry into infinity
        const std::uint32_t moved = magnitude - (112U << 23);
        return make((moved + 0xFFFU + (moved >> 13 & 1U)) >> 13);
    }
    // subnormal: adding 0.5 puts the unit of half's last place at the end of float's fraction and rounds to
    // it
    const float shifted = std::bit_cast<float>(magnitude) + 0.5F;
    return make(std::bit_cast<std::uint32_t>(shifted) - 0x3F000000U);
}

// Exact: 1 sign, 4 exponent bits with bias 7, 3 fraction bits. No infinities; NaN where all seven are set
// (Micikevicius et al., "FP8 formats for deep learning", 2022, table 1).
SLUICE_INLINE constexpr float to_float(f8_e4m3 x) {
    const std::uint32_t sign = std::uint32_t{x.bits & 0x80U} << 24, magnitude = x.bits & 0x7FU;
    // no branches: compilers make registers of loops
    const float small =
        static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1p-9F; // subnormal, or zero
    const std::uint32_t normal = (magnitude << 20) + (120U << 23);
    const std::uint32_t number = magnitude >= 8 ? normal : std::bit_cast<std::uint32_t>(small);
    return std::bit_cast<float>(sign | (magnitude == 0x7FU ? 0x7FC00000U : number));
}
SLUICE_INLINE constexpr float to_float(f8_e8m0 x) { // 2^-127 is subnormal
    if (x.bits == 0) return 0x1p-127F;
    return std::bit_cast<float>(x.bits == 255 ? 0x7FC00000U : std::uint32_t{x.bits} << 23);
}

// The largest is 448, and so is what would be larger.
constexpr f8_e4m3 to_f8_e4m3(float x) {
    const auto bits = std::bit_cast<std::uint32_t>(x);
    const auto sign = static_cast<std::uint8_t>(bits >> 24 & 0x80U);
    const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
    auto make = [sign](std::uint32_t rest) { return f8_e4m3{static_cast<std::uint8_t>(sign | rest)}; };
    if (magnitude > 0x7F800000U) return make(0x7FU);
    if (magnitude >= 0x43E00000U) return make(0x7EU); // 448
    if (magnitude >= 0x3C800000U) {                   // normal
        const std::uint32_t moved = magnitude - (120U << 23);
        return make((moved + 0x7FFFFU + (moved >> 20 & 1U)) >> 20);
    }
    const float shifted = std::bit_cast<float>(magnitude) + 16384.0F; // as above
    return make(std::bit_cast<std::uint32_t>(shifted) - 0x46800000U);
}

} // namespace sluice
