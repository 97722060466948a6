// Which tokens of a sequence go through a block of Mixture-of-Depths, and with what weight (Raposo et al.,
// "Mixture-of-Depths", 2024, sections 3.2 to 3.5).
//   r_i = w . x_i;  the predictor: w_out . silu(W_in x_i + b_in) + b_out, trained without a gradient of x
// Always summed in the same order and compared in T: a token is routed alike in prompts and in decoding.
#pragma once

#include "../core/layer.hpp"
#include "../core/random.hpp"
#include "../kernels/top_k.hpp"
#include "../ops/activation.hpp"
#include "../ops/elementwise.hpp"
#include "../ops/gather.hpp"
#include "../ops/matmul.hpp"

namespace sluice {

// Who decides. top_k: the largest r of each sequence, the earlier of equal ones; looks at later tokens. The
// next two see the token alone. random: the baseline of section 3.1, drawn by batch::random_key and position;
// as many as top_k where that is allowed to look ahead, elsewhere each token with probability `capacity`.
enum class depth_rule { top_k, router_threshold, predictor, random };
enum class depth_gate { identity, sigmoid };

// Of the first t tokens of a sequence fewer than share t + slack are routed; where the rule would route more,
// they pass by. Looks at earlier tokens only. 0: no limit.
struct depth_budget {
    double share = 0, slack = 0;
};

// Sums over backward calls: what top_k chose, and what the rules that look at one token would have.
struct depth_report {
    idx tokens = 0, routed = 0;
    idx router_agrees = 0, predictor_agrees = 0;
    double router_loss = 0, predictor_loss = 0; // binary cross-entropy, summed over tokens
};

// Binary cross-entropies with the choice of top_k as target, as means over the tokens of a call times these
// weights (section 3.5). The router's changes the model.
struct depth_losses {
    double router = 0, predictor = 0;
    depth_report* report = nullptr; // of the one thread that calls backward
};

struct depth_router_config {
    idx d_model = 0;
    double capacity = 0.125;                             // share of a sequence's tokens, in (0, 1]
    depth_rule forward_by = depth_rule::top_k;           // training, and evaluation that looks ahead
    depth_rule extend_by = depth_rule::router_threshold; // prompts and decoding; not top_k
    depth_gate gate = depth_gate::identity;              // of r, in front of what the block adds
    double threshold = 0;                                // of r, or of the predictor's logit
    depth_budget budget{};                               // of rules that look at one token
    idx predictor = 0;                                   // its inner width, such as d_model / 16; 0: none
    depth_losses losses{};

    // Of n tokens of a sequence, without later ones of a batch: the 1e-9 is for 0.7 * 10.
    idx routed_of(idx n) const {
        return std::clamp<idx>(static_cast<idx>(capacity * static_cast<double>(n) + 1e-9), n > 0 ? 1 : 0, n);
    }
};

inline void check_depth_router(const depth_router_config& c, std::string_view layer) {
    auto check = [&](bool good, const std::string& what) { require(good, layer, what); };
    check(c.capacity > 0 && c.capacity <= 1, "capacity must be in (0, 1], is " + std::to_string(c.capacity));
    check(std::isfinite(c.threshold), "threshold must be finite");
    check(c.predictor >= 0, "predictor must not be negative");
    check(std::isfinite(c.budget.share) && c.budget.share >= 0 && std::isfinite(c.budget.slack) &&
              c.budget.slack >= 0,
          "budget.share and budget.slack must be finite and not negative");
    check(c.extend_by != depth_rule::top_k, "extend_by must be a rule that does not look at later tokens");
    check(c.predictor > 0 || (c.forward_by != depth_rule::predictor && c.extend_by != depth_rule::predictor),
          "to route by a predictor there must be one: predictor is 0");
    for (const double w : {c.losses.router, c.losses.predictor})
        check(std::isfinite(w) && w >= 0, "weights of losses must be finite and not negative");
    check(c.losses.predictor == 0 || c.predictor > 0, "losses.predictor needs a predictor");
    check((c.losses.router == 0 && c.losses.predictor == 0) || c.forward_by == depth_rule::top_k,
          "losses need forward_by top_k, whose choice is their target");
}

template <class V>
struct depth_router_params {
    tensor_view<V> w;                                 // 1 x d_model
    tensor_view<V> predictor_in, predictor_in_bias;   // predictor x d_model, 1 x predictor, or empty
    tensor_view<V> predictor_out, predictor_out_bias; // 1 x predictor, 1 x 1, or empty

