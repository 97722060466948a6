// Where a sequence is cut: at tokens that are unlike the one before them (Qu et al., "Dynamic large concept
// models", 2025, eqs. 5 and 6; Hwang et al., "Dynamic chunking", 2025, section 2.2.1).
//   p_t = (1 - cos(W_q h_{t-1}, W_k h_t)) / 2, p_0 = 1; t opens a segment where p_t >= threshold
// Not trained by the model's loss but through p: by the loss on the number of boundaries, and by what a layer
// weighs with p. At threshold 1/2 the sign of a product decides, alike in prompts and in decoding.
#pragma once

#include "../core/layer.hpp"
#include "../core/random.hpp"
#include "../ops/elementwise.hpp"
#include "../ops/matmul.hpp"
#include "../ops/segment.hpp"

namespace sluice {

// learned: as above. similarity: the same of h itself, without weights. every: a boundary each `interval`
// tokens, p 1 there and 0 elsewhere.
enum class boundary_rule { learned, similarity, every };
// sampled: with probability p, sharpened, drawn by batch::random_key and position.
enum class boundary_choice { threshold, sampled };

// The loss of train/boundary_loss.hpp: backward adds the gradient of `weight` times it. With `counts`, of
// which forward with a tape adds to what is there, and which the caller clears each step, it is a loss of all
// batches of a step whose forwards come before their backwards, or that were counted before (`counted`). For
// one thread that trains.
struct boundary_loss_config {
    double weight = 0;
    double ratio = 4; // R: tokens of a segment that are aimed at
    boundary_counts* counts = nullptr;
    bool counted = false; // counts are complete: forward adds nothing
};

struct boundary_config {
    idx d_model = 0;
    idx d_scan = 0; // width of both products of `learned`
    boundary_rule rule = boundary_rule::learned;
    boundary_choice forward_by = boundary_choice::threshold; // extend always goes by the threshold
    double threshold = 0.5;                                  // in (0, 1)
    double sharpness = 6; // of sampling: p^(1/s) above 1/2, 1 - (1 - p)^(1/s) below; 1: p itself
    idx interval = 0;     // of `every`
    idx max_segment = 0;  // tokens; 0: a segment may be of any length
    boundary_loss_config loss{};

    bool learned() const { return rule == boundary_rule::learned; }
    idx scan_width() const { // of what a token leaves for the next one
        return rule == boundary_rule::every ? 0 : learned() ? d_scan : d_model;
    }
    // Tokens of a segment where nothing is known of the text.
    double expected_ratio() const {
        return rule == boundary_rule::every ? static_cast<double>(interval) : loss.ratio;
    }
};

inline void check_boundaries(const boundary_config& c, std::string_view layer) {
    require_positive(c.d_model, layer, "boundary.d_model");
    if (c.learned()) require_positive(c.d_scan, layer, "boundary.d_scan");
    if (c.rule == boundary_rule::every) require_positive(c.interval, layer, "boundary.interval");
    require(c.threshold > 0 && c.threshold < 1, layer,
            "boundary.threshold must be in (0, 1), is " + std::to_string(c.threshold));
    require(std::isfinite(c.sharpness) && c.sharpness > 0, layer,
            "boundary.sharpness must be positive, is " + std::to_string(c.sharpness));
    require(c.max_segment >= 0, layer, "boundary.max_segment must not be negative");
    require(std::isfinite(c.loss.weight) && c.loss.weight >= 0, layer,
            "boundary.loss.weight must be finite and not negative");
    require(std::isfinite(c.loss.ratio) && c.loss.ratio > 1, layer,
            "boundary.loss.ratio must be above 1, is " + std::to_string(c.loss.ratio));
    require(c.loss.weight == 0 || c.rule != boundary_rule::every, layer,
            "boundary.loss moves nothing where boundaries are fixed");
}

// What sampling makes of a probability.
inline double sharpened(double p, double sharpness) {
    return p > 0.5 ? std::pow(p, 1 / sharpness) : 1 - std::pow(1 - p, 1 / sharpness);
}

template <class W>
struct boundary_params {
    tensor_view<W> w_q, w_k; // d_scan x d_model, or empty

