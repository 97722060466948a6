// Mixture-of-Depths (Raposo et al., "Mixture-of-Depths", 2024): of each sequence some tokens go through a
// block, the others past it.
//   r_i = w . x_i
//   y_i = x_i + g(r_i) f_i(X~) where i is routed, y_i = x_i elsewhere      (eq. 1; g(r) = r)
// X~ are the routed tokens in order; f is what the block adds to them, at their own positions.
#pragma once

#include "../core/batch.hpp"
#include "../core/tensor.hpp"

#include <cmath>
#include <functional>
#include <vector>

namespace sluice::reference {

struct depth_shape {
    double capacity = 0.125; // of the tokens of a sequence (section 3.2)
    bool by_threshold = false, by_predictor = false;
    double threshold = 0; // of the logit (section 3.5)
    bool sigmoid_gate = false;
    double budget = 0, slack = 0; // routed tokens of the first t: fewer than budget t + slack; 0: any
};

// A hidden layer of SiLU in front of one logit.
template <class T>
struct depth_predictor_weights {
    tensor_view<const T> w_in, b_in, w_out, b_out; // h x d_model, 1 x h, 1 x h, 1 x 1
};

template <class T>
T depth_logit(in<T> w, in<T> x, idx i) {
    T sum = 0;
    for (idx j = 0; j < x.cols(); ++j) sum += w(0, j) * x(i, j);
    return sum;
}

template <class T>
T predicted_logit(const depth_predictor_weights<T>& p, in<T> x, idx i) {
    T sum = p.b_out(0, 0);
    for (idx h = 0; h < p.w_in.rows(); ++h) {
        T inner = p.b_in(0, h);
        for (idx j = 0; j < x.cols(); ++j) inner += p.w_in(h, j) * x(i, j);
        sum += p.w_out(0, h) * inner / (1 + std::exp(-inner));
    }
    return sum;
}

// Which of n tokens are routed: the largest floor(capacity n) logits, at least one, or those above the
// threshold.
template <class T>
std::vector<idx> routed_tokens(const depth_shape& shape, const std::vector<T>& logits) {
    const auto n = static_cast<idx>(logits.size());
    auto at = [&](idx i) { return logits[static_cast<std::size_t>(i)]; };
    const auto room = static_cast<idx>(std::floor(shape.capacity * static_cast<double>(n) + 1e-9));
    std::vector<idx> routed;
    for (idx i = 0; i < n; ++i) {
        idx before = 0; // larger ones, and equal ones that come first
        for (idx j = 0; j < n; ++j) before += at(j) > at(i) || (at(j) == at(i) && j < i) ? 1 : 0;
        bool goes = before < std::max<idx>(room, 1);
        if (shape.by_threshold || shape.by_predictor) goes = static_cast<double>(at(i)) > shape.threshold;
        const double most = shape.budget * static_cast<double>(i + 1) + shape.slack;
        if (shape.budget > 0 && static_cast<double>(routed.size()) >= most) goes = false;
        if (goes) routed.push_back(i);
    }
    return routed;
}

// y (n, d_model) from x (n, d_model); f(positions, X~, change) is the block's change of one sequence.
template <class T, class F>
void mixture_of_depths(const batch& b, const depth_shape& shape, in<T> w,
                       const depth_predictor_weights<T>& predictor, in<T> x, tensor_view<T> y, F&& f) {
    for (idx s = 0; s < b.n_sequences(); ++s) {
        std::vector<T> logits;
        for (idx i = b.begin(s); i < b.end(s); ++i)
            logits.push_back(shape.by_predictor ? predicted_logit<T>(predictor, x, i)
                                                : depth_logit<T>(w, x, i));
        std::vector<idx> positions;
        const auto routed = routed_tokens<T>(shape, logits);
        tensor<T> some(static_cast<idx>(routed.size()), x.cols()), change(some.rows(), x.cols());
        for (idx k = 0; k < some.rows(); ++k) {
            const idx row = b.begin(s) + routed[static_cast<std::size_t>(k)];
            for (idx j = 0; j < x.cols(); ++j) some(k, j) = x(row, j);
            positions.push_back(b.position(s, row));
        }
        if (some.rows() > 0) f(positions, in<T>(some.view()), change.view());
        for (idx i = b.begin(s); i < b.end(s); ++i)
            for (idx j = 0; j < x.cols(); ++j) y(i, j) = x(i, j);
        for (idx k = 0; k < some.rows(); ++k) {
            const idx row = b.begin(s) + routed[static_cast<std::size_t>(k)];
            const T r = depth_logit<T>(w, x, row);
            const T gate = shape.sigmoid_gate ? 1 / (1 + std::exp(-r)) : r;
            for (idx j = 0; j < x.cols(); ++j) y(row, j) += gate * change(k, j);
        }
    }
}

} // namespace sluice::reference
