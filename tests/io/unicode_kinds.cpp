#include "support/catch.hpp"

#include <sluice/io/unicode_kinds.hpp>

#include <functional>
#include <iterator>
#include <map>
#include <vector>

namespace io = sluice::io;
using io::unicode_kind;

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
        return std::adjacent_find(std::begin(flips), std::end(flips), std::greater_equal<>()) == std::end(flips);
    };
    CHECK(rises(io::detail::unicode_letters));
    CHECK(rises(io::detail::unicode_numbers));
    CHECK(rises(io::detail::unicode_spaces));
    CHECK(std::size(io::detail::unicode_letters) % 2 == 0);
}
