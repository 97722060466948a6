#include "support/catch.hpp"
#include "support/gguf_file.hpp"
#include "support/golden.hpp"
#include "support/scratch_folder.hpp"

#include <sluice/core/tensor.hpp>

#include <cmath>

namespace io = sluice::io;
using namespace sluice::test;
using sluice::idx;
using sluice::tensor;

namespace {

std::string numbers(std::initializer_list<float> all) {
    std::string out;
    for (const float x : all) out += little(std::bit_cast<std::uint32_t>(x));
    return out;
}
std::string some_bytes(std::size_t n) {
    std::string out;
    for (std::size_t i = 0; i < n; ++i) out += static_cast<char>(static_cast<unsigned char>(i * 7 + 1));
    return out;
}
// One tensor of each type that is read, and one that is not.
gguf_file small() {
    gguf_file f;
    f.set("general.architecture", value_of("test"));
    f.set("n", value_of(7U));
    f.set("x", value_of(0.25F));
    f.set("yes", value_of(true));
    f.set("names", array_of({value_of("a"), value_of("b")}));
    f.set("ids", array_of({value_of(3U), value_of(4U)}));
    f.add("f32", 2, 3, 0, numbers({1, 2, 3, 4, 5, 6}));
    f.add("f16", 0, 3, 1,
          little(std::uint16_t{0x3C00}) + little(std::uint16_t{0xC000}) + little(std::uint16_t{1}));
    f.add("bf16", 1, 2, 30, little(std::uint16_t{0x3F80}) + little(std::uint16_t{0xC040}));
    f.add("q8_0", 3, 64, 8, some_bytes(3 * 2 * 34));
    f.add("q4_0", 2, 32, 2, some_bytes(2 * 18));
    f.add("q4_1", 2, 64, 3, some_bytes(2 * 2 * 20));
    f.add("q6_K", 1, 256, 14, some_bytes(210));
    f.add("none", 0, 0, 0, "");
    f.tensors.push_back({"scalar", {}, 0, numbers({9})});
    f.tensors.push_back({"stacked", {2, 3, 2}, 0, some_bytes(48)});
    return f;
}
std::string said(const gguf_file& f, const io::gguf_options& options = {}) {
    return complaint([&] { touch(parse(f.str(), options)); });
}
std::string said(const std::string& bytes) {
    return complaint([&] { touch(parse(bytes)); });
}
bool accepted(const std::string& bytes) { return said(bytes).empty(); }

} // namespace

TEST_CASE("a file of every type: values, tensors, views") {
    const io::gguf file = parse(small().str());
    CHECK(file.version() == 3);
    CHECK(file.path() == "f");
    CHECK(file.text("general.architecture") == "test");
    CHECK(file.integer("n") == 7);
    CHECK(file.real("x") == 0.25);
    CHECK(file.real("n") == 7);
    CHECK(file.boolean("yes"));
    CHECK(file.texts("names") == std::vector<std::string_view>{"a", "b"});
    CHECK(file.integers("ids") == std::vector<std::int64_t>{3, 4});
    CHECK(file.integer("m", -1) == -1);
    CHECK(file.real("m", 0.5) == 0.5);
    CHECK(file.boolean("m", true));
    CHECK(file.text("m", "none") == "none");
    CHECK(file.text("general.architecture", "none") == "test");

    CHECK(file.tensors().size() == 10);
    CHECK(file.info("q8_0").text() == "Q8_0 [3, 64]");
    CHECK(file.info("stacked").text() == "F32 [2, 3, 2]");
    CHECK((file.info("stacked").rows() == 6 && file.info("stacked").cols() == 2));
    CHECK((file.info("scalar").rows() == 1 && file.info("scalar").cols() == 1));
    CHECK(file.info("none").bytes.empty());
    CHECK(file.info("q6_K").bytes.size() == 210);

    const auto f32 = file.view<float>("f32");
    CHECK((f32.rows() == 2 && f32.cols() == 3 && f32(1, 2) == 6));
    const auto q8 = file.view<io::q8_0>("q8_0");
    CHECK((q8.rows() == 3 && q8.cols() == 2));
    const auto bytes = file.info("q8_0").bytes;
    CHECK(std::memcmp(&q8(2, 1), bytes.data() + 5 * 34, 34) == 0);
    CHECK((file.view<io::q4_0>("q4_0").cols() == 1 && file.view<io::q4_1>("q4_1").cols() == 2));
    CHECK(file.view<sluice::bf16>("bf16")(0, 1).bits == 0xC040);
    CHECK(file.view<sluice::half>("f16")(0, 1).bits == 0xC000);
}