    static boundary_params bind(arena& a, const boundary_config& c) {
        boundary_params p;
        if (!c.learned()) return p;
        p.w_q = a.take<W>(c.d_scan, c.d_model);
        p.w_k = a.take<W>(c.d_scan, c.d_model);
        return p;
    }
    template <class F, class First, class... Sets>
    static void each(F& f, const param_name& at, First& first, Sets&... sets) {
        if (first.w_q.empty()) return;
        f(param_name(at, "w_q"), role::matrix, first.w_q, sets.w_q...);
        f(param_name(at, "w_k"), role::matrix, first.w_k, sets.w_k...);
    }
};

// Both the same, so that p begins as unlikeness: the identity where they are square (H-Net's), else normal
// with deviation 1 / sqrt(d_model), which keeps angles roughly.
template <class T>
void initialise(const boundary_params<T>& p, const boundary_config& c, const random_source& numbers) {
    if (!c.learned()) return;
    for (const auto& w : {p.w_q, p.w_k}) {
        if (c.d_scan != c.d_model) {
            fill_normal(w, 1 / std::sqrt(static_cast<double>(c.d_model)), numbers);
            continue;
        }
        fill(w, T(0));
        for (idx i = 0; i < c.d_scan; ++i) w(i, i) = T(1);
    }
}

inline namespace SLUICE_ISA {

template <class T, class W = T, class Arch = simd::native>
class boundary_detector {
public:
    using scalar = T;
    using arch = Arch;
    using config_type = boundary_config;
    using params_type = boundary_params<W>;
    using grad_type = boundary_params<T>;

    // What a call finds, for backward as well.
    struct found {
        tensor_view<T> q, k;            // n_tokens x d_scan, or empty
        tensor_view<T> p;               // 1 x n_tokens
        std::uint8_t* starts = nullptr; // n_tokens: 1 where a segment begins
    };

    boundary_detector(const boundary_config& config, const params_type& params,
                      std::string_view layer = "boundary_detector")
        : config_(config), params_(params) {
        check_boundaries(config, layer);
        const bool learned = config.learned();
        const idx rows = learned ? config.d_scan : 0, cols = learned ? config.d_model : 0;
        require_shape(params.w_q, rows, cols, layer, "w_q");
        require_shape(params.w_k, rows, cols, layer, "w_k");
    }
    const boundary_config& config() const { return config_; }
    const params_type& params() const { return params_; }

    found take(arena& keep, idx n) const {
        found f;
        if (config_.learned()) {
            f.q = keep.take<T>(n, config_.d_scan);
            f.k = keep.take<T>(n, config_.d_scan);
        }
        f.p = keep.take<T>(1, n);
        f.starts = keep.take<std::uint8_t>(n);
        return f;
    }
    // What the token behind row i of h is compared with; scan_width() numbers.
    const T* scan_of(in<T> h, const found& f, idx i) const {
        return config_.scan_width() == 0 ? nullptr : (config_.learned() ? in<T>(f.q) : h).row(i);
    }

    // f of h (n_tokens, d_model). `past` (n_sequences) of sequences that go on, else null.
    void detect(const batch& b, in<T> h, boundary_choice by, const segment_past<T>* past, const found& f,
                arena& workspace, executor_ref ex) const {
        require_shape(h, b.n_tokens, config_.d_model, "boundary_detector", "h");
        if (config_.learned()) {
            matmul<Arch>(h, params_.w_q, f.q, {}, workspace, ex);
            matmul<Arch>(h, params_.w_k, f.k, {}, workspace, ex);
        }
        ex(b.n_tokens, [&](idx from, idx to, idx) {
            detail::for_each_segment(b, from, to, [&](idx s, idx i) {
                const idx at = i - b.first_token(s) + (past == nullptr ? 0 : past[s].tokens);
                score(h, f, i, at, i == b.first_token(s) && past != nullptr ? past[s].scan : nullptr);
            });
        });
        if (!ex.dry()) choose(b, by, past, f);
    }

    // From dp (1, n_tokens) to dh (n_tokens, d_model), added to, and the weights'. For batches without
    // earlier calls.
    void backward(const batch& b, in<T> h, const found& f, in<T> dp, tensor_view<T> dh, const grad_type& grad,
                  arena& workspace, executor_ref ex) const {
        if (config_.rule == boundary_rule::every) return;
        const arena::scope scope(workspace);
        const in<T> q = config_.learned() ? in<T>(f.q) : h, k = config_.learned() ? in<T>(f.k) : h;
        const auto dq = workspace.take<T>(b.n_tokens, q.cols()), dk = workspace.take<T>(b.n_tokens, k.cols());
        ex(b.n_tokens, [&](idx from, idx to, idx) {
            detail::for_each_segment(b, from, to, [&](idx s, idx i) { // row i of dk, of dq that before it
                if (i + 1 == b.first_token(s) + b.tokens(s)) std::fill_n(dq.row(i), q.cols(), T(0));
                if (i == b.first_token(s))
                    std::fill_n(dk.row(i), k.cols(), T(0));
                else
                    slopes(q.row(i - 1), k.row(i), q.cols(), dp(0, i), dq.row(i - 1), dk.row(i));
            });
        });
        if (!config_.learned()) {
            add<Arch>(dh, dq, dh, ex);
            add<Arch>(dh, dk, dh, ex);
            return;
        }
        matmul_dx<Arch>(dq, params_.w_q, dh, true, workspace, ex);
        matmul_dx<Arch>(dk, params_.w_k, dh, true, workspace, ex);
        matmul_dw<Arch>(dq, h, grad.w_q, workspace, ex);
        matmul_dw<Arch>(dk, h, grad.w_k, workspace, ex);
    }

    boundary_counts count(const found& f, idx n_tokens) const {
        boundary_counts c{.tokens = n_tokens};
        for (idx i = 0; i < n_tokens; ++i) {
            c.boundaries += f.starts[i];
            c.probability += static_cast<double>(f.p(0, i));
        }
        return c;
    }
    double flops(idx n_tokens) const {
        return 2.0 * static_cast<double>(n_tokens) *
               static_cast<double>(params_.w_q.size() + params_.w_k.size());
    }

private:
    struct products {
        T qk = 0, q = 0, k = 0; // |q|, |k|
        T cosine() const { return qk / (std::max(q, least) * std::max(k, least)); }
        static constexpr T least = T(1e-12);
    };
    static products multiply(const T* q, const T* k, idx n) {
        products p;
        simd::invoke(Arch{}, kernels::dot{}, q, k, n, &p.qk);
        simd::invoke(Arch{}, kernels::dot{}, q, q, n, &p.q);
        simd::invoke(Arch{}, kernels::dot{}, k, k, n, &p.k);
        p.q = std::sqrt(p.q), p.k = std::sqrt(p.k);
        return p;
    }
    // p of row i, the sequence's token `at`; `starts` as the threshold has it. `last`: what it is compared
    // with where that is not row i - 1.
    void score(in<T> h, const found& f, idx i, idx at, const T* last) const {
        if (config_.rule == boundary_rule::every || at == 0) {
            f.starts[i] = config_.rule != boundary_rule::every || at % config_.interval == 0 ? 1 : 0;
            f.p(0, i) = static_cast<T>(f.starts[i]);
            return;
        }
        const in<T> q = config_.learned() ? in<T>(f.q) : h, k = config_.learned() ? in<T>(f.k) : h;
        const products x = multiply(last != nullptr ? last : q.row(i - 1), k.row(i), k.cols());
        const T cosine = x.cosine(), p = (1 - cosine) / 2;
        f.p(0, i) = p < T(0) ? T(0) : p > T(1) ? T(1) : p; // NaN stays
        const bool half = config_.threshold == 0.5;
        f.starts[i] = (half ? x.qk <= T(0) : p >= static_cast<T>(config_.threshold)) ? 1 : 0;
    }
    void choose(const batch& b, boundary_choice by, const segment_past<T>* past, const found& f) const {
        const random_source numbers(b.random_key);
        const bool drawn = by == boundary_choice::sampled && config_.rule != boundary_rule::every;
        for (idx s = 0; s < b.n_sequences(); ++s) {
            const idx first = b.first_token(s), tokens = past == nullptr ? 0 : past[s].tokens;
            idx open = past == nullptr ? 0 : past[s].open;
            for (idx i = first; i < first + b.tokens(s); ++i) {
                std::uint8_t& start = f.starts[i];
                if (drawn && tokens + i > first) {
                    const double p = sharpened(static_cast<double>(f.p(0, i)), config_.sharpness);
                    start = numbers.uniform(b.position(s, i)) < p ? 1 : 0;
                }
                if (config_.max_segment > 0 && open >= config_.max_segment) start = 1;
                open = start != 0 ? 1 : open + 1;
            }
        }
    }
    // p = (1 - q^ k^) / 2 with unit vectors q^, k^; a vector of no length has no slope.
    static void slopes(const T* q, const T* k, idx n, T dp, T* dq, T* dk) {
        const products x = multiply(q, k, n);
        const T cosine = x.cosine();
        auto slope = [&](const T* own, T length, const T* other, T other_length, T* d) {
            if (!(length > products::least)) return static_cast<void>(std::fill_n(d, n, T(0)));
            const T factor = -dp / (2 * length);
            simd::invoke(Arch{}, kernels::scale_elements{}, other,
                         factor / std::max(other_length, products::least), d, n);
            simd::invoke(Arch{}, kernels::add_scaled{}, own, -factor * cosine / length, d, n);
        };
        slope(q, x.q, k, x.k, dq);
        slope(k, x.k, q, x.q, dk);
    }

    boundary_config config_;
    params_type params_;
};

} // namespace SLUICE_ISA
} // namespace sluice
