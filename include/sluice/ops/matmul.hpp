// Matrix products on views: y = x W^T (+ bias, + residual), and the two products of its backward pass,
// dx = dy W and dW += dy^T x. W is (out, in).
//
// Bits of an element depend on its row of x, its row of W and nothing else: not on the number of rows, the
// workers or the tile. Workspace: one packed block per worker. Outputs must not overlap inputs, except that
// y may be the residual itself.
#pragma once

#include "../core/arena.hpp"
#include "../core/executor.hpp"
#include "../kernels/gemm.hpp"

namespace sluice {

// What a product's chains start from: at most one of the two.
template <class T>
struct matmul_start {
    tensor_view<const T> bias{};     // 1 x n_out, added to every row
    tensor_view<const T> residual{}; // same shape as the result; may be the result: y += x W^T
};

inline namespace SLUICE_ISA {
namespace detail {

// c = start + A B, with A(i, k) = a[i * a_row + k * a_k] and B given by rows, or by columns (`transposed`).
template <class Arch, class T>
struct product {
    const T* a;
    idx a_row, a_k;
    tensor_view<const T> b;
    bool transposed;
    tensor_view<T> c;
    const T* start;
    idx start_row;
    idx k;

    using tile = kernels::gemm_tile<T, Arch>;
    static constexpr idx block_k =
        256; // rows of a packed block: 256 x 128 floats are 128 KiB, they stay in L2
    static constexpr idx block_n = round_up(128, tile::cols);

    void run(arena& workspace, executor_ref ex) const {
        const idx m = c.rows(), n = c.cols();
        const idx workers = ex.concurrency();
        const idx n_blocks = ceil_div(n, block_n);
        // Enough tasks that workers end together; a task of few rows would pack more than it multiplies.
        const idx wanted = workers == 1 ? 1 : ceil_div(4 * workers, std::max<idx>(n_blocks, 1));
        const idx chunk = round_up(std::max<idx>(ceil_div(m, wanted), 48), tile::rows);
        const idx m_chunks = ceil_div(m, chunk);
        const arena::scope scope(workspace);
        const idx block = std::min(block_k, k) * std::min(block_n, round_up(n, tile::cols));
        T* packed = workspace.take<T>(workers * block);
        ex(n_blocks * m_chunks, [&](idx begin, idx end, idx worker) {
            for (idx task = begin; task < end; ++task)
                multiply(task / m_chunks * block_n, task % m_chunks * chunk, chunk, packed + worker * block);
        });
    }

    void multiply(idx j, idx i, idx rows, T* packed) const {
        const idx n = std::min(block_n, c.cols() - j);
        kernels::gemm_block_args<T> g{.a = nullptr,
                                      .a_row = a_row,
                                      .a_k = a_k,
                                      .panels = packed,
                                      .panel_stride = 0,
                                      .start = start == nullptr ? nullptr : start + i * start_row + j,
                                      .start_row = start_row,
                                      .c = c.row(i) + j,
                                      .c_row = c.row_stride(),
                                      .m = std::min(rows, c.rows() - i),
                                      .n = n,
                                      .k = 0};
        idx k0 = 0;
        do { // once even for k = 0, which leaves the start
            g.k = std::min(block_k, k - k0);
            g.panel_stride = g.k * tile::cols;
            if (g.k > 0) {
                const T* source = transposed ? b.row(j) + k0 : b.row(k0) + j;
                simd::invoke(Arch{}, kernels::gemm_pack{}, source, b.row_stride(), transposed, g.k, n,
                             packed);
            }
            g.a = a + i * a_row + k0 * a_k;
            simd::invoke(Arch{}, kernels::gemm_block{}, g);
            g.start = g.c;
            g.start_row = g.c_row;
            k0 += block_k;
        } while (k0 < k);
    }
};

} // namespace detail

// y (m, n_out) = x (m, n_in) W^T + start, W (n_out, n_in).
template <class Arch = simd::native, class T>
void matmul(in<T> x, in<T> w, tensor_view<T> y, const matmul_start<T>& start, arena& workspace,
            executor_ref ex) {
    require_shape(w, y.cols(), x.cols(), "matmul", "w");
    require_shape(y, x.rows(), w.rows(), "matmul", "y");
    const bool biased = start.bias.cols() > 0;
    const bool added = start.residual.cols() > 0;
    require(!(biased && added), "matmul", "bias and residual exclude each other");
    if (biased) require_shape(start.bias, 1, y.cols(), "matmul", "bias");
    if (added) require_shape(start.residual, y.rows(), y.cols(), "matmul", "residual");
    if (y.empty()) return;
    const T* from = biased ? start.bias.data() : added ? start.residual.data() : nullptr;
    const detail::product<Arch, T> p{
        x.data(), x.row_stride(), 1, w, true, y, from, added ? start.residual.row_stride() : 0, x.cols()};
    p.run(workspace, ex);
}

// dx (m, n_in) = dy (m, n_out) W; with `accumulate`, dx += dy W.
template <class Arch = simd::native, class T>
void matmul_dx(in<T> dy, in<T> w, tensor_view<T> dx, bool accumulate, arena& workspace, executor_ref ex) {
    require_shape(w, dy.cols(), dx.cols(), "matmul_dx", "w");
    require_shape(dx, dy.rows(), w.cols(), "matmul_dx", "dx");
    if (dx.empty()) return;
    const detail::product<Arch, T> p{
        dy.data(),       dy.row_stride(), 1, w, false, dx, accumulate ? dx.data() : nullptr,
        dx.row_stride(), dy.cols()};
    p.run(workspace, ex);
}

// dW (n_out, n_in) += dy^T (n_out, m) x (m, n_in): accumulates, in the order of the rows.
template <class Arch = simd::native, class T>
void matmul_dw(in<T> dy, in<T> x, tensor_view<T> dw, arena& workspace, executor_ref ex) {
    require_shape(x, dy.rows(), dw.cols(), "matmul_dw", "x");
    require_shape(dw, dy.cols(), x.cols(), "matmul_dw", "dw");
    if (dw.empty() || dy.rows() == 0) return;
    const detail::product<Arch, T> p{dy.data(), 1,         dy.row_stride(), x,        false,
                                     dw,        dw.data(), dw.row_stride(), dy.rows()};
    p.run(workspace, ex);
}

} // namespace SLUICE_ISA
} // namespace sluice
