// A folder of a test's own, and files in it.
#pragma once

#include "support/message_of.hpp"
#include "support/scratch_path.hpp"

#include <sluice/io/file.hpp>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace sluice::test {

// Removed with all it holds.
class scratch_folder {
public:
    explicit scratch_folder(const std::string& name) : path_(scratch_path(name)) {
        std::filesystem::remove_all(path_);
        std::filesystem::create_directories(path_);
    }
    scratch_folder(const scratch_folder&) = delete;
    ~scratch_folder() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    std::string operator/(const std::string& name) const { return (path_ / name).string(); }
    std::size_t entries() const {
        return static_cast<std::size_t>(
            std::distance(std::filesystem::directory_iterator(path_), std::filesystem::directory_iterator()));
    }

private:
    std::filesystem::path path_;
};

inline void put(const std::filesystem::path& path, const std::string& text) {
    std::ofstream(path, std::ios::binary) << text;
}
inline std::string get(const std::filesystem::path& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}
inline std::string text_of(const io::file& f) {
    return {reinterpret_cast<const char*>(f.bytes().data()), f.bytes().size()};
}
inline std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

} // namespace sluice::test
