// Copies or adds up rows that stand far apart, asking for rows ahead of time.
#pragma once

#include "../simd/pack.hpp"

namespace sluice::kernels {

// How many rows ahead to prefetch: short rows need more of them in flight.
constexpr idx gather_ahead(idx row_bytes) { return row_bytes <= 256 ? 16 : row_bytes <= 2048 ? 4 : 0; }

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

template <class T>
SLUICE_INLINE void prefetch_row(const T* row, idx width) {
    for (idx j = 0; j < width; j += 64 / static_cast<idx>(sizeof(T))) __builtin_prefetch(row + j);
}

template <class Arch, class T>
void gather_rows::operator()(Arch, const T* x, idx x_row, const std::int32_t* rows, idx n, idx width, T* y,
                             idx y_row) const {
    using P = simd::pack<T, Arch>;
    const idx ahead = gather_ahead(width * static_cast<idx>(sizeof(T)));
    for (idx i = 0; i < n; ++i) {
        if (ahead > 0 && i + ahead < n) prefetch_row(x + rows[i + ahead] * x_row, width);
        const T* from = x + rows[i] * x_row;
        T* to = y + i * y_row;
        simd::for_each_pack<P>(width,
                               [&](idx j, idx k) { P::load_partial(from + j, k).store_partial(to + j, k); });
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
            if (j0 == 0 && ahead > 0 && i + ahead < n) prefetch_row(x + rows[i + ahead] * x_row, width);
            const T* from = x + rows[i] * x_row + j0;
            if (columns == strip) {
#pragma GCC unroll 8
                for (int v = 0; v < 8; ++v) sums[v] = sums[v] + P::load(from + v * P::size);
            } else {
                simd::for_each_pack<P>(columns, [&](idx j, idx k) {
                    P& sum = sums[j / P::size];
                    sum = sum + P::load_partial(from + j, k);
                });
            }
        }
        simd::for_each_pack<P>(columns,
                               [&](idx j, idx k) { sums[j / P::size].store_partial(y + j0 + j, k); });
    }
}

} // namespace sluice::kernels
