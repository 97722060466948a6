#include "support/catch.hpp"

#include <sluice/io/dtype.hpp>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

namespace io = sluice::io;
using sluice::f8_e4m3;

static_assert(io::dtype_of<double> == io::dtype::f64 && io::dtype_of<const float> == io::dtype::f32);
static_assert(io::dtype_of<sluice::bf16> == io::dtype::bf16 && io::dtype_of<sluice::half> == io::dtype::f16);
static_assert(io::dtype_of<f8_e4m3> == io::dtype::f8_e4m3 && io::dtype_of<std::int64_t> == io::dtype::i64);
static_assert(io::dtype_of<std::int32_t> == io::dtype::i32 && io::dtype_of<std::int8_t> == io::dtype::i8);
static_assert(io::dtype_of<const std::uint8_t> == io::dtype::u8);
static_assert(std::is_same_v<sluice::compute_type<const f8_e4m3>, float> && sizeof(f8_e4m3) == 1);

TEST_CASE("all types have their name and size") {
    const std::vector<std::pair<std::string, std::size_t>> all{
        {"F64", 8},     {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"F8_E4M3", 1}, {"F8_E5M2", 1},
        {"F8_E8M0", 1}, {"I64", 8}, {"I32", 4}, {"I16", 2},  {"I8", 1},      {"U64", 8},
        {"U32", 4},     {"U16", 2}, {"U8", 1},  {"BOOL", 1}};
    REQUIRE(all.size() == io::dtype_table.size());
    for (std::size_t i = 0; i < all.size(); ++i) {
        CHECK(io::dtype_table[i].name == all[i].first);
        CHECK(io::facts(static_cast<io::dtype>(i)).bytes == all[i].second);
    }
}

// The format's own definition: (-1)^s 2^(e - 7) (1 + f / 8), or 2^-6 f / 8 where e is 0.
TEST_CASE("all 256 codes of F8_E4M3 have their value") {
    for (unsigned code = 0; code < 256; ++code) {
        CAPTURE(code);
        const float value = to_float(f8_e4m3{static_cast<std::uint8_t>(code)});
        const int exponent = static_cast<int>(code >> 3 & 15U), fraction = static_cast<int>(code & 7U);
        const double sign = code < 128 ? 1 : -1;
        CHECK(std::signbit(value) == (code >= 128));
        if (exponent == 15 && fraction == 7) {
            CHECK(std::isnan(value));
            continue;
        }
        const double size =
            exponent == 0 ? std::ldexp(fraction / 8.0, -6) : std::ldexp(1 + fraction / 8.0, exponent - 7);
        CHECK(static_cast<double>(value) == sign * size);
    }
    CHECK(to_float(f8_e4m3{0x7E}) == 448);
    CHECK(to_float(f8_e4m3{0x01}) == 0x1p-9F);
}
