#include "support/catch.hpp"

#include <sluice/core/convert.hpp>
#include <sluice/io/gguf_types.hpp>

#include <cmath>
#include <set>
#include <string>

namespace io = sluice::io;
using sluice::half;

namespace {

// By the definition of binary16.
double value_of(half x) {
    const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
    const double sign = (x.bits >> 15) != 0 ? -1 : 1;
    if (exponent == 31) return fraction != 0 ? std::nan("") : sign * HUGE_VAL;
    return sign * (exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(fraction + 1024, exponent - 25));
}
bool same(float a, double b) { return (std::isnan(a) && std::isnan(b)) || static_cast<double>(a) == b; }

} // namespace

TEST_CASE("types of files: ids and names once, sizes of blocks") {
    std::set<std::uint32_t> ids;
    std::set<std::string_view> names;
    for (const auto& t : io::gguf_types) {
        CHECK(ids.insert(t.id).second);
        CHECK(names.insert(t.name).second);
        CHECK(io::find_gguf_type(t.id) == &t);
        CHECK((t.block > 0 && t.bytes > 0));
        CHECK((t.block & (t.block - 1)) == 0);
    }
    for (const std::uint32_t unknown : {4U, 5U, 9U, 15U, 31U, 33U, 38U, 42U, 0xFFFFFFFFU})
        CHECK(io::find_gguf_type(unknown) == nullptr);
    const auto bytes = [](std::uint32_t id) { return io::find_gguf_type(id)->bytes; };
    CHECK((bytes(8) == sizeof(io::q8_0) && bytes(2) == sizeof(io::q4_0) && bytes(3) == sizeof(io::q4_1)));
    CHECK(io::gguf_name<const io::q4_1>() == "Q4_1");
}

TEST_CASE("every binary16 widens to its value") {
    for (std::uint32_t bits = 0; bits < 65536; ++bits) {
        const half x{static_cast<std::uint16_t>(bits)};
        if (!same(sluice::to_float(x), value_of(x))) FAIL("bits " << bits);
    }
    SUCCEED("none was wrong");
}

TEST_CASE("blocks: every code with scales of all kinds, by the definition") {
    float y[32];
    for (std::uint32_t bits = 0; bits < 0x7C00; bits += 37) { // finite
        const half d{static_cast<std::uint16_t>(bits | (bits % 2 << 15))},
            m{static_cast<std::uint16_t>((bits * 7) % 0x7C00)};
        io::q8_0 eight{d, {}};
        io::q4_0 four{d, {}};
        io::q4_1 offset{d, m, {}};
        for (int i = 0; i < 16; ++i) {
            eight.qs[i] = static_cast<std::int8_t>(static_cast<int>(bits) % 256 - 128 + i);
            eight.qs[i + 16] = static_cast<std::int8_t>(i - 128);
            offset.qs[i] = four.qs[i] =
                static_cast<std::uint8_t>(i | (15 - (static_cast<int>(bits) + i) % 16) << 4);
        }
        bool right = true;
        io::dequantise(eight, y);
        for (int i = 0; i < 32; ++i) right = right && static_cast<double>(y[i]) == eight.qs[i] * value_of(d);
        io::dequantise(four, y);
        for (int i = 0; i < 32; ++i) {
            const int q = i < 16 ? four.qs[i] % 16 : four.qs[i - 16] / 16;
            right = right && static_cast<double>(y[i]) == (q - 8) * value_of(d);
        }
        io::dequantise(offset, y);
        for (int i = 0; i < 32; ++i) {
            const int q = i < 16 ? offset.qs[i] % 16 : offset.qs[i - 16] / 16;
            right = right && y[i] == static_cast<float>(q * value_of(d) + value_of(m));
        }
        if (!right) FAIL("scale of bits " << bits);
    }
    SUCCEED("none was wrong");
}

TEST_CASE("blocks are read from any byte") {
    unsigned char bytes[1 + sizeof(io::q4_1)] = {0, 0x00, 0x3C, 0x00, 0xC0, 0xF1}; // d = 1, m = -2, 1 and 15
    float y[32];
    io::detail::read_block<io::q4_1>(reinterpret_cast<const std::byte*>(bytes + 1), y);
    CHECK((y[0] == -1 && y[16] == 13 && y[1] == -2));
    const unsigned char two[5] = {0, 0x80, 0x3F, 0x80, 0x3F};
    io::detail::read_block<sluice::bf16>(reinterpret_cast<const std::byte*>(two + 1), y);
    CHECK(y[0] == 1);
    io::detail::read_block<float>(reinterpret_cast<const std::byte*>(two + 1), y);
    CHECK(y[0] == std::bit_cast<float>(0x3F803F80U));
}
