#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/float_modes.hpp"
#include "support/random_data.hpp"

#include <sluice/simd/math.hpp>

#include <bit>
#include <cmath>
#include <limits>
#include <numbers>
#include <vector>

using namespace sluice::test;
using sluice::idx;
using sluice::simd::pack;

namespace {

// Of a float a double says enough; of a double only something longer does.
template <class T>
using wide = std::conditional_t<sizeof(T) == 4, double, long double>;

// The distance of y from r in units of the last place of `size`; everything below the smallest normal counts
// as that.
template <class T>
double ulps(T y, wide<T> r, wide<T> size) {
    const wide<T> least = std::max(std::abs(size), wide<T>(std::numeric_limits<T>::min()));
    const wide<T> last_place = std::ldexp(wide<T>(1), std::ilogb(least) - std::numeric_limits<T>::digits + 1);
    return static_cast<double>(std::abs(wide<T>(y) - r) / last_place);
}
template <class T>
double ulps(T y, wide<T> r) {
    return ulps<T>(y, r, r);
}

// Every 1021st of all floats. Of doubles as many of each exponent as fit in the time, four times as many
// where the functions are not yet at their limits.
template <class T>
T nth_number(std::uint64_t i) {
    if constexpr (sizeof(T) == 4) return std::bit_cast<float>(static_cast<std::uint32_t>(i * 1021));
    const std::uint64_t fraction = i * 0x9E3779B97F4A7C15U >> 12, sign = i & 1U;
    const std::uint64_t exponent = i % 5 == 0 ? i / 2 % 2048 : 1023 - 40 + i / 2 % 50;
    return static_cast<T>(std::bit_cast<double>(sign << 63 | exponent << 52 | fraction));
}
template <class T>
constexpr std::uint64_t n_numbers = sizeof(T) == 4 ? (std::uint64_t{1} << 32) / 1021 : 400'000;

struct claim {
    double ulp;            // the largest error
    double zero_below = 0; // results of this magnitude may be zero
    double tail = 0;       // times x^2 for negative x: added to ulp
};

// "" if f keeps what is claimed, for all kinds of numbers, infinities and NaN among them. `size(x, r)` is the
// number whose last place counts.
template <class P, class F, class R, class S>
std::string broken_claim(F&& f, R&& reference, claim c, S&& size) {
    using T = typename P::value_type;
    constexpr auto lanes = static_cast<std::size_t>(P::size);
    T x[lanes], y[lanes];
    double worst = 0;
    for (std::uint64_t i = 0; i + lanes <= n_numbers<T>; i += lanes) {
        for (std::size_t j = 0; j < lanes; ++j) x[j] = nth_number<T>(i + j);
        f(P::load(x)).store(y);
        for (std::size_t j = 0; j < lanes; ++j) {
            const wide<T> r = reference(static_cast<wide<T>>(x[j]));
            auto text = [&] { return number_text(x[j]) + " gives " + number_text(y[j]); };
            if (std::isnan(r) || std::isnan(y[j])) {
                if (std::isnan(r) != std::isnan(y[j])) return text();
            } else if (std::isinf(y[j])) {
                if (!(r * y[j] > 0 && std::abs(r) > static_cast<wide<T>>(std::numeric_limits<T>::max())))
                    return text();
            } else if (y[j] != 0 || !(static_cast<double>(std::abs(r)) < c.zero_below)) {
                const auto at = static_cast<double>(x[j]);
                const double allowed = c.tail > 0 && at < 0 ? c.ulp + c.tail * at * at : c.ulp;
                const double error = ulps<T>(y[j], r, size(static_cast<wide<T>>(x[j]), r));
                if (!(error <= allowed)) return text() + ", " + number_text(error) + " ulp off";
                worst = std::max(worst, error);
            }
        }
    }
    return worst > c.ulp / 3 ? "" : "meaningless: the largest error is " + number_text(worst);
}
template <class P, class F, class R>
std::string broken_claim(F&& f, R&& reference, claim c) {
    return broken_claim<P>(f, reference, c, [](auto, auto r) { return r; });
}

template <class P, class F>
typename P::value_type at(F&& f, typename P::value_type x) {
    typename P::value_type out[static_cast<std::size_t>(P::size)];
    f(P(x)).store(out);
    return out[P::size - 1];
}

template <class T>
constexpr double smallest_normal = static_cast<double>(std::numeric_limits<T>::min());

template <class W>
W plain_sigmoid(W x) {
    return 1 / (1 + std::exp(-x));
}
template <class W>
W plain_cdf(W x) {
    const W z = -x / std::numbers::sqrt2_v<W>, cdf = std::erfc(z) / 2;
    if (x > 0 || cdf == 0) return cdf;
    // what rounding z did to z^2, and so to e^(-z^2)
    const W square = z * z, twice = x * x;
    return cdf * (1 + (square - twice / 2) + (std::fma(z, z, -square) - std::fma(x, x, -twice) / 2));
}
template <class W>
W plain_density(W x) {
    return std::exp(-x * x / 2) * std::numbers::inv_sqrtpi_v<W> / std::numbers::sqrt2_v<W>;
}
// x p(x) for a p that falls to zero faster than x grows.
template <class W>
W times(W x, W p) {
    return p == 0 ? 0 : x * p;
}

#if defined(__FMA__) || defined(__AVX512F__) || defined(__ARM_FEATURE_FMA)
constexpr double tail_without_fma = 0;
#else
constexpr double tail_without_fma = 0.5;
#endif

} // namespace

