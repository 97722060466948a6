// The pre-norm transformer block (Xiong et al., "On layer normalization in the transformer architecture",
// 2020, table 1):
//   h = x + attention(norm(x))
//   y = h + FFN(norm(h))
#pragma once

#include "attention.hpp"
#include "feed_forward.hpp"

namespace sluice::reference {

struct transformer_block_shape {
    attention_shape attention{};
    activation act = activation::silu;
    norm_kind norm = norm_kind::rms;
    double eps = 1e-6;
};

template <class T>
struct transformer_block_weights {
    norm_weights<T> attention_norm;
    attention_weights<T> attention;
    norm_weights<T> feed_forward_norm;
    feed_forward_weights<T> feed_forward;
};

// y (n, d_model) from x (n, d_model).
template <class T>
void transformer_block(const batch& b, const transformer_block_shape& shape,
                       const transformer_block_weights<T>& p, in<T> x, tensor_view<T> y) {
    tensor<T> normed(x.rows(), x.cols()), h(x.rows(), x.cols());
    auto add = [](in<T> a, tensor_view<T> sum) {
        for (idx i = 0; i < a.rows(); ++i)
            for (idx j = 0; j < a.cols(); ++j) sum(i, j) += a(i, j);
    };
    norm<T>(shape.norm, shape.eps, p.attention_norm, x, normed);
    attention<T>(b, shape.attention, p.attention, normed, h);
    add(x, h);
    norm<T>(shape.norm, shape.eps, p.feed_forward_norm, h, normed);
    feed_forward<T>(shape.act, p.feed_forward, normed, y);
    add(h, y);
}

} // namespace sluice::reference
