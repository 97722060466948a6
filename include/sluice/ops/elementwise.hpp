// Sums and copies of tensors.
#pragma once

#include "../core/executor.hpp"
#include "../core/tensor_view.hpp"
#include "../kernels/elementwise.hpp"

namespace sluice {
inline namespace SLUICE_ISA {

// y = a + b; y may be a or b.
template <class Arch = simd::native, class T>
void add(in<T> a, in<T> b, tensor_view<T> y, executor_ref ex) {
    require_shape(a, y.rows(), y.cols(), "add", "a");
    require_shape(b, y.rows(), y.cols(), "add", "b");
    SLUICE_ASSERT(apart_or_same(y, a, b));
    ex(y.rows(), [&](idx begin, idx end, idx) {
        for (idx i = begin; i < end; ++i)
            simd::invoke(Arch{}, kernels::add_elements{}, a.row(i), b.row(i), y.row(i), y.cols());
    });
}

// total (1, n) += sum of the rows of x, in order. Workers share out columns.
template <class Arch = simd::native, class T>
void add_rows(in<T> x, tensor_view<T> total, executor_ref ex) {
    require_shape(total, 1, x.cols(), "add_rows", "total");
    SLUICE_ASSERT(apart(total, x));
    constexpr idx strip = 64;
    ex(ceil_div(x.cols(), strip), [&](idx begin, idx end, idx) {
        const idx col = begin * strip, cols = std::min(end * strip, x.cols()) - col;
        T* sum = total.data() + col;
        for (idx i = 0; i < x.rows(); ++i)
            simd::invoke(Arch{}, kernels::add_elements{}, static_cast<const T*>(sum), x.row(i) + col, sum,
                         cols);
    });
}

// y = x, row by row.
template <class T>
void copy(in<T> x, tensor_view<T> y, executor_ref ex) {
    require_shape(x, y.rows(), y.cols(), "copy", "x");
    SLUICE_ASSERT(apart_or_same(y, x));
    ex(y.rows(), [&](idx begin, idx end, idx) {
        for (idx i = begin; i < end; ++i) std::copy_n(x.row(i), y.cols(), y.row(i));
    });
}

} // namespace SLUICE_ISA
} // namespace sluice
