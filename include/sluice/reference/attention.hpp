// Causal self-attention, one row and one head at a time over the full mask.
//   softmax(Q K^T / sqrt(d) + mask) V                     Vaswani et al., 2017, eq. 1 and section 3.2.3
//   query head h reads key and value head h / group       Ainslie et al., "GQA", 2023, section 2.2
//   R x for positions                                     Su et al., "RoFormer", 2021, eqs. 15 and 34
//   row i sees key j if 0 <= i - j < window               Beltagy et al., "Longformer", 2020, section 3.1
#pragma once

#include "../core/batch.hpp"
#include "../core/tensor.hpp"
#include "linear.hpp"
#include "norm.hpp"

#include <cmath>
#include <limits>
#include <vector>

namespace sluice::reference {

enum class rotary { none, half_split, interleaved };

struct attention_shape {
    idx n_heads = 1, n_kv_heads = 1, head_dim = 1;
    idx window = 0; // 0: all earlier keys
    rotary pairs = rotary::half_split;
    double base = 10000;
    double eps = 1e-6; // of the norm of queries and keys
};

template <class T>
struct attention_weights {
    tensor_view<const T> w_q;            // n_heads * head_dim x d_model
    tensor_view<const T> w_k, w_v;       // n_kv_heads * head_dim x d_model
    tensor_view<const T> w_o;            // d_model x n_heads * head_dim
    tensor_view<const T> q_norm, k_norm; // 1 x head_dim, or empty: no norm
};

// Turns pair i of a head by position * base^(-2 i / d).
template <class T>
void rotate(rotary pairs, double base, idx position, tensor_view<T> head) {
    const idx half = head.cols() / 2;
    for (idx i = 0; i < half && pairs != rotary::none; ++i) {
        const double angle = static_cast<double>(position) *
                             std::pow(base, -static_cast<double>(i) / static_cast<double>(half));
        const T c = static_cast<T>(std::cos(angle)), s = static_cast<T>(std::sin(angle));
        T& a = pairs == rotary::half_split ? head(0, i) : head(0, 2 * i);
        T& b = pairs == rotary::half_split ? head(0, i + half) : head(0, 2 * i + 1);
        const T before = a;
        a = c * before - s * b;
        b = s * before + c * b;
    }
}

// x W^T, and then every head normed and turned to its position.
template <class T>
void project_heads(const batch& b, const attention_shape& shape, in<T> w, in<T> scale, in<T> x,
                   tensor_view<T> y) {
    linear<T>({w, {}}, x, y);
    for (idx s = 0; s < b.n_sequences(); ++s)
        for (idx i = b.begin(s); i < b.end(s); ++i)
            for (idx at = 0; at < y.cols(); at += shape.head_dim) {
                const auto head = y.row_block(i, 1).col_block(at, shape.head_dim);
                if (!scale.empty()) norm<T>(norm_kind::rms, shape.eps, {scale, {}}, head, head);
                rotate(shape.pairs, shape.base, b.position(s, i), head);
            }
}

// y (n, d_model) from x (n, d_model): every sequence of the batch from its first token.
template <class T>
void attention(const batch& b, const attention_shape& shape, const attention_weights<T>& p, in<T> x,
               tensor_view<T> y) {
    const idx n = x.rows(), d = shape.head_dim, group = shape.n_heads / shape.n_kv_heads;
    tensor<T> q(n, p.w_q.rows()), k(n, p.w_k.rows()), v(n, p.w_v.rows()), heads(n, p.w_q.rows());
    project_heads<T>(b, shape, p.w_q, p.q_norm, x, q);
    project_heads<T>(b, shape, p.w_k, p.k_norm, x, k);
    linear<T>({p.w_v, {}}, x, v);
    for (idx s = 0; s < b.n_sequences(); ++s)
        for (idx i = b.begin(s); i < b.end(s); ++i)
            for (idx h = 0; h < shape.n_heads; ++h) {
                const idx kv = h / group * d;
                std::vector<T> probs;
                T largest = -std::numeric_limits<T>::infinity(), total = 0;
                for (idx j = b.begin(s); j < b.end(s); ++j) {
                    const bool seen = j <= i && (shape.window == 0 || i - j < shape.window);
                    T score = 0;
                    for (idx c = 0; c < d; ++c) score += q(i, h * d + c) * k(j, kv + c);
                    score = seen ? score / std::sqrt(static_cast<T>(d)) : -std::numeric_limits<T>::infinity();
                    probs.push_back(score);
                    largest = std::max(largest, score);
                }
                for (T& prob : probs) total += prob = std::exp(prob - largest);
                for (idx c = 0; c < d; ++c) {
                    T sum = 0;
                    for (idx j = b.begin(s); j < b.end(s); ++j)
                        sum += probs[static_cast<std::size_t>(j - b.begin(s))] / total * v(j, kv + c);
                    heads(i, h * d + c) = sum;
                }
            }
    linear<T>({p.w_o, {}}, heads, y);
}

} // namespace sluice::reference
