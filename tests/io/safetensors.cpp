#include "support/catch.hpp"
#include "support/scratch_folder.hpp"

#include <sluice/core/tensor.hpp>
#include <sluice/io/safetensors.hpp>

#include <cmath>
#include <cstdio>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

namespace io = sluice::io;
using sluice::bf16;
using sluice::idx;
using sluice::tensor_view;
using sluice::test::contains_text;

static_assert(io::dtype_of<double> == io::dtype::f64 && io::dtype_of<const float> == io::dtype::f32);
static_assert(io::dtype_of<bf16> == io::dtype::bf16 && io::dtype_of<std::int64_t> == io::dtype::i64);
static_assert(io::dtype_of<std::int32_t> == io::dtype::i32 && io::dtype_of<std::int8_t> == io::dtype::i8);
static_assert(io::dtype_of<std::uint8_t> == io::dtype::u8);
static_assert(std::is_convertible_v<io::file, io::safetensors>);

namespace {

std::string length_of(std::uint64_t n) {
    std::string out(8, '\0');
    for (std::size_t i = 0; i < 8; ++i) out[i] = static_cast<char>(static_cast<unsigned char>(n >> (8 * i)));
    return out;
}
std::string with_length(std::uint64_t n, const std::string& rest) { return length_of(n) + rest; }
// A file of this header and `data` bytes 0, 1, 2, ...
std::string made(const std::string& header, std::size_t data) {
    std::string out = with_length(header.size(), header);
    for (std::size_t i = 0; i < data; ++i) out += static_cast<char>(i);
    return out;
}
io::safetensors parse(const std::string& bytes, const io::safetensors_options& options = {}) {
    return {io::from_memory(std::as_bytes(std::span(bytes)), "f"), options};
}
// The message without the file's name; empty for a valid file.
std::string complaint(const std::string& bytes, const io::safetensors_options& options = {}) {
    try {
        parse(bytes, options);
    } catch (const sluice::input_error& e) {
        const std::string what = e.what();
        return what.substr(0, 3) == "f: " ? what.substr(3) : "not named: " + what;
    }
    return "";
}
std::string complaint(const std::string& header, std::size_t data) { return complaint(made(header, data)); }

// Reads every byte that a valid file hands out, so that a sanitizer sees where they lie.
unsigned touch(const io::safetensors& file) {
    unsigned sum = 0;
    for (const auto& name : file.names()) {
        const auto& t = file.info(name);
        for (std::byte b : t.bytes) sum += static_cast<unsigned>(b);
        sum += static_cast<unsigned>(t.rows() + t.cols()) + static_cast<unsigned>(t.text().size());
    }
    for (const auto& [key, value] : file.metadata()) sum += static_cast<unsigned>(key.size() + value.size());
    file.require_finite();
    return sum;
}
// Valid or input_error; anything else escapes.
bool accepted(const std::string& bytes) {
    try {
        touch(parse(bytes));
        return true;
    } catch (const sluice::input_error&) {
        return false;
    }
}

const std::string small_header = R"({"__metadata__":{"format":"pt"},)"
                                 R"("a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
                                 R"("b":{"dtype":"I8","shape":[],"data_offsets":[24,25]},)"
                                 R"("c":{"dtype":"BF16","shape":[2,2,2],"data_offsets":[25,41]},)"
                                 R"("empty":{"dtype":"F64","shape":[0,4],"data_offsets":[41,41]}})";
std::string small_file() { return made(small_header, 41); }

} // namespace

TEST_CASE("a file built by hand is read") {
    const auto f = parse(small_file());
    CHECK(f.path() == "f");
    CHECK(f.names() == std::vector<std::string>{"a", "b", "c", "empty"});
    CHECK(f.metadata() == std::map<std::string, std::string>{{"format", "pt"}});
    CHECK((f.contains("a") && !f.contains("A") && !f.contains("") && !f.contains("__metadata__")));
    const auto& a = f.info("a");
    CHECK((a.type == io::dtype::f32 && a.shape == std::vector<idx>{2, 3} && a.bytes.size() == 24));
    CHECK((a.rows() == 2 && a.cols() == 3 && a.text() == "F32 [2, 3]"));
    CHECK(static_cast<int>(a.bytes[23]) == 23);
    CHECK(f.info("c").bytes.data() == a.bytes.data() + 25);
    CHECK(f.info("b").text() == "I8 []");
    CHECK(f.info("empty").bytes.empty());
    CHECK(f.tensors().size() == 4);
}

