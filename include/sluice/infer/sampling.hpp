// Draws the next token from logits: probabilities softmax(logits / temperature) of the top_k likeliest
// tokens, of those the likeliest that together reach top_p (Holtzman et al., "The curious case of neural text
// degeneration", 2020). A token with logit -inf is never drawn, so a mask of allowed tokens is -inf
// elsewhere.
#pragma once

#include "../core/arena.hpp"
#include "../ops/softmax.hpp"

#include <cmath>

namespace sluice {

struct sampling_config {
    double temperature = 1; // 0: the likeliest token, whatever is drawn
    idx top_k = 0;          // 0, or more than the vocabulary: all
    double top_p = 1;       // in (0, 1]; 1: all; the likeliest token is always kept
};

// Throws config_error where a value is out of range.
inline void check_sampling(const sampling_config& c) {
    auto text = [](double value) { return std::to_string(value); };
    if (!(c.temperature >= 0) || !std::isfinite(c.temperature))
        SLUICE_THROW(
            config_error("sample_tokens: temperature must not be negative, is " + text(c.temperature)));
    if (c.top_k < 0)
        SLUICE_THROW(
            config_error("sample_tokens: top_k must not be negative, is " + std::to_string(c.top_k)));
    if (!(c.top_p > 0 && c.top_p <= 1))
        SLUICE_THROW(config_error("sample_tokens: top_p must be above 0 and at most 1, is " + text(c.top_p)));
}

inline namespace SLUICE_ISA {

namespace detail {

// The column of the largest entry, the lowest among equal ones. Throws input_error for a row that no token
// can be drawn from.
template <class T>
idx likeliest(const tensor_view<T>& logits, idx row) {
    const T* x = logits.row(row);
    auto fail = [&](const std::string& what) {
        SLUICE_THROW(input_error("sample_tokens: row " + std::to_string(row) + " of the logits " + what));
    };
    idx best = 0;
    for (idx j = 0; j < logits.cols(); ++j) {
        if (std::isnan(x[j])) fail("is NaN at token " + std::to_string(j));
        if (x[j] > x[best]) best = j;
    }
    if (x[best] == -std::numeric_limits<std::remove_const_t<T>>::infinity()) fail("is -inf for every token");
    return best;
}

// The tokens that may be drawn from a row x of n logits with probabilities p, in rising order, in the memory
// of `order` (n).
template <class T>
std::span<const token_id> candidates(const T* x, const T* p, idx n, const sampling_config& c,
                                     token_id* order) {
    token_id *first = order, *last = order + n;
    for (idx j = 0; j < n; ++j) order[j] = static_cast<token_id>(j);
    // by logits: the probabilities of unlikely tokens may all be zero
    auto likelier = [x](token_id a, token_id b) { return x[a] != x[b] ? x[a] > x[b] : a < b; };
    if (c.top_k > 0 && c.top_k < n) {
        last = first + c.top_k;
        std::nth_element(first, last, order + n, likelier);
    }
    if (c.top_p < 1) {
        double total = 0, reached = 0;
        for (const token_id* at = first; at != last; ++at) total += static_cast<double>(p[*at]);
        // a heap, since few of many are likely: the likeliest go to the end one by one
        auto less = [&](token_id a, token_id b) { return likelier(b, a); };
        std::make_heap(first, last, less);
        token_id* rest = last;
        while (rest != first && reached < c.top_p * total) {
            std::pop_heap(first, rest, less);
            reached += static_cast<double>(p[*--rest]);
        }
        first = rest;
    }
    if (last - first < n) std::sort(first, last);
    return {first, last};
}

template <class T>
token_id draw_from(std::span<const token_id> tokens, const T* p, double draw) {
    double total = 0;
    for (const token_id t : tokens) total += static_cast<double>(p[t]);
    double left = draw * total;
    token_id found = tokens.front();
    for (const token_id t : tokens) {
        if (p[t] == T(0)) continue;
        found = t; // stays the last possible one where rounding leaves something over
        left -= static_cast<double>(p[t]);
        if (left < 0) break;
    }
    return found;
}

} // namespace detail

// ids[i] is drawn from row i of logits (m, vocabulary) by draws[i] in [0, 1): the same logits, config and
// draw give the same token, whatever the other rows and the executor. Draws that depend on a seed and a
// position, random_source(seed).uniform(position), make a text repeatable. Infinite logits share all
// probability. Throws input_error for NaN, a row of -inf and a draw out of range; nothing is written then.
template <class Arch = simd::native, class T>
void sample_tokens(const tensor_view<T>& logits, const sampling_config& config, std::span<const double> draws,
                   std::span<token_id> ids, arena& workspace, executor_ref ex = {}) {
    using value = std::remove_const_t<T>;
    check_sampling(config);
    const idx m = logits.rows(), n = logits.cols();
    require(n > 0 && n <= std::numeric_limits<token_id>::max(), "sample_tokens",
            "the vocabulary must hold 1 to 2^31 - 1 tokens");
    const arena::scope scope(workspace);
    idx* best = workspace.take<idx>(m);
    const auto probs = workspace.take<value>(ex.concurrency(), n);
    const auto order = workspace.take<token_id>(ex.concurrency(), n);
    if (ex.dry()) return;
    if (static_cast<idx>(draws.size()) != m || static_cast<idx>(ids.size()) != m)
        SLUICE_THROW(config_error("sample_tokens: " + std::to_string(draws.size()) + " draws and " +
                                  std::to_string(ids.size()) + " ids for " + std::to_string(m) + " rows"));
    for (const double draw : draws)
        if (!(draw >= 0 && draw < 1))
            SLUICE_THROW(input_error("sample_tokens: a draw must be in [0, 1), is " + std::to_string(draw)));
    for (idx i = 0; i < m; ++i) best[i] = detail::likeliest(logits, i);
    ex(m, [&](idx begin, idx end, idx worker) {
        const auto row = probs.row_block(worker, 1);
        value* p = row.data();
        for (idx i = begin; i < end; ++i) {
            token_id& id = ids[static_cast<std::size_t>(i)];
            id = static_cast<token_id>(best[i]);
            if (config.temperature == 0) continue;
            const value *x = logits.row(i), most = x[best[i]];
            for (idx j = 0; j < n; ++j) // equal ones first: infinite logits have no difference
                p[j] = x[j] == most
                           ? value(0)
                           : static_cast<value>((static_cast<double>(x[j]) - static_cast<double>(most)) /
                                                config.temperature);
            softmax<Arch>(row, row, executor_ref());
            id = detail::draw_from(detail::candidates(x, p, n, config, order.row(worker)), p,
                                   draws[static_cast<std::size_t>(i)]);
        }
    });
}

} // namespace SLUICE_ISA
} // namespace sluice
