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

// out[q][r] = row(r)[q] for a square of B.
template <class Arch, class T, class S, class F>
SLUICE_INLINE void transpose_square(const F& row, T* out) {
    using P = simd::pack<T, Arch>;
    constexpr int size = P::size;
    constexpr bool pairs = square_steps<Arch, T, S> != size;
    P words[std::size_t{size}]; // of one element, or two of bf16
    simd::unrolled<size>([&](auto r) {
        const S* from = row(r);
        if constexpr (std::is_same_v<S, T>)
            words[r] = P::load(from);
        else if constexpr (pairs)
            words[r] = P::load_bytes(from);
        else
            words[r] = widen<T>(*from);
    });
    transpose(words);
    simd::unrolled<size>([&](auto q) {
        if constexpr (pairs) {
            upper_halves(words[q], true).store(out + 2 * q * size);
            upper_halves(words[q], false).store(out + (2 * q + 1) * size);
        } else {
            words[q].store(out + q * size);
        }
    });
}

template <class Arch, int Rows, class T, class S>
SLUICE_INLINE void gemm_strip(const gemm_few_rows_args<T, S>& g, idx j, idx width) {
    using P = simd::pack<T, Arch>;
    constexpr idx size = P::size, steps = square_steps<Arch, T, S>;
    // too many rows for the hardware to follow; from 1024 bytes ahead a quarter slower
    constexpr idx ahead = 256 / static_cast<idx>(sizeof(S));
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
    alignas(64) T square[std::size_t{steps * size}];
    for (idx k = 0; k < g.k; k += steps) {
        const idx n = std::min(steps, g.k - k);
        if (n == steps) {
            transpose_square<Arch, T, S>(
                [&](int r) {
                    // not to L1: rows a power of two apart would not all fit
                    __builtin_prefetch(rows[r] + k + ahead, 0, 2);
                    return rows[r] + k;
                },
                square);
        } else {
            S rest[std::size_t{size}][std::size_t{steps}] = {};
            for (idx r = 0; r < size; ++r) std::copy_n(rows[r] + k, n, rest[r]);
            transpose_square<Arch, T, S>([&](int r) { return rest[r]; }, square);
        }
        for (idx q = 0; q < n; ++q) {
            const P b = in_register(P::load(square + q * size));
            simd::unrolled<Rows>([&](auto i) { sums[i] = fma(P(a[i / 3][i % 3 * a_row]), b, P(sums[i])).v; });
            simd::unrolled<(Rows + 2) / 3>([&](auto i) { ++a[i]; });
        }
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