TEST_CASE("the smallest file holds nothing") {
    CHECK(parse(with_length(2, "{}")).names().empty());
    CHECK(parse(with_length(3, "{} ")).names().empty());
    CHECK(parse(with_length(19, "{\"__metadata__\":{}}")).metadata().empty());
}

TEST_CASE("tensors of all types are read") {
    for (std::size_t i = 0; i < io::dtype_table.size(); ++i) {
        const auto& [name, bytes] = io::dtype_table[i];
        const std::string header = R"({"t":{"dtype":")" + std::string(name) +
                                   R"(","shape":[3],"data_offsets":[0,)" + std::to_string(3 * bytes) + "]}}";
        const auto f = parse(made(header, 3 * bytes));
        CHECK(f.info("t").type == static_cast<io::dtype>(i));
        CHECK(f.info("t").bytes.size() == 3 * bytes);
    }
}

TEST_CASE("shapes fold to matrices") {
    auto shape = [](const std::string& s, std::size_t bytes) {
        const auto f = parse(made(R"({"t":{"dtype":"U8","shape":)" + s + R"(,"data_offsets":[0,)" +
                                      std::to_string(bytes) + "]}}",
                                  bytes));
        const auto v = f.view<std::uint8_t>("t");
        CHECK((v.rows() == f.info("t").rows() && v.cols() == f.info("t").cols()));
        return sluice::shape_text(v.rows(), v.cols());
    };
    CHECK(shape("[]", 1) == "1 x 1");
    CHECK(shape("[5]", 5) == "1 x 5");
    CHECK(shape("[0]", 0) == "1 x 0");
    CHECK(shape("[2,3]", 6) == "2 x 3");
    CHECK(shape("[2,3,4]", 24) == "6 x 4");
    CHECK(shape("[2,3,4,1]", 24) == "24 x 1");
    CHECK(shape("[1,1,1,1,1,1,1,7]", 7) == "1 x 7");
    CHECK(shape("[0,4611686018427387904]", 0) == "0 x 4611686018427387904");
    CHECK(shape("[3,0,5]", 0) == "0 x 5");
}

TEST_CASE("the length of the header is checked before it is used") {
    CHECK(complaint("") == "has 0 bytes, a safetensors file has at least 10");
    CHECK(complaint(with_length(1, "{")) == "has 9 bytes, a safetensors file has at least 10");
    const std::string rest = "{}        ";
    CHECK(complaint(with_length(0, rest)) == "has a header of 0 bytes, must be 2 to 16777216");
    CHECK(complaint(with_length(1, rest)) == "has a header of 1 bytes, must be 2 to 16777216");
    CHECK(complaint(with_length(11, rest)) == "has a header of 11 bytes, but only 10 after the length");
    CHECK(complaint(with_length(std::uint64_t{1} << 63, rest)) ==
          "has a header of 9223372036854775808 bytes, must be 2 to 16777216");
    CHECK(complaint(with_length(~std::uint64_t{0}, rest)) ==
          "has a header of 18446744073709551615 bytes, must be 2 to 16777216");
    CHECK(complaint(with_length(~std::uint64_t{0} - 7, rest)) != "");
    CHECK(complaint(with_length(10, rest)).empty());
}

TEST_CASE("the header's limit can be set up to the format's") {
    const std::string padded = made("{}" + std::string(998, ' '), 0);
    CHECK(complaint(padded, {.max_header = 1000}).empty());
    CHECK(complaint(padded, {.max_header = 999}) == "has a header of 1000 bytes, must be 2 to 999");
    CHECK(complaint(with_length(100'000'001, "{}"), {.max_header = ~std::size_t{0}}) ==
          "has a header of 100000001 bytes, must be 2 to 100000000");
    const std::string large = made("{}" + std::string(std::size_t{16} << 20, ' '), 0);
    CHECK(complaint(large) == "has a header of 16777218 bytes, must be 2 to 16777216");
    CHECK(complaint(large, {.max_header = 100'000'000}).empty());
}

TEST_CASE("the header is one JSON object padded with blanks at the end only") {
    CHECK(complaint(" {}", 0) == "the header does not begin with {");
    CHECK(complaint("[]", 0) == "the header does not begin with {");
    CHECK(complaint("\xEF\xBB\xBF{}", 0) == "the header does not begin with {");
    CHECK(complaint("{}  \n ", 0).empty());
    CHECK(complaint("{}x", 0) == "no valid JSON at byte 3");
    CHECK(complaint("{}{}", 0) == "no valid JSON at byte 3");
    CHECK(complaint(std::string("{}\0\0", 4), 0) == "no valid JSON at byte 3");
    CHECK(complaint("{", 1) != "");
}

