// The k largest of n values. Few of many: the k-th largest of 2 k or more maxima of disjoint parts bounds the
// k-th largest value from below, and leaves few candidates, which are ranked by comparing all pairs. Else by
// bisection on a threshold: count the values above it, a register at a time, until exactly k are.
//
// NaN counts as smaller than every number. Among equal values the lower index wins; -0 equals +0.
#pragma once

#include "../simd/mask.hpp"

namespace sluice::kernels {

// Writes the k indices, the largest value first (`sorted`), or in the order of the indices. k <= n.
struct top_k {
    template <class Arch, class T>
    void operator()(Arch, const T* x, idx n, idx k, bool sorted, std::int32_t* indices) const;
};

template <class T>
using top_k_calls = simd::calls<simd::call<top_k, const T*, idx, idx, bool, std::int32_t*>>;

// Integers in the order of the floating-point numbers they stand for; both zeros are one.
template <class T>
class ordered_bits {
    using bits = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
    static constexpr bits low = std::numeric_limits<bits>::max();

public:
    static SLUICE_INLINE bits from(T x) {
        const bits b = std::bit_cast<bits>(x + T(0));
        return b < 0 ? static_cast<bits>(b ^ low) : b;
    }
    static SLUICE_INLINE T value(bits b) { return std::bit_cast<T>(b < 0 ? static_cast<bits>(b ^ low) : b); }
    // Between a and b without overflow.
    static SLUICE_INLINE bits middle(bits a, bits b) { return static_cast<bits>((a & b) + ((a ^ b) >> 1)); }
};

// How many of the n values `test` finds true; it is asked of a register.
template <class Arch, class T, class Test>
SLUICE_INLINE idx count(const T* x, idx n, Test&& test) {
    using P = simd::pack<T, Arch>;
    const P one(T(1)), none(T(0));
    // two sums of ones: exact far beyond any row, and two compares in flight
    P even{}, odd{};
    idx i = 0;
    for (; i + 2 * P::size <= n; i += 2 * P::size) {
        even = even + select(test(P::load(x + i)), one, none);
        odd = odd + select(test(P::load(x + i + P::size)), one, none);
    }
    idx rest = 0;
    for (; i < n; ++i) rest += static_cast<idx>(simd::lane_bits<P>(test(P(x[i]))) & 1U);
    return static_cast<idx>((even + odd).sum()) + rest;
}

template <class Arch, class T>
SLUICE_INLINE idx count_above(const T* x, idx n, T threshold) {
    using P = simd::pack<T, Arch>;
    return count<Arch>(x, n, [t = P(threshold)](P v) { return t < v; });
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

// The k-th largest value, or a value with exactly k above it. k of the n values are between the limits, which
// are not NaN.
template <class Arch, class T>
T kth_largest(const T* x, idx n, idx k, T smallest, T largest) {
    using order = ordered_bits<T>;
    auto low = order::from(smallest),
         high = order::from(largest); // at least k are >= low; fewer than k are > high
    while (low < high) {
        const auto middle = order::middle(low, high);
        const idx above = count_above<Arch>(x, n, order::value(middle));
        if (above == k) return order::value(middle);
        if (above > k)
            low = middle + 1;
        else
            high = middle;
    }
    return order::value(low);
}

// Writes the indices of what is above t, and of the first `ties` that equal it, in order; returns how many,
// or, where there is no room for all, a number above `room`.
template <class Arch, class T>
SLUICE_INLINE idx collect(const T* x, idx n, T t, idx ties, idx room, std::int32_t* indices) {
    using P = simd::pack<T, Arch>;
    idx found = 0;
    auto add = [&](std::uint32_t above, std::uint32_t equal, idx i) __attribute__((always_inline)) {
        const idx n_equal = std::popcount(equal);
        for (idx surplus = n_equal - ties; surplus > 0; --surplus) equal ^= std::bit_floor(equal);
        ties -= std::min(ties, n_equal);
        const std::uint32_t bits = above | equal;
        if (found + std::popcount(bits) > room) return false;
        found += simd::store_set_bits<Arch>(bits, static_cast<std::int32_t>(i), indices + found);
        return true;
    };
    idx i = 0;
    for (const P threshold(t); i + P::size <= n; i += P::size) {
        const P v = P::load(x + i);
        if (!add(simd::lane_bits<P>(threshold < v), simd::lane_bits<P>(v == threshold), i)) return room + 1;
    }
    for (; i < n; ++i)
        if (!add(t < x[i] ? 1U : 0U, t == x[i] ? 1U : 0U, i)) return room + 1;
    return found;
}

// ranks[i] = how many of the n_registers * P::size values come before value i: the larger, and of equal ones
// those with a lower index.
template <class P, class T = typename P::value_type>
SLUICE_INLINE void rank(const T* values, idx n_values, idx n_registers, T* ranks) {
    T lanes[static_cast<std::size_t>(P::size)];
    for (idx i = 0; i < P::size; ++i) lanes[i] = static_cast<T>(i);
    const P one(T(1)), none(T(0)), lane = P::load(lanes);
    for (idx b = 0; b < n_registers; ++b) {
        const P v = P::load(values + b * P::size), place = lane + P(static_cast<T>(b * P::size));
        P larger{}, equal{}; // two sums: half the latency
        for (idx j = 0; j < n_values; ++j) {
            const P other(values[j]);
            larger = larger + select(v < other, one, none);
            equal = equal + select(v == other, select(P(static_cast<T>(j)) < place, one, none), none);
        }
        (larger + equal).store(ranks + b * P::size);
    }
}

constexpr idx most_ranked = 64;

// For k <= Parts / 2 and rows much longer than Parts. False where there are more candidates than can be
// ranked, or fewer than k: equal values, NaN.
template <idx Parts, class Arch, class T>
SLUICE_INLINE bool top_few(const T* x, idx n, idx k, bool sorted, std::int32_t* indices) {
    using P = simd::pack<T, Arch>;
    constexpr T infinity = std::numeric_limits<T>::infinity();
    constexpr idx registers = std::max<idx>(Parts / P::size, 1), chains = std::max<idx>(registers, 4);
    P largest[static_cast<std::size_t>(chains)];
    for (P& p : largest) p = P(-infinity);
    idx i = 0;
    for (; i + chains * P::size <= n; i += chains * P::size)
#pragma GCC unroll 8
        for (idx c = 0; c < chains; ++c) {
            const P v = P::load(x + i + c * P::size);
            largest[c] = select(largest[c] < v, v, largest[c]); // never NaN
        }
    for (idx some = chains / 2; some >= registers; some /= 2)
        for (idx c = 0; c < some; ++c) largest[c] = max(largest[c], largest[c + some]);
    T maxima[static_cast<std::size_t>(registers * P::size)], ranks[static_cast<std::size_t>(most_ranked)];
    for (idx c = 0; c < registers; ++c) largest[c].store(maxima + c * P::size);
    rank<P>(maxima, registers * P::size, registers, ranks);
    T threshold = -infinity;
    for (idx c = 0; c < registers * P::size; ++c)
        threshold = ranks[c] == static_cast<T>(k - 1) ? maxima[c] : threshold;

    std::int32_t candidates[static_cast<std::size_t>(most_ranked)];
    const idx found = collect<Arch>(x, n, threshold, n, most_ranked, candidates);
    if (found < k || found > most_ranked) return false;
    T values[static_cast<std::size_t>(most_ranked)];
    const idx used = (found + P::size - 1) / P::size;
    for (idx c = 0; c < found; ++c) values[c] = x[candidates[c]];
    for (idx c = found; c < used * P::size; ++c) values[c] = -infinity;
    rank<P>(values, found, used, ranks);
    // branch-free: all are placed, or overwritten by the next
    std::int32_t placed[static_cast<std::size_t>(most_ranked) + 1];
    idx kept = 0;
    for (idx c = 0; c < found; ++c) {
        const idx place = static_cast<idx>(ranks[c]);
        placed[sorted ? place : kept] = candidates[c];
        kept += place < k ? 1 : 0;
    }
    std::copy_n(placed, k, indices);
    return true;
}

// For n <= 64: all are ranked where that is quick, otherwise as top_few, with -inf behind the row. False
// where there is a NaN, or as top_few.
template <class Arch, class T>
SLUICE_INLINE bool top_of_short(const T* x, idx n, idx k, bool sorted, std::int32_t* indices) {
    using P = simd::pack<T, Arch>;
    constexpr auto room = static_cast<std::size_t>(most_ranked);
    T values[room], ranks[room];
    idx i = 0;
    P nans{};
    for (; i + P::size <= n; i += P::size) {
        const P v = P::load(x + i);
        nans = nans + select(v == v, P(T(0)), P(T(1)));
        v.store(values + i);
    }
    T n_nans = nans.sum();
    for (; i < n; ++i) n_nans += (values[i] = x[i]) == x[i] ? T(0) : T(1);
    if (n_nans > 0) return false;
    if (n > 2 * std::max<idx>(P::size, 8)) {
        if (k > 8) return false;
        std::fill(values + n, values + most_ranked, -std::numeric_limits<T>::infinity());
        return top_few<16, Arch, T>(values, most_ranked, k, sorted, indices);
    }
    const idx used = (n + P::size - 1) / P::size;
    std::fill(values + n, values + used * P::size, -std::numeric_limits<T>::infinity());
    rank<P>(values, n, used, ranks);
    std::int32_t placed[room + 1];
    idx kept = 0;
    for (i = 0; i < n; ++i) {
        const idx place = static_cast<idx>(ranks[i]);
        placed[sorted ? place : kept] = static_cast<std::int32_t>(i);
        kept += place < k ? 1 : 0;
    }
    std::copy_n(placed, k, indices);
    return true;
}

// The largest and, for k = 2, the next, in order: for rows that are over before a register is filled.
template <class T>
SLUICE_INLINE void top_one_or_two(const T* x, idx n, idx k, bool sorted, std::int32_t* indices) {
    auto before = [](T a, T b) { return b < a || (b != b && a == a); }; // NaN comes last
    idx first = 0, second = -1;
    T best = x[0], next = x[0];
    for (idx i = 1; i < n; ++i) {
        const T v = x[i];
        const bool leads = before(v, best), follows = !leads && (second < 0 || before(v, next));
        second = leads ? first : follows ? i : second;
        next = leads ? best : follows ? v : next;
        first = leads ? i : first;
        best = leads ? v : best;
    }
    if (k == 2 && !sorted && second < first) std::swap(first, second);
    indices[0] = static_cast<std::int32_t>(first);
    if (k == 2) indices[1] = static_cast<std::int32_t>(second);
}

template <class Arch, class T>
void top_k::operator()(Arch, const T* x, idx n, idx k, bool sorted, std::int32_t* indices) const {
    if (k <= 0) return;
    if (k <= 2 && k <= n && n <= 16) return top_one_or_two(x, n, k, sorted, indices);
    if (n <= most_ranked && top_of_short<Arch>(x, n, k, sorted, indices)) return;
    if (k <= 8 && n >= 64 && top_few<16, Arch>(x, n, k, sorted, indices)) return;
    if (k <= 32 && n >= 256 && top_few<64, Arch>(x, n, k, sorted, indices)) return;
    constexpr T infinity = std::numeric_limits<T>::infinity();
    T smallest, largest;
    extent<Arch>(x, n, smallest, largest);
    const idx numbers = count<Arch>(x, n, [](simd::pack<T, Arch> v) { return v == v; });
    if (numbers <= k) {
        idx found = collect<Arch>(x, n, -infinity, n, k, indices);
        for (idx i = 0; i < n && found < k; ++i) {
            indices[found] = static_cast<std::int32_t>(i);
            found += x[i] != x[i] ? 1 : 0;
        }
    } else {
        const T t = kth_largest<Arch>(x, n, k, smallest, largest);
        collect<Arch>(x, n, t, k - count_above<Arch>(x, n, t), k, indices);
    }
    auto before = [x](std::int32_t a, std::int32_t b) {
        const T u = x[a], v = x[b];
        if (u == v || (u != u && v != v)) return a < b;
        return v < u || v != v;
    };
    if (sorted)
        std::sort(indices, indices + k, before);
    else if (numbers < k) // a comparison of our own: sorting by the usual one may be shared with other files
        std::sort(indices, indices + k, [](std::int32_t a, std::int32_t b) { return a < b; });
}

} // namespace sluice::kernels
