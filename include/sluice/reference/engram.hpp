// Engram (Cheng et al., "Conditional memory via scalable lookup", 2026).
//   z = (id_t m_0 xor id_(t-1) m_1 xor ... ) mod p of each head, for each length of n-gram    section 2.2
//   e = rows z of the heads' tables, side by side; k_m = W_m e, v = W e
//   a_m = sigmoid(phi(<RMSNorm(h_m), RMSNorm(k_m)> / sqrt(d)))                                eqs. 4 and 6
//   y_m = a_m v + SiLU(conv(RMSNorm(a_m v))), conv causal, depthwise, dilated                 eq. 5
#pragma once

#include "../core/batch.hpp"
#include "../core/tensor.hpp"
#include "linear.hpp"

#include <cmath>
#include <vector>

namespace sluice::reference {

struct engram_hash {
    std::vector<std::uint64_t> multipliers; // one for each token of the longest n-gram, the newest first
    std::vector<std::uint64_t> primes;      // of the heads, those of 2-grams first
    idx n_hashes = 0;                       // heads of a length
    std::uint64_t pad = 0;                  // id before the start
};

struct engram_shape {
    idx branches = 1, d_model = 0;
    bool signed_root = true; // phi(s) = sign(s) sqrt(max(|s|, 1e-6)), or s
    double eps = 0, conv_eps = 0;
    idx dilation = 1;
};

template <class T>
struct engram_weights {
    tensor_view<const T> table;          // the heads' tables one below another
    linear_weights<T> kv;                // keys of the branches, then the value
    tensor_view<const T> w_key, w_query; // branches x d_model
    tensor_view<const T> w_value, taps;  // branches x d_model; n_taps x branches d_model, or empty
};

// Table rows of token i of one sequence of compressed ids; below zero: a boundary, as the start is one.
inline std::vector<idx> engram_rows(const engram_hash& h, std::span<const std::int32_t> ids, idx i) {
    std::vector<idx> rows;
    std::uint64_t mix = 0;
    idx first = 0;
    bool before = false;
    for (std::size_t k = 0; k < h.multipliers.size(); ++k) {
        const idx t = i - static_cast<idx>(k);
        before = before || t < 0 || ids[static_cast<std::size_t>(t)] < 0;
        mix ^= (before ? h.pad : static_cast<std::uint64_t>(ids[static_cast<std::size_t>(t)])) *
               h.multipliers[k];
        for (idx j = 0; j < h.n_hashes && k > 0; ++j) {
            const std::uint64_t p = h.primes[rows.size()];
            rows.push_back(first + static_cast<idx>(mix % p));
            first += static_cast<idx>(p);
        }
    }
    return rows;
}

// y (n, branches d_model) from x of the same shape; ids are compressed, below 0: a boundary, below -1: a
// token that nothing is added to.
template <class T>
void engram(const engram_hash& hash, const engram_shape& c, const engram_weights<T>& p, const batch& b,
            std::span<const std::int32_t> ids, in<T> x, tensor_view<T> y) {
    const idx d = c.d_model, width = c.branches * d, part = p.table.cols();
    auto inverse = [d](const T* v, double eps) { // 1 / rms
        T square = 0;
        for (idx j = 0; j < d; ++j) square += v[j] * v[j] / static_cast<T>(d);
        return T(1) / std::sqrt(square + static_cast<T>(eps));
    };
    for (idx s = 0; s < b.n_sequences(); ++s) {
        const idx n = b.tokens(s), start = b.first_token(s);
        const auto mine = ids.subspan(static_cast<std::size_t>(start), static_cast<std::size_t>(n));
        tensor<T> memory(n, p.kv.w.cols()), kv(n, width + d), u(n, width), normed(n, width);
        for (idx i = 0; i < n; ++i) {
            const auto rows = engram_rows(hash, mine, i);
            for (idx head = 0; head < static_cast<idx>(rows.size()); ++head)
                for (idx j = 0; j < part; ++j)
                    memory(i, head * part + j) = p.table(rows[static_cast<std::size_t>(head)], j);
        }
        linear<T>(p.kv, memory, kv);
        for (idx i = 0; i < n; ++i)
            for (idx m = 0; m < c.branches; ++m) {
                const T *h = x.row(start + i) + m * d, *key = kv.row(i) + m * d;
                const T h_inverse = inverse(h, c.eps), k_inverse = inverse(key, c.eps);
                T score = 0;
                for (idx j = 0; j < d; ++j)
                    score += h[j] * h_inverse * p.w_query(m, j) * key[j] * k_inverse * p.w_key(m, j);
                score /= std::sqrt(static_cast<T>(d));
                if (c.signed_root)
                    score = std::copysign(std::sqrt(std::max(std::abs(score), T(1e-6))), score);
                const bool masked = mine[static_cast<std::size_t>(i)] < -1;
                const T gate = masked ? T(0) : T(1) / (T(1) + std::exp(-score));
                for (idx j = 0; j < d; ++j) u(i, m * d + j) = gate * kv(i, width + j);
                if (p.taps.empty()) continue;
                const T u_inverse = inverse(u.row(i) + m * d, c.conv_eps);
                for (idx j = 0; j < d; ++j)
                    normed(i, m * d + j) = u(i, m * d + j) * u_inverse * p.w_value(m, j);
            }
        for (idx i = 0; i < n; ++i)
            for (idx j = 0; j < width; ++j) {
                T z = 0;
                for (idx k = 0; k < p.taps.rows() && i - k * c.dilation >= 0; ++k)
                    z += p.taps(k, j) * normed(i - k * c.dilation, j);
                const bool masked = mine[static_cast<std::size_t>(i)] < -1;
                y(start + i, j) = masked ? T(0) : u(i, j) + z / (T(1) + std::exp(-z));
            }
    }
}

} // namespace sluice::reference
