// Makes GGUF files, right and wrong ones: whatever is asked for is written, without checks.
#pragma once

#include <sluice/io/gguf.hpp>

#include <bit>
#include <string>
#include <utility>
#include <vector>

namespace sluice::test {

// An unsigned number as files hold it.
template <class U>
std::string little(U value) {
    std::string out;
    for (std::size_t i = 0; i < sizeof(U); ++i)
        out += static_cast<char>(static_cast<unsigned char>(value >> (8 * i)));
    return out;
}
inline std::string counted(const std::string& text) { return little(std::uint64_t{text.size()}) + text; }

// A value: its type, and its bytes.
using gguf_bytes = std::pair<io::gguf_kind, std::string>;
inline gguf_bytes value_of(std::uint32_t n) { return {io::gguf_kind::u32, little(n)}; }
inline gguf_bytes value_of(float x) { return {io::gguf_kind::f32, little(std::bit_cast<std::uint32_t>(x))}; }
inline gguf_bytes value_of(bool b) { return {io::gguf_kind::boolean, little(static_cast<std::uint8_t>(b))}; }
inline gguf_bytes value_of(const std::string& text) { return {io::gguf_kind::text, counted(text)}; }
inline gguf_bytes value_of(const char* text) { return value_of(std::string(text)); }
// An array; all elements are of the first one's type.
inline gguf_bytes array_of(const std::vector<gguf_bytes>& all, io::gguf_kind none = io::gguf_kind::u8) {
    const auto kind = all.empty() ? none : all.front().first;
    std::string out = little(static_cast<std::uint32_t>(kind)) + little(std::uint64_t{all.size()});
    for (const auto& [unused, bytes] : all) out += bytes;
    return {io::gguf_kind::array, out};
}

struct gguf_file {
    std::uint32_t version = 3;
    std::uint64_t alignment = 32;
    std::vector<std::pair<std::string, gguf_bytes>> values{};
    struct tensor {
        std::string name;
        std::vector<std::uint64_t> dimensions; // as in files: of a row first
        std::uint32_t type;
        std::string bytes;
    };
    std::vector<tensor> tensors{};

    // A matrix or, where rows is 0, a vector.
    void add(const std::string& name, std::uint64_t rows, std::uint64_t cols, std::uint32_t type,
             const std::string& bytes) {
        std::vector<std::uint64_t> dimensions{cols};
        if (rows > 0) dimensions.push_back(rows);
        tensors.push_back({name, dimensions, type, bytes});
    }
    void set(const std::string& key, const gguf_bytes& value) {
        for (auto& [known, old] : values)
            if (known == key) {
                old = value;
                return;
            }
        values.emplace_back(key, value);
    }

    std::string header() const {
        std::string out = "GGUF" + little(version) + little(std::uint64_t{tensors.size()}) +
                          little(std::uint64_t{values.size()});
        for (const auto& [key, value] : values)
            out += counted(key) + little(static_cast<std::uint32_t>(value.first)) + value.second;
        std::uint64_t offset = 0;
        for (const tensor& t : tensors) {
            out += counted(t.name) + little(static_cast<std::uint32_t>(t.dimensions.size()));
            for (const std::uint64_t d : t.dimensions) out += little(d);
            out += little(t.type) + little(offset);
            offset += padded(t.bytes.size());
        }
        return out;
    }
    std::string str() const {
        std::string out = header();
        for (const tensor& t : tensors) {
            out.resize(padded(out.size()), '\0');
            out += t.bytes;
        }
        return out;
    }

private:
    std::size_t padded(std::size_t n) const {
        return static_cast<std::size_t>((n + alignment - 1) / alignment * alignment);
    }
};

inline io::gguf parse(const std::string& bytes, const io::gguf_options& options = {}) {
    return {io::from_memory(std::as_bytes(std::span(bytes)), "f"), options};
}

// Reads every byte that a valid file hands out, so that a sanitizer sees where they lie.
inline unsigned touch(const io::gguf& file) {
    unsigned sum = 0;
    const auto add = [&](std::span<const std::byte> bytes) {
        for (const std::byte b : bytes) sum += static_cast<unsigned>(b);
    };
    const auto value = [&](const auto& self, const io::gguf_value& v) -> void {
        add(v.bytes);
        sum += static_cast<unsigned>(v.kind_text().size()) + static_cast<unsigned>(v.integer().has_value()) +
               static_cast<unsigned>(v.real().has_value()) + static_cast<unsigned>(v.boolean().has_value()) +
               static_cast<unsigned>(v.text().has_value());
        v.each([&](const io::gguf_value& e) { self(self, e); });
    };
    for (const auto& [key, v] : file.metadata()) value(value, v);
    for (const auto& [name, t] : file.tensors()) {
        add(t.bytes);
        sum += static_cast<unsigned>(t.text().size()) + static_cast<unsigned>(t.row_bytes());
    }
    return sum;
}

} // namespace sluice::test