TEMPLATE_TEST_CASE("math: exp", "", float_native, float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    using P = pack<T, typename TestType::arch>;
    auto exact = [](wide<T> x) { return std::exp(x); };
    CHECK(broken_claim<P>([](P x) { return exp(x); }, exact, {1.25, smallest_normal<T>}) == "");
    CHECK(broken_claim<P>([](P x) { return exp_nonpositive(select(P(T(0)) < x, -x, x)); },
                          [&](wide<T> x) { return exact(-std::abs(x)); }, {1.25, smallest_normal<T>}) == "");
    CHECK(at<P>([](P x) { return exp(x); }, T(0)) == 1);
    CHECK(at<P>([](P x) { return exp(x); }, -T(0)) == 1);
}

TEMPLATE_TEST_CASE("math: exp at the ends of its range and beyond", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using P = pack<T, typename TestType::arch>;
    using limits = std::numeric_limits<T>;
    auto f = [](P x) { return exp(x); };
    CHECK(std::isnan(at<P>(f, limits::quiet_NaN())));
    CHECK(std::isnan(at<P>(f, -limits::quiet_NaN())));
    // a NaN keeps being one whatever its payload, whose low bits are where exp expects an exponent
    using bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
    for (bits payload : {1U, 2U, 0x1FFU, 0x7FFU, 0xFFFU})
        CHECK(std::isnan(at<P>(f, std::bit_cast<T>(std::bit_cast<bits>(limits::quiet_NaN()) + payload))));
    CHECK(at<P>(f, limits::infinity()) == limits::infinity());
    CHECK(at<P>(f, -limits::infinity()) == 0);
    for (T huge : {T(89), T(1000), T(1e30), limits::max()}) {
        const bool finite = sizeof(T) == 8 && huge < 700;
        CHECK(std::isinf(at<P>(f, huge)) == !finite);
        CHECK((at<P>(f, -huge) == 0) == !finite);
    }
    // the last argument with a finite result, and the first without
    const T last = static_cast<T>(std::log(static_cast<wide<T>>(limits::max())));
    T below = last, above = last;
    while (std::exp(static_cast<wide<T>>(below)) > static_cast<wide<T>>(limits::max()))
        below = std::nextafter(below, T(0));
    above = std::nextafter(below, limits::infinity());
    CHECK(std::isfinite(at<P>(f, below)));
    CHECK(ulps<T>(at<P>(f, below), std::exp(static_cast<wide<T>>(below))) < 2);
    CHECK(std::isinf(at<P>(f, above)));
    // the same for the smallest normal number; what would be subnormal is zero
    T first = static_cast<T>(std::log(static_cast<wide<T>>(limits::min())));
    while (std::exp(static_cast<wide<T>>(first)) < static_cast<wide<T>>(limits::min()))
        first = std::nextafter(first, T(0));
    CHECK(ulps<T>(at<P>(f, first), std::exp(static_cast<wide<T>>(first))) < 2);
    CHECK(at<P>(f, std::nextafter(first, -limits::infinity())) == 0);
    // around both ends, step by step: nothing is negative, NaN or out of order by more than the error
    T x = std::nextafter(first, -limits::infinity());
    for (int i = 0; i < 2000; ++i, x = std::nextafter(x, T(0))) {
        const wide<T> r = std::exp(static_cast<wide<T>>(x));
        const T y = at<P>(f, x);
        if (r < static_cast<wide<T>>(limits::min()) ? y != 0 : !(ulps<T>(y, r) < 2))
            FAIL("x " << number_text(x));
    }
    x = above;
    for (int i = 0; i < 2000; ++i, x = std::nextafter(x, T(0))) {
        const wide<T> r = std::exp(static_cast<wide<T>>(x));
        const T y = at<P>(f, x);
        if (r > static_cast<wide<T>>(limits::max()) ? !std::isinf(y) : !(ulps<T>(y, r) < 2))
            FAIL("x " << number_text(x));
    }
}

