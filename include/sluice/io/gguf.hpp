// GGUF files (version 2 and 3): a strict reader that hands out metadata and views of tensors.
//
// A file is a header, metadata, descriptions of tensors, and after padding the tensors' blocks, each from a
// multiple of the alignment on and without gaps. Whatever bytes a file has, reading it yields values and
// tensors inside it or input_error. Big-endian files are refused.
#pragma once

#include "../core/tensor_view.hpp"
#include "file.hpp"
#include "gguf_types.hpp"
#include "gguf_value.hpp"

namespace sluice::io {

struct gguf_tensor {
    const gguf_type_facts* type = nullptr;
    std::vector<idx> shape; // up to 4 dimensions, row-major: the other way round than in the file
    std::span<const std::byte> bytes;

    // As a matrix: a scalar or vector is one row, leading dimensions are folded into rows.
    idx cols() const { return shape.empty() ? 1 : shape.back(); }
    idx rows() const {
        idx n = 1;
        for (std::size_t i = 0; i + 1 < shape.size(); ++i) n *= shape[i];
        return n;
    }
    std::size_t row_bytes() const { return static_cast<std::size_t>(cols()) / type->block * type->bytes; }
    // For messages: "Q4_1 [2, 32]".
    std::string text() const {
        std::string out = std::string(type->name) + " [";
        for (std::size_t i = 0; i < shape.size(); ++i) out += (i > 0 ? ", " : "") + std::to_string(shape[i]);
        return out + "]";
    }
};

struct gguf_options {
    bool allow_trailing = false; // bytes after the last tensor and its padding
};

inline namespace SLUICE_ISA {

// Values, views and spans are valid as long as this object, a copy of it or of its file lives.
class gguf {
public:
    // Checks everything but the values of tensors; throws input_error naming the file and what is wrong with
    // it. Memory: a few times the descriptions; arrays stay in the file.
    gguf(file source, const gguf_options& options = {}) : source_(std::move(source)) {
        detail::gguf_cursor in(path(), source_.bytes());
        if (in.bytes(4, "the magic") != "GGUF") detail::fail(path(), "does not begin with GGUF");
        version_ = in.number<std::uint32_t>("the version");
        if ((version_ & 0xFFFFU) == 0) detail::fail(path(), "is a big-endian GGUF file, which is not read");
        if (version_ != 2 && version_ != 3)
            detail::fail(path(), "is GGUF version " + std::to_string(version_) + ", 2 and 3 are read");
        const auto n_tensors = in.number<std::uint64_t>("the number of tensors");
        const auto n_values = in.number<std::uint64_t>("the number of values");
        read_metadata(in, n_values);
        read_tensors(in, n_tensors, options);
    }

    const std::string& path() const { return source_.path(); }
    const file& source() const { return source_; }
    idx version() const { return version_; }
    const std::map<std::string, gguf_value, std::less<>>& metadata() const { return metadata_; }
    const std::map<std::string, gguf_tensor, std::less<>>& tensors() const { return tensors_; }

    // Of the metadata. With a second argument that is what a missing key stands for; without, and where the
    // value is of another type, input_error.
    bool has_value(std::string_view key) const { return metadata_.find(key) != metadata_.end(); }
    const gguf_value& value(std::string_view key) const {
        const auto at = metadata_.find(key);
        if (at == metadata_.end())
            detail::fail(path(), "has no \"" + std::string(key) + "\" in its metadata");
        return at->second;
    }
    std::int64_t integer(std::string_view key) const { return as(key, value(key).integer(), "an integer"); }
    std::int64_t integer(std::string_view key, std::int64_t missing) const {
        return has_value(key) ? integer(key) : missing;
    }
    double real(std::string_view key) const { return as(key, value(key).real(), "a number"); }
    double real(std::string_view key, double missing) const { return has_value(key) ? real(key) : missing; }
    bool boolean(std::string_view key) const { return as(key, value(key).boolean(), "true or false"); }
    bool boolean(std::string_view key, bool missing) const { return has_value(key) ? boolean(key) : missing; }
    std::string_view text(std::string_view key) const { return as(key, value(key).text(), "a string"); }
    std::string_view text(std::string_view key, std::string_view missing) const {
        return has_value(key) ? text(key) : missing;
    }
    std::vector<std::string_view> texts(std::string_view key) const {
        return list<std::string_view>(key, "an array of strings",
                                      [](const gguf_value& v) { return v.text(); });
    }
    std::vector<std::int64_t> integers(std::string_view key) const {
        return list<std::int64_t>(key, "an array of integers",
                                  [](const gguf_value& v) { return v.integer(); });
    }

    bool contains(std::string_view name) const { return tensors_.find(name) != tensors_.end(); }
    // Throws input_error where there is no such tensor.
    const gguf_tensor& info(std::string_view name) const {
        const auto at = tensors_.find(name);
        if (at == tensors_.end()) detail::fail(path(), "no tensor \"" + std::string(name) + "\"");
        return at->second;
    }

    // The tensor where it lies in the file, a column for each block: rows() x cols() / 32 of a quantised one.
    // Throws input_error where it is missing, has another type than T, or is not aligned for T.
    template <class T>
    tensor_view<const T> view(std::string_view name) const {
        const gguf_tensor& t = info(name);
        if (t.type->name != gguf_name<T>())
            fail_tensor(name, "must be " + std::string(gguf_name<T>()) + ", is " + t.text());
        if (std::endian::native == std::endian::big)
            fail_tensor(name, "has another byte order than this machine; use copy_to");
        if (!t.bytes.empty() && reinterpret_cast<std::uintptr_t>(t.bytes.data()) % alignof(T) != 0)
            fail_tensor(name, "is not aligned to " + std::to_string(alignof(T)) +
                                  " bytes in the file; use copy_to");
        return {reinterpret_cast<const T*>(t.bytes.data()), t.rows(),
                t.cols() / static_cast<idx>(t.type->block)};
    }

    // Rows first to first + out.rows() - 1 as floats, dequantised. F32, F16, BF16, Q8_0, Q4_0 and Q4_1;
    // throws input_error where the tensor is missing, of another type, or has not these rows and out.cols()
    // columns.
    void copy_rows(std::string_view name, idx first, const tensor_view<float>& out) const {
        const gguf_tensor& t = info(name);
        if (out.cols() != t.cols() || first < 0 || first > t.rows() || out.rows() > t.rows() - first)
            fail_tensor(name, "is " + t.text() + ", asked for are rows " + std::to_string(first) + " to " +
                                  std::to_string(first + out.rows() - 1) + " of " +
                                  std::to_string(out.cols()) + " columns");
        const bool known = copy_if<float>(t, first, out) || copy_if<half>(t, first, out) ||
                           copy_if<bf16>(t, first, out) || copy_if<q8_0>(t, first, out) ||
                           copy_if<q4_0>(t, first, out) || copy_if<q4_1>(t, first, out);
        if (!known) fail_tensor(name, "is " + t.text() + "; F32, F16, BF16, Q8_0, Q4_0 and Q4_1 are read");
    }
    // The whole tensor.
    void copy_to(std::string_view name, const tensor_view<float>& out) const {
        const gguf_tensor& t = info(name);
        if (t.rows() != out.rows() || t.cols() != out.cols())
            fail_tensor(name, "must be " + shape_text(out.rows(), out.cols()) + ", is " + t.text());
        copy_rows(name, 0, out);
    }

private:
    [[noreturn]] void fail_tensor(std::string_view name, const std::string& what) const {
        detail::fail(path(), "\"" + std::string(name) + "\" " + what);
    }
    template <class T>
    T as(std::string_view key, const std::optional<T>& found, const char* wanted) const {
        if (!found)
            detail::fail(path(),
                         "\"" + std::string(key) + "\" must be " + wanted + ", is " + value(key).kind_text());
        return *found;
    }
    template <class T, class F>
    std::vector<T> list(std::string_view key, const char* wanted, F&& one) const {
        const gguf_value& all = value(key);
        std::vector<T> out;
        bool fits = all.kind == gguf_kind::array;
        if (fits)
            all.each([&](const gguf_value& v) {
                const auto found = one(v);
                fits = fits && found.has_value();
                if (fits) out.push_back(*found);
            });
        if (!fits) as<T>(key, std::nullopt, wanted);
        return out;
    }

    template <class B>
    static bool copy_if(const gguf_tensor& t, idx first, const tensor_view<float>& out) {
        if (t.type->name != gguf_name<B>()) return false;
        const idx blocks = t.cols() / static_cast<idx>(t.type->block);
        for (idx i = 0; i < out.rows(); ++i) {
            const std::byte* from = t.bytes.data() + static_cast<std::size_t>(first + i) * t.row_bytes();
            float* to = out.row(i);
            for (idx j = 0; j < blocks; ++j, from += sizeof(B))
                detail::read_block<B>(from, to + j * t.type->block);
        }
        return true;
    }

    void read_metadata(detail::gguf_cursor& in, std::uint64_t n) {
        for (std::uint64_t i = 0; i < n; ++i) {
            const std::string key(in.text("a key"));
            if (key.empty() || key.size() > 65535)
                detail::fail(path(),
                             "a key has " + std::to_string(key.size()) + " bytes, must be 1 to 65535");
            for (const char c : key)
                if (c < 0x20 || c == 0x7F)
                    detail::fail(path(), "the key \"" + key.substr(0, 64) + "\" is no printable ASCII");
            const auto kind = in.number<std::uint32_t>("the type of \"" + key.substr(0, 64) + "\"");
            if (!metadata_.emplace(key, in.value(kind, key, 0)).second)
                detail::fail(path(), "duplicate key \"" + key.substr(0, 64) + "\"");
        }
        if (!has_value("general.alignment")) return;
        const std::int64_t asked = integer("general.alignment");
        if (asked < 1 || !std::has_single_bit(static_cast<std::uint64_t>(asked)))
            detail::fail(path(), "has the alignment " + std::to_string(asked) + ", must be a power of two");
        alignment_ = static_cast<std::uint64_t>(asked);
    }

    struct placed {
        std::uint64_t begin, end; // in the data section
        const std::string* name;
        gguf_tensor* tensor;
    };
    void read_tensors(detail::gguf_cursor& in, std::uint64_t n, const gguf_options& options) {
        std::vector<placed> order;
        for (std::uint64_t i = 0; i < n; ++i) {
            const std::string name(in.text("the name of a tensor"));
            check_name(name);
            const auto [at, is_new] = tensors_.try_emplace(name);
            if (!is_new) detail::fail(path(), "duplicate tensor \"" + name + "\"");
            gguf_tensor& t = at->second;
            const checked_size bytes = read_description(in, name, t);
            const auto begin = in.number<std::uint64_t>("the offset of \"" + name + "\"");
            const checked_size end = bytes + begin;
            if (!end.valid() || begin % alignment_ != 0)
                fail_tensor(name, "begins at byte " + std::to_string(begin) + " of the data; " +
                                      (end.valid() ? "the alignment is " + std::to_string(alignment_)
                                                   : "no file is that long"));
            order.push_back({begin, end.value(), &at->first, &t});
        }
        place(std::move(order), in.position(), options);
    }
    void check_name(const std::string& name) const {
        if (name.empty() || name.size() > 512)
            detail::fail(path(),
                         "a tensor name has " + std::to_string(name.size()) + " bytes, must be 1 to 512");
        for (const char c : name)
            if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F)
                detail::fail(path(), "a tensor name holds a control character");
        if (!is_utf8(name)) detail::fail(path(), "a tensor name is not UTF-8");
    }
    // Shape and type, which say how many bytes the tensor has.
    checked_size read_description(detail::gguf_cursor& in, const std::string& name, gguf_tensor& t) const {
        const auto rank = in.number<std::uint32_t>("the rank of \"" + name + "\"");
        if (rank > 4) fail_tensor(name, "has " + std::to_string(rank) + " dimensions, at most 4 are allowed");
        checked_size elements = 1;
        for (std::uint32_t d = 0; d < rank; ++d) {
            const auto size = in.number<std::uint64_t>("a dimension of \"" + name + "\"");
            if (!checked_size(size).valid()) fail_tensor(name, "has the dimension " + std::to_string(size));
            t.shape.insert(t.shape.begin(), static_cast<idx>(size));
        }
        const auto id = in.number<std::uint32_t>("the type of \"" + name + "\"");
        t.type = find_gguf_type(id);
        if (t.type == nullptr) fail_tensor(name, "has the unknown type " + std::to_string(id));
        if (t.cols() % static_cast<idx>(t.type->block) != 0)
            fail_tensor(name, "is " + t.text() + ", its rows must be whole blocks of " +
                                  std::to_string(t.type->block));
        // Zero last: a product beyond all sizes is an error even where another dimension is zero.
        for (const idx size : t.shape)
            if (size != 0) elements = elements * checked_size(static_cast<std::uint64_t>(size));
        const checked_size bytes = elements * t.type->bytes;
        if (!bytes.valid()) fail_tensor(name, "is " + t.text() + ", which is too large");
        for (const idx size : t.shape)
            if (size == 0) return 0;
        return bytes.value() / t.type->block;
    }
    checked_size padded(checked_size n) const {
        const checked_size up = n + (alignment_ - 1);
        return up.valid() ? checked_size(up.value() / alignment_ * alignment_) : up;
    }
    // Tensors follow each other from the beginning of the data section to its end.
    void place(std::vector<placed> order, std::size_t header, const gguf_options& options) {
        const std::size_t size = source_.bytes().size();
        const checked_size data = padded(header);
        std::sort(order.begin(), order.end(), [](const placed& a, const placed& b) {
            return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
        });
        checked_size next = 0;
        std::uint64_t last = 0;
        for (const placed& p : order) {
            if (!(next == p.begin))
                fail_tensor(*p.name, "begins at byte " + std::to_string(p.begin) +
                                         " of the data, must begin at " +
                                         (next.valid() ? std::to_string(next.value()) : "none"));
            last = p.end;
            next = padded(last);
        }
        const checked_size end = data + last, most = data + next;
        if (!order.empty() && (!end.valid() || end.value() > size))
            detail::fail(path(), "has " + std::to_string(size) + " bytes, its tensors need " +
                                     (end.valid() ? std::to_string(end.value()) : "more than any file has"));
        if (!options.allow_trailing && most.valid() && size > most.value())
            detail::fail(path(),
                         "has " + std::to_string(size - most.value()) + " bytes after its last tensor");
        for (const placed& p : order)
            p.tensor->bytes = source_.bytes().subspan(data.value() + static_cast<std::size_t>(p.begin),
                                                      static_cast<std::size_t>(p.end - p.begin));
    }

    file source_;
    std::uint32_t version_ = 0;
    std::uint64_t alignment_ = 32;
    std::map<std::string, gguf_value, std::less<>> metadata_;
    std::map<std::string, gguf_tensor, std::less<>> tensors_;
};

} // namespace SLUICE_ISA
} // namespace sluice::io
