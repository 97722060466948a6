#include "support/catch.hpp"
#include "support/golden.hpp"
#include "support/message_of.hpp"

#if SLUICE_TEST_HAS_JSON && __has_include(<unicode/unorm2.h>)
#    include <sluice/io/vocabulary.hpp>

#    include <set>

using sluice::input_error;
using sluice::test::message_of;
namespace io = sluice::io;

namespace {

io::file text_file(const std::string& text) {
    return io::from_memory(std::as_bytes(std::span(text)), "tokenizer.json");
}
std::string said(const std::string& text) {
    return message_of<input_error>([&] { (void)io::read_tokenizer(text_file(text)); });
}

} // namespace

TEST_CASE("compression_key: what reads alike is one") {
    const std::pair<std::string, std::string> keys[] = {
        {"Only", "only"},
        {" Alexander", "alexander"},
        {"the  horse\r\n", "the horse"},
        {" ", " "},
        {"\t\n ", " "},
        {"\u3000", " "},      // an ideographic space is a space
        {"\u00a0", " "},      // and so is one without a break
        {"\u2028", "\u2028"}, // a line separator is trimmed away, and then is what it was
        {"na\u00efve CAF\u00c9", "naive cafe"},
        {"\ufb01ne \u2163", "fine iv"}, // ligature, Roman numeral
        {"\uff21\uff22\uff23 \u2460", "abc 1"},
        {"\u0301", "\u0301"},          // nothing would be left
        {"\u0915\u093f", "\u0915"},    // a spacing mark
        {"a\u20dd", "a"},              // an enclosing one
        {"\u0130I\u03a3", "ii\u03c3"}, // by code point, without a rule for final sigma
        {"\u56db\u5927", "\u56db\u5927"},
        {"\U0001d400\U0001f600", "a\U0001f600"}, // beyond 16 bits
        {"", ""}};
    for (const auto& [text, key] : keys) {
        INFO(text);
        CHECK(io::compression_key(text) == key);
    }
    CHECK_THROWS_AS(io::compression_key("\xff"), input_error);
}

// Tokens of DeepSeek-V3 and their ids as the tokenizers library's normalizers have them, in the published
// demo's order. The whole vocabulary gives 98,627 ids of 128,815, and the published hash.
TEST_CASE("compress: a part of a published vocabulary") {
    const sluice::test::json tokenizer = sluice::test::golden("vocabulary.json");
    const auto want = tokenizer["compressed"].get<std::vector<std::int32_t>>();
    const auto file = io::read(SLUICE_TEST_DIR "/data/vocabulary.json");
    const io::vocabulary v = io::read_tokenizer(file);
    REQUIRE(v.tokens.size() == want.size());
    const io::token_map map = compress(v);
    CHECK(map.ids == want);
    CHECK(map.size == static_cast<std::int32_t>(std::set<std::int32_t>(want.begin(), want.end()).size()));
    CHECK(map.size < static_cast<std::int32_t>(want.size()));
}

TEST_CASE("compress: a token that is part of a character is known by its bytes") {
    // 0xE5 and 0x9B, 0xE5 0x9B, and the whole of U+56DB, twice
    const io::token_map map =
        io::compress({{"\u00e5", "\u013d", "\u00e5\u013d", "\u00e5\u013d\u013d", "\u00e5\u013d\u013d"}});
    CHECK(map.ids == std::vector<std::int32_t>{0, 1, 2, 3, 3});
    CHECK(map.size == 4);
    CHECK(io::compress({}).size == 0);
}

TEST_CASE("read_tokenizer: what is no vocabulary is refused") {
    CHECK(said(R"({"model": {"vocab": {"a": 0, "b": 1}}})") == "no error");
    CHECK(
        said(
            R"({"added_tokens": [{"content": "x", "id": 2, "special": true}], "model": {"vocab": {"a": 0, "b": 1}}})") ==
        "no error");
    CHECK(said("{}") == "tokenizer.json: no \"model\".\"vocab\" of tokens and ids");
    CHECK(said(R"({"model": {"vocab": {"a": 0, "b": 2}}})") == "tokenizer.json: no token has id 1");
    CHECK(said(R"({"model": {"vocab": {"a": 0, "b": 18446744073709551615}}})") ==
          "tokenizer.json: no token has id 1");
    CHECK(said(R"({"model": {"vocab": {"a": 0, "b": 0}}})") == "tokenizer.json: id 0 is \"a\" and \"b\"");
    CHECK(said(R"({"model": {"vocab": {"a": 0, "a": 1}}})") == "tokenizer.json: duplicate key \"a\"");
    CHECK(said(R"({"model": {"vocab": {"a": 0})").starts_with("tokenizer.json: no valid JSON"));
    CHECK(said("").starts_with("tokenizer.json: no valid JSON"));
}
#endif
