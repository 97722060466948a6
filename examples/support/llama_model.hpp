// A published model of the shape of LLaMA with its tokenizer, opened from a GGUF file or from a folder of
// config.json, tokenizer.json and safetensors.
#pragma once

#include <sluice/io/llama.hpp>
#include <sluice/io/safetensors_index.hpp>
#include <sluice/io/tokenizer_json.hpp>

#include <filesystem>

namespace sluice::examples {

// The matrices of the blocks are kept in packed<S>, everything else in float.
template <class S>
using llama_model = language_model<stack<transformer_block<float, packed<S>>>>;

namespace detail {

template <class S, class Source, class F>
void with_llama_of(const Source& file, const io::llama_config& config, const io::tokenizer& words, F&& f) {
    if (words.size() > config.embedding.vocabulary)
        throw input_error(file.path() + ": has " + std::to_string(words.size()) + " tokens, but " +
                          std::to_string(config.embedding.vocabulary) + " rows of the embedding");
    using params = typename llama_model<S>::params_type;
    arena counted;
    (void)io::load_llama<params>(file, config, counted);
    arena memory(counted.bytes());
    f(llama_model<S>(config, io::load_llama<params>(file, config, memory)), words);
}

} // namespace detail

// Calls f(model, tokenizer). Throws input_error where there is no such model.
template <class S, class F>
void with_llama(const std::string& path, F&& f) {
    namespace fs = std::filesystem;
    if (!fs::is_directory(path)) {
        const io::gguf file(io::read(path));
        return detail::with_llama_of<S>(file, io::llama_config_of(file), io::gguf_tokenizer(file), f);
    }
    const auto at = [&](const char* name) { return (fs::path(path) / name).string(); };
    const bool several = fs::exists(at("model.safetensors.index.json"));
    const auto tensors = io::map_tensors(at(several ? "model.safetensors.index.json" : "model.safetensors"));
    detail::with_llama_of<S>(tensors, io::llama_config_of(io::json_values(io::read(at("config.json")))),
                             io::json_tokenizer(io::read(at("tokenizer.json"))), f);
}

} // namespace sluice::examples