TEST_CASE("an entry has exactly its three fields") {
    const std::string dtype = R"("dtype":"U8")", shape = R"("shape":[1])",
                      offsets = R"("data_offsets":[0,1])";
    auto entry = [](const std::string& fields) { return complaint("{\"t\":{" + fields + "}}", 1); };
    CHECK(entry(dtype + "," + shape + "," + offsets).empty());
    CHECK(entry(offsets + "," + shape + "," + dtype).empty());
    CHECK(entry(shape + "," + offsets) == "\"t\" has no dtype");
    CHECK(entry(dtype + "," + offsets) == "\"t\" has no shape");
    CHECK(entry(dtype + "," + shape) == "\"t\" must have 2 data_offsets, has 0");
    CHECK(entry("") == "\"t\" has no dtype");
    const std::string no_field = " is no field of a safetensors header, or of another type";
    CHECK(entry(dtype + "," + shape + "," + offsets + R"(,"extra":"x")") == "\"t\".\"extra\"" + no_field);
    CHECK(entry(R"("extra":[])") == "\"t\".\"extra\"" + no_field);
    CHECK(entry(R"("extra":{})") == "\"t\".\"extra\"" + no_field);
    CHECK(entry(R"("extra":5)") == "\"t\".\"extra\"" + no_field);
    CHECK(entry(dtype + "," + dtype) == "duplicate key \"dtype\"");
    CHECK(entry(shape + "," + shape) == "duplicate key \"shape\"");
    CHECK(entry(offsets + "," + offsets) == "duplicate key \"data_offsets\"");
    CHECK(entry(R"("dtype":5)") == "\"t\".\"dtype\"" + no_field);
    CHECK(entry(R"("dtype":["U8"])") == "\"t\".\"dtype\"" + no_field);
    CHECK(entry(R"("shape":1)") == "\"t\".\"shape\"" + no_field);
    CHECK(entry(R"("shape":"1")") == "\"t\".\"shape\"" + no_field);
    CHECK(entry(R"("shape":{"a":1})") == "\"t\".\"shape\"" + no_field);
    CHECK(entry(R"("shape":["1"])") == "\"t\".\"shape\"" + no_field);
    CHECK(entry(R"("shape":[[1]])") == "\"t\".\"shape\"" + no_field);
    CHECK(entry(R"("shape":[{}])") == "\"t\".\"shape\"" + no_field);
}

TEST_CASE("entries are objects and metadata is strings") {
    const std::string no_field = " is no field of a safetensors header, or of another type";
    CHECK(complaint(R"({"t":5})", 0) == "\"t\"" + no_field);
    CHECK(complaint(R"({"t":"x"})", 0) == "\"t\"" + no_field);
    CHECK(complaint(R"({"t":[]})", 0) == "\"t\" is an array, must be an object");
    CHECK(complaint(R"({"__metadata__":"x"})", 0) == "\"__metadata__\"" + no_field);
    CHECK(complaint(R"({"__metadata__":[]})", 0) == "\"__metadata__\" is an array, must be an object");
    CHECK(complaint(R"({"__metadata__":{"a":5}})", 0) == "\"__metadata__\".\"a\"" + no_field);
    CHECK(complaint(R"({"__metadata__":{"a":{}}})", 0) == "\"__metadata__\".\"a\"" + no_field);
    CHECK(complaint(R"({"__metadata__":{"a":["b"]}})", 0) == "\"__metadata__\".\"a\"" + no_field);
    CHECK(complaint(R"({"__metadata__":{"a":"1","a":"2"}})", 0) == "duplicate key \"a\"");
    CHECK(complaint(R"({"__metadata__":{},"__metadata__":{}})", 0) == "duplicate key \"__metadata__\"");
    CHECK(parse(made(R"({"__metadata__":{"":"","dtype":"\u0000\n"}})", 0)).metadata().at("dtype").size() ==
          2);
}

