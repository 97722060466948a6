// Safetensors files: a strict reader that hands out views. The writer is in safetensors_writer.hpp.
//
// A file is a length n (8 bytes, little-endian), a JSON header of n bytes, and the tensors' bytes without
// gaps. Whatever bytes a file has, reading it yields tensors inside it or input_error. Values are not looked
// at (see require_finite). Sharded checkpoints are opened by safetensors_index.hpp.
#pragma once

#include "../core/tensor_view.hpp"
#include "dtype.hpp"
#include "json.hpp"

#include <map>
#include <vector>

namespace sluice::io {

struct tensor_info {
    dtype type = dtype::u8;
    std::vector<idx> shape; // up to 8 dimensions, row-major; none: a scalar
    std::span<const std::byte> bytes;

    // As a matrix: a scalar or vector is one row, leading dimensions are folded into rows.
    idx cols() const { return shape.empty() ? 1 : shape.back(); }
    idx rows() const {
        idx n = 1;
        for (std::size_t i = 0; i + 1 < shape.size(); ++i) n *= shape[i];
        return n;
    }
    // For messages: "F32 [2, 3, 4]".
    std::string text() const {
        std::string out = std::string(facts(type).name) + " [";
        for (std::size_t i = 0; i < shape.size(); ++i) out += (i > 0 ? ", " : "") + std::to_string(shape[i]);
        return out + "]";
    }
};

struct safetensors_options {
    std::size_t max_header = std::size_t{16} << 20; // bytes; the format allows 100,000,000
    bool allow_trailing = false;                    // bytes after the last tensor
};

inline namespace SLUICE_ISA {

namespace detail {

inline constexpr std::size_t format_max_header = 100'000'000;
inline constexpr std::size_t max_name = 512;
inline constexpr std::string_view metadata_name = "__metadata__";

// Names that reader and writer accept. UTF-8 is checked where JSON is.
inline void require_name(const std::string& where, std::string_view name) {
    if (name.empty()) fail(where, "a tensor has an empty name");
    if (name.size() > max_name)
        fail(where, "a tensor name has " + std::to_string(name.size()) + " bytes, at most 512 are allowed");
    for (const char c : name)
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F)
            fail(where, "a tensor name holds a control character");
}

// The product of a shape and an element size; invalid beyond the largest idx.
inline checked_size shape_bytes(std::span<const idx> shape, dtype type) {
    checked_size bytes = facts(type).bytes;
    for (const idx n : shape)
        bytes = bytes * checked_size(static_cast<std::uint64_t>(n)); // negative: too large
    return bytes;
}

struct header_entry {
    std::string name;
    tensor_info info;
    std::uint64_t begin = 0, end = 0; // in the data section
};

// Reads the header's JSON into entries and metadata; everything that one entry alone can tell is checked.
class header_reader {
public:
    explicit header_reader(const std::string& where) : where_(where) {}

    std::vector<header_entry> entries;
    std::map<std::string, std::string> metadata;

    void open(const json_place& at, bool array) {
        if (at.depth == 1) {
            if (array) fail(where_, quoted(at.keys[0]) + " is an array, must be an object");
            in_metadata_ = at.keys[0] == metadata_name;
            if (in_metadata_) return;
            require_name(where_, at.keys[0]);
            entries.push_back({at.keys[0], {}, 0, 0});
            has_dtype_ = has_shape_ = false;
            n_offsets_ = 0;
        } else if (at.depth == 2) {
            const bool shape = !in_metadata_ && at.keys[1] == "shape";
            if (!array || in_metadata_ || (!shape && at.keys[1] != "data_offsets")) refuse(at);
            has_shape_ = has_shape_ || shape;
        } else if (at.depth > 2) {
            refuse(at);
        }
    }
    void text(const json_place& at, std::string& value) {
        if (at.depth != 2) refuse(at);
        if (in_metadata_) {
            metadata[at.keys[1]] = std::move(value);
            return;
        }
        if (at.keys[1] != "dtype") refuse(at);
        const auto* known = std::find_if(dtype_table.begin(), dtype_table.end(),
                                         [&](const dtype_facts& f) { return f.name == value; });
        if (known == dtype_table.end())
            fail(where_, quoted(at.keys[0]) + " has the unknown dtype \"" + value.substr(0, 64) + "\"");
        entries.back().info.type = static_cast<dtype>(known - dtype_table.begin());
        has_dtype_ = true;
    }
    void number(const json_place& at, std::uint64_t value) {
        if (at.depth != 3) refuse(at);
        header_entry& entry = entries.back();
        if (at.keys[1] == "shape") {
            if (entry.info.shape.size() == 8)
                fail(where_, quoted(entry.name) + " has more than 8 dimensions");
            if (!checked_size(value).valid())
                fail(where_, quoted(entry.name) + " has the dimension " + std::to_string(value));
            entry.info.shape.push_back(static_cast<idx>(value));
        } else if (++n_offsets_ == 1) {
            entry.begin = value;
        } else {
            entry.end = value;
        }
    }
    void close(const json_place& at) const {
        if (at.depth != 1 || in_metadata_) return;
        const header_entry& entry = entries.back();
        if (!has_dtype_) fail(where_, quoted(entry.name) + " has no dtype");
        if (!has_shape_) fail(where_, quoted(entry.name) + " has no shape");
        if (n_offsets_ != 2)
            fail(where_, quoted(entry.name) + " must have 2 data_offsets, has " + std::to_string(n_offsets_));
        if (entry.end < entry.begin || !checked_size(entry.end).valid())
            fail(where_, quoted(entry.name) + " has the data_offsets " + std::to_string(entry.begin) +
                             " to " + std::to_string(entry.end));
        const checked_size needed = shape_bytes(entry.info.shape, entry.info.type);
        if (!(needed == entry.end - entry.begin))
            fail(where_, quoted(entry.name) + " is " + entry.info.text() + ", which is " +
                             (needed.valid() ? std::to_string(needed.value()) : "too many") + " bytes, has " +
                             std::to_string(entry.end - entry.begin));
    }

    static std::string quoted(const std::string& name) {
        return std::string(1, '"').append(name, 0, max_name) += '"';
    }

private:
    [[noreturn]] void refuse(const json_place& at) const {
        std::string path = quoted(at.keys[0]);
        if (at.keys.size() > 1) path += "." + quoted(at.keys[1]);
        fail(where_, path + " is no field of a safetensors header, or of another type");
    }

    const std::string& where_;
    bool in_metadata_ = false, has_dtype_ = false, has_shape_ = false;
    int n_offsets_ = 0;
};

} // namespace detail

// The tensors of a file, or of several that belong together. Views and spans are valid as long as this
// object, a copy of it or of its files lives.
class safetensors {
public:
    // Checks the whole header against the file; throws input_error naming the file and what is wrong with it.
    // Memory: a few times the header. Implicit, so that a file can be passed where tensors are wanted.
    safetensors(file source, const safetensors_options& options = {})
        : path_(source.path()), sources_{std::move(source)} {
        const auto bytes = sources_[0].bytes();
        const std::size_t data = 8 + header_size(options);
        const std::string_view header(reinterpret_cast<const char*>(bytes.data()) + 8, data - 8);
        if (header.front() != '{') detail::fail(path_, "the header does not begin with {");
        detail::header_reader reader(path_);
        read_json(header, path_, reader);
        check_layout(reader.entries, bytes.size() - data, options.allow_trailing);
        for (auto& entry : reader.entries) {
            entry.info.bytes = bytes.subspan(data + entry.begin, entry.end - entry.begin);
            tensors_.emplace(std::move(entry.name), std::move(entry.info));
        }
        metadata_ = std::move(reader.metadata);
    }
    // The tensors of all parts under the name of the whole; metadata is the first part's that has the key.
    // Throws input_error where two parts hold a tensor of the same name.
    safetensors(std::string path, std::span<const safetensors> parts) : path_(std::move(path)) {
        for (const safetensors& part : parts) {
            sources_.insert(sources_.end(), part.sources_.begin(), part.sources_.end());
            metadata_.insert(part.metadata_.begin(), part.metadata_.end());
            for (const auto& [name, info] : part.tensors_)
                if (!tensors_.emplace(name, info).second)
                    detail::fail(path_, "\"" + name + "\" is in " + part.path() + " and in another file");
        }
    }

