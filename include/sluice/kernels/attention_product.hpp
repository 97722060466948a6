// The small products of attention: a few rows of queries with a tile of transposed keys, a few rows of
// weights with rows of values. Columns are whole registers, so products have no tail.
//
// Each element is one chain of fma over k: its bits do not depend on the number of rows or columns.
#pragma once

#include "../simd/convert.hpp"
#include "attention_tile.hpp"

namespace sluice::kernels {

// Rows that one pass over B serves; B's row of two registers stays beside their accumulators.
template <class T, class Arch>
constexpr int product_rows = gemm_tile<T, Arch>::rows;

// Where B comes from memory, with gaps between its rows, it is asked for so far ahead, beyond the page where the
// hardware stops. Measured for decode: 14 % faster from memory, 10 % slower from L3; 12 rows gain less.
template <class S>
constexpr idx rows_ahead = 80 / static_cast<idx>(sizeof(S));

// What a B of int8 is multiplied with: a number for each of its rows, or of its columns.
enum class scales_of { rows, columns };

// c (+)= a B: a is m x k, B k x n with n whole registers, m up to product_rows. B may be kept smaller than T,
// and is then widened in registers.
template <class T, class S = T, scales_of Scales = scales_of::rows>
struct row_product_args {
    const T* a;
    idx a_row;
    const S* b;
    idx b_row;
    T* c;
    idx c_row;
    idx m, n, k;
    bool add;
    idx ask = 0;                   // elements of B's coming rows to ask for: n where B comes from memory
    const float* scales = nullptr; // of a B of int8
};

template <class Arch, int Rows, int Registers, class T, class S, scales_of Scales>
SLUICE_INLINE void row_product_at(const row_product_args<T, S, Scales>& g, idx column) {
    using P = simd::pack<T, Arch>;
    constexpr int pointers = (Rows + 2) / 3; // one for three rows: more would not fit the registers
    const idx steps = g.k, a_row = g.a_row, b_row = g.b_row, c_row = g.c_row;
    const idx ask = column == 0 ? g.ask : 0; // whole rows, in the first pass
    const S* b = g.b + column;
    T* const c = g.c + column;
    constexpr bool scaled = std::is_same_v<S, std::int8_t>;
    P scale[std::size_t{Registers}];
    if constexpr (scaled && Scales == scales_of::columns)
        simd::unrolled<Registers>([&](auto v) { scale[v] = P::load(g.scales + column + v * P::size); });
    P sum[std::size_t{Rows}][std::size_t{Registers}] = {};
    if (g.add)
        simd::unrolled<Rows>([&](auto i) {
            simd::unrolled<Registers>([&](auto v) { sum[i][v] = P::load(c + i * c_row + v * P::size); });
        });
    const T* a[std::size_t{pointers}];
    simd::unrolled<pointers>([&](auto i) { a[i] = g.a + 3 * i * a_row; });
    for (idx k = 0; k < steps; ++k, b += b_row) {
        P right[std::size_t{Registers}];
        if constexpr (scaled && Scales == scales_of::rows)
            simd::unrolled<Registers>([&](auto v) { scale[v] = P(g.scales[k]); });
        simd::unrolled<Registers>([&](auto v) {
            if constexpr (scaled)
                right[v] = in_register(simd::widen<Arch>(b + v * P::size) * scale[v]);
            else if constexpr (!std::is_same_v<S, T>)
                right[v] = in_register(simd::widen<Arch>(b + v * P::size));
            else
                right[v] = in_register(P::load(b + v * P::size));
        });
        for (idx j = 0; j < ask; j += 64 / static_cast<idx>(sizeof(S))) {
            if (ask == b_row) // no gaps
                __builtin_prefetch(read_ahead(b + j), 0, 2);
            else
                __builtin_prefetch(b + rows_ahead<S> * b_row + j);
        }
        simd::unrolled<Rows>([&](auto i) {
            const P x(a[i / 3][i % 3 * a_row]);
            simd::unrolled<Registers>([&](auto v) { sum[i][v] = fma(x, right[v], sum[i][v]); });
        });
        simd::unrolled<pointers>([&](auto i) { ++a[i]; });
    }
    simd::unrolled<Rows>([&](auto i) {
        simd::unrolled<Registers>([&](auto v) { sum[i][v].store(c + i * c_row + v * P::size); });
    });
}

template <class Arch, int Rows, class T, class S, scales_of Scales>
void row_product(const row_product_args<T, S, Scales>& g) {
    if constexpr (Rows > 1) {
        if (g.m < Rows) return row_product<Arch, Rows - 1>(g);
    }
    constexpr idx lanes = simd::pack<T, Arch>::size;
    idx j = 0;
    if constexpr (2 * Rows <= product_rows<T, Arch>) // or too few sums would be under way
        for (; j + 4 * lanes <= g.n; j += 4 * lanes) row_product_at<Arch, Rows, 4>(g, j);
    for (; j + 2 * lanes <= g.n; j += 2 * lanes) row_product_at<Arch, Rows, 2>(g, j);
    for (; j < g.n; j += lanes) row_product_at<Arch, Rows, 1>(g, j);
}

template <class Arch, class T, class S, scales_of Scales>
void row_product(const row_product_args<T, S, Scales>& g) {
    row_product<Arch, product_rows<T, Arch>>(g);
}

// Columns `keys` of a tile of transposed keys, to[e * to_row + j] = from[j * from_row + e]. Columns beside
// them, up to whole registers, become anything.
template <class Arch, class T>
void transpose_rows(const T* from, idx from_row, key_range keys, idx elements, T* to, idx to_row) {
    using P = simd::pack<T, Arch>;
    constexpr idx lanes = P::size;
    for (idx j = keys.lo / lanes * lanes; j < keys.hi; j += lanes) {
        const T* row[static_cast<std::size_t>(lanes)]; // those that are there, the edge again for the others
        for (idx r = 0; r < lanes; ++r) row[r] = from + std::clamp(j + r, keys.lo, keys.hi - 1) * from_row;
        simd::for_each_pack<P>(elements, [&](idx e, idx n) {
            P square[static_cast<std::size_t>(lanes)];
#pragma GCC unroll 16
            for (idx r = 0; r < lanes; ++r) square[r] = P::load_partial(row[r] + e, n);
            transpose(square);
            T* const at = to + e * to_row + j;
            if (n == lanes) {
#pragma GCC unroll 16
                for (idx r = 0; r < lanes; ++r) square[r].store(at + r * to_row);
            } else {
                for (idx r = 0; r < n; ++r) square[r].store(at + r * to_row);
            }
        });
    }
}

// Whether n rows hold neither NaN nor infinity.
template <class Arch, class T>
bool all_finite(const T* x, idx x_row, idx n, idx elements) {
    using P = simd::pack<T, Arch>;
    P sum[2] = {};
    for (idx i = 0; i < n; ++i)
        simd::for_each_pack<P>(elements, [&](idx j, idx k) {
            sum[i % 2] = fma(P::load_partial(x + i * x_row + j, k), P(T(0)), sum[i % 2]); // 0, or NaN
        });
    return (sum[0] + sum[1]).sum() == T(0);
}

} // namespace sluice::kernels
