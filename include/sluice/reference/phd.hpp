// Parallel hidden decoding (Wu et al., "Efficient pretraining length scaling", 2025, section 2.1): the
// sequence x_0 .. x_0 x_1 .. x_1 .. with K copies of each token goes through the model, and copy K of each is
// the output.
#pragma once

#include "cswa.hpp"
#include "transformer_block.hpp"

namespace sluice::reference {

// Every row of x repeated: copies of a token side by side.
template <class T>
void repeat(idx copies, in<T> x, tensor_view<T> y) {
    for (idx i = 0; i < y.rows(); ++i) std::copy_n(x.row(i / copies), x.cols(), y.row(i));
}

// The last copy of every token.
template <class T>
void last_copy(idx copies, in<T> x, tensor_view<T> y) {
    for (idx i = 0; i < y.rows(); ++i) std::copy_n(x.row(i * copies + copies - 1), x.cols(), y.row(i));
}

// The pre-norm block over rows (rows, d_model), the copies of a token side by side; b counts tokens.
template <class T>
void phd_block(const batch& b, const transformer_block_shape& shape, const copies& c,
               const transformer_block_weights<T>& p, in<T> x, tensor_view<T> y) {
    tensor<T> normed(x.rows(), x.cols()), h(x.rows(), x.cols());
    auto add = [](in<T> a, tensor_view<T> sum) {
        for (idx i = 0; i < a.rows(); ++i)
            for (idx j = 0; j < a.cols(); ++j) sum(i, j) += a(i, j);
    };
    norm<T>(shape.norm, shape.eps, p.attention_norm, x, normed);
    cswa<T>(b, shape.attention, c, p.attention, normed, h);
    add(x, h);
    norm<T>(shape.norm, shape.eps, p.feed_forward_norm, h, normed);
    feed_forward<T>(shape.act, p.feed_forward, normed, y);
    add(h, y);
}

// y (n, d_model) from x (n, d_model) by n_layers functions f(layer, x, y) over all copies.
template <class T, class F>
void phd(idx n_layers, idx copies, in<T> x, tensor_view<T> y, F&& f) {
    tensor<T> from(x.rows() * copies, x.cols()), to(from.rows(), from.cols());
    repeat<T>(copies, x, from);
    for (idx layer = 0; layer < n_layers; ++layer) {
        f(layer, in<T>(from.view()), to.view());
        std::swap(from, to);
    }
    last_copy<T>(copies, from, y);
}

} // namespace sluice::reference
