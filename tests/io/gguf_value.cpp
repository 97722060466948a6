#include "support/catch.hpp"
#include "support/gguf_file.hpp"
#include "support/scratch_folder.hpp"

#include <cmath>

namespace io = sluice::io;
using io::gguf_kind;
using namespace sluice::test;

namespace {

// The value of `key` in a file that holds nothing else; the file is kept as long as the program runs.
io::gguf_value read(const gguf_bytes& value) {
    static std::vector<io::gguf> kept;
    gguf_file f;
    f.set("key", value);
    kept.push_back(parse(f.str()));
    return kept.back().value("key");
}
template <class U>
gguf_bytes number(gguf_kind kind, U value) {
    return {kind, little(value)};
}

} // namespace

TEST_CASE("numbers of every type") {
    const std::pair<gguf_bytes, std::int64_t> integers[] = {
        {number(gguf_kind::u8, std::uint8_t{200}), 200},
        {number(gguf_kind::i8, std::uint8_t{200}), -56},
        {number(gguf_kind::u16, std::uint16_t{60000}), 60000},
        {number(gguf_kind::i16, std::uint16_t{60000}), -5536},
        {number(gguf_kind::u32, 4000000000U), 4000000000},
        {number(gguf_kind::i32, 4000000000U), -294967296},
        {number(gguf_kind::u64, std::uint64_t{1} << 62), std::int64_t{1} << 62},
        {number(gguf_kind::i64, ~std::uint64_t{0}), -1},
    };
    for (const auto& [bytes, want] : integers) {
        const auto v = read(bytes);
        CHECK(v.kind == bytes.first);
        CHECK(v.integer() == want);
        CHECK(v.real() == static_cast<double>(want));
        CHECK_FALSE(v.boolean());
        CHECK_FALSE(v.text());
    }
    const auto large = read(number(gguf_kind::u64, std::uint64_t{1} << 63));
    CHECK_FALSE(large.integer());
    CHECK(large.real() == 0x1p63);
    CHECK(read(value_of(0.5F)).real() == 0.5);
    CHECK_FALSE(read(value_of(0.5F)).integer());
    CHECK(read(number(gguf_kind::f64, std::bit_cast<std::uint64_t>(-1e300))).real() == -1e300);
    CHECK(std::isnan(*read(value_of(std::nanf(""))).real()));
    CHECK(read(value_of(true)).boolean() == true);
    CHECK(read(value_of(false)).boolean() == false);
    CHECK_FALSE(read(value_of(true)).integer());
}

TEST_CASE("strings are any bytes") {
    const std::string text("a\0\xFF\n", 4);
    CHECK(read(value_of(text)).text() == text);
    CHECK(read(value_of("")).text() == "");
    CHECK_FALSE(read(value_of("1")).integer());
    CHECK_FALSE(read(value_of("1")).real());
}

TEST_CASE("arrays of numbers, strings and arrays") {
    const auto numbers = read(array_of({value_of(1U), value_of(2U), value_of(3U)}));
    CHECK(numbers.kind_text() == "ARRAY of 3 UINT32");
    std::int64_t sum = 0;
    numbers.each([&](const io::gguf_value& v) { sum = sum * 10 + v.integer().value(); });
    CHECK(sum == 123);
    CHECK_FALSE(numbers.integer());

    const auto inner = array_of({value_of("x"), value_of(""), value_of("yz")});
    const auto nested = read(array_of({inner, array_of({}), inner}));
    std::string all;
    nested.each([&](const io::gguf_value& v) {
        all += "[" + std::to_string(v.size);
        v.each([&](const io::gguf_value& e) { all += "," + std::string(*e.text()); });
        all += "]";
    });
    CHECK(all == "[3,x,,yz][0][3,x,,yz]");
    CHECK(nested.kind_text() == "ARRAY of 3 ARRAY");

    int calls = 0;
    read(value_of(1U)).each([&](const io::gguf_value&) { ++calls; });
    read(array_of({}, gguf_kind::array)).each([&](const io::gguf_value&) { ++calls; });
    CHECK(calls == 0);
}

TEST_CASE("values that cannot be are refused") {
    const auto said = [](const gguf_bytes& value) {
        gguf_file f;
        f.set("key", value);
        return complaint([&] { touch(parse(f.str())); });
    };
    gguf_bytes deep = value_of(1U);
    for (int i = 0; i < 4; ++i) deep = array_of({deep});
    CHECK(said(deep) == "");
    CHECK(said(array_of({deep})) == "f: \"key\" holds arrays nested deeper than 4");

    CHECK(said({static_cast<gguf_kind>(13), ""}) == "f: \"key\" has the unknown type 13");
    CHECK(said({gguf_kind::boolean, little(std::uint8_t{2})}) ==
          "f: \"key\" is 2, must be true (1) or false (0)");
    CHECK(said(array_of({value_of(true), {gguf_kind::boolean, little(std::uint8_t{7})}})) ==
          "f: \"key\" is 7, must be true (1) or false (0)");
    const auto head = [](std::uint32_t kind, std::uint64_t n) {
        return gguf_bytes{gguf_kind::array, little(kind) + little(n)};
    };
    CHECK(said(head(13, 0)) == "f: \"key\" holds the unknown type 13");
    CHECK(said(head(0, 1)) == "f: \"key\" has 1 elements, of which the 0 bytes that are left hold at most 0");
    for (const std::uint32_t kind : {0U, 3U, 6U, 8U, 9U, 12U}) // 2^61 times 8 wraps to 0
        for (const std::uint64_t n : {std::uint64_t{1} << 61, std::uint64_t{1} << 63, ~std::uint64_t{0}})
            CHECK_THAT(said(head(kind, n)), contains_text(" elements, of which the 0 bytes"));
    CHECK_THAT(said({gguf_kind::text, little(~std::uint64_t{0})}), contains_text("but only 0 are left"));
    // an array of strings whose second one is longer than the file
    const auto strings =
        little(std::uint32_t{8}) + little(std::uint64_t{2}) + counted("ok") + little(std::uint64_t{100});
    CHECK_THAT(said({gguf_kind::array, strings}), contains_text("100 bytes at byte"));
}
