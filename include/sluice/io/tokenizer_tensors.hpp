// A tokenizer as tensors of a safetensors file, beside the weights of the model that it belongs to:
//   tokenizer.tokens   U8   their strings, one after another
//   tokenizer.lengths  I32  of each, in bytes
//   tokenizer.kinds    U8   of each
//   tokenizer.merges   I32  (merges, 2) ids, the first to merge first
// and in the metadata tokenizer.words, .bos, .eos and .adds_bos.
#pragma once

#include "safetensors_writer.hpp"
#include "tokenizer.hpp"

#include <charconv>
#include <memory>

namespace sluice::io {
inline namespace SLUICE_ISA {

namespace detail {

template <class T>
void add_column(safetensors_writer& writer, const char* name, std::vector<T> all, idx cols = 1) {
    const idx rows = static_cast<idx>(all.size()) / cols;
    writer.add_rows<T>(
        name, rows, cols,
        [kept = std::make_shared<std::vector<T>>(std::move(all)), cols](idx first, tensor_view<T> part) {
            std::copy_n(kept->data() + first * cols, part.size(), part.data());
        });
}
template <class T>
std::vector<T> read_column(const safetensors& file, const char* name, idx cols = 1) {
    if (!file.contains(name)) fail(file.path(), "has no " + std::string(name));
    const tensor_info& t = file.info(name);
    if (t.type != dtype_of<T> || t.shape.size() != 2 || t.cols() != cols)
        fail(file.path(), std::string(name) + " must be " + std::string(facts(dtype_of<T>).name) + " [n, " +
                              std::to_string(cols) + "], is " + t.text());
    std::vector<T> all(static_cast<std::size_t>(t.rows() * cols));
    file.copy_to(name, tensor_view<T>(all.data(), t.rows(), cols));
    return all;
}

} // namespace detail

// Adds the tokenizer to what is written. Throws as writer.add does.
inline void save_tokenizer(safetensors_writer& writer, const tokenizer& words) {
    std::vector<std::uint8_t> text, kinds;
    std::vector<std::int32_t> lengths, merges;
    for (token_id id = 0; id < words.size(); ++id) {
        const std::string& token = words.token(id);
        text.insert(text.end(), token.begin(), token.end());
        lengths.push_back(static_cast<std::int32_t>(token.size()));
        kinds.push_back(static_cast<std::uint8_t>(words.kind(id)));
    }
    for (const auto& [left, right] : words.merges()) merges.insert(merges.end(), {left, right});
    detail::add_column(writer, "tokenizer.tokens", std::move(text));
    detail::add_column(writer, "tokenizer.lengths", std::move(lengths));
    detail::add_column(writer, "tokenizer.kinds", std::move(kinds));
    detail::add_column(writer, "tokenizer.merges", std::move(merges), 2);
    writer.metadata("tokenizer.words", words.words() == word_rule::smollm ? "smollm" : "gpt2");
    writer.metadata("tokenizer.adds_bos", words.adds_bos() ? "true" : "false");
    if (words.bos()) writer.metadata("tokenizer.bos", std::to_string(*words.bos()));
    if (words.eos()) writer.metadata("tokenizer.eos", std::to_string(*words.eos()));
}

// The same back. Throws input_error where the file has none, or one that is not as above.
inline tokenizer load_tokenizer(const safetensors& file) {
    const auto value = [&](const char* key) -> std::optional<std::string> {
        const auto at = file.metadata().find(std::string("tokenizer.") + key);
        return at == file.metadata().end() ? std::nullopt : std::optional(at->second);
    };
    const auto refuse = [&](const std::string& key) {
        detail::fail(file.path(), "tokenizer." + key + " of the metadata is missing or unknown");
    };
    const auto id_of = [&](const char* key) -> std::optional<token_id> {
        const auto text = value(key);
        if (!text) return {};
        token_id id = 0;
        const auto read = std::from_chars(text->data(), text->data() + text->size(), id);
        if (read.ec != std::errc() || read.ptr != text->data() + text->size()) refuse(key);
        return id;
    };
    const auto text = detail::read_column<std::uint8_t>(file, "tokenizer.tokens");
    const auto lengths = detail::read_column<std::int32_t>(file, "tokenizer.lengths");
    const auto merges = detail::read_column<std::int32_t>(file, "tokenizer.merges", 2);
    tokenizer_parts parts;
    std::size_t at = 0;
    for (const std::int32_t length : lengths) {
        if (length < 0 || static_cast<std::size_t>(length) > text.size() - at)
            detail::fail(file.path(), "tokenizer.lengths do not fit tokenizer.tokens");
        parts.tokens.emplace_back(text.begin() + static_cast<std::ptrdiff_t>(at),
                                  text.begin() + static_cast<std::ptrdiff_t>(at) + length);
        at += static_cast<std::size_t>(length);
    }
    if (at != text.size()) detail::fail(file.path(), "tokenizer.lengths do not fit tokenizer.tokens");
    for (const std::uint8_t kind : detail::read_column<std::uint8_t>(file, "tokenizer.kinds"))
        parts.kinds.push_back(static_cast<token_kind>(kind));
    const auto token = [&](std::int32_t id) -> const std::string& {
        if (id < 0 || static_cast<std::size_t>(id) >= parts.tokens.size())
            detail::fail(file.path(), "tokenizer.merges has the token " + std::to_string(id) + " of " +
                                          std::to_string(parts.tokens.size()));
        return parts.tokens[static_cast<std::size_t>(id)];
    };
    for (std::size_t i = 0; i + 1 < merges.size(); i += 2)
        parts.merges.emplace_back(token(merges[i]), token(merges[i + 1]));
    const std::string rule = value("words").value_or(""), bos = value("adds_bos").value_or("");
    if (rule != "gpt2" && rule != "smollm") refuse("words");
    if (bos != "true" && bos != "false") refuse("adds_bos");
    parts.words = rule == "smollm" ? word_rule::smollm : word_rule::gpt2;
    parts.adds_bos = bos == "true";
    parts.bos = id_of("bos");
    parts.eos = id_of("eos");
    return {file.path(), std::move(parts)};
}

} // namespace SLUICE_ISA
} // namespace sluice::io
