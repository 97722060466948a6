// Multiplications and additions without any memory: the most that one thread can do.
#pragma once

#include <sluice/simd/pack.hpp>

#include <algorithm>

namespace sluice::bench {
inline namespace SLUICE_ISA {

// 12 chains: two units with a latency of four or five cycles need 8 to 10, and 16 registers hold no more.
inline constexpr int peak_chains = 12;

template <class T>
[[gnu::noinline]] double fma_rounds(idx rounds) {
    using P = simd::pack<T, simd::native>;
    P chain[std::size_t{peak_chains}];
    // Different starts, or the compiler would see one chain.
    for (int i = 0; i < peak_chains; ++i) chain[i] = P(static_cast<T>(i) + static_cast<T>(rounds));
    const P shrink(T(0.5)), step(T(0.25));
    for (idx r = 0; r < rounds; ++r)
#pragma GCC unroll 12
        for (int i = 0; i < peak_chains; ++i) chain[i] = fma(chain[i], shrink, step);
    P sum = chain[0];
    for (int i = 1; i < peak_chains; ++i) sum = sum + chain[i];
    return static_cast<double>(sum.sum());
}

template <class T>
constexpr double fma_ops() {
    return 2.0 * peak_chains * simd::pack<T, simd::native>::size;
}

// Operations a second of the calling thread by seconds(): the best of several samples, which is what the
// machine can do when nobody else uses it.
template <class Clock>
double thread_peak(const Clock& seconds) {
    constexpr idx rounds = 2'000'000;
    double best = 0;
    volatile double kept = 0; // or nothing would be computed
    for (int i = 0; i < 10; ++i) {
        const double start = seconds();
        kept = fma_rounds<float>(rounds);
        best = std::max(best, fma_ops<float>() * static_cast<double>(rounds) / (seconds() - start));
    }
    (void)kept;
    return best;
}

} // namespace SLUICE_ISA
} // namespace sluice::bench
