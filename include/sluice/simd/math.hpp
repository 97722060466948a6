// Elementary functions on packs, each with its largest error in units of the last place (ulp), where an ulp
// of a result below the smallest normal number is that number's. Results that small may be zero. NaN stays
// NaN, and infinities give the limits. None of them traps, but flags such as FE_INVALID may be left behind.
//
// That is rounding to nearest, with or without subnormal numbers. Rounded in another direction, errors are up
// to 200 (float) or 600 (double) ulp of the result, or of 1 where that is larger.
#pragma once

#include "pack.hpp"

#include <numbers>

namespace sluice::simd {

// c[First] + c[First + 1] x + ...
template <std::size_t First = 0, class P, class T, std::size_t N>
SLUICE_INLINE P polynomial(P x, const T (&c)[N]) {
    P p(c[N - 1]);
#pragma GCC unroll 32
    for (std::size_t i = N - 1; i > First; --i) p = fma(p, x, P(c[i - 1]));
    return p;
}

template <class P>
SLUICE_INLINE P absolute(P x) {
    return select(-x < x, x, -x);
}

// Coefficients of e^r for |r| <= ln 2 / 2, lowest first. float: minimax of degree 6, relative error 3.1e-9,
// with the first two exact; double: Taylor of degree 13.
template <class T>
struct exp_coefficients;
template <>
struct exp_coefficients<float> {
    static constexpr float value[] = {1.0F,           1.0F,           0x1.fffffcp-2F, 0x1.555492p-3F,
                                      0x1.5558f2p-5F, 0x1.1239e2p-7F, 0x1.6a2434p-10F};
};
template <>
struct exp_coefficients<double> {
    static constexpr double value[] = {1.0,
                                       1.0,
                                       1.0 / 2,
                                       1.0 / 6,
                                       1.0 / 24,
                                       1.0 / 120,
                                       1.0 / 720,
                                       1.0 / 5040,
                                       1.0 / 40320,
                                       1.0 / 362880,
                                       1.0 / 3628800,
                                       1.0 / 39916800,
                                       1.0 / 479001600,
                                       1.0 / 6227020800};
};

// The smallest argument whose exponential is a normal number.
template <class T>
constexpr T exp_lowest = sizeof(T) == 4 ? T(-87.33654) : T(-708.3964185322641);

// e^x = 2^n e^r with n the integer nearest to x / ln 2, for exp_lowest <= x <= the overflow limit; anything
// outside, even for NaN.
template <class P>
struct exp_parts {
    using T = typename P::value_type;
    P shifted; // holds n in its low bits: adding 1.5 * 2^mantissa rounds to an integer and leaves it there
    P r;

