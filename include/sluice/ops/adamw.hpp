// What an optimiser does to one tensor: AdamW's update, and the sum of squares that clipping needs.
#pragma once

#include "../core/arena.hpp"
#include "../core/executor.hpp"
#include "../kernels/adamw.hpp"
#include "../kernels/elementwise.hpp"

namespace sluice {
inline namespace SLUICE_ISA {

// `a` holds the step's constants; its pointers and n are filled in here. All four tensors have one shape.
template <class Arch = simd::native, class T>
void adamw_update(tensor_view<T> weight, in<T> gradient, tensor_view<T> mean, tensor_view<T> square,
                  const kernels::adamw_args<T>& a, executor_ref ex) {
    require_shape(gradient, weight.rows(), weight.cols(), "adamw", "gradient");
    require_shape(mean, weight.rows(), weight.cols(), "adamw", "mean");
    require_shape(square, weight.rows(), weight.cols(), "adamw", "square");
    ex(weight.rows(), [&](idx begin, idx end, idx) {
        for (idx i = begin; i < end; ++i) {
            kernels::adamw_args<T> row = a;
            row.weight = weight.row(i);
            row.gradient = gradient.row(i);
            row.mean = mean.row(i);
            row.square = square.row(i);
            row.n = weight.cols();
            simd::invoke(Arch{}, kernels::adamw_step{}, row);
        }
    });
}

// Sum of the squares of x in double: each row in a fixed order, then the rows in order.
template <class Arch = simd::native, class T>
double sum_of_squares(in<T> x, arena& workspace, executor_ref ex) {
    const arena::scope scope(workspace);
    double* rows = workspace.take<double>(x.rows());
    ex(x.rows(), [&](idx begin, idx end, idx) {
        for (idx i = begin; i < end; ++i)
            simd::invoke(Arch{}, kernels::sum_squares{}, x.row(i), x.cols(), rows + i);
    });
    double total = 0;
    for (idx i = 0; i < x.rows() && !ex.dry(); ++i) total += rows[i];
    return total;
}

} // namespace SLUICE_ISA
} // namespace sluice
