// One register of T for an Arch, with the few operations the kernels need; absorbs the differences between
// xsimd versions. Loads and stores accept any alignment; the _partial forms touch only the first n elements.
// Sums over lanes have one fixed order: halves are added until one lane is left.
//
// fma rounds once wherever the Arch can; without such an instruction it is a multiplication and an addition.
#pragma once

#include "arch.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace sluice::simd {

// The bits of one register as another's.
template <class To, class From, class A>
SLUICE_INLINE xsimd::batch<To, A> same_bits(const xsimd::batch<From, A>& a) {
#if XSIMD_VERSION_MAJOR < 11
    return xsimd::bitwise_cast<xsimd::batch<To, A>>(a);
#else
    return xsimd::bitwise_cast<To>(a);
#endif
}

template <class T, class Arch>
class pack {
public:
    using arch = xsimd_arch_t<Arch>;
    using batch = xsimd::batch<T, arch>;
    using mask = typename batch::batch_bool_type;
    using value_type = T;
    using bits_type = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
    static constexpr idx size = static_cast<idx>(batch::size);
    static constexpr bool is_integer = std::is_integral_v<T>;

    // Unknown numbers, and P{} zeros: arrays of accumulators that a constructor fills would stay in memory at
    // -O2, where g++ 12 does not unroll its loop.
    pack() = default;
    SLUICE_INLINE pack(T x) : v(x) {}
    SLUICE_INLINE pack(batch x) : v(x) {}

    static SLUICE_INLINE pack load(const T* p) { return batch::load_unaligned(p); }
    SLUICE_INLINE void store(T* p) const { v.store_unaligned(p); }
    // A register's bytes, of whatever type they are.
    static SLUICE_INLINE pack load_bytes(const void* p) {
#if defined(__ARM_FEATURE_SVE)
        // Loads there are of T: g++ moves them before the stores of another type.
        pack bytes;
        std::memcpy(&bytes.v.data, p, sizeof(bytes.v.data));
        return bytes;
#else
        return load(static_cast<const T*>(p));
#endif
    }
    static SLUICE_INLINE pack load_partial(const T* p, idx n) {
        if (n >= size) return load(p);
        alignas(64) T lanes[batch::size] = {};
        for (idx i = 0; i < n; ++i) lanes[i] = p[i];
        return batch::load_aligned(lanes);
    }
    SLUICE_INLINE void store_partial(T* p, idx n) const {
        if (n >= size) return store(p);
        alignas(64) T lanes[batch::size];
        v.store_aligned(lanes);
        for (idx i = 0; i < n; ++i) p[i] = lanes[i];
    }

    friend SLUICE_INLINE pack operator+(pack a, pack b) { return a.v + b.v; }
    friend SLUICE_INLINE pack operator-(pack a, pack b) { return a.v - b.v; }
    friend SLUICE_INLINE pack operator*(pack a, pack b) { return a.v * b.v; }
    friend SLUICE_INLINE pack operator/(pack a, pack b) {
#if defined(__aarch64__)
        // xsimd multiplies by an estimate here, 2.4 ulp off.
        if constexpr (is_neon) return batch(a.v.data / b.v.data);
#endif
        return a.v / b.v;
    }
    // xsimd 8 subtracts from zero for AVX-512, which loses the sign of -0.
    friend SLUICE_INLINE pack operator-(pack a) { return batch(T(-0.0)) - a.v; }
    friend SLUICE_INLINE pack operator&(pack a, pack b) requires is_integer { return a.v & b.v; }
    friend SLUICE_INLINE pack operator>>(pack a, int n) requires is_integer { return a.v >> n; }
    friend SLUICE_INLINE mask operator<(pack a, pack b) { return a.v < b.v; }
    friend SLUICE_INLINE mask operator==(pack a, pack b) { return a.v == b.v; }
    friend SLUICE_INLINE pack select(mask m, pack a, pack b) { return xsimd::select(m, a.v, b.v); }
    static SLUICE_INLINE bool any(mask m) { return xsimd::any(m); }
    // The larger; the second where either is NaN.
    friend SLUICE_INLINE pack max(pack a, pack b) {
#if defined(__x86_64__) // one instruction that does just that; xsimd 14 turned its operands round
        return XSIMD_VERSION_MAJOR < 14 ? xsimd::max(a.v, b.v) : xsimd::max(b.v, a.v);
#else
        return select(b.v < a.v, a, b);
#endif
    }
    // The smaller; either where one is NaN.
    friend SLUICE_INLINE pack min(pack a, pack b) { return xsimd::min(a.v, b.v); }
    friend SLUICE_INLINE pack sqrt(pack a) {
#if defined(__aarch64__)
        // xsimd's is 1.7 ulp off here, and NaN for infinity.
        if constexpr (is_neon && sizeof(T) == 4) return batch(vsqrtq_f32(a.v.data));
        if constexpr (is_neon && sizeof(T) == 8) return batch(vsqrtq_f64(a.v.data));
#endif
        return xsimd::sqrt(a.v);
    }