    SLUICE_INLINE explicit exp_parts(P x) {
        constexpr bool single = sizeof(T) == 4;
        constexpr T magic = single ? T(0x1.8p23) : T(0x1.8p52);
        // ln 2 in two parts, the first with few enough bits that n times it is exact
        constexpr T ln2_high = single ? T(0x1.62ep-1) : T(0x1.62e42fefap-1);
        constexpr T ln2_low = single ? T(0x1.0bfbe8p-15) : T(0x1.cf79abc9e3b39p-40);
        shifted = fma(x, P(T(1.4426950408889634)), P(magic));
        const P n = shifted - P(magic);
        r = fma(n, P(-ln2_low), fma(n, P(-ln2_high), x));
    }
    SLUICE_INLINE P value() const {
        return scale_by_bits(polynomial(r, exp_coefficients<T>::value), shifted);
    }
};

template <class T, class Arch>
SLUICE_INLINE pack<T, Arch> exp_inside(pack<T, Arch> x) {
    return exp_parts(x).value();
}

// 1.25 ulp; 0 below exp_lowest.
template <class T, class Arch>
SLUICE_INLINE pack<T, Arch> exp(pack<T, Arch> x) {
    using P = pack<T, Arch>;
    constexpr T highest = sizeof(T) == 4 ? T(88.72283) : T(709.782712893384);
    P y = exp_inside(x);
    y = select(x < P(exp_lowest<T>), P(T(0)), y);
    y = select(P(highest) < x, P(std::numeric_limits<T>::infinity()), y);
    return select(x == x, y, x);
}

// exp for x <= 0 or NaN, with fewer checks: what softmax needs after its maximum is taken off.
template <class T, class Arch>
SLUICE_INLINE pack<T, Arch> exp_nonpositive(pack<T, Arch> x) {
    using P = pack<T, Arch>;
    return select(x == x, select(x < P(exp_lowest<T>), P(T(0)), exp_inside(x)), x);
}

// 1.5 ulp; of a negative number NaN, of +-0 infinity with its sign.
template <class T, class Arch>
SLUICE_INLINE pack<T, Arch> rsqrt(pack<T, Arch> x) {
    return pack<T, Arch>(T(1)) / sqrt(x);
}

// 2.5 ulp, from e^2x - 1, which is 2^n (e^r - 1) + (2^n - 1).
template <class T, class Arch>
SLUICE_INLINE pack<T, Arch> tanh(pack<T, Arch> x) {
    using P = pack<T, Arch>;
    constexpr T one_from = sizeof(T) == 4 ? T(9.02) : T(19.07),
                itself_to = sizeof(T) == 4 ? T(0x1p-13) : T(0x1p-27);
    const P a = absolute(x), limited = select(a < P(one_from), a, P(one_from));
    const exp_parts parts(limited + limited);
    const P less_one = fma(parts.r * parts.r, polynomial<2>(parts.r, exp_coefficients<T>::value), parts.r);
    const P power = scale_by_bits(P(T(1)), parts.shifted);
    const P m = fma(power, less_one, power - P(T(1)));
    const P y = m / (m + P(T(2)));
    return select(P(itself_to) < a, select(x < P(T(0)), -y, y), x); // -0 and NaN as they came
}

// e^-x where x is not below exp_lowest, and NaN perhaps a number.
template <class T, class Arch>
SLUICE_INLINE pack<T, Arch> exp_of_minus(pack<T, Arch> x) {
    return exp_inside(-min(x, pack<T, Arch>(-exp_lowest<T>)));
}

// 1 / (1 + e^-x). 2.5 ulp; 0 below exp_lowest.
template <class T, class Arch>
SLUICE_INLINE pack<T, Arch> sigmoid(pack<T, Arch> x) {
    using P = pack<T, Arch>;
    const P y = P(T(1)) / (P(T(1)) + exp_of_minus(x));
    return select(x == x, select(x < P(exp_lowest<T>), P(T(0)), y), x);
}

// x sigmoid(x). 2.5 ulp; 0 below exp_lowest, where the value is above -1.1e-36 (float) or -1.6e-305 (double).
template <class T, class Arch>
SLUICE_INLINE pack<T, Arch> silu(pack<T, Arch> x) {
    using P = pack<T, Arch>;
    const P y = x / (P(T(1)) + exp_of_minus(x));
    return select(x < P(exp_lowest<T>), P(T(0)), y);
}

// d silu / dx = s + x s (1 - s) with s = sigmoid(x). 4 ulp of the larger term; 0 below exp_lowest.
template <class T, class Arch>
SLUICE_INLINE pack<T, Arch> silu_slope(pack<T, Arch> x) {
    using P = pack<T, Arch>;
    const P one(T(1)), e = exp_of_minus(x), s = one / (one + e);
    // e^-x times infinity would be another infinity
    const P finite = select(P(-exp_lowest<T>) < x, P(-exp_lowest<T>), x);
    return select(x < P(exp_lowest<T>), P(T(0)), s * fma(finite, e * s, one));
}

// 1 / (2 i + 1) for i = 0, 1, ...: atanh(t) / t in t^2, as many as |t| <= 1 / 3 needs.
template <class T>
struct atanh_coefficients {
    static constexpr T value[] = {T(1),      T(1) / 3,  T(1) / 5,  T(1) / 7,  T(1) / 9,  T(1) / 11,
                                  T(1) / 13, T(1) / 15, T(1) / 17, T(1) / 19, T(1) / 21, T(1) / 23,
                                  T(1) / 25, T(1) / 27, T(1) / 29, T(1) / 31, T(1) / 33};
};
template <>
struct atanh_coefficients<float> {
    static constexpr float value[] = {1.0F,     1.0F / 3,  1.0F / 5,  1.0F / 7,
                                      1.0F / 9, 1.0F / 11, 1.0F / 13, 1.0F / 15};
};

// log(1 + e^x) = max(x, 0) + log(1 + e^-|x|), the logarithm as 2 atanh(e / (2 + e)). 4 ulp; 0 below
// exp_lowest.
template <class T, class Arch>
SLUICE_INLINE pack<T, Arch> softplus(pack<T, Arch> x) {
    using P = pack<T, Arch>;
    const P e = exp_nonpositive(-absolute(x)), t = e / (e + P(T(2)));
    const P positive = select(x < P(T(0)), P(T(0)), x);
    return fma(t + t, polynomial(t * t, atanh_coefficients<T>::value), positive);
}

// Minimax coefficients in (a - 2) / (a + 4), lowest first, of (a + 4) e^(a^2/2) (1 - Phi(a)), where Phi
// is the distribution of the standard normal, for a >= 0 as far as e^(-a^2/2) is a normal number. Relative
// error 7.5e-9 and 1.9e-17.
template <class T>
struct normal_tail_coefficients;
template <>
struct normal_tail_coefficients<float> {
    static constexpr float value[] = {0x1.023466p+0F, -0x1.3ffdc8p+0F, 0x1.18522ep+0F,  -0x1.4a598cp-1F,
                                      0x1.a6877cp-3F, 0x1.6553fp-7F,   -0x1.1d7df6p-5F, 0x1.11c49ap-8F,
                                      0x1.7546d8p-8F, -0x1.b6cdc2p-10F};
};
template <>
struct normal_tail_coefficients<double> {
    static constexpr double value[] = {
        0x1.02346581dfbfbp+0,   -0x1.3ffdc58f01d1bp+0,  0x1.1852301c8eaebp+0,   -0x1.4a5a76a87233ep-1,
        0x1.a688badbfcbb9p-3,   0x1.68954c99a04bdp-7,   -0x1.1e31e53e5077p-5,   0x1.df3968b9fa3d5p-9,
        0x1.9e725865ae21cp-8,   -0x1.92783d2b1beccp-11, -0x1.71bbb90de7dp-10,   0x1.43552d280b0fcp-17,
        0x1.61b8f59ecd78ap-12,  0x1.256170a9595c6p-14,  -0x1.1e992344e9677p-14, -0x1.43e0d2f6e11b5p-15,
        0x1.1f858c73f0203p-18,  0x1.bd3c2a728e345p-17,  0x1.c0d2e84399a8dp-18,  -0x1.4d8d92d69c7a9p-18,
        -0x1.1bd8688a715dap-18, 0x1.d1235d871b743p-19,  -0x1.5cc204b515e6p-21};
};

// What GELU and its slope are made of, for a = |x|: e^(-a^2/2) and (1 - Phi(a)) e^(a^2/2).
template <class P>
struct normal_tail {
    using T = typename P::value_type;
    P a, power, scaled;
    typename P::mask negligible; // power is below the smallest normal number, and not to be used

