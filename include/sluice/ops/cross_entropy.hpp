// Cross-entropy of logits against one class per row, forward and backward, on the same buffer: the gradient
// may replace the logits, so no second [tokens, vocabulary] tensor is needed.
#pragma once

#include "../core/executor.hpp"
#include "../core/tensor_view.hpp"
#include "../kernels/softmax.hpp"

namespace sluice {

constexpr token_id ignored_target = -1; // a row that has no target: loss 0, gradient 0

// Throws input_error unless every row has a target, and every target is a class or ignored.
inline void check_targets(std::span<const token_id> targets, idx n_rows, idx n_classes) {
    if (static_cast<idx>(targets.size()) != n_rows)
        SLUICE_THROW(input_error("cross_entropy: " + std::to_string(targets.size()) + " targets for " +
                                 std::to_string(n_rows) + " rows"));
    for (token_id t : targets)
        if (t < ignored_target || t >= n_classes)
            SLUICE_THROW(input_error("cross_entropy: target " + std::to_string(t) +
                                     " is outside the vocabulary of " + std::to_string(n_classes)));
}

inline namespace SLUICE_ISA {

// loss (1, m) = lse - logits[target] in nats and lse (1, m) for logits (m, v). Targets are checked always.
template <class Arch = simd::native, class T>
void cross_entropy(in<T> logits, std::span<const token_id> targets, tensor_view<T> loss, tensor_view<T> lse,
                   executor_ref ex) {
    require_shape(loss, 1, logits.rows(), "cross_entropy", "loss");
    require_shape(lse, 1, logits.rows(), "cross_entropy", "lse");
    if (!ex.dry()) check_targets(targets, logits.rows(), logits.cols());
    ex(logits.rows(), [&](idx begin, idx end, idx) {
        simd::invoke(Arch{}, kernels::log_sum_exp_rows{}, logits.row(begin), logits.row_stride(),
                     lse.data() + begin, end - begin, logits.cols());
        for (idx i = begin; i < end; ++i) {
            const token_id t = targets[static_cast<std::size_t>(i)];
            loss(0, i) = t == ignored_target ? T(0) : lse(0, i) - logits(i, t);
        }
    });
}

// dlogits = weight (softmax(logits) - onehot(target)); dlogits may be logits. With the mean of n rows as
// loss, weight is 1 / n. Targets are checked always.
template <class Arch = simd::native, class T>
void cross_entropy_backward(in<T> logits, std::span<const token_id> targets, in<T> lse,
                            std::type_identity_t<T> weight, tensor_view<T> dlogits, executor_ref ex) {
    require_shape(dlogits, logits.rows(), logits.cols(), "cross_entropy_backward", "dlogits");
    require_shape(lse, 1, logits.rows(), "cross_entropy_backward", "lse");
    SLUICE_ASSERT(apart_or_same(dlogits, logits) && apart(dlogits, lse));
    if (!ex.dry()) check_targets(targets, logits.rows(), logits.cols());
    ex(logits.rows(), [&](idx begin, idx end, idx) {
        simd::invoke(Arch{}, kernels::cross_entropy_dx{}, logits.row(begin), logits.row_stride(),
                     lse.data() + begin, targets.data() + begin, weight, dlogits.row(begin),
                     dlogits.row_stride(), end - begin, logits.cols());
    });
}

} // namespace SLUICE_ISA
} // namespace sluice
