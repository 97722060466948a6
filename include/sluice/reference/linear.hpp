// The linear map as it is written: y = x W^T + b, one sum for each output.
#pragma once

#include "../core/tensor_view.hpp"

namespace sluice::reference {

template <class T>
struct linear_weights {
    tensor_view<const T> w;    // d_out x d_in
    tensor_view<const T> bias; // 1 x d_out, or empty
};

// y (n, d_out) from x (n, d_in).
template <class T>
void linear(const linear_weights<T>& p, in<T> x, tensor_view<T> y) {
    for (idx i = 0; i < x.rows(); ++i)
        for (idx j = 0; j < p.w.rows(); ++j) {
            T sum = p.bias.empty() ? T(0) : p.bias(0, j);
            for (idx k = 0; k < p.w.cols(); ++k) sum += p.w(j, k) * x(i, k);
            y(i, j) = sum;
        }
}

} // namespace sluice::reference
