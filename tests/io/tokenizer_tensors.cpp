#include "support/catch.hpp"
#include "support/golden.hpp"
#include "support/scratch_folder.hpp"

#if SLUICE_TEST_HAS_JSON
#    include <sluice/io/tokenizer_tensors.hpp>

namespace io = sluice::io;
using namespace sluice::test;
using sluice::idx;
using sluice::tensor_view;
using sluice::token_id;

namespace {

io::tokenizer small(io::word_rule rule = io::word_rule::smollm) {
    using kind = io::token_kind;
    return {"f",
            {.tokens = {"a", "b", "ab", "abab", "<|end|>", "a\nb", "1"},
             .kinds = {kind::normal, kind::normal, kind::normal, kind::normal, kind::control,
                       kind::user_defined, kind::normal},
             .merges = {{"a", "b"}, {"ab", "ab"}},
             .words = rule,
             .eos = 4,
             .adds_bos = true}};
}
// Bytes of a file with the tokenizer, after `change` has added to it what it will.
template <class F>
std::string written(const io::tokenizer& words, const F& change) {
    const scratch_folder folder("tokenizer_tensors");
    io::safetensors_writer writer;
    io::save_tokenizer(writer, words);
    change(writer);
    writer.save(folder / "f");
    return get(folder / "f");
}
io::tokenizer load(const std::string& bytes) {
    return io::load_tokenizer(io::from_memory(bytes_of(bytes), "f"));
}

} // namespace

TEST_CASE("a tokenizer comes back as it was") {
    for (const auto rule : {io::word_rule::smollm, io::word_rule::gpt2}) {
        const io::tokenizer was = small(rule), is = load(written(was, [](auto&) {}));
        CHECK(is.size() == was.size());
        CHECK(is.words() == rule);
        CHECK((is.eos() == 4 && !is.bos() && is.adds_bos()));
        for (token_id id = 0; id < was.size(); ++id) {
            CHECK(is.token(id) == was.token(id));
            CHECK(is.bytes(id) == was.bytes(id));
            CHECK(is.kind(id) == was.kind(id));
        }
        CHECK(is.merges() == was.merges());
        CHECK(is.merges() == std::vector<std::pair<token_id, token_id>>{{0, 1}, {2, 2}});
        const std::string text = "ababab11<|end|>a\nbab";
        CHECK(is.encode(text, {io::control_tokens::found}) == was.encode(text, {io::control_tokens::found}));
    }
}

TEST_CASE("a tokenizer whose tensors or metadata are wrong is an error") {
    const auto said = [](const auto& change) {
        return complaint([&] { (void)load(written(small(), change)); });
    };
    const auto metadata = [&](const char* key, const char* value) {
        return said([&](auto& writer) { writer.metadata(std::string("tokenizer.") + key, value); });
    };
    for (const auto& [key, value] : {std::pair{"words", "llama3"}, {"adds_bos", "1"}, {"eos", "4x"}})
        CHECK(metadata(key, value) ==
              "f: tokenizer." + std::string(key) + " of the metadata is missing or unknown");
    CHECK_THAT(metadata("bos", "7"), contains_text("token 7 of 7"));

    // A tensor of other numbers in place of one of these.
    const std::string whole = written(small(), [](auto&) {});
    const auto with = [&]<class T>(const char* name, std::vector<T> values, idx cols) {
        const scratch_folder folder("tokenizer_tensors");
        const io::safetensors file = io::from_memory(bytes_of(whole), "f");
        io::safetensors_writer writer;
        for (const auto& [key, value] : file.metadata()) writer.metadata(key, value);
        for (const auto& [other, t] : file.tensors())
            if (other != name) writer.add_bytes(other, t.type, t.shape, t.bytes);
        if (cols > 0)
            writer.add(name, tensor_view<T>(values.data(), static_cast<idx>(values.size()) / cols, cols));
        writer.save(folder / "f");
        return complaint([&] { (void)load(get(folder / "f")); });
    };
    using i32 = std::vector<std::int32_t>;
    CHECK(with("tokenizer.kinds", i32{}, 0) == "f: has no tokenizer.kinds");
    CHECK_THAT(with("tokenizer.kinds", i32{1, 1, 1, 1, 3, 4, 1}, 1),
               contains_text("must be U8 [n, 1], is I32"));
    CHECK_THAT(with("tokenizer.kinds", std::vector<std::uint8_t>{1, 1, 1, 1, 3, 4, 9}, 1),
               contains_text("unknown kind 9"));
    CHECK_THAT(with("tokenizer.kinds", std::vector<std::uint8_t>{1, 1}, 1), contains_text("2 kinds"));
    for (const auto& lengths : {i32{1, 1, 2, 4, 7, 3, 2}, i32{1, 1, 2, 4, 7, 3}, i32{-1, 1, 2, 4, 7, 3, 1},
                                i32{1, 1, 2, 4, 7, 3, 0x7FFFFFFF}})
        CHECK(with("tokenizer.lengths", lengths, 1) == "f: tokenizer.lengths do not fit tokenizer.tokens");
    CHECK(with("tokenizer.merges", i32{0, 7}, 2) == "f: tokenizer.merges has the token 7 of 7");
    CHECK(with("tokenizer.merges", i32{-1, 0}, 2) == "f: tokenizer.merges has the token -1 of 7");
    CHECK_THAT(with("tokenizer.merges", i32{0, 0}, 2), contains_text("the parts or the whole are no tokens"));
    CHECK_THAT(with("tokenizer.merges", i32{0, 1, 2}, 1), contains_text("must be I32 [n, 2]"));
    CHECK(with("tokenizer.merges", i32{0, 1, 2, 2}, 2) == "");
}
#endif
