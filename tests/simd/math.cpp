#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/random_data.hpp"

#include <sluice/simd/math.hpp>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

using namespace sluice::test;
using sluice::idx;
using sluice::simd::pack;

namespace {

// Of a float a double says enough; of a double only something longer does.
template <class T>
using wide = std::conditional_t<sizeof(T) == 4, double, long double>;

// The distance of y from r in units of the last place of r; everything below the smallest normal counts as
// that.
template <class T>
double ulps(T y, wide<T> r) {
    const wide<T> size = std::max(std::abs(r), wide<T>(std::numeric_limits<T>::min()));
    const wide<T> last_place = std::ldexp(wide<T>(1), std::ilogb(size) - std::numeric_limits<T>::digits + 1);
    return static_cast<double>(std::abs(wide<T>(y) - r) / last_place);
}

// The largest error of f in [low, high]: evenly spaced and crowded towards zero.
template <class P, class F, class R>
double worst_ulps(F&& f, R&& reference, double low, double high) {
    using T = typename P::value_type;
    constexpr int steps = 40000;
    std::vector<T> x;
    for (int i = 0; i <= steps; ++i) x.push_back(static_cast<T>(low + (high - low) * i / steps));
    for (int i = 1; i < 6000; ++i) {
        const double shrunk = std::exp2(-0.01 * i);
        x.push_back(static_cast<T>(low * shrunk));
        x.push_back(static_cast<T>(high * shrunk));
    }
    while (x.size() % static_cast<std::size_t>(P::size) != 0) x.push_back(T(0));
    double worst = 0;
    std::vector<T> y(x.size());
    for (std::size_t i = 0; i < x.size(); i += static_cast<std::size_t>(P::size))
        f(P::load(&x[i])).store(&y[i]);
    for (std::size_t i = 0; i < x.size(); ++i) {
        const double error = ulps<T>(y[i], reference(static_cast<wide<T>>(x[i])));
        if (!(error <= worst)) worst = error; // NaN too
    }
    return worst;
}

template <class P, class F>
typename P::value_type at(F&& f, typename P::value_type x) {
    typename P::value_type out[static_cast<std::size_t>(P::size)];
    f(P(x)).store(out);
    return out[P::size - 1];
}

} // namespace

TEMPLATE_TEST_CASE("math: exp is right to two units of the last place", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using P = pack<T, typename TestType::arch>;
    auto f = [](P x) { return exp(x); };
    auto reference = [](wide<T> x) { return std::exp(x); };
    const double low = sizeof(T) == 4 ? -87.33654 : -708.39641853;
    const double high = sizeof(T) == 4 ? 88.72283 : 709.78271289;
    const double worst = worst_ulps<P>(f, reference, low, high);
    CAPTURE(worst);
    CHECK(worst < 2);
    CHECK(worst > 0.4); // an error below that would be a mistake of the measurement
    CHECK(at<P>(f, T(0)) == 1);
    CHECK(at<P>(f, -T(0)) == 1);
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
            CHECK(others_are(exp(p), at<P>([](P v) { return exp(v); }, T(0.5))));
            CHECK(others_are(sigmoid(p), at<P>([](P v) { return sigmoid(v); }, T(0.5))));
            CHECK(others_are(tanh(p), at<P>([](P v) { return tanh(v); }, T(0.5))));
            CHECK(others_are(erf(p), at<P>([](P v) { return erf(v); }, T(0.5))));
        }
}

TEMPLATE_TEST_CASE("math: sigmoid", "", float_native, float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    using P = pack<T, typename TestType::arch>;
    auto f = [](P x) { return sigmoid(x); };
    auto reference = [](wide<T> x) { return 1 / (1 + std::exp(-x)); };
    const double worst = worst_ulps<P>(f, reference, -80, 80);
    CAPTURE(worst);
    CHECK(worst < 4);
    CHECK(at<P>(f, T(0)) == T(0.5));
    CHECK(at<P>(f, T(800)) == 1);
    CHECK(at<P>(f, T(-800)) == 0);
    CHECK(at<P>(f, std::numeric_limits<T>::infinity()) == 1);
    CHECK(at<P>(f, -std::numeric_limits<T>::infinity()) == 0);
    CHECK(std::isnan(at<P>(f, std::numeric_limits<T>::quiet_NaN())));
}

TEMPLATE_TEST_CASE("math: tanh", "", float_native, float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    using P = pack<T, typename TestType::arch>;
    auto f = [](P x) { return tanh(x); };
    const double worst = worst_ulps<P>(
        f, [](wide<T> x) { return std::tanh(x); }, -20, 20);
    CAPTURE(worst);
    CHECK(worst < 3);
    for (T far : {T(40), T(1e4), T(1e30), std::numeric_limits<T>::infinity()}) {
        CHECK(at<P>(f, far) == 1);
        CHECK(at<P>(f, -far) == -1);
    }
    CHECK(std::isnan(at<P>(f, std::numeric_limits<T>::quiet_NaN())));
}

TEMPLATE_TEST_CASE("math: erf", "", float_native, float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    using P = pack<T, typename TestType::arch>;
    auto f = [](P x) { return erf(x); };
    const double worst = worst_ulps<P>(
        f, [](wide<T> x) { return std::erf(x); }, -8, 8);
    CAPTURE(worst);
    // in double the coefficients that xsimd uses have 14 digits: 68 units at 2.2, 7.5e-15 at most
    const bool of_xsimd = sizeof(T) == 8 && !std::is_same_v<typename TestType::arch, sluice::simd::scalar>;
    CHECK(worst < (of_xsimd ? 80 : 4));
    for (T far : {T(10), T(1e4), T(1e30), std::numeric_limits<T>::infinity()}) {
        CHECK(at<P>(f, far) == 1);
        CHECK(at<P>(f, -far) == -1);
    }
    CHECK(std::isnan(at<P>(f, std::numeric_limits<T>::quiet_NaN())));
}