TEST_CASE("rows of every type as floats") {
    const io::gguf file = parse(small().str());
    tensor<float> row(1, 64), two(2, 64), f32(2, 3);
    file.copy_to("f32", f32.view());
    CHECK(f32(1, 0) == 4);
    file.copy_rows("q8_0", 1, two.view());
    float want[32];
    for (idx i = 1; i < 3; ++i)
        for (idx j = 0; j < 2; ++j) {
            io::dequantise(file.view<io::q8_0>("q8_0")(i, j), want);
            CHECK(std::memcmp(want, two.row(i - 1) + 32 * j, sizeof(want)) == 0);
        }
    file.copy_rows("q4_1", 1, row.view());
    io::dequantise(file.view<io::q4_1>("q4_1")(1, 1), want);
    CHECK(std::memcmp(want, row.row(0) + 32, sizeof(want)) == 0);
    tensor<float> three(1, 3), pair(1, 2);
    file.copy_to("f16", three.view());
    CHECK((three(0, 1) == -2 && three(0, 2) == 0x1p-24F));
    file.copy_to("bf16", pair.view());
    CHECK(pair(0, 1) == -3);

    const auto no_rows = sluice::tensor_view<float>(nullptr, 0, 64);
    file.copy_rows("q8_0", 3, no_rows);
    const std::string asked = complaint([&] { file.copy_rows("q8_0", 2, two.view()); });
    CHECK(asked == "f: \"q8_0\" is Q8_0 [3, 64], asked for are rows 2 to 3 of 64 columns");
    for (const idx first : {idx{-1}, idx{3}, std::numeric_limits<idx>::max()})
        CHECK_THROWS_AS(file.copy_rows("q8_0", first, row.view()), sluice::input_error);
    CHECK(complaint([&] { file.copy_to("q8_0", two.view()); }) ==
          "f: \"q8_0\" must be 2 x 64, is Q8_0 [3, 64]");
    tensor<float> k(1, 256);
    CHECK(complaint([&] { file.copy_to("q6_K", k.view()); }) ==
          "f: \"q6_K\" is Q6_K [1, 256]; F32, F16, BF16, Q8_0, Q4_0 and Q4_1 are read");
}

TEST_CASE("what is asked for in vain is named") {
    const io::gguf file = parse(small().str());
    CHECK(complaint([&] { (void)file.integer("m"); }) == "f: has no \"m\" in its metadata");
    CHECK(complaint([&] { (void)file.integer("x"); }) == "f: \"x\" must be an integer, is FLOAT32");
    CHECK(complaint([&] { (void)file.integer("x", 1); }) == "f: \"x\" must be an integer, is FLOAT32");
    CHECK(complaint([&] { (void)file.real("yes"); }) == "f: \"yes\" must be a number, is BOOL");
    CHECK(complaint([&] { (void)file.boolean("n"); }) == "f: \"n\" must be true or false, is UINT32");
    CHECK(complaint([&] { (void)file.text("names"); }) ==
          "f: \"names\" must be a string, is ARRAY of 2 STRING");
    CHECK(complaint([&] { (void)file.texts("n"); }) == "f: \"n\" must be an array of strings, is UINT32");
    CHECK(complaint([&] { (void)file.texts("ids"); }) ==
          "f: \"ids\" must be an array of strings, is ARRAY of 2 UINT32");
    CHECK(complaint([&] { (void)file.integers("names"); }) ==
          "f: \"names\" must be an array of integers, is ARRAY of 2 STRING");
    CHECK(complaint([&] { (void)file.info("q"); }) == "f: no tensor \"q\"");
    CHECK(complaint([&] { (void)file.view<float>("q4_0"); }) == "f: \"q4_0\" must be F32, is Q4_0 [2, 32]");
}

TEST_CASE("a tensor that is not aligned is read, but not viewed") {
    gguf_file f;
    f.alignment = 1;
    f.set("general.alignment", value_of(1U));
    f.add("a", 0, 3, 24, "abc");
    f.add("b", 0, 2, 0, numbers({1, 2}));
    for (int shift = 0; shift < 4; ++shift) {
        f.set("pad", value_of(std::string(static_cast<std::size_t>(shift), 'x')));
        const io::gguf file = parse(f.str());
        tensor<float> out(1, 2);
        file.copy_to("b", out.view());
        CHECK((out(0, 0) == 1 && out(0, 1) == 2));
        const bool aligned = reinterpret_cast<std::uintptr_t>(file.info("b").bytes.data()) % 4 == 0;
        CHECK(aligned == complaint([&] { (void)file.view<float>("b"); }).empty());
    }
}

