// C = start + A B for a block of columns whose part of B lies in panels: the micro-kernel behind every
// product. A is read through two strides, so the same code serves x W^T, dy W and dy^T x.
//
// Each element of C is one chain of fma over k, whatever the tile it falls into: its bits do not depend on
// the number of rows, on the tile, or on where the k-range was cut.
#pragma once

#include "../core/packed.hpp"
#include "../simd/convert.hpp"
#include "../simd/transpose.hpp"
#include "read_ahead.hpp"

namespace sluice::kernels {

// Register tile: rows x two vectors, one from each half of a panel (that is how bf16 panels come apart).
// 32 registers hold 12 x 2 accumulators beside B and a broadcast; measured 97-98 % of the fma peak from L1,
// as are 8 x 3, 6 x 4 and 14 x 2.
template <class T, class Arch>
constexpr int tile_rows(Arch arch) {
    return simd::lanes<T>(arch) * static_cast<idx>(sizeof(T)) == 64 ? 12 : 6;
}
// Of a dynamic only the columns.
template <class T, class Arch>
struct gemm_tile {
    static constexpr idx lanes = simd::lanes<T>(Arch{});
    static constexpr int rows = tile_rows<T>(Arch{});
    static constexpr idx cols = panel_cols<T>; // of a panel: one tile wide, or several beside each other
    static constexpr idx half = cols / 2;
};

// What one call multiplies. Strides are in elements. B's panels hold S: T, or bf16 where T is float.
template <class T, class S = T>
struct gemm_block_args {
    const T* a;       // m x k
    idx a_row, a_k;   // A(i, k) = a[i * a_row + k * a_k]
    const S* panels;  // ceil(n / cols) panels of [k][cols]
    idx panel_stride; // from panel to panel
    idx panel_row;    // from k to k within a panel: cols where it is packed
    const T* start;   // what the chains start from, start[i * start_row + j]; null: zero
    idx start_row;    // 0: the same row for all (a bias)
    T* c;             // m x n
    idx c_row;
    idx m, n, k;
    // Rows that do not fill many tiles while B comes from memory: each panel is read for all of them before
    // the next, and the panel to come is asked for by all passes over this one; after the last panel comes
    // this.
    const S* next = nullptr;
    bool from_memory = false; // panels are read once, from end to end
};

struct gemm_block {
    template <class Arch, class T, class S>
    void operator()(Arch, const gemm_block_args<T, S>& g) const;
};

// Writes B(k, n) for n columns as panels of [k][cols] of T. `transposed`: the source holds B^T, one row for
// each column of B. Columns beyond n are zero.
struct gemm_pack {
    template <class Arch, class T, class S>
    void operator()(Arch, const S* source, idx stride, bool transposed, idx k, idx n, T* panels) const;
};

template <class T, class S = T>
using gemm_calls = simd::calls<simd::call<gemm_block, const gemm_block_args<T, S>&>,
                               simd::call<gemm_pack, const S*, idx, bool, idx, idx, T*>>;
// Where the columns of a tile are: vector v holds columns v * half + offset onwards.
template <class Arch, class T>
struct gemm_columns {
    using P = simd::pack<T, Arch>;
    static constexpr idx half = gemm_tile<T, Arch>::half;
    idx first, width; // of the panel

