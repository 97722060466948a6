// Elementary functions on packs. exp follows IEEE at the edges: NaN stays NaN, overflow is infinity; results
// below the smallest normal number are zero.
#pragma once

#include "pack.hpp"

namespace sluice::simd {

// e^x = 2^n e^r with n the integer nearest to x / ln 2 and |r| <= ln 2 / 2, by a Taylor polynomial of degree
// 7 (float) or 13 (double). Adding 1.5 * 2^mantissa rounds to an integer and leaves it in the low bits.
template <class T, class Arch>
SLUICE_INLINE pack<T, Arch> exp(pack<T, Arch> x) {
    using P = pack<T, Arch>;
    constexpr bool single = sizeof(T) == 4;
    constexpr T magic = single ? T(0x1.8p23) : T(0x1.8p52);
    constexpr T highest = single ? T(88.72283) : T(709.782712893384);
    constexpr T lowest = single ? T(-87.33654) : T(-708.3964185322641);
    // ln 2 in two parts, the first with few enough bits that n times it is exact
    constexpr T ln2_high = single ? T(0x1.62ep-1) : T(0x1.62e42fefap-1);
    constexpr T ln2_low = single ? T(0x1.0bfbe8p-15) : T(0x1.cf79abc9e3b39p-40);

    const P shifted = fma(x, P(T(1.4426950408889634)), P(magic));
    const P n = shifted - P(magic);
    const P r = fma(n, P(-ln2_low), fma(n, P(-ln2_high), x));

    constexpr int degree = single ? 7 : 13;
    constexpr T inverse_factorial[] = {T(1),
                                       T(1),
                                       T(1) / T(2),
                                       T(1) / T(6),
                                       T(1) / T(24),
                                       T(1) / T(120),
                                       T(1) / T(720),
                                       T(1) / T(5040),
                                       T(1) / T(40320),
                                       T(1) / T(362880),
                                       T(1) / T(3628800),
                                       T(1) / T(39916800),
                                       T(1) / T(479001600),
                                       T(1) / T(6227020800)};
    P p(inverse_factorial[degree]);
    for (int i = degree - 1; i >= 0; --i) p = fma(p, r, P(inverse_factorial[i]));

    P y = scale_by_bits(p, shifted);
    y = select(x < P(lowest), P(T(0)), y);
    y = select(P(highest) < x, P(std::numeric_limits<T>::infinity()), y);
    return select(x == x, y, x);
}

template <class T, class Arch>
SLUICE_INLINE pack<T, Arch> sigmoid(pack<T, Arch> x) {
    return pack<T, Arch>(T(1)) / (pack<T, Arch>(T(1)) + exp(-x));
}

} // namespace sluice::simd
