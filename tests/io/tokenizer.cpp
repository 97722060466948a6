#include "support/catch.hpp"
#include "support/gguf_file.hpp"
#include "support/golden.hpp"
#include "support/scratch_folder.hpp"

#include <sluice/io/tokenizer.hpp>

#include <chrono>
#include <random>

namespace io = sluice::io;
using namespace sluice::test;
using io::control_tokens;
using io::token_kind;
using io::unknown_bytes;
using io::word_rule;
using sluice::token_id;

namespace {

std::vector<std::string> words_of(std::string_view text, word_rule rule) {
    std::vector<std::string> out;
    io::for_each_word(text, rule, [&](std::string_view word) { out.emplace_back(word); });
    return out;
}
using words = std::vector<std::string>;
using ids = std::vector<token_id>;

io::tokenizer_parts small() {
    io::tokenizer_parts p;
    p.tokens = {"<|end|>", "a", "b", "c", "\u0120", "ab", "\u0120ab", "abc", "<tab>", "<tab>s", "bc"};
    p.kinds.assign(p.tokens.size(), token_kind::normal);
    p.kinds[0] = token_kind::control;
    p.kinds[8] = p.kinds[9] = token_kind::user_defined;
    p.merges = {{"b", "c"}, {"a", "b"}, {"\u0120", "ab"}, {"ab", "c"}};
    return p;
}
std::string said(io::tokenizer_parts parts) {
    return complaint([&] { io::tokenizer("f", std::move(parts)); });
}
gguf_file small_file() {
    gguf_file f;
    const io::tokenizer_parts p = small();
    std::vector<gguf_bytes> tokens, kinds, merges;
    for (const auto& token : p.tokens) tokens.push_back(value_of(token));
    for (const auto kind : p.kinds)
        kinds.push_back({io::gguf_kind::i32, little(static_cast<std::uint32_t>(kind))});
    for (const auto& [a, b] : p.merges) merges.push_back(value_of(a + " " + b));
    f.set("tokenizer.ggml.model", value_of("gpt2"));
    f.set("tokenizer.ggml.pre", value_of("smollm"));
    f.set("tokenizer.ggml.tokens", array_of(tokens));
    f.set("tokenizer.ggml.token_type", array_of(kinds));
    f.set("tokenizer.ggml.merges", array_of(merges));
    f.set("tokenizer.ggml.bos_token_id", value_of(0U));
    f.set("tokenizer.ggml.eos_token_id", value_of(1U));
    f.set("tokenizer.ggml.add_bos_token", value_of(true));
    return f;
}
std::string said(const gguf_file& f) {
    return complaint([&] { (void)io::gguf_tokenizer(parse(f.str())); });
}

} // namespace

TEST_CASE("words as GPT-2 splits them") {
    const auto split = [](const char* text) { return words_of(text, word_rule::gpt2); };
    CHECK(split("") == words{});
    CHECK(split("Hello world") == words{"Hello", " world"});
    CHECK(split("I'll they've 'sx DON'T it's'd") ==
          words{"I", "'ll", " they", "'ve", " '", "sx", " DON", "'", "T", " it", "'s", "'d"});
    CHECK(split("a  b") == words{"a", " ", " b"});
    CHECK(split("a \n b\n\nc") == words{"a", " \n", " b", "\n", "\n", "c"});
    CHECK(split("a   ") == words{"a", "   "});
    CHECK(split("\t\tx") == words{"\t", "\t", "x"});
    CHECK(split("x1y 23 4.5") == words{"x", "1", "y", " 23", " 4", ".", "5"});
    CHECK(split("f(x); // y") == words{"f", "(", "x", ");", " //", " y"});
    CHECK(split("\u4e2d\u6587\uff0c\u5b57") == words{"\u4e2d\u6587", "\uff0c", "\u5b57"});
    CHECK(split("a\u3000\u3000b") == words{"a", "\u3000", "\u3000", "b"});
    CHECK(split("e\u0301 \u00bd\u2167") == words{"e", "\u0301", " \u00bd\u2167"});
    CHECK(split("a\xFF\xC3 \xC3") == words{"a", "\xFF\xC3", " \xC3"});
    CHECK(split(" ") == words{" "});
    CHECK(split("'") == words{"'"});
}

TEST_CASE("SmolLM sets every digit apart, and white space before it is at an end") {
    const auto split = [](const char* text) { return words_of(text, word_rule::smollm); };
    CHECK(split("x12 34") == words{"x", "1", "2", " ", "3", "4"});
    CHECK(split("a  1b") == words{"a", "  ", "1", "b"});
    CHECK(split("\u00bdx\uff11") == words{"\u00bd", "x", "\uff11"});
    CHECK(split("no digit  s") == words{"no", " digit", " ", " s"});
}

