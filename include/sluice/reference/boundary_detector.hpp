// Where a concept begins (Qu et al., "Dynamic large concept models", 2025, eqs. 5 and 6, with the threshold
// of section 3.3.1): at tokens unlike the one before,
//   p_t = (1 - cos(W_q h_{t-1}, W_k h_t)) / 2,  p_0 = 1,  b_t = [p_t >= threshold]
#pragma once

#include "../core/tensor.hpp"
#include "linear.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace sluice::reference {

struct boundary_rules {
    double threshold = 0.5;
    idx interval = 0; // > 0: instead, a boundary every so many tokens
    idx longest = 0;  // > 0: and at the latest after so many
};

template <class T>
struct boundary_weights {
    tensor_view<const T> w_q, w_k; // d_scan x d_model, or empty: h itself
};

template <class T>
T boundary_probability(in<T> q, idx i, in<T> k, idx j) {
    T dot = 0, qq = 0, kk = 0;
    for (idx c = 0; c < q.cols(); ++c) {
        dot += q(i, c) * k(j, c);
        qq += q(i, c) * q(i, c);
        kk += k(j, c) * k(j, c);
    }
    const T least = static_cast<T>(1e-12);
    const T cosine = dot / (std::max(std::sqrt(qq), least) * std::max(std::sqrt(kk), least));
    return std::clamp<T>((1 - cosine) / 2, 0, 1);
}

// The tokens of one sequence h (n, d_model) at which segments begin; p of all of them.
template <class T>
std::vector<idx> boundaries(const boundary_rules& rules, const boundary_weights<T>& w, in<T> h,
                            std::vector<T>& p) {
    tensor<T> q(h.rows(), w.w_q.rows()), k(h.rows(), w.w_k.rows());
    const bool learned = !w.w_q.empty();
    if (learned) linear<T>({w.w_q, {}}, h, q), linear<T>({w.w_k, {}}, h, k);
    std::vector<idx> begin;
    for (idx t = 0; t < h.rows(); ++t) {
        T score =
            t == 0 ? T(1) : boundary_probability<T>(learned ? in<T>(q) : h, t - 1, learned ? in<T>(k) : h, t);
        if (rules.interval > 0) score = t % rules.interval == 0 ? T(1) : T(0);
        const bool late = rules.longest > 0 && t > 0 && t - begin.back() == rules.longest;
        p.push_back(score);
        if (score >= static_cast<T>(rules.threshold) || late) begin.push_back(t);
    }
    return begin;
}

} // namespace sluice::reference