TEST_CASE("names are short plain and unique") {
    auto named = [](const std::string& name) {
        return complaint("{\"" + name + R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})", 0);
    };
    CHECK(named("layers.0.w_up").empty());
    CHECK(named("\xE2\x82\xAC / .. ").empty());
    CHECK(named(std::string(512, 'x')).empty());
    CHECK(named(std::string(513, 'x')) == "a tensor name has 513 bytes, at most 512 are allowed");
    CHECK(named("") == "a tensor has an empty name");
    CHECK(named(R"(a\nb)") == "a tensor name holds a control character");
    CHECK(named(R"(a\u0000b)") == "a tensor name holds a control character");
    CHECK(named("a\x7F") == "a tensor name holds a control character");
    CHECK_THAT(named("a\xC0"), contains_text("no valid JSON at byte"));
    const std::string t = R"("t":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
    CHECK(complaint("{" + t + "," + t + "}", 0) == "duplicate key \"t\"");
}

TEST_CASE("an unknown type fails the whole file") {
    for (const std::string type : {"F4", "f32", "F32 ", "", "C64", "I4"})
        CHECK(complaint(R"({"ok":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"t":{"dtype":")" + type +
                            R"(","shape":[0],"data_offsets":[0,0]}})",
                        0) == "\"t\" has the unknown dtype \"" + type + "\"");
    CHECK(complaint(R"({"t":{"dtype":")" + std::string(100'000, 'x') + "\"}}", 0).size() < 200);
}

TEST_CASE("shapes that overflow or are too deep are refused") {
    auto shaped = [](const std::string& shape, const std::string& end) {
        return complaint(R"({"t":{"dtype":"F32","shape":)" + shape + R"(,"data_offsets":[0,)" + end + "]}}",
                         0);
    };
    const std::string two63 = "9223372036854775808", two62 = "4611686018427387904",
                      two61 = "2305843009213693952";
    CHECK(shaped("[" + two63 + "]", "0") == "\"t\" has the dimension " + two63);
    CHECK(shaped("[0," + two63 + "]", "0") == "\"t\" has the dimension " + two63);
    CHECK(shaped("[" + two62 + "]", "0") == "\"t\" is F32 [" + two62 + "], which is too many bytes, has 0");
    CHECK(shaped("[" + two61 + "]", "0") == "\"t\" is F32 [" + two61 + "], which is too many bytes, has 0");
    CHECK(shaped("[4294967296,4294967296]", "0") != "");
    CHECK(shaped("[4294967296,4294967296,0]", "0") != ""); // rows alone would overflow
    CHECK(shaped("[0,4294967296,4294967296]", "0").empty());
    CHECK(shaped("[1,1,1,1,1,1,1,1,1]", "4") == "\"t\" has more than 8 dimensions");
    CHECK(shaped("[18446744073709551616]", "0") != "");
    CHECK(shaped("[-1]", "0") != "");
    CHECK(shaped("[1.0]", "4") != "");
    CHECK(shaped("[1e0]", "4") != "");
}

TEST_CASE("sizes must be those of shape and type") {
    auto sized = [](const std::string& shape, std::size_t end) {
        return complaint(R"({"t":{"dtype":"F32","shape":)" + shape + R"(,"data_offsets":[0,)" +
                             std::to_string(end) + "]}}",
                         end);
    };
    CHECK(sized("[2,3]", 24).empty());
    CHECK(sized("[2,3]", 23) == "\"t\" is F32 [2, 3], which is 24 bytes, has 23");
    CHECK(sized("[2,3]", 25) == "\"t\" is F32 [2, 3], which is 24 bytes, has 25");
    CHECK(sized("[]", 0) == "\"t\" is F32 [], which is 4 bytes, has 0");
    CHECK(sized("[0]", 4) == "\"t\" is F32 [0], which is 0 bytes, has 4");
}

