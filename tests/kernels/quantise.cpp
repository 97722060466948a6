// Rows as bytes against their definition.
#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/random_data.hpp"

#include <sluice/kernels/quantise.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

using namespace sluice;
using namespace sluice::test;
using kernels::byte_row_layout;

namespace {

struct quantised_row {
    template <class Arch>
    quantised_row(Arch, const std::vector<float>& x, idx group, int zero)
        : layout{static_cast<idx>(x.size()), group}, bytes(layout.bytes()) {
        page_end<float> copy(layout.cols);
        std::copy(x.begin(), x.end(), copy.data());
        simd::invoke(Arch{}, kernels::quantise_row{}, static_cast<const float*>(copy.data()), layout, zero,
                     bytes.data());
    }
    int code(idx i) { return static_cast<std::int8_t>(bytes[i]); }
    template <class T>
    T at(idx offset, idx g) {
        T x;
        std::memcpy(&x, bytes.data() + offset + 4 * g, 4);
        return x;
    }
    float scale(idx g) { return at<float>(layout.scales(), g); }
    std::int32_t start(idx g) { return at<std::int32_t>(layout.starts(), g); }
    float total(idx g) { return at<float>(layout.starts(), g); }

    byte_row_layout layout;
    page_end<std::byte> bytes;
};

} // namespace

TEMPLATE_TEST_CASE("quantise_row: scale, codes and their sums for each group", "", float_native,
                   float_scalar) {
    using Arch = typename TestType::arch;
    for (const idx n : {1, 5, 31, 32, 33, 64, 255, 256, 257, 600})
        for (const idx group : {32, 256}) {
            const auto x = uniform_matrix<float>(1, n, static_cast<std::uint64_t>(n), -3, 2);
            const std::vector<float> row(x.view().row(0), x.view().row(0) + n);
            quantised_row with_zero(Arch{}, row, group, 128), with_min(Arch{}, row, group, 0);
            for (idx g = 0; g < with_zero.layout.groups(); ++g) {
                const idx first = g * group, last = std::min(n, first + group);
                float most = 0;
                for (idx i = first; i < last; ++i)
                    most = std::max(most, std::abs(row[static_cast<std::size_t>(i)]));
                REQUIRE(with_zero.scale(g) == most / 127);
                int sum = 0, largest = 0;
                for (idx i = first; i < last; ++i) {
                    const int q = with_zero.code(i);
                    sum += q;
                    largest = std::max(largest, std::abs(q));
                    // half a step, and the rounding of three operations
                    REQUIRE(std::abs(row[static_cast<std::size_t>(i)] - static_cast<float>(q) * most / 127) <=
                            0.50002F * most / 127);
                }
                REQUIRE(largest == 127);
                REQUIRE(with_zero.start(g) - simd::integer_bits == -128 * sum);
                REQUIRE(with_min.total(g) == with_min.scale(g) * static_cast<float>(sum));
            }
            for (idx i = n; i < round_up(n, 32); ++i) REQUIRE(with_zero.code(i) == 0);
        }
}

TEMPLATE_TEST_CASE("quantise_row: halves go to even codes", "", float_native, float_scalar) {
    quantised_row row(typename TestType::arch{}, {127, 0.5F, 1.5F, -2.5F, -3.5F, -127}, 32, 8);
    for (const auto& [i, code] : {std::pair(0, 127), {1, 0}, {2, 2}, {3, -2}, {4, -4}, {5, -127}})
        CHECK(row.code(i) == code);
}

TEMPLATE_TEST_CASE("quantise_row: rows of zeros, of what is next to it, and of the largest numbers", "",
                   float_native, float_scalar) {
    using Arch = typename TestType::arch;
    for (const float x : {0.0F, -0.0F, 1e-40F, -1e-37F}) {
        quantised_row row(Arch{}, std::vector<float>(40, x), 32, 128);
        CHECK(row.scale(1) == 0);
        CHECK(row.code(39) == 0);
        CHECK(row.start(1) == simd::integer_bits);
    }
    const float most = std::numeric_limits<float>::max();
    quantised_row row(Arch{}, {most, -most, most / 2}, 32, 128);
    CHECK(row.scale(0) == most / 127);
    CHECK(row.code(1) == -127);
    CHECK(row.code(2) == 64);
}

TEMPLATE_TEST_CASE("quantise_row: what is not finite spoils its row", "", float_native, float_scalar) {
    const float inf = std::numeric_limits<float>::infinity();
    for (const float bad : {inf, -inf, std::nanf("")})
        for (const idx at : {0, 31, 63, 64}) {
            std::vector<float> x(65, 1.0F);
            x[static_cast<std::size_t>(at)] = bad;
            quantised_row row(typename TestType::arch{}, x, 32, 128);
            for (idx g = 0; g < 3; ++g) CHECK(std::isnan(row.scale(g)));
        }
}
