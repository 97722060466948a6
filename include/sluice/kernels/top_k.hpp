// The k largest of n values, by bisection on a threshold: count the values above it, a register at a time,
// until exactly k are. Works alike for k of 1 and of thousands.
//
// NaN counts as smaller than every number. Among equal values the lower index wins; -0 equals +0.
#pragma once

#include "../simd/pack.hpp"

namespace sluice::kernels {

// Writes the k indices, the largest value first (`sorted`), or in the order of the indices. k <= n.
struct top_k {
    template <class Arch, class T>
    void operator()(Arch, const T* x, idx n, idx k, bool sorted, std::int32_t* indices) const;
};

// Integers in the order of the floating-point numbers they stand for; both zeros are one.
template <class T>
class ordered_bits {
    using bits = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
    static constexpr bits low = std::numeric_limits<bits>::max();

public:
    static bits from(T x) {
        const bits b = std::bit_cast<bits>(x + T(0));
        return b < 0 ? static_cast<bits>(b ^ low) : b;
    }
    static T value(bits b) { return std::bit_cast<T>(b < 0 ? static_cast<bits>(b ^ low) : b); }
    // Between a and b without overflow.
    static bits middle(bits a, bits b) { return static_cast<bits>((a & b) + ((a ^ b) >> 1)); }
};

template <class Arch, class T>
SLUICE_INLINE idx count_above(const T* x, idx n, T threshold) {
    using P = simd::pack<T, Arch>;
    const P t(threshold), one(T(1)), none(T(0));
    // two sums of ones: exact far beyond any row, and two compares in flight
    P even, odd;
    idx i = 0;
    for (; i + 2 * P::size <= n; i += 2 * P::size) {
        even = even + select(t < P::load(x + i), one, none);
        odd = odd + select(t < P::load(x + i + P::size), one, none);
    }
    idx rest = 0;
    for (; i < n; ++i) rest += threshold < x[i] ? 1 : 0;
    return static_cast<idx>((even + odd).sum()) + rest;
}

// Largest and smallest of the numbers among n values; infinities crossed over where all are NaN.
template <class Arch, class T>
SLUICE_INLINE void extent(const T* x, idx n, T& smallest, T& largest) {
    using P = simd::pack<T, Arch>;
    constexpr T infinity = std::numeric_limits<T>::infinity();
    P low(infinity), high(-infinity);
    simd::for_each_pack<P>(n - n % P::size, [&](idx i, idx) {
        const P v = P::load(x + i);
        low = select(v < low, v, low);
        high = select(high < v, v, high);
    });
    smallest = -(-low).largest();
    largest = high.largest();
    for (idx i = n - n % P::size; i < n; ++i) {
        smallest = x[i] < smallest ? x[i] : smallest;
        largest = largest < x[i] ? x[i] : largest;
    }
}

// The k-th largest value, or a value with exactly k above it (`exact`). `numbers` of the n values are not NaN
// and k <= numbers.
template <class Arch, class T>
T kth_largest(const T* x, idx n, idx k, T smallest, T largest, bool& exact) {
    using order = ordered_bits<T>;
    auto low = order::from(smallest),
         high = order::from(largest); // at least k are >= low; fewer than k are > high
    exact = false;
    while (low < high) {
        const auto middle = order::middle(low, high);
        const idx above = count_above<Arch>(x, n, order::value(middle));
        if (above == k) {
            exact = true;
            return order::value(middle);
        }
        if (above > k)
            low = middle + 1;
        else
            high = middle;
    }
    return order::value(low);
}

template <class Arch, class T>
void top_k::operator()(Arch, const T* x, idx n, idx k, bool sorted, std::int32_t* indices) const {
    if (k <= 0) return;
    T smallest, largest;
    extent<Arch>(x, n, smallest, largest);
    idx found = 0, spare = k;
    auto take = [&](auto&& wanted) { // branch-free: the slot is overwritten until something stays
        for (idx i = 0; i < n && found < spare; ++i) {
            indices[found] = static_cast<std::int32_t>(i);
            found += wanted(x[i]) ? 1 : 0;
        }
    };
    const idx numbers = count_above<Arch>(x, n, -std::numeric_limits<T>::infinity()) +
                        std::count(x, x + n, -std::numeric_limits<T>::infinity());
    if (numbers <= k) {
        take([](T v) { return v == v; });
        take([](T v) { return v != v; });
    } else {
        bool exact;
        const T t = kth_largest<Arch>(x, n, k, smallest, largest, exact);
        take([t](T v) { return t < v; });
        if (!exact) take([t](T v) { return v == t; });
    }
    auto before = [x](std::int32_t a, std::int32_t b) {
        const T u = x[a], v = x[b];
        if (u == v || (u != u && v != v)) return a < b;
        return v < u || v != v;
    };
    if (sorted)
        std::sort(indices, indices + k, before);
    else
        std::sort(indices, indices + k);
}

} // namespace sluice::kernels
