// What the machine can do at most, as loops that are timed beside an op: arithmetic of one kind for as long
// as the op takes, and ordinary loads and stores of as many bytes as the op touches, so that they live in the
// same level of the memory.
#pragma once

#include "fma_peak.hpp"
#include "measure.hpp"

#include <sluice/core/executor.hpp>
#include <sluice/core/tensor.hpp>

#include <benchmark/benchmark.h>

#include <string>

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#    include <immintrin.h>
#endif

namespace sluice::bench {

// The instruction whose peak counts: the best that an op can use.
enum class unit { f32_fma, f64_fma, int8_dot };

inline std::string name_of(unit u) {
    return u == unit::f32_fma ? "f32 fma" : u == unit::f64_fma ? "f64 fma" : "int8 dot";
}

inline namespace SLUICE_ISA {

#if defined(__AVX512VNNI__)
using int8_register = __m512i;
inline int8_register int8_fill(int x) { return _mm512_set1_epi32(x); }
inline int8_register int8_dot(int8_register c, int8_register a, int8_register b) {
    return _mm512_dpbusd_epi32(c, a, b);
}
#elif defined(__AVXVNNI__)
using int8_register = __m256i;
inline int8_register int8_fill(int x) { return _mm256_set1_epi32(x); }
inline int8_register int8_dot(int8_register c, int8_register a, int8_register b) {
    return _mm256_dpbusd_avx_epi32(c, a, b);
}
#else
struct int8_register {}; // no such instruction: rounds that do nothing
inline int8_register int8_fill(int) { return {}; }
inline int8_register int8_dot(int8_register c, int8_register, int8_register) { return c; }
#endif

inline constexpr bool has_int8_dot = sizeof(int8_register) > 1;

[[gnu::noinline]] inline double int8_rounds(idx rounds) {
    int8_register chain[std::size_t{peak_chains}];
    for (int i = 0; i < peak_chains; ++i) chain[i] = int8_fill(i);
    const int8_register a = int8_fill(static_cast<int>(rounds)), b = int8_fill(0x01FF01FF);
    for (idx r = 0; r < rounds; ++r)
#pragma GCC unroll 12
        for (int i = 0; i < peak_chains; ++i) chain[i] = int8_dot(chain[i], a, b);
    benchmark::DoNotOptimize(chain);
    return 0;
}

// A multiplication and an addition for every byte of a register.
constexpr double int8_ops() { return has_int8_dot ? 2.0 * peak_chains * double{sizeof(int8_register)} : 0; }

inline double ops_of_round(unit u) {
    return u == unit::f32_fma ? fma_ops<float>() : u == unit::f64_fma ? fma_ops<double>() : int8_ops();
}
inline double run_rounds(unit u, idx rounds) {
    return u == unit::f32_fma   ? fma_rounds<float>(rounds)
           : u == unit::f64_fma ? fma_rounds<double>(rounds)
                                : int8_rounds(rounds);
}

// Arithmetic that takes about `seconds` on all workers of `ex`.
class peak_loop {
public:
    peak_loop(unit u, double seconds, executor_ref ex) : unit_(u), ex_(ex) {
        // A chunk of rounds for each of several tasks a worker, as ops have them.
        tasks_ = 16 * ex.concurrency();
        rounds_ = std::max<idx>(1, static_cast<idx>(seconds * rounds_per_second(u) / 16));
    }
    void operator()() const {
        ex_(tasks_, [&](idx begin, idx end, idx) {
            for (idx i = begin; i < end; ++i) benchmark::DoNotOptimize(run_rounds(unit_, rounds_));
        });
    }
    double ops() const { return ops_of_round(unit_) * static_cast<double>(rounds_ * tasks_); }

private:
    static double rounds_per_second(unit u) {
        constexpr idx probe = 200'000;
        static const double rates[] = {rate(unit::f32_fma, probe), rate(unit::f64_fma, probe),
                                       rate(unit::int8_dot, probe)};
        return rates[static_cast<std::size_t>(u)];
    }
    static double rate(unit u, idx rounds) {
        return static_cast<double>(rounds) /
               estimate([=] { benchmark::DoNotOptimize(run_rounds(u, rounds)); });
    }

    unit unit_;
    executor_ref ex_;
    idx tasks_, rounds_;
};

// What an op does to memory, if it does it only once.
enum class traffic {
    read,
    write,
    copy,    // one tensor in, another out
    combine, // two in, a third out
    update,  // one tensor in place
};

inline std::string name_of(traffic t) {
    constexpr const char* names[] = {"read", "write", "copy", "combine", "update"};
    return names[static_cast<std::size_t>(t)];
}

// `bytes` are all loads and stores together, as a program sees them: what the cache fetches before a store is
// not counted, neither here nor for the op. With several `windows` every call passes over another part of
// the memory, as an op does that needs a part of its weights.
class stream_loop {
public:
    stream_loop(traffic kind, double bytes, executor_ref ex, idx windows = 1)
        : kind_(kind), ex_(ex), windows_(windows) {
        constexpr double passes[] = {1, 1, 2, 3, 2}, tensors[] = {1, 1, 2, 3, 1};
        const auto k = static_cast<std::size_t>(kind);
        blocks_ = std::max<idx>(1, static_cast<idx>(std::llround(bytes / passes[k] / block_bytes)));
        bytes_ = passes[k] * static_cast<double>(blocks_) * block_bytes;
        memory_ = tensor<float>(blocks_ * windows * static_cast<idx>(tensors[k]), block);
    }
    void operator()() {
        const idx first = window_ * blocks_, apart = blocks_ * windows_ * block;
        window_ = (window_ + 1) % windows_;
        ex_(blocks_, [&](idx begin, idx end, idx) {
            const idx n = (end - begin) * block;
            float *a = memory_.row(first + begin), *b = a + apart, *c = b + apart;
            switch (kind_) {
            case traffic::read:
                return read(a, n);
            case traffic::write:
                return each(n, [=](idx i) { P(1.0F).store(a + i); });
            case traffic::copy:
                return each(n, [=](idx i) { P::load(a + i).store(b + i); });
            case traffic::combine:
                return each(n, [=](idx i) { (P::load(a + i) + P::load(b + i)).store(c + i); });
            case traffic::update:
                return each(n, [=](idx i) { (P::load(a + i) * P(0.5F)).store(a + i); });
            }
        });
    }
    double bytes() const { return bytes_; }

private:
    using P = simd::pack<float, simd::native>;
    static constexpr idx block = 4096; // floats of a task; 16 KiB also fit where the op is small
    static constexpr double block_bytes = 4.0 * block;

    // Several parts side by side: hardware follows each page by itself, and one after another some processors
    // read at two thirds of the speed.
    static void read(const float* a, idx n) {
        constexpr int parts = 8;
        P sum[std::size_t{parts}] = {};
        for (idx i = 0, apart = n / parts; i < apart; i += P::size)
#pragma GCC unroll 8
            for (int c = 0; c < parts; ++c) sum[c] = sum[c] + P::load(a + c * apart + i);
        for (int c = 1; c < parts; ++c) sum[0] = sum[0] + sum[c];
        benchmark::DoNotOptimize(sum[0].sum());
    }
    template <class F>
    static void each(idx n, F&& f) {
        for (idx i = 0; i < n; i += 4 * P::size)
#pragma GCC unroll 4
            for (idx c = 0; c < 4; ++c) f(i + c * P::size);
    }

    traffic kind_;
    executor_ref ex_;
    idx blocks_ = 0, windows_ = 1, window_ = 0;
    double bytes_ = 0;
    tensor<float> memory_;
};

// In Gop/s: the best of several samples, which is what the machine can do when nobody else uses it.
inline double measured_peak(unit u, executor_ref ex) {
    if (ops_of_round(u) == 0) return 0;
    const peak_loop loop(u, 20e-3, ex);
    return 1e-9 * loop.ops() / interleave({{loop}}, {.target = 0.2}).front().best();
}

// In GB/s, likewise.
inline double measured_bandwidth(traffic kind, double bytes, executor_ref ex) {
    stream_loop loop(kind, bytes, ex);
    return 1e-9 * loop.bytes() / interleave({{std::ref(loop)}}, {.target = 0.2}).front().best();
}

} // namespace SLUICE_ISA
} // namespace sluice::bench
