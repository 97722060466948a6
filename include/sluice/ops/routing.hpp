// Which experts a token goes to and with what weight: from logits (n, n_experts) to indices and weights
// (n, slots), and from the gradients of the weights back to the logits'.
//
// score, bias, groups, choice, post, norm, scale: one pipeline of which the published routers are settings.
// The product x W^T and what becomes of the slots (ops/routing_plan.hpp) are not done here. A slot that was
// dropped holds ~e in place of the expert e, and weight 0.
#pragma once

#include "../core/random.hpp"
#include "../kernels/routing.hpp"
#include "routing_plan.hpp"

namespace sluice {

// Who chooses: each token its experts, a table of the token's id, each expert its tokens (Zhou et al., 2022;
// not causal), or nobody (Puigcerver et al., "From sparse to soft mixtures of experts", 2024: softmax
// and softmax_columns of ops/softmax.hpp).
enum class router_choice { tokens, hash_table, experts, soft };
enum class router_noise { none, gumbel, fixed, learnt };
enum class jitter_on { router, layer }; // what the router reads, or experts as well (transformers' Mixtral)

struct router_groups { // consecutive experts, as many in each; experts outside the `kept` best are not chosen
    idx n_groups = 1, kept = 1;
    group_rank rank = group_rank::best;
};

struct router_perturbation { // in training; see jitter and perturb_logits
    router_noise kind = router_noise::none;
    double sigma = 1;  // fixed: its deviation; learnt: what is added to it
    double jitter = 0; // inputs times a number in [1 - jitter, 1 + jitter]:
    jitter_on on = jitter_on::router;
};

// How many tokens an expert has room for: `none` for all, `share` for n k factor / E, or what the named
// sources compute (mesh-tensorflow's transformer/moe.py; fairseq's top1gate.py and top2gate.py).
enum class capacity_rule { none, share, mesh, fairseq_top1, fairseq_top2, fairseq_eval };
enum class rounding { up, down, nearest };
enum class weights_after_drop { kept, renormalised };

struct capacity_config {
    capacity_rule rule = capacity_rule::none;
    double factor = 1;
    rounding round = rounding::up;
    idx minimum = 0, multiple_of = 1;
    drop_order order = drop_order::slot_major;
    weights_after_drop weights = weights_after_drop::kept;
};

struct router_config {
    idx n_experts = 0; // logits of a row
    idx top_k = 1;     // of a token; where experts choose, on average
    router_choice choice = router_choice::tokens;
    router_score score = router_score::softmax;
    bool selection_bias = false; // added to scores for the choice only
    router_groups groups{};
    weight_rule weights{};
    router_perturbation noise{};
    capacity_config capacity{};
    idx n_identity = 0; // of n_experts those before n_null, which return their input
    idx n_null = 0;     // the last ones, which return nothing: tokens may pass the layer by

