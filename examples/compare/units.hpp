// The text of a comparison as the units that models read: its bytes, or tokens of a published tokenizer. Of
// its tokens those are kept that the text to learn has most often, and bytes stand for all others: an
// embedding of every token would be many times as large as the models here.
#pragma once

#include "candidate.hpp"

#include "support/corpus.hpp"

#include <sluice/io/gguf.hpp>
#include <sluice/io/tokenizer_json.hpp>
#if defined(SLUICE_HAS_ICU)
#    include <sluice/io/vocabulary.hpp>
#endif

#include <algorithm>
#include <map>
#include <optional>
#include <unordered_map>

namespace sluice::examples {

class units {
public:
    units() { // bytes
        for (int b = 0; b < 256; ++b) bytes_.push_back(std::string(1, static_cast<char>(b)));
    }
    // 256 bytes and the most frequent tokens, `size` units in all.
    units(const std::string& tokenizer, idx size, const std::vector<std::uint8_t>& to_learn) : units() {
        const io::file file = io::read(tokenizer);
        tokenizer_ =
            tokenizer.ends_with(".gguf") ? io::gguf_tokenizer(io::gguf(file)) : io::json_tokenizer(file);
        std::unordered_map<token_id, idx> count;
        for (const token_id id : tokens_of(text_of(to_learn))) ++count[id];
        std::vector<std::pair<idx, token_id>> order;
        for (const auto& [id, n] : count)
            if (tokenizer_->bytes(id).size() > 1) order.emplace_back(-n, id);
        std::sort(order.begin(), order.end());
        order.resize(std::min(order.size(), static_cast<std::size_t>(size - 256)));
        for (const auto& [n, id] : order) {
            kept_.emplace(id, static_cast<token_id>(bytes_.size()));
            bytes_.push_back(tokenizer_->bytes(id));
        }
        compress();
    }

    idx size() const { return static_cast<idx>(bytes_.size()); }
    idx bytes(token_id unit) const { return static_cast<idx>(bytes_[static_cast<std::size_t>(unit)].size()); }
    // What Engram takes for the same: ids of `compressed_size`; empty: each unit is itself.
    const std::vector<std::int32_t>& compressed() const { return compressed_; }
    idx compressed_size() const { return compressed_.empty() ? size() : compressed_size_; }

    std::vector<token_id> encode(std::string_view text) const {
        std::vector<token_id> out;
        auto spell = [&](std::string_view some) {
            for (const char c : some) out.push_back(static_cast<std::uint8_t>(c));
        };
        if (!tokenizer_) {
            spell(text);
            return out;
        }
        for (const token_id id : tokens_of(text))
            if (const auto kept = kept_.find(id); kept != kept_.end())
                out.push_back(kept->second);
            else
                spell(tokenizer_->bytes(id));
        return out;
    }
    std::string decode(std::span<const token_id> ids) const {
        std::string text;
        for (const token_id id : ids) text += bytes_[static_cast<std::size_t>(id)];
        return text;
    }

    static std::string_view text_of(const std::vector<std::uint8_t>& bytes) {
        return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
    }

private:
    std::vector<token_id> tokens_of(std::string_view text) const { return tokenizer_->encode(text); }

    // Units that read alike but for case, accents and white space become one.
    void compress() {
#if defined(SLUICE_HAS_ICU)
        std::map<std::string, std::int32_t> ids;
        for (const std::string& text : bytes_) {
            const std::string key = io::is_whole_text(text) ? io::compression_key(text) : text;
            compressed_.push_back(ids.emplace(key, static_cast<std::int32_t>(ids.size())).first->second);
        }
        compressed_size_ = static_cast<idx>(ids.size());
#else
        throw std::runtime_error(
            "--tokenizer: this program was built without ICU, which compares tokens' texts");
#endif
    }

    std::optional<io::tokenizer> tokenizer_;
    std::unordered_map<token_id, token_id> kept_;
    std::vector<std::string> bytes_; // of each unit
    std::vector<std::int32_t> compressed_;
    idx compressed_size_ = 0;
};

// A corpus in units.
struct unit_text {
    unit_text(const corpus& text, units of)
        : unit(std::move(of)),
          training(unit.encode(units::text_of(text.training))),
          held_out(unit.encode(units::text_of(text.held_out))),
          bytes_a_unit(static_cast<double>(text.training.size()) / static_cast<double>(training.size())) {
        for (token_id i = 0; i < unit.size(); ++i)
            bytes_.push_back(static_cast<std::uint16_t>(unit.bytes(i)));
    }
    judged_text judged() const { return {held_out, bytes_}; }

    units unit;
    std::vector<token_id> training, held_out;
    double bytes_a_unit; // on average

private:
    std::vector<std::uint16_t> bytes_;
};

} // namespace sluice::examples