TEST_CASE("words are the text again, for any bytes") {
    std::mt19937 numbers(1);
    for (int i = 0; i < 300; ++i) {
        std::string text;
        for (auto n = numbers() % 200; n > 0; --n)
            text += static_cast<char>(numbers() % 3 != 0 ? " \n'st1a\xE4\xB8\xAD"[numbers() % 10]
                                                         : static_cast<char>(numbers() % 256));
        for (const word_rule rule : {word_rule::gpt2, word_rule::smollm}) {
            std::string all;
            for (const auto& word : words_of(text, rule)) {
                CHECK_FALSE(word.empty());
                all += word;
            }
            CHECK(all == text);
        }
    }
}

TEST_CASE("the lowest rank merges first, then the leftmost") {
    const io::tokenizer t("f", small());
    CHECK(t.size() == 11);
    CHECK(t.encode("abc") == ids{1, 10}); // bc before ab, so abc is never reached
    CHECK(t.encode("abab") == ids{5, 5});
    CHECK(t.encode(" ab") == ids{6});
    CHECK(t.encode("a b") == ids{1, 4, 2});
    CHECK(t.encode("") == ids{});
    CHECK(t.encode("bbc") == ids{2, 10});
    CHECK(t.decode(ids{6, 10, 4}) == " abbc ");
    CHECK(t.bytes(6) == " ab");
    CHECK(t.find("\u0120ab") == 6);
    CHECK_FALSE(t.find("x"));
}

TEST_CASE("special tokens: the longest one is found, control tokens by choice") {
    const io::tokenizer t("f", small());
    CHECK(t.encode("a<tab>sb<tab>a") == ids{1, 9, 2, 8, 1});
    CHECK(t.encode("a<|end|>b", {control_tokens::found}) == ids{1, 0, 2});
    CHECK(t.encode("<|end|>", {control_tokens::found}) == ids{0});
    CHECK_THROWS_AS(t.encode("a<|end|>b"), sluice::input_error);
    CHECK(t.encode("a<|end|>b", {control_tokens::as_text, unknown_bytes::skipped}) == ids{1, 2});
    CHECK(t.decode(ids{1, 0, 8}) == "a<|end|><tab>");
    CHECK(t.decode(ids{1, 0, 8}, control_tokens::found) == "a<tab>");
}

TEST_CASE("bytes and ids that are not there are refused") {
    const io::tokenizer t("f", small());
    CHECK(complaint([&] { (void)t.encode("ab\xFF"); }) == "tokenizer: no token stands for the byte 255");
    CHECK(t.encode("a\xFFz b", {control_tokens::as_text, unknown_bytes::skipped}) == ids{1, 4, 2});
    for (const token_id id : {-1, 11, std::numeric_limits<token_id>::max()})
        CHECK(complaint([&] {
                  (void)t.decode(ids{1, id});
              }) == "tokenizer: token " + std::to_string(id) + " is outside the vocabulary of 11");
}

TEST_CASE("parts that make no tokenizer are refused") {
    CHECK(said(small()) == "");
    auto p = small();
    p.tokens.clear();
    CHECK_THAT(said(p), contains_text("f: has 0 tokens"));
    p = small();
    p.kinds.pop_back();
    CHECK(said(p) == "f: has 11 tokens and 10 kinds of them");
    p = small();
    p.kinds[2] = static_cast<token_kind>(0);
    CHECK(said(p) == "f: token 2 is of the unknown kind 0");
    p = small();
    p.tokens[3] = "a";
    CHECK(said(p) == "f: \"a\" is token 1 and 3");
    p = small();
    p.eos = 11;
    CHECK(said(p) == "f: begins or ends texts with token 11 of 11");
    p = small();
    p.bos = -1;
    CHECK_THAT(said(p), contains_text("token -1 of 11"));
    for (const auto& merge : {std::pair<std::string, std::string>{"a", "x"}, {"x", "a"}, {"c", "c"}}) {
        p = small();
        p.merges.push_back(merge);
        CHECK(said(p) == "f: merge 4 of \"" + merge.first + "\" and \"" + merge.second +
                             "\": the parts or the whole are no tokens");
    }
    p = small();
    p.merges.push_back(p.merges[0]);
    CHECK(said(p) == "f: merge 4 of \"b\" and \"c\" is there twice");
}

