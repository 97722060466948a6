// Layers made of layers, over any functions f(x, y) that write y:
//   residual: y = x + f(x)                      He et al., "Deep residual learning", 2016, eq. 1
//   chain:    y = f_n(... f_2(f_1(x)))
//   stack:    the same with n functions of one kind, f(i, x, y)
#pragma once

#include "../core/tensor.hpp"

namespace sluice::reference {

template <class T, class F>
void residual(in<T> x, tensor_view<T> y, F&& f) {
    f(x, y);
    for (idx i = 0; i < x.rows(); ++i)
        for (idx j = 0; j < x.cols(); ++j) y(i, j) += x(i, j);
}

template <class T, class F>
void stack(idx n_layers, in<T> x, tensor_view<T> y, F&& f) {
    tensor<T> from(x.rows(), x.cols());
    for (idx i = 0; i < x.rows(); ++i)
        for (idx j = 0; j < x.cols(); ++j) from(i, j) = y(i, j) = x(i, j);
    for (idx layer = 0; layer < n_layers; ++layer) {
        f(layer, in<T>(from.view()), y);
        for (idx i = 0; i < x.rows(); ++i)
            for (idx j = 0; j < x.cols(); ++j) from(i, j) = y(i, j);
    }
}

template <class T, class... F>
void chain(in<T> x, tensor_view<T> y, F&&... f) {
    stack<T>(static_cast<idx>(sizeof...(f)), x, y, [&](idx layer, in<T> from, tensor_view<T> to) {
        idx i = 0;
        (static_cast<void>(i++ == layer && (f(from, to), true)), ...);
    });
}

} // namespace sluice::reference