TEST_CASE("offsets are two and rise") {
    auto offsets = [](const std::string& list) {
        return complaint(R"({"t":{"dtype":"U8","shape":[1],"data_offsets":)" + list + "}}", 1);
    };
    CHECK(offsets("[0,1]").empty());
    CHECK(offsets("[]") == "\"t\" must have 2 data_offsets, has 0");
    CHECK(offsets("[0]") == "\"t\" must have 2 data_offsets, has 1");
    CHECK(offsets("[0,1,2]") == "\"t\" must have 2 data_offsets, has 3");
    CHECK(offsets("[1,0]") == "\"t\" has the data_offsets 1 to 0");
    CHECK(offsets("[18446744073709551615,0]") == "\"t\" has the data_offsets 18446744073709551615 to 0");
    CHECK(offsets("[18446744073709551614,18446744073709551615]") ==
          "\"t\" has the data_offsets 18446744073709551614 to 18446744073709551615");
    CHECK(offsets("[1,2]") == "\"t\" begins at byte 1 of the data, must begin at 0");
    CHECK(offsets("[-1,0]") != "");
    CHECK(offsets("[0,1.0]") != "");
    CHECK(offsets("[0,18446744073709551616]") != "");
    std::string many = "[0";
    for (int i = 0; i < 100'000; ++i) many += ",0";
    CHECK(offsets(many + "]") == "\"t\" must have 2 data_offsets, has 100001");
}

TEST_CASE("tensors cover the data without gap or overlap") {
    auto two = [](const std::string& a, const std::string& b, std::size_t data) {
        return complaint(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)" + a +
                             R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" + b + "}}",
                         data);
    };
    CHECK(two("[0,4]", "[4,8]", 8).empty());
    CHECK(two("[4,8]", "[0,4]", 8).empty());
    CHECK(two("[0,4]", "[5,9]", 9) == "\"b\" begins at byte 5 of the data, must begin at 4");
    CHECK(two("[0,4]", "[3,7]", 7) == "\"b\" begins at byte 3 of the data, must begin at 4");
    CHECK(two("[0,4]", "[0,4]", 4) != "");
    CHECK(two("[0,4]", "[4,8]", 7) == "has 7 bytes of data, its tensors have 8");
    CHECK(two("[0,4]", "[4,8]", 9) == "has 9 bytes of data, its tensors have 8");
    CHECK(complaint("{}", 1) == "has 1 bytes of data, its tensors have 0");
}

