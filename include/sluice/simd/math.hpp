// Elementary functions on packs. exp follows IEEE at the edges: NaN stays NaN, overflow is infinity; results
// below the smallest normal number are zero.
#pragma once

#include "pack.hpp"

#include <iterator>

namespace sluice::simd {

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
// outside. Adding 1.5 * 2^mantissa rounds to an integer and leaves it in the low bits.
template <class T, class Arch>
SLUICE_INLINE pack<T, Arch> exp_inside(pack<T, Arch> x) {
    using P = pack<T, Arch>;
    constexpr bool single = sizeof(T) == 4;
    constexpr T magic = single ? T(0x1.8p23) : T(0x1.8p52);
    // ln 2 in two parts, the first with few enough bits that n times it is exact
    constexpr T ln2_high = single ? T(0x1.62ep-1) : T(0x1.62e42fefap-1);
    constexpr T ln2_low = single ? T(0x1.0bfbe8p-15) : T(0x1.cf79abc9e3b39p-40);
    const P shifted = fma(x, P(T(1.4426950408889634)), P(magic));
    const P n = shifted - P(magic);
    const P r = fma(n, P(-ln2_low), fma(n, P(-ln2_high), x));
    constexpr auto& c = exp_coefficients<T>::value;
    constexpr int degree = static_cast<int>(std::size(c)) - 1;
    P p(c[degree]);
#pragma GCC unroll 16
    for (int i = degree - 1; i >= 0; --i) p = fma(p, r, P(c[i]));
    return scale_by_bits(p, shifted);
}

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

template <class T, class Arch>
SLUICE_INLINE pack<T, Arch> sigmoid(pack<T, Arch> x) {
    return pack<T, Arch>(T(1)) / (pack<T, Arch>(T(1)) + exp(-x));
}

} // namespace sluice::simd
