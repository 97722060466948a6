// Code points of text in UTF-8, without tables.
#pragma once

#include "../core/types.hpp"

#include <string_view>

namespace sluice::io {

inline constexpr std::int32_t no_code_point = -1;

inline namespace SLUICE_ISA {

// The code point that begins at text[at], which is moved behind it; for a byte that begins none
// no_code_point, and `at` moves by one. Surrogates, values beyond U+10FFFF and longer forms than needed are
// none. `at` must be below the text's size.
constexpr std::int32_t next_code_point(std::string_view text, std::size_t& at) {
    const auto byte = [&](std::size_t i) {
        return static_cast<std::int32_t>(static_cast<unsigned char>(text[i]));
    };
    const std::int32_t first = byte(at);
    if (first < 0x80) return ++at, first;
    const std::size_t n = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
    const bool begins = first >= 0xC2 && first <= 0xF4;
    if (!begins || text.size() - at < n) return ++at, no_code_point;
    std::int32_t code = first & (0x7F >> n);
    for (std::size_t i = 1; i < n; ++i) {
        if ((byte(at + i) & 0xC0) != 0x80) return ++at, no_code_point;
        code = (code << 6) | (byte(at + i) & 0x3F);
    }
    const bool whole = n == 2 || (n == 3 && code >= 0x800 && (code < 0xD800 || code > 0xDFFF)) ||
                       (n == 4 && code >= 0x10000 && code <= 0x10FFFF);
    if (!whole) return ++at, no_code_point;
    at += n;
    return code;
}

constexpr bool is_utf8(std::string_view text) {
    for (std::size_t at = 0; at < text.size();)
        if (next_code_point(text, at) == no_code_point) return false;
    return true;
}

} // namespace SLUICE_ISA
} // namespace sluice::io