    const std::string& path() const { return path_; }
    const std::map<std::string, std::string>& metadata() const { return metadata_; }
    // All tensors by name, in the order of their names.
    const std::map<std::string, tensor_info, std::less<>>& tensors() const { return tensors_; }
    std::vector<std::string> names() const {
        std::vector<std::string> all;
        for (const auto& [name, info] : tensors_) all.push_back(name);
        return all;
    }
    bool contains(std::string_view name) const { return tensors_.find(name) != tensors_.end(); }

    // Throws input_error where there is no such tensor.
    const tensor_info& info(std::string_view name) const {
        const auto at = tensors_.find(name);
        if (at == tensors_.end()) detail::fail(path(), "no tensor \"" + std::string(name) + "\"");
        return at->second;
    }

    // The tensor where it lies in the file; rows() x cols() of its info. Throws input_error where it is
    // missing, has another type than T, or is not aligned for T (copy_to reads it all the same).
    template <class T>
    tensor_view<const T> view(std::string_view name) const {
        const tensor_info& t = typed<T>(name);
        const std::string problem = view_problem(t, alignof(T));
        if (!problem.empty()) detail::fail(path(), "\"" + std::string(name) + "\" " + problem);
        return {reinterpret_cast<const T*>(t.bytes.data()), t.rows(), t.cols()};
    }

