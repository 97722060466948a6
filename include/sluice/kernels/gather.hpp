// Copies or adds up rows that stand far apart, asking for rows ahead of time.
#pragma once

#include "../simd/pack.hpp"

namespace sluice::kernels {

// How many rows ahead to prefetch: 4 to 6 KB are in flight then (measured on Zen 5 for rows of 80 bytes to
// 8 KB; half of it costs a tenth, a quarter a third).
constexpr idx gather_ahead(idx row_bytes) {
    return row_bytes <= 192 ? 32 : row_bytes <= 512 ? 16 : row_bytes <= 1024 ? 8 : row_bytes <= 4096 ? 4 : 1;
}

SLUICE_INLINE void prefetch_row(const void* row, idx bytes) {
    for (idx b = 0; b < bytes; b += 64) __builtin_prefetch(static_cast<const char*>(row) + b);
}

// y(i) = x(rows[i]) for n rows of `width` elements.
struct gather_rows {
    template <class Arch, class T>
    void operator()(Arch, const T* x, idx x_row, const std::int32_t* rows, idx n, idx width, T* y,
                    idx y_row) const;
};

// y(i) = sum over j of x(rows[i n + j]), in order, for `outputs` rows.
struct gather_sum {
    template <class Arch, class T>
    void operator()(Arch, const T* x, idx x_row, const std::int32_t* rows, idx n, idx width, T* y, idx y_row,
                    idx outputs) const;
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
                simd::call<gather_sum, const T*, idx, const std::int32_t*, idx, idx, T*, idx, idx>>;

template <class Arch, class T>
void gather_rows::operator()(Arch, const T* x, idx x_row, const std::int32_t* rows, idx n, idx width, T* y,
                             idx y_row) const {
    using P = simd::pack<T, Arch>;
    auto rows_of = [&](auto row_width) __attribute__((always_inline)) {
        const idx bytes = row_width * static_cast<idx>(sizeof(T)), ahead = gather_ahead(bytes);
        for (idx i = 0; i < std::min(ahead, n); ++i) prefetch_row(x + rows[i] * x_row, bytes);
        T* to = y;
        for (idx i = 0; i < n; ++i, to += y_row) {
            const T *from = x + rows[i] * x_row, *later = x + rows[std::min(i + ahead, n - 1)] * x_row;
            simd::for_each_pack<P>(
                row_width, [&](idx j, idx k) __attribute__((always_inline)) {
                    __builtin_prefetch(later + j); // all of a long row at once takes longer
                    P::load_partial(from + j, k).store_partial(to + j, k);
                });
        }
    };
    if (width == 80) // of Engram-27B and 40B, whose tables may fit a cache: no loops over a row
        rows_of(std::integral_constant<idx, 80>{});
    else
        rows_of(width);
}

// Rows of exactly R registers, so that their sums stay there; those of later outputs are asked for as well.
template <int R, class Arch, class T>
SLUICE_INLINE void sum_short_rows(const T* x, idx x_row, const std::int32_t* rows, idx n, T* y, idx y_row,
                                  idx outputs) {
    using P = simd::pack<T, Arch>;
    constexpr idx bytes = R * P::size * static_cast<idx>(sizeof(T)), ahead = gather_ahead(bytes);
    const idx all = n * outputs;
    for (idx i = 0; i < std::min(ahead, all); ++i) prefetch_row(x + rows[i] * x_row, bytes);
    idx i = 0;
    for (idx o = 0; o < outputs; ++o, y += y_row) {
        P sums[std::size_t{R}] = {};
        for (const idx end = i + n; i < end; ++i) {
            const T *from = x + rows[i] * x_row, *later = x + rows[std::min(i + ahead, all - 1)] * x_row;
            prefetch_row(later, bytes);
            simd::unrolled<R>([&](auto v) __attribute__((always_inline)) {
                sums[v] = sums[v] + P::load(from + v * P::size);
            });
        }
        simd::unrolled<R>([&](auto v) __attribute__((always_inline)) { sums[v].store(y + v * P::size); });
    }
}

template <class Arch, class T>
void gather_sum::operator()(Arch, const T* x, idx x_row, const std::int32_t* rows, idx n, idx width, T* y,
                            idx y_row, idx outputs) const {
    using P = simd::pack<T, Arch>;
    constexpr idx strip = 8 * P::size; // columns whose sums stay in registers
    bool done = false;
    simd::unrolled<8>([&](auto r) __attribute__((always_inline)) {
        if (width != (r + 1) * P::size) return;
        sum_short_rows<r + 1, Arch>(x, x_row, rows, n, y, y_row, outputs);
        done = true;
    });
    if (done) return;
    const idx ahead = std::clamp<idx>(n / 2, 1, gather_ahead(width * static_cast<idx>(sizeof(T))));
    for (idx o = 0; o < outputs; ++o, rows += n, y += y_row)
        for (idx j0 = 0; j0 < width; j0 += strip) {
            const idx columns = std::min(strip, width - j0);
            P sums[8] = {};
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
        P sums[8] = {};
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
