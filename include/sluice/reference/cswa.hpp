// Attention of repeated tokens over the dense mask of the interleaved sequence x_0^1 .. x_0^K x_1^1 ..; Wu et
// al., "Efficient pretraining length scaling", 2025: the mask of PHD eq. 2, the windows and chunks of
// section 2.4. Copies count from 1, positions from 0.
#pragma once

#include "attention.hpp"

namespace sluice::reference {

struct copies {
    idx repeat = 1, window = 0, chunk = 0; // K, W, C; chunk 0: none
    bool window_of_hidden_tokens = false;  // otherwise W counts positions
    bool interleaved = false;              // rotary position K n + j - 1 in place of n
};

// Whether copy j of position n sees copy i of position m.
inline bool visible(const copies& c, idx m, idx i, idx n, idx j) {
    if (i == 1) return m <= n;
    if (j == 1) return false;
    if (m == n) return i <= j;
    const bool same_chunk = c.chunk == 0 || m / c.chunk == n / c.chunk;
    const idx back = c.window_of_hidden_tokens ? (n - m) * (c.repeat - 1) + j - i : n - m;
    return m < n && same_chunk && back <= c.window;
}

// y (rows, d_model) from x (rows, d_model), the copies of a token side by side; b counts tokens.
template <class T>
void cswa(const batch& b, const attention_shape& shape, const copies& c, const attention_weights<T>& p,
          in<T> x, tensor_view<T> y) {
    const idx rows = x.rows(), d = shape.head_dim, group = shape.n_heads / shape.n_kv_heads, K = c.repeat;
    std::vector<idx> offsets, positions;
    for (idx s = 0; s <= b.n_sequences(); ++s)
        offsets.push_back(s == b.n_sequences() ? rows : b.first_token(s) * K);
    for (idx s = 0; s < b.n_sequences(); ++s)
        for (idx t = 0; t < b.tokens(s) * K; ++t) {
            const idx token = b.first_token(s) + t / K;
            const idx n =
                b.positions.empty() ? b.first_position + t / K : b.positions[static_cast<std::size_t>(token)];
            positions.push_back(c.interleaved ? K * n + t % K : n);
        }
    const batch flat{.n_tokens = rows, .offsets = offsets, .positions = positions};
    tensor<T> q(rows, p.w_q.rows()), k(rows, p.w_k.rows()), v(rows, p.w_v.rows()), heads(rows, p.w_q.rows());
    project_heads<T>(flat, shape, p.w_q, p.q_norm, x, q);
    project_heads<T>(flat, shape, p.w_k, p.k_norm, x, k);
    linear<T>({p.w_v, {}}, x, v);
    for (idx s = 0; s < flat.n_sequences(); ++s)
        for (idx i = flat.begin(s); i < flat.end(s); ++i)
            for (idx h = 0; h < shape.n_heads; ++h) {
                const idx kv = h / group * d, row = i - flat.begin(s);
                std::vector<T> probs;
                T largest = -std::numeric_limits<T>::infinity(), total = 0;
                for (idx j = flat.begin(s); j < flat.end(s); ++j) {
                    const idx key = j - flat.begin(s);
                    const bool window = shape.window == 0 || key % K > 0 || row / K - key / K < shape.window;
                    T score = 0;
                    for (idx e = 0; e < d; ++e) score += q(i, h * d + e) * k(j, kv + e);
                    if (visible(c, key / K, key % K + 1, row / K, row % K + 1) && window)
                        score /= std::sqrt(static_cast<T>(d));
                    else
                        score = -std::numeric_limits<T>::infinity();
                    probs.push_back(score);
                    largest = std::max(largest, score);
                }
                for (T& prob : probs) total += prob = std::exp(prob - largest);
                for (idx e = 0; e < d; ++e) {
                    T sum = 0;
                    for (idx j = flat.begin(s); j < flat.end(s); ++j)
                        sum += probs[static_cast<std::size_t>(j - flat.begin(s))] / total * v(j, kv + e);
                    heads(i, h * d + e) = sum;
                }
            }
    linear<T>({p.w_o, {}}, heads, y);
}

} // namespace sluice::reference
