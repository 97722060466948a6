// Softmax over the columns of each row.
#pragma once

#include "../core/executor.hpp"
#include "../core/tensor_view.hpp"
#include "../kernels/softmax.hpp"

namespace sluice {
inline namespace SLUICE_ISA {

// y = softmax(x); y may be x. A row that holds NaN or inf, or nothing but -inf, becomes NaN; no other row
// does.
template <class Arch = simd::native, class T>
void softmax(in<T> x, tensor_view<T> y, executor_ref ex) {
    require_shape(y, x.rows(), x.cols(), "softmax", "y");
    SLUICE_ASSERT(apart_or_same(y, x));
    ex(x.rows(), [&](idx begin, idx end, idx) {
        simd::invoke(Arch{}, kernels::softmax_rows{}, x.row(begin), x.row_stride(), y.row(begin),
                     y.row_stride(), end - begin, x.cols());
    });
}

// dx = y (dy - sum_j dy y) from the softmax's output; dx may be dy.
template <class Arch = simd::native, class T>
void softmax_backward(in<T> y, in<T> dy, tensor_view<T> dx, executor_ref ex) {
    require_shape(dy, y.rows(), y.cols(), "softmax_backward", "dy");
    require_shape(dx, y.rows(), y.cols(), "softmax_backward", "dx");
    SLUICE_ASSERT(apart_or_same(dx, dy) && apart(dx, y));
    ex(y.rows(), [&](idx begin, idx end, idx) {
        simd::invoke(Arch{}, kernels::softmax_dx{}, y.row(begin), y.row_stride(), dy.row(begin),
                     dy.row_stride(), dx.row(begin), dx.row_stride(), end - begin, y.cols());
    });
}

} // namespace SLUICE_ISA
} // namespace sluice
