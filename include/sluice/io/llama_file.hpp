// A model of the shape of LLaMA in one safetensors file: the weights as they lie in memory (params.hpp),
// packed ones included, its tokenizer (tokenizer_tensors.hpp), and in the metadata the name of the storage
// and the config, as config.json would have it but for the order of rotary pairs.
#pragma once

#include "llama.hpp"
#include "tokenizer_tensors.hpp"

#include <cstdio>

namespace sluice::io {
inline namespace SLUICE_ISA {

namespace detail {

inline std::string llama_config_text(const llama_config& c) {
    const auto& a = c.body.layer.attention;
    const auto real = [](double x) {
        char text[32];
        std::snprintf(text, sizeof(text), "%.17g", x);
        return std::string(text);
    };
    std::string out = "{\"model_type\":\"" + std::string(a.window > 0 ? "mistral" : "llama") + '"';
    const auto set = [&](const char* key, const std::string& value) {
        out += ",\"" + std::string(key) + "\":" + value;
    };
    for (const auto& [key, n] : {std::pair{"vocab_size", c.embedding.vocabulary},
                                 {"hidden_size", c.embedding.d_model},
                                 {"num_hidden_layers", c.body.n_layers},
                                 {"num_attention_heads", a.n_heads},
                                 {"num_key_value_heads", a.n_kv_heads},
                                 {"head_dim", a.head_dim},
                                 {"intermediate_size", c.body.layer.feed_forward.d_ff}})
        set(key, std::to_string(n));
    set("rms_norm_eps", real(c.norm.eps));
    set("rope_theta", real(a.rotary.base));
    if (a.window > 0) set("sliding_window", std::to_string(a.window));
    set("tie_word_embeddings", c.embedding.head == head_kind::tied ? "true" : "false");
    return out + '}';
}
inline const std::string& llama_value(const safetensors& file, const char* key) {
    const auto at = file.metadata().find(key);
    if (at == file.metadata().end())
        fail(file.path(), "has no \"" + std::string(key) + "\" in its metadata: save_llama did not write it");
    return at->second;
}

} // namespace detail

// Adds the model to what is written; the weights are read by writer.save. `storage` is any name for theirs,
// kept for whoever opens the file. Throws as writer.add does.
template <class P>
void save_llama(safetensors_writer& writer, const llama_config& config, const P& params,
                const tokenizer& words, const std::string& storage) {
    save_params(writer, "", params);
    save_tokenizer(writer, words);
    writer.metadata("llama.config", detail::llama_config_text(config));
    writer.metadata("llama.pairs", config.body.layer.attention.rotary.pairs == rotary_pairs::interleaved
                                       ? "interleaved"
                                       : "half_split");
    writer.metadata("llama.storage", storage);
}

inline const std::string& llama_storage_of(const safetensors& file) {
    return detail::llama_value(file, "llama.storage");
}

// The config of such a file; load_params (params.hpp) reads the weights. Throws input_error where it has
// none.
inline llama_config llama_config_of(const safetensors& file) {
    const std::string &text = detail::llama_value(file, "llama.config"),
                      &pairs = detail::llama_value(file, "llama.pairs");
    llama_config c = llama_config_of(json_values(from_memory(std::as_bytes(std::span(text)), file.path())));
    if (pairs != "interleaved" && pairs != "half_split")
        detail::fail(file.path(), "has rotary pairs of the unknown order \"" + pairs.substr(0, 64) + '"');
    c.body.layer.attention.rotary.pairs =
        pairs == "interleaved" ? rotary_pairs::interleaved : rotary_pairs::half_split;
    return c;
}

// The weights, in memory of the caller, as load_llama has it. Throws input_error that lists every tensor that
// is missing or has another shape or storage.
template <class P>
P load_saved_llama(const safetensors& file, const llama_config& config, arena& memory) {
    detail::with_llama_shapes<P>(file, config,
                                 [&](const P& shaped) { detail::check_params(file, "", shaped, false); });
    const P params = P::bind(memory, config);
    if (!memory.dry()) load_params(file, "", params);
    return params;
}

} // namespace SLUICE_ISA
} // namespace sluice::io
