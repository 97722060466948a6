// Checkpoints in several files: an index (model.safetensors.index.json) says which file holds each tensor;
// the files lie beside it. What is opened is the same type as for one file.
//
// The index and the files must agree: every tensor of the index is in the file it names, and no file holds
// another. "metadata" of the index is not used (its total size is wrong in many published files).
#pragma once

#include "safetensors.hpp"

namespace sluice::io {

// Which file holds each tensor.
using weight_map = std::map<std::string, std::string, std::less<>>;

inline namespace SLUICE_ISA {

namespace detail {

inline constexpr std::size_t max_index_bytes = std::size_t{64} << 20;
inline constexpr std::size_t max_files = 10'000;

// A name in the index's own folder, whatever system reads it.
inline void require_plain_file_name(const std::string& where, const std::string& tensor,
                                    const std::string& name) {
    bool plain = !name.empty() && name.size() <= 255 && name.front() != '.';
    for (const char c : name)
        plain =
            plain && static_cast<unsigned char>(c) >= 0x20 && c != 0x7F && c != '/' && c != '\\' && c != ':';
    if (!plain)
        fail(where, "\"" + tensor + "\" is said to be in \"" + name.substr(0, 255) +
                        "\", which is no plain file name");
}

class index_reader {
public:
    explicit index_reader(const std::string& where) : where_(where) {}

    weight_map files;
    bool has_map = false;

    void open(const json_place& at, bool array) {
        if (at.depth == 0 || in_metadata(at)) return;
        if (array || at.depth != 1 || at.keys[0] != map_name) refuse(at);
        has_map = true;
    }
    void close(const json_place&) const {}
    void text(const json_place& at, std::string& value) {
        if (in_metadata(at)) return;
        if (at.depth != 2) refuse(at);
        require_name(where_, at.keys[1]);
        require_plain_file_name(where_, at.keys[1], value);
        files.emplace(at.keys[1], std::move(value));
    }
    void number(const json_place& at, std::uint64_t) const { other(at); }
    void other(const json_place& at) const {
        if (!in_metadata(at)) refuse(at);
    }

private:
    static constexpr std::string_view map_name = "weight_map";
    static bool in_metadata(const json_place& at) { return !at.keys.empty() && at.keys[0] == "metadata"; }
    [[noreturn]] void refuse(const json_place& at) const {
        std::string path;
        for (const auto& key : at.keys)
            path += (path.empty() ? "\"" : ".\"") + key.substr(0, max_name) + "\"";
        fail(where_, (path.empty() ? "the text" : path) +
                         " is no part of an index of safetensors files, or of another type");
    }

    const std::string& where_;
};

} // namespace detail

// What an index says. Throws input_error, its message beginning with `where`, unless the text is an object
// with an object "weight_map" of names of plain files, and at most "metadata" beside it.
inline weight_map read_index(std::string_view text, const std::string& where) {
    detail::index_reader reader(where);
    const std::size_t first = text.find_first_not_of(" \t\r\n");
    if (first == std::string_view::npos || text[first] != '{')
        detail::fail(where, "an index of safetensors files begins with {");
    read_json(text, where, reader);
    if (!reader.has_map) detail::fail(where, "has no \"weight_map\"");
    return std::move(reader.files);
}

// The tensors of an index's files, each of which open(name) returns as a file. Throws input_error where a
// file is none or holds other tensors than the index says.
template <class Open>
safetensors open_index(const weight_map& map, const std::string& where, Open&& open,
                       const safetensors_options& options = {}) {
    std::map<std::string, std::size_t> numbers; // of files, in the order of their names
    for (const auto& [tensor, name] : map) numbers.emplace(name, 0);
    if (numbers.size() > detail::max_files)
        detail::fail(where, "names " + std::to_string(numbers.size()) + " files, at most " +
                                std::to_string(detail::max_files) + " are opened");
    std::vector<safetensors> parts;
    for (auto& [name, number] : numbers) {
        number = parts.size();
        parts.emplace_back(open(name), options);
        for (const auto& [tensor, info] : parts.back().tensors()) {
            const auto said = map.find(tensor);
            if (said == map.end() || said->second != name)
                detail::fail(where, "\"" + tensor + "\" is in " + name + ", but the index says " +
                                        (said == map.end() ? "nothing of it" : said->second));
        }
    }
    for (const auto& [tensor, name] : map)
        if (!parts[numbers.at(name)].contains(tensor))
            detail::fail(where, "\"" + tensor + "\" is said to be in " + name + ", but is not");
    return {where, parts};
}

namespace detail {

template <class Open>
safetensors open_tensors(const std::string& path, const safetensors_options& options, Open&& open) {
    if (!path.ends_with(".json")) return {open(path), options};
    const file index = io::read(path, max_index_bytes);
    const std::string_view text(reinterpret_cast<const char*>(index.bytes().data()), index.bytes().size());
    const std::string folder = path.substr(0, path.find_last_of("/\\") + 1);
    return open_index(
        io::read_index(text, path), path, [&](const std::string& name) { return open(folder + name); },
        options);
}

} // namespace detail

// The tensors of a safetensors file, or of an index where the name ends in .json, in memory. Throws
// input_error where a file cannot be read, is not what it should be, or all together are longer than
// `max_bytes`.
inline safetensors read_tensors(const std::string& path, const safetensors_options& options = {},
                                std::size_t max_bytes = std::size_t{1} << 40) {
    return detail::open_tensors(path, options, [&](const std::string& name) {
        file f = read(name, max_bytes);
        max_bytes -= f.bytes().size();
        return f;
    });
}

// The same mapped: only for files nobody shortens meanwhile (see map).
inline safetensors map_tensors(const std::string& path, const safetensors_options& options = {}) {
    return detail::open_tensors(path, options, [](const std::string& name) { return map(name); });
}

} // namespace SLUICE_ISA
} // namespace sluice::io
