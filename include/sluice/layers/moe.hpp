// Mixture of experts: a router sends each token to a few feed-forward experts, and their outputs come back
// weighted (Shazeer et al., "Outrageously large neural networks", 2017; Jiang et al., "Mixtral of experts",
// 2024; DeepSeek-AI, "DeepSeek-V3", 2024).
//   y = sum_j w_j F_{e_j}(x) [+ shared(x), or sigmoid(x . v) shared(x)],   or F_{e_j}(w_j x) (Llama 4)
// No token is dropped unless the router has a capacity. A token's bits do not depend on the others.
#pragma once

#include "../ops/routing.hpp"
#include "feed_forward.hpp"

namespace sluice {

enum class shared_gate { none, sigmoid };
enum class router_weight_on { output, input };

struct moe_config {
    idx d_model = 0;
    router_config router{};
    feed_forward_config expert{}; // d_model may be left out
    idx shared_d_ff = 0;          // of an expert that every token goes to, of the same kind; 0: none
    shared_gate gate = shared_gate::none;
    router_weight_on weight_on = router_weight_on::output;
    bool router_bias = false;
    tensor_view<const std::int32_t> hash_table{}; // vocabulary x top_k, where the router looks experts up
    sluice::router_hook router_hook{};            // sees each backward: losses on the router, statistics

    feed_forward_config expert_config() const {
        feed_forward_config c = expert;
        c.d_model = d_model;
        return c;
    }
    feed_forward_config shared_config() const {
        feed_forward_config c = expert_config();
        c.d_ff = shared_d_ff;
        return c;
    }
    idx n_experts() const { return router.n_experts - router.n_identity - router.n_null; } // with weights
    bool learns_noise() const { return router.noise.kind == router_noise::learnt; }
};

template <class W>
struct moe_params {
    using V = vector_type<W>;
    tensor_view<V> router;                      // router.n_experts x d_model
    tensor_view<V> router_bias, selection_bias; // 1 x router.n_experts, or empty
    tensor_view<V> router_noise;                // as router, of learnt noise, or empty
    std::span<feed_forward_params<W>> experts;  // the views themselves live in the arena they were bound from
    feed_forward_params<W> shared;              // or empty
    tensor_view<V> shared_gate;                 // 1 x d_model, or empty

