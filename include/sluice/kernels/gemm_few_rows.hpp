// C = start + A B^T for few rows of A, with B's rows where the user stores them. Reading B is what takes the
// time, so it is read once: squares of it are transposed in registers and multiplied, and no panel is made.
//
// Each element of C is the same chain of fma over k as in gemm.hpp.
#pragma once

#include "gemm.hpp"

namespace sluice::kernels {

// As gemm_block_args, with n rows of B of S in place of panels. m is at most gemm_tile::rows.
template <class T, class S = T>
struct gemm_few_rows_args {
    const T* a;
    idx a_row; // A(i, k) = a[i * a_row + k]
    const S* b;
    idx b_row; // B^T(k, j) = b[j * b_row + k]
    const T* start;
    idx start_row;
    T* c;
    idx c_row;
    idx m, n, k;
};

struct gemm_few_rows {
    template <class Arch, class T, class S>
    void operator()(Arch, const gemm_few_rows_args<T, S>& g) const;
};

template <class T, class S = T>
using gemm_few_rows_calls = simd::calls<simd::call<gemm_few_rows, const gemm_few_rows_args<T, S>&>>;

// Steps of k that a square of B holds: a register for each of its rows, or half of one where bf16 is widened.
template <class Arch, class T, class S>
constexpr int square_steps =
    simd::pack<T, Arch>::size*(std::is_same_v<S, bf16> && !std::is_same_v<Arch, simd::scalar> ? 2 : 1);

// A square of B in registers, one for each row.
template <class Arch, class T, class S>
struct gemm_square {
    using P = simd::pack<T, Arch>;
    static constexpr int size = P::size;
    static constexpr bool pairs = square_steps<Arch, T, S> != size;
    P words[std::size_t{size}]; // of one element, or two of bf16

    template <class F>
    SLUICE_INLINE void load(const F& row) {
        simd::unrolled<size>([&](auto r) __attribute__((always_inline)) {
            const S* from = row(r);
            if constexpr (std::is_same_v<S, T>)
                words[r] = P::load(from);
            else if constexpr (pairs)
                words[r] = P::load_bytes(from);
            else
                words[r] = widen<T>(*from);
        });
    }
    // out[q][r] = row(r)[q], once the words are transposed.
    SLUICE_INLINE void store(T* out) const {
        simd::unrolled<size>([&](auto q) __attribute__((always_inline)) {
            if constexpr (pairs) {
                upper_halves(words[q], true).store(out + 2 * q * size);
                upper_halves(words[q], false).store(out + (2 * q + 1) * size);
            } else {
                words[q].store(out + q * size);
            }
        });
    }
};

template <class Arch, int Rows, class T, class S>
SLUICE_INLINE void gemm_strip(const gemm_few_rows_args<T, S>& g, idx j, idx width) {
    using P = simd::pack<T, Arch>;
    using square = gemm_square<Arch, T, S>;
    constexpr idx size = P::size, steps = square_steps<Arch, T, S>;
    // The rows are too many for the hardware to follow. From 1024 bytes ahead a quarter slower; asked for all at
    // once, and not one with each step, a tenth.
    constexpr idx ahead = (64 + 128 * (steps / size)) / static_cast<idx>(sizeof(S));
    // an array of packs g++ 12 would keep in memory, and load and store every sum at every step
    decltype(P::v) sums[std::size_t{Rows}];
    simd::unrolled<Rows>([&](auto i) {
        sums[i] = (g.start == nullptr ? P(T(0)) : P::load_partial(g.start + i * g.start_row + j, width)).v;
    });
    // rows beyond the last are the last again; their columns are not stored
    const S* rows[std::size_t{size}];
    for (idx r = 0; r < size; ++r) rows[r] = g.b + (j + std::min(r, width - 1)) * g.b_row;
    // one pointer for three rows of A, or they would not fit the registers
    const T* a[(std::size_t{Rows} + 2) / 3];
    simd::unrolled<(Rows + 2) / 3>([&](auto i) { a[i] = g.a + 3 * i * g.a_row; });
    const idx a_row = g.a_row;

    alignas(64) T buffers[2][std::size_t{steps * size}];
    T *now = buffers[0], *next = buffers[1];
    idx k = 0; // where `now` begins
    const auto multiply = [&](idx begin, idx end) __attribute__((always_inline)) {
        for (idx q = begin; q < end; ++q) {
            const P b = in_register(P::load(now + q * size));
            __builtin_prefetch(rows[q % size] + k + ahead);
            simd::unrolled<Rows>([&](auto i) __attribute__((always_inline)) {
                sums[i] = fma(P(a[i / 3][i % 3 * a_row]), b, P(sums[i])).v;
            });
            simd::unrolled<(Rows + 2) / 3>([&](auto i) { ++a[i]; });
        }
    };

    const idx whole = g.k / steps * steps;
    if (whole > 0) {
        square first;
        first.load([&](int r) { return rows[r]; });
        transpose(first.words);
        first.store(now);
    }
    // The next square is transposed while this one is multiplied: 1.4 times as fast as one after the other.
    for (; k + steps < whole; k += steps, std::swap(now, next)) {
        square coming;
        coming.load([&](int r) { return rows[r] + k + steps; });
        constexpr idx stages = std::max(1, simd::transpose_stages<P>);
        idx done = 0;
        transpose(
            coming.words, [&]() __attribute__((always_inline)) {
                multiply(done, done + steps / stages);
                done += steps / stages;
            });
        multiply(done, steps);
        coming.store(next);
    }
    if (k < whole) {
        multiply(0, steps);
        k = whole;
    }
    if (const idx n = g.k - k; n > 0) {
        S rest[std::size_t{size}][std::size_t{steps}] = {};
        for (idx r = 0; r < size; ++r) std::copy_n(rows[r] + k, n, rest[r]);
        square last;
        last.load([&](int r) { return rest[r]; });
        transpose(last.words);
        last.store(now);
        multiply(0, n);
    }
    simd::unrolled<Rows>([&](auto i) { P(sums[i]).store_partial(g.c + i * g.c_row + j, width); });
}

template <class Arch, int Rows, class T, class S>
inline void gemm_strips(const gemm_few_rows_args<T, S>& g) {
    constexpr idx size = simd::pack<T, Arch>::size;
    if (g.m >= Rows) {
        for (idx j = 0; j < g.n; j += size) gemm_strip<Arch, Rows>(g, j, std::min(size, g.n - j));
    } else if constexpr (Rows > 1) {
        gemm_strips<Arch, Rows - 1>(g);
    }
}

template <class Arch, class T, class S>
void gemm_few_rows::operator()(Arch, const gemm_few_rows_args<T, S>& g) const {
    gemm_strips<Arch, gemm_tile<T, Arch>::rows>(g);
}

} // namespace sluice::kernels