    static depth_router_params bind(arena& a, const depth_router_config& c) {
        depth_router_params p;
        p.w = a.take<V>(1, c.d_model);
        if (c.predictor == 0) return p;
        p.predictor_in = a.take<V>(c.predictor, c.d_model);
        p.predictor_in_bias = a.take<V>(1, c.predictor);
        p.predictor_out = a.take<V>(1, c.predictor);
        p.predictor_out_bias = a.take<V>(1, 1);
        return p;
    }
    template <class F, class First, class... Sets>
    static void each(F& f, const param_name& at, First& first, Sets&... sets) {
        f(param_name(at, "w"), role::matrix, first.w, sets.w...);
        if (first.predictor_out.empty()) return;
        f(param_name(at, "predictor_in"), role::matrix, first.predictor_in, sets.predictor_in...);
        f(param_name(at, "predictor_in_bias"), role::vector, first.predictor_in_bias,
          sets.predictor_in_bias...);
        f(param_name(at, "predictor_out"), role::matrix, first.predictor_out, sets.predictor_out...);
        f(param_name(at, "predictor_out_bias"), role::vector, first.predictor_out_bias,
          sets.predictor_out_bias...);
    }
};

// The router normal with deviation 0.02: with zeros all tokens would tie. The predictor's inner weights
// normal with deviation 1 / sqrt(d_model), its output zero but for a bias that says `capacity` of all tokens.
template <class T>
void initialise(const depth_router_params<T>& p, const depth_router_config& c, const random_source& numbers) {
    fill_normal(p.w, 0.02, numbers.split(0));
    if (c.predictor == 0) return;
    fill_normal(p.predictor_in, 1 / std::sqrt(static_cast<double>(c.d_model)), numbers.split(1));
    fill(p.predictor_in_bias, T(0));
    fill(p.predictor_out, T(0));
    const double share = std::min(c.capacity, 0.99);
    fill(p.predictor_out_bias, static_cast<T>(std::log(share / (1 - share))));
}

// What the sequences of a state hold, by slot.
struct depth_history {
    const idx* tokens = nullptr;
    const idx* routed = nullptr;
    idx most = std::numeric_limits<idx>::max(); // that may be routed of one
};

inline namespace SLUICE_ISA {

template <class T, class V, class Arch>
class depth_router {
public:
    depth_router(const depth_router_config& config, const depth_router_params<V>& params,
                 std::string_view layer)
        : config_(config), params_(params) {
        require_positive(config.d_model, layer, "d_model");
        check_depth_router(config, layer);
        const idx d = config.d_model, h = config.predictor, one = h > 0 ? 1 : 0;
        require_shape(params.w, 1, d, layer, "w");
        require_shape(params.predictor_in, h, h > 0 ? d : 0, layer, "predictor_in");
        require_shape(params.predictor_in_bias, one, h, layer, "predictor_in_bias");
        require_shape(params.predictor_out, one, h, layer, "predictor_out");
        require_shape(params.predictor_out_bias, one, one, layer, "predictor_out_bias");
    }
    const depth_router_config& config() const { return config_; }
    const depth_router_params<V>& params() const { return params_; }

    T gate(T r) const { return config_.gate == depth_gate::identity ? r : 1 / (1 + std::exp(-r)); }
    T gate_slope(T r) const {
        const T g = gate(r);
        return config_.gate == depth_gate::identity ? T(1) : g * (1 - g);
    }

    // Rows of x that the router reads: of each token the original.
    in<T> originals(const batch& b, in<T> x, arena& workspace, executor_ref ex) const {
        if (b.copies == 1) return x;
        const auto rows = original_rows(b, workspace, ex);
        const auto y = workspace.take<T>(b.n_tokens, x.cols());
        gather<Arch, T>(x, rows, y, ex);
        return y;
    }
    static std::span<const std::int32_t> original_rows(const batch& b, arena& workspace, executor_ref ex) {
        auto* const rows = workspace.take<std::int32_t>(b.n_tokens);
        if (ex.dry()) return {};
        for (idx s = 0; s < b.n_sequences(); ++s)
            for (idx i = 0; i < b.tokens(s); ++i)
                rows[b.first_token(s) + i] = static_cast<std::int32_t>(b.original(s, i));
        return {rows, static_cast<std::size_t>(b.n_tokens)};
    }

    // logits (n_tokens) of xs (n_tokens, d_model).
    void logits(in<T> xs, T* r, executor_ref ex) const {
        ex(xs.rows(), [&](idx begin, idx end, idx) {
            for (idx i = begin; i < end; ++i)
                simd::invoke(Arch{}, kernels::dot{}, xs.row(i), static_cast<const T*>(params_.w.data()),
                             xs.cols(), r + i);
        });
    }

    // The most tokens that choose() can find, for batches that only count too.
    idx most_routed(bool ahead, const batch& b, const depth_history& past) const {
        const idx n = b.n_tokens, counted = b.counted_sequences;
        const idx n_sequences = std::max(b.n_sequences(), counted);
        idx total = 0;
        if (!ahead)
            return past.most > n / std::max<idx>(n_sequences, 1) ? n : std::min(n, n_sequences * past.most);
        if (counted > 1) return std::min(n, config_.routed_of(n) + counted); // at least one of each
        for (idx s = 0; s < b.n_sequences(); ++s) total += config_.routed_of(b.tokens(s));
        return total;
    }
    // Fills `tokens` with the routed ones, rising, and returns how many. `ahead`: as many as top_k, whoever
    // decides. A dry run routes as many as there can be. Throws capacity_error where a sequence has no room.
    idx choose(depth_rule rule, bool ahead, const batch& b, in<T> xs, const T* r, const depth_history& past,
               std::int32_t* tokens, arena& workspace, executor_ref ex) const {
        const arena::scope scope(workspace);
        const T* const scores = scores_of(rule, b, xs, r, workspace, ex);
        if (tokens == nullptr) return most_routed(ahead, b, past);
        idx found = 0;
        for (idx s = 0; s < b.n_sequences(); ++s) {
            const idx n = b.tokens(s), first = b.first_token(s), before = found;
            const idx room = ahead ? config_.routed_of(n) : std::min(n, past.most);
            if (ex.dry()) {
                for (idx i = 0; i < room; ++i) tokens[found++] = static_cast<std::int32_t>(first + i);
            } else if (ahead) {
                simd::invoke(Arch{}, kernels::top_k{}, scores + first, n, room, false, tokens + found);
                for (; found < before + room; ++found) tokens[found] += static_cast<std::int32_t>(first);
            } else {
                const idx seen = past.tokens == nullptr ? 0 : past.tokens[b.slot(s)];
                const idx used = past.routed == nullptr ? 0 : past.routed[b.slot(s)];
                for (idx i = 0; i < n; ++i)
                    if (passes(rule, scores[first + i]) && within(used + found - before, seen + i + 1))
                        tokens[found++] = static_cast<std::int32_t>(first + i);
            }
            if (ex.dry() || past.routed == nullptr) continue;
            const idx needed = past.routed[b.slot(s)] + found - before;
            if (needed > past.most)
                SLUICE_THROW(capacity_error("mixture_of_depths: sequence " + std::to_string(b.slot(s)),
                                            needed, past.most, "routed tokens (max_routed)"));
        }
        return found;
    }

    // dlogits (n_tokens) += the slope of the router's loss; gradients of the predictor. `chosen` as top_k
    // left it, n of them.
    void losses_backward(in<T> xs, const T* r, const std::int32_t* chosen, idx n, T* dlogits,
                         const depth_router_params<T>& grad, arena& workspace, executor_ref ex) const {
        const auto& c = config_.losses;
        const arena::scope scope(workspace);
        auto* const target = workspace.take<bool>(xs.rows());
        for (idx i = 0; i < xs.rows() && !ex.dry(); ++i) target[i] = false;
        for (idx i = 0; i < n && !ex.dry(); ++i) target[chosen[i]] = true;
        if (c.router > 0)
            cross_entropy(xs.rows(), c.router, r, target, dlogits, &depth_report::router_loss,
                          &depth_report::router_agrees, ex);
        if (c.predictor > 0) predictor_backward(xs, target, grad, workspace, ex);
        if (c.report == nullptr || ex.dry()) return;
        c.report->tokens += xs.rows();
        c.report->routed += n;
    }
    bool has_losses() const { return config_.losses.router > 0 || config_.losses.predictor > 0; }

private:
    bool passes(depth_rule rule, T score) const { // false for NaN
        if (rule == depth_rule::random) return static_cast<double>(score) >= 1 - config_.capacity;
        return score > static_cast<T>(config_.threshold);
    }
    bool within(idx used, idx tokens) const {
        const auto& [share, slack] = config_.budget;
        return share == 0 || static_cast<double>(used) < share * static_cast<double>(tokens) + slack;
    }
    const T* scores_of(depth_rule rule, const batch& b, in<T> xs, const T* r, arena& workspace,
                       executor_ref ex) const {
        if (rule == depth_rule::top_k || rule == depth_rule::router_threshold) return r;
        T* const scores = workspace.take<T>(b.n_tokens);
        if (rule == depth_rule::predictor) {
            const auto inner = workspace.take<T>(b.n_tokens, config_.predictor);
            predict(xs, inner, inner, scores, workspace, ex);
        } else if (!ex.dry()) {
            const random_source numbers(b.random_key);
            for (idx s = 0; s < b.n_sequences(); ++s)
                for (idx i = 0; i < b.tokens(s); ++i) {
                    const idx position = b.position(s, b.original(s, i));
                    scores[b.first_token(s) + i] = static_cast<T>(numbers.uniform(position));
                }
        }
        return scores;
    }
    // out = the predictor's logits; inner keeps what is before, act what is behind SiLU.
    void predict(in<T> xs, tensor_view<T> inner, tensor_view<T> act, T* out, arena& workspace,
                 executor_ref ex) const {
        matmul<Arch, T>(xs, params_.predictor_in, inner, {.bias = params_.predictor_in_bias}, workspace, ex);
        activate<Arch, T>(activation::silu, inner, {}, act, ex);
        ex(xs.rows(), [&](idx begin, idx end, idx) {
            for (idx i = begin; i < end; ++i) {
                simd::invoke(Arch{}, kernels::dot{}, static_cast<const T*>(act.row(i)),
                             static_cast<const T*>(params_.predictor_out.data()), act.cols(), out + i);
                out[i] += params_.predictor_out_bias(0, 0);
            }
        });
    }
    void predictor_backward(in<T> xs, const bool* target, const depth_router_params<T>& grad,
                            arena& workspace, executor_ref ex) const {
        const idx n = xs.rows(), h = config_.predictor;
        const auto inner = workspace.take<T>(n, h), act = workspace.take<T>(n, h);
        const auto out = workspace.take<T>(n, 1), dout = workspace.take<T>(n, 1);
        predict(xs, inner, act, out.data(), workspace, ex);
        if (!ex.dry()) fill(dout, T(0));
        cross_entropy(n, config_.losses.predictor, out.data(), target, dout.data(),
                      &depth_report::predictor_loss, &depth_report::predictor_agrees, ex);
        matmul_dw<Arch, T>(dout, act, grad.predictor_out, workspace, ex);
        add_rows<Arch, T>(dout, grad.predictor_out_bias, ex);
        matmul_dx<Arch, T>(dout, params_.predictor_out, act, false, workspace, ex);
        activate_backward<Arch, T>(activation::silu, inner, {}, act, inner, {}, ex);
        matmul_dw<Arch, T>(inner, xs, grad.predictor_in, workspace, ex);
        add_rows<Arch, T>(inner, grad.predictor_in_bias, ex);
    }
    // d += weight (sigmoid(z) - t) / n; max(z, 0) - z t + log1p(exp(-|z|)) overflows nowhere.
    void cross_entropy(idx n, double weight, const T* z, const bool* target, T* d, double depth_report::*loss,
                       idx depth_report::*agrees, executor_ref ex) const {
        depth_report* const report = config_.losses.report;
        for (idx i = 0; i < n && !ex.dry(); ++i) {
            const auto at = static_cast<double>(z[i]), t = target[i] ? 1.0 : 0.0;
            d[i] += static_cast<T>(weight / static_cast<double>(n) * (1 / (1 + std::exp(-at)) - t));
            if (report == nullptr) continue;
            report->*loss += std::max(at, 0.0) - at * t + std::log1p(std::exp(-std::abs(at)));
            report->*agrees += passes(depth_rule::router_threshold, z[i]) == target[i] ? 1 : 0;
        }
    }

    depth_router_config config_;
    depth_router_params<V> params_;
};

} // namespace SLUICE_ISA
} // namespace sluice
