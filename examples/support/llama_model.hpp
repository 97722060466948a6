// A published model of the shape of LLaMA with its tokenizer, opened from a GGUF file, from a folder of
// config.json, tokenizer.json and safetensors, or from a file of the program quantise.
#pragma once

#include <sluice/io/llama_file.hpp>
#include <sluice/io/safetensors_index.hpp>
#include <sluice/io/tokenizer_json.hpp>
#include <sluice/layers/moe.hpp>
#include <sluice/layers/phd.hpp>

#include <filesystem>

namespace sluice::examples {

// The matrices of the blocks are kept in packed<S>; embedding and head are packed in 8 bits with them where
// those are quantised, and else float.
template <class S>
using llama_outer = std::conditional_t<quantised<S>, packed<int8_block>, float>;
template <class S>
using llama_model = language_model<stack<transformer_block<float, packed<S>>>, llama_outer<S>>;

// The same with a mixture of experts in place of each feed-forward.
template <class S>
using llama_of_experts = language_model<stack<
    basic_transformer_block<attention<float, packed<S>>, moe<float, packed<S>>, norm<float, packed<S>>>>>;
// The same with copies of each token.
template <class S>
using llama_of_copies = language_model<phd<float, packed<S>>>;

// The dense model's config with experts that each are its feed-forward.
inline auto with_experts(const io::llama_config& dense, idx n_experts, idx top_k) {
    const auto& block = dense.body.layer;
    llama_of_experts<float>::config_type c{.embedding = dense.embedding, .norm = dense.norm};
    c.body = {.n_layers = dense.body.n_layers,
              .layer = {.attention = block.attention,
                        .feed_forward = {.d_model = dense.embedding.d_model,
                                         .router = {.n_experts = n_experts,
                                                    .top_k = top_k,
                                                    .weights = {.norm = weight_norm::sum}},
                                         .expert = block.feed_forward},
                        .norm = block.norm}};
    return c;
}
// Its weights: views of the dense model's, and routers from `memory`, which may be dry.
template <class S>
typename llama_of_experts<S>::params_type upcycled(const typename llama_model<S>::params_type& dense,
                                                   const auto& config, std::uint64_t seed, arena& memory) {
    typename llama_of_experts<S>::params_type p{dense.embedding, {}, dense.norm};
    using block = std::remove_reference_t<decltype(p.body.layers[0])>;
    auto* const at = memory.take_views<block>(config.body.n_layers);
    for (std::size_t i = 0; i < dense.body.layers.size(); ++i) {
        const auto& from = dense.body.layers[i];
        const auto experts =
            upcycle(from.feed_forward, config.body.layer.feed_forward, random_source(seed).split(i), memory);
        if (at != nullptr) at[i] = {from.attention_norm, from.attention, from.feed_forward_norm, experts};
    }
    if (at != nullptr) p.body.layers = {at, dense.body.layers.size()};
    return p;
}

inline auto with_copies(const io::llama_config& dense, idx repeat, idx window) {
    const auto& block = dense.body.layer;
    llama_of_copies<float>::config_type c{.embedding = dense.embedding, .norm = dense.norm};
    c.body = {
        .repeat = repeat,
        .body = {.n_layers = dense.body.n_layers,
                 .layer = {.attention = {.attention = block.attention, .repeat = repeat, .window = window},
                           .feed_forward = block.feed_forward,
                           .norm = block.norm}}};
    return c;
}
// Views of the dense model's weights, which are all that copies need.
template <class S>
typename llama_of_copies<S>::params_type copied(const typename llama_model<S>::params_type& dense,
                                                arena& memory) {
    typename llama_of_copies<S>::params_type p{dense.embedding, {}, dense.norm};
    using block = std::remove_reference_t<decltype(p.body.body.layers[0])>;
    const auto n = static_cast<idx>(dense.body.layers.size());
    auto* const at = memory.take_views<block>(n);
    for (idx i = 0; at != nullptr && i < n; ++i) {
        const auto& from = dense.body.layers[static_cast<std::size_t>(i)];
        at[i] = {from.attention_norm, {from.attention}, from.feed_forward_norm, from.feed_forward};
    }
    if (at != nullptr) p.body.body.layers = {at, static_cast<std::size_t>(n)};
    return p;
}

// What the blocks' matrices can be kept in, by the names that programs have for it.
inline const std::vector<std::string> llama_storages{"float", "bf16", "half",    "int8row",
                                                     "int8",  "int4", "int4min", "f8"};
// Calls f with a value of the storage's type.
template <class F>
void with_storage(const std::string& name, F&& f) {
    if (name == "float") return f(float{});
    if (name == "bf16") return f(bf16{});
    if (name == "half") return f(half{});
    if (name == "int8row") return f(int8_row{});
    if (name == "int8") return f(int8_block{});
    if (name == "int4") return f(int4_block{});
    if (name == "int4min") return f(int4_block_min{});
    if (name == "f8") return f(f8_block{});
    throw input_error("there is no storage \"" + name + '"');
}

inline bool is_saved_llama(const std::string& path) { return path.ends_with(".safetensors"); }
// Of a file of quantise.
inline std::string saved_storage(const std::string& path) {
    return io::llama_storage_of(io::safetensors(io::map(path)));
}

// Calls f(tensors, config, tokenizer) for a published model. Throws input_error where there is none.
template <class F>
void open_llama(const std::string& path, F&& f) {
    namespace fs = std::filesystem;
    const auto open = [&](const auto& file, const io::llama_config& config, const io::tokenizer& words) {
        if (words.size() > config.embedding.vocabulary)
            throw input_error(path + ": has " + std::to_string(words.size()) + " tokens, but " +
                              std::to_string(config.embedding.vocabulary) + " rows of the embedding");
        f(file, config, words);
    };
    if (is_saved_llama(path)) {
        const io::safetensors file(io::map(path));
        return open(file, io::llama_config_of(file), io::load_tokenizer(file));
    }
    if (!fs::is_directory(path)) {
        const io::gguf file(io::read(path));
        return open(file, io::llama_config_of(file), io::gguf_tokenizer(file));
    }
    const auto at = [&](const char* name) { return (fs::path(path) / name).string(); };
    const bool several = fs::exists(at("model.safetensors.index.json"));
    const auto tensors = io::map_tensors(at(several ? "model.safetensors.index.json" : "model.safetensors"));
    open(tensors, io::llama_config_of(io::json_values(io::read(at("config.json")))),
         io::json_tokenizer(io::read(at("tokenizer.json"))));
}

// Calls f(model, tokenizer). Throws input_error where there is no such model.
template <class S, class F>
void with_llama(const std::string& path, F&& f) {
    using params = typename llama_model<S>::params_type;
    open_llama(path, [&](const auto& file, const io::llama_config& config, const io::tokenizer& words) {
        const auto load = [&](arena& memory) {
            if constexpr (std::is_same_v<decltype(file), const io::safetensors&>)
                if (is_saved_llama(path)) return io::load_saved_llama<params>(file, config, memory);
            return io::load_llama<params>(file, config, memory);
        };
        arena counted;
        (void)load(counted);
        arena memory(counted.bytes());
        f(llama_model<S>(config, load(memory)), words);
    });
}

} // namespace sluice::examples
