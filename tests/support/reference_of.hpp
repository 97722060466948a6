// Configs and weights of layers as their references name them.
#pragma once

#include <sluice/layers/phd.hpp>
#include <sluice/reference/phd.hpp>

namespace sluice::test {

inline reference::norm_kind reference_of(norm_kind kind) {
    return kind == norm_kind::rms ? reference::norm_kind::rms : reference::norm_kind::layer;
}
inline reference::activation reference_of(feed_forward_kind kind) {
    return kind == feed_forward_kind::swiglu        ? reference::activation::silu
           : kind == feed_forward_kind::relu        ? reference::activation::relu
           : kind == feed_forward_kind::quick_geglu ? reference::activation::quick_gelu
                                                    : reference::activation::gelu;
}
inline reference::attention_shape reference_of(const attention_config& c) {
    return {.n_heads = c.n_heads,
            .n_kv_heads = c.n_kv_heads,
            .head_dim = c.head_dim,
            .window = c.window,
            .pairs = c.rotary.pairs == rotary_pairs::half_split    ? reference::rotary::half_split
                     : c.rotary.pairs == rotary_pairs::interleaved ? reference::rotary::interleaved
                                                                   : reference::rotary::none,
            .base = c.rotary.base,
            .eps = c.eps};
}
inline reference::copies reference_of(const cswa_config& c) {
    return {.repeat = c.repeat,
            .window = c.window,
            .chunk = c.chunk == no_chunks ? 0 : c.chunk,
            .window_of_hidden_tokens = c.unit == window_unit::hidden_tokens,
            .interleaved = c.positions == copy_positions::interleaved};
}
inline reference::transformer_block_shape reference_of(const transformer_block_config& c) {
    return {.attention = reference_of(c.attention),
            .act = reference_of(c.feed_forward.kind),
            .norm = reference_of(c.norm.kind),
            .eps = c.norm.eps};
}

inline reference::norm_weights<double> reference_of(const norm_params<double>& p) {
    return {p.scale, p.bias};
}
inline reference::feed_forward_weights<double> reference_of(const feed_forward_params<double>& p) {
    return {p.w_gate, p.w_up, p.w_down, p.b_gate, p.b_up, p.b_down};
}
inline reference::attention_weights<double> reference_of(const attention_params<double>& p) {
    return {p.w_q, p.w_k, p.w_v, p.w_o, p.q_norm, p.k_norm};
}
inline reference::transformer_block_weights<double> reference_of(const transformer_block_params<double>& p) {
    return {reference_of(p.attention_norm), reference_of(p.attention), reference_of(p.feed_forward_norm),
            reference_of(p.feed_forward)};
}

} // namespace sluice::test
