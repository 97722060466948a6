// Language modelling of bytes, or of other units of text, with any model that offers loss, loss_and_gradient
// and extend: training windows drawn by step number, bits per byte on held-out text, and text written through
// the KV cache.
#pragma once

#include "tokens.hpp"

#include <cmath>
#include <numbers>
#include <stdexcept>
#include <string>
#include <vector>

namespace sluice::examples {

using text_bytes = std::span<const std::uint8_t>;

// n_sequences windows of `length` bytes with the byte after each as target, or of other units, each a token.
// A text is what has size() and operator[]. Refilled without allocation.
class windows {
public:
    windows(idx n_sequences, idx length)
        : length_(length), ids_(static_cast<std::size_t>(n_sequences * length)), targets_(ids_.size()) {
        for (idx s = 0; s <= n_sequences; ++s) offsets_.push_back(s * length);
    }
    idx n_sequences() const { return static_cast<idx>(offsets_.size()) - 1; }
    idx length() const { return length_; }

    // Window `s` starts at unit `first` of the text; targets beyond its end are ignored ones.
    template <class Text>
    void set(idx s, const Text& text, std::size_t first) {
        const auto at = static_cast<std::size_t>(s * length_);
        for (std::size_t i = 0; i < static_cast<std::size_t>(length_); ++i) {
            ids_[at + i] = first + i < text.size() ? text[first + i] : 0;
            targets_[at + i] = first + i + 1 < text.size() ? text[first + i + 1] : -1;
        }
    }
    // Draws every window of a training step: the same for the same seed and step, whatever came before.
    template <class Text>
    void draw(const Text& text, std::uint64_t seed, idx step) {
        const random_source numbers = random_source(seed).split(static_cast<std::uint64_t>(step));
        const auto room = static_cast<double>(text.size() - static_cast<std::size_t>(length_));
        for (idx s = 0; s < n_sequences(); ++s)
            set(s, text, static_cast<std::size_t>(numbers.uniform(s) * room));
    }

    batch rows(idx n) const {
        return {.n_tokens = n * length_,
                .offsets = std::span(offsets_).first(static_cast<std::size_t>(n + 1)),
                .ids = std::span(ids_).first(static_cast<std::size_t>(n * length_))};
    }
    batch rows() const { return rows(n_sequences()); }
    std::span<const token_id> targets(idx n) const {
        return std::span(targets_).first(static_cast<std::size_t>(n * length_));
    }
    std::span<const token_id> targets() const { return targets_; }

private:
    idx length_;
    std::vector<token_id> ids_, targets_;
    std::vector<idx> offsets_;
};

// Bits per byte over windows side by side. Every unit but the first is predicted once, from those before it
// in its window. `most` > 0: that many windows, spread evenly over the text. bytes_of(i): bytes of its unit
// i.
template <class Model, class Text, class Bytes>
double held_out_bits(const Model& model, const Text& text, windows& w, idx most, arena& workspace,
                     executor_ref ex, const Bytes& bytes_of) {
    const auto length = static_cast<std::size_t>(w.length());
    const auto all = (text.size() - 2) / length + 1; // windows that predict at least one byte
    const auto n = most > 0 ? std::min(all, static_cast<std::size_t>(most)) : all;
    double nats = 0, bytes = 0;
    for (std::size_t first = 0; first < n; first += static_cast<std::size_t>(w.n_sequences())) {
        const auto rows = std::min(static_cast<std::size_t>(w.n_sequences()), n - first);
        double here = 0;
        for (std::size_t s = 0; s < rows; ++s) {
            const std::size_t at = (first + s) * all / n * length;
            w.set(static_cast<idx>(s), text, at);
            const std::size_t predicted = std::min(length, text.size() - 1 - at);
            for (std::size_t i = 1; i <= predicted; ++i) bytes += static_cast<double>(bytes_of(at + i));
            here += static_cast<double>(predicted);
        }
        const idx count = static_cast<idx>(rows);
        nats += here * model.loss(w.rows(count), w.targets(count), workspace, ex);
    }
    return nats / bytes / std::numbers::ln2;
}
template <class Model>
double held_out_bits(const Model& model, text_bytes text, windows& w, idx most, arena& workspace,
                     executor_ref ex) {
    return held_out_bits(model, text, w, most, workspace, ex, [](std::size_t) { return 1; });
}

// Continues a prompt by n_bytes; put(byte) is called for every new byte and returns whether to go on.
template <class Model, class Put>
writing write_text(const Model& model, const std::string& prompt, idx n_bytes,
                   const sampling_config& sampling, std::uint64_t seed, executor_ref ex, Put&& put) {
    std::vector<token_id> ids;
    for (char c : prompt) ids.push_back(static_cast<std::uint8_t>(c));
    return write_tokens(model, ids, n_bytes, sampling, seed, ex,
                        [&](token_id next, const auto&) { return put(static_cast<std::uint8_t>(next)); });
}

} // namespace sluice::examples
