// What keeps experts evenly used: losses on the router's probabilities, with the gradient of the logits in
// closed form, and a bias that needs no loss. A loss returns its value; where dlogits are not empty it adds
// `weight` times its gradient to them. P is the mean over tokens of scores divided by their sum over experts;
// the shares f that are counted carry no gradient. Sums over tokens run in order.
#pragma once

#include "../core/params.hpp"
#include "../ops/elementwise.hpp"
#include "../ops/routing.hpp"
#include "../ops/softmax.hpp"
#include "../ops/top_k.hpp"

#include <cmath>
#include <numbers>

namespace sluice {

// L = E sum_e f_e P_e, where f is the share of tokens whose choice was e:
enum class balance_form {
    all_choices,      // of all choices: 1 when even (Megatron-LM, MegaBlocks)
    first_choice,     // of first choices only: 1 when even (Fedus et al., "Switch transformers", 2022, eq. 4)
    sum_over_choices, // summed over choices, top_k times the first: top_k when even (transformers)
};

// Which choices are counted: those that were made, also where they were dropped, or the top_k of the scores
// alone, without bias and groups.
enum class counted_choices { made, unbiased };

struct balance_config {
    balance_form form = balance_form::all_choices;
    counted_choices counted = counted_choices::made;
    router_score score = router_score::softmax; // not none
};

// Of a coefficient of variation, squared: the mean square deviation over n, or over n - 1.
enum class variance { population, sample };

// counts[e] += choices of e in indices, dropped ones among them.
inline void count_choices(const tensor_view<const std::int32_t>& indices, std::span<idx> counts) {
    for (idx t = 0; t < indices.rows(); ++t)
        for (idx j = 0; j < indices.cols(); ++j) {
            const std::int32_t e = indices(t, j) < 0 ? ~indices(t, j) : indices(t, j);
            if (e >= static_cast<idx>(counts.size()))
                SLUICE_THROW(input_error("count_choices: expert " + std::to_string(e) + " of token " +
                                         std::to_string(t) + " is outside the " +
                                         std::to_string(counts.size())));
            ++counts[static_cast<std::size_t>(e)];
        }
}

// bias (1, n_experts) += rate sign(mean(counts) - counts[e]), with counts summed over the whole batch of a
// step (Wang et al., "Auxiliary-loss-free load balancing strategy for mixture-of-experts", 2024, algorithm
// 1).
template <class T>
void update_selection_bias(std::span<const idx> counts, double rate, tensor_view<T> bias) {
    const auto n = static_cast<idx>(counts.size());
    require_shape(bias, 1, n, "update_selection_bias", "bias");
    const idx total = std::accumulate(counts.begin(), counts.end(), idx{0});
    for (idx e = 0; e < n; ++e) {
        const idx less = total - counts[static_cast<std::size_t>(e)] * n;
        bias(0, e) += static_cast<T>(less > 0 ? rate : less < 0 ? -rate : 0);
    }
}

// The same for every selection_bias of a parameter set, with the counts that backward left in its gradients
// (a float counts to 2^24). Gradients of several processes are summed before.
template <class P, class G>
void update_selection_biases(const G& grad, double rate, const P& params) {
    each_param(
        [&](const param_name& name, role r, const auto& bias, const auto& counts) {
            if constexpr (requires { counts(0, 0); }) { // not of a table, whose gradient holds rows
                using T = typename std::remove_cvref_t<decltype(bias)>::value_type;
                if (r != role::buffer || name.last() != "selection_bias") return;
                double total = 0;
                for (idx e = 0; e < counts.cols(); ++e) total += static_cast<double>(counts(0, e));
                for (idx e = 0; e < counts.cols(); ++e) {
                    const double less =
                        total - static_cast<double>(counts(0, e)) * static_cast<double>(counts.cols());
                    bias(0, e) += static_cast<T>(less > 0 ? rate : less < 0 ? -rate : 0);
                }
            }
        },
        params, grad);
}

inline namespace SLUICE_ISA {

namespace detail {

template <class T>
void check_balance(in<T> logits, tensor_view<T> dlogits, std::string_view loss) {
    require(logits.cols() > 0, loss, "there are no experts");
    if (!dlogits.empty()) require_shape(dlogits, logits.rows(), logits.cols(), loss, "dlogits");
}

inline double sequences_with_tokens(std::span<const idx> offsets) {
    double n = 0;
    for (std::size_t s = 1; s < offsets.size(); ++s) n += offsets[s] > offsets[s - 1] ? 1 : 0;
    return n;
}

// scores / sums in place, sums in `total` (1, n).
template <class Arch, class T>
void shares_of(router_score score, in<T> logits, tensor_view<T> shares, tensor_view<T> total,
               executor_ref ex) {
    router_scores<Arch, T>(score, logits, shares, ex);
    ex(logits.rows(), [&](idx begin, idx end, idx) {
        for (idx t = begin; t < end; ++t) {
            T* const s = shares.row(t);
            T sum = 0;
            for (idx e = 0; e < shares.cols() && score != router_score::softmax; ++e) sum += s[e];
            total(0, t) = score == router_score::softmax ? T(1) : sum;
            if (score != router_score::softmax && sum > 0)
                simd::invoke(Arch{}, kernels::scale_elements{}, static_cast<const T*>(s), 1 / sum, s,
                             shares.cols());
        }
    });
}

// dz += weight times the gradient of sum_e f_e share_e, from one token's shares and the sum of its scores.
template <class T>
void add_share_slopes(router_score score, const T* share, T total, const T* f, T weight, idx n, T* dz) {
    if (!(total > 0)) return; // scores of -inf have no shares
    T mean = 0;
    for (idx e = 0; e < n; ++e) mean += f[e] * share[e];
    for (idx e = 0; e < n; ++e)
        dz[e] += weight / total * kernels::score_slope(score, share[e] * total) * (f[e] - mean);
}

// Var / mean^2 of the sums of the rows of x; leaves its gradient by each sum in slopes (1, n).
template <class Arch, class T>
double variation_of_sums(in<T> x, variance over, tensor_view<T> slopes, executor_ref ex) {
    if (!ex.dry()) fill(slopes, T(0));
    add_rows<Arch>(x, slopes, ex);
    if (ex.dry() || x.rows() == 0) return 0;
    const auto n = static_cast<double>(x.cols());
    double mean = 0, square = 0;
    for (idx e = 0; e < x.cols(); ++e) mean += static_cast<double>(slopes(0, e)) / n;
    for (idx e = 0; e < x.cols(); ++e) {
        const double off = static_cast<double>(slopes(0, e)) - mean;
        square += off * off / n;
    }
    const double correction = over == variance::sample ? n / (n - 1) : 1;
    if (!(mean > 0)) mean = std::numeric_limits<double>::infinity(); // nothing to be uneven
    for (idx e = 0; e < x.cols(); ++e) {
        const double off = static_cast<double>(slopes(0, e)) - mean - square / mean;
        slopes(0, e) = std::isfinite(mean) ? static_cast<T>(correction * 2 / (n * mean * mean) * off) : T(0);
    }
    return correction * square / (mean * mean);
}

} // namespace detail

// The mean over sequences, of at least one token, of each one's loss (DeepSeek-AI, "DeepSeek-V3", 2024, eqs.
// 17-20, with `offsets` as in a batch: n_sequences + 1), or with no offsets the loss of all tokens together.
// indices (n, top_k) as route left them.
template <class Arch = simd::native, class T>
double balance_loss(const balance_config& c, in<T> logits, const tensor_view<const std::int32_t>& indices,
                    std::span<const idx> offsets, std::type_identity_t<T> weight, tensor_view<T> dlogits,
                    arena& workspace, executor_ref ex) {
    detail::check_balance<T>(logits, dlogits, "balance_loss");
    require(c.score != router_score::none, "balance_loss", "logits themselves are no shares");
    const idx n = logits.rows(), n_experts = logits.cols(), k = indices.cols();
    require_shape(indices, n, k, "balance_loss", "indices");
    require(offsets.empty() || (offsets.front() == 0 && offsets.back() == n &&
                                std::is_sorted(offsets.begin(), offsets.end())),
            "balance_loss", "offsets must rise from 0 to the number of tokens");
    const idx most = static_cast<idx>(std::max<std::size_t>(offsets.size(), 2)) - 1;
    const idx all[] = {0, n};
    if (offsets.empty()) offsets = all;
    const arena::scope scope(workspace);
    const auto shares = workspace.take<T>(n, n_experts);
    const auto f = workspace.take<T>(1, n_experts), total = workspace.take<T>(1, n),
               mean = workspace.take<T>(1, n_experts);
    const std::span<idx> counts(workspace.take<idx>(n_experts), static_cast<std::size_t>(n_experts));
    const auto unbiased = workspace.take<std::int32_t>(n, c.counted == counted_choices::unbiased ? k : 0);
    if (!unbiased.empty()) top_k<Arch>(logits, top_k_order::by_value, unbiased, ex);
    detail::shares_of<Arch, T>(c.score, logits, shares, total, ex);
    if (ex.dry()) return 0;
    const tensor_view<const std::int32_t> chosen = unbiased.empty() ? indices : unbiased;
    const idx counted = c.form == balance_form::first_choice ? std::min<idx>(k, 1) : k;
    double loss = 0;
    const double sequences = detail::sequences_with_tokens(offsets);
    for (idx s = 0; s < most; ++s) {
        const idx first = offsets[static_cast<std::size_t>(s)];
        const idx m = offsets[static_cast<std::size_t>(s + 1)] - first;
        if (m == 0) continue;
        std::fill(counts.begin(), counts.end(), idx{0});
        count_choices(chosen.row_block(first, m).col_block(0, counted), counts);
        fill(mean, T(0));
        add_rows<Arch, T>(shares.row_block(first, m), mean, ex);
        const double tokens = static_cast<double>(m) * sequences;
        const double one = static_cast<double>(c.form == balance_form::all_choices ? m * k : m);
        for (idx e = 0; e < n_experts; ++e) {
            const auto count = static_cast<double>(counts[static_cast<std::size_t>(e)]);
            const double share = static_cast<double>(n_experts) * count / (one * tokens);
            loss += share * static_cast<double>(mean(0, e));
            f(0, e) = static_cast<T>(share);
        }
        if (dlogits.empty()) continue;
        ex(m, [&](idx begin, idx end, idx) {
            for (idx t = first + begin; t < first + end; ++t)
                detail::add_share_slopes<T>(c.score, shares.row(t), total(0, t), f.data(), weight, n_experts,
                                            dlogits.row(t));
        });
    }
    return loss;
}

// The mean square of log sum_e exp(z_e) (Zoph et al., "ST-MoE", 2022, eq. 5), of the logits before noise.
template <class Arch = simd::native, class T>
double router_z_loss(in<T> logits, std::type_identity_t<T> weight, tensor_view<T> dlogits, arena& workspace,
                     executor_ref ex) {
    detail::check_balance<T>(logits, dlogits, "router_z_loss");
    const idx n = logits.rows();
    const arena::scope scope(workspace);
    const auto lse = workspace.take<T>(1, n);
    const auto probs = workspace.take<T>(ex.concurrency(), dlogits.empty() ? 0 : logits.cols());
    log_sum_exp<Arch>(logits, lse, ex);
    if (ex.dry() || n == 0) return 0;
    double sum = 0;
    for (idx t = 0; t < n; ++t) sum += static_cast<double>(lse(0, t)) * static_cast<double>(lse(0, t));
    if (!dlogits.empty())
        ex(n, [&](idx begin, idx end, idx worker) {
            const auto p = probs.row_block(worker, 1);
            for (idx t = begin; t < end; ++t) {
                softmax<Arch>(logits.row_block(t, 1), p, executor_ref());
                simd::invoke(Arch{}, kernels::add_scaled{}, static_cast<const T*>(p.data()),
                             weight * 2 / static_cast<T>(n) * lse(0, t), dlogits.row(t), logits.cols());
            }
        });
    return sum / static_cast<double>(n);
}

// Var / mean^2 over experts of their importance, the sum over tokens of softmax(logits) (Shazeer et al.,
// "Outrageously large neural networks", 2017, eqs. 6-7, with the gates before the top k as in Riquelme et
// al., 2021).
template <class Arch = simd::native, class T>
double importance_loss(in<T> logits, variance over, std::type_identity_t<T> weight, tensor_view<T> dlogits,
                       arena& workspace, executor_ref ex) {
    detail::check_balance<T>(logits, dlogits, "importance_loss");
    require(over == variance::population || logits.cols() > 1, "importance_loss",
            "one expert has no sample variance");
    const arena::scope scope(workspace);
    const auto probs = workspace.take<T>(logits.rows(), logits.cols());
    const auto slopes = workspace.take<T>(1, logits.cols());
    router_scores<Arch, T>(router_score::softmax, logits, probs, ex);
    const double loss = detail::variation_of_sums<Arch, T>(probs, over, slopes, ex);
    if (!dlogits.empty())
        ex(logits.rows(), [&](idx begin, idx end, idx) {
            for (idx t = begin; t < end; ++t)
                detail::add_share_slopes<T>(router_score::softmax, probs.row(t), T(1), slopes.data(), weight,
                                            logits.cols(), dlogits.row(t));
        });
    return loss;
}

// Var / mean^2 over experts of their load, the sum over tokens of the probability that new noise of expert e
// alone leaves it among the top k: Phi((z_e - threshold) / sigma_e), the threshold being the k-th largest of
// the others' noisy logits (the same, appendix A). All (n, n_experts). Gradients: dlogits by z; dnoisy by the
// thresholds, and may be dlogits where the noise is fixed; dsigma, which may be empty.
template <class Arch = simd::native, class T>
double load_loss(idx k, in<T> logits, in<T> noisy, in<T> sigma, variance over, std::type_identity_t<T> weight,
                 tensor_view<T> dlogits, tensor_view<T> dnoisy, tensor_view<T> dsigma, arena& workspace,
                 executor_ref ex) {
    const idx n = logits.rows(), n_experts = logits.cols();
    detail::check_balance<T>(logits, dlogits, "load_loss");
    require(k >= 1 && k < n_experts, "load_loss", "top_k must be less than all experts");
    require_shape(noisy, n, n_experts, "load_loss", "noisy");
    require_shape(sigma, n, n_experts, "load_loss", "sigma");
    if (!dlogits.empty()) require_shape(dnoisy, n, n_experts, "load_loss", "dnoisy");
    if (!dsigma.empty()) require_shape(dsigma, n, n_experts, "load_loss", "dsigma");
    const arena::scope scope(workspace);
    const auto inside = workspace.take<T>(n, n_experts), slopes = workspace.take<T>(1, n_experts);
    const auto best = workspace.take<std::int32_t>(n, k + 1);
    top_k<Arch>(noisy, top_k_order::by_value, best, ex);
    // of expert e: whose noisy logit is the threshold, and the distance from it in deviations
    auto rival = [&](idx t, idx e) {
        return best(t, noisy(t, e) < noisy(t, best(t, k - 1)) ||
                               (noisy(t, e) == noisy(t, best(t, k - 1)) && e > best(t, k - 1))
                           ? k - 1
                           : k);
    };
    auto distance = [&](idx t, idx e) {
        return static_cast<double>(logits(t, e) - noisy(t, rival(t, e))) / static_cast<double>(sigma(t, e));
    };
    ex(n, [&](idx begin, idx end, idx) {
        for (idx t = begin; t < end; ++t)
            for (idx e = 0; e < n_experts; ++e)
                inside(t, e) = static_cast<T>(std::erfc(-distance(t, e) / std::numbers::sqrt2) / 2);
    });
    const double loss = detail::variation_of_sums<Arch, T>(inside, over, slopes, ex);
    if (dlogits.empty()) return loss;
    ex(n, [&](idx begin, idx end, idx) {
        for (idx t = begin; t < end; ++t)
            for (idx e = 0; e < n_experts; ++e) {
                const double u = distance(t, e);
                const double density = std::exp(-u * u / 2) * std::numbers::inv_sqrtpi / std::numbers::sqrt2;
                const T slope = weight * slopes(0, e) * static_cast<T>(density) / sigma(t, e);
                dlogits(t, e) += slope;
                dnoisy(t, rival(t, e)) -= slope;
                if (!dsigma.empty()) dsigma(t, e) -= slope * static_cast<T>(u);
            }
    });
    return loss;
}

// What the routers of a model are trained with beside the model's loss: a hook of its layers that route.
//   router_losses losses({.balance = 0.01, .z = 1e-3});
//   config.router_hook = losses; // backward of a layer with this config adds their gradients
//   ... losses.balance() ...     // their values, as means over the layers since reset
// For one thread that calls backward.
enum class balance_over { batch, sequences };

struct router_loss_config {
    double balance = 0, z = 0, importance = 0; // weights; 0: left out
    balance_config form{};
    balance_over over = balance_over::batch;
    variance of_importance = variance::population;
};

class router_losses {
public:
    explicit router_losses(const router_loss_config& c) : config_(c) {
        for (const double w : {c.balance, c.z, c.importance})
            require(std::isfinite(w) && w >= 0, "router_losses", "a weight must be finite and not negative");
    }
    double balance() const { return mean(balance_); }
    double z() const { return mean(z_); }
    double importance() const { return mean(importance_); }
    // What the layers added to the loss, all together.
    double total() const {
        return config_.balance * balance_ + config_.z * z_ + config_.importance * importance_;
    }
    void reset() { calls_ = 0, balance_ = z_ = importance_ = 0; }

    template <class T>
    void operator()(const routing_record<T>& r, arena& workspace, executor_ref ex) {
        const arena::scope scope(workspace);
        auto weight = [](double w) { return static_cast<T>(w); };
        double balance = 0, z = 0, importance = 0;
        if (config_.balance > 0) {
            const bool each = config_.over == balance_over::sequences;
            const idx n = each ? r.b.n_sequences() + 1 : 0;
            idx* const offsets = workspace.take<idx>(n);
            for (idx s = 0; s < n && !ex.dry(); ++s) offsets[s] = s + 1 < n ? r.b.begin(s) : r.b.rows();
            balance = balance_loss<simd::native, T>(config_.form, r.logits, r.indices,
                                                    {offsets, ex.dry() ? 0 : static_cast<std::size_t>(n)},
                                                    weight(config_.balance), r.dlogits, workspace, ex);
        }
        if (config_.z > 0)
            z = router_z_loss<simd::native, T>(r.logits, weight(config_.z), r.dlogits, workspace, ex);
        if (config_.importance > 0)
            importance = importance_loss<simd::native, T>(
                r.logits, config_.of_importance, weight(config_.importance), r.dlogits, workspace, ex);
        if (ex.dry()) return;
        balance_ += balance, z_ += z, importance_ += importance, ++calls_;
    }

private:
    double mean(double sum) const { return calls_ == 0 ? 0 : sum / static_cast<double>(calls_); }

    router_loss_config config_;
    double balance_ = 0, z_ = 0, importance_ = 0;
    idx calls_ = 0;
};

} // namespace SLUICE_ISA
} // namespace sluice
