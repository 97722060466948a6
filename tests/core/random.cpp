#include "support/catch.hpp"

#include <sluice/core/random.hpp>

#include <array>
#include <cmath>
#include <set>
#include <vector>

using sluice::idx;
using sluice::random_source;
using block = std::array<std::uint32_t, 4>;

static_assert(std::is_trivially_copyable_v<random_source>);

TEST_CASE("Philox gives the known answers of its authors") {
    const std::uint64_t ones = ~std::uint64_t{0};
    CHECK(random_source::philox(0, 0, 0) == block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
    CHECK(random_source::philox(ones, ones, ones) == block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
    // Words in the order of the published table, the first the lowest.
    CHECK(random_source::philox(0x85a308d3243f6a88, 0x0370734413198a2e, 0x299f31d0a4093822) ==
          block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("bits are the words of successive blocks") {
    const random_source r(0);
    CHECK(r.bits(0) == 0x6627e8d5);
    CHECK(r.bits(1) == 0xe169c58d);
    CHECK(r.bits(3) == 0x9b00dbd8);
    for (idx i = 0; i < 40; ++i)
        CHECK(r.bits(i) == random_source::philox(static_cast<std::uint64_t>(i) / 4, 0,
                                                 0)[static_cast<std::size_t>(i % 4)]);
}

TEST_CASE("the same key draws the same numbers in every order") {
    const random_source a(42), b(42), other(43);
    int equal = 0;
    for (idx i = 999; i >= 0; --i) {
        CHECK(a.bits(i) == b.bits(i));
        equal += a.bits(i) == other.bits(i);
    }
    CHECK(equal <= 1);
}

TEST_CASE("split gives different repeatable generators") {
    const random_source r(7);
    std::set<std::uint32_t> firsts{r.bits(0)};
    for (std::uint64_t stream = 0; stream < 100; ++stream) {
        CHECK(r.split(stream).bits(5) == r.split(stream).bits(5));
        firsts.insert(r.split(stream).bits(0));
    }
    CHECK(firsts.size() == 101);
    CHECK(r.split(1).split(2).bits(0) != r.split(2).split(1).bits(0));
    CHECK(random_source(8).split(1).bits(0) != r.split(1).bits(0));
}

TEST_CASE("uniform numbers are in range of 24 bits and evenly spread") {
    const random_source r(1);
    std::array<int, 16> counts{};
    double sum = 0;
    constexpr idx n = 64000;
    for (idx i = 0; i < n; ++i) {
        const double u = r.uniform(i);
        REQUIRE((u >= 0 && u < 1));
        REQUIRE(u == std::floor(u * 0x1p24) * 0x1p-24);
        REQUIRE(static_cast<double>(static_cast<float>(u)) == u);
        sum += u;
        ++counts[static_cast<std::size_t>(u * 16)];
    }
    CHECK(std::abs(sum / n - 0.5) < 5 * 0.2887 / std::sqrt(n));
    for (int c : counts) CHECK(std::abs(c - n / 16) < 5 * 62); // 62: standard deviation of a count
}

TEST_CASE("normal numbers have the moments of the standard normal") {
    const random_source r(2);
    constexpr idx n = 100000;
    double s1 = 0, s2 = 0, s3 = 0, s4 = 0;
    int beyond = 0;
    for (idx i = 0; i < n; ++i) {
        const double z = r.normal(i);
        REQUIRE(std::isfinite(z));
        s1 += z, s2 += z * z, s3 += z * z * z, s4 += z * z * z * z;
        beyond += std::abs(z) > 1.959964;
    }
    const double root = std::sqrt(n);
    CHECK(std::abs(s1 / n) < 5 / root);
    CHECK(std::abs(s2 / n - 1) < 5 * std::sqrt(2.0) / root);
    CHECK(std::abs(s3 / n) < 5 * std::sqrt(15.0) / root);
    CHECK(std::abs(s4 / n - 3) < 5 * std::sqrt(96.0) / root);
    CHECK(std::abs(beyond - 0.05 * n) < 5 * std::sqrt(0.05 * 0.95 * n));
}

TEST_CASE("neighbouring numbers are not correlated") {
    const random_source r(3);
    constexpr idx n = 50000;
    for (idx lag : {1, 2, 4}) {
        double sum = 0;
        for (idx i = 0; i < n; ++i) sum += r.normal(i) * r.normal(i + lag);
        CHECK(std::abs(sum / n) < 5 / std::sqrt(n));
    }
}

TEST_CASE("fill_normal draws by element whatever the stride") {
    std::vector<float> packed(12), strided(3 * 9, -7.0F);
    const random_source r(11);
    sluice::fill_normal(sluice::tensor_view<float>(packed.data(), 3, 4), 0.02, r);
    sluice::fill_normal(sluice::tensor_view<float>(strided.data(), 3, 4, 9), 0.02, r);
    for (idx i = 0; i < 3; ++i)
        for (idx j = 0; j < 9; ++j) {
            const float value = strided[static_cast<std::size_t>(9 * i + j)];
            if (j < 4) {
                CHECK(value == packed[static_cast<std::size_t>(4 * i + j)]);
                CHECK(value == static_cast<float>(0.02 * r.normal(4 * i + j)));
            } else {
                CHECK(value == -7.0F);
            }
        }
    CHECK_NOTHROW(sluice::fill_normal(sluice::tensor_view<float>(), 1.0, r));
}
