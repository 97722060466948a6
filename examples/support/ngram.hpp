// Byte counts as a yardstick for a language model: interpolated Witten-Bell estimates of order four, that is
// over contexts of up to four preceding bytes, five bytes in a row with the one predicted. They are mixed
// down to the uniform distribution, so that no byte ever has probability zero.
// Not here: smoothing tuned on held-out text, and reading files; the model takes bytes from memory.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <vector>

namespace sluice::examples {

namespace detail {

// Open addressing in one array: node-based maps take several times as long over millions of bytes.
template <typename Value>
class packed_map {
public:
    struct slot {
        std::uint64_t key = 0; // 0 marks a free slot; packed byte strings are never 0
        Value value{};
    };

    Value& operator[](std::uint64_t key) {
        if (2 * (n_used_ + 1) > slots_.size()) {
            grow();
        }
        slot& found = slots_[index_of(key)];
        if (found.key == 0) {
            found.key = key;
            n_used_ += 1;
        }
        return found.value;
    }

    [[nodiscard]] const Value* find(std::uint64_t key) const {
        const slot& found = slots_[index_of(key)];
        return found.key == 0 ? nullptr : &found.value;
    }

    [[nodiscard]] const std::vector<slot>& slots() const { return slots_; }

private:
    [[nodiscard]] std::size_t index_of(std::uint64_t key) const {
        const std::size_t mask = slots_.size() - 1;
        auto at = static_cast<std::size_t>((key * 0x9e3779b97f4a7c15U) >> 20U) & mask;
        while (slots_[at].key != 0 && slots_[at].key != key) {
            at = (at + 1) & mask;
        }
        return at;
    }

    void grow() {
        std::vector<slot> old(slots_.size() * 2);
        old.swap(slots_);
        for (const slot& moved : old) {
            if (moved.key != 0) {
                slots_[index_of(moved.key)] = moved;
            }
        }
    }

    std::vector<slot> slots_ = std::vector<slot>(1024);
    std::size_t n_used_ = 0;
};

} // namespace detail

class ngram_model {
public:
    static constexpr std::size_t default_context_bytes = 4;
    static constexpr std::size_t max_context_bytes = 6;

    explicit ngram_model(std::span<const std::uint8_t> training,
                         std::size_t context_bytes = default_context_bytes)
        : context_bytes_(context_bytes) {
        if (context_bytes > max_context_bytes) {
            throw std::invalid_argument("ngram_model: at most 6 context bytes");
        }
        count_longest(training);
        for (std::size_t length = context_bytes_; length > 0; --length) {
            count_shorter(length);
        }
        count_contexts();
    }

    // Only the last context_bytes() bytes of the context count; a shorter context is allowed.
    [[nodiscard]] double probability(std::span<const std::uint8_t> context, std::uint8_t next) const {
        double estimate = 1.0 / 256.0;
        const std::size_t longest = std::min(context.size(), context_bytes_);
        for (std::size_t length = 0; length <= longest; ++length) {
            const std::uint64_t key = pack(context.last(length));
            const context_count* seen = contexts_.find(key);
            if (seen == nullptr) {
                break; // a longer context cannot have been seen either
            }
            const std::uint64_t* count = grams_[length].find(extend(key, next));
            const double n_next = count == nullptr ? 0.0 : static_cast<double>(*count);
            const auto n_distinct = static_cast<double>(seen->n_distinct);
            estimate = (n_next + n_distinct * estimate) / (static_cast<double>(seen->n_total) + n_distinct);
        }
        return estimate;
    }

    [[nodiscard]] double bits_per_byte(std::span<const std::uint8_t> held_out) const {
        if (held_out.empty()) {
            throw std::invalid_argument("ngram_model: no held-out bytes to measure");
        }
        double bits = 0.0;
        for (std::size_t i = 0; i < held_out.size(); ++i) {
            bits -= std::log2(probability(held_out.first(i), held_out[i]));
        }
        return bits / static_cast<double>(held_out.size());
    }

    [[nodiscard]] std::size_t context_bytes() const { return context_bytes_; }

private:
    struct context_count {
        std::uint64_t n_total = 0;
        std::uint64_t n_distinct = 0;
    };

    // A leading 1 bit keeps strings of different lengths apart.
    static std::uint64_t extend(std::uint64_t key, std::uint8_t next) { return key << 8U | next; }

    static std::uint64_t pack(std::span<const std::uint8_t> bytes) {
        std::uint64_t key = 1;
        for (const std::uint8_t byte : bytes) {
            key = extend(key, byte);
        }
        return key;
    }

    // Each position is counted once, with the longest context it has; the shorter ones follow from sums.
    void count_longest(std::span<const std::uint8_t> training) {
        grams_.resize(context_bytes_ + 1);
        for (std::size_t i = 0; i < training.size(); ++i) {
            const std::size_t length = std::min(i, context_bytes_);
            grams_[length][pack(training.subspan(i - length, length + 1))] += 1;
        }
    }

    void count_shorter(std::size_t length) {
        const std::uint64_t top = std::uint64_t{1} << (8 * length);
        for (const auto& [key, count] : grams_[length].slots()) {
            if (key != 0) {
                grams_[length - 1][top | (key & (top - 1))] += count;
            }
        }
    }

    void count_contexts() {
        for (const auto& grams : grams_) {
            for (const auto& [key, count] : grams.slots()) {
                if (key != 0) {
                    context_count& context = contexts_[key >> 8U];
                    context.n_total += count;
                    context.n_distinct += 1;
                }
            }
        }
    }

    std::size_t context_bytes_;
    std::vector<detail::packed_map<std::uint64_t>> grams_; // by context length
    detail::packed_map<context_count> contexts_;
};

} // namespace sluice::examples
