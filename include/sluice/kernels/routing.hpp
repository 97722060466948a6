// What a router does with a row of logits: scores, the choice of experts, their weights, and back from the
// weights' gradients to the logits'.
//
// NaN in a logit counts as smaller than -inf for the choice and as -inf for scores; infinite logits share the
// whole softmax. Where scores are only ranked (no bias, no sums over groups) the logits are ranked instead:
// they do not underflow.
#pragma once

#include "softmax.hpp"
#include "top_k.hpp"

namespace sluice {

enum class router_score { none, softmax, sigmoid, sqrt_softplus };
enum class group_rank { best, best_two }; // a group is as good as its best entry, or as its two best together
enum class router_post { none, softmax, sigmoid }; // of the chosen scores alone
enum class weight_norm { none, sum, clamped_sum, power };

// From scores to weights: u = post(scores), then w = scale u / d.
struct weight_rule {
    router_post post = router_post::none;
    weight_norm norm = weight_norm::none; // d = 1, sum u + eps, max(sum u, eps), (sum |u|^power)^(1 / power)
    double eps = 0;
    double power = 1;
    double scale = 1;
};

} // namespace sluice

namespace sluice::kernels {

// What the rows of one worker were like.
struct router_rows {
    idx with_nan = 0;
    idx first_empty = std::numeric_limits<idx>::max(); // the first row of nothing but -inf
};

// A block of rows. A dropped slot holds ~e for expert e.
template <class T>
struct route_args {
    const T* logits;
    idx logits_row;
    const T* bias; // of the choice, n_experts, or null
    std::int32_t* indices;
    idx indices_row;
    T* weights; // dweights for the backward kernel, which only reads them
    idx weights_row;
    T* dlogits; // backward kernel only
    idx dlogits_row;
    idx rows, first_row, n_experts, top_k;
    router_score score;
    weight_rule rule;
    group_rank rank;
    idx n_groups, kept_groups;
    bool choose;         // otherwise indices are given
    bool only_survivors; // dropped slots do not count in d and in a softmax over the chosen
    T* scratch;          // route_scratch(n_experts) elements
    std::int32_t* order; // 2 n_experts
    router_rows* seen;
};

constexpr idx route_scratch(idx n_experts) { return 5 * n_experts; }

struct route_rows {
    template <class Arch, class T>
    void operator()(Arch, const route_args<T>& g) const;
};

// dlogits from dweights; the choice, the bias and what was dropped are constants.
struct route_rows_dx {
    template <class Arch, class T>
    void operator()(Arch, const route_args<T>& g) const;
};

// The scores of rows of n logits.
struct score_rows {
    template <class Arch, class T>
    void operator()(Arch, router_score score, const T* z, idx z_row, T* s, idx s_row, idx rows, idx n) const;
};

template <class T>
using routing_calls =
    simd::calls<simd::call<route_rows, const route_args<T>&>, simd::call<route_rows_dx, const route_args<T>&>,
                simd::call<score_rows, router_score, const T*, idx, T*, idx, idx, idx>>;

template <class T>
struct router_row {
    const T* z; // logits in which NaN is -inf, and +inf finite
    T largest;  // of them
    bool with_nan, empty;
};

// Looks at a row; where it is unusual, a repaired copy is made.
template <class Arch, class T>
SLUICE_INLINE router_row<T> look_at(const T* z, idx n, router_score score, T* copy) {
    using P = simd::pack<T, Arch>;
    constexpr T infinity = std::numeric_limits<T>::infinity(), most = std::numeric_limits<T>::max();
    P high(-infinity), nans{};
    idx i = 0;
    for (; i + P::size <= n; i += P::size) {
        const P v = P::load(z + i);
        high = select(high < v, v, high);
        nans = nans + select(v == v, P(T(0)), P(T(1)));
    }
    T largest = high.largest(), n_nans = nans.sum();
    for (; i < n; ++i) {
        largest = largest < z[i] ? z[i] : largest;
        n_nans += z[i] == z[i] ? T(0) : T(1);
    }
    router_row<T> row{z, largest, n_nans > 0, largest == -infinity && n_nans == 0};
    if (!row.with_nan && largest < infinity && !row.empty) return row;
    const bool share = score == router_score::softmax && largest == infinity;
    for (i = 0; i < n; ++i) {
        copy[i] = z[i] == z[i] ? std::min(z[i], most) : -infinity;
        if (share) copy[i] = z[i] == infinity ? T(0) : -infinity;
    }
    if (score == router_score::softmax && largest == -infinity) std::fill_n(copy, n, T(0));
    row.z = copy;
    row.largest = copy[0];
    for (i = 1; i < n; ++i) row.largest = std::max(row.largest, copy[i]);
    return row;
}

// The scores of n logits; what a softmax divides by is taken from `row`, of which they may be a part.
template <class Arch, class T>
SLUICE_INLINE void score_elements(router_score kind, const T* z, T largest, T inverse_sum, idx n, T* s) {
    using P = simd::pack<T, Arch>;
    auto each = [&](auto&& f) __attribute__((always_inline)) {
        simd::for_each_pack<P>(
            n, [&](idx j, idx k)
                   __attribute__((always_inline)) { f(P::load_partial(z + j, k)).store_partial(s + j, k); });
    };
    if (kind == router_score::none)
        each([](P x) __attribute__((always_inline)) { return x; });
    else if (kind == router_score::softmax)
        each([&](P x)
                 __attribute__((always_inline)) { return exp_nonpositive(x - P(largest)) * P(inverse_sum); });
    else if (kind == router_score::sigmoid)
        each([](P x) __attribute__((always_inline)) { return sigmoid(x); });
    else
        each([](P x) __attribute__((always_inline)) { return sqrt(softplus(x)); });
}

template <class Arch, class T>
void score_rows::operator()(Arch, router_score score, const T* z, idx z_row, T* s, idx s_row, idx rows,
                            idx n) const {
    for (idx i = 0; i < rows; ++i) {
        T* const to = s + i * s_row;
        const router_row<T> row = look_at<Arch>(z + i * z_row, n, score, to);
        T inverse_sum = 1;
        if (score == router_score::softmax)
            inverse_sum = T(1) / row_exp<Arch, T>(row.z, row.largest, nullptr, n);
        score_elements<Arch>(score, row.z, row.largest, inverse_sum, n, to);
    }
}

// d score / d logit from the score s, of a softmax without what all experts have in common.
template <class T>
SLUICE_INLINE T score_slope(router_score score, T s) {
    if (score == router_score::softmax) return s;
    if (score == router_score::sigmoid) return s * (1 - s);
    if (score == router_score::sqrt_softplus) // sigmoid(z) / 2 s, as e^-s^2 = 1 - sigmoid(z)
        return s > 0 ? -std::expm1(-s * s) / (2 * s) : T(0);
    return T(1);
}

// The best or the sum of the two best of n values.
template <class Arch, class T>
SLUICE_INLINE T rank_group(const T* x, idx n, group_rank rank) {
    using P = simd::pack<T, Arch>;
    constexpr T lowest = -std::numeric_limits<T>::infinity();
    P first(lowest), second(lowest);
    idx i = 0;
    for (; i + P::size <= n; i += P::size) {
        const P v = P::load(x + i);
        const auto larger = first < v; // never for NaN
        const P rest = select(larger, first, v);
        first = select(larger, v, first);
        second = select(second < rest, rest, second);
    }
    T best = lowest, next = lowest;
    if (i > 0) {
        best = first.largest();
        const std::uint32_t at = simd::lane_bits<P>(first == P(best));
        next =
            std::popcount(at) > 1 ? best : max(second, select(first == P(best), P(lowest), first)).largest();
    }
    for (; i < n; ++i) {
        const T v = x[i], rest = best < v ? best : v;
        best = best < v ? v : best;
        next = next < rest ? rest : next;
    }
    // so that one number counts more than none
    return rank == group_rank::best ? best : best + std::max(next, std::numeric_limits<T>::lowest());
}

// The best top_k of the values in the best groups.
template <class Arch, class T>
SLUICE_INLINE void choose_row(const route_args<T>& g, const T* values, T* scratch, std::int32_t* out) {
    if (g.kept_groups == g.n_groups) return top_k{}(Arch{}, values, g.n_experts, g.top_k, true, out);
    const idx size = g.n_experts / g.n_groups;
    T* const scores = scratch; // of n_groups; then the values of the kept groups, one behind the other
    for (idx i = 0; i < g.n_groups; ++i) scores[i] = rank_group<Arch>(values + i * size, size, g.rank);
    std::int32_t* const kept = g.order;
    top_k{}(Arch{}, static_cast<const T*>(scores), g.n_groups, g.kept_groups, false, kept);
    for (idx i = 0; i < g.kept_groups; ++i) std::copy_n(values + kept[i] * size, size, scratch + i * size);
    top_k{}(Arch{}, static_cast<const T*>(scratch), g.kept_groups * size, g.top_k, true, out);
    for (idx j = 0; j < g.top_k; ++j)
        out[j] = static_cast<std::int32_t>(kept[out[j] / size] * size + out[j] % size);
}

// The same weights from logits alone: softmax, then divided by the sum over the chosen (never 0 / 0).
template <class T>
SLUICE_INLINE bool softmax_of_chosen(const route_args<T>& g) {
    return g.score == router_score::softmax && g.rule.post == router_post::none &&
           g.rule.norm == weight_norm::sum && g.rule.eps == 0;
}

// The slots of a row that count in sums, their scores u and what u became, v = post(u).
template <class T>
struct chosen_slots {
    idx n = 0;
    std::int32_t* slot; // which of the row's slots
    T* u;
    T* v;
};

template <class T>
SLUICE_INLINE T power_of(T x, double p) {
    return p == 1 ? x : p == 2 ? x * x : static_cast<T>(std::pow(static_cast<double>(x), p));
}

// What the weights are divided by, from v.
template <class T>
SLUICE_INLINE T divisor(const weight_rule& rule, const T* v, idx n) {
    T sum = 0;
    if (rule.norm == weight_norm::none) return T(1);
    const T eps = static_cast<T>(rule.eps);
    for (idx j = 0; j < n; ++j)
        sum += rule.norm == weight_norm::power ? power_of(std::abs(v[j]), rule.power) : v[j];
    if (rule.norm == weight_norm::power) return rule.power == 1 ? sum : power_of(sum, 1 / rule.power);
    return rule.norm == weight_norm::sum ? sum + eps : std::max(sum, eps);
}

// `scores` are those of the whole row where they are known, otherwise null.
template <class Arch, class T>
SLUICE_INLINE chosen_slots<T> post_row(const route_args<T>& g, const router_row<T>& row, const T* logits,
                                       const std::int32_t* chosen, T inverse_sum, const T* scores, T* u,
                                       std::int32_t* slots) {
    using P = simd::pack<T, Arch>;
    const bool from_logits = softmax_of_chosen(g);
    chosen_slots<T> c{.n = 0, .slot = slots, .u = u, .v = u + g.top_k};
    for (idx j = 0; j < g.top_k; ++j) {
        if (chosen[j] < 0 && g.only_survivors) continue;
        const idx e = chosen[j] < 0 ? ~chosen[j] : chosen[j];
        const bool number =
            g.score != router_score::none || g.rule.post != router_post::none || logits[e] == logits[e];
        c.slot[c.n] = static_cast<std::int32_t>(j);
        u[c.n++] = !number ? T(0) : scores != nullptr ? scores[e] : row.z[e];
    }
    if (scores == nullptr && !from_logits)
        score_elements<Arch>(g.score, static_cast<const T*>(u), row.largest, inverse_sum, c.n, u);
    if (from_logits || g.rule.post == router_post::softmax) {
        T most = row_largest<Arch>(u, c.n);
        std::copy_n(u, c.n, c.v);
        if (!(most > std::numeric_limits<T>::lowest())) std::fill_n(c.v, c.n, most = T(0));
        const T inverse = T(1) / row_exp<Arch>(static_cast<const T*>(c.v), most, c.v, c.n);
        for (idx j = 0; j < c.n; ++j) c.v[j] *= inverse;
    } else if (g.rule.post == router_post::sigmoid) {
        simd::for_each_pack<P>(
            c.n, [&](idx j, idx k) { sigmoid(P::load_partial(u + j, k)).store_partial(c.v + j, k); });
    } else {
        std::copy_n(u, c.n, c.v);
    }
    return c;
}

template <class Arch, class T>
void route_rows::operator()(Arch, const route_args<T>& g) const {
    using P = simd::pack<T, Arch>;
    const idx n = g.n_experts;
    T *const copy = g.scratch, *const scores = copy + n, *const biased = scores + n, *const u = biased + n;
    const bool softmax = g.score == router_score::softmax;
    const bool all_scores =
        g.choose && (g.bias != nullptr || (g.kept_groups < g.n_groups && g.rank == group_rank::best_two));
    for (idx i = 0; i < g.rows; ++i) {
        const T* const z = g.logits + i * g.logits_row;
        std::int32_t* const chosen = g.indices + i * g.indices_row;
        const router_row<T> row = look_at<Arch>(z, n, g.score, copy);
        if (row.with_nan) ++g.seen->with_nan;
        if (row.empty) g.seen->first_empty = std::min(g.seen->first_empty, g.first_row + i);
        T inverse_sum = 1;
        if (softmax && (all_scores || !softmax_of_chosen(g)))
            inverse_sum = T(1) / row_exp<Arch, T>(row.z, row.largest, nullptr, n);
        if (all_scores) score_elements<Arch>(g.score, row.z, row.largest, inverse_sum, n, scores);
        if (g.choose) {
            const T* ranked = z;
            if (all_scores) {
                if (g.bias == nullptr)
                    std::copy_n(scores, n, biased);
                else
                    simd::for_each_pack<P>(n, [&](idx e, idx k) {
                        (P::load_partial(scores + e, k) + P::load_partial(g.bias + e, k))
                            .store_partial(biased + e, k);
                    });
                for (idx e = 0; e < n && row.with_nan; ++e) biased[e] = z[e] == z[e] ? biased[e] : z[e];
                ranked = biased;
            }
            choose_row<Arch>(g, ranked, u, chosen);
        }
        const bool known = all_scores && !softmax_of_chosen(g);
        const auto c = post_row<Arch>(g, row, z, chosen, inverse_sum, known ? scores : nullptr, u, g.order);
        const T by = softmax_of_chosen(g) ? T(1) : divisor<T>(g.rule, c.v, c.n);
        T* const w = g.weights + i * g.weights_row;
        std::fill_n(w, g.top_k, T(0));
        for (idx j = 0; j < c.n; ++j)
            if (const idx slot = c.slot[j]; chosen[slot] >= 0 && by != 0)
                w[slot] = static_cast<T>(g.rule.scale) * c.v[j] / by;
    }
}

// du from dw, in place of u.
template <class T>
SLUICE_INLINE void post_row_dx(const route_args<T>& g, const chosen_slots<T>& c, const T* dw,
                               const std::int32_t* chosen) {
    const weight_rule& rule = g.rule;
    const bool from_logits = softmax_of_chosen(g);
    const T by = from_logits ? T(1) : divisor<T>(rule, c.v, c.n);
    const T scale = by == 0 ? T(0) : static_cast<T>(rule.scale) / by;
    const bool clamped = rule.norm == weight_norm::clamped_sum && by == static_cast<T>(rule.eps);
    auto dw_of = [&](idx j) { return chosen[c.slot[j]] < 0 ? T(0) : dw[c.slot[j]]; };
    T inner = 0; // how the divisor spreads the gradient
    for (idx j = 0; j < c.n; ++j) inner += dw_of(j) * c.v[j];
    if (rule.norm == weight_norm::none || from_logits || clamped || by == 0) inner = 0;
    for (idx j = 0; j < c.n; ++j) {
        T slope = 1 / by;
        if (rule.norm == weight_norm::power && rule.power != 1 && inner != 0)
            slope = power_of(std::abs(c.v[j]), rule.power - 1) / power_of(by, rule.power);
        if (rule.norm == weight_norm::power && c.v[j] < 0) slope = -slope;
        T dv = scale * dw_of(j);
        if (inner != 0) dv -= scale * inner * slope;
        c.u[j] = dv;
    }
    if (from_logits || rule.post == router_post::softmax) {
        T mean = 0;
        for (idx j = 0; j < c.n; ++j) mean += c.u[j] * c.v[j];
        for (idx j = 0; j < c.n; ++j) c.u[j] = c.v[j] * (c.u[j] - mean);
    } else if (rule.post == router_post::sigmoid) {
        for (idx j = 0; j < c.n; ++j) c.u[j] *= c.v[j] * (1 - c.v[j]);
    }
}

template <class Arch, class T>
void route_rows_dx::operator()(Arch, const route_args<T>& g) const {
    using P = simd::pack<T, Arch>;
    const idx n = g.n_experts;
    T *const copy = g.scratch, *const kept = copy + n, *const u = copy + 3 * n;
    for (idx i = 0; i < g.rows; ++i) {
        const T* const z = g.logits + i * g.logits_row;
        const std::int32_t* const chosen = g.indices + i * g.indices_row;
        T* const dz = g.dlogits + i * g.dlogits_row;
        const router_row<T> row = look_at<Arch>(z, n, g.score, copy);
        const bool full = g.score == router_score::softmax && !softmax_of_chosen(g);
        const T inverse_sum = full ? T(1) / row_exp<Arch, T>(row.z, row.largest, nullptr, n) : T(1);
        const auto c =
            post_row<Arch>(g, row, z, chosen, inverse_sum, static_cast<const T*>(nullptr), u, g.order);
        std::copy_n(c.u, c.n, kept);
        post_row_dx<T>(g, c, g.weights + i * g.weights_row, chosen);
        if (full) { // dz = p (ds - sum p ds), and ds is zero for experts that were not chosen
            T inner = 0;
            for (idx j = 0; j < c.n; ++j) inner += c.u[j] * kept[j];
            simd::for_each_pack<P>(n, [&](idx e, idx k) {
                const P p = exp_nonpositive(P::load_partial(row.z + e, k) - P(row.largest)) * P(inverse_sum);
                (p * P(-inner)).store_partial(dz + e, k);
            });
        } else {
            std::fill_n(dz, n, T(0));
        }
        for (idx j = 0; j < c.n; ++j) {
            const T slope = softmax_of_chosen(g) ? T(1) : score_slope(g.score, kept[j]);
            const std::int32_t e = chosen[c.slot[j]];
            dz[e < 0 ? ~e : e] += c.u[j] * slope;
        }
    }
}

} // namespace sluice::kernels
