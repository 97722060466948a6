// Language modelling of bytes with any model that offers loss, loss_and_gradient and extend: training windows
// drawn by step number, bits per byte on held-out text, and text written through the KV cache.
#pragma once

#include <sluice/core/arena.hpp>
#include <sluice/core/batch.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/core/layer.hpp>
#include <sluice/core/random.hpp>
#include <sluice/core/tensor.hpp>

#include <cmath>
#include <numbers>
#include <stdexcept>
#include <string>
#include <vector>

namespace sluice::examples {

using text_bytes = std::span<const std::uint8_t>;

// n_sequences windows of `length` bytes with the byte after each as target. Refilled without allocation.
class windows {
public:
    windows(idx n_sequences, idx length)
        : length_(length), ids_(static_cast<std::size_t>(n_sequences * length)), targets_(ids_.size()) {
        for (idx s = 0; s <= n_sequences; ++s) offsets_.push_back(s * length);
    }
    idx n_sequences() const { return static_cast<idx>(offsets_.size()) - 1; }
    idx length() const { return length_; }

    // Window `s` starts at byte `first` of the text; targets beyond its end are ignored ones.
    void set(idx s, text_bytes text, std::size_t first) {
        const auto at = static_cast<std::size_t>(s * length_);
        for (std::size_t i = 0; i < static_cast<std::size_t>(length_); ++i) {
            ids_[at + i] = first + i < text.size() ? text[first + i] : 0;
            targets_[at + i] = first + i + 1 < text.size() ? text[first + i + 1] : -1;
        }
    }
    // Draws every window of a training step: the same for the same seed and step, whatever came before.
    void draw(text_bytes text, std::uint64_t seed, idx step) {
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

// Bits per byte over windows side by side. Every byte but the first is predicted once, from the bytes before
// it in its window. `most` > 0: that many windows, spread evenly over the text.
template <class Model>
double held_out_bits(const Model& model, text_bytes text, windows& w, idx most, arena& workspace,
                     executor_ref ex) {
    const auto length = static_cast<std::size_t>(w.length());
    const auto all = (text.size() - 2) / length + 1; // windows that predict at least one byte
    const auto n = most > 0 ? std::min(all, static_cast<std::size_t>(most)) : all;
    double nats = 0, predicted = 0;
    for (std::size_t first = 0; first < n; first += static_cast<std::size_t>(w.n_sequences())) {
        const auto rows = std::min(static_cast<std::size_t>(w.n_sequences()), n - first);
        double here = 0;
        for (std::size_t s = 0; s < rows; ++s) {
            const std::size_t at = (first + s) * all / n * length;
            w.set(static_cast<idx>(s), text, at);
            here += static_cast<double>(std::min(length, text.size() - 1 - at));
        }
        const idx count = static_cast<idx>(rows);
        nats += here * model.loss(w.rows(count), w.targets(count), workspace, ex);
        predicted += here;
    }
    return nats / predicted / std::numbers::ln2;
}

// The byte that `draw` in [0, 1) falls on among probabilities softmax(logits / temperature); the likeliest
// where the temperature is 0.
inline std::uint8_t pick(std::span<const float> logits, double temperature, double draw) {
    std::size_t best = 0;
    for (std::size_t i = 0; i < logits.size(); ++i)
        if (logits[i] > logits[best]) best = i;
    if (temperature <= 0) return static_cast<std::uint8_t>(best);
    double total = 0;
    auto weight = [&](std::size_t i) {
        return std::exp((static_cast<double>(logits[i]) - static_cast<double>(logits[best])) / temperature);
    };
    for (std::size_t i = 0; i < logits.size(); ++i) total += weight(i);
    for (std::size_t i = 0; i < logits.size(); ++i) {
        draw -= weight(i) / total;
        if (draw < 0) return static_cast<std::uint8_t>(i);
    }
    return static_cast<std::uint8_t>(best);
}

// Continues a prompt: the prompt is prefilled at once, then each byte is decoded from the cache.
template <class Model>
std::string write_text(const Model& model, const std::string& prompt, idx n_bytes, double temperature,
                       std::uint64_t seed, executor_ref ex) {
    if (prompt.empty()) throw std::runtime_error("--prompt: must not be empty");
    const idx n = static_cast<idx>(prompt.size());
    const limits most{.max_tokens = n + n_bytes, .max_rows = n, .workers = ex.concurrency()};
    const sizes need = model.bytes(most);
    arena memory(need.state), workspace(need.workspace);
    auto state = model.bind_state(memory, most);
    std::vector<token_id> ids;
    for (char c : prompt) ids.push_back(static_cast<std::uint8_t>(c));
    tensor<float> logits(1, model.vocabulary());
    model.prefill(batch::one(ids), logits, state, workspace, ex);
    std::string out = prompt;
    const random_source numbers(seed);
    for (idx i = 0; i < n_bytes; ++i) {
        const std::uint8_t byte =
            pick({logits.data(), static_cast<std::size_t>(logits.cols())}, temperature, numbers.uniform(i));
        out += static_cast<char>(byte);
        ids.assign(1, byte);
        if (i + 1 < n_bytes) model.decode(batch::one(ids, n + i), logits, state, workspace, ex);
    }
    return out;
}

} // namespace sluice::examples