    // Copies the tensor. Throws input_error where it is missing or has another type or shape than `out`.
    template <class T>
    void copy_to(std::string_view name, const tensor_view<T>& out) const {
        const tensor_info& t = typed<T>(name);
        if (t.rows() != out.rows() || t.cols() != out.cols())
            detail::fail(path(), "\"" + std::string(name) + "\" must be " +
                                     shape_text(out.rows(), out.cols()) + ", is " +
                                     shape_text(t.rows(), t.cols()) + " (" + t.text() + ")");
        const std::size_t row = static_cast<std::size_t>(out.cols()) * sizeof(T);
        for (idx i = 0; i < out.rows() && row > 0; ++i)
            detail::copy_elements(reinterpret_cast<std::byte*>(out.row(i)),
                                  t.bytes.data() + static_cast<std::size_t>(i) * row, row, sizeof(T));
    }

    // Copies the tensors that are not aligned for their type into memory of this object, so that every tensor
    // can be viewed. Files written today are aligned; in older ones all tensors may be an odd byte off.
    void copy_misaligned() {
        for (auto& [name, t] : tensors_) {
            if (aligned(t, facts(t.type).bytes)) continue;
            sources_.push_back(from_memory(t.bytes, path_));
            t.bytes = sources_.back().bytes();
        }
    }

    // Brings mapped files into memory; throws input_error where one has another size than when it was mapped.
    void prefetch() const {
        for (const file& source : sources_) io::prefetch(source);
    }

    // Throws input_error naming the first F64, F32, F16 or BF16 tensor that holds a NaN or an infinity.
    void require_finite() const {
        for (const auto& [name, t] : tensors_) {
            bool finite = true;
            if (t.type == dtype::f64) finite = all_finite<std::uint64_t>(t, 0x7FF0000000000000U);
            if (t.type == dtype::f32) finite = all_finite<std::uint32_t>(t, 0x7F800000U);
            if (t.type == dtype::bf16) finite = all_finite<std::uint16_t>(t, 0x7F80U);
            if (t.type == dtype::f16) finite = all_finite<std::uint16_t>(t, 0x7C00U);
            if (!finite) detail::fail(path(), "\"" + name + "\" holds a NaN or an infinity");
        }
    }

    // Why a tensor cannot be viewed with this alignment; empty where it can.
    static std::string view_problem(const tensor_info& t, std::size_t alignment) {
        if (std::endian::native == std::endian::big && facts(t.type).bytes > 1)
            return "has another byte order than this machine; use copy_to";
        if (aligned(t, alignment)) return {};
        return "is not aligned to " + std::to_string(alignment) +
               " bytes in the file; use copy_to or copy_misaligned";
    }

private:
    static bool aligned(const tensor_info& t, std::size_t alignment) {
        return t.bytes.empty() || reinterpret_cast<std::uintptr_t>(t.bytes.data()) % alignment == 0;
    }
    template <class T>
    const tensor_info& typed(std::string_view name) const {
        const tensor_info& t = info(name);
        if (t.type != dtype_of<T>)
            detail::fail(path(), "\"" + std::string(name) + "\" must be " +
                                     std::string(facts(dtype_of<T>).name) + ", is " + t.text());
        return t;
    }
    template <class U>
    static bool all_finite(const tensor_info& t, U exponent) {
        for (std::size_t i = 0; i < t.bytes.size(); i += sizeof(U))
            if ((detail::from_little<U>(t.bytes.data() + i) & exponent) == exponent) return false;
        return true;
    }

    // The header's length, which is in [2, the file's size - 8].
    std::size_t header_size(const safetensors_options& options) const {
        const auto bytes = sources_[0].bytes();
        if (bytes.size() < 10)
            detail::fail(path(), "has " + std::to_string(bytes.size()) +
                                     " bytes, a safetensors file has at least 10");
        const auto n = detail::from_little<std::uint64_t>(bytes.data());
        const std::size_t most = std::min(options.max_header, detail::format_max_header);
        if (n < 2 || n > most)
            detail::fail(path(), "has a header of " + std::to_string(n) + " bytes, must be 2 to " +
                                     std::to_string(most));
        if (n > bytes.size() - 8)
            detail::fail(path(), "has a header of " + std::to_string(n) + " bytes, but only " +
                                     std::to_string(bytes.size() - 8) + " after the length");
        return static_cast<std::size_t>(n);
    }
    // Tensors follow each other from the first to the last byte of the data section.
    void check_layout(std::vector<detail::header_entry>& entries, std::size_t size,
                      bool allow_trailing) const {
        std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
            return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
        });
        std::uint64_t last = 0;
        for (const auto& entry : entries) {
            if (entry.begin != last)
                detail::fail(path(), "\"" + entry.name + "\" begins at byte " + std::to_string(entry.begin) +
                                         " of the data, must begin at " + std::to_string(last));
            last = entry.end;
        }
        if (last > size || (last < size && !allow_trailing))
            detail::fail(path(), "has " + std::to_string(size) + " bytes of data, its tensors have " +
                                     std::to_string(last));
    }

    std::string path_;
    std::vector<file> sources_;
    std::map<std::string, tensor_info, std::less<>> tensors_;
    std::map<std::string, std::string> metadata_;
};

} // namespace SLUICE_ISA
} // namespace sluice::io
