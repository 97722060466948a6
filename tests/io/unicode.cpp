#include "support/catch.hpp"

#include <sluice/io/unicode.hpp>

#include <functional>
#include <iterator>
#include <map>
#include <string>
#include <vector>

namespace io = sluice::io;
using io::unicode_kind;

namespace {

std::string encoded(std::int32_t c) {
    const auto byte = [](std::int32_t b) { return static_cast<char>(static_cast<unsigned char>(b)); };
    if (c < 0x80) return {byte(c)};
    if (c < 0x800) return {byte(0xC0 | c >> 6), byte(0x80 | (c & 63))};
    if (c < 0x10000) return {byte(0xE0 | c >> 12), byte(0x80 | (c >> 6 & 63)), byte(0x80 | (c & 63))};
    return {byte(0xF0 | c >> 18), byte(0x80 | (c >> 12 & 63)), byte(0x80 | (c >> 6 & 63)),
            byte(0x80 | (c & 63))};
}

} // namespace

TEST_CASE("every code point is read, surrogates and what is beyond are none") {
    for (std::int32_t c = 0; c < 0x200000; ++c) {
        const std::string text = encoded(c) + "x";
        std::size_t at = 0;
        const bool whole = c < 0x110000 && (c < 0xD800 || c > 0xDFFF);
        const std::int32_t got = io::next_code_point(text, at);
        if (got != (whole ? c : io::no_code_point) || at != (whole ? text.size() - 1 : 1))
            FAIL("code point " << c);
    }
    SUCCEED("none was wrong");
}

TEST_CASE("bytes that begin no code point are stepped over one by one") {
    const std::string wrong[] = {"\x80",         "\xBF",         "\xC0\x80",         "\xC1\xBF",
                                 "\xE0\x80\x80", "\xE0\x9F\xBF", "\xF0\x8F\xBF\xBF", "\xF5\x80\x80\x80",
                                 "\xFF",         "\xC3",         "\xE2\x82",         "\xF0\x9F\x98",
                                 "\xC3(",        "\xE2\x82(",    "\xED\xA0\x80"};
    for (const std::string& text : wrong) {
        std::size_t at = 0;
        CHECK(io::next_code_point(text, at) == io::no_code_point);
        CHECK(at == 1);
        CHECK_FALSE(io::is_utf8(text));
        CHECK_FALSE(io::is_utf8("a" + text));
    }
    CHECK(io::is_utf8(""));
    CHECK(io::is_utf8("a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80"));
    CHECK(io::is_utf8(std::string_view("\0", 1)));
}

TEST_CASE("kinds of code points: samples of many scripts") {
    const std::pair<unicode_kind, std::vector<std::int32_t>> samples[] = {
        {unicode_kind::letter, {'A',    'z',    0xAA,    0xB5,    0xE9,    0x3A9,   0x416,  0x5D0,  0x627,
                                0x905,  0xE01,  0x3042,  0x30A2,  0x3005,  0x4E2D,  0x9FFF, 0xAC00, 0xD7A3,
                                0xF900, 0xFF21, 0x10400, 0x1D400, 0x20000, 0x2A6DF, 0x323AF}},
        {unicode_kind::number,
         {'0', '9', 0xB2, 0xBD, 0x660, 0x966, 0x2160, 0x2188, 0x2460, 0x3007, 0xFF11, 0x1D7CE, 0x1F100}},
        {unicode_kind::space,
         {9, 10, 13, 32, 0x85, 0xA0, 0x1680, 0x2000, 0x200A, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}},
        {unicode_kind::other,
         {0, 8, 14, 31, '!', '_', 0x7F, 0xD7, 0x301, 0x200B, 0x200D, 0xFEFF, 0xD800, 0xE000, 0x1F389, 0xFFFF,
          0x10FFFF, 0x110000, -1}},
    };
    for (const auto& [kind, codes] : samples)
        for (const std::int32_t c : codes) {
            INFO("code point " << c);
            CHECK(io::kind_of(c) == kind);
        }
}

TEST_CASE("kinds of code points: as many of each as Unicode 16 has") {
    std::map<unicode_kind, int> counts;
    for (std::int32_t c = 0; c < 0x110000; ++c) ++counts[io::kind_of(c)];
    CHECK(counts[unicode_kind::letter] == 141028);
    CHECK(counts[unicode_kind::number] == 1911);
    CHECK(counts[unicode_kind::space] == 25);
}

TEST_CASE("kinds of code points: tables rise") {
    const auto rises = [](const auto& flips) {
        return std::adjacent_find(std::begin(flips), std::end(flips), std::greater_equal<>()) ==
               std::end(flips);
    };
    CHECK(rises(io::detail::unicode_letters));
    CHECK(rises(io::detail::unicode_numbers));
    CHECK(rises(io::detail::unicode_spaces));
    CHECK(std::size(io::detail::unicode_letters) % 2 == 0);
}
