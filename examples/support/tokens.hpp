// Text with a model of tokens that offers loss and extend: continued through the KV cache, and its
// perplexity.
#pragma once

#include <sluice/core/arena.hpp>
#include <sluice/core/batch.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/core/layer.hpp>
#include <sluice/core/random.hpp>
#include <sluice/core/tensor.hpp>
#include <sluice/infer/sampling.hpp>

#include <chrono>
#include <cmath>
#include <stdexcept>
#include <vector>

namespace sluice::examples {

template <class F>
double seconds_of(F&& work) {
    const auto start = std::chrono::steady_clock::now();
    work();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// How much was read and written, and how long the model took for it.
struct writing {
    idx read = 0, decoded = 0; // tokens
    double read_seconds = 0, decode_seconds = 0;
};

// Continues a prompt by n_tokens: the prompt is prefilled at once, then each token is decoded from the cache.
// put(token, logits) is called for every new token and returns whether to go on.
template <class Model, class Put>
writing write_tokens(const Model& model, std::span<const token_id> prompt, idx n_tokens,
                     const sampling_config& sampling, std::uint64_t seed, executor_ref ex, Put&& put) {
    if (prompt.empty()) throw std::runtime_error("--prompt: must not be empty");
    const idx n = static_cast<idx>(prompt.size());
    const limits most{
        .max_tokens = n + n_tokens, .max_rows = n, .workers = ex.concurrency(), .wanted = outputs::last};
    const sizes need = model.bytes(most);
    arena memory(need.state), workspace(need.workspace), counted;
    dry_run counting{1};
    sample_tokens(tensor_view<const float>(nullptr, 1, model.vocabulary()), sampling, {}, {}, counted,
                  counting);
    arena sampling_workspace(counted.bytes());
    auto state = model.bind_state(memory, most);
    tensor<float> logits(1, model.vocabulary());
    writing done{.read = n};
    done.read_seconds = seconds_of([&] { model.prefill(batch::one(prompt), logits, state, workspace, ex); });
    const random_source numbers(seed);
    for (idx i = 0; i < n_tokens; ++i) {
        const double draw = numbers.uniform(i);
        token_id next = 0;
        sample_tokens(std::as_const(logits).view(), sampling, std::span(&draw, 1), std::span(&next, 1),
                      sampling_workspace);
        if (!put(next, std::as_const(logits).view()) || i + 1 == n_tokens) break;
        done.decode_seconds += seconds_of(
            [&] { model.decode(batch::one(std::span(&next, 1), n + i), logits, state, workspace, ex); });
        ++done.decoded;
    }
    return done;
}

// exp of the mean cross-entropy over windows side by side. Every token but a window's first is predicted
// once, from those before it in its window.
template <class Model>
double perplexity(const Model& model, std::span<const token_id> text, idx window, executor_ref ex) {
    const auto length = static_cast<std::size_t>(window);
    if (text.size() < 2) throw std::runtime_error("a text of fewer than two tokens has no perplexity");
    const idx rows = std::min(window, static_cast<idx>(text.size()));
    arena workspace(model.bytes({.max_rows = rows, .workers = ex.concurrency()}).workspace);
    double nats = 0, predicted = 0;
    for (std::size_t first = 0; first + 1 < text.size(); first += length) {
        const auto part = text.subspan(first, std::min(length, text.size() - first));
        if (part.size() < 2) break;
        std::vector<token_id> targets(part.begin() + 1, part.end());
        targets.push_back(-1);
        const auto n = static_cast<double>(part.size() - 1);
        nats += n * model.loss(batch::one(part), targets, workspace, ex);
        predicted += n;
    }
    return std::exp(nats / predicted);
}

} // namespace sluice::examples