TEST_CASE("empty tensors may stand at any seam and nowhere else") {
    auto file = [](const std::string& at) {
        return complaint(R"({"z":{"dtype":"F32","shape":[0,9],"data_offsets":)" + at +
                             R"(},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                             R"("b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
                         8);
    };
    CHECK(file("[0,0]").empty());
    CHECK(file("[4,4]").empty());
    CHECK(file("[8,8]").empty());
    CHECK(file("[2,2]") != "");
    CHECK(file("[9,9]") != "");
}

TEST_CASE("trailing bytes are an option") {
    const std::string bytes = small_file() + "tail";
    CHECK(complaint(bytes) == "has 45 bytes of data, its tensors have 41");
    CHECK(complaint(bytes, {.allow_trailing = true}).empty());
    CHECK(complaint(small_file().substr(0, small_file().size() - 1), {.allow_trailing = true}) ==
          "has 40 bytes of data, its tensors have 41");
}

TEST_CASE("a file cut anywhere is refused") {
    const std::string whole = small_file();
    REQUIRE(whole.size() > 290);
    CHECK(accepted(whole));
    for (std::size_t n = 0; n < whole.size(); ++n)
        if (accepted(whole.substr(0, n))) FAIL("accepted " << n << " bytes");
}

TEST_CASE("a file with any bit of length or header flipped is valid or refused") {
    const std::string whole = small_file();
    int valid = 0;
    for (std::size_t at = 0; at < 8 + small_header.size(); ++at)
        for (unsigned bit = 0; bit < 8; ++bit) {
            std::string bytes = whole;
            bytes[at] = static_cast<char>(static_cast<unsigned char>(bytes[at]) ^ (1U << bit));
            valid += accepted(bytes);
        }
    CHECK(valid > 0); // a letter of a name, for example
    CHECK(valid < 200);
}

TEST_CASE("a file with any byte of the header replaced is valid or refused") {
    const std::string whole = small_file();
    for (std::size_t at = 0; at < 8 + small_header.size(); ++at)
        for (const char c : {'\0', '"', '[', ']', '{', '}', ',', ':', '0', '9', '-', '\\', ' ', '\xFF'}) {
            std::string bytes = whole;
            bytes[at] = c;
            accepted(bytes);
        }
    SUCCEED();
}

TEST_CASE("a header with any stretch removed or doubled is valid or refused") {
    for (std::size_t at = 0; at < small_header.size(); ++at)
        for (std::size_t n : std::vector<std::size_t>{1, 2, 5, 17, 60}) {
            std::string less = small_header, more = small_header;
            less.erase(at, n);
            more.insert(at, small_header.substr(at, n));
            accepted(made(less, 41));
            accepted(made(more, 41));
        }
    SUCCEED();
}

TEST_CASE("views show the values where they lie") {
    const std::string header =
        R"({"x":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}})" + std::string(7, ' ');
    REQUIRE((8 + header.size()) % 8 == 0);
    std::string bytes = made(header, 0);
    for (float v : {1.0F, -2.5F, 0.0F, 1e30F}) {
        char raw[4];
        std::memcpy(raw, &v, 4);
        bytes.append(raw, 4);
    }
    const auto f = parse(bytes);
    const tensor_view<const float> x = f.view<float>("x");
    CHECK((x.rows() == 2 && x.cols() == 2 && x(0, 0) == 1 && x(0, 1) == -2.5F && x(1, 1) == 1e30F));
    CHECK(reinterpret_cast<const std::byte*>(x.data()) == f.info("x").bytes.data());
    static_assert(std::is_same_v<decltype(f.view<const float>("x")), tensor_view<const float>>);
}

TEST_CASE("views of missing tensors or other types are refused") {
    const auto f = parse(small_file());
    CHECK_THROWS_AS(f.info("d"), sluice::input_error);
    CHECK_THROWS_WITH(f.info("d"), "f: no tensor \"d\"");
    CHECK_THROWS_WITH(f.view<float>("d"), "f: no tensor \"d\"");
    CHECK_THROWS_WITH(f.view<double>("a"), "f: \"a\" must be F64, is F32 [2, 3]");
    CHECK_THROWS_WITH(f.view<std::uint8_t>("b"), "f: \"b\" must be U8, is I8 []");
}

TEST_CASE("misaligned tensors are copied instead") {
    const auto f = parse(small_file()); // "c" begins at an odd byte
    const bool odd = reinterpret_cast<std::uintptr_t>(f.info("c").bytes.data()) % 2 == 1;
    const std::string other = made(small_header + " ", 41);
    const auto g = parse(other);
    const auto& misaligned = odd ? f : g;
    const auto& aligned = odd ? g : f;
    CHECK_NOTHROW(aligned.view<bf16>("c"));
    CHECK_THROWS_WITH(misaligned.view<bf16>("c"),
                      "f: \"c\" is not aligned to 2 bytes in the file; use copy_to or copy_misaligned");
    sluice::tensor<bf16> c(4, 2);
    misaligned.copy_to("c", c.view());
    CHECK(c(0, 0).bits == 0x1A19);
    CHECK(c(3, 1).bits == 0x2827);
    CHECK_NOTHROW(misaligned.view<double>("empty")); // holds nothing to be misaligned
}

TEST_CASE("misaligned tensors are copied on request and can be viewed then") {
    auto f = parse(small_file());
    auto odd = parse(made(small_header + " ", 41)); // the data begins one byte later
    for (io::safetensors* file : {&f, &odd}) {
        const auto before = file->tensors();
        file->copy_misaligned();
        for (const auto& [name, old] : before) {
            const auto& now = file->info(name);
            CHECK((now.type == old.type && now.shape == old.shape));
            CHECK(std::equal(now.bytes.begin(), now.bytes.end(), old.bytes.begin(), old.bytes.end()));
        }
        CHECK(file->view<float>("a").data() != nullptr);
        CHECK(file->view<bf16>("c")(3, 1).bits == 0x2827);
        const auto after = file->tensors();
        file->copy_misaligned(); // nothing is left to copy
        for (const auto& [name, t] : after) CHECK(file->info(name).bytes.data() == t.bytes.data());
    }
    // those that were aligned stay where they are, and what was copied lives as long as a copy does
    io::safetensors copy = parse(with_length(2, "{}"));
    {
        auto again = parse(small_file());
        const auto* b = again.info("b").bytes.data();
        again.copy_misaligned();
        CHECK(again.info("b").bytes.data() == b);
        copy = again;
    }
    CHECK(copy.view<bf16>("c")(0, 0).bits == 0x1A19);
}

TEST_CASE("half and eight bits are viewed and copied as their types") {
    const std::string header = R"({"h":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},)"
                               R"("q":{"dtype":"F8_E4M3","shape":[2,2],"data_offsets":[4,8]}})";
    const auto f = parse(made(header + std::string(8 - header.size() % 8, ' '), 8));
    CHECK(f.view<sluice::half>("h")(0, 1).bits == 0x0302);
    CHECK(f.view<sluice::f8_e4m3>("q")(1, 1).bits == 7);
    sluice::tensor<sluice::f8_e4m3> q(2, 2);
    f.copy_to("q", q.view());
    CHECK(q(1, 0).bits == 6);
    CHECK_THROWS_WITH(f.view<bf16>("h"), "f: \"h\" must be BF16, is F16 [2]");
    CHECK_THROWS_WITH(f.view<sluice::half>("q"), "f: \"q\" must be F16, is F8_E4M3 [2, 2]");
    CHECK_THROWS_WITH(f.view<std::int8_t>("q"), "f: \"q\" must be I8, is F8_E4M3 [2, 2]");
}

TEST_CASE("files that belong together are one set") {
    auto one = [](const std::string& name, const std::string& tensor, char fill,
                  const std::string& metadata) {
        const std::string header = R"({"__metadata__":{)" + metadata + R"(},")" + tensor +
                                   R"(":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})";
        const std::string bytes = with_length(header.size(), header) + std::string(2, fill);
        return io::safetensors(io::from_memory(std::as_bytes(std::span(bytes)), name));
    };
    io::safetensors both = parse(with_length(2, "{}"));
    {
        const std::vector<io::safetensors> parts{one("x", "b", 3, R"("k":"first","x":"1")"),
                                                 one("y", "a", 5, R"("k":"second","y":"2")")};
        both = {"whole", parts};
    }
    CHECK(both.path() == "whole");
    CHECK(both.names() == std::vector<std::string>{"a", "b"});
    CHECK(both.view<std::uint8_t>("a")(0, 1) == 5);
    CHECK(both.view<std::uint8_t>("b")(0, 0) == 3);
    CHECK(both.metadata() == std::map<std::string, std::string>{{"k", "first"}, {"x", "1"}, {"y", "2"}});
    CHECK_THROWS_WITH(both.info("c"), "whole: no tensor \"c\"");
    CHECK_NOTHROW(both.prefetch());
    const std::vector<io::safetensors> twice{one("x", "a", 3, ""), one("y", "a", 5, "")};
    CHECK_THROWS_WITH(io::safetensors("whole", twice), "whole: \"a\" is in y and in another file");
    CHECK(io::safetensors("none", {}).names().empty());
}