    // a * b + c
    friend SLUICE_INLINE pack fma(pack a, pack b, pack c) {
#if defined(__AVX512F__) && XSIMD_VERSION_MAJOR < 11
        // xsimd before 11 multiplies, rounds and adds here.
        if constexpr (sizeof(batch) == 64 && std::is_same_v<T, float>)
            return batch(_mm512_fmadd_ps(a.v, b.v, c.v));
        else if constexpr (sizeof(batch) == 64 && std::is_same_v<T, double>)
            return batch(_mm512_fmadd_pd(a.v, b.v, c.v));
        else
#endif
            return xsimd::fma(a.v, b.v, c.v);
    }

    // Keeps a value that many instructions use in a register: g++ would load it again for each of them.
    friend SLUICE_INLINE pack in_register(pack a) {
#if defined(__x86_64__) && defined(__GNUC__)
        asm("" : "+v"(a.v.data));
#endif
        return a;
    }

    // a * 2^n, where n is the integer that the low bits of `shifted` hold (see exp); no overflow check.
    friend SLUICE_INLINE pack scale_by_bits(pack a, pack shifted) {
        constexpr int mantissa = std::numeric_limits<T>::digits - 1;
        const auto exponent = same_bits<bits_type>(shifted.v) << mantissa;
        return same_bits<T>(same_bits<bits_type>(a.v) + exponent);
    }

    // Of each float's bits the upper 16, or the lower 16 moved up; the rest zero.
    friend SLUICE_INLINE pack upper_halves(pack a, bool lower) requires(sizeof(T) == 4) {
        const auto bits = same_bits<bits_type>(a.v);
        return same_bits<T>(lower ? bits << 16 : bits & xsimd::batch<bits_type, arch>(-65536));
    }

    // Lanes 0 and 1 exchanged, 2 and 3, and so on.
    friend SLUICE_INLINE pack swap_neighbours(pack a) { return swapped(a, lane_indices{}); }

    SLUICE_INLINE T sum() const {
        if constexpr (is_integer) { // in any order
            T lanes[batch::size], total = 0;
            v.store_unaligned(lanes);
            for (const T x : lanes) total += x;
            return total;
        } else
            return first(fold(
                *this, [](pack a, pack b) { return a + b; }, lane_indices{}));
    }
    // The largest lane; NaN lanes may or may not be seen.
    SLUICE_INLINE T largest() const {
        return first(fold(
            *this, [](pack a, pack b) { return max(a, b); }, lane_indices{}));
    }

private:
    static constexpr bool is_neon = std::is_base_of_v<xsimd::neon, arch>;
    using lane_indices = std::make_index_sequence<batch::size>;

    template <std::size_t... I>
    static SLUICE_INLINE pack swapped(pack a, std::index_sequence<I...>) {
        return batch(__builtin_shufflevector(a.v.data, a.v.data, (I ^ 1U)...));
    }
    static SLUICE_INLINE T first(pack a) {
        T lanes[batch::size];
        a.v.store_unaligned(lanes);
        return lanes[0];
    }
    // Combines the upper half of the lanes with the lower, again and again; the result is in lane 0.
    template <std::size_t Half = batch::size / 2, class F, std::size_t... I>
    static SLUICE_INLINE pack fold(pack a, const F& f, std::index_sequence<I...> lanes) {
        const auto x = a.v.data;
        const pack upper(batch(__builtin_shufflevector(x, x, ((I + Half) % batch::size)...)));
        const pack both = f(a, upper);
        if constexpr (Half > 1)
            return fold<Half / 2>(both, f, lanes);
        else
            return both;
    }

public:
    batch v;
};

template <class T>
class pack<T, scalar> {
public:
    using mask = bool;
    using value_type = T;
    using bits_type = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
    static constexpr idx size = 1;
    static constexpr bool is_integer = std::is_integral_v<T>;

    pack() = default;
    SLUICE_INLINE pack(T x) : v(x) {}

