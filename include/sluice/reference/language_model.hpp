// The decoder-only language model (Radford et al., "Language models are unsupervised multitask learners",
// 2019, section 2.3): logits = norm(blocks(embedding(ids))) W_head^T, trained by the mean cross-entropy of
// the next token.
#pragma once

#include "compose.hpp"
#include "embedding.hpp"
#include "transformer_block.hpp"

namespace sluice::reference {

template <class T>
struct language_model_weights {
    tensor_view<const T> table, head; // vocabulary x d_model; an empty head is tied
    std::span<const transformer_block_weights<T>> blocks;
    norm_weights<T> norm; // before the head
};

// logits (n, vocabulary) of the rows of b.ids, each sequence from its first token.
template <class T>
void language_model(const batch& b, const transformer_block_shape& shape, const language_model_weights<T>& p,
                    tensor_view<T> logits) {
    tensor<T> x(b.n_tokens, p.table.cols()), h(b.n_tokens, p.table.cols());
    embedding<T>(b.ids, p.table, x);
    stack<T>(static_cast<idx>(p.blocks.size()), x, h, [&](idx i, in<T> from, tensor_view<T> to) {
        transformer_block<T>(b, shape, p.blocks[static_cast<std::size_t>(i)], from, to);
    });
    norm<T>(shape.norm, shape.eps, p.norm, h, x);
    output_logits<T>(p.head.empty() ? p.table : p.head, x, logits);
}

// Mean cross-entropy in nats over the rows that have a target.
template <class T>
T language_model_loss(const batch& b, const transformer_block_shape& shape,
                      const language_model_weights<T>& p, std::span<const token_id> targets) {
    tensor<T> logits(b.n_tokens, p.table.rows());
    language_model<T>(b, shape, p, logits);
    T n = 0;
    for (token_id target : targets) n += target < 0 ? T(0) : T(1);
    return cross_entropy<T>(logits, targets) / std::max(n, T(1));
}

} // namespace sluice::reference
