// Rows of a table that is stored smaller than it is computed with: decoded, scaled and laid side by side,
// asking for rows ahead of time.
#pragma once

#include "../simd/convert.hpp"
#include "gather.hpp"

namespace sluice::kernels {

// y(i) = x(rows[i]) for n rows of `width` elements; where there are scales, each row has `blocks` of them,
// for as many equal parts of it (the last may be shorter).
template <class S, class Scale>
struct decode_rows_args {
    const S* x;
    idx x_row;
    const Scale* scale; // null: none
    idx scale_row, blocks;
    const std::int32_t* rows;
    idx n, width;
};

struct decode_rows {
    template <class Arch, class S, class Scale, class T>
    void operator()(Arch, const decode_rows_args<S, Scale>& a, T* y, idx y_row) const;
};

template <class T>
using table_calls = simd::calls<simd::call<decode_rows, const decode_rows_args<bf16, float>&, T*, idx>,
                                simd::call<decode_rows, const decode_rows_args<half, float>&, T*, idx>,
                                simd::call<decode_rows, const decode_rows_args<std::int8_t, float>&, T*, idx>,
                                simd::call<decode_rows, const decode_rows_args<f8_e4m3, f8_e8m0>&, T*, idx>>;

// to[0, n) = x, for n up to a register.
template <class P, class T>
SLUICE_INLINE void store_first(P x, idx n, T* to) {
    if constexpr (std::is_same_v<T, float>) {
        x.store_partial(to, n);
    } else {
        float lanes[static_cast<std::size_t>(P::size)];
        x.store(lanes);
        for (idx i = 0; i < n; ++i) to[i] = static_cast<T>(lanes[i]);
    }
}

// to[0, n) = scale from[0, n).
template <class Arch, class S, class T>
SLUICE_INLINE void decode(const S* from, float scale, idx n, T* to) {
    using P = simd::pack<float, Arch>;
    const P factor(scale);
    idx j = 0;
    for (; j + 4 * P::size <= n; j += 4 * P::size)
        simd::unrolled<4>([&](auto k) __attribute__((always_inline)) {
            const idx at = j + k * P::size;
            store_first(simd::widen<Arch>(from + at) * factor, P::size, to + at);
        });
    for (; j + P::size <= n; j += P::size) store_first(simd::widen<Arch>(from + j) * factor, P::size, to + j);
    if (j == n) return;
    S last[static_cast<std::size_t>(P::size)] = {}; // of a loop over elements g++ makes a vector one
    for (idx i = j; i < n; ++i) last[i - j] = from[i];
    store_first(simd::widen<Arch>(last) * factor, n - j, to + j);
}

// The rows of one kind, by decode_row(from, number of the row, to). In one loop for all kinds registers run
// out.
template <bool Scaled, class S, class Scale, class T, class F>
SLUICE_INLINE void decode_each(const decode_rows_args<S, Scale>& a, idx width, T* y, idx y_row,
                               const F& decode_row) {
    const idx n = a.n, x_row = a.x_row, bytes = width * static_cast<idx>(sizeof(S));
    const idx ahead = gather_ahead(bytes);
    const std::int32_t* const rows = a.rows;
    const S* const x = a.x;
    auto prefetch = [&](idx row) __attribute__((always_inline)) {
        prefetch_row(x + row * x_row, bytes);
        if constexpr (Scaled) __builtin_prefetch(a.scale + row * a.scale_row);
    };
    for (idx i = 0; i < std::min(ahead, n); ++i) prefetch(rows[i]);
    for (idx i = 0; i < n; ++i, y += y_row) {
        if (i + ahead < n) prefetch(rows[i + ahead]);
        decode_row(x + rows[i] * x_row, rows[i], y);
    }
}

template <class Arch, class S, class Scale, class T>
void decode_rows::operator()(Arch, const decode_rows_args<S, Scale>& a, T* y, idx y_row) const {
    auto rows_of = [&](auto width) __attribute__((always_inline)) {
        const auto plain = [&](const S* from, idx, T* to) __attribute__((always_inline)) {
            decode<Arch>(from, 1.0F, width, to);
        };
        const auto scaled = [&](const S* from, idx row, T* to) __attribute__((always_inline)) {
            decode<Arch>(from, to_float(a.scale[row * a.scale_row]), width, to);
        };
        if (a.scale == nullptr)
            decode_each<false>(a, width, y, y_row, plain);
        else
            decode_each<true>(a, width, y, y_row, scaled);
    };
    if (a.scale != nullptr && a.blocks > 1) {
        const idx part = ceil_div(a.width, a.blocks);
        const auto in_parts = [&](const S* from, idx row, T* to) __attribute__((always_inline)) {
            const Scale* scale = a.scale + row * a.scale_row;
            for (idx begin = 0; begin < a.width; begin += part)
                decode<Arch>(from + begin, to_float(*scale++), std::min(part, a.width - begin), to + begin);
        };
        decode_each<true>(a, a.width, y, y_row, in_parts);
    } else if (a.width == 80) { // of Engram-27B and 40B: without loops over a row, half the time in a cache
        rows_of(std::integral_constant<idx, 80>{});
    } else if (a.width == 64) { // of the published demo
        rows_of(std::integral_constant<idx, 64>{});
    } else {
        rows_of(a.width);
    }
}

} // namespace sluice::kernels
