// Rotary position embedding (Su et al., "RoFormer", 2021, eq. 34): pair i of a head is turned by the angle
// position * base^(-2 i / d). `half_split` pairs (i, i + d/2), as most published checkpoints do;
// `interleaved` pairs (2i, 2i + 1), as the paper writes it; `none` stands for no rotation in configs.
#pragma once

#include "../simd/pack.hpp"

#include <numbers>

namespace sluice {

enum class rotary_pairs { none, half_split, interleaved };

} // namespace sluice

namespace sluice::kernels {

// cosine and sine of 2 pi `turns` for n elements. Exact reduction: full turns drop out of the fraction.
struct cos_sin_turns {
    template <class Arch, class T>
    void operator()(Arch, const double* turns, T* cosine, T* sine, idx n) const;
};

// Rotates n_heads heads of one row in place; cosine and sine hold d / 2 values. `backwards` turns by the
// negative angle, which is the transpose.
struct rotate_row {
    template <class Arch, class T>
    void operator()(Arch, T* x, idx n_heads, idx d, const T* cosine, const T* sine, rotary_pairs pairs,
                    bool backwards) const;
};

template <class T>
using rotary_calls =
    simd::calls<simd::call<cos_sin_turns, const double*, T*, T*, idx>,
                simd::call<rotate_row, T*, idx, idx, const T*, const T*, rotary_pairs, bool>>;

// Nearest integer for |x| < 2^51; halves to even, or to either side where the program rounds in another
// direction: then the sum alone would be up to one off, and quarter turns taken for one another.
template <class Arch>
SLUICE_INLINE simd::pack<double, Arch> nearest(simd::pack<double, Arch> x) {
    using P = simd::pack<double, Arch>;
    const P magic(0x1.8p52), n = (x + magic) - magic, rest = x - n;
    return n + select(P(0.5) < rest, P(1), select(rest < P(-0.5), P(-1), P(0)));
}

template <class Arch, class T>
void cos_sin_turns::operator()(Arch, const double* turns, T* cosine, T* sine, idx n) const {
    using P = simd::pack<double, Arch>;
    // Taylor coefficients, enough for |angle| <= pi / 4 in double
    constexpr double c[] = {1.0 / 20922789888000, -1.0 / 87178291200, 1.0 / 479001600, -1.0 / 3628800,
                            1.0 / 40320,          -1.0 / 720,         1.0 / 24,        -1.0 / 2};
    constexpr double s[] = {1.0 / 355687428096000, -1.0 / 1307674368000, 1.0 / 6227020800, -1.0 / 39916800,
                            1.0 / 362880,          -1.0 / 5040,          1.0 / 120,        -1.0 / 6};
    double lanes[2][static_cast<std::size_t>(P::size)];
    simd::for_each_pack<P>(n, [&](idx j, idx k) {
        const P t = P::load_partial(turns + j, k);
        const P quarters = nearest(t * P(4));
        const P x = (t - quarters * P(0.25)) * P(2 * std::numbers::pi);
        const P x2 = x * x;
        P cos_x(c[0]), sin_x(s[0]);
        for (int i = 1; i < 8; ++i) {
            cos_x = fma(cos_x, x2, P(c[i]));
            sin_x = fma(sin_x, x2, P(s[i]));
        }
        cos_x = fma(cos_x, x2, P(1));
        sin_x = fma(sin_x * x2, x, x);
        // quarter turns: fraction of quarters / 4 is 0, +-1/4 or +-1/2
        const P f = quarters * P(0.25) - nearest(quarters * P(0.25));
        const auto quarter = f * f == P(0.0625);
        const P real = select(quarter, sin_x, cos_x);
        const P imaginary = select(quarter, cos_x, sin_x);
        // cos is negated for +1/4 and 1/2, sin for -1/4 and 1/2
        const P sign_real = select(P(0.1) < f, P(-1), select(f < P(-0.4), P(-1), P(1)));
        const P sign_imaginary = select(P(0.4) < f, P(-1), select(f < P(-0.1), P(-1), P(1)));
        (real * sign_real).store(lanes[0]);
        (imaginary * sign_imaginary).store(lanes[1]);
        for (idx i = 0; i < k; ++i) {
            cosine[j + i] = static_cast<T>(lanes[0][i]);
            sine[j + i] = static_cast<T>(lanes[1][i]);
        }
    });
}

// Registers side by side of every head, by the same angles, which stay in registers. The first `inside` lanes
// of each count.
template <int Registers, class P, class T>
SLUICE_INLINE void turn_halves(T* x, idx n_heads, idx d, const T* cosine, const T* sine, T direction,
                               idx inside) {
    P c[std::size_t{Registers}], s[std::size_t{Registers}];
    simd::unrolled<Registers>([&](auto v) {
        c[v] = P::load_partial(cosine + v * P::size, inside);
        s[v] = P(direction) * P::load_partial(sine + v * P::size, inside);
    });
    for (T* const end = x + n_heads * d; x != end; x += d)
        simd::unrolled<Registers>([&](auto v) {
            T *const low = x + v * P::size, *const high = low + d / 2;
            const P a = P::load_partial(low, inside), b = P::load_partial(high, inside);
            (a * c[v] - b * s[v]).store_partial(low, inside);
            (b * c[v] + a * s[v]).store_partial(high, inside);
        });
}

// The same for pairs of neighbours.
template <int Registers, class P, class T>
SLUICE_INLINE void turn_neighbours(T* x, idx n_heads, idx d, const T* cosine, const T* sine, T direction) {
    P c[std::size_t{Registers}], s[std::size_t{Registers}];
    for (idx v = 0; v < Registers; ++v) {
        T real[std::size_t{P::size}], imaginary[std::size_t{P::size}];
        for (idx i = 0; i < P::size; ++i) {
            const idx pair = (v * P::size + i) / 2;
            real[i] = cosine[pair];
            imaginary[i] = i % 2 == 0 ? -direction * sine[pair] : direction * sine[pair];
        }
        c[v] = P::load(real);
        s[v] = P::load(imaginary);
    }
    for (T* const end = x + n_heads * d; x != end; x += d)
        simd::unrolled<Registers>([&](auto v) {
            const P a = P::load(x + v * P::size);
            (a * c[v] + swap_neighbours(a) * s[v]).store(x + v * P::size);
        });
}

template <class Arch, class T>
void rotate_row::operator()(Arch, T* x, idx n_heads, idx d, const T* cosine, const T* sine,
                            rotary_pairs pairs, bool backwards) const {
    using P = simd::pack<T, Arch>;
    const T direction = backwards ? T(-1) : T(1);
    const idx half = d / 2;
    if (pairs == rotary_pairs::half_split) {
        idx j = 0;
        for (; j + 4 * P::size <= half; j += 4 * P::size)
            turn_halves<4, P>(x + j, n_heads, d, cosine + j, sine + j, direction, P::size);
        for (; j + 2 * P::size <= half; j += 2 * P::size)
            turn_halves<2, P>(x + j, n_heads, d, cosine + j, sine + j, direction, P::size);
        for (; j < half; j += P::size)
            turn_halves<1, P>(x + j, n_heads, d, cosine + j, sine + j, direction,
                              std::min<idx>(P::size, half - j));
        return;
    }
    idx whole = 0; // elements of a head that fill registers
    if constexpr (P::size > 1) {
        for (; whole + 4 * P::size <= d; whole += 4 * P::size)
            turn_neighbours<4, P>(x + whole, n_heads, d, cosine + whole / 2, sine + whole / 2, direction);
        for (; whole + P::size <= d; whole += P::size)
            turn_neighbours<1, P>(x + whole, n_heads, d, cosine + whole / 2, sine + whole / 2, direction);
    }
    for (idx h = 0; h < n_heads; ++h, x += d)
        for (idx i = whole; i < d; i += 2) {
            const T a = x[i], b = x[i + 1], c = cosine[i / 2], s = direction * sine[i / 2];
            x[i] = a * c - b * s;
            x[i + 1] = b * c + a * s;
        }
}

} // namespace sluice::kernels