    SLUICE_INLINE explicit normal_tail(P x) : a(absolute(x)) {
        // What rounding takes from the square would be a relative error of e^(-a^2/2).
        const P square = x * x, half(T(0.5)), lost = fma(x, x, -square) * half, exponent = square * -half;
        exp_parts parts(exponent);
        parts.r = parts.r - lost;
        power = parts.value();
        const P d = P(T(1)) / (a + P(T(4)));
        scaled = d * polynomial((a - P(T(2))) * d, normal_tail_coefficients<T>::value);
        negligible = exponent < P(exp_lowest<T>);
    }
};

// x Phi(x), the exact form. 5.5 ulp, 0 for results below the smallest normal number; without a fused fma
// x^2/2 ulp more for negative x.
template <class T, class Arch>
SLUICE_INLINE pack<T, Arch> gelu(pack<T, Arch> x) {
    using P = pack<T, Arch>;
    const normal_tail<P> tail(x);
    const P positive = select(x < P(T(0)), P(T(0)), x);
    return select(tail.negligible, positive, fma(-(tail.a * tail.scaled), tail.power, positive));
}

// d gelu / dx = Phi(x) + x phi(x), with phi the density. 5 ulp of the larger term; 0 or 1 where e^(-x^2/2) is
// below the smallest normal number; without a fused fma x^2/2 ulp more for negative x.
template <class T, class Arch>
SLUICE_INLINE pack<T, Arch> gelu_slope(pack<T, Arch> x) {
    using P = pack<T, Arch>;
    const normal_tail<P> tail(x);
    const P one(T(1)), zero(T(0));
    const P rest =
        fma(tail.a, P(std::numbers::inv_sqrtpi_v<T> / std::numbers::sqrt2_v<T>), -tail.scaled) * tail.power;
    const auto positive = zero < x;
    return select(tail.negligible, select(positive, one, zero), select(positive, one + rest, -rest));
}

// Minimax coefficients of erf(x) / x in x^2 for |x| <= 1. Relative error 1.2e-9 and 7.3e-18.
template <class T>
struct erf_coefficients;
template <>
struct erf_coefficients<float> {
    static constexpr float value[] = {0x1.20dd74p+0F, -0x1.81273ep-2F,  0x1.ce2cf8p-4F, -0x1.b7f91p-6F,
                                      0x1.5405bep-8F, -0x1.a3f71ep-11F, 0x1.496a12p-14F};
};
template <>
struct erf_coefficients<double> {
    static constexpr double value[] = {
        0x1.20dd750429b6dp+0,  -0x1.812746b0379bdp-2,  0x1.ce2f21a040d21p-4,  -0x1.b82ce311fab6fp-6,
        0x1.565bccf92eaadp-8,  -0x1.c02db03e3cd72p-11, 0x1.f9a2bab00ed8ep-14, -0x1.f4ca4dbca9a02p-17,
        0x1.b97fd5d5cea58p-20, -0x1.5c072df7c0e9ep-23, 0x1.d71b21cf3dcd1p-27, -0x1.abae353b8c9f5p-31};
};

// 2.5 ulp.
template <class T, class Arch>
SLUICE_INLINE pack<T, Arch> erf(pack<T, Arch> x) {
    using P = pack<T, Arch>;
    const P one(T(1));
    const P near = x * polynomial(x * x, erf_coefficients<T>::value);
    const normal_tail<P> tail(x * P(std::numbers::sqrt2_v<T>));
    const P far = select(tail.negligible, one, fma(tail.scaled * tail.power, P(T(-2)), one));
    return select(one < tail.a * P(std::numbers::sqrt2_v<T> / 2), select(x < P(T(0)), -far, far), near);
}

} // namespace sluice::simd
