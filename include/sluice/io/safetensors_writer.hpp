// Writes safetensors files: collects views, and what makes rows, then streams them to a file that replaces
// the old one at once.
//
// Tensors are laid out by element size, largest first, and the data starts at a multiple of 64 bytes, so that
// every tensor of the file can be viewed where it is.
#pragma once

#include "output.hpp"
#include "safetensors.hpp"

#include <functional>

namespace sluice::io {
inline namespace SLUICE_ISA {

class safetensors_writer {
public:
    // Adds a matrix under its two dimensions. The view is read by save, not here. Throws input_error where
    // the name is empty, longer than 512 bytes, reserved, taken, not UTF-8, or holds control characters.
    template <class T>
    void add(std::string_view name, const tensor_view<T>& tensor) {
        add(name, tensor, std::vector<idx>{tensor.rows(), tensor.cols()});
    }
    // The same under another shape of as many elements, of up to 8 dimensions; {} is a scalar. Throws
    // config_error where the number of elements differs.
    template <class T>
    void add(std::string_view name, const tensor_view<T>& tensor, std::vector<idx> shape) {
        constexpr std::size_t element = sizeof(T);
        if (tensor.data() == nullptr && !tensor.empty())
            SLUICE_THROW(config_error(place(name) + "the view has no memory"));
        add(name, {dtype_of<T>, std::move(shape), {}},
            {reinterpret_cast<const std::byte*>(tensor.data()), static_cast<std::size_t>(tensor.rows()),
             static_cast<std::size_t>(tensor.cols()) * element,
             static_cast<std::size_t>(tensor.row_stride()) * element});
    }
    // A matrix that need not fit into memory: make(first, part) is asked by save for rows [first, first +
    // part.rows()), in order, about a megabyte at once.
    template <class T>
    void add_rows(std::string_view name, idx rows, idx cols,
                  std::function<void(idx first, tensor_view<T> part)> make) {
        const auto row_bytes = static_cast<std::size_t>(cols) * sizeof(T);
        rows_of_bytes memory{nullptr, static_cast<std::size_t>(rows), row_bytes, row_bytes};
        memory.make = [make = std::move(make), cols](std::size_t first, std::size_t n, std::byte* to) {
            make(static_cast<idx>(first), {reinterpret_cast<T*>(to), static_cast<idx>(n), cols});
        };
        add(name, {dtype_of<T>, {rows, cols}, {}}, std::move(memory));
    }
    // A tensor of a type without a C++ type, as the format's (little-endian) bytes.
    void add_bytes(std::string_view name, dtype type, std::vector<idx> shape,
                   std::span<const std::byte> bytes) {
        add(name, {type, std::move(shape), {}}, {bytes.data(), 1, bytes.size(), bytes.size(), true});
    }

    // Sets an entry of the metadata; the last call for a key counts.
    void metadata(std::string_view key, std::string_view value) {
        metadata_[json_quote(key, "safetensors_writer")] = json_quote(value, "safetensors_writer");
    }

    // Writes what was added. Throws input_error where the file cannot be written or its header would be
    // longer than the format allows; the old file is untouched then.
    void save(const std::string& path) const {
        std::vector<const entry*> order;
        for (const auto& [name, e] : entries_) order.push_back(&e);
        std::sort(order.begin(), order.end(), [](const entry* a, const entry* b) {
            const std::size_t size_a = facts(a->info.type).bytes, size_b = facts(b->info.type).bytes;
            return size_a != size_b ? size_a > size_b : a->number < b->number;
        });
        const std::string head = header(path, order);
        write_beside_and_rename(path, [&](output& out) {
            out.write(std::as_bytes(std::span(head)));
            std::vector<std::byte> swapped;
            for (const entry* e : order)
                if (e->memory.make)
                    write_made(out, *e);
                else
                    for (std::size_t i = 0; i < e->memory.rows; ++i) write_row(out, *e, i, swapped);
        });
    }

private:
    struct rows_of_bytes {
        const std::byte* data;
        std::size_t rows, row_bytes, stride;
        bool little = std::endian::native == std::endian::little;
        std::function<void(std::size_t, std::size_t, std::byte*)> make{}; // rows without memory
    };
    struct entry {
        std::string quoted;
        tensor_info info;
        rows_of_bytes memory;
        std::size_t number; // order of the calls
    };

    static std::string place(std::string_view name) {
        return "safetensors_writer: \"" + std::string(name.substr(0, detail::max_name)) + "\": ";
    }

    void add(std::string_view name, tensor_info info, rows_of_bytes memory) {
        detail::require_name("safetensors_writer", name);
        std::string quoted = json_quote(name, "safetensors_writer");
        if (name == detail::metadata_name)
            detail::fail("safetensors_writer", "the name \"__metadata__\" is reserved");
        if (info.shape.size() > 8) SLUICE_THROW(config_error(place(name) + "more than 8 dimensions"));
        const std::uint64_t bytes = memory.rows * memory.row_bytes;
        if (!(detail::shape_bytes(info.shape, info.type) == bytes))
            SLUICE_THROW(config_error(place(name) + info.text() + " does not fit the " +
                                      std::to_string(bytes) + " bytes given"));
        entry e{std::move(quoted), std::move(info), std::move(memory), entries_.size()};
        if (!entries_.emplace(std::string(name), std::move(e)).second)
            detail::fail("safetensors_writer", "the name \"" + std::string(name) + "\" was added already");
    }

    // Length and JSON, padded with spaces to a multiple of 64 bytes.
    std::string header(const std::string& path, const std::vector<const entry*>& order) const {
        std::string out(8, '\0');
        out += '{';
        if (!metadata_.empty()) {
            out += "\"__metadata__\":{";
            for (const auto& [key, value] : metadata_) ((out += key) += ':') += value + ",";
            out.back() = '}';
            out += ',';
        }
        std::size_t begin = 0;
        for (const entry* e : order) {
            const std::size_t end = begin + e->memory.rows * e->memory.row_bytes;
            out += e->quoted + ":{\"dtype\":\"" + std::string(facts(e->info.type).name) + "\",\"shape\":[";
            for (const idx n : e->info.shape) out += std::to_string(n) + ",";
            if (!e->info.shape.empty()) out.pop_back();
            out += "],\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(end) + "]},";
            begin = end;
        }
        if (out.back() == ',') out.pop_back();
        out += '}';
        out.append((64 - out.size() % 64) % 64, ' ');
        const std::uint64_t n = out.size() - 8;
        if (n > detail::format_max_header)
            detail::fail(path, "the header would have " + std::to_string(n) +
                                   " bytes, at most 100000000 are allowed");
        for (std::size_t i = 0; i < 8; ++i)
            out[i] = static_cast<char>(static_cast<unsigned char>(n >> (8 * i)));
        return out;
    }