    // Columns of indices and weights.
    idx slots() const { return choice == router_choice::experts ? n_experts : top_k; }
};

enum class router_use { inference, training };

// Throws config_error where a setting is out of range or cannot work with another.
inline void check_router(const router_config& c, std::string_view layer,
                         router_use use = router_use::inference) {
    auto check = [&](auto value, auto least, auto most, std::string_view name) {
        if (!(value >= least && value <= most))
            SLUICE_THROW(config_error(std::string(layer) + ": " + std::string(name) + " must be " +
                                      std::to_string(least) + " to " + std::to_string(most) + ", is " +
                                      std::to_string(value)));
    };
    constexpr double huge = 1e30;
    const auto& [n_groups, kept, rank] = c.groups;
    check(c.n_experts, idx{1}, idx{1} << 24, "n_experts");
    check(c.top_k, idx{1}, c.n_experts, "top_k");
    check(n_groups, idx{1}, c.n_experts, "groups.n_groups");
    check(kept, idx{1}, n_groups, "groups.kept");
    check(c.n_identity, idx{0}, c.n_experts - 1, "n_identity");
    check(c.n_null, idx{0}, c.n_experts - 1 - c.n_identity, "n_null");
    check(c.weights.eps, 0.0, huge, "weights.eps");
    check(c.weights.power, 0.01, 100.0, "weights.power");
    check(c.weights.scale, -huge, huge, "weights.scale");
    check(c.noise.sigma, 0.0, huge, "noise.sigma");
    check(c.noise.jitter, 0.0, 1.0, "noise.jitter");
    check(c.capacity.factor, 0.0, huge, "capacity.factor");
    check(c.capacity.minimum, idx{0}, idx{1} << 40, "capacity.minimum");
    check(c.capacity.multiple_of, idx{1}, idx{1} << 40, "capacity.multiple_of");
    auto fail = [&](const std::string& what) {
        SLUICE_THROW(config_error(std::string(layer) + ": " + what));
    };
    auto text = [](idx n) { return std::to_string(n); };
    if (c.n_experts % n_groups != 0)
        fail(text(c.n_experts) + " experts do not make " + text(n_groups) + " groups");
    const idx size = c.n_experts / n_groups;
    if (c.top_k > kept * size)
        fail("top_k is " + text(c.top_k) + ", the kept groups have " + text(kept * size) + " experts");
    require(rank == group_rank::best || size >= 2, layer, "groups of one expert have no best two");
    const bool tokens = c.choice == router_choice::tokens;
    require(tokens || (n_groups == kept && !c.selection_bias), layer,
            "groups and a selection bias need tokens that choose");
    const bool plain = c.weights.norm == weight_norm::none && c.weights.post == router_post::none;
    if (c.choice == router_choice::experts) {
        require(plain, layer, "weights of experts that choose are scores, with no norm");
        require(c.capacity.rule != capacity_rule::none, layer, "experts that choose need a capacity rule");
    }
    require(use == router_use::inference || c.slots() > 1 || c.choice == router_choice::soft ||
                (c.weights.norm == weight_norm::none && c.weights.post != router_post::softmax),
            layer,
            "top_k 1 with normalised weights cannot be trained: the weight is constant, so the router has no "
            "gradient");
}

// Tokens that an expert has room for, of n_tokens.
inline idx expert_capacity(const router_config& c, idx n_tokens) {
    const capacity_config& rule = c.capacity;
    const auto n = static_cast<double>(n_tokens), experts = static_cast<double>(c.n_experts);
    const double k = static_cast<double>(c.top_k), even = std::ceil(n / experts);
    double room = 0;
    switch (rule.rule) {
    case capacity_rule::none:
        return n_tokens;
    case capacity_rule::share:
        room = n * k * rule.factor / experts;
        room = rule.round == rounding::up     ? std::ceil(room)
               : rule.round == rounding::down ? std::floor(room)
                                              : std::nearbyint(room); // half to even
        break;
    case capacity_rule::mesh:
        room = std::min(n, std::floor(n * rule.factor / experts));
        break;
    case capacity_rule::fairseq_top1:
        room = std::floor(rule.factor * even);
        break;
    case capacity_rule::fairseq_top2:
        room = 2 * even;
        break;
    case capacity_rule::fairseq_eval:
        room = std::ceil(rule.factor * n);
        break;
    }
    const idx whole = static_cast<idx>(std::min(room, 0x1p40)); // more than a tensor has rows
    return round_up(std::max(whole, rule.minimum), rule.multiple_of);
}

// What a choice depends on besides logits.
template <class T>
struct router_inputs {
    in<T> bias{};                                 // 1 x n_experts; see router_config::selection_bias
    std::span<const token_id> ids{};              // n, for a hash table
    tensor_view<const std::int32_t> hash_table{}; // vocabulary x top_k experts
};

// What a caller may want to know, or to refuse.
struct router_report {
    idx rows_with_nan = 0; // their experts are in range and distinct, their weights finite
};

inline namespace SLUICE_ISA {

namespace detail {

template <class T>
kernels::route_args<T> route_args_of(const router_config& c, in<T> logits,
                                     tensor_view<std::int32_t> indices) {
    kernels::route_args<T> g{};
    g.logits = logits.data();
    g.logits_row = logits.row_stride();
    g.indices = indices.data();
    g.indices_row = indices.row_stride();
    g.n_experts = c.n_experts;
    g.top_k = c.slots();
    g.score = c.score;
    g.rule = c.weights;
    g.rank = c.groups.rank;
    g.n_groups = c.groups.n_groups;
    g.kept_groups = c.groups.kept;
    return g;
}

// Runs a routing kernel over all rows of `all`, whose row pointers are those of row 0.
template <class Arch, class Kernel, class T>
kernels::router_rows over_rows(const Kernel& kernel, const kernels::route_args<T>& all, idx n,
                               arena& workspace, executor_ref ex) {
    const arena::scope scope(workspace);
    const auto scratch = workspace.take<T>(ex.concurrency(), kernels::route_scratch(all.n_experts));
    const auto order = workspace.take<std::int32_t>(ex.concurrency(), 2 * all.n_experts);
    auto* const seen = workspace.take<kernels::router_rows>(ex.concurrency());
    kernels::router_rows total;
    if (ex.dry()) return total;
    std::fill_n(seen, ex.concurrency(), total);
    ex(n, [&](idx begin, idx end, idx worker) {
        kernels::route_args<T> g = all;
        g.logits += begin * g.logits_row;
        g.indices += begin * g.indices_row;
        g.weights += begin * g.weights_row;
        if (g.dlogits != nullptr) g.dlogits += begin * g.dlogits_row;
        g.first_row = begin;
        g.rows = end - begin;
        g.scratch = scratch.row(worker);
        g.order = order.row(worker);
        g.seen = seen + worker;
        simd::invoke(Arch{}, kernel, g);
    });
    for (idx w = 0; w < ex.concurrency(); ++w) {
        total.with_nan += seen[w].with_nan;
        total.first_empty = std::min(total.first_empty, seen[w].first_empty);
    }
    return total;
}

// The experts that the table has for each id; ids and what is read of the table are checked always.
inline void look_up_experts(const router_config& c, std::span<const token_id> ids,
                            const tensor_view<const std::int32_t>& table, tensor_view<std::int32_t> indices) {
    auto fail = [](const std::string& what) { SLUICE_THROW(input_error("router: hash table: " + what)); };
    auto text = [](auto n) { return std::to_string(n); };
    if (static_cast<idx>(ids.size()) != indices.rows())
        fail(text(ids.size()) + " ids for " + text(indices.rows()) + " rows");
    for (idx t = 0; t < indices.rows(); ++t) {
        const token_id id = ids[static_cast<std::size_t>(t)];
        if (id < 0 || id >= table.rows())
            fail("token id " + text(id) + " at row " + text(t) + " is outside the " + text(table.rows()));
        const std::int32_t* const row = table.row(id);
        for (idx j = 0; j < c.top_k; ++j) {
            if (row[j] < 0 || row[j] >= c.n_experts)
                fail("expert " + text(row[j]) + " of token id " + text(id) + " is outside the " +
                     text(c.n_experts));
            if (std::find(row, row + j, row[j]) != row + j)
                fail("expert " + text(row[j]) + " occurs twice for token id " + text(id));
            indices(t, j) = row[j];
        }
    }
}

} // namespace detail

// scores (n, n_experts) of logits: what balance losses ask for. NaN counts as -inf.
template <class Arch = simd::native, class T>
void router_scores(router_score score, in<T> logits, tensor_view<T> scores, executor_ref ex) {
    require_shape(scores, logits.rows(), logits.cols(), "router_scores", "scores");
    ex(logits.rows(), [&](idx begin, idx end, idx) {
        simd::invoke(Arch{}, kernels::score_rows{}, score, logits.row(begin), logits.row_stride(),
                     scores.row(begin), scores.row_stride(), end - begin, logits.cols());
    });
}

// y = x r with r uniform in [1 - width, 1 + width], drawn by the key: element i of the row-major x has the
// i-th number. y may be x. Its own backward, with the same key. For the inputs of a router in training.
template <class T>
void jitter(double width, std::uint64_t key, in<T> x, tensor_view<T> y, executor_ref ex) {
    require_shape(y, x.rows(), x.cols(), "jitter", "y");
    const random_source numbers(key);
    ex(y.rows(), [&](idx begin, idx end, idx) {
        for (idx t = begin; t < end; ++t)
            for (idx j = 0; j < y.cols(); ++j) {
                const double r = 1 - width + 2 * width * numbers.uniform(t * y.cols() + j);
                y(t, j) = static_cast<T>(static_cast<double>(x(t, j)) * r);
            }
    });
}

// z = z + noise, drawn by the key: element i of the row-major logits has the i-th number. Learnt noise
// (Shazeer et al., "Outrageously large neural networks", 2017, eq. 4) is a normal number times
// softplus(spread) + sigma, with spread (n, n_experts) from a product of its own. y may be logits. For
// training.
template <class T>
void perturb_logits(const router_perturbation& noise, std::uint64_t key, in<T> logits, in<T> spread,
                    tensor_view<T> y, executor_ref ex) {
    const bool learnt = noise.kind == router_noise::learnt;
    require_shape(y, logits.rows(), logits.cols(), "router noise", "y");
    if (learnt) require_shape(spread, y.rows(), y.cols(), "router noise", "spread");
    const random_source numbers(key);
    ex(y.rows(), [&](idx begin, idx end, idx) {
        for (idx t = begin; t < end; ++t)
            for (idx e = 0; e < y.cols(); ++e) {
                const idx i = t * y.cols() + e;
                double drawn = 0, width = noise.sigma;
                if (noise.kind == router_noise::gumbel)
                    drawn = -std::log(-std::log((numbers.bits(i) + 0.5) * 0x1p-32)), width = 1;
                else if (noise.kind != router_noise::none)
                    drawn = numbers.normal(i);
                if (learnt) {
                    const auto x = static_cast<double>(spread(t, e));
                    width += std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x)));
                }
                y(t, e) = static_cast<T>(static_cast<double>(logits(t, e)) + drawn * width);
            }
    });
}

