// Configs of the parts that the compared models are made of, from the sizes of a comparison.
#pragma once

#include "candidate.hpp"

#include <sluice/layers/dlcm.hpp>
#include <sluice/layers/engram.hpp>
#include <sluice/layers/mixture_of_depths.hpp>
#include <sluice/layers/moe.hpp>
#include <sluice/layers/phd.hpp>
#include <sluice/layers/transformer_block.hpp>

namespace sluice::examples {

// What the layers of a step report while it runs.
struct step_report {
    boundary_counts boundaries;
    depth_report depth;
};

// The same weights are trained by rules that may look at later tokens, and judged by rules that do not.
struct purpose {
    step_report* training = nullptr; // null: evaluation
    double share = 0;                // that evaluation had of tokens routed or of concepts; 0: not known
};

using expert_block = basic_transformer_block<attention<float>, moe<float>, norm<float>>;

inline attention_config attention_of(const model_size& s, idx d) {
    const idx heads = std::max<idx>(d / s.head_dim, 1);
    return {.d_model = d,
            .n_heads = heads,
            .n_kv_heads = heads,
            .head_dim = s.head_dim,
            .norm = qk_norm::per_head};
}

// Sigmoid scores, weights that sum to one, nothing dropped; experts are kept even by a bias on the choice.
inline moe_config experts_of(const model_size& s, idx d) {
    return {.d_model = d,
            .router = {.n_experts = s.experts,
                       .top_k = s.experts_of_token,
                       .score = router_score::sigmoid,
                       .selection_bias = true,
                       .weights = {.norm = weight_norm::sum}},
            .expert = {.d_ff = s.expert_d_ff * d / s.d_model}};
}

template <class Block>
typename Block::config_type block_of(const model_size& s, idx d, idx copies = 1) {
    typename Block::config_type c;
    c.norm = {.d_model = d};
    if constexpr (requires { c.attention.repeat; })
        c.attention = {.attention = attention_of(s, d),
                       .repeat = copies,
                       .window = s.copy_window,
                       .chunk = s.copy_chunk};
    else
        c.attention = attention_of(s, d);
    if constexpr (requires { c.feed_forward.router; })
        c.feed_forward = experts_of(s, d);
    else
        c.feed_forward = {.d_model = d, .d_ff = s.d_ff * d / s.d_model};
    return c;
}

// A table of n-grams as wide in all as the model. A gradient holds the rows that one step can touch.
inline engram_config memory_of(const model_size& s) {
    ngram_hash hash;
    const idx layer = 1;
    make_ngram_hashes({.vocabulary = s.compressed_size,
                       .n_gram = s.n_gram,
                       .n_hashes = s.hashes,
                       .least_rows = {s.table_rows}},
                      {&layer, 1}, {&hash, 1});
    return {.d_model = s.d_model,
            .d_memory = round_up(s.d_model, hash.heads()),
            .hash = hash,
            .token_map = {s.compressed.data(), s.compressed.empty() ? 0 : 1,
                          static_cast<idx>(s.compressed.size())},
            .max_touched = s.sequences * s.context * hash.heads()};
}

inline depth_router_config routing_of(const model_size& s, const purpose& why) {
    const depth_rule judged = s.random_routing ? depth_rule::random : depth_rule::predictor;
    depth_router_config c{.d_model = s.d_model,
                          .capacity = why.share > 0 ? why.share : s.capacity,
                          .forward_by = judged,
                          .extend_by = judged,
                          .predictor = 64};
    if (why.training != nullptr && !s.random_routing) {
        c.forward_by = depth_rule::top_k;
        c.losses = {.predictor = 0.1, .report = &why.training->depth};
    }
    return c;
}

} // namespace sluice::examples
