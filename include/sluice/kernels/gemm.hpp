// C = start + A B for a block of columns whose part of B is packed into panels: the micro-kernel behind every
// product. A is read through two strides, so the same code serves x W^T, dy W and dy^T x.
//
// Each element of C is one chain of fma over k, whatever the tile it falls into: its bits do not depend on
// the number of rows, on the tile, or on where the k-range was cut.
#pragma once

#include "../simd/pack.hpp"

namespace sluice::kernels {

// Register tile: rows x vectors. 32 registers hold 12 x 2 accumulators with room for B and a broadcast.
template <class T, class Arch>
struct gemm_tile {
    static constexpr idx lanes = simd::pack<T, Arch>::size;
    static constexpr bool wide = lanes * static_cast<idx>(sizeof(T)) == 64;
    static constexpr int rows = wide ? 12 : 6;
    static constexpr int vectors = 2;
    static constexpr idx cols = vectors * lanes; // width of a panel
};

// What one call multiplies. Strides are in elements.
template <class T>
struct gemm_block_args {
    const T* a;       // m x k
    idx a_row, a_k;   // A(i, k) = a[i * a_row + k * a_k]
    const T* panels;  // ceil(n / cols) panels of [k][cols], columns beyond n filled with anything finite
    idx panel_stride; // from panel to panel: cols times the k they were packed with
    const T* start;   // what the chains start from, start[i * start_row + j]; null: zero
    idx start_row;    // 0: the same row for all (a bias)
    T* c;             // m x n
    idx c_row;
    idx m, n, k;
};

struct gemm_block {
    template <class Arch, class T>
    void operator()(Arch, const gemm_block_args<T>& g) const;
};

// Packs B(k, n) for n in [0, cols_of_block): panels of [k][cols]. `transposed`: source holds B^T, one row for
// each column of B.
struct gemm_pack {
    template <class Arch, class T>
    void operator()(Arch, const T* source, idx stride, bool transposed, idx k, idx n, T* panels) const;
};

template <class Arch, int Rows, bool Full, class T>
SLUICE_INLINE void gemm_micro(const gemm_block_args<T>& g, const T* panel, idx i0, idx j0, idx width) {
    using P = simd::pack<T, Arch>;
    constexpr int V = gemm_tile<T, Arch>::vectors;
    constexpr idx cols = gemm_tile<T, Arch>::cols;
    P acc[std::size_t{Rows}][std::size_t{V}];
    auto lanes_of = [&](int v) { return Full ? P::size : std::clamp<idx>(width - v * P::size, 0, P::size); };
    if (g.start != nullptr) {
#pragma GCC unroll 16
        for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) {
                const T* at = g.start + (i0 + i) * g.start_row + j0 + v * P::size;
                acc[i][v] = Full ? P::load(at) : P::load_partial(at, lanes_of(v));
            }
    }
    const T* a = g.a + i0 * g.a_row;
    for (idx k = 0; k < g.k; ++k, a += g.a_k, panel += cols) {
        P b[std::size_t{V}];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) b[v] = P::load(panel + v * P::size);
#pragma GCC unroll 16
        for (int i = 0; i < Rows; ++i) {
            const P x(a[i * g.a_row]);
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) acc[i][v] = fma(x, b[v], acc[i][v]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            T* at = g.c + (i0 + i) * g.c_row + j0 + v * P::size;
            if constexpr (Full)
                acc[i][v].store(at);
            else
                acc[i][v].store_partial(at, lanes_of(v));
        }
}

// Picks the instantiation for the rows that are left.
template <class Arch, int Rows, bool Full, class T>
inline void gemm_rows(const gemm_block_args<T>& g, const T* panel, idx i0, idx rows, idx j0, idx width) {
    if (rows >= Rows)
        gemm_micro<Arch, Rows, Full>(g, panel, i0, j0, width);
    else if constexpr (Rows > 1)
        gemm_rows<Arch, Rows - 1, Full>(g, panel, i0, rows, j0, width);
}

template <class Arch, class T>
void gemm_block::operator()(Arch, const gemm_block_args<T>& g) const {
    using tile = gemm_tile<T, Arch>;
    for (idx i = 0; i < g.m; i += tile::rows) {
        const idx rows = std::min<idx>(tile::rows, g.m - i);
        const T* panel = g.panels;
        for (idx j = 0; j < g.n; j += tile::cols, panel += g.panel_stride) {
            const idx width = g.n - j;
            if (width >= tile::cols)
                gemm_rows<Arch, tile::rows, true>(g, panel, i, rows, j, width);
            else
                gemm_rows<Arch, tile::rows, false>(g, panel, i, rows, j, width);
        }
    }
}

template <class Arch, class T>
void gemm_pack::operator()(Arch, const T* source, idx stride, bool transposed, idx k, idx n,
                           T* panels) const {
    constexpr idx cols = gemm_tile<T, Arch>::cols;
    for (idx j = 0; j < n; j += cols, panels += cols * k) {
        const idx width = std::min(cols, n - j);
        if (transposed) {
            for (idx v = 0; v < cols; ++v) {
                const T* row = source + (j + std::min(v, width - 1)) * stride;
                for (idx i = 0; i < k; ++i) panels[i * cols + v] = v < width ? row[i] : T(0);
            }
        } else {
            for (idx i = 0; i < k; ++i) {
                std::copy_n(source + i * stride + j, width, panels + i * cols);
                std::fill_n(panels + i * cols + width, cols - width, T(0));
            }
        }
    }
}

} // namespace sluice::kernels