TEST_CASE("copy_to fills a view row by row") {
    const auto f = parse(small_file());
    std::vector<float> memory(12, -1.0F);
    f.copy_to("a", tensor_view<float>(memory.data(), 2, 3, 6));
    float expected[6];
    std::memcpy(expected, f.info("a").bytes.data(), 24);
    for (std::size_t i = 0; i < 12; ++i)
        CHECK(memory[i] == (i % 6 < 3 ? expected[i / 6 * 3 + i % 6] : -1.0F));
    f.copy_to("empty", tensor_view<double>(nullptr, 0, 4));
    std::int8_t b = 0;
    f.copy_to("b", tensor_view<std::int8_t>(&b, 1, 1));
    CHECK(b == 24);
}

TEST_CASE("copy_to names both shapes or types") {
    const auto f = parse(small_file());
    sluice::tensor<float> t(3, 2);
    CHECK_THROWS_AS(f.copy_to("a", t.view()), sluice::input_error);
    CHECK_THROWS_WITH(f.copy_to("a", t.view()), "f: \"a\" must be 3 x 2, is 2 x 3 (F32 [2, 3])");
    CHECK_THROWS_WITH(f.copy_to("c", t.view()), "f: \"c\" must be F32, is BF16 [2, 2, 2]");
    sluice::tensor<bf16> h(2, 4);
    CHECK_THROWS_WITH(f.copy_to("c", h.view()), "f: \"c\" must be 2 x 4, is 4 x 2 (BF16 [2, 2, 2])");
    CHECK_THROWS_WITH(f.copy_to("d", h.view()), "f: no tensor \"d\"");
}

TEST_CASE("tensors outlive the file they came from") {
    io::safetensors copy = parse(with_length(2, "{}"));
    tensor_view<const std::int8_t> v;
    {
        const auto f = parse(small_file());
        v = f.view<std::int8_t>("b");
        copy = f;
    }
    CHECK(copy.view<std::int8_t>("b").data() == v.data());
    CHECK(v(0, 0) == 24);
}

