// bf16, half and float. Widening is exact; narrowing rounds to nearest, halves to even, turns what is too
// large into infinity and any NaN into a quiet one.
#pragma once

#include "pack.hpp"

namespace sluice {

constexpr float to_float(bf16 x) { return std::bit_cast<float>(std::uint32_t{x.bits} << 16); }

constexpr bf16 to_bf16(float x) {
    const auto bits = std::bit_cast<std::uint32_t>(x);
    if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return {static_cast<std::uint16_t>(bits >> 16 | 0x40U)};
    return {static_cast<std::uint16_t>((bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16)};
}

constexpr float to_float(half x) {
    const std::uint32_t sign = std::uint32_t{x.bits & 0x8000U} << 16, magnitude = x.bits & 0x7FFFU;
    if (magnitude >= 0x7C00U) return std::bit_cast<float>(sign | 0x7F800000U | (magnitude & 0x3FFU) << 13);
    if (magnitude >= 0x400U) return std::bit_cast<float>(sign | ((magnitude << 13) + (112U << 23)));
    const float small = static_cast<float>(magnitude) * 0x1p-24F; // subnormal, or zero
    return sign != 0 ? -small : small;
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

} // namespace sluice

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

} // namespace sluice::simd
