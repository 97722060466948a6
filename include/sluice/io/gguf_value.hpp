// Values in the metadata of GGUF files: numbers, strings, and arrays of them, nested up to a limit. They stay
// in the file's bytes, all of which are checked when the file is opened, and are taken apart when asked for.
#pragma once

#include "file.hpp"
#include "unicode.hpp"

#include <array>
#include <map>
#include <optional>
#include <vector>

namespace sluice::io {

// In the order of their ids in files.
enum class gguf_kind : std::uint8_t { u8, i8, u16, i16, u32, i32, f32, boolean, text, array, u64, i64, f64 };

struct gguf_kind_facts {
    std::string_view name;
    std::size_t bytes; // of a number; of a string or an array at least
};
inline constexpr std::array<gguf_kind_facts, 13> gguf_kinds{{{"UINT8", 1},
                                                             {"INT8", 1},
                                                             {"UINT16", 2},
                                                             {"INT16", 2},
                                                             {"UINT32", 4},
                                                             {"INT32", 4},
                                                             {"FLOAT32", 4},
                                                             {"BOOL", 1},
                                                             {"STRING", 8},
                                                             {"ARRAY", 12},
                                                             {"UINT64", 8},
                                                             {"INT64", 8},
                                                             {"FLOAT64", 8}}};
constexpr const gguf_kind_facts& facts(gguf_kind kind) { return gguf_kinds[static_cast<std::size_t>(kind)]; }

inline namespace SLUICE_ISA {

// One value. What is asked for in vain is std::nullopt; nothing throws.
struct gguf_value {
    gguf_kind kind = gguf_kind::u8;
    gguf_kind element = gguf_kind::u8; // of an array
    std::uint64_t size = 1;            // of an array: its elements
    std::span<const std::byte> bytes;  // of a number, the characters of a string, the elements of an array

    // Of any integer type that the number fits.
    std::optional<std::int64_t> integer() const;
    // Of any integer or floating-point type.
    std::optional<double> real() const;
    std::optional<bool> boolean() const {
        if (kind != gguf_kind::boolean) return {};
        return bytes[0] != std::byte{0};
    }
    std::optional<std::string_view> text() const {
        if (kind != gguf_kind::text) return {};
        return std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    }
    // Calls f with every element of an array, in order; with nothing for another value.
    template <class F>
    void each(F&& f) const;
    // For messages: "ARRAY of 3 INT8".
    std::string kind_text() const {
        if (kind != gguf_kind::array) return std::string(facts(kind).name);
        return "ARRAY of " + std::to_string(size) + " " + std::string(facts(element).name);
    }
};

namespace detail {

inline constexpr int gguf_max_depth = 4; // arrays around a value

// Reads bytes in order; every length is held against what is left of them.
class gguf_cursor {
public:
    gguf_cursor(const std::string& where, std::span<const std::byte> all) : where_(where), all_(all) {}

    std::size_t position() const { return at_; }

    std::string_view bytes(std::uint64_t n, std::string_view what) {
        if (n > left())
            fail(where_, "ends within " + std::string(what) + ": " + std::to_string(n) + " bytes at byte " +
                             std::to_string(at_) + ", but only " + std::to_string(left()) + " are left");
        const std::string_view part(reinterpret_cast<const char*>(all_.data()) + at_,
                                    static_cast<std::size_t>(n));
        at_ += part.size();
        return part;
    }
    template <class U>
    U number(std::string_view what) {
        return from_little<U>(reinterpret_cast<const std::byte*>(bytes(sizeof(U), what).data()));
    }
    std::string_view text(std::string_view what) { return bytes(number<std::uint64_t>(what), what); }

    gguf_value value(std::uint32_t id, const std::string& key, int depth) {
        if (id >= gguf_kinds.size())
            fail(where_, "\"" + key.substr(0, 64) + "\" has the unknown type " + std::to_string(id));
        gguf_value v;
        v.kind = static_cast<gguf_kind>(id);
        const std::string_view what = std::string_view(key).substr(0, 64);
        if (v.kind == gguf_kind::text)
            v.bytes = span_of(text(what));
        else if (v.kind == gguf_kind::array)
            read_array(v, key, depth + 1);
        else
            v.bytes = span_of(bytes(facts(v.kind).bytes, what));
        if (v.kind == gguf_kind::boolean) require_boolean(v.bytes, key);
        return v;
    }

private:
    std::size_t left() const { return all_.size() - at_; }
    static std::span<const std::byte> span_of(std::string_view s) { return std::as_bytes(std::span(s)); }

    void read_array(gguf_value& v, const std::string& key, int depth) {
        const std::string name = "\"" + key.substr(0, 64) + "\"";
        if (depth > gguf_max_depth)
            fail(where_, name + " holds arrays nested deeper than " + std::to_string(gguf_max_depth));
        const auto id = number<std::uint32_t>(name);
        if (id >= gguf_kinds.size()) fail(where_, name + " holds the unknown type " + std::to_string(id));
        v.element = static_cast<gguf_kind>(id);
        v.size = number<std::uint64_t>(name);
        const std::size_t least = facts(v.element).bytes;
        if (v.size > left() / least)
            fail(where_, name + " has " + std::to_string(v.size) + " elements, of which the " +
                             std::to_string(left()) + " bytes that are left hold at most " +
                             std::to_string(left() / least));
        const std::size_t begin = at_;
        if (v.element == gguf_kind::text || v.element == gguf_kind::array)
            for (std::uint64_t i = 0; i < v.size; ++i) (void)value(id, key, depth);
        else
            (void)bytes(v.size * least, name); // no overflow: it fits what is left
        v.bytes = all_.subspan(begin, at_ - begin);
        if (v.element == gguf_kind::boolean) require_boolean(v.bytes, key);
    }
    void require_boolean(std::span<const std::byte> all, const std::string& key) const {
        for (const std::byte b : all)
            if (b > std::byte{1})
                fail(where_, "\"" + key.substr(0, 64) + "\" is " + std::to_string(static_cast<int>(b)) +
                                 ", must be true (1) or false (0)");
    }

    const std::string& where_;
    std::span<const std::byte> all_;
    std::size_t at_ = 0;
};

} // namespace detail

inline std::optional<std::int64_t> gguf_value::integer() const {
    const std::byte* const p = bytes.data();
    switch (kind) {
    case gguf_kind::u8:
        return detail::from_little<std::uint8_t>(p);
    case gguf_kind::i8:
        return static_cast<std::int8_t>(detail::from_little<std::uint8_t>(p));
    case gguf_kind::u16:
        return detail::from_little<std::uint16_t>(p);
    case gguf_kind::i16:
        return static_cast<std::int16_t>(detail::from_little<std::uint16_t>(p));
    case gguf_kind::u32:
        return detail::from_little<std::uint32_t>(p);
    case gguf_kind::i32:
        return static_cast<std::int32_t>(detail::from_little<std::uint32_t>(p));
    case gguf_kind::i64:
        return static_cast<std::int64_t>(detail::from_little<std::uint64_t>(p));
    case gguf_kind::u64: {
        const auto n = detail::from_little<std::uint64_t>(p);
        if (n > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) return {};
        return static_cast<std::int64_t>(n);
    }
    default:
        return {};
    }
}

inline std::optional<double> gguf_value::real() const {
    if (kind == gguf_kind::f32) return std::bit_cast<float>(detail::from_little<std::uint32_t>(bytes.data()));
    if (kind == gguf_kind::f64)
        return std::bit_cast<double>(detail::from_little<std::uint64_t>(bytes.data()));
    if (kind == gguf_kind::u64) return static_cast<double>(detail::from_little<std::uint64_t>(bytes.data()));
    const auto n = integer();
    if (!n) return {};
    return static_cast<double>(*n);
}

template <class F>
void gguf_value::each(F&& f) const {
    if (kind != gguf_kind::array) return;
    static const std::string checked = "a value that was checked before";
    detail::gguf_cursor in(checked, bytes);
    for (std::uint64_t i = 0; i < size; ++i) f(in.value(static_cast<std::uint32_t>(element), checked, 0));
}

} // namespace SLUICE_ISA
} // namespace sluice::io
