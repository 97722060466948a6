// Token embedding and the output head: rows of a table on the way in, logits on the way out, by the same
// table (tied; Press and Wolf, "Using the output embedding", 2017) or a matrix of its own.
#pragma once

#include "../core/layer.hpp"
#include "../core/random.hpp"
#include "../ops/gather.hpp"
#include "../ops/matmul.hpp"
#include "../ops/softmax.hpp"

namespace sluice {

enum class head_kind { tied, untied };

struct embedding_config {
    idx vocabulary = 0;
    idx d_model = 0;
    head_kind head = head_kind::untied;
};

template <class W>
struct embedding_params {
    tensor_view<W> table; // vocabulary x d_model
    tensor_view<W> head;  // vocabulary x d_model, or empty when tied

    static embedding_params bind(arena& a, const embedding_config& c) {
        embedding_params p;
        p.table = a.take<W>(c.vocabulary, c.d_model);
        if (c.head == head_kind::untied) p.head = a.take<W>(c.vocabulary, c.d_model);
        return p;
    }
    template <class F, class First, class... Sets>
    static void each(F& f, const param_name& at, First& first, Sets&... sets) {
        f(param_name(at, "table"), role::embedding, first.table, sets.table...);
        if (!first.head.empty()) f(param_name(at, "head"), role::matrix, first.head, sets.head...);
    }
    // The matrix of the head, whoever owns it.
    const tensor_view<W>& out() const { return head.empty() ? table : head; }
};

// Untied: table normal with deviation 0.3 and head with 0.02, which small models on little text learn fastest
// from; tied: 0.02 for both uses, as GPT-2.
template <class T>
void initialise(const embedding_params<T>& p, const embedding_config& c, const random_source& numbers) {
    fill_normal(p.table, c.head == head_kind::untied ? 0.3 : 0.02, numbers.split(0));
    fill_normal(p.head, 0.02, numbers.split(1));
}

inline namespace SLUICE_ISA {

template <class T, class W = T, class Arch = simd::native>
class embedding {
public:
    using scalar = T;
    using arch = Arch;
    static constexpr bool trainable = std::is_same_v<std::remove_const_t<W>, T>; // weights stored as T
    using config_type = embedding_config;
    using params_type = embedding_params<W>;
    using grad_type = embedding_params<T>;

    embedding(const embedding_config& config, const params_type& params) : config_(config), params_(params) {
        require_positive(config.vocabulary, "embedding", "vocabulary");
        require_positive(config.d_model, "embedding", "d_model");
        require_shape(params.table, config.vocabulary, config.d_model, "embedding", "table");
        const bool untied = config.head == head_kind::untied;
        require_shape(params.head, untied ? config.vocabulary : 0, untied ? config.d_model : 0, "embedding",
                      "head");
    }

    const embedding_config& config() const { return config_; }
    const params_type& params() const { return params_; }

    // y (n_tokens, d_model) from b.ids. Throws input_error for an id outside the vocabulary.
    void forward(const batch& b, tensor_view<T> y, executor_ref ex = {}) const {
        require_shape(y, b.n_tokens, config_.d_model, "embedding", "y");
        embed<Arch>(b.ids, params_.table, y, ex);
    }
    void backward(const batch& b, in<T> dy, const grad_type& grad, executor_ref ex = {}) const {
        embed_backward<Arch>(b.ids, dy, grad.table, ex);
    }

    // logits (rows, vocabulary) of hidden rows x (rows, d_model).
    void logits(in<T> x, tensor_view<T> y, arena& workspace, executor_ref ex = {}) const {
        matmul<Arch>(x, params_.out(), y, {}, workspace, ex);
    }

    // Throws input_error unless every row has a target: a row of the vocabulary, or ignored_target.
    void check_targets(std::span<const token_id> targets, idx n_rows) const {
        if (static_cast<idx>(targets.size()) != n_rows)
            SLUICE_THROW(input_error("embedding: " + std::to_string(targets.size()) + " targets for " +
                                     std::to_string(n_rows) + " rows"));
        for (std::size_t i = 0; i < targets.size(); ++i)
            if (targets[i] < ignored_target || targets[i] >= config_.vocabulary)
                SLUICE_THROW(input_error("embedding: target " + std::to_string(targets[i]) + " at row " +
                                         std::to_string(i) + " is outside the vocabulary of " +
                                         std::to_string(config_.vocabulary)));
    }

    // Sum over rows of the cross-entropy in nats. With `grad`, dx (rows, d_model) is the gradient of `weight`
    // times that sum and the head's gradient accumulates. Rows are taken in blocks, so logits of all tokens
    // never exist at once. dx may be x.
    double loss(in<T> x, std::span<const token_id> targets, double weight, const grad_type* grad,
                tensor_view<T> dx, arena& workspace, executor_ref ex = {}) const {
        const arena::scope scope(workspace);
        const idx n = x.rows(), block = std::min(n, loss_rows);
        const auto buffer = workspace.take<T>(block, config_.vocabulary);
        const auto losses = workspace.take<T>(1, n), lse = workspace.take<T>(1, block);
        if (!ex.dry()) check_targets(targets, n); // all of them, before any gradient is added to
        for (idx i = 0; i < n; i += block) {
            const idx m = std::min(block, n - i);
            const auto rows = x.row_block(i, m);
            const auto y = buffer.row_block(0, m);
            const auto part = ex.dry()
                                  ? targets
                                  : targets.subspan(static_cast<std::size_t>(i), static_cast<std::size_t>(m));
            logits(rows, y, workspace, ex);
            cross_entropy<Arch>(y, part, losses.col_block(i, m), lse.col_block(0, m), ex);
            if (grad == nullptr) continue;
            if constexpr (trainable) {
                cross_entropy_backward<Arch>(y, part, lse.col_block(0, m), static_cast<T>(weight), y, ex);
                matmul_dw<Arch>(y, rows, grad->out(), workspace, ex);
                matmul_dx<Arch>(y, params_.out(), dx.row_block(i, m), false, workspace, ex);
            } else {
                SLUICE_THROW(config_error("embedding: gradients need a table of the type that computes"));
            }
        }
        double total = 0;
        if (!ex.dry())
            for (idx i = 0; i < n; ++i) total += static_cast<double>(losses(0, i));
        return total;
    }

    // Of the head; looking up rows costs no arithmetic.
    double flops(idx n_tokens) const {
        return 2.0 * static_cast<double>(n_tokens) * static_cast<double>(params_.out().size());
    }

private:
    static constexpr idx loss_rows = 256;

    embedding_config config_;
    params_type params_;
};

} // namespace SLUICE_ISA
} // namespace sluice
