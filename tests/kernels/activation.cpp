#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/random_data.hpp"

#include <sluice/kernels/activation.hpp>

#include <cmath>
#include <limits>
#include <numbers>
#include <vector>

using namespace sluice::test;
using sluice::activation;
using sluice::idx;
using sluice::tensor_view;
using sluice::kernels::activation_backward;
using sluice::kernels::activation_forward;

namespace {

double normal_cdf(double x) { return 0.5 * std::erfc(-x / std::numbers::sqrt2); }
double normal_density(double x) { return std::exp(-x * x / 2) / std::sqrt(2 * std::numbers::pi); }
double logistic(double x) { return 1 / (1 + std::exp(-x)); }

expected plain_value(activation kind, double x) {
    if (kind == activation::silu) return {x * logistic(x), std::abs(x)};
    if (kind == activation::gelu) return {x * normal_cdf(x), std::abs(x)};
    if (kind == activation::quick_gelu) return {x * logistic(1.702 * x), std::abs(x) * (1 + std::abs(x))};
    return {x > 0 ? x : 0, std::abs(x)};
}
expected plain_slope(activation kind, double x) {
    const double s = logistic(x);
    if (kind == activation::silu) return {s * (1 + x * (1 - s)), s * (1 + 2 * std::abs(x))};
    if (kind == activation::gelu)
        return {normal_cdf(x) + x * normal_density(x), 1 + std::abs(x) * normal_density(x) * (1 + x * x)};
    if (kind == activation::quick_gelu) {
        const double q = logistic(1.702 * x);
        return {q * (1 + 1.702 * x * (1 - q)), q * (1 + 2 * std::abs(x)) * (1 + std::abs(x))};
    }
    return {x > 0 ? 1.0 : 0.0, 1};
}

template <activation Kind, class T, class Arch>
void check_kind() {
    for (idx n = 1; n <= 67; ++n)
        for (bool gated : {false, true}) {
            // inputs end with their pages
            page_end<T> x(n), up(n), dy(n);
            fill_uniform(x.row(), static_cast<std::uint64_t>(n), -9, 9);
            fill_uniform(up.row(), static_cast<std::uint64_t>(n + 100));
            fill_uniform(dy.row(), static_cast<std::uint64_t>(n + 200));
            padded<T> y(1, n), dx(1, n), dup(1, n);
            const T* gate = gated ? up.data() : nullptr;
            activation_forward<Kind>{}(Arch{}, x.data(), gate, y.data(), n);
            activation_backward<Kind>{}(Arch{}, x.data(), gate, dy.data(), dx.data(),
                                        gated ? dup.data() : nullptr, n);
            oracle want(1, n), want_dx(1, n), want_dup(1, n);
            for (idx j = 0; j < n; ++j) {
                const double u = gated ? static_cast<double>(up[j]) : 1, d = static_cast<double>(dy[j]);
                const expected value = plain_value(Kind, static_cast<double>(x[j]));
                const expected rise = plain_slope(Kind, static_cast<double>(x[j]));
                want(0, j) = {value.value * u, value.size * std::abs(u)};
                want_dx(0, j) = {d * u * rise.value, std::abs(d * u) * rise.size};
                want_dup(0, j) = {gated ? d * value.value : 0, std::abs(d) * value.size};
            }
            CAPTURE(n, gated);
            const tolerance few{.nmse = n < 8 ? 1e-6 : 0, .may_be_dull = n < 8 || Kind == activation::relu};
            REQUIRE(compare(y.view(), want, few) == "");
            REQUIRE(compare(dx.view(), want_dx, few) == "");
            REQUIRE(compare(dup.view(), want_dup,
                            {.nmse = few.nmse, .may_be_dull = few.may_be_dull || !gated}) == "");
            REQUIRE(y.touched() + dx.touched() + dup.touched() == "");
            // in place: y over x and over up, dx over dy and over x, dup over up
            padded<T> over_x(1, n), over_up(1, n), over_dy(1, n);
            copy(x.row(), over_x.view());
            copy(up.row(), over_up.view());
            copy(dy.row(), over_dy.view());
            activation_forward<Kind>{}(Arch{}, over_x.data(), gate, over_x.data(), n);
            REQUIRE(different_bits(over_x.view(), y.view()) == "");
            if (gated) {
                activation_forward<Kind>{}(Arch{}, x.data(), over_up.data(), over_up.data(), n);
                REQUIRE(different_bits(over_up.view(), y.view()) == "");
                copy(up.row(), over_up.view());
            }
            T* dup_in_place = gated ? over_up.data() : nullptr;
            activation_backward<Kind>{}(Arch{}, x.data(), dup_in_place, over_dy.data(), over_dy.data(),
                                        dup_in_place, n);
            REQUIRE(different_bits(over_dy.view(), dx.view()) == "");
            if (gated) REQUIRE(different_bits(over_up.view(), dup.view()) == "");
            copy(x.row(), over_x.view());
            activation_backward<Kind>{}(Arch{}, over_x.data(), gate, dy.data(), over_x.data(),
                                        gated ? dup.data() : nullptr, n);
            REQUIRE(different_bits(over_x.view(), dx.view()) == "");
        }
}

// At x, and its neighbours in the register at 1: f(x).
template <activation Kind, class T, class Arch>
T value_at(T x) {
    std::vector<T> in(17, T(1)), out(17);
    in[3] = x;
    activation_forward<Kind>{}(Arch{}, in.data(), static_cast<const T*>(nullptr), out.data(), 17);
    REQUIRE(out[0] == out[4]);
    REQUIRE(std::isfinite(out[4]));
    return out[3];
}
template <activation Kind, class T, class Arch>
T slope_at(T x) {
    std::vector<T> in(17, T(1)), ones(17, T(1)), out(17);
    in[3] = x;
    activation_backward<Kind>{}(Arch{}, in.data(), static_cast<const T*>(nullptr), ones.data(), out.data(),
                                static_cast<T*>(nullptr), 17);
    REQUIRE(out[0] == out[4]);
    REQUIRE(std::isfinite(out[4]));
    return out[3];
}

template <activation Kind, class T, class Arch>
void check_extremes() {
    const T nan = std::numeric_limits<T>::quiet_NaN(), inf = std::numeric_limits<T>::infinity();
    CHECK(value_at<Kind, T, Arch>(0) == 0);
    CHECK(std::isnan(value_at<Kind, T, Arch>(nan)));
    CHECK(value_at<Kind, T, Arch>(inf) == inf);
    CHECK(value_at<Kind, T, Arch>(-inf) == 0);
    CHECK(slope_at<Kind, T, Arch>(inf) == 1);
    CHECK(slope_at<Kind, T, Arch>(-inf) == 0);
    for (T far : {T(40), T(100), T(1000), T(1e18)}) {
        const T rounding = Kind == activation::quick_gelu ? 2 * std::numeric_limits<T>::epsilon() * far : 0;
        CHECK(std::abs(value_at<Kind, T, Arch>(far) - far) <= rounding);
        CHECK(std::abs(value_at<Kind, T, Arch>(-far)) < T(1e-11));
        CHECK(std::abs(slope_at<Kind, T, Arch>(far) - 1) <= std::numeric_limits<T>::epsilon());
        CHECK(std::abs(slope_at<Kind, T, Arch>(-far)) < T(1e-11));
    }
}

} // namespace

