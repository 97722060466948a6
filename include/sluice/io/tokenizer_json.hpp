// tokenizer.json of Hugging Face with byte-level pairs, as a tokenizer. What begins and ends a text is not in
// it, and tokens that its post-processor would add are not added.
#pragma once

#include "json.hpp"
#include "tokenizer.hpp"

namespace sluice::io {
inline namespace SLUICE_ISA {

namespace detail {

inline constexpr json_limits tokenizer_json_limits{.depth = 32, .keys = 10'000'000};

// The tokens of the vocabulary and those added to it, by id.
class token_reader {
public:
    explicit token_reader(const std::string& where) : where_(where) {}
    std::map<std::uint64_t, std::string> tokens;

    void open(const json_place& at, bool array) {
        if (!array && added(at)) id_set_ = content_set_ = false;
    }
    void close(const json_place&) {}
    void text(const json_place& at, std::string& value) {
        if (!added(at) || at.keys.back() != "content") return;
        content_ = value;
        content_set_ = true;
        if (id_set_) add(id_, content_);
    }
    void number(const json_place& at, std::uint64_t value) {
        if (at.keys.size() == 3 && at.keys[0] == "model" && at.keys[1] == "vocab")
            return add(value, at.keys[2]);
        if (!added(at) || at.keys.back() != "id") return;
        id_ = value;
        id_set_ = true;
        if (content_set_) add(id_, content_);
    }
    void other(const json_place&) {}

    // Throws input_error unless the ids are 0, 1, 2 and so on.
    std::vector<std::string> in_order() {
        if (tokens.empty()) fail(where_, "no \"model\".\"vocab\" of tokens and ids");
        std::vector<std::string> out;
        for (auto& [id, token] : tokens) {
            if (id != out.size()) fail(where_, "no token has id " + std::to_string(out.size()));
            out.push_back(std::move(token));
        }
        return out;
    }

protected:
    static bool added(const json_place& at) { return !at.keys.empty() && at.keys[0] == "added_tokens"; }
    const std::string& where_;
    std::uint64_t id_ = 0; // of the added token that is read
    bool id_set_ = false;

private:
    void add(std::uint64_t id, const std::string& token) {
        const auto [at, is_new] = tokens.emplace(id, token);
        if (!is_new && at->second != token)
            fail(where_, "id " + std::to_string(id) + " is \"" + at->second.substr(0, 64) + "\" and \"" +
                             token.substr(0, 64) + "\"");
    }
    std::string content_;
    bool content_set_ = false;
};

// Besides, the merges and everything that changes what a text becomes.
class tokenizer_json_reader : public token_reader {
public:
    using token_reader::token_reader;
    std::vector<std::pair<std::string, std::string>> merges;
    std::map<std::uint64_t, token_kind> added_kinds;
    std::string type;

    void open(const json_place& at, bool array) {
        token_reader::open(at, array);
        if (!array && at.keys.size() == 1 && at.keys[0] == "normalizer") refuse(at);
        if (!array && added(at)) special_ = false;
        if (is(at, "merges") && (at.depth > 3 || !array)) refuse(at);
        pair_.clear();
    }
    void close(const json_place& at) {
        if (at.depth == 2 && added(at) && id_set_)
            added_kinds[id_] = special_ ? token_kind::control : token_kind::user_defined;
        if (!is(at, "merges") || at.depth != 3) return;
        if (pair_.size() != 2) fail(where_, "a merge has " + std::to_string(pair_.size()) + " parts");
        merges.emplace_back(std::move(pair_[0]), std::move(pair_[1]));
        pair_.clear();
    }
    void text(const json_place& at, std::string& value) {
        token_reader::text(at, value);
        if (is(at, "type")) type = value;
        if ((is(at, "continuing_subword_prefix") || is(at, "end_of_word_suffix")) && !value.empty())
            refuse(at);
        if (in_words(at)) rules_.push_back(at.keys.back() + " " + value);
        if (!is(at, "merges")) return;
        if (at.depth < 3) refuse(at);
        if (at.depth == 4) return pair_.push_back(std::move(value));
        merges.push_back(merge_of(where_, value));
    }
    void number(const json_place& at, std::uint64_t value) {
        if (is(at, "merges")) refuse(at);
        token_reader::number(at, value);
    }
    void boolean(const json_place& at, bool value) {
        const bool wrong = is(at, "byte_fallback") || is(at, "ignore_merges");
        const bool stripped = added(at) && at.keys.back() != "special" && at.keys.back() != "normalized";
        if (value && (wrong || stripped)) refuse(at);
        if (added(at) && at.keys.back() == "special") special_ = value;
        if (in_words(at) && at.keys.back() != "trim_offsets")
            rules_.push_back(at.keys.back() + (value ? " true" : " false"));
    }
    void real(const json_place& at, double) const {
        if (is(at, "dropout")) refuse(at);
    }

    word_rule words() const {
        using rules = std::vector<std::string>;
        rules known = rules_;
        const auto place = [&](const char* rule) { return std::find(rules_.begin(), rules_.end(), rule); };
        const bool digits_first = place("type Digits") < place("type ByteLevel");
        std::sort(known.begin(), known.end());
        const rules gpt2{"add_prefix_space false", "type ByteLevel", "use_regex true"};
        const rules smollm{"add_prefix_space false", "individual_digits true",
                           "type ByteLevel",         "type Digits",
                           "type Sequence",          "use_regex true"};
        if (known == gpt2) return word_rule::gpt2;
        if (known == smollm && digits_first) return word_rule::smollm;
        std::string all;
        for (const std::string& rule : rules_) all += (all.empty() ? "" : ", ") + rule.substr(0, 128);
        fail(where_, "splits words by the rule \"" + all + "\"; ByteLevel, and Digits before it, are known");
    }

private:
    static bool is(const json_place& at, const char* key) {
        return at.keys.size() == 2 && at.keys[0] == "model" && at.keys[1] == key;
    }
    static bool in_words(const json_place& at) { return !at.keys.empty() && at.keys[0] == "pre_tokenizer"; }
    [[noreturn]] void refuse(const json_place& at) const {
        std::string path;
        for (const std::string& key : at.keys) path.append(path.empty() ? "" : ".").append(key, 0, 64);
        fail(where_, "asks for \"" + path + "\", which is not read");
    }

    std::vector<std::string> rules_, pair_;
    bool special_ = false;
};

} // namespace detail

// Throws input_error where the file is no tokenizer of the kind, or asks for what is not read.
inline tokenizer json_tokenizer(const file& source) {
    const auto bytes = source.bytes();
    detail::tokenizer_json_reader reader(source.path());
    read_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, source.path(), reader,
              detail::tokenizer_json_limits);
    if (reader.type != "BPE")
        detail::fail(source.path(),
                     "has a tokenizer of the kind \"" + reader.type.substr(0, 64) + "\"; \"BPE\" is read");
    tokenizer_parts parts;
    parts.words = reader.words();
    parts.tokens = reader.in_order();
    parts.kinds.assign(parts.tokens.size(), token_kind::normal);
    for (const auto& [id, kind] : reader.added_kinds) {
        if (id >= parts.kinds.size())
            detail::fail(source.path(), "the added token " + std::to_string(id) + " has no content");
        parts.kinds[static_cast<std::size_t>(id)] = kind;
    }
    parts.merges = std::move(reader.merges);
    return {source.path(), std::move(parts)};
}

} // namespace SLUICE_ISA
} // namespace sluice::io