TEMPLATE_TEST_CASE("math: special values stay in their lane", "", float_native, float_scalar, double_native,
                   double_scalar) {
    using T = typename TestType::scalar;
    using P = pack<T, typename TestType::arch>;
    const T special[] = {std::numeric_limits<T>::quiet_NaN(), std::numeric_limits<T>::infinity(),
                         -std::numeric_limits<T>::infinity(), T(1e30), T(-1e30)};
    for (idx place = 0; place < P::size; ++place)
        for (T value : special) {
            T x[static_cast<std::size_t>(P::size)], y[static_cast<std::size_t>(P::size)];
            std::fill_n(x, P::size, T(0.5));
            x[place] = value;
            auto others_are = [&](P result, T want) {
                result.store(y);
                bool good = true;
                for (idx i = 0; i < P::size; ++i) good = good && (i == place || y[i] == want);
                return good;
            };
            const P p = P::load(x);
            auto stays = [&](auto&& f) { return others_are(f(p), at<P>(f, T(0.5))); };
            CHECK(stays([](P v) { return exp(v); }));
            CHECK(stays([](P v) { return sigmoid(v); }));
            CHECK(stays([](P v) { return silu(v); }));
            CHECK(stays([](P v) { return silu_slope(v); }));
            CHECK(stays([](P v) { return gelu(v); }));
            CHECK(stays([](P v) { return gelu_slope(v); }));
            CHECK(stays([](P v) { return tanh(v); }));
            CHECK(stays([](P v) { return erf(v); }));
            CHECK(stays([](P v) { return rsqrt(v); }));
        }
}

TEMPLATE_TEST_CASE("math: sigmoid and SiLU", "", float_native, float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    using P = pack<T, typename TestType::arch>;
    auto logistic = [](P x) { return sigmoid(x); };
    auto act = [](P x) { return silu(x); };
    // SiLU is zero where e^x is below the smallest normal number
    const double last = smallest_normal<T> * (sizeof(T) == 4 ? 87.4 : 708.4);
    CHECK(broken_claim<P>(logistic, plain_sigmoid<wide<T>>, {2.5, smallest_normal<T>}) == "");
    CHECK(broken_claim<P>(act, [](wide<T> x) { return times(x, plain_sigmoid(x)); }, {2.5, last}) == "");
    const T infinity = std::numeric_limits<T>::infinity();
    CHECK(at<P>(logistic, T(0)) == T(0.5));
    CHECK(at<P>(logistic, infinity) == 1);
    CHECK(at<P>(logistic, -infinity) == 0);
    CHECK(at<P>(act, infinity) == infinity);
    CHECK(at<P>(act, -infinity) == 0);
    CHECK(std::signbit(at<P>(act, -T(0))));
    CHECK_FALSE(std::signbit(at<P>(act, T(0))));
}

