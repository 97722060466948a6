// Softmax of rows or of columns, and cross-entropy of logits against one class per row, forward and backward.
// The gradient of the cross-entropy may replace the logits, so no second [tokens, vocabulary] tensor is
// needed.
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

// y = softmax(x); y may be x. A row that holds NaN or inf, or nothing but -inf, becomes NaN; no other row
// does.
template <class Arch = simd::native, class T>
void softmax(in<T> x, tensor_view<T> y, executor_ref ex) {
    require_shape(y, x.rows(), x.cols(), "softmax", "y");
    SLUICE_ASSERT(apart_or_same(y, x));
    ex(x.rows(), [&](idx begin, idx end, idx) {
        simd::invoke(Arch{}, kernels::softmax_rows{}, x.row(begin), x.row_stride(), y.row(begin),
                     y.row_stride(), end - begin, x.cols());
    });
}

// dx = y (dy - sum_j dy y) from the softmax's output; dx may be dy.
template <class Arch = simd::native, class T>
void softmax_backward(in<T> y, in<T> dy, tensor_view<T> dx, executor_ref ex) {
    require_shape(dy, y.rows(), y.cols(), "softmax_backward", "dy");
    require_shape(dx, y.rows(), y.cols(), "softmax_backward", "dx");
    SLUICE_ASSERT(apart_or_same(dx, dy) && apart(dx, y));
    ex(y.rows(), [&](idx begin, idx end, idx) {
        simd::invoke(Arch{}, kernels::softmax_dx{}, y.row(begin), y.row_stride(), dy.row(begin),
                     dy.row_stride(), dx.row(begin), dx.row_stride(), end - begin, y.cols());
    });
}

// lse (1, m) = log sum_j exp(x(i, j)).
template <class Arch = simd::native, class T>
void log_sum_exp(in<T> x, tensor_view<T> lse, executor_ref ex) {
    require_shape(lse, 1, x.rows(), "log_sum_exp", "lse");
    ex(x.rows(), [&](idx begin, idx end, idx) {
        simd::invoke(Arch{}, kernels::log_sum_exp_rows{}, x.row(begin), x.row_stride(), lse.data() + begin,
                     end - begin, x.cols());
    });
}

// y(i, j) = softmax over the rows i of x, column by column; y may be x. Workers share out columns.
template <class Arch = simd::native, class T>
void softmax_columns(in<T> x, tensor_view<T> y, executor_ref ex) {
    require_shape(y, x.rows(), x.cols(), "softmax_columns", "y");
    constexpr idx strip = 64;
    ex(ceil_div(x.cols(), strip), [&](idx begin, idx end, idx) {
        const idx col = begin * strip, cols = std::min(end * strip, x.cols()) - col;
        simd::invoke(Arch{}, kernels::softmax_columns{}, x.data() + col, x.row_stride(), y.data() + col,
                     y.row_stride(), x.rows(), cols);
    });
}

// dx += y (dy - sum_i dy y) from the output of softmax_columns.
template <class Arch = simd::native, class T>
void softmax_columns_backward(in<T> y, in<T> dy, tensor_view<T> dx, executor_ref ex) {
    require_shape(dy, y.rows(), y.cols(), "softmax_columns_backward", "dy");
    require_shape(dx, y.rows(), y.cols(), "softmax_columns_backward", "dx");
    constexpr idx strip = 64;
    ex(ceil_div(y.cols(), strip), [&](idx begin, idx end, idx) {
        const idx col = begin * strip, cols = std::min(end * strip, y.cols()) - col;
        simd::invoke(Arch{}, kernels::softmax_columns_dx{}, y.data() + col, y.row_stride(), dy.data() + col,
                     dy.row_stride(), dx.data() + col, dx.row_stride(), y.rows(), cols);
    });
}

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
