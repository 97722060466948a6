#include "support/catch.hpp"

#include <sluice/io/utf8.hpp>

#include <string>

namespace io = sluice::io;

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
