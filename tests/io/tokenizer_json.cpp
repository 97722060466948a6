#include "support/catch.hpp"
#include "support/golden.hpp"
#include "support/scratch_folder.hpp"

#if SLUICE_TEST_HAS_JSON
#    include <sluice/io/tokenizer_json.hpp>

namespace io = sluice::io;
using namespace sluice::test;
using io::control_tokens;
using sluice::token_id;

namespace {

using ids = std::vector<token_id>;

io::tokenizer read(const std::string& text) {
    return io::json_tokenizer(io::from_memory(bytes_of(text), "f"));
}
std::string said(const std::string& text) {
    return complaint([&] { (void)read(text); });
}
json small() {
    return json::parse(R"({
        "added_tokens": [
            {"id": 4, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
            {"id": 5, "content": "<tab>", "special": false}],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "ByteLevel", "trim_offsets": false},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "byte_fallback": false, "ignore_merges": false,
                  "continuing_subword_prefix": "", "end_of_word_suffix": null,
                  "vocab": {"a": 0, "b": 1, "ab": 2, "abab": 3}, "merges": ["a b", ["ab", "ab"]]}})");
}
// The complaint about a file where the value at the pointer is another one.
std::string with(const char* pointer, const json& value) {
    json file = small();
    file[json::json_pointer(pointer)] = value;
    return said(file.dump());
}

} // namespace

TEST_CASE("tokenizer.json: tokens, merges in both forms, added tokens") {
    const io::tokenizer t = read(small().dump());
    CHECK(t.size() == 6);
    CHECK(t.words() == io::word_rule::gpt2);
    CHECK(t.encode("ababab") == ids{3, 2});
    CHECK(t.encode("ab<tab><|end|>a", {control_tokens::found}) == ids{2, 5, 4, 0});
    CHECK((t.kind(4) == io::token_kind::control && t.kind(5) == io::token_kind::user_defined));
    CHECK((!t.bos() && !t.eos() && !t.adds_bos()));
}

TEST_CASE("tokenizer.json: the rule of words") {
    const json bytes = small()["pre_tokenizer"], digits = {{"type", "Digits"}, {"individual_digits", true}};
    json file = small();
    const auto sequence = [](const json& parts) {
        return json{{"type", "Sequence"}, {"pretokenizers", parts}};
    };
    file["pre_tokenizer"] = sequence({digits, bytes});
    CHECK(read(file.dump()).words() == io::word_rule::smollm);

    const std::string known = "\"; ByteLevel, and Digits before it, are known";
    CHECK(with("/pre_tokenizer", nullptr) == "f: splits words by the rule \"" + known);
    CHECK_THAT(with("/pre_tokenizer", sequence({bytes, digits})),
               contains_text("type ByteLevel, ") && contains_text(known));
    CHECK_THAT(with("/pre_tokenizer", sequence({digits, digits, bytes})), contains_text(known));
    CHECK_THAT(with("/pre_tokenizer/add_prefix_space", true), contains_text("add_prefix_space true"));
    CHECK_THAT(with("/pre_tokenizer/use_regex", false), contains_text("use_regex false"));
    CHECK_THAT(with("/pre_tokenizer/type", "Metaspace"), contains_text("type Metaspace"));
    const json split = {{"type", "Split"},
                        {"pattern", {{"Regex", "\\p{N}{1,3}"}}},
                        {"behavior", "Isolated"},
                        {"invert", false}};
    CHECK_THAT(with("/pre_tokenizer", sequence({split, bytes})), contains_text("Regex "));
}

TEST_CASE("tokenizer.json: what would change the tokens is refused") {
    CHECK(with("/model/type", "Unigram") == "f: has a tokenizer of the kind \"Unigram\"; \"BPE\" is read");
    CHECK(with("/normalizer", {{"type", "NFC"}}) == "f: asks for \"normalizer\", which is not read");
    CHECK(with("/model/dropout", 0.1) == "f: asks for \"model.dropout\", which is not read");
    CHECK(with("/model/byte_fallback", true) == "f: asks for \"model.byte_fallback\", which is not read");
    CHECK(with("/model/ignore_merges", true) == "f: asks for \"model.ignore_merges\", which is not read");
    CHECK(with("/model/end_of_word_suffix", "</w>") ==
          "f: asks for \"model.end_of_word_suffix\", which is not read");
    CHECK(with("/model/continuing_subword_prefix", "##") ==
          "f: asks for \"model.continuing_subword_prefix\", which is not read");
    for (const std::string flag : {"lstrip", "rstrip", "single_word"})
        CHECK(with(("/added_tokens/0/" + flag).c_str(), true) ==
              "f: asks for \"added_tokens." + flag + "\", which is not read");
    CHECK(with("/added_tokens/0/normalized", true) == "");
}

TEST_CASE("tokenizer.json: what is none is refused") {
    for (const char* text :
         {"", "[]", "\"a\"", "1", "null", "{}", "[\"model\"]", "[1, 2.5, true, null]", R"({"model": []})",
          R"({"model": {"merges": "a b"}})", R"({"added_tokens": [[]]})"})
        CHECK(said(text) != "");
    CHECK(with("/model/merges", json::parse(R"([["a"]])")) == "f: a merge has 1 parts");
    CHECK(with("/model/merges", json::parse(R"([["a", "b", "ab"]])")) == "f: a merge has 3 parts");
    CHECK(with("/model/merges", json::parse("[[]]")) == "f: a merge has 0 parts");
    CHECK(with("/model/merges", json::parse(R"([{"a": "b"}])")) ==
          "f: asks for \"model.merges\", which is not read");
    CHECK(with("/model/merges", json::parse(R"([[["a", "b"]]])")) ==
          "f: asks for \"model.merges\", which is not read");
    CHECK(with("/model/merges", json::parse("[1]")) == "f: asks for \"model.merges\", which is not read");
    CHECK(with("/model/merges", "a b") == "f: asks for \"model.merges\", which is not read");
    CHECK_THAT(with("/model/merges", json::parse(R"(["a"])")),
               contains_text("must be two tokens with a space between"));
    CHECK_THAT(with("/model/merges", json::parse(R"(["b b"])")),
               contains_text("the parts or the whole are no tokens"));
    CHECK(with("/model/vocab/c", 7) == "f: no token has id 6");
    CHECK_THAT(with("/model/vocab/c", 0), contains_text("id 0 is"));
    CHECK_THAT(with("/added_tokens/0/id", 0), contains_text("id 0 is"));
    json file = small();
    file["added_tokens"].push_back({{"id", 1000000}, {"special", true}});
    CHECK(said(file.dump()) == "f: the added token 1000000 has no content");
}

TEST_CASE("tokenizer.json: tokens of the package tokenizers by both rules") {
    const std::string path = SLUICE_TEST_DIR "/data/tokenizer.json";
    const io::tokenizer smollm = io::json_tokenizer(io::read(path));
    json file = json::parse(get(path));
    file["pre_tokenizer"] = small()["pre_tokenizer"];
    const io::tokenizer gpt2 = read(file.dump());
    const auto texts = golden("tokenizer_texts.json")["texts"];
    for (const auto& one : texts) {
        const std::string text = one["text"];
        INFO(one["name"]);
        CHECK(smollm.encode(text, {control_tokens::found}) == one["smollm"].get<ids>());
        CHECK(gpt2.encode(text, {control_tokens::found}) == one["gpt2"].get<ids>());
    }
}
#endif
