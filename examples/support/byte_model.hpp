// The model that train_lm trains and generate loads, and the sizes that its checkpoint says it has.
#pragma once

#include <sluice/io/safetensors.hpp>
#include <sluice/layers/language_model.hpp>
#include <sluice/layers/transformer_block.hpp>

#include <charconv>
#include <string>

namespace sluice::examples {

// W is the storage of the blocks' weights, V that of everything else.
template <class W, class V = W>
using byte_model = language_model<stack<transformer_block<float, W>>, V>;
using byte_model_config = byte_model<float>::config_type;

inline byte_model_config make_config(idx d_model, idx layers, idx head_dim) {
    const idx heads = d_model / head_dim;
    return {.embedding = {.vocabulary = 256, .d_model = d_model, .head = head_kind::untied},
            .body = {.n_layers = layers,
                     .layer = {.attention = {.d_model = d_model,
                                             .n_heads = heads,
                                             .n_kv_heads = heads,
                                             .head_dim = head_dim,
                                             .norm = qk_norm::per_head},
                               .feed_forward = {.d_model = d_model, .d_ff = round_up(8 * d_model / 3, 32)},
                               .norm = {.d_model = d_model}}},
            .norm = {.d_model = d_model}};
}

// Throws input_error unless the metadata holds the sizes of a model that train_lm can have made.
inline byte_model_config config_of(const io::safetensors& file) {
    auto number = [&](const std::string& key, idx least, idx most) {
        const auto found = file.metadata().find(key);
        if (found == file.metadata().end())
            throw input_error(file.path() + ": no checkpoint of train_lm: its metadata has no " + key);
        const std::string& text = found->second;
        idx value = 0;
        const auto read = std::from_chars(text.data(), text.data() + text.size(), value);
        if (read.ec != std::errc() || read.ptr != text.data() + text.size() || value < least || value > most)
            throw input_error(file.path() + ": no checkpoint of train_lm: " + key + " must be " +
                              std::to_string(least) + " to " + std::to_string(most));
        return value;
    };
    const idx d_model = number("d_model", 2, 65536), head_dim = number("head_dim", 2, 1024);
    if (d_model % head_dim != 0)
        throw input_error(file.path() + ": no checkpoint of train_lm: head_dim does not divide d_model");
    return make_config(d_model, number("layers", 1, 1024), head_dim);
}

} // namespace sluice::examples
