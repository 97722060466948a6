// Copies or adds up rows that stand far apart, asking for rows ahead of time.
#pragma once

#include "../simd/pack.hpp"

namespace sluice::kernels {

// How many rows ahead to prefetch: short rows need more of them in flight.
constexpr idx gather_ahead(idx row_bytes) { return row_bytes <= 256 ? 16 : row_bytes <= 2048 ? 4 : 1; }

// y(i) = x(rows[i]) for n rows of `width` elements.
struct gather_rows {
    template <class Arch, class T>
    void operator()(Arch, const T* x, idx x_row, const std::int32_t* rows, idx n, idx width, T* y,
                    idx y_row) const;
};

// y = sum over i of x(rows[i]), in order, for one output row.
struct gather_sum {
    template <class Arch, class T>
    void operator()(Arch, const T* x, idx x_row, const std::int32_t* rows, idx n, idx width, T* y) const;
};

// y = sum over i of w[i] x(rows[i]), in order, for one output row; negative rows are left out, and w null
// means ones.
struct gather_weighted {
    template <class Arch, class T>
    void operator()(Arch, const T* x, idx x_row, const std::int32_t* rows, const T* w, idx n, idx width,
                    T* y) const;
};

template <class T>
using gather_calls =
    simd::calls<simd::call<gather_weighted, const T*, idx, const std::int32_t*, const T*, idx, idx, T*>,
                simd::call<gather_rows, const T*, idx, const std::int32_t*, idx, idx, T*, idx>,
                simd::call<gather_sum, const T*, idx, const std::int32_t*, idx, idx, T*>>;

template <class Arch, class T>
void gather_rows::operator()(Arch, const T* x, idx x_row, const std::int32_t* rows, idx n, idx width, T* y,
                             idx y_row) const {
    using P = simd::pack<T, Arch>;
    const idx ahead = gather_ahead(width * static_cast<idx>(sizeof(T)));
    for (idx i = 0; i < n; ++i) {
        const T* from = x + rows[i] * x_row;
        const T* later = x + rows[std::min(i + ahead, n - 1)] * x_row;
        T* to = y + i * y_row;
        simd::for_each_pack<P>(
            width, [&](idx j, idx k) __attribute__((always_inline)) {
                __builtin_prefetch(later + j);
                P::load_partial(from + j, k).store_partial(to + j, k);
            });
    }
}

template <class Arch, class T>
void gather_sum::operator()(Arch, const T* x, idx x_row, const std::int32_t* rows, idx n, idx width,
                            T* y) const {
    using P = simd::pack<T, Arch>;
    const idx ahead = gather_ahead(width * static_cast<idx>(sizeof(T)));
    constexpr idx strip = 8 * P::size; // columns whose sums stay in registers
    for (idx j0 = 0; j0 < width; j0 += strip) {
        const idx columns = std::min(strip, width - j0);
        P sums[8];
        for (idx i = 0; i < n; ++i) {
            const T* from = x + rows[i] * x_row + j0;
            const T* later = x + rows[std::min(i + ahead, n - 1)] * x_row + j0;
            if (columns == strip) {
#pragma GCC unroll 8
                for (int v = 0; v < 8; ++v) {
                    __builtin_prefetch(later + v * P::size);
                    sums[v] = sums[v] + P::load(from + v * P::size);
                }
            } else {
                simd::for_each_pack<P>(columns, [&](idx j, idx k) {
                    __builtin_prefetch(later + j);
                    P& sum = sums[j / P::size];
                    sum = sum + P::load_partial(from + j, k);
                });
            }
        }
        simd::for_each_pack<P>(columns,
                               [&](idx j, idx k) { sums[j / P::size].store_partial(y + j0 + j, k); });
    }
}

template <class Arch, class T>
void gather_weighted::operator()(Arch, const T* x, idx x_row, const std::int32_t* rows, const T* w, idx n,
                                 idx width, T* y) const {
    using P = simd::pack<T, Arch>;
    constexpr idx strip = 8 * P::size; // columns whose sums stay in registers
    for (idx j0 = 0; j0 < width; j0 += strip) {
        const idx columns = std::min(strip, width - j0);
        P sums[8];
        for (idx i = 0; i < n; ++i) {
            if (rows[i] < 0) continue;
            const T* const from = x + rows[i] * x_row + j0;
            const P weight(w == nullptr ? T(1) : w[i]);
            if (columns == strip)
                simd::unrolled<8>([&](auto v) {
                    __builtin_prefetch(from + strip + v * P::size); // the next strip's
                    sums[v] = fma(weight, P::load(from + v * P::size), sums[v]);
                });
            else
                simd::for_each_pack<P>(columns, [&](idx j, idx k) {
                    P& sum = sums[j / P::size];
                    sum = fma(weight, P::load_partial(from + j, k), sum);
                });
        }
        simd::for_each_pack<P>(columns,
                               [&](idx j, idx k) { sums[j / P::size].store_partial(y + j0 + j, k); });
    }
}

} // namespace sluice::kernels