    static void write_row(output& out, const entry& e, std::size_t i, std::vector<std::byte>& swapped) {
        const rows_of_bytes& m = e.memory;
        if (m.row_bytes == 0) return;
        const std::byte* row = m.data + i * m.stride;
        if (!m.little) {
            swapped.resize(m.row_bytes);
            detail::copy_elements(swapped.data(), row, m.row_bytes, facts(e.info.type).bytes);
            row = swapped.data();
        }
        out.write({row, m.row_bytes});
    }

    static void write_made(output& out, const entry& e) {
        const rows_of_bytes& m = e.memory;
        if (m.row_bytes == 0) return;
        const std::size_t most = std::max<std::size_t>(1, (std::size_t{1} << 20) / m.row_bytes);
        // made in memory that any type may lie in
        std::vector<std::max_align_t> made(std::min(most, m.rows) * m.row_bytes / sizeof(std::max_align_t) +
                                           1);
        auto* const bytes = reinterpret_cast<std::byte*>(made.data());
        std::vector<std::byte> swapped;
        for (std::size_t first = 0; first < m.rows; first += most) {
            const std::size_t n = std::min(most, m.rows - first);
            m.make(first, n, bytes);
            for (std::size_t i = 0; !m.little && i < n; ++i)
                write_row(out, {e.quoted, e.info, {bytes, n, m.row_bytes, m.row_bytes, false}, 0}, i,
                          swapped);
            if (m.little) out.write({bytes, n * m.row_bytes});
        }
    }

    std::map<std::string, entry, std::less<>> entries_;
    std::map<std::string, std::string> metadata_; // both quoted
};

} // namespace SLUICE_ISA
} // namespace sluice::io
