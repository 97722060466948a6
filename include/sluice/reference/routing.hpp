// Token choice routing as one row at a time sees it: score, bias, groups, the k largest, weights.
//   softmax, renormalised over the k     Jiang et al., "Mixtral of experts", 2024, section 2.1
//   sigmoid, bias, groups                DeepSeek-AI, "DeepSeek-V3", 2024, eqs. 13-16 and section 2.1.2
//   capacity, slot by slot               Lepikhin et al., "GShard", 2021, algorithm 1; Riquelme et al., 2021
//   experts that choose tokens           Zhou et al., "Mixture-of-experts with expert choice", 2022, eq. 2
#pragma once

#include "../core/types.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace sluice::reference {

using numbers = std::vector<double>;
using choices = std::vector<idx>;

enum class router_score { none, softmax, sigmoid, sqrt_softplus };
enum class router_post { none, softmax, sigmoid };
enum class router_norm { none, sum, clamped_sum, power };

struct router {
    idx top_k = 1;
    router_score score = router_score::softmax;
    idx n_groups = 1, kept_groups = 1;
    bool pairs = false; // a group is as good as its two best together, not as its best
    router_post post = router_post::none;
    router_norm norm = router_norm::none;
    double eps = 0, power = 1, scale = 1;
};

// The n best of `values`, the larger first, then the lower index; NaN is smaller than -inf.
inline choices best_of(const numbers& values, idx n) {
    choices order(values.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](idx a, idx b) {
        const double u = values[static_cast<std::size_t>(a)], v = values[static_cast<std::size_t>(b)];
        return std::isnan(v) ? !std::isnan(u) : u > v;
    });
    order.resize(static_cast<std::size_t>(n));
    return order;
}

inline numbers softmax_of(numbers z) {
    double total = 0, largest = *std::max_element(z.begin(), z.end());
    for (double& x : z) total += x = largest == x ? 1 : std::exp(x - largest);
    for (double& x : z) x /= total;
    return z;
}

// A logit that is no number counts as -inf.
inline numbers scores_of(const router& r, numbers z) {
    for (double& x : z) x = std::isnan(x) ? -std::numeric_limits<double>::infinity() : x;
    if (r.score == router_score::softmax) return softmax_of(z);
    for (double& x : z) {
        if (r.score == router_score::sigmoid) x = 1 / (1 + std::exp(-x));
        if (r.score == router_score::sqrt_softplus)
            x = std::sqrt(std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))));
    }
    return z;
}

// The experts of a row of logits; `bias` may be empty.
inline choices experts_of(const router& r, const numbers& z, const numbers& bias) {
    numbers c = scores_of(r, z), group_scores;
    for (std::size_t e = 0; e < c.size(); ++e)
        c[e] = std::isnan(z[e]) ? z[e] : c[e] + (bias.empty() ? 0 : bias[e]);
    const std::size_t size = c.size() / static_cast<std::size_t>(r.n_groups);
    for (std::size_t first = 0; first < c.size(); first += size) {
        const numbers group(&c[first], &c[first] + size);
        const choices top = best_of(group, r.pairs ? 2 : 1);
        double sum = 0;
        for (idx e : top) sum += group[static_cast<std::size_t>(e)];
        group_scores.push_back(sum);
    }
    const choices kept = best_of(group_scores, r.kept_groups);
    choices order = best_of(c, static_cast<idx>(c.size()));
    std::erase_if(order, [&](idx e) {
        return std::find(kept.begin(), kept.end(), e / static_cast<idx>(size)) == kept.end();
    });
    order.resize(static_cast<std::size_t>(r.top_k));
    return order;
}

// The weights of chosen experts.
inline numbers weights_of(const router& r, const numbers& z, const choices& chosen) {
    numbers u, s = scores_of(r, z);
    for (idx e : chosen) u.push_back(s[static_cast<std::size_t>(e)]);
    if (u.empty()) return u;
    if (r.post == router_post::softmax) u = softmax_of(u);
    if (r.post == router_post::sigmoid)
        for (double& x : u) x = 1 / (1 + std::exp(-x));
    double by = 0;
    for (double x : u) by += r.norm == router_norm::power ? std::pow(std::abs(x), r.power) : x;
    if (r.norm == router_norm::none) by = 1;
    if (r.norm == router_norm::sum) by += r.eps;
    if (r.norm == router_norm::clamped_sum) by = std::max(by, r.eps);
    if (r.norm == router_norm::power) by = std::pow(by, 1 / r.power);
    for (double& x : u) x = by == 0 ? 0 : r.scale * x / by;
    return u;
}

// Which slots experts with room for `capacity` keep, row by row: first choices of the tokens in this order,
// then second choices, and so on.
inline std::vector<std::vector<bool>> kept_slots(const std::vector<choices>& chosen, const choices& order,
                                                 idx n_experts, idx capacity) {
    choices load(static_cast<std::size_t>(n_experts));
    std::vector<std::vector<bool>> kept(chosen.size());
    for (std::size_t j = 0; !chosen.empty() && j < chosen[0].size(); ++j)
        for (idx t : order) {
            const auto token = static_cast<std::size_t>(t);
            kept[token].push_back(load[static_cast<std::size_t>(chosen[token][j])]++ < capacity);
        }
    return kept;
}

} // namespace sluice::reference
