// Byte-level byte-pair encoding (Sennrich et al., "Neural machine translation of rare words with subword
// units", 2016; Radford et al., "Language models are unsupervised multitask learners", 2019): text to token
// ids and back, by the tokens and merges of a GGUF file. tokenizer_json.hpp reads those of Hugging Face.
//
// Words are split as GPT-2 or SmolLM do. Not read: SentencePiece and WordPiece, other rules for words.
#pragma once

#include "gguf.hpp"

#include <queue>
#include <unordered_map>

namespace sluice::io {

// How text is split into words, which tokens never cross. gpt2 is the regular expression
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
// and smollm the same between single characters of \p{N}. A byte that belongs to no character is no letter,
// number or space.
enum class word_rule { gpt2, smollm };

// As GGUF files number them.
enum class token_kind : std::uint8_t { normal = 1, unknown, control, user_defined, unused, byte };

// What a tokenizer is made of. Normal tokens and merges are in the alphabet of byte-level tokens, printable
// stand-ins for bytes; control and user-defined tokens are text.
struct tokenizer_parts {
    std::vector<std::string> tokens;                         // by id
    std::vector<token_kind> kinds;                           // of each
    std::vector<std::pair<std::string, std::string>> merges; // the first to merge first
    word_rule words = word_rule::gpt2;
    std::optional<token_id> bos{}, eos{}; // begins and ends a text
    bool adds_bos = false;                // whether the model expects bos before every text
};

enum class control_tokens { found, as_text };  // whether "<|im_end|>" in a text is one token
enum class unknown_bytes { refused, skipped }; // bytes that no token stands for: small vocabularies lack some
struct encode_options {
    control_tokens control = control_tokens::as_text;
    unknown_bytes unknown = unknown_bytes::refused;
};

inline namespace SLUICE_ISA {

namespace detail {

// Byte to stand-in: printable bytes stand for themselves, the rest for code points from 256 on, in order.
// Indexed by code point; -1 for others.
inline std::array<std::int32_t, 512> bytes_of_stand_ins() {
    std::array<std::int32_t, 512> bytes{};
    bytes.fill(-1);
    std::size_t next = 256;
    for (std::int32_t b = 0; b < 256; ++b) {
        const bool itself = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
        bytes[itself ? static_cast<std::size_t>(b) : next++] = b;
    }
    return bytes;
}

// What a token's string stands for; nothing where a character is no stand-in.
inline std::optional<std::string> bytes_of_token(std::string_view token) {
    static const auto bytes = bytes_of_stand_ins();
    std::string text;
    for (std::size_t at = 0; at < token.size();) {
        const std::int32_t c = next_code_point(token, at);
        const std::int32_t b = c >= 0 && c < 512 ? bytes[static_cast<std::size_t>(c)] : -1;
        if (b < 0) return {};
        text += static_cast<char>(b);
    }
    return text;
}

// The two tokens of a merge that is written as one string.
inline std::pair<std::string, std::string> merge_of(const std::string& where, std::string_view merge) {
    const std::size_t space = merge.find(' ');
    if (space == 0 || space + 1 >= merge.size() || space == merge.npos ||
        merge.find(' ', space + 1) != merge.npos)
        fail(where, "the merge \"" + std::string(merge.substr(0, 64)) +
                        "\" must be two tokens with a space between");
    return {std::string(merge.substr(0, space)), std::string(merge.substr(space + 1))};
}

// Where the match of gpt2's expression that begins at `at` ends; `at` is below the text's size.
inline std::size_t word_end(std::string_view text, std::size_t at) {
    const auto kind_at = [&](std::size_t& i) { return kind_of(next_code_point(text, i)); };
    const std::string_view rest = text.substr(at);
    for (const std::string_view part : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"})
        if (rest.starts_with(part)) return at + part.size();
    std::size_t first = at; // of the run: one space may stand before it
    if (rest.front() == ' ' && rest.size() > 1) {
        std::size_t after = at + 1;
        if (kind_at(after) != unicode_kind::space) first = at + 1;
    }
    std::size_t end = first;
    const unicode_kind run = kind_at(end);
    std::size_t last = first; // where the run's last character begins
    for (std::size_t next = end; next < text.size(); end = next) {
        const std::size_t begin = next;
        if (kind_at(next) != run) break;
        last = begin;
    }
    // The last of several spaces belongs to the word behind them.
    if (run == unicode_kind::space && end < text.size() && last > first) return last;
    return end;
}

} // namespace detail

// Calls f with each word of the text, in order; together they are the text.
template <class F>
void for_each_word(std::string_view text, word_rule rule, F&& f) {
    const auto words_of = [&](std::string_view part) {
        for (std::size_t at = 0; at < part.size();) {
            const std::size_t end = detail::word_end(part, at);
            f(part.substr(at, end - at));
            at = end;
        }
    };
    if (rule == word_rule::gpt2) return words_of(text);
    std::size_t done = 0;
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t begin = at;
        if (kind_of(next_code_point(text, at)) != unicode_kind::number) continue;
        words_of(text.substr(done, begin - done));
        f(text.substr(begin, at - begin));
        done = at;
    }
    words_of(text.substr(done));
}

class tokenizer {
public:
    // Throws input_error, its message beginning with `where`, unless every token has a kind and is there
    // once, and every merge is of two tokens into a third.
    tokenizer(const std::string& where, tokenizer_parts parts) : parts_(std::move(parts)) {
        if (parts_.tokens.empty() || parts_.tokens.size() > most_tokens)
            detail::fail(where, "has " + std::to_string(parts_.tokens.size()) + " tokens, must be 1 to " +
                                    std::to_string(most_tokens));
        if (parts_.kinds.size() != parts_.tokens.size())
            detail::fail(where, "has " + std::to_string(parts_.tokens.size()) + " tokens and " +
                                    std::to_string(parts_.kinds.size()) + " kinds of them");
        for (const auto& id : {parts_.bos, parts_.eos})
            if (id && (*id < 0 || *id >= size()))
                detail::fail(where, "begins or ends texts with token " + std::to_string(*id) + " of " +
                                        std::to_string(size()));
        bytes_of_byte_.fill(-1);
        for (token_id id = 0; id < size(); ++id) add_token(where, id);
        for (auto& [first, specials] : found_)
            std::stable_sort(specials.begin(), specials.end(),
                             [&](token_id a, token_id b) { return bytes(a).size() > bytes(b).size(); });
        add_merges(where);
    }

    idx size() const { return static_cast<idx>(parts_.tokens.size()); }
    word_rule words() const { return parts_.words; }
    std::optional<token_id> bos() const { return parts_.bos; }
    std::optional<token_id> eos() const { return parts_.eos; }
    bool adds_bos() const { return parts_.adds_bos; }
    // What the token stands for: maybe a part of a character. `id` must be in the vocabulary.
    const std::string& bytes(token_id id) const { return bytes_[static_cast<std::size_t>(id)]; }
    token_kind kind(token_id id) const { return parts_.kinds[static_cast<std::size_t>(id)]; }
    // Its string in the file, and by it.
    const std::string& token(token_id id) const { return parts_.tokens[static_cast<std::size_t>(id)]; }
    std::optional<token_id> find(const std::string& token) const {
        const auto at = ids_.find(token);
        return at == ids_.end() ? std::nullopt : std::optional(at->second);
    }

    // The first to merge first.
    std::vector<std::pair<token_id, token_id>> merges() const {
        std::vector<std::pair<token_id, token_id>> all(merges_.size());
        for (const auto& [pair, m] : merges_)
            all[static_cast<std::size_t>(m.rank)] = {static_cast<token_id>(pair >> 32),
                                                     static_cast<token_id>(pair & 0xFFFFFFFFU)};
        return all;
    }

    // The tokens of any bytes. User-defined tokens are always found in the text, the longest first, control
    // tokens by choice; bos is not added. Throws input_error for a byte that no token stands for, unless they
    // are skipped.
    std::vector<token_id> encode(std::string_view text, const encode_options& options = {}) const {
        std::vector<token_id> out;
        std::size_t done = 0;
        const auto words_until = [&](std::size_t end) {
            for_each_word(text.substr(done, end - done), parts_.words,
                          [&](std::string_view word) { encode_word(word, options.unknown, out); });
        };
        for (std::size_t at = 0; at < text.size() && !found_.empty();) {
            const auto special = special_at(text.substr(at), options.control);
            if (!special) {
                ++at;
                continue;
            }
            words_until(at);
            out.push_back(*special);
            done = at += bytes(*special).size();
        }
        words_until(text.size());
        return out;
    }

    // The bytes of the tokens; those of control tokens are left out unless they are to be text. Throws
    // input_error for an id outside the vocabulary.
    std::string decode(std::span<const token_id> ids,
                       control_tokens control = control_tokens::as_text) const {
        std::string out;
        for (const token_id id : ids) {
            if (id < 0 || id >= size())
                SLUICE_THROW(input_error("tokenizer: token " + std::to_string(id) +
                                         " is outside the vocabulary of " + std::to_string(size())));
            if (kind(id) != token_kind::control || control == control_tokens::as_text) out += bytes(id);
        }
        return out;
    }

private:
    static constexpr std::size_t most_tokens = std::size_t{1} << 24;
    struct merge {
        std::int32_t rank;
        token_id into;
    };
    static std::uint64_t pair_of(token_id a, token_id b) {
        return std::uint64_t{static_cast<std::uint32_t>(a)} << 32 | static_cast<std::uint32_t>(b);
    }

    void add_token(const std::string& where, token_id id) {
        const auto i = static_cast<std::size_t>(id);
        const std::string& token = parts_.tokens[i];
        const token_kind kind = parts_.kinds[i];
        if (kind < token_kind::normal || kind > token_kind::byte)
            detail::fail(where, "token " + std::to_string(id) + " is of the unknown kind " +
                                    std::to_string(static_cast<int>(kind)));
        if (!ids_.emplace(token, id).second)
            detail::fail(where, "\"" + token.substr(0, 64) + "\" is token " + std::to_string(ids_[token]) +
                                    " and " + std::to_string(id));
        const bool text = kind == token_kind::control || kind == token_kind::user_defined;
        const auto decoded = text ? std::nullopt : detail::bytes_of_token(token);
        bytes_.push_back(decoded.value_or(token));
        if (text && !token.empty()) found_[token.front()].push_back(id);
        if (decoded && decoded->size() == 1)
            bytes_of_byte_[static_cast<unsigned char>(decoded->front())] = id;
    }
    void add_merges(const std::string& where) {
        if (parts_.merges.size() > most_tokens)
            detail::fail(where, "has " + std::to_string(parts_.merges.size()) + " merges");
        for (std::size_t rank = 0; rank < parts_.merges.size(); ++rank) {
            const auto& [a, b] = parts_.merges[rank];
            const auto left = find(a), right = find(b), into = find(a + b);
            const std::string name = "merge " + std::to_string(rank) + " of \"" + a.substr(0, 64) +
                                     "\" and \"" + b.substr(0, 64) + "\"";
            if (!left || !right || !into)
                detail::fail(where, name + ": the parts or the whole are no tokens");
            if (!merges_.emplace(pair_of(*left, *right), merge{static_cast<std::int32_t>(rank), *into})
                     .second)
                detail::fail(where, name + " is there twice");
        }
        parts_.merges = {};
    }
    // The longest special token that the text begins with.
    std::optional<token_id> special_at(std::string_view text, control_tokens control) const {
        const auto candidates = found_.find(text.front());
        if (candidates == found_.end()) return {};
        for (const token_id id : candidates->second)
            if ((kind(id) == token_kind::user_defined || control == control_tokens::found) &&
                text.starts_with(bytes(id)))
                return id;
        return {};
    }

    // Merges the pair of the lowest rank, the leftmost of equal ones, until there is none: n log n for n
    // bytes.
    void encode_word(std::string_view word, unknown_bytes unknown, std::vector<token_id>& out) const {
        struct part {
            token_id id; // -1: merged into the one before
            std::size_t before, after;
        };
        struct candidate {
            std::int32_t rank;
            std::size_t left;
            std::uint64_t pair; // as it was: parts may have been merged since
            bool operator>(const candidate& o) const {
                return rank != o.rank ? rank > o.rank : left > o.left;
            }
        };
        constexpr std::size_t none = ~std::size_t{0};
        std::vector<part> parts;
        for (const char c : word) {
            const token_id id = bytes_of_byte_[static_cast<unsigned char>(c)];
            if (id < 0 && unknown == unknown_bytes::refused)
                SLUICE_THROW(input_error("tokenizer: no token stands for the byte " +
                                         std::to_string(static_cast<unsigned char>(c))));
            if (id < 0) continue;
            if (!parts.empty()) parts.back().after = parts.size();
            parts.push_back({id, parts.empty() ? none : parts.size() - 1, none});
        }
        std::priority_queue<candidate, std::vector<candidate>, std::greater<>> queue;
        const auto offer = [&](std::size_t left) {
            if (left == none || parts[left].after == none) return;
            const std::uint64_t pair = pair_of(parts[left].id, parts[parts[left].after].id);
            if (const auto known = merges_.find(pair); known != merges_.end())
                queue.push({known->second.rank, left, pair});
        };
        for (std::size_t i = 0; i + 1 < parts.size(); ++i) offer(i);
        while (!queue.empty()) {
            const candidate best = queue.top();
            queue.pop();
            part& left = parts[best.left];
            if (left.id < 0 || left.after == none) continue;
            part& right = parts[left.after];
            if (pair_of(left.id, right.id) != best.pair) continue;
            left.id = merges_.at(best.pair).into;
            right.id = -1;
            left.after = right.after;
            if (right.after != none) parts[right.after].before = best.left;
            offer(left.before);
            offer(best.left);
        }
        for (const part& p : parts)
            if (p.id >= 0) out.push_back(p.id);
    }

    tokenizer_parts parts_;
    std::vector<std::string> bytes_; // by id
    std::unordered_map<std::string, token_id> ids_;
    std::unordered_map<std::uint64_t, merge> merges_;
    std::unordered_map<char, std::vector<token_id>> found_; // control and user-defined, by their first byte
    std::array<token_id, 256> bytes_of_byte_{};
};

// The tokenizer of a GGUF file. Throws input_error where it has none, or one of another kind.
inline tokenizer gguf_tokenizer(const gguf& source) {
    const std::string prefix = "tokenizer.ggml.";
    const std::string_view model = source.text(prefix + "model"), words = source.text(prefix + "pre", "");
    if (model != "gpt2")
        detail::fail(source.path(),
                     "has a tokenizer of the kind \"" + std::string(model) + "\"; \"gpt2\" is read");
    tokenizer_parts parts;
    if (words == "smollm")
        parts.words = word_rule::smollm;
    else if (words != "gpt-2" && words != "gpt2")
        detail::fail(source.path(), "splits words by the rule \"" + std::string(words) + "\" (" + prefix +
                                        "pre); \"gpt-2\" and \"smollm\" are known");
    for (const std::string_view token : source.texts(prefix + "tokens")) parts.tokens.emplace_back(token);
    parts.kinds.assign(parts.tokens.size(), token_kind::normal);
    if (source.has_value(prefix + "token_type")) {
        parts.kinds.clear();
        for (const std::int64_t kind : source.integers(prefix + "token_type"))
            parts.kinds.push_back(static_cast<token_kind>(kind >= 1 && kind <= 6 ? kind : 0));
    }
    for (const std::string_view merge : source.texts(prefix + "merges"))
        parts.merges.push_back(detail::merge_of(source.path(), merge));
    const auto special = [&](const char* key) -> std::optional<token_id> {
        if (!source.has_value(prefix + key)) return {};
        const std::int64_t id = source.integer(prefix + key);
        return static_cast<token_id>(std::clamp<std::int64_t>(id, -1, std::numeric_limits<token_id>::max()));
    };
    parts.bos = special("bos_token_id");
    parts.eos = special("eos_token_id");
    parts.adds_bos = source.boolean(prefix + "add_bos_token", false);
    return {source.path(), std::move(parts)};
}

} // namespace SLUICE_ISA
} // namespace sluice::io