    static SLUICE_INLINE pack load(const T* p) { return *p; }
    SLUICE_INLINE void store(T* p) const { *p = v; }
    static SLUICE_INLINE pack load_partial(const T* p, idx n) { return n > 0 ? *p : T(0); }
    SLUICE_INLINE void store_partial(T* p, idx n) const {
        if (n > 0) *p = v;
    }

    friend SLUICE_INLINE pack operator+(pack a, pack b) { return a.v + b.v; }
    friend SLUICE_INLINE pack operator-(pack a, pack b) { return a.v - b.v; }
    friend SLUICE_INLINE pack operator*(pack a, pack b) { return a.v * b.v; }
    friend SLUICE_INLINE pack operator/(pack a, pack b) { return a.v / b.v; }
    friend SLUICE_INLINE pack operator-(pack a) { return -a.v; }
    friend SLUICE_INLINE pack operator&(pack a, pack b) requires is_integer { return a.v & b.v; }
    friend SLUICE_INLINE pack operator>>(pack a, int n) requires is_integer { return a.v >> n; }
    friend SLUICE_INLINE mask operator<(pack a, pack b) { return a.v < b.v; }
    friend SLUICE_INLINE mask operator==(pack a, pack b) { return a.v == b.v; }
    friend SLUICE_INLINE pack select(mask m, pack a, pack b) { return m ? a : b; }
    static SLUICE_INLINE bool any(mask m) { return m; }
    friend SLUICE_INLINE pack max(pack a, pack b) { return b.v < a.v ? a : b; }
    friend SLUICE_INLINE pack min(pack a, pack b) { return b.v < a.v ? b : a; }
    friend SLUICE_INLINE pack sqrt(pack a) { return std::sqrt(a.v); }
    friend SLUICE_INLINE pack fma(pack a, pack b, pack c) {
#if (defined(FP_FAST_FMAF) && defined(FP_FAST_FMA)) || defined(__FMA__) || defined(__ARM_FEATURE_FMA)
        return std::fma(a.v, b.v, c.v); // clang has no FP_FAST_FMA, and by itself fuses only if told
#else
        return a.v * b.v + c.v;
#endif
    }
    friend SLUICE_INLINE pack in_register(pack a) { return a; }
    friend SLUICE_INLINE pack scale_by_bits(pack a, pack shifted) {
        using unsigned_bits = std::make_unsigned_t<bits_type>;
        constexpr int mantissa = std::numeric_limits<T>::digits - 1;
        const auto exponent = std::bit_cast<unsigned_bits>(shifted.v) << mantissa;
        return std::bit_cast<T>(std::bit_cast<unsigned_bits>(a.v) + exponent);
    }
    SLUICE_INLINE T sum() const { return v; }
    SLUICE_INLINE T largest() const { return v; }

    T v;
};

// Lanes n and above become zero.
template <class T, class Arch>
SLUICE_INLINE pack<T, Arch> zero_beyond(pack<T, Arch> a, idx n) {
    T lanes[static_cast<std::size_t>(pack<T, Arch>::size)];
    a.store(lanes);
    return pack<T, Arch>::load_partial(lanes, n);
}

// Calls f with 0 ... N - 1 as compile-time constants. With loops instead, g++ 12 leaves accumulators in
// memory for some numbers of rows.
template <int N, class F>
SLUICE_INLINE void unrolled(const F& f) {
    [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
        (f(std::integral_constant<int, I>{}), ...);
    }
    (std::make_integer_sequence<int, N>{});
}

// Calls f(i, n) for every register of n_elements elements: i is the first element, n how many of the lanes
// are inside. The compiler sees the full registers and the tail as two copies of f.
template <class P, class F>
SLUICE_INLINE void for_each_pack(idx n_elements, F&& f) {
    idx i = 0;
    for (; i + P::size <= n_elements; i += P::size) f(i, P::size);
    if (i < n_elements) f(i, n_elements - i);
}

// Sum over all lanes of what `step(sum, i, n)` adds to a register for elements [i, i + n). Four registers
// take turns, for one would wait for itself; in which order depends on n_elements alone.
template <class P, class F>
SLUICE_INLINE typename P::value_type sum_of_packs(idx n_elements, F&& step) {
    P sums[4] = {};
    idx i = 0;
    for (; i + 4 * P::size <= n_elements; i += 4 * P::size)
        unrolled<4>([&](auto c) { sums[c] = step(sums[c], i + c * P::size, P::size); });
    for (; i + P::size <= n_elements; i += P::size) sums[0] = step(sums[0], i, P::size);
    if (i < n_elements) sums[1] = step(sums[1], i, n_elements - i);
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum();
}

} // namespace sluice::simd