TEMPLATE_TEST_CASE("activation: SiLU forward and backward, alone and gated, all tails", "", float_native,
                   float_scalar, double_native, double_scalar) {
    check_kind<activation::silu, typename TestType::scalar, typename TestType::arch>();
}

TEMPLATE_TEST_CASE("activation: GELU forward and backward, alone and gated, all tails", "", float_native,
                   float_scalar, double_native, double_scalar) {
    check_kind<activation::gelu, typename TestType::scalar, typename TestType::arch>();
}

TEMPLATE_TEST_CASE("activation: ReLU forward and backward, alone and gated, all tails", "", float_native,
                   float_scalar, double_native, double_scalar) {
    check_kind<activation::relu, typename TestType::scalar, typename TestType::arch>();
}

TEMPLATE_TEST_CASE("activation: quick GELU forward and backward, alone and gated, all tails", "",
                   float_native, float_scalar, double_native, double_scalar) {
    check_kind<activation::quick_gelu, typename TestType::scalar, typename TestType::arch>();
}

TEMPLATE_TEST_CASE("activation: a pair with a clamp and an offset", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    const T nan = std::numeric_limits<T>::quiet_NaN();
    constexpr idx n = 43;
    const sluice::glu_form form{.clamp = 1.5, .offset = 0.75};
    padded<T> x(1, n), up(1, n), dy(1, n), y(1, n), dx(1, n), dup(1, n);
    fill_uniform(x.view(), 1, -3, 3);
    fill_uniform(up.view(), 2, -3, 3);
    fill_uniform(dy.view(), 3);
    x(0, 5) = T(1.5); // at the bounds themselves the gradient passes
    up(0, 6) = T(1.5);
    up(0, 7) = T(-1.5);
    activation_forward<activation::silu>{}(Arch{}, x.data(), up.data(), y.data(), n, form);
    activation_backward<activation::silu>{}(Arch{}, x.data(), up.data(), dy.data(), dx.data(), dup.data(), n,
                                            form);
    oracle want(1, n), want_dx(1, n), want_dup(1, n);
    for (idx j = 0; j < n; ++j) {
        const auto g = static_cast<double>(x(0, j)), u = static_cast<double>(up(0, j)),
                   d = static_cast<double>(dy(0, j));
        const expected value = plain_value(activation::silu, std::min(g, 1.5)),
                       rise = plain_slope(activation::silu, g);
        const double linear = std::clamp(u, -1.5, 1.5) + 0.75;
        want(0, j) = {value.value * linear, 4 * value.size};
        want_dx(0, j) = {g > 1.5 ? 0 : d * linear * rise.value, 4 * rise.size};
        want_dup(0, j) = {std::abs(u) > 1.5 ? 0 : d * value.value, value.size};
    }
    CHECK(compare(y.view(), want) == "");
    CHECK(compare(dx.view(), want_dx) == "");
    CHECK(compare(dup.view(), want_dup) == "");
    CHECK(y.touched() + dx.touched() + dup.touched() == "");
    x(0, 0) = up(0, 1) = nan;
    activation_forward<activation::silu>{}(Arch{}, x.data(), up.data(), y.data(), n, form);
    CHECK(std::isnan(y(0, 0)));
    CHECK(std::isnan(y(0, 1)));
}

TEMPLATE_TEST_CASE("activation: far arguments and special values", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    check_extremes<activation::silu, T, Arch>();
    check_extremes<activation::gelu, T, Arch>();
    check_extremes<activation::relu, T, Arch>();
    check_extremes<activation::quick_gelu, T, Arch>();
    CHECK(slope_at<activation::relu, T, Arch>(0) == 0);
    CHECK(slope_at<activation::silu, T, Arch>(0) == T(0.5));
    CHECK(slope_at<activation::gelu, T, Arch>(0) == T(0.5));
    CHECK(std::isnan(slope_at<activation::silu, T, Arch>(std::numeric_limits<T>::quiet_NaN())));
    CHECK(std::isnan(slope_at<activation::gelu, T, Arch>(std::numeric_limits<T>::quiet_NaN())));
}

TEMPLATE_TEST_CASE("activation: GELU is exact, not the approximation by tanh", "", float_native,
                   double_scalar) {
    using T = typename TestType::scalar;
    // they differ by 4.7e-4 at 2.7
    const T y = value_at<activation::gelu, T, typename TestType::arch>(T(2.7));
    CHECK(compare_number(y, 2.7 * normal_cdf(2.7), 1e-6) == "");
}
