#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/random_data.hpp"

#include <sluice/kernels/elementwise.hpp>

#include <cmath>
#include <limits>

using namespace sluice::test;
using sluice::idx;
using sluice::tensor_view;
using sluice::kernels::add_elements;
using sluice::kernels::sum_squares;

TEMPLATE_TEST_CASE("add_elements: exact sums for all tails, in place too", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    const typename TestType::arch arch;
    for (idx n = 0; n <= 67; ++n) {
        page_end<T> a(n), b(n);
        fill_uniform(a.row(), static_cast<std::uint64_t>(n));
        fill_uniform(b.row(), static_cast<std::uint64_t>(n + 100));
        padded<T> y(1, n), want(1, n);
        for (idx j = 0; j < n; ++j) want(0, j) = a[j] + b[j];
        add_elements{}(arch, a.data(), b.data(), y.data(), n);
        CAPTURE(n);
        REQUIRE(different_bits(y.view(), want.view()) == "");
        copy(a.row(), y.view());
        add_elements{}(arch, y.data(), b.data(), y.data(), n);
        REQUIRE(different_bits(y.view(), want.view()) == "");
        copy(b.row(), y.view());
        add_elements{}(arch, a.data(), y.data(), y.data(), n);
        REQUIRE(different_bits(y.view(), want.view()) == "");
        REQUIRE(y.touched() == "");
    }
}

TEMPLATE_TEST_CASE("sum_squares: the sum in double, the same bits for every arch", "", float_native,
                   float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    for (idx n = 0; n <= 300; n += n < 40 ? 1 : 37) {
        page_end<T> x(n);
        fill_uniform(x.row(), static_cast<std::uint64_t>(n), -3, 3);
        double plain = 0, got = -1, scalar = -2;
        for (idx j = 0; j < n; ++j) plain += static_cast<double>(x[j]) * static_cast<double>(x[j]);
        sum_squares{}(typename TestType::arch{}, x.data(), n, &got);
        sum_squares{}(sluice::simd::scalar{}, x.data(), n, &scalar);
        CAPTURE(n);
        REQUIRE(compare_number(got, plain, 1e-14 * plain) == "");
        REQUIRE(got == scalar);
    }
    // what a sum in float would lose or overflow
    const T large[] = {T(1e4), T(1e-1), T(1e-1), T(1e30)};
    double sum = 0;
    sum_squares{}(typename TestType::arch{}, large, 2, &sum);
    CHECK(sum > 1e8);
    sum_squares{}(typename TestType::arch{}, large, 4, &sum);
    CHECK(std::isfinite(sum));
}

TEMPLATE_TEST_CASE("scale_elements and add_scaled: all tails, in place too", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    const typename TestType::arch arch;
    for (idx n = 0; n <= 67; ++n) {
        page_end<T> a(n);
        fill_integers(a.row(), static_cast<std::uint64_t>(n));
        padded<T> y(1, n), sum(1, n), want(1, n), want_sum(1, n);
        fill_integers(sum.view(), 5);
        for (idx j = 0; j < n; ++j) want(0, j) = a[j] * T(2.5);
        for (idx j = 0; j < n; ++j) want_sum(0, j) = sum(0, j) + a[j] * T(2.5);
        sluice::kernels::scale_elements{}(arch, static_cast<const T*>(a.data()), T(2.5), y.data(), n);
        sluice::kernels::add_scaled{}(arch, static_cast<const T*>(a.data()), T(2.5), sum.data(), n);
        sluice::kernels::scale_elements{}(arch, static_cast<const T*>(a.data()), T(2.5), a.data(), n);
        CAPTURE(n);
        REQUIRE(different_bits(y.view(), want.view()) == "");
        REQUIRE(different_bits(tensor_view<const T>(a.row()), tensor_view<const T>(want.view())) == "");
        REQUIRE(different_bits(sum.view(), want_sum.view()) == "");
        REQUIRE(y.touched() + sum.touched() == "");
    }
}