    static moe_params bind(arena& a, const moe_config& c) {
        require(c.n_experts() >= 1, "moe", "there must be an expert");
        moe_params p;
        p.router = a.take<V>(c.router.n_experts, c.d_model);
        if (c.router_bias) p.router_bias = a.take<V>(1, c.router.n_experts);
        if (c.router.selection_bias) p.selection_bias = a.take<V>(1, c.router.n_experts);
        if (c.learns_noise()) p.router_noise = a.take<V>(c.router.n_experts, c.d_model);
        auto* at = a.take_views<feed_forward_params<W>>(c.n_experts());
        if (at == nullptr)
            a.count(c.n_experts(), [&] { (void)feed_forward_params<W>::bind(a, c.expert_config()); });
        for (idx e = 0; at != nullptr && e < c.n_experts(); ++e)
            at[e] = feed_forward_params<W>::bind(a, c.expert_config());
        p.experts = {at, at == nullptr ? 0 : static_cast<std::size_t>(c.n_experts())};
        if (c.shared_d_ff > 0) p.shared = feed_forward_params<W>::bind(a, c.shared_config());
        if (c.shared_d_ff > 0 && c.gate == sluice::shared_gate::sigmoid)
            p.shared_gate = a.take<V>(1, c.d_model);
        return p;
    }
    template <class F, class First, class... Sets>
    static void each(F& f, const param_name& at, First& first, Sets&... sets) {
        f(param_name(at, "router"), role::matrix, first.router, sets.router...);
        if (!first.router_bias.empty())
            f(param_name(at, "router_bias"), role::vector, first.router_bias, sets.router_bias...);
        if (!first.selection_bias.empty())
            f(param_name(at, "selection_bias"), role::buffer, first.selection_bias, sets.selection_bias...);
        if (!first.router_noise.empty())
            f(param_name(at, "router_noise"), role::matrix, first.router_noise, sets.router_noise...);
        const param_name experts(at, "experts");
        for (std::size_t e = 0; e < first.experts.size(); ++e)
            feed_forward_params<W>::each(f, param_name(experts, static_cast<idx>(e)), first.experts[e],
                                         sets.experts[e]...);
        if (!first.shared.w_up.empty())
            feed_forward_params<W>::each(f, param_name(at, "shared"), first.shared, sets.shared...);
        if (!first.shared_gate.empty())
            f(param_name(at, "shared_gate"), role::vector, first.shared_gate, sets.shared_gate...);
    }
};

// The router normal with deviation 0.02 (as DeepSeek-V3 and Qwen initialise all matrices), so that experts
// start evenly used; experts as feed_forward; biases, the shared gate and learnt noise zero.
template <class T>
void initialise(const moe_params<T>& p, const moe_config& c, const random_source& numbers) {
    fill_normal(p.router, 0.02, numbers.split(0));
    for (const auto& b : {p.router_bias, p.selection_bias, p.router_noise, p.shared_gate}) fill(b, T(0));
    for (std::size_t e = 0; e < p.experts.size(); ++e)
        initialise(p.experts[e], c.expert_config(), numbers.split(2 + e));
    if (c.shared_d_ff > 0) initialise(p.shared, c.shared_config(), numbers.split(1));
}

// Sparse upcycling (Komatsuzaki et al., "Sparse upcycling: training mixture-of-experts from dense
// checkpoints", 2023): every expert is `dense`, a view of its memory, and the router is normal with deviation
// 0.02. The mixture computes what `dense` does: the same bits with one expert a token, to rounding with more.
// To be trained, the set is copied into one of its own. Throws config_error where a token's weights would not
// sum to
// 1. A dry arena is only counted.
template <class W>
moe_params<W> upcycle(const feed_forward_params<W>& dense, const moe_config& c, const random_source& numbers,
                      arena& memory) {
    using V = std::remove_const_t<vector_type<W>>;
    const auto& r = c.router;
    const bool whole = r.weights.norm == weight_norm::sum && r.weights.eps == 0 && r.weights.scale == 1 &&
                       r.capacity.rule == capacity_rule::none && r.choice == router_choice::tokens;
    require(whole && c.weight_on == router_weight_on::output && r.n_identity == 0 && r.n_null == 0, "upcycle",
            "the weights of a token must sum to 1, and no expert may be dropped or without weights");
    require(c.shared_d_ff == 0 && !c.router_bias && !c.learns_noise(), "upcycle",
            "there is no shared expert, router bias or learnt noise to begin with");
    const auto router = memory.take<V>(r.n_experts, c.d_model);
    moe_params<W> p;
    p.router = router;
    tensor_view<V> bias;
    if (r.selection_bias) p.selection_bias = bias = memory.take<V>(1, r.n_experts);
    auto* const at = memory.take_views<feed_forward_params<W>>(r.n_experts);
    if (at == nullptr) return p;
    fill_normal(router, 0.02, numbers);
    fill(bias, V(0));
    std::fill_n(at, r.n_experts, dense);
    p.experts = {at, static_cast<std::size_t>(r.n_experts)};
    return p;
}

inline namespace SLUICE_ISA {

template <class T, class W = T, class Arch = simd::native>
class moe {
public:
    using scalar = T;
    using arch = Arch;
    static constexpr bool trainable = std::is_same_v<std::remove_const_t<W>, T>; // weights stored as T
    using config_type = moe_config;
    using params_type = moe_params<W>;
    using grad_type = moe_params<T>;
    using state_type = no_state;

    moe(const moe_config& config, const params_type& params) : config_(config), params_(params) {
        require_positive(config.d_model, "moe", "d_model");
        check_router(config.router, "moe");
        require(config.router.choice != router_choice::soft, "moe", "soft routing is another layer's");
        require(config.expert.d_model == 0 || config.expert.d_model == config.d_model, "moe",
                "expert.d_model must be d_model, or left out");
        require(config.shared_d_ff >= 0, "moe", "shared_d_ff must not be negative");
        require(config.gate == shared_gate::none || config.shared_d_ff > 0, "moe",
                "a shared gate needs a shared expert");
        const auto& c = config.router;
        require_shape(params.router, c.n_experts, config.d_model, "moe", "router");
        require_shape(params.router_bias, config.router_bias, config.router_bias ? c.n_experts : 0, "moe",
                      "router_bias");
        require_shape(params.router_noise, config.learns_noise() ? c.n_experts : 0,
                      config.learns_noise() ? config.d_model : 0, "moe", "router_noise");
        require_shape(params.selection_bias, c.selection_bias, c.selection_bias ? c.n_experts : 0, "moe",
                      "selection_bias");
        if (static_cast<idx>(params.experts.size()) != config.n_experts())
            SLUICE_THROW(config_error("moe: params hold " + std::to_string(params.experts.size()) +
                                      " experts, the config says " + std::to_string(config.n_experts())));
        (void)experts(); // checks their shapes
        const bool gated = config.gate == shared_gate::sigmoid;
        if (config.shared_d_ff > 0) (void)shared();
        require_shape(params.shared_gate, gated, gated ? config.d_model : 0, "moe", "shared_gate");
    }

    const moe_config& config() const { return config_; }
    const params_type& params() const { return params_; }
    idx d_in() const { return config_.d_model; }
    idx d_out() const { return config_.d_model; }

    // b.ids are read where experts are looked up by token; with a tape b.random_key draws jitter and noise.
    void forward(const batch& b, in<T> x, tensor_view<T> y, arena* tape, arena& workspace,
                 executor_ref ex = {}) const {
        require_shape(x, b.rows(), d_in(), "moe", "x");
        require_shape(y, b.rows(), d_in(), "moe", "y");
        SLUICE_ASSERT(apart(y, x));
        if (tape != nullptr && !ex.dry()) check_router(config_.router, "moe", router_use::training);
        auto again = [&](executor_ref dry) { forward(b, x, y, tape, workspace, dry); };
        tape == nullptr ? rehearse(ex, again) : rehearse(ex, tape, again);
        const arena::scope scope(workspace);
        arena& keep = tape == nullptr ? workspace : *tape;
        record r = take(b.rows(), tape != nullptr, keep);
        const inputs of = jittered(b, x, tape != nullptr, workspace, ex);
        matmul<Arch>(of.router, params_.router, r.logits, {.bias = params_.router_bias}, workspace, ex);
        if (!r.spread.empty()) matmul<Arch>(of.router, params_.router_noise, r.spread, {}, workspace, ex);
        if (!r.noisy.empty())
            perturb_logits<T>(config_.router.noise, noise_key(b), r.logits, r.spread, r.noisy, ex);
        route<Arch, T>(config_.router, r.noisy.empty() ? r.logits : r.noisy,
                       {.bias = params_.selection_bias, .ids = b.ids, .hash_table = config_.hash_table},
                       r.indices, r.weights, workspace, ex);
        r.plan = plan_slots(r.indices, plan_room(b.rows()), keep, ex);
        const idx rows = r.plan.n_rows(), most = r.plan.most_rows;
        r.inner = experts().take(keep, most, rows);
        r.out = keep.take<T>(most, d_in()).row_block(0, rows);
        const bool on_input = config_.weight_on == router_weight_on::input;
        {
            const arena::scope inner(workspace);
            const auto gathered = workspace.take<T>(rows, d_in());
            gather_slots<Arch, T>(r.plan, of.experts, on_input ? r.weights : tensor_view<T>(), gathered, ex);
            experts().forward(r.plan.offsets, gathered, r.out, r.inner, tape != nullptr, workspace, ex);
        }
        combine_slots<Arch, T>(r.plan, r.out, on_input ? tensor_view<T>() : r.weights, y, ex);
        if (config_.router.n_identity > 0) add_identity<Arch, T>(r.plan, of.experts, r.weights, y, ex);
        if (config_.shared_d_ff > 0) {
            r.shared = keep.take<T>(b.rows(), d_in());
            r.opened = keep.take<T>(b.rows(), 1);
            shared().forward(rows_of(b.rows()), of.experts, r.shared, tape, workspace, ex);
            add_shared(of.experts, r, y, ex);
        }
        if (tape != nullptr) tape->push_record(r);
    }

    // b as in forward, its random_key too. grad.selection_bias counts the rows that chose each expert: see
    // update_selection_bias in train/balance.hpp.
    void backward(const batch& b, in<T> x, in<T> dy, tensor_view<T> dx, arena& tape, const grad_type& grad,
                  arena& workspace, executor_ref ex = {}) const {
        check_backward<T>(b, x, dy, dx, d_in(), d_in(), "moe");
        SLUICE_ASSERT(apart(dx, dy));
        rehearse(ex, &tape, [&](executor_ref dry) { backward(b, x, dy, dx, tape, grad, workspace, dry); });
        const arena::scope scope(workspace);
        const idx n = b.rows(), k = config_.router.slots(), n_logits = config_.router.n_experts;
        record r = tape.pop_record<record>();
        arena taken;
        if (const record shapes = counted(n, taken); tape.dry()) r = shapes;
        const idx rows = r.plan.n_rows();
        const bool on_input = config_.weight_on == router_weight_on::input;
        const inputs of = jittered(b, x, true, workspace, ex);
        const auto dshared = workspace.take<T>(n, d_in()); // the gradient of x through the shared expert
        if (config_.shared_d_ff > 0) {
            shared_backward(of.experts, dy, r, dshared, tape, grad, workspace, ex);
            (void)tape.pop<T>(n, 1), (void)tape.pop<T>(n, d_in());
        }
        const auto dweights = workspace.take<T>(n, k), dlogits = workspace.take<T>(n, n_logits);
        const auto dout = workspace.take<T>(rows, d_in()), gathered = workspace.take<T>(rows, d_in()),
                   drows = workspace.take<T>(rows, d_in());
        const tensor_view<T> none;
        gather_slots<Arch, T>(r.plan, dy, on_input ? none : r.weights, dout, ex);
        gather_slots<Arch, T>(r.plan, of.experts, on_input ? r.weights : none, gathered, ex);
        if (!on_input) slot_products<Arch, T>(r.plan, dy, r.out, of.experts, dweights, ex);
        experts().backward(r.plan.offsets, gathered, dout, drows, r.inner, grad.experts, workspace, ex);
        if (on_input) slot_products<Arch, T>(r.plan, of.experts, drows, dy, dweights, ex);
        combine_slots<Arch, T>(r.plan, drows, on_input ? r.weights : none, dx, ex);
        if (config_.router.n_identity > 0) add_identity<Arch, T>(r.plan, dy, r.weights, dx, ex);
        if (config_.shared_d_ff > 0) add<Arch, T>(dx, dshared, dx, ex);
        const bool whole = config_.router.noise.on == jitter_on::layer;
        const auto through_router = whole ? dx : workspace.take<T>(n, d_in());
        route_backward<Arch, T>(config_.router, r.noisy.empty() ? r.logits : r.noisy, r.indices, dweights,
                                dlogits, workspace, ex);
        router_backward(b, of.router, r, dlogits, through_router, whole, grad, workspace, ex);
        if (config_.router.noise.jitter > 0)
            jitter<T>(config_.router.noise.jitter, jitter_key(b), through_router, through_router, ex);
        if (!whole) add<Arch, T>(dx, through_router, dx, ex);
        tape.release(tape.used() - taken.used());
    }

    no_state bind_state(arena&, const limits&) const { return {}; }
    void extend(const batch& b, in<T> x, tensor_view<T> y, no_state&, arena& workspace,
                executor_ref ex = {}) const {
        forward(b, x, y, nullptr, workspace, ex);
    }
    sizes bytes(const limits& most) const { return layer_bytes(*this, most); }
    // Of the experts that a token goes to, as if none were dropped or the identity.
    double flops(idx n_tokens, idx = 0) const {
        double each = 2.0 * static_cast<double>(params_.router.size());
        each += static_cast<double>(config_.router.top_k) *
                ffn(config_.expert_config(), params_.experts[0]).flops(1);
        if (config_.shared_d_ff > 0) each += shared().flops(1);
        return each * static_cast<double>(n_tokens);
    }

private:
    using ffn = feed_forward<T, W, Arch>;
    using grouped = grouped_feed_forward<T, W, Arch>;

    struct record { // what backward needs
        tensor_view<T> logits, noisy, spread, weights, out, shared, opened;
        tensor_view<std::int32_t> indices;
        routing_plan plan;
        typename grouped::taped inner;
    };
    record take(idx n, bool training, arena& keep) const {
        const auto& c = config_.router;
        const bool noise = training && c.noise.kind != router_noise::none;
        record r;
        r.logits = keep.take<T>(n, c.n_experts);
        if (noise) r.noisy = keep.take<T>(n, c.n_experts);
        if (noise && c.noise.kind == router_noise::learnt) r.spread = keep.take<T>(n, c.n_experts);
        r.indices = keep.take<std::int32_t>(n, c.slots());
        r.weights = keep.take<T>(n, c.slots());
        return r;
    }
    plan_limits plan_room(idx n) const {
        plan_limits p{config_.n_experts(), config_.router.n_identity, config_.router.n_null};
        if (config_.router.capacity.rule != capacity_rule::none) p.room = expert_capacity(config_.router, n);
        return p;
    }
    // What the record of a dry run is, shapes, and what forward takes for any: all but what the shared expert
    // keeps, which comes last.
    record counted(idx n, arena& taken) const {
        dry_run nobody;
        record r = take(n, true, taken);
        r.plan = plan_slots(r.indices, plan_room(n), taken, nobody);
        r.inner = experts().take(taken, r.plan.most_rows, r.plan.n_rows());
        r.out = taken.take<T>(r.plan.n_rows(), d_in());
        r.shared = {nullptr, n, d_in()};
        r.opened = {nullptr, n, 1};
        return r;
    }

    static std::uint64_t jitter_key(const batch& b) { return random_source(b.random_key).split(0).key(); }
    static std::uint64_t noise_key(const batch& b) { return random_source(b.random_key).split(1).key(); }
    struct inputs {
        in<T> router, experts;
    };
    inputs jittered(const batch& b, in<T> x, bool training, arena& workspace, executor_ref ex) const {
        const auto& noise = config_.router.noise;
        if (!training || noise.jitter == 0) return {x, x};
        const auto rough = workspace.take<T>(x.rows(), x.cols());
        jitter<T>(noise.jitter, jitter_key(b), x, rough, ex);
        return {rough, noise.on == jitter_on::layer ? in<T>(rough) : x};
    }
    // From the gradient of the logits, noise and all, to the router's and to that of what it read.
    void router_backward(const batch& b, in<T> x, const record& r, tensor_view<T> dlogits, tensor_view<T> dx,
                         bool add_dx, const grad_type& grad, arena& workspace, executor_ref ex) const {
        const auto dspread = workspace.take<T>(r.spread.rows(), r.spread.cols());
        if (!r.spread.empty()) perturb_logits_backward<T>(noise_key(b), r.spread, dlogits, dspread, ex);
        const routing_record<T> done{b, r.logits, r.noisy, r.spread, r.indices, dlogits, dspread};
        config_.router_hook(done, workspace, ex);
        matmul_dx<Arch, T>(dlogits, params_.router, dx, add_dx, workspace, ex);
        matmul_dw<Arch, T>(dlogits, x, grad.router, workspace, ex);
        if (config_.router_bias) add_rows<Arch, T>(dlogits, grad.router_bias, ex);
        if (!r.spread.empty()) {
            matmul_dx<Arch, T>(dspread, params_.router_noise, dx, true, workspace, ex);
            matmul_dw<Arch, T>(dspread, x, grad.router_noise, workspace, ex);
        }
        if (ex.dry() || grad.selection_bias.empty()) return;
        for (idx t = 0; t < r.indices.rows(); ++t)
            for (idx j = 0; j < r.indices.cols(); ++j) {
                const std::int32_t e = r.indices(t, j);
                grad.selection_bias(0, e < 0 ? ~e : e) += 1;
            }
    }

    grouped experts() const { return grouped(config_.expert_config(), params_.experts); }
    ffn shared() const { return ffn(config_.shared_config(), params_.shared); }
    static batch rows_of(idx n) { return {.n_tokens = n}; }

    // y += shared, or sigmoid(x . v) shared; r.opened keeps the sigmoid.
    void add_shared(in<T> x, const record& r, tensor_view<T> y, executor_ref ex) const {
        if (config_.gate == shared_gate::none) return add<Arch, T>(y, r.shared, y, ex);
        ex(y.rows(), [&](idx begin, idx end, idx) {
            for (idx i = begin; i < end; ++i) {
                T sum = 0;
                simd::invoke(Arch{}, kernels::dot{}, x.row(i),
                             static_cast<const T*>(params_.shared_gate.data()), x.cols(), &sum);
                r.opened(i, 0) = 1 / (1 + std::exp(-sum));
                simd::invoke(Arch{}, kernels::add_scaled{}, static_cast<const T*>(r.shared.row(i)),
                             r.opened(i, 0), y.row(i), y.cols());
            }
        });
    }
    void shared_backward(in<T> x, in<T> dy, const record& r, tensor_view<T> dx, arena& tape,
                         const grad_type& grad, arena& workspace, executor_ref ex) const {
        if (config_.gate == shared_gate::none)
            return shared().backward(rows_of(x.rows()), x, dy, dx, tape, grad.shared, workspace, ex);
        const arena::scope scope(workspace);
        const auto scaled = workspace.take<T>(x.rows(), x.cols()), dsum = workspace.take<T>(x.rows(), 1);
        ex(x.rows(), [&](idx begin, idx end, idx) {
            for (idx i = begin; i < end; ++i) {
                const T open = r.opened(i, 0);
                T sum = 0;
                simd::invoke(Arch{}, kernels::dot{}, dy.row(i), static_cast<const T*>(r.shared.row(i)),
                             x.cols(), &sum);
                dsum(i, 0) = sum * open * (1 - open);
                simd::invoke(Arch{}, kernels::scale_elements{}, dy.row(i), open, scaled.row(i), x.cols());
            }
        });
        shared().backward(rows_of(x.rows()), x, scaled, dx, tape, grad.shared, workspace, ex);
        matmul_dx<Arch, T>(dsum, params_.shared_gate, dx, true, workspace, ex);
        matmul_dw<Arch, T>(dsum, x, grad.shared_gate, workspace, ex);
    }

    moe_config config_;
    params_type params_;
};

} // namespace SLUICE_ISA
} // namespace sluice