TEST_CASE("version 2, other alignments, no tensors, mapped files") {
    gguf_file f = small();
    f.version = 2;
    CHECK(said(f) == "");
    for (const std::uint32_t alignment : {1U, 8U, 64U, 4096U}) {
        f.alignment = alignment;
        f.set("general.alignment", value_of(alignment));
        CHECK(said(f) == "");
        CHECK(parse(f.str()).info("q4_0").bytes[1] == std::byte{8});
    }
    gguf_file empty;
    CHECK(said(empty) == "");
    CHECK(said(empty.str() + std::string(8, '\0')) == "");
    const scratch_folder folder("gguf");
    put(folder / "f", small().str());
    const io::gguf mapped(io::map(folder / "f"));
    CHECK(mapped.info("q4_0").bytes[1] == std::byte{8});
    io::gguf copy = mapped;
    CHECK(copy.view<float>("f32")(1, 2) == 6);
}

TEST_CASE("what is no such file is refused with the reason") {
    CHECK_THAT(said(std::string()), contains_text("f: ends within the magic"));
    CHECK(said(std::string("GGML....")) == "f: does not begin with GGUF");
    gguf_file f = small();
    f.version = 1;
    CHECK(said(f) == "f: is GGUF version 1, 2 and 3 are read");
    f.version = 0x03000000;
    CHECK(said(f) == "f: is a big-endian GGUF file, which is not read");
    f = small();
    f.values.emplace_back("n", value_of(1U));
    CHECK(said(f) == "f: duplicate key \"n\"");
    f = small();
    f.set("", value_of(1U));
    CHECK(said(f) == "f: a key has 0 bytes, must be 1 to 65535");
    f = small();
    f.set("a\nb", value_of(1U));
    CHECK(said(f) == "f: the key \"a?b\" is no printable ASCII");
    for (const std::uint32_t alignment : {0U, 3U, 48U}) {
        f = small();
        f.set("general.alignment", value_of(alignment));
        CHECK(said(f) == "f: has the alignment " + std::to_string(alignment) + ", must be a power of two");
    }
    f.set("general.alignment", {io::gguf_kind::i64, little(std::uint64_t{1} << 63)});
    CHECK_THAT(said(f), contains_text("has the alignment -9223372036854775808"));
    f.set("general.alignment", value_of("32"));
    CHECK(said(f) == "f: \"general.alignment\" must be an integer, is STRING");
    for (const std::uint64_t n : {std::uint64_t{1} << 62, ~std::uint64_t{0}}) {
        const std::string start = "GGUF" + little(3U);
        CHECK_THAT(said(start + little(n) + little(std::uint64_t{0})),
                   contains_text("f: ends within the name of a tensor"));
        CHECK_THAT(said(start + little(std::uint64_t{0}) + little(n)), contains_text("f: ends within a key"));
    }
}

TEST_CASE("tensors that cannot be are refused with the reason") {
    const auto with = [](const gguf_file::tensor& t) {
        gguf_file f;
        f.tensors = {t};
        return said(f);
    };
    const std::uint64_t huge = std::uint64_t{1} << 62;
    CHECK(with({"", {1}, 24, "a"}) == "f: a tensor name has 0 bytes, must be 1 to 512");
    CHECK(with({std::string(513, 'a'), {1}, 24, "a"}) == "f: a tensor name has 513 bytes, must be 1 to 512");
    CHECK(with({"a\x1B[0m", {1}, 24, "a"}) == "f: a tensor name holds a control character");
    CHECK(with({"\xC3(", {1}, 24, "a"}) == "f: a tensor name is not UTF-8");
    CHECK(with({"t", {1, 1, 1, 1, 1}, 24, "a"}) == "f: \"t\" has 5 dimensions, at most 4 are allowed");
    CHECK(with({"t", {1}, 4, "a"}) == "f: \"t\" has the unknown type 4");
    CHECK(with({"t", {1}, 0xFFFFFFFF, "a"}) == "f: \"t\" has the unknown type 4294967295");
    CHECK(with({"t", {33}, 8, "a"}) == "f: \"t\" is Q8_0 [33], its rows must be whole blocks of 32");
    CHECK(with({"t", {}, 8, "a"}) == "f: \"t\" is Q8_0 [], its rows must be whole blocks of 32");
    CHECK(with({"t", {1, std::uint64_t{1} << 63}, 24, ""}) ==
          "f: \"t\" has the dimension 9223372036854775808");
    CHECK(with({"t", {~std::uint64_t{0}}, 24, ""}) == "f: \"t\" has the dimension 18446744073709551615");
    CHECK_THAT(with({"t", {huge, 4}, 24, ""}), contains_text("which is too large"));
    CHECK_THAT(with({"t", {huge, 1, 1}, 0, ""}), contains_text("which is too large"));
    CHECK_THAT(with({"t", {huge, 0, 4}, 24, ""}), contains_text("which is too large"));
    CHECK_THAT(with({"t", {huge}, 8, ""}), contains_text("which is too large"));
    CHECK_THAT(with({"t", {huge}, 24, "abc"}), contains_text("bytes, its tensors need"));
    CHECK_THAT(with({"t", {8}, 24, "abc"}), contains_text("bytes, its tensors need"));
    CHECK(with({"t", {0, huge}, 24, ""}) == "");
}