TEMPLATE_TEST_CASE("math: softplus", "", float_native, float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    using P = pack<T, typename TestType::arch>;
    auto f = [](P x) { return softplus(x); };
    auto exact = [](wide<T> x) { return std::max(x, wide<T>(0)) + std::log1p(std::exp(-std::abs(x))); };
    CHECK(broken_claim<P>(f, exact, {4, smallest_normal<T>}) == "");
    const T infinity = std::numeric_limits<T>::infinity();
    CHECK(at<P>(f, infinity) == infinity);
    CHECK(at<P>(f, -infinity) == 0);
    CHECK(std::isnan(at<P>(f, std::numeric_limits<T>::quiet_NaN())));
    CHECK(compare_number(at<P>(f, T(0)), std::numbers::ln2, unit_roundoff<T>) == "");
}

TEMPLATE_TEST_CASE("math: GELU", "", float_native, float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    using P = pack<T, typename TestType::arch>;
    auto act = [](P x) { return gelu(x); };
    CHECK(broken_claim<P>(act, [](wide<T> x) { return times(x, plain_cdf(x)); },
                          {5.5, smallest_normal<T>, tail_without_fma}) == "");
    const T infinity = std::numeric_limits<T>::infinity();
    CHECK(at<P>(act, infinity) == infinity);
    CHECK(at<P>(act, -infinity) == 0);
    CHECK(std::signbit(at<P>(act, -T(0))));
    CHECK_FALSE(std::signbit(at<P>(act, T(0))));
}

TEMPLATE_TEST_CASE("math: the slopes of SiLU and GELU", "", float_native, float_scalar, double_native,
                   double_scalar) {
    using T = typename TestType::scalar;
    using P = pack<T, typename TestType::arch>;
    using W = wide<T>;
    const double last = smallest_normal<T> * (sizeof(T) == 4 ? 87.4 : 708.4);
    auto second_of_silu = [](W x) { return times(x, plain_sigmoid(x) * plain_sigmoid(-x)); };
    CHECK(broken_claim<P>([](P x) { return silu_slope(x); },
                          [&](W x) { return plain_sigmoid(x) + second_of_silu(x); }, {4, last},
                          [&](W x, W) { return std::max(plain_sigmoid(x), std::abs(second_of_silu(x))); }) ==
          "");
    auto second_of_gelu = [](W x) { return times(x, plain_density(x)); };
    CHECK(broken_claim<P>([](P x) { return gelu_slope(x); },
                          [&](W x) { return plain_cdf(x) + second_of_gelu(x); },
                          {5, 40 * smallest_normal<T>, tail_without_fma},
                          [&](W x, W) { return std::max(plain_cdf(x), std::abs(second_of_gelu(x))); }) == "");
    CHECK(at<P>([](P x) { return silu_slope(x); }, T(0)) == T(0.5));
    CHECK(at<P>([](P x) { return gelu_slope(x); }, T(0)) == T(0.5));
}

TEMPLATE_TEST_CASE("math: tanh and erf", "", float_native, float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    using P = pack<T, typename TestType::arch>;
    auto hyperbolic = [](P x) { return tanh(x); };
    auto error = [](P x) { return erf(x); };
    CHECK(broken_claim<P>(hyperbolic, [](wide<T> x) { return std::tanh(x); }, {2.5}) == "");
    CHECK(broken_claim<P>(error, [](wide<T> x) { return std::erf(x); }, {2.5}) == "");
    for (T x : {T(1e-30), T(0.01), T(0.4), T(0.9), T(1.1), T(3), T(30), std::numeric_limits<T>::infinity()}) {
        CHECK(at<P>(hyperbolic, -x) == -at<P>(hyperbolic, x));
        CHECK(at<P>(error, -x) == -at<P>(error, x));
    }
    CHECK(std::signbit(at<P>(hyperbolic, -T(0))));
    CHECK(std::signbit(at<P>(error, -T(0))));
}

