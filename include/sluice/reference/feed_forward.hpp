// The position-wise feed-forward layer.
//   FFN(x)  = act(x W_up^T + b_up) W_down^T + b_down                  Vaswani et al., 2017, eq. 2
//   GLU(x)  = (act(x W_gate^T) * (x W_up^T)) W_down^T                 Shazeer, "GLU variants", 2020, eq. 6
//   with min(gate, clamp) and clamp(up, -clamp, clamp) + offset       gpt-oss, 2025
#pragma once

#include "../core/tensor.hpp"
#include "linear.hpp"

#include <algorithm>
#include <cmath>

namespace sluice::reference {

enum class activation { silu, gelu, relu, quick_gelu };

template <class T>
T activate(activation kind, T x) {
    switch (kind) {
    case activation::silu:
        return x / (T(1) + std::exp(-x)); // Swish_1
    case activation::gelu:
        return x * (T(1) + std::erf(x / std::sqrt(T(2)))) / T(2); // x Phi(x)
    case activation::quick_gelu:
        return x / (T(1) + std::exp(-T(1.702) * x));
    default:
        return x < T(0) ? T(0) : x;
    }
}

// Gated where w_gate is not empty. Biases may be empty.
template <class T>
struct feed_forward_weights {
    tensor_view<const T> w_gate, w_up;         // d_ff x d_model
    tensor_view<const T> w_down;               // d_model x d_ff
    tensor_view<const T> b_gate, b_up, b_down; // 1 x d_ff, 1 x d_ff, 1 x d_model
};

struct glu_form {
    double clamp = 1e300, offset = 0;
};

template <class T>
T gated_pair(activation kind, glu_form form, T gate, T up) {
    const T most = static_cast<T>(form.clamp);
    return activate(kind, std::min(gate, most)) *
           (std::max(std::min(up, most), -most) + static_cast<T>(form.offset));
}

// y (n, d_model) from x (n, d_model).
template <class T>
void feed_forward(activation kind, const feed_forward_weights<T>& p, in<T> x, tensor_view<T> y,
                  glu_form form = {}) {
    const bool gated = !p.w_gate.empty();
    tensor<T> gate(x.rows(), p.w_gate.rows()), hidden(x.rows(), p.w_up.rows());
    linear<T>({p.w_gate, p.b_gate}, x, gate);
    linear<T>({p.w_up, p.b_up}, x, hidden);
    for (idx i = 0; i < hidden.rows(); ++i)
        for (idx j = 0; j < hidden.cols(); ++j)
            hidden(i, j) =
                gated ? gated_pair(kind, form, gate(i, j), hidden(i, j)) : activate(kind, hidden(i, j));
    linear<T>({p.w_down, p.b_down}, hidden, y);
}

} // namespace sluice::reference
