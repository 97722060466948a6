#include "support/catch.hpp"

#include <sluice/simd/convert.hpp>

#include <cmath>
#include <vector>

using sluice::bf16;
using sluice::half;
using sluice::idx;
using sluice::to_float;

TEST_CASE("convert: load_pairs takes even and odd elements apart") {
    using P = sluice::simd::pack<float, sluice::simd::native>;
    std::uint16_t next = 0x3F80;
    bf16 source[2 * P::size];
    for (bf16& b : source) b.bits = next++;
    const auto both = sluice::simd::load_pairs<sluice::simd::native>(source);
    float low[P::size], high[P::size];
    both.low.store(low);
    both.high.store(high);
    for (idx i = 0; i < P::size; ++i) {
        CHECK(low[i] == to_float(source[2 * i]));
        CHECK(high[i] == to_float(source[2 * i + 1]));
    }
    const auto one = sluice::simd::load_pairs<sluice::simd::scalar>(source);
    CHECK(one.low.v == to_float(source[0]));
    CHECK(one.high.v == to_float(source[1]));
}

namespace {

// Every pattern of bits of S at every place in a register.
template <class Arch, class S>
std::uint32_t widened_wrongly(std::uint32_t n) {
    using P = sluice::simd::pack<float, Arch>;
    std::vector<S> in(n + static_cast<std::size_t>(P::size));
    for (std::uint32_t i = 0; i < in.size(); ++i) {
        const auto bits = static_cast<std::uint16_t>(i % n);
        std::memcpy(static_cast<void*>(&in[i]), &bits, sizeof(S));
    }
    std::uint32_t wrong = 0;
    for (std::uint32_t i = 0; i < n; ++i) {
        float got[static_cast<std::size_t>(P::size)];
        sluice::simd::widen<Arch>(in.data() + i).store(got);
        for (idx k = 0; k < P::size; ++k) {
            const float want = to_float(in[i + static_cast<std::size_t>(k)]);
            const bool same =
                std::isnan(want) ? std::isnan(got[k])
                                 : std::bit_cast<std::uint32_t>(got[k]) == std::bit_cast<std::uint32_t>(want);
            wrong += same ? 0 : 1;
        }
    }
    return wrong;
}

} // namespace

TEMPLATE_TEST_CASE("widen: what to_float gives, of every pattern of bits", "", sluice::simd::native,
                   sluice::simd::scalar) {
    CHECK(widened_wrongly<TestType, bf16>(65536) == 0);
    CHECK(widened_wrongly<TestType, half>(65536) == 0);
    CHECK(widened_wrongly<TestType, sluice::f8_e4m3>(256) == 0);
    CHECK(widened_wrongly<TestType, sluice::f8_e8m0>(256) == 0);
    CHECK(widened_wrongly<TestType, std::int8_t>(256) == 0);
}
