// Cross-attention from tokens to concepts (Qu et al., "Dynamic large concept models", 2025, eqs. 12-17):
//   softmax(RMSNorm(H W_Q) RMSNorm(Z W_K)^T / sqrt(d) + mask) Z W_V W_O
// The paper repeats the keys of a concept for each of its tokens; a list of concepts to read says both.
#pragma once

#include "../core/tensor.hpp"
#include "linear.hpp"
#include "norm.hpp"

#include <cmath>
#include <vector>

namespace sluice::reference {

struct concept_attention_shape {
    idx n_heads = 1, n_kv_heads = 1, head_dim = 1;
    double eps = 1e-6;
};

template <class T>
struct concept_attention_weights {
    tensor_view<const T> w_q, w_k, w_v, w_o; // q x d_model, kv x d_concept twice, d_model x q
    tensor_view<const T> q_norm, k_norm;     // 1 x head_dim
};

// y (n, d_model) of one sequence h (n, d_model), z (concepts, d_concept): token t reads the first seen[t] of
// the concepts in `list`; zero where that is none.
template <class T>
void concept_cross_attention(const concept_attention_shape& shape, const concept_attention_weights<T>& p,
                             in<T> h, in<T> z, const std::vector<idx>& list, const std::vector<idx>& seen,
                             tensor_view<T> y) {
    const idx d = shape.head_dim, group = shape.n_heads / shape.n_kv_heads;
    tensor<T> q(h.rows(), p.w_q.rows()), k(z.rows(), p.w_k.rows()), v(z.rows(), p.w_v.rows()),
        heads(h.rows(), p.w_q.rows());
    auto project = [&](in<T> x, in<T> w, in<T> scale, tensor_view<T> to) {
        linear<T>({w, {}}, x, to);
        const tensor_view<T> each(to.data(), to.rows() * to.cols() / d, d);
        norm<T>(norm_kind::rms, shape.eps, {scale, {}}, each, each);
    };
    project(h, p.w_q, p.q_norm, q);
    project(z, p.w_k, p.k_norm, k);
    linear<T>({p.w_v, {}}, z, v);
    for (idx t = 0; t < h.rows(); ++t)
        for (idx a = 0; a < shape.n_heads; ++a) {
            T total = 0;
            for (idx i = 0; i < seen[static_cast<std::size_t>(t)]; ++i) {
                const idx j = list[static_cast<std::size_t>(i)], kv = a / group * d;
                T score = 0;
                for (idx c = 0; c < d; ++c) score += q(t, a * d + c) * k(j, kv + c);
                const T weight = std::exp(score / std::sqrt(static_cast<T>(d)));
                total += weight;
                for (idx c = 0; c < d; ++c) heads(t, a * d + c) += weight * v(j, kv + c);
            }
            for (idx c = 0; c < d && total > 0; ++c) heads(t, a * d + c) /= total;
        }
    linear<T>({p.w_o, {}}, heads, y);
}

} // namespace sluice::reference
