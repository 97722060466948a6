#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/random_data.hpp"

#include <sluice/simd/mask.hpp>

#include <vector>

using namespace sluice::test;
using sluice::idx;
using sluice::simd::pack;

TEMPLATE_TEST_CASE("mask: bit i is lane i", "", float_native, float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    using P = pack<T, typename TestType::arch>;
    const std::uint32_t all = P::size == 32 ? ~0U : (1U << P::size) - 1;
    for (std::uint32_t want = 0; want <= all; ++want) {
        T lanes[static_cast<std::size_t>(P::size)];
        for (idx i = 0; i < P::size; ++i) lanes[i] = (want >> i & 1U) != 0 ? T(-1) : T(1);
        const std::uint32_t got = sluice::simd::lane_bits<P>(P::load(lanes) < P(T(0)));
        if (got != want) FAIL(got << " is not " << want);
    }
    SUCCEED("none was wrong");
}

TEMPLATE_TEST_CASE("mask: set bits become indices, and nothing behind them is written", "", float_native,
                   float_scalar) {
    for (std::uint32_t bits = 0; bits < 65536; ++bits) {
        std::vector<std::int32_t> want;
        for (std::int32_t i = 0; i < 16; ++i)
            if ((bits >> i & 1U) != 0) want.push_back(1000 + i);
        std::vector<std::int32_t> got(want.size() + 16, -7);
        const idx n = sluice::simd::store_set_bits<typename TestType::arch>(bits, 1000, got.data());
        bool good = n == static_cast<idx>(want.size());
        for (std::size_t i = 0; i < got.size(); ++i)
            good = good && got[i] == (i < want.size() ? want[i] : -7);
        if (!good) FAIL("bits " << bits);
    }
    // the memory may end there
    page_end<std::int32_t> last(2);
    CHECK(sluice::simd::store_set_bits<typename TestType::arch>(0x8001, 5, last.data()) == 2);
    CHECK(last[1] == 20);
}