TEST_CASE("a tokenizer of a GGUF file") {
    const io::tokenizer t = io::gguf_tokenizer(parse(small_file().str()));
    CHECK(t.words() == word_rule::smollm);
    CHECK((t.bos() == 0 && t.eos() == 1 && t.adds_bos()));
    CHECK(t.encode("a<|end|> ab<tab>", {control_tokens::found}) == ids{1, 0, 6, 8});
    CHECK(t.kind(8) == token_kind::user_defined);

    gguf_file f = small_file();
    f.set("tokenizer.ggml.pre", value_of("gpt-2"));
    f.values.erase(std::find_if(f.values.begin(), f.values.end(),
                                [](const auto& v) { return v.first == "tokenizer.ggml.token_type"; }));
    f.values.erase(std::find_if(f.values.begin(), f.values.end(),
                                [](const auto& v) { return v.first == "tokenizer.ggml.eos_token_id"; }));
    const io::tokenizer plain = io::gguf_tokenizer(parse(f.str()));
    CHECK(plain.words() == word_rule::gpt2);
    CHECK_FALSE(plain.eos());
    CHECK(plain.kind(0) == token_kind::normal);
}

TEST_CASE("a GGUF file without a tokenizer of the kind is refused") {
    const auto with = [](const std::string& key, const gguf_bytes& value) {
        gguf_file f = small_file();
        f.set("tokenizer.ggml." + key, value);
        return said(f);
    };
    CHECK(said(gguf_file{}) == "f: has no \"tokenizer.ggml.model\" in its metadata");
    CHECK(with("model", value_of("llama")) == "f: has a tokenizer of the kind \"llama\"; \"gpt2\" is read");
    CHECK(
        with("pre", value_of("llama-bpe")) ==
        "f: splits words by the rule \"llama-bpe\" (tokenizer.ggml.pre); \"gpt-2\" and \"smollm\" are known");
    CHECK_THAT(with("pre", value_of("")), contains_text("splits words by the rule \"\""));
    CHECK_THAT(with("tokens", value_of("a")), contains_text("must be an array of strings"));
    CHECK_THAT(with("tokens", array_of({})),
               contains_text("must be an array of strings") || contains_text("has 0 tokens"));
    CHECK(with("token_type", array_of({value_of(1U)})) == "f: has 11 tokens and 1 kinds of them");
    CHECK_THAT(with("bos_token_id", {io::gguf_kind::u64, little(std::uint64_t{1} << 32)}),
               contains_text("token 2147483647 of 11"));
    CHECK_THAT(with("eos_token_id", {io::gguf_kind::i64, little(~std::uint64_t{0})}),
               contains_text("token -1 of 11"));
    for (const char* merge : {"a", "", " ", "a ", " a", "a b c", "a  b"})
        CHECK(with("merges", array_of({value_of(merge)})) ==
              "f: the merge \"" + std::string(merge) + "\" must be two tokens with a space between");
    const std::string huge = [&] { // a kind that would wrap to 1
        gguf_file f = small_file();
        f.set("tokenizer.ggml.token_type",
              array_of(std::vector<gguf_bytes>(11, {io::gguf_kind::u32, little(257U)})));
        return said(f);
    }();
    CHECK(huge == "f: token 0 is of the unknown kind 0");
}

TEST_CASE("a long word takes n log n, not n squared") {
    io::tokenizer_parts p;
    std::string token = "a";
    for (int i = 0; i < 12; ++i, token += token) {
        p.tokens.push_back(token);
        if (i > 0) p.merges.emplace_back(p.tokens[p.tokens.size() - 2], p.tokens[p.tokens.size() - 2]);
    }
    p.kinds.assign(p.tokens.size(), token_kind::normal);
    const io::tokenizer t("f", p);
    const std::string text(1 << 20, 'a');
    const auto start = std::chrono::steady_clock::now();
    CHECK(t.encode(text) == ids(512, 11));
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(20)); // 0.3 s; n squared: hours
}

#if SLUICE_TEST_HAS_JSON
TEST_CASE("tokens of the package tokenizers, and back") {
    const io::gguf file(io::read(SLUICE_TEST_DIR "/data/llama.gguf"));
    const io::tokenizer t = io::gguf_tokenizer(file);
    const auto texts = golden("tokenizer_texts.json")["texts"];
    for (const auto& one : texts) {
        const std::string text = one["text"];
        INFO(one["name"]);
        const auto got = t.encode(text, {control_tokens::found});
        CHECK(got == one["smollm"].get<ids>());
        CHECK(t.decode(got) == text);
    }
}

TEST_CASE("any bytes are the same again") {
    const io::gguf file(io::read(SLUICE_TEST_DIR "/data/llama.gguf"));
    const io::tokenizer t = io::gguf_tokenizer(file);
    std::mt19937 numbers(2);
    for (int i = 0; i < 200; ++i) {
        std::string text;
        for (auto n = numbers() % 300; n > 0; --n) text += static_cast<char>(numbers() % 256);
        CHECK(t.decode(t.encode(text)) == text);
        CHECK(t.decode(t.encode(text, {control_tokens::found})) == text);
    }
}
#endif