// dspread of learnt noise; that of the logits is dlogits itself.
template <class T>
void perturb_logits_backward(std::uint64_t key, in<T> spread, in<T> dlogits, tensor_view<T> dspread,
                             executor_ref ex) {
    require_shape(dlogits, spread.rows(), spread.cols(), "router noise", "dlogits");
    require_shape(dspread, spread.rows(), spread.cols(), "router noise", "dspread");
    const random_source numbers(key);
    ex(spread.rows(), [&](idx begin, idx end, idx) {
        for (idx t = begin; t < end; ++t)
            for (idx e = 0; e < spread.cols(); ++e) {
                const double slope = numbers.normal(t * spread.cols() + e) /
                                     (1 + std::exp(-static_cast<double>(spread(t, e))));
                dspread(t, e) = static_cast<T>(static_cast<double>(dlogits(t, e)) * slope);
            }
    });
}

// indices and weights (n, c.slots()) for logits (n, n_experts), which are those after noise, and need not be
// finite. Of equal scores the expert with the lower index is chosen, and of equal tokens the earlier. Throws
// input_error for a row of nothing but -inf and for ids and table entries out of range.
template <class Arch = simd::native, class T>
router_report route(const router_config& c, in<T> logits, const router_inputs<T>& given,
                    tensor_view<std::int32_t> indices, tensor_view<T> weights, arena& workspace,
                    executor_ref ex) {
    check_router(c, "router");
    require(c.choice != router_choice::soft, "router", "soft routing has no choice; see softmax_columns");
    const idx n = logits.rows(), k = c.slots();
    require_shape(logits, n, c.n_experts, "router", "logits");
    require_shape(indices, n, k, "router", "indices");
    require_shape(weights, n, k, "router", "weights");
    require_shape(given.bias, c.selection_bias, c.selection_bias ? c.n_experts : 0, "router", "bias");
    auto g = detail::route_args_of<T>(c, logits, indices);
    g.weights = weights.data();
    g.weights_row = weights.row_stride();
    g.bias = given.bias.data();
    g.choose = c.choice == router_choice::tokens;
    if (c.choice == router_choice::hash_table) {
        require_shape(given.hash_table, given.hash_table.rows(), k, "router", "hash table");
        if (!ex.dry()) detail::look_up_experts(c, given.ids, given.hash_table, indices);
    }
    for (idx t = 0; t < n && !ex.dry() && c.choice == router_choice::experts; ++t)
        std::iota(indices.row(t), indices.row(t) + k, 0);
    const auto seen = detail::over_rows<Arch>(kernels::route_rows{}, g, n, workspace, ex);
    if (seen.first_empty < n)
        SLUICE_THROW(input_error("router: row " + std::to_string(seen.first_empty) +
                                 " of the logits is -inf for every expert"));
    if (c.choice == router_choice::experts) {
        choose_tokens<Arch>(expert_capacity(c, n), indices, weights, workspace, ex);
    } else if (c.capacity.rule != capacity_rule::none) {
        drop_overflow<T>(c.capacity.order, expert_capacity(c, n), c.n_experts - c.n_identity - c.n_null,
                         indices, weights, workspace, ex);
        g.choose = false;
        g.only_survivors = c.capacity.weights == weights_after_drop::renormalised;
        detail::over_rows<Arch>(kernels::route_rows{}, g, n, workspace, ex);
    }
    return {.rows_with_nan = seen.with_nan};
}

// dlogits (n, n_experts) from dweights; the choice, what was dropped, bias and groups are constants. The
// gradients of dropped slots are not read.
template <class Arch = simd::native, class T>
void route_backward(const router_config& c, in<T> logits, tensor_view<std::int32_t> indices, in<T> dweights,
                    tensor_view<T> dlogits, arena& workspace, executor_ref ex) {
    check_router(c, "router");
    const idx n = logits.rows();
    require_shape(logits, n, c.n_experts, "router", "logits");
    require_shape(indices, n, c.slots(), "router", "indices");
    require_shape(dweights, n, c.slots(), "router", "dweights");
    require_shape(dlogits, n, c.n_experts, "router", "dlogits");
    auto g = detail::route_args_of<T>(c, logits, indices);
    g.weights = const_cast<T*>(dweights.data()); // only read
    g.weights_row = dweights.row_stride();
    g.dlogits = dlogits.data();
    g.dlogits_row = dlogits.row_stride();
    g.only_survivors =
        c.capacity.rule != capacity_rule::none && c.capacity.weights == weights_after_drop::renormalised;
    detail::over_rows<Arch>(kernels::route_rows_dx{}, g, n, workspace, ex);
}

} // namespace SLUICE_ISA
} // namespace sluice
