// Loads text as bytes and splits it into a training part and a held-out part: either files named one by one
// or all C++ headers below a folder. The split depends on names and contents alone, never on chance or on
// the order in which the file system lists a folder.
// Not here: tokenising, shuffling, and batches; bytes are kept as they stand in the files.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <istream>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace sluice::examples {

struct corpus {
    std::vector<std::uint8_t> training;
    std::vector<std::uint8_t> held_out;
    std::size_t n_files = 0;          // files used, those held out included
    std::size_t n_held_out_files = 0; // files held out whole; 0 where each file gives up its last tenth
    std::size_t n_skipped = 0;        // regular files below the folder that were left out
};

// Of all bytes, those to learn first (FNV-1a): a run that goes on must have the text it began with.
inline std::uint64_t fingerprint(const corpus& text) {
    std::uint64_t hash = 14695981039346656037ULL;
    for (const auto* part : {&text.training, &text.held_out})
        for (const std::uint8_t b : *part) hash = (hash ^ b) * 1099511628211ULL;
    return hash;
}

inline constexpr std::size_t min_training_bytes = 4096;
inline constexpr std::size_t min_held_out_bytes = 1024;

namespace detail {

inline constexpr std::size_t held_out_every = 10;

[[noreturn]] inline void corpus_error(const std::string& what, const std::string& reason) {
    throw std::runtime_error(what + ": " + reason);
}

inline std::string quoted(const std::string& option, const std::filesystem::path& path) {
    return option + " '" + path.string() + "'";
}

inline std::uintmax_t size_of_file(const std::filesystem::path& path, const std::string& what) {
    std::error_code failure;
    const auto status = std::filesystem::status(path, failure);
    if (status.type() == std::filesystem::file_type::not_found) {
        corpus_error(what, "no such file");
    }
    if (status.type() == std::filesystem::file_type::directory) {
        corpus_error(what, "is a folder, not a file");
    }
    if (failure) {
        corpus_error(what, "cannot be read: " + failure.message());
    }
    if (status.type() != std::filesystem::file_type::regular) {
        corpus_error(what, "is not a regular file");
    }
    const auto size = std::filesystem::file_size(path, failure);
    if (failure) {
        corpus_error(what, "its size cannot be read: " + failure.message());
    }
    return size;
}

inline std::vector<std::uint8_t> read_exactly(std::istream& in, std::uintmax_t size,
                                              const std::string& what) {
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(size));
    in.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(size));
    if (in.bad()) {
        corpus_error(what, "reading failed");
    }
    if (in.gcount() != static_cast<std::streamsize>(size)) {
        corpus_error(what,
                     "read short: " + std::to_string(in.gcount()) + " of " + std::to_string(size) + " bytes");
    }
    return bytes;
}

inline std::vector<std::uint8_t> read_file(const std::filesystem::path& path, std::uintmax_t size,
                                           const std::string& what) {
    std::ifstream in(path, std::ios::binary);
    if (!in) {
        corpus_error(what, "cannot be opened for reading");
    }
    return read_exactly(in, size, what);
}

inline void append(std::vector<std::uint8_t>& to, const std::uint8_t* first, const std::uint8_t* last) {
    to.insert(to.end(), first, last);
}

inline void add_whole_file(corpus& text, const std::vector<std::uint8_t>& bytes) {
    const bool is_held_out = text.n_files % held_out_every == held_out_every - 1;
    append(is_held_out ? text.held_out : text.training, bytes.data(), bytes.data() + bytes.size());
    text.n_files += 1;
    text.n_held_out_files += is_held_out ? 1 : 0;
}

inline void add_split_file(corpus& text, const std::vector<std::uint8_t>& bytes) {
    const std::uint8_t* end = bytes.data() + bytes.size();
    const std::uint8_t* split = end - bytes.size() / held_out_every;
    append(text.training, bytes.data(), split);
    append(text.held_out, split, end);
    text.n_files += 1;
}

inline void check_enough(const corpus& text, const std::string& what) {
    const auto check = [&](std::size_t n, std::size_t least, const std::string& part) {
        if (n < least) {
            corpus_error(what, "too little text: " + std::to_string(n) + " " + part + " bytes in " +
                                   std::to_string(text.n_files) + " files, at least " +
                                   std::to_string(least) + " are needed");
        }
    };
    check(text.training.size(), min_training_bytes, "training");
    check(text.held_out.size(), min_held_out_bytes, "held-out");
}