TEST_CASE("gaps, overlaps, offsets and what stands behind are refused") {
    gguf_file f;
    f.add("a", 0, 4, 24, "abcd");
    f.add("b", 0, 4, 24, "efgh");
    const std::string bytes = f.str();
    const std::size_t end = f.header().size(); // the last offset stands before it
    const auto offset = [&](std::uint64_t at) {
        return said(bytes.substr(0, end - 8) + little(at) + bytes.substr(end));
    };
    CHECK(offset(32) == "");
    CHECK(offset(0) == "f: \"b\" begins at byte 0 of the data, must begin at 32");
    CHECK(offset(64) == "f: \"b\" begins at byte 64 of the data, must begin at 32");
    CHECK(offset(36) == "f: \"b\" begins at byte 36 of the data; the alignment is 32");
    CHECK(offset(~std::uint64_t{31}) ==
          "f: \"b\" begins at byte 18446744073709551584 of the data; no file is that long");
    CHECK_THAT(offset((std::uint64_t{1} << 63) - 32),
               contains_text("\"b\" begins at byte 9223372036854775776"));

    f.add("a", 0, 4, 24, "abcd");
    CHECK(said(f) == "f: duplicate tensor \"a\"");
    CHECK(said(bytes + std::string(28, '\0')) == ""); // up to the alignment
    CHECK(said(bytes + std::string(29, '\0')) == "f: has 1 bytes after its last tensor");
    CHECK(parse(bytes + "much more" + std::string(100, 'x'), {.allow_trailing = true}).contains("b"));

    // listed in another order than they lie
    gguf_file other = f;
    other.tensors.pop_back();
    std::string swapped = other.str();
    const std::size_t first = swapped.find("a", 32) + 1 + 4 + 8 + 4;
    swapped.replace(first, 8, little(std::uint64_t{32}));
    swapped.replace(end - 8, 8, little(std::uint64_t{0}));
    CHECK(parse(swapped).info("a").bytes[0] == std::byte{'e'});
}

TEST_CASE("a file cut short anywhere is refused") {
    const std::string bytes = small().str();
    std::size_t accepted_count = 0;
    for (std::size_t n = 0; n < bytes.size(); ++n) accepted_count += accepted(bytes.substr(0, n)) ? 1U : 0U;
    CHECK(accepted_count == 0);
    CHECK(accepted(bytes));
}

TEST_CASE("whatever bits of the descriptions are changed, tensors stay inside the file") {
    const std::string bytes = small().str();
    std::size_t refused = 0;
    for (std::size_t i = 0; i < small().header().size(); ++i)
        for (unsigned bit = 0; bit < 8; ++bit) {
            std::string changed = bytes;
            changed[i] = static_cast<char>(static_cast<unsigned char>(changed[i]) ^ (1U << bit));
            refused += accepted(changed) ? 0U : 1U;
        }
    CHECK(refused > 1000);
}

#if SLUICE_TEST_HAS_JSON
TEST_CASE("numbers of a file that the package gguf wrote") {
    const io::gguf file(io::read(SLUICE_TEST_DIR "/data/llama.gguf"));
    const json want = golden("llama.json");
    CHECK(file.tensors().size() == want["last_numbers"].size());
    for (const auto& [name, last] : want["last_numbers"].items()) {
        INFO(name);
        const auto& t = file.info(name);
        tensor<float> all(t.rows(), t.cols());
        file.copy_to(name, all.view());
        const std::size_t n = last.size();
        bool same = true;
        for (std::size_t i = 0; i < n; ++i)
            same = same &&
                   all.data()[static_cast<std::size_t>(t.rows() * t.cols()) - n + i] == last[i].get<float>();
        CHECK(same);
    }
}
#endif
