// C = start + A B for rows of A that are bytes (quantise.hpp) and panels of B that hold codes
// (core/quantised.hpp): for each group of k an exact sum of products of integers, then one fma with the
// product of both scales.
//
// Each element of C is one chain of such groups over k: its bits do not depend on the number of rows, on the
// tile, or on where the k-range was cut.
#pragma once

#include "quantise.hpp"
#include "read_ahead.hpp"
#include "widen.hpp"

namespace sluice::kernels {

// Rows of a tile. In blocks of 32 both the integers and the floats of a tile need registers.
template <class S, class Arch>
constexpr int byte_tile_rows(Arch arch) {
    constexpr bool long_groups = panel_format<S>::group > panel_format<S>::block;
    return simd::lanes<float>(arch) == 16 ? (long_groups ? 8 : 6) : long_groups ? 4 : 2;
}
// Up to so many rows are one tile, whose floats wait in C: B comes from memory once, and no second pass has
// to wait for it. 8 rows of int8_block: 0.57 to 0.71 of the bandwidth. With minima it would halve the speed.
template <class S, class Arch>
constexpr int byte_most_rows(Arch arch) {
    return panel_format<S>::has_min ? byte_tile_rows<S>(arch) : simd::lanes<float>(arch) == 16 ? 8 : 4;
}

template <class S>
struct gemm_bytes_args {
    const std::byte *codes, *scales, *starts; // of A's first row, at the range's first group
    idx a_row;                                // bytes from row to row
    const std::byte* panels;                  // at the range's first block
    const std::byte* heads;                   // where panels begin
    idx panel_stride;                         // bytes
    const float* start;                       // as in gemm_block_args
    idx start_row;
    float* c; // m x n
    idx c_row;
    idx m, n, n_blocks; // k in blocks
};

struct gemm_bytes {
    template <class Arch, class S>
    void operator()(Arch, const gemm_bytes_args<S>& g) const;
};
template <class S>
using gemm_bytes_calls = simd::calls<simd::call<gemm_bytes, const gemm_bytes_args<S>&>>;

template <class T>
SLUICE_INLINE T read_as(const std::byte* p) {
    T x;
    std::memcpy(&x, p, sizeof(x));
    return x;
}

template <class Arch, int Rows, bool Full, bool FromMemory, class S>
SLUICE_INLINE void gemm_bytes_micro(const gemm_bytes_args<S>& g, const std::byte* panel,
                                    const std::byte* head, idx i0, gemm_columns<Arch, float> at, idx offset) {
    using P = simd::pack<float, Arch>;
    using W = simd::words<Arch>;
    using format = panel_format<S>;
    constexpr idx half = 4 * gemm_tile<float, Arch>::half;
    // Where the integers take all registers, sums wait in C.
    constexpr bool in_c = format::group > format::block || Rows > byte_tile_rows<S>(Arch{});
    constexpr int kept = in_c ? 1 : Rows;
    P low[std::size_t{kept}], high[std::size_t{kept}];
    float* const c = g.c + i0 * g.c_row;
    const idx c_row = g.c_row, a_row = g.a_row;
    simd::unrolled<Rows>([&](auto i) {
        constexpr int r = in_c ? 0 : i;
        if (g.start != nullptr) {
            const float* const from = g.start + (i0 + i) * g.start_row;
            low[r] = at.load(from, offset, 0, Full);
            high[r] = at.load(from, offset, 1, Full);
        } else {
            low[r] = high[r] = P(0);
        }
        if constexpr (in_c) {
            at.store(low[r], c + i * c_row, offset, 0, Full);
            at.store(high[r], c + i * c_row, offset, 1, Full);
        }
    });
    // one pointer for three rows: more would not fit the registers
    const std::byte* a[(std::size_t{Rows} + 2) / 3];
    simd::unrolled<(Rows + 2) / 3>([&](auto i) { a[i] = g.codes + (i0 + 3 * i) * a_row; });
    const std::byte *scales = g.scales + i0 * a_row, *starts = g.starts + i0 * a_row;
    for (idx left = g.n_blocks; left > 0; left -= format::group / format::block, scales += 4, starts += 4) {
        W sum_low[std::size_t{Rows}], sum_high[std::size_t{Rows}];
        simd::unrolled<Rows>([&](auto i) {
            sum_low[i] = sum_high[i] =
                format::zero != 0 ? simd::broadcast_bytes<Arch>(starts + i * a_row) : W(simd::integer_bits);
        });
        const std::byte* codes = panel + format::block_head + 4 * offset;
        if constexpr (FromMemory) __builtin_prefetch(read_ahead(panel), 0, 2);
        const idx lines = format::codes / 128 * std::min(left, format::group / format::block);
        for (idx line = 0; line < lines; ++line, codes += 128) {
            const W x_low = simd::load_words<Arch>(codes), x_high = simd::load_words<Arch>(codes + half);
            if constexpr (FromMemory) {
                __builtin_prefetch(read_ahead(codes), 0, 2);
                __builtin_prefetch(read_ahead(codes + half), 0, 2);
            } else {
                __builtin_prefetch(codes + 4096);
            }
            simd::unrolled<8 / format::bits>([&](
                auto part) __attribute__((always_inline)) { // two in a byte, or one
                const W u_low = format::bits == 8 ? x_low : nibbles(x_low, part == 1);
                const W u_high = format::bits == 8 ? x_high : nibbles(x_high, part == 1);
                simd::unrolled<Rows>([&](auto i) __attribute__((always_inline)) {
                    const W x = simd::broadcast_bytes<Arch>(a[i / 3] + i % 3 * a_row + 4 * part);
                    sum_low[i] = dot4(sum_low[i], u_low, x);
                    sum_high[i] = dot4(sum_high[i], u_high, x);
                });
            });
            simd::unrolled<(Rows + 2) / 3>([&](auto i) { a[i] += 32 / format::bits; });
        }
        const auto w = load_scales<Arch, S>(format::half_scales ? panel : head, offset);
        simd::unrolled<Rows>([&](auto i) {
            const P x(read_as<float>(scales + i * a_row));
            if constexpr (in_c) {
                float* const row = c + i * c_row;
                at.store(fma(floats_of_bits(sum_low[i]), w.low * x, at.load(row, offset, 0, Full)), row,
                         offset, 0, Full);
                at.store(fma(floats_of_bits(sum_high[i]), w.high * x, at.load(row, offset, 1, Full)), row,
                         offset, 1, Full);
            } else {
                low[i] = fma(floats_of_bits(sum_low[i]), w.low * x, low[i]);
                high[i] = fma(floats_of_bits(sum_high[i]), w.high * x, high[i]);
            }
        });
        if constexpr (format::has_min) {
            static_assert(!in_c);
            const auto least = load_scales<Arch, S>(panel + 64, offset);
            simd::unrolled<Rows>([&](auto i) {
                const P x(read_as<float>(starts + i * a_row));
                low[i] = fma(least.low, x, low[i]);
                high[i] = fma(least.high, x, high[i]);
            });
        }
        panel += format::block_head + 128 * lines;
    }
    if constexpr (!in_c)
        simd::unrolled<Rows>([&](auto i) {
            at.store(low[i], c + i * c_row, offset, 0, Full);
            at.store(high[i], c + i * c_row, offset, 1, Full);
        });
}

// Picks the instantiation for the rows that are left.
template <class Arch, int Rows, bool Full, bool FromMemory, class S>
inline void gemm_bytes_rows(const gemm_bytes_args<S>& g, const std::byte* panel, const std::byte* head, idx i,
                            idx rows, gemm_columns<Arch, float> at) {
    using tile = gemm_tile<float, Arch>;
    if (rows >= Rows) {
        for (idx offset = 0; offset < tile::half; offset += tile::lanes)
            if (Full || offset < at.width)
                gemm_bytes_micro<Arch, Rows, Full, FromMemory>(g, panel, head, i, at, offset);
    } else if constexpr (Rows > 1) {
        gemm_bytes_rows<Arch, Rows - 1, Full, FromMemory>(g, panel, head, i, rows, at);
    }
}

template <class Arch, class S>
void gemm_bytes::operator()(Arch, const gemm_bytes_args<S>& g) const {
    constexpr int rows = byte_most_rows<S>(Arch{});
    constexpr idx cols = gemm_tile<float, Arch>::cols;
    const idx tile = g.m <= rows ? rows : byte_tile_rows<S>(Arch{});
    const idx height = g.m == 0 ? 1 : ceil_div(g.m, ceil_div(g.m, tile)); // none much lower than others
    const std::byte *panel = g.panels, *head = g.heads;
    // panel by panel: its part of k stays in L1 while the rows pass
    for (idx j = 0; j < g.n; j += cols, panel += g.panel_stride, head += g.panel_stride) {
        const gemm_columns<Arch, float> at{j, std::min(cols, g.n - j)};
        for (idx i = 0; i < g.m; i += height) {
            const idx n = std::min(height, g.m - i);
            if (at.width < cols)
                gemm_bytes_rows<Arch, rows, false, false>(g, panel, head, i, n, at);
            else if (i > 0) // the first rows brought the panel into a cache
                gemm_bytes_rows<Arch, rows, true, false>(g, panel, head, i, n, at);
            else
                gemm_bytes_rows<Arch, rows, true, true>(g, panel, head, i, n, at);
        }
    }
}

} // namespace sluice::kernels