inline bool may_be_header(const std::filesystem::path& path) {
    static constexpr std::array<std::string_view, 6> extensions{".h", ".hh", ".hpp", ".hxx", ".inl", ".ipp"};
    const auto name = path.filename().string();
    const auto extension = path.extension().string();
    if (name.front() == '.') {
        return false;
    }
    const bool is_known = std::find(extensions.begin(), extensions.end(), extension) != extensions.end();
    return is_known || extension.empty();
}

// A name without extension says nothing, so that a licence or a signature is told from a header by its text.
inline bool is_header_text(const std::filesystem::path& path, const std::vector<std::uint8_t>& bytes) {
    if (std::find(bytes.begin(), bytes.end(), std::uint8_t{0}) != bytes.end()) {
        return false;
    }
    if (path.has_extension()) {
        return true;
    }
    const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    return text.find("#include") != text.npos || text.find("#ifndef") != text.npos ||
           text.find("#pragma") != text.npos;
}

using named_path = std::pair<std::string, std::filesystem::path>;

inline std::vector<named_path> regular_files_below(const std::filesystem::path& root,
                                                   const std::string& what) {
    namespace fs = std::filesystem;
    std::error_code failure;
    const auto type = fs::status(root, failure).type();
    if (type == fs::file_type::not_found) {
        corpus_error(what, "no such folder");
    }
    if (type != fs::file_type::directory) {
        corpus_error(what, "is not a folder");
    }
    std::vector<named_path> files;
    fs::recursive_directory_iterator at(root, failure);
    while (!failure && at != fs::recursive_directory_iterator()) {
        std::error_code not_regular;
        if (at->is_regular_file(not_regular)) {
            files.emplace_back(at->path().lexically_relative(root).generic_string(), at->path());
        }
        at.increment(failure);
    }
    if (failure) {
        corpus_error(what, "cannot be listed: " + failure.message());
    }
    std::sort(files.begin(), files.end());
    return files;
}

} // namespace detail

// Takes the files in the order given. From ten files on every tenth is held out whole; with fewer, the last
// tenth of each file is held out.
inline corpus load_corpus(const std::vector<std::filesystem::path>& files) {
    if (files.empty()) {
        detail::corpus_error("--text", "no file given");
    }
    corpus text;
    std::set<std::filesystem::path> seen;
    for (const auto& path : files) {
        const std::string what = detail::quoted("--text", path);
        const auto size = detail::size_of_file(path, what);
        if (size == 0) {
            detail::corpus_error(what, "is empty");
        }
        // The same file in both parts would make the held-out figure worthless.
        if (!seen.insert(std::filesystem::canonical(path)).second) {
            detail::corpus_error(what, "is given twice");
        }
        const auto bytes = detail::read_file(path, size, what);
        if (files.size() >= detail::held_out_every) {
            detail::add_whole_file(text, bytes);
        } else {
            detail::add_split_file(text, bytes);
        }
    }
    detail::check_enough(text, "--text");
    return text;
}

// Takes the C++ headers below root, sorted bytewise by their path relative to root, and holds out every tenth
// of those used. Left out: files above max_file_bytes, empty and binary files, links to a file already used.
inline corpus load_folder(const std::filesystem::path& root, std::uintmax_t max_file_bytes = 200'000) {
    corpus text;
    std::set<std::filesystem::path> seen;
    const std::string folder = detail::quoted("text folder", root);
    for (const auto& [name, path] : detail::regular_files_below(root, folder)) {
        const std::string what = detail::quoted("text folder file", path);
        const auto size = detail::size_of_file(path, what);
        const bool is_wanted = detail::may_be_header(path) && size > 0 && size <= max_file_bytes;
        if (!is_wanted || !seen.insert(std::filesystem::canonical(path)).second) {
            text.n_skipped += 1;
            continue;
        }
        const auto bytes = detail::read_file(path, size, what);
        if (detail::is_header_text(path, bytes)) {
            detail::add_whole_file(text, bytes);
        } else {
            text.n_skipped += 1;
        }
    }
    detail::check_enough(text, folder);
    return text;
}

} // namespace sluice::examples