    idx inside(idx offset, int v) const { return std::clamp<idx>(width - v * half - offset, 0, P::size); }
    SLUICE_INLINE P load(const T* row, idx offset, int v, bool full) const {
        const T* at = row + first + v * half + offset;
        return full ? P::load(at) : P::load_partial(at, inside(offset, v));
    }
    SLUICE_INLINE void store(P x, T* row, idx offset, int v, bool full) const {
        T* at = row + first + v * half + offset;
        if (full)
            x.store(at);
        else
            x.store_partial(at, inside(offset, v));
    }
};

template <class Arch, class T, class S>
SLUICE_INLINE simd::pack_pair<simd::pack<T, Arch>> load_panel(const S* row, idx offset) {
    using P = simd::pack<T, Arch>;
    if constexpr (std::is_same_v<S, bf16>)
        return simd::load_pairs<Arch>(row + 2 * offset);
    else
        return {in_register(P::load(row + offset)),
                in_register(P::load(row + gemm_tile<T, Arch>::half + offset))};
}

// What to ask for while a panel is multiplied: `step` elements further with every step of k.
template <class S>
struct coming_panel {
    const S* first;
    idx step;
};

// What a pass asks for: lines a little ahead; its share of the next panel; pages of memory that is read once.
enum class panels_to_come { near, one_of_several_passes, far };

template <class Arch, int Rows, bool Full, panels_to_come Coming, class T, class S>
SLUICE_INLINE void gemm_micro(const gemm_block_args<T, S>& g, const S* panel, idx i0,
                              gemm_columns<Arch, T> at, idx offset, const coming_panel<S>& coming) {
    using P = simd::pack<T, Arch>;
    constexpr idx half = gemm_tile<T, Arch>::half;
    P low[std::size_t{Rows}] = {}, high[std::size_t{Rows}] = {};
    T* const c = g.c + i0 * g.c_row;
    const idx c_row = g.c_row, a_k = g.a_k, a_row = g.a_row, steps = g.k, panel_row = g.panel_row;
    if (g.start != nullptr) {
        const T* const start = g.start + i0 * g.start_row;
        simd::unrolled<Rows>([&](auto i) {
            low[i] = at.load(start + i * g.start_row, offset, 0, Full);
            high[i] = at.load(start + i * g.start_row, offset, 1, Full);
        });
    }
    if constexpr (Full) // the tile to the right comes next: its sums should be here by then
        simd::unrolled<Rows>([&](auto i) {
            const T* next = c + i * c_row + at.first + gemm_tile<T, Arch>::cols;
            __builtin_prefetch(next, 1);
            __builtin_prefetch(next + half, 1);
        });
    const S* ask = coming.first;
    // one pointer for three rows: more would not fit the registers
    const T* a[(std::size_t{Rows} + 2) / 3];
    simd::unrolled<(Rows + 2) / 3>([&](auto i) { a[i] = g.a + (i0 + 3 * i) * a_row; });
    for (idx k = 0; k < steps; ++k, panel += panel_row) {
        const auto b = load_panel<Arch, T>(panel, offset);
        if constexpr (Coming == panels_to_come::far) {
            __builtin_prefetch(read_ahead(panel), 0, 2);
            if constexpr (sizeof(S) == sizeof(T)) __builtin_prefetch(read_ahead(panel + half), 0, 2);
        } else {
            __builtin_prefetch(Coming == panels_to_come::near ? ask : pages_in_turn(ask));
            if constexpr (Coming == panels_to_come::near && sizeof(S) == sizeof(T))
                __builtin_prefetch(ask + half);
            ask += coming.step;
        }
        simd::unrolled<Rows>([&](auto i) {
            const P x(a[i / 3][i % 3 * a_row]);
            low[i] = fma(x, b.low, low[i]);
            high[i] = fma(x, b.high, high[i]);
        });
        simd::unrolled<(Rows + 2) / 3>([&](auto i) { a[i] += a_k; });
    }
    simd::unrolled<Rows>([&](auto i) {
        at.store(low[i], c + i * c_row, offset, 0, Full);
        at.store(high[i], c + i * c_row, offset, 1, Full);
    });
}

// Picks the instantiation for the rows that are left.
template <class Arch, int Rows, bool Full, panels_to_come Coming, class T, class S>
inline void gemm_rows(const gemm_block_args<T, S>& g, const S* panel, idx i0, idx rows,
                      gemm_columns<Arch, T> at, const coming_panel<S>& coming) {
    if (rows >= Rows) {
        for (idx offset = 0; offset < gemm_tile<T, Arch>::half; offset += gemm_tile<T, Arch>::lanes)
            if (Full || offset < at.width)
                gemm_micro<Arch, Rows, Full, Coming>(g, panel, i0, at, offset, coming);
    } else if constexpr (Rows > 1) {
        gemm_rows<Arch, Rows - 1, Full, Coming>(g, panel, i0, rows, at, coming);
    }
}

template <class Arch, panels_to_come Coming, class T, class S>
inline void gemm_panel(const gemm_block_args<T, S>& g, const S* panel, idx i, idx rows, idx j,
                       const coming_panel<S>& coming) {
    using tile = gemm_tile<T, Arch>;
    const gemm_columns<Arch, T> at{j, std::min(tile::cols, g.n - j)};
    if (at.width == tile::cols)
        gemm_rows<Arch, tile::rows, true, Coming>(g, panel, i, rows, at, coming);
    else
        gemm_rows<Arch, tile::rows, false, Coming>(g, panel, i, rows, at, coming);
}

template <class Arch, class T, class S>
void gemm_block::operator()(Arch, const gemm_block_args<T, S>& g) const {
    using tile = gemm_tile<T, Arch>;
    if (g.next != nullptr) {
        const idx passes = ceil_div(g.m, idx{tile::rows}), height = ceil_div(g.m, passes);
        const S* panel = g.panels;
        for (idx j = 0; j < g.n; j += tile::cols, panel += g.panel_stride) {
            const S* const next = j + tile::cols < g.n ? panel + g.panel_stride : g.next;
            for (idx i = 0; i < g.m; i += height)
                gemm_panel<Arch, panels_to_come::one_of_several_passes>(
                    g, panel, i, std::min(height, g.m - i), j,
                    coming_panel<S>{next + i / height * (g.k * g.panel_row / passes), g.panel_row / passes});
        }
        return;
    }
    // those of no steps are nowhere
    const idx ahead = g.k == 0 ? 0 : 8192 / static_cast<idx>(sizeof(S));
    // row tile by row tile: its rows of A stay in L1 while the panels pass
    for (idx i = 0; i < g.m; i += tile::rows) {
        const idx rows = std::min<idx>(tile::rows, g.m - i);
        const S* panel = g.panels;
        for (idx j = 0; j < g.n; j += tile::cols, panel += g.panel_stride) {
            const coming_panel<S> coming{panel + ahead, g.panel_row};
            if (g.from_memory)
                gemm_panel<Arch, panels_to_come::far>(g, panel, i, rows, j, coming);
            else
                gemm_panel<Arch, panels_to_come::near>(g, panel, i, rows, j, coming);
        }
    }
}

template <class T, class S>
SLUICE_INLINE T widen(S x) {
    if constexpr (std::is_same_v<S, bf16>)
        return to_float(x);
    else
        return x;
}

// One panel from rows of B^T, `lanes` rows and columns at a time.
template <class Arch, class T, class S>
inline void pack_transposed(const S* source, idx stride, idx k, idx width, T* panel) {
    using P = simd::pack<T, Arch>;
    constexpr idx cols = gemm_tile<T, Arch>::cols;
    for (idx v = 0; v < cols; v += P::size) {
        idx i = 0;
        if constexpr (std::is_same_v<S, T>) {
            for (; v + P::size <= width && i + P::size <= k; i += P::size) {
                P rows[static_cast<std::size_t>(P::size)];
#pragma GCC unroll 16
                for (idx r = 0; r < P::size; ++r) rows[r] = P::load(source + (v + r) * stride + i);
                transpose(rows);
#pragma GCC unroll 16
                for (idx r = 0; r < P::size; ++r) rows[r].store(panel + (i + r) * cols + v);
            }
        }
        for (idx r = v; r < v + P::size; ++r)
            for (idx c = i; c < k; ++c)
                panel[c * cols + r] = r < width ? widen<T>(source[r * stride + c]) : T(0);
    }
}

// A loop over a width that is known at run time only took twice as long.
template <class Arch, class T>
SLUICE_INLINE void copy_panel_row(const T* from, const T* next, T* to) {
    using P = simd::pack<T, Arch>;
    constexpr idx cols = gemm_tile<T, Arch>::cols;
    __builtin_prefetch(next);
    __builtin_prefetch(next + cols / 2);
    for (idx v = 0; v < cols; v += P::size) P::load(from + v).store(to + v);
}

template <class Arch, class T, class S>
void gemm_pack::operator()(Arch, const S* source, idx stride, bool transposed, idx k, idx n,
                           T* panels) const {
    constexpr idx cols = gemm_tile<T, Arch>::cols;
    if (transposed) {
        for (idx j = 0; j < n; j += cols)
            pack_transposed<Arch>(source + j * stride, stride, k, std::min(cols, n - j), panels + j * k);
        return;
    }
    // along the rows of the source: the other way every element of a panel would be on another page
    constexpr idx ahead = 8; // rows
    for (idx i = 0; i < k; ++i)
        for (idx j = 0; j < n; j += cols) {
            const idx width = std::min(cols, n - j);
            const S* from = source + i * stride + j;
            T* to = panels + j * k + i * cols;
            if constexpr (std::is_same_v<S, T>) {
                if (width == cols) {
                    copy_panel_row<Arch>(from, i + ahead < k ? from + ahead * stride : from, to);
                    continue;
                }
            }
            for (idx v = 0; v < width; ++v) to[v] = widen<T>(from[v]);
            std::fill_n(to + width, cols - width, T(0));
        }
}

} // namespace sluice::kernels
