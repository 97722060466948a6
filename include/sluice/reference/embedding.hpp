// Token embedding, output head and cross-entropy.
//   e_t = row id_t of the table; logits = h W^T with W the table itself where it is tied
//                                                          Press and Wolf, "Using the output embedding", 2017
//   loss_t = -log softmax(logits_t)[target_t]
#pragma once

#include "../core/batch.hpp"
#include "linear.hpp"

#include <cmath>

namespace sluice::reference {

// y (n, d_model): rows of the table (vocabulary, d_model).
template <class T>
void embedding(std::span<const token_id> ids, in<T> table, tensor_view<T> y) {
    for (idx i = 0; i < y.rows(); ++i)
        for (idx j = 0; j < y.cols(); ++j) y(i, j) = table(ids[static_cast<std::size_t>(i)], j);
}

// logits (n, vocabulary) of h (n, d_model); head (vocabulary, d_model).
template <class T>
void output_logits(in<T> head, in<T> h, tensor_view<T> logits) {
    linear<T>({head, {}}, h, logits);
}

// The sum of the losses of the rows in nats. A negative target is none.
template <class T>
T cross_entropy(in<T> logits, std::span<const token_id> targets) {
    T total = 0;
    for (idx i = 0; i < logits.rows(); ++i) {
        const token_id target = targets[static_cast<std::size_t>(i)];
        if (target < 0) continue;
        T largest = logits(i, 0), sum = 0;
        for (idx j = 0; j < logits.cols(); ++j) largest = std::max(largest, logits(i, j));
        for (idx j = 0; j < logits.cols(); ++j) sum += std::exp(logits(i, j) - largest);
        total -= logits(i, target) - largest - std::log(sum);
    }
    return total;
}

} // namespace sluice::reference
