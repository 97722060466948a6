// SiLU, GELU, ReLU and quick GELU, alone or gating another tensor, forward and backward, in one pass over
// memory.
#pragma once

#include "../core/executor.hpp"
#include "../core/tensor_view.hpp"
#include "../kernels/activation.hpp"

namespace sluice {
inline namespace SLUICE_ISA {
// y = act(x), or act(x) * up in that form where `up` is not empty. y may be x or up.
template <class Arch = simd::native, class T>
void activate(activation kind, in<T> x, in<T> up, tensor_view<T> y, executor_ref ex, glu_form form = {}) {
    require_shape(y, x.rows(), x.cols(), "activate", "y");
    const bool gated = up.cols() > 0;
    if (gated) require_shape(up, x.rows(), x.cols(), "activate", "up");
    SLUICE_ASSERT(apart_or_same(y, x, up));
    with_activation(kind, [&](auto k) {
        ex(x.rows(), [&](idx begin, idx end, idx) {
            for (idx i = begin; i < end; ++i)
                simd::invoke(Arch{}, kernels::activation_forward<decltype(k)::value>{}, x.row(i),
                             gated ? up.row(i) : nullptr, y.row(i), x.cols(), form);
        });
    });
}

// dx = dy (up) act'(x) and dup = dy act(x), or those of the form. dx may be dy or x; dup may be up.
template <class Arch = simd::native, class T>
void activate_backward(activation kind, in<T> x, in<T> up, in<T> dy, tensor_view<T> dx, tensor_view<T> dup,
                       executor_ref ex, glu_form form = {}) {
    require_shape(dy, x.rows(), x.cols(), "activate_backward", "dy");
    require_shape(dx, x.rows(), x.cols(), "activate_backward", "dx");
    const bool gated = up.cols() > 0;
    if (gated) {
        require_shape(up, x.rows(), x.cols(), "activate_backward", "up");
        require_shape(dup, x.rows(), x.cols(), "activate_backward", "dup");
    }
    SLUICE_ASSERT(apart_or_same(dx, dy, x) && apart_or_same(dup, up) && apart(dx, up) &&
                  apart(dup, dy, x, dx));
    with_activation(kind, [&](auto k) {
        ex(x.rows(), [&](idx begin, idx end, idx) {
            for (idx i = begin; i < end; ++i)
                simd::invoke(Arch{}, kernels::activation_backward<decltype(k)::value>{}, x.row(i),
                             gated ? up.row(i) : nullptr, dy.row(i), dx.row(i), gated ? dup.row(i) : nullptr,
                             x.cols(), form);
        });
    });
}

} // namespace SLUICE_ISA
} // namespace sluice
