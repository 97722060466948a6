#include "support/catch.hpp"

#include <sluice/core/convert.hpp>

#include <cmath>
#include <limits>

using sluice::bf16;
using sluice::half;
using sluice::to_bf16;
using sluice::to_float;
using sluice::to_half;

namespace {

float from_bits(std::uint32_t bits) { return std::bit_cast<float>(bits); }

// The nearest of the two neighbours of x among values of the narrow type, by exact arithmetic in double.
template <class Narrow>
bool is_nearest(float x, Narrow got) {
    auto value = [](Narrow n) { return static_cast<double>(to_float(n)); };
    auto distance = [&](Narrow n) { return std::abs(value(n) - static_cast<double>(x)); };
    for (int step : {-1, 1}) {
        const Narrow other{static_cast<std::uint16_t>(got.bits + step)};
        if (!std::isfinite(value(other)) || std::signbit(value(other)) != std::signbit(value(got))) continue;
        if (distance(other) < distance(got)) return false;
        if (distance(other) == distance(got) && (got.bits & 1U) != 0) return false; // halves to even
    }
    return true;
}

} // namespace

TEST_CASE("all 65536 codes survive the way to float and back") {
    for (std::uint32_t i = 0; i < 65536; ++i) {
        const bf16 b{static_cast<std::uint16_t>(i)};
        const half h{static_cast<std::uint16_t>(i)};
        if (std::isnan(to_float(b)))
            REQUIRE((i & 0x7FFFU) > 0x7F80U);
        else
            REQUIRE(to_bf16(to_float(b)).bits == i);
        if (std::isnan(to_float(h)))
            REQUIRE((i & 0x7FFFU) > 0x7C00U);
        else
            REQUIRE(to_half(to_float(h)).bits == i);
    }
}

TEST_CASE("widening gives the value the format says") {
    CHECK(to_float(half{0x3C00}) == 1.0F);
    CHECK(to_float(half{0x0001}) == std::ldexp(1.0F, -24));
    CHECK(to_float(half{0x03FF}) == std::ldexp(1023.0F, -24));
    CHECK(to_float(half{0x7BFF}) == 65504.0F);
    CHECK(to_float(half{0xFC00}) == -std::numeric_limits<float>::infinity());
    CHECK(std::signbit(to_float(half{0x8000})));
    CHECK(to_float(bf16{0x3F80}) == 1.0F);
    CHECK(to_float(bf16{0x0001}) == from_bits(0x10000));
}

TEST_CASE("narrowing rounds to nearest, halves to even") {
    std::uint32_t wrong = 0;
    for (std::uint64_t i = 0; i < (std::uint64_t{1} << 32);
         i += 65521) { // a prime step: all kinds of low bits
        const float x = from_bits(static_cast<std::uint32_t>(i));
        if (std::isnan(x)) {
            wrong += std::isnan(to_float(to_bf16(x))) && std::isnan(to_float(to_half(x))) ? 0U : 1U;
            continue;
        }
        const float b = to_float(to_bf16(x)), h = to_float(to_half(x));
        if (std::isfinite(b)) wrong += is_nearest(x, to_bf16(x)) ? 0U : 1U;
        if (std::isfinite(h))
            wrong += is_nearest(x, to_half(x)) ? 0U : 1U;
        else
            wrong += std::abs(x) >= 65520.0F ? 0U : 1U;
    }
    CHECK(wrong == 0);
    CHECK(to_half(65519.996F).bits == 0x7BFF);
    CHECK(to_half(65520.0F).bits == 0x7C00);
    CHECK(to_half(std::ldexp(1.0F, -25)).bits == 0);      // half of the smallest: to even
    CHECK(to_half(std::ldexp(1.0001F, -25)).bits == 1);   // more than half
    CHECK(to_bf16(from_bits(0x3F808000)).bits == 0x3F80); // halves
    CHECK(to_bf16(from_bits(0x3F818000)).bits == 0x3F82);
    CHECK(to_bf16(from_bits(0x7F7FFFFF)).bits == 0x7F80); // up to infinity
    CHECK(to_bf16(from_bits(0x7F800001)).bits == 0x7FC0); // a NaN whose low bits are cut off stays one
}

TEST_CASE("powers of two and numbers of eight bits") {
    for (int i = 0; i < 255; ++i)
        CHECK(to_float(sluice::f8_e8m0{static_cast<std::uint8_t>(i)}) == std::ldexp(1.0F, i - 127));
    CHECK(std::isnan(to_float(sluice::f8_e8m0{255})));
    for (int i = 0; i < 127; ++i) {
        const float want = i < 8 ? std::ldexp(static_cast<float>(i), -9)
                                 : std::ldexp(static_cast<float>(8 + i % 8), i / 8 - 10);
        CHECK(to_float(sluice::f8_e4m3{static_cast<std::uint8_t>(i)}) == want);
        CHECK(to_float(sluice::f8_e4m3{static_cast<std::uint8_t>(i + 128)}) == -want);
    }
    CHECK(std::isnan(to_float(sluice::f8_e4m3{127})));
}

TEST_CASE("to_f8_e4m3 gives the nearest value, of two the even one, and at most 448") {
    using sluice::f8_e4m3;
    using sluice::to_f8_e4m3;
    for (std::uint32_t i = 0; i < 256; ++i)
        if (i % 128 != 127) CHECK(to_f8_e4m3(to_float(f8_e4m3{static_cast<std::uint8_t>(i)})).bits == i);
    for (std::uint32_t i = 0; i < 126; ++i) {
        const float low = to_float(f8_e4m3{static_cast<std::uint8_t>(i)}),
                    high = to_float(f8_e4m3{static_cast<std::uint8_t>(i + 1)}), middle = (low + high) / 2;
        CHECK(to_f8_e4m3(std::nextafter(middle, 0.0F)).bits == i);
        CHECK(to_f8_e4m3(middle).bits == i + i % 2);
        CHECK(to_f8_e4m3(-std::nextafter(middle, 1e9F)).bits == i + 1 + 128);
    }
    for (const float x : {449.0F, 464.0F, 1e30F, std::numeric_limits<float>::infinity()})
        CHECK(to_f8_e4m3(x).bits == 0x7E);
    CHECK(to_f8_e4m3(std::nanf("")).bits == 0x7F);
}