TEMPLATE_TEST_CASE("math: rsqrt", "", float_native, float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    using P = pack<T, typename TestType::arch>;
    auto f = [](P x) { return rsqrt(x); };
    CHECK(broken_claim<P>(f, [](wide<T> x) { return 1 / std::sqrt(x); }, {1.5}) == "");
    CHECK(at<P>(f, std::numeric_limits<T>::infinity()) == 0);
    CHECK(at<P>(f, T(0)) == std::numeric_limits<T>::infinity());
    CHECK(at<P>(f, -T(0)) == -std::numeric_limits<T>::infinity());
}

// Errors in units of the last place of the result, or of 1 where that is larger.
TEMPLATE_TEST_CASE("math: in other floating-point modes", "", float_native, float_scalar, double_native,
                   double_scalar) {
    using T = typename TestType::scalar;
    using P = pack<T, typename TestType::arch>;
    using W = wide<T>;
    constexpr auto lanes = static_cast<std::size_t>(P::size);
    constexpr T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
    T x[lanes], y[lanes];
    auto check = [&](const std::string& name, auto&& f, auto&& reference, T at_zero, T at_infinity,
                     T at_minus_infinity) {
        for (const auto& mode : float_modes) {
            INFO(name << ", " << mode.name);
            auto run = [&] { in_float_mode(mode, [&] { f(P::load(x)).store(y); }); };
            for (const auto& [from, to] :
                 {std::pair<T, T>{0, at_zero}, {inf, at_infinity}, {-inf, at_minus_infinity}, {nan, nan}}) {
                std::fill_n(x, lanes, from);
                run();
                for (T v : y)
                    if (!(v == to || std::abs(v - to) < T(1e-6) || (std::isnan(v) && std::isnan(to))))
                        FAIL(number_text(from) << " gives " << number_text(v));
            }
            double worst = 0;
            for (std::uint64_t i = 0; i + lanes <= n_numbers<T> / 40; i += lanes) {
                for (std::size_t j = 0; j < lanes; ++j) x[j] = nth_number<T>(i * 37 + j);
                run();
                for (std::size_t j = 0; j < lanes; ++j) {
                    const W r = reference(static_cast<W>(x[j]));
                    if (std::fpclassify(x[j]) == FP_SUBNORMAL ||
                        std::abs(r) > W(std::numeric_limits<T>::max()))
                        continue;
                    if (std::isnan(r) != std::isnan(y[j]))
                        FAIL(number_text(x[j]) << " gives " << number_text(y[j]));
                    if (std::isfinite(r))
                        worst = std::max(worst, ulps<T>(y[j], r, std::max(std::abs(r), W(1))));
                }
            }
            CHECK(worst < (mode.rounding == FE_TONEAREST ? 4 : sizeof(T) == 4 ? 200 : 600));
        }
    };
    check(
        "exp", [](P v) { return exp(v); }, [](W v) { return std::exp(v); }, 1, inf, 0);
    check(
        "sigmoid", [](P v) { return sigmoid(v); }, plain_sigmoid<W>, T(0.5), 1, 0);
    check(
        "silu", [](P v) { return silu(v); }, [](W v) { return times(v, plain_sigmoid(v)); }, 0, inf, 0);
    check(
        "gelu", [](P v) { return gelu(v); }, [](W v) { return times(v, plain_cdf(v)); }, 0, inf, 0);
    check(
        "tanh", [](P v) { return tanh(v); }, [](W v) { return std::tanh(v); }, 0, 1, -1);
    check(
        "erf", [](P v) { return erf(v); }, [](W v) { return std::erf(v); }, 0, 1, -1);
    check(
        "rsqrt", [](P v) { return rsqrt(v); }, [](W v) { return 1 / std::sqrt(v); }, inf, 0, nan);
}
