// Compresses a tokenizer's vocabulary as Engram does (Cheng et al., "Conditional memory via scalable lookup",
// 2026, section 2.2 and appendix C): tokens that read alike, but for case, accents, width and white space,
// get one id. Reads tokenizer.json of Hugging Face with byte-level tokens.
//
// Unicode is ICU's (icuuc), which no other header needs: include this one by itself.
#pragma once

#include "tokenizer_json.hpp"

#include <unicode/uchar.h>
#include <unicode/unorm2.h>
#include <unicode/utf16.h>
#include <unicode/utf8.h>

#include <array>
#include <map>
#include <unordered_map>

namespace sluice::io {

// The strings of a tokenizer by id, in the alphabet of byte-level tokens: printable stand-ins for bytes.
struct vocabulary {
    std::vector<std::string> tokens;
};

// ids[token id] is the compressed id; there are `size` of them.
struct token_map {
    std::vector<std::int32_t> ids;
    std::int32_t size = 0;
};

inline namespace SLUICE_ISA {

namespace detail {

inline void append_utf8(std::string& to, char32_t c) {
    std::uint8_t bytes[U8_MAX_LENGTH];
    std::int32_t n = 0;
    U8_APPEND_UNSAFE(bytes, n, static_cast<std::uint32_t>(c));
    to.append(reinterpret_cast<const char*>(bytes), static_cast<std::size_t>(n));
}

// Calls f with every code point of valid UTF-8, and with -1 for each byte that belongs to none.
template <class F>
void for_each_code_point(std::string_view text, F&& f) {
    const auto* const bytes = reinterpret_cast<const std::uint8_t*>(text.data());
    const auto n = static_cast<std::int32_t>(text.size());
    for (std::int32_t i = 0; i < n;) {
        UChar32 c = 0;
        U8_NEXT(bytes, i, n, c);
        f(c);
    }
}

// What a token's string decodes to; strings with other characters than stand-ins are text already.
inline std::string decoded_token(const std::string& token) { return bytes_of_token(token).value_or(token); }

inline std::u16string normalised(const UNormalizer2* form, const std::u16string& text) {
    std::u16string out(text.size() + 16, u'\0'); // a unit may become eighteen, but hardly ever does
    auto normalise = [&](UErrorCode& code) {
        return unorm2_normalize(form, text.data(), static_cast<std::int32_t>(text.size()), out.data(),
                                static_cast<std::int32_t>(out.size()), &code);
    };
    UErrorCode code = U_ZERO_ERROR;
    std::int32_t n = normalise(code);
    if (code == U_BUFFER_OVERFLOW_ERROR) {
        out.resize(static_cast<std::size_t>(n));
        code = U_ZERO_ERROR;
        n = normalise(code);
    }
    if (U_FAILURE(code)) fail("vocabulary", std::string("ICU: ") + u_errorName(code));
    out.resize(static_cast<std::size_t>(n));
    return out;
}

} // namespace detail

// What tokens with this text share: NFKC, NFD, no combining marks, lower case by code point, white space as
// one space and none at the ends; the text itself where nothing is left.
inline std::string compression_key(std::string_view text) {
    UErrorCode code = U_ZERO_ERROR;
    const UNormalizer2 *nfkc = unorm2_getNFKCInstance(&code), *nfd = unorm2_getNFDInstance(&code);
    if (U_FAILURE(code)) detail::fail("vocabulary", std::string("ICU: ") + u_errorName(code));
    std::u16string wide;
    detail::for_each_code_point(text, [&](UChar32 c) {
        if (c < 0) detail::fail("vocabulary", "text is not UTF-8");
        if (c > 0xFFFF) wide += static_cast<char16_t>(U16_LEAD(c));
        wide += static_cast<char16_t>(c > 0xFFFF ? U16_TRAIL(c) : c);
    });
    wide = detail::normalised(nfd, detail::normalised(nfkc, wide));
    std::u32string out;
    for (std::size_t i = 0; i < wide.size(); ++i) {
        std::uint32_t unit = wide[i];
        if (U16_IS_LEAD(unit) && i + 1 < wide.size()) // pairs are whole
            unit = 0x10000U + ((unit - 0xD800U) << 10) + (wide[++i] - 0xDC00U);
        const auto c = static_cast<UChar32>(unit);
        if ((U_GET_GC_MASK(c) & U_GC_M_MASK) != 0) continue; // all of Mn, Mc and Me
        const bool space = c == ' ' || c == '\t' || c == '\r' || c == '\n';
        if (!space)
            out += static_cast<char32_t>(u_tolower(c));
        else if (out.empty() || out.back() != U' ')
            out += U' ';
    }
    if (out != U" ") {
        auto is_space = [](char32_t c) { return u_isUWhiteSpace(static_cast<UChar32>(c)) != 0; };
        while (!out.empty() && is_space(out.back())) out.pop_back();
        while (!out.empty() && is_space(out.front())) out.erase(out.begin());
    }
    std::string key;
    for (const char32_t c : out) detail::append_utf8(key, c);
    return key.empty() ? std::string(text) : key;
}

// Throws input_error where the file is no tokenizer of the kind, or its ids are not 0, 1, 2 and so on.
inline vocabulary read_tokenizer(const file& source) {
    const auto bytes = source.bytes();
    detail::token_reader reader(source.path());
    read_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, source.path(), reader,
              detail::tokenizer_json_limits);
    return {reader.in_order()};
}

// Whether it is UTF-8 without a replacement character; a token that ends within a character is not.
inline bool is_whole_text(std::string_view text) {
    bool whole = true;
    detail::for_each_code_point(text, [&](UChar32 c) { whole = whole && c >= 0 && c != 0xFFFD; });
    return whole;
}

// Compressed ids in the order in which their first token comes. A token that ends within a character, or
// begins so, is known by its bytes.
inline token_map compress(const vocabulary& v) {
    token_map map;
    std::unordered_map<std::string, std::int32_t> ids;
    for (const std::string& token : v.tokens) {
        const std::string text = detail::decoded_token(token);
        const std::string key = is_whole_text(text) ? compression_key(text) : token;
        map.ids.push_back(ids.emplace(key, map.size).first->second);
        map.size = static_cast<std::int32_t>(ids.size());
    }
    return map;
}

} // namespace SLUICE_ISA
} // namespace sluice::io
