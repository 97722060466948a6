// RMSNorm and LayerNorm of rows, forward and backward. A LayerNorm is asked for by a non-empty `mean`.
//
// Every row is computed alone and in one fixed order. y may be x; dx may be dy.
#pragma once

#include "../core/executor.hpp"
#include "../core/tensor_view.hpp"
#include "../kernels/norm.hpp"

namespace sluice {
inline namespace SLUICE_ISA {

// y = norm(x) for x (m, n), scale and bias (1, n; bias may be empty). Leaves 1 / rms in inverse (1, m) and,
// for LayerNorm, the means in mean (1, m); backward wants them.
template <class Arch = simd::native, class T>
void normalise(in<T> x, in<T> scale, in<T> bias, tensor_view<T> y, tensor_view<T> inverse,
               tensor_view<T> mean, std::type_identity_t<T> eps, executor_ref ex) {
    require_shape(y, x.rows(), x.cols(), "normalise", "y");
    require_shape(scale, 1, x.cols(), "normalise", "scale");
    require_shape(inverse, 1, x.rows(), "normalise", "inverse");
    if (!bias.empty()) require_shape(bias, 1, x.cols(), "normalise", "bias");
    const bool centred = mean.cols() > 0;
    if (centred) require_shape(mean, 1, x.rows(), "normalise", "mean");
    SLUICE_ASSERT(apart_or_same(y, x) && apart(y, scale, bias));
    ex(x.rows(), [&](idx begin, idx end, idx) {
        simd::invoke(Arch{}, kernels::norm_rows{},
                     kernels::norm_rows_args<T>{.x = x.row(begin),
                                                .x_row = x.row_stride(),
                                                .scale = scale.data(),
                                                .bias = bias.empty() ? nullptr : bias.data(),
                                                .y = y.row(begin),
                                                .y_row = y.row_stride(),
                                                .inverse = inverse.data() + begin,
                                                .mean = centred ? mean.data() + begin : nullptr,
                                                .rows = end - begin,
                                                .n = x.cols(),
                                                .eps = eps});
    });
}

// dx is overwritten; dscale (1, n) and dbias (1, n, may be empty) accumulate over rows in order.
template <class Arch = simd::native, class T>
void normalise_backward(in<T> x, in<T> scale, in<T> inverse, in<T> mean, in<T> dy, tensor_view<T> dx,
                        tensor_view<T> dscale, tensor_view<T> dbias, executor_ref ex) {
    require_shape(dy, x.rows(), x.cols(), "normalise_backward", "dy");
    require_shape(dx, x.rows(), x.cols(), "normalise_backward", "dx");
    require_shape(dscale, 1, x.cols(), "normalise_backward", "dscale");
    if (x.rows() == 0) return; // also where inverse and mean are empty
    require_shape(scale, 1, x.cols(), "normalise_backward", "scale");
    require_shape(inverse, 1, x.rows(), "normalise_backward", "inverse");
    if (!mean.empty()) require_shape(mean, 1, x.rows(), "normalise_backward", "mean");
    if (!dbias.empty()) require_shape(dbias, 1, x.cols(), "normalise_backward", "dbias");
    SLUICE_ASSERT(apart_or_same(dx, dy) && apart(dx, x, scale));
    auto block = [&](idx row, idx rows, idx col, idx cols) {
        return kernels::norm_dx_args<T>{.x = x.row(row) + col,
                                        .x_row = x.row_stride(),
                                        .dy = dy.row(row) + col,
                                        .dy_row = dy.row_stride(),
                                        .scale = scale.data() + col,
                                        .inverse = inverse.data() + row,
                                        .mean = mean.empty() ? nullptr : mean.data() + row,
                                        .dx = dx.row(row) + col,
                                        .dx_row = dx.row_stride(),
                                        .rows = rows,
                                        .n = cols};
    };
    // columns first: dx may overwrite dy
    constexpr idx strip = 64;
    ex(ceil_div(x.cols(), strip), [&](idx begin, idx end, idx) {
        const idx col = begin * strip, cols = std::min(end * strip, x.cols()) - col;
        simd::invoke(Arch{}, kernels::norm_dscale{}, block(0, x.rows(), col, cols), dscale.data() + col,
                     dbias.empty() ? nullptr : dbias.data() + col);
    });
    ex(x.rows(), [&](idx begin, idx end, idx) {
        simd::invoke(Arch{}, kernels::norm_dx{}, block(begin, end - begin, 0, x.cols()));
    });
}

} // namespace SLUICE_ISA
} // namespace sluice