TEST_CASE("values are judged only on request") {
    auto one = [](const std::string& type, std::uint64_t bits, std::size_t bytes) {
        const std::string header = R"({"x":{"dtype":")" + type + R"(","shape":[2],"data_offsets":[0,)" +
                                   std::to_string(2 * bytes) + "]}}";
        const auto f = parse(made(header, bytes).append(length_of(bits).substr(0, bytes)));
        try {
            f.require_finite();
        } catch (const sluice::input_error& e) {
            return std::string(e.what());
        }
        return std::string();
    };
    const std::string found = "f: \"x\" holds a NaN or an infinity";
    CHECK(one("F64", 0x7FF0000000000000, 8) == found);
    CHECK(one("F64", 0xFFF8000000000001, 8) == found);
    CHECK(one("F64", 0x7FEFFFFFFFFFFFFF, 8).empty());
    CHECK(one("F32", 0x7F800000, 4) == found);
    CHECK(one("F32", 0xFFC00000, 4) == found);
    CHECK(one("F32", 0x7F7FFFFF, 4).empty());
    CHECK(one("BF16", 0x7F80, 2) == found);
    CHECK(one("BF16", 0xFF7F, 2).empty());
    CHECK(one("F16", 0xFC01, 2) == found);
    CHECK(one("F16", 0x7BFF, 2).empty());
    CHECK(one("I32", 0x7F800000, 4).empty());
    CHECK(one("F8_E4M3", 0x7F, 1).empty());
}

TEST_CASE("headers of a million keys are read and more are refused") {
    std::string header = R"({"__metadata__":{)";
    for (int i = 0; i < 1'000'000; ++i) header += "\"" + std::to_string(i) + "\":\"\",";
    std::string more = header;
    header.back() = '}';
    more += "\"x\":\"\"}";
    const io::safetensors_options options{.max_header = 100'000'000};
    CHECK(parse(made(header + "}", 0), options).metadata().size() == 1'000'000);
    CHECK(complaint(made(more + "}", 0), options) == "more than 1000000 keys in one object");
}

// Eight gigabytes that take a few pages of disk and of memory: a hole in a file, mapped.
TEST_CASE("a tensor of more than 4 GiB, and one behind it") {
    if (sizeof(void*) < 8) return;
    const sluice::test::scratch_folder folder("large_file");
    const std::string path = folder / "large.safetensors";
    constexpr std::uint64_t rows = (std::uint64_t{1} << 31) + 3, large = rows * 4, all = large + 8;
    std::string header = R"({"large":{"dtype":"F32","shape":[)" + std::to_string(rows) +
                         R"(,1],"data_offsets":[0,)" + std::to_string(large) +
                         R"(]},"last":{"dtype":"I32","shape":[2],"data_offsets":[)" + std::to_string(large) +
                         "," + std::to_string(all) + "]}}";
    header.append((56 - header.size() % 64) % 64, ' '); // so that the data can be viewed
    const std::uint64_t data = 8 + header.size();
    std::ofstream(path, std::ios::binary) << with_length(header.size(), header);
    std::error_code refused;
    std::filesystem::resize_file(path, data + all, refused);
    if (refused) {
        WARN("skipped: the file system has no room for holes: " << refused.message());
        return;
    }
    auto write = [&](std::uint64_t at, std::int32_t value) {
        std::fstream out(path, std::ios::binary | std::ios::in | std::ios::out);
        out.seekp(static_cast<std::streamoff>(data + at));
        out.write(reinterpret_cast<const char*>(&value), 4);
    };
    write(large, 1234);
    write(large + 4, -5);
    write((std::uint64_t{1} << 32) + 4, std::bit_cast<std::int32_t>(2.5F));
    write(large - 4, std::bit_cast<std::int32_t>(-7.0F));
    const io::safetensors file = io::map(path);
    CHECK(file.info("large").text() == "F32 [2147483651, 1]");
    CHECK(file.info("large").bytes.size() == large);
    const auto view = file.view<float>("large");
    CHECK((view.rows() == static_cast<idx>(rows) && view.size() == static_cast<idx>(rows)));
    CHECK((view(0, 0) == 0 && view((idx{1} << 30) + 1, 0) == 2.5F && view(view.rows() - 1, 0) == -7));
    sluice::tensor<std::int32_t> last(1, 2);
    file.copy_to("last", last.view());
    CHECK((last(0, 0) == 1234 && last(0, 1) == -5));
    // and a byte more or less is noticed that far out
    for (const std::uint64_t size : {data + all - 1, data + all + 1, data + large}) {
        std::filesystem::resize_file(path, size);
        CHECK_THROWS_AS(io::safetensors(io::map(path)), sluice::input_error);
    }
    CHECK_THROWS_AS(io::read(path, std::size_t{1} << 32), sluice::input_error); // before anything is taken
}
