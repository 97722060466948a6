// Products of bytes against 64-bit integers, conversions against their definition. The instruction sets that
// this file's flags allow, and those below them.
#include "support/catch.hpp"

#include <sluice/core/random.hpp>
#include <sluice/simd/convert.hpp>
#include <sluice/simd/dot.hpp>

#include <vector>

using namespace sluice;

namespace {

template <class Arch>
void check_products(random_source numbers) {
    if constexpr (std::is_same_v<Arch, simd::scalar> || simd::has_registers<Arch>()) {
        using W = simd::words<Arch>;
        constexpr auto n = static_cast<std::size_t>(W::size);
        idx drawn = 0;
        auto draw = [&] { return numbers.bits(drawn++); };
        for (int round = 0; round < 200; ++round) {
            std::vector<std::uint8_t> u(4 * n);
            std::vector<std::int8_t> s(4 * n);
            std::vector<std::int32_t> sums(n), got(n);
            for (std::size_t i = 0; i < 4 * n; ++i) {
                // ends of both ranges together are what saturating instructions get wrong
                u[i] = round == 0 ? 255 : static_cast<std::uint8_t>(draw());
                s[i] = round == 0 ? -128 : static_cast<std::int8_t>(draw() >> 24U);
            }
            for (std::size_t i = 0; i < n; ++i) sums[i] = static_cast<std::int32_t>(draw() >> 2U);
            dot4(W::load(sums.data()), simd::load_words<Arch>(u.data()), simd::load_words<Arch>(s.data()))
                .store(got.data());
            for (std::size_t i = 0; i < n; ++i) {
                std::int64_t expected = sums[i];
                for (std::size_t q = 4 * i; q < 4 * i + 4; ++q) expected += std::int64_t{u[q]} * s[q];
                REQUIRE(got[i] == expected);
            }
            simd::nibbles(simd::load_words<Arch>(u.data()), false).store(got.data());
            REQUIRE((got[0] & 255) == (u[0] & 15));
            simd::nibbles(simd::load_words<Arch>(u.data()), true).store(got.data());
            REQUIRE(static_cast<std::uint32_t>(got[n - 1]) >> 24U == u[4 * n - 1] / 16U);
        }
    }
}
} // namespace

TEST_CASE("dot: four products of bytes are exact at the ends of their ranges") {
    const random_source numbers(3);
    check_products<simd::scalar>(numbers);
    check_products<simd::native>(numbers);
#if defined(__x86_64__)
    check_products<simd::sse2>(numbers);
    check_products<simd::avx>(numbers);
    check_products<simd::avx2>(numbers);
    check_products<simd::avx512>(numbers);
#endif
}

TEMPLATE_TEST_CASE("dot: integers and floats", "", simd::native, simd::scalar) {
    using P = simd::pack<float, TestType>;
    constexpr auto n = static_cast<std::size_t>(P::size);
    for (const float x : {0.0F, -0.0F, 0.5F, 1.5F, -2.5F, 126.49F, -127.0F, 4194303.0F, -4194303.0F}) {
        std::int32_t whole[n];
        to_integers(P(x)).store(whole);
        CHECK(static_cast<float>(whole[0]) == std::nearbyint(x));
        CHECK(whole[n - 1] == whole[0]);
        float back[n];
        to_floats(simd::words<TestType>(whole[0])).store(back);
        CHECK(back[n - 1] == std::nearbyint(x));
    }
    std::int32_t lanes[n];
    for (std::size_t i = 0; i < n; ++i) lanes[i] = static_cast<std::int32_t>(i) - 120;
    std::int8_t bytes[n];
    simd::store_bytes(simd::words<TestType>::load(lanes), bytes);
    for (std::size_t i = 0; i < n; ++i) CHECK(bytes[i] == lanes[i]);
}
