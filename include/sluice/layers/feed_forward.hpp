// The position-wise feed-forward layer.
//   swiglu, geglu, quick_geglu: y = (act(x W_gate^T) * (x W_up^T)) W_down^T   (Shazeer, "GLU variants
//   improve transformer", 2020; quick_geglu with x sigmoid(1.702 x), and clamps and an offset by choice)
//   gelu, relu: y = act(x W_up^T) W_down^T   (Vaswani et al., 2017)
// Each of the products with a bias by choice. And many of them in one region, each over rows of its own.
#pragma once

#include "../core/layer.hpp"
#include "../core/random.hpp"
#include "../ops/activation.hpp"
#include "../ops/elementwise.hpp"
#include "../ops/matmul.hpp"

namespace sluice {

enum class feed_forward_kind { swiglu, geglu, gelu, relu, quick_geglu };

struct feed_forward_config {
    idx d_model = 0;
    idx d_ff = 0; // inner width
    feed_forward_kind kind = feed_forward_kind::swiglu;
    bool bias = false;
    glu_form glu{}; // of the gated kinds

    bool gated() const { return kind != feed_forward_kind::gelu && kind != feed_forward_kind::relu; }
    activation act() const {
        using enum feed_forward_kind;
        return kind == swiglu        ? activation::silu
               : kind == relu        ? activation::relu
               : kind == quick_geglu ? activation::quick_gelu
                                     : activation::gelu;
    }
};

template <class W>
struct feed_forward_params {
    tensor_view<W> w_gate;                            // d_ff x d_model, or empty
    tensor_view<W> w_up;                              // d_ff x d_model
    tensor_view<W> w_down;                            // d_model x d_ff
    tensor_view<vector_type<W>> b_gate, b_up, b_down; // 1 x d_ff, 1 x d_ff, 1 x d_model, or empty

    static feed_forward_params bind(arena& a, const feed_forward_config& c) {
        feed_forward_params p;
        if (c.gated()) p.w_gate = a.take<W>(c.d_ff, c.d_model);
        p.w_up = a.take<W>(c.d_ff, c.d_model);
        p.w_down = a.take<W>(c.d_model, c.d_ff);
        if (c.bias && c.gated()) p.b_gate = a.take<vector_type<W>>(1, c.d_ff);
        if (c.bias) p.b_up = a.take<vector_type<W>>(1, c.d_ff);
        if (c.bias) p.b_down = a.take<vector_type<W>>(1, c.d_model);
        return p;
    }
    template <class F, class First, class... Sets>
    static void each(F& f, const param_name& at, First& first, Sets&... sets) {
        if (!first.w_gate.empty()) f(param_name(at, "w_gate"), role::matrix, first.w_gate, sets.w_gate...);
        f(param_name(at, "w_up"), role::matrix, first.w_up, sets.w_up...);
        f(param_name(at, "w_down"), role::matrix, first.w_down, sets.w_down...);
        if (!first.b_gate.empty()) f(param_name(at, "b_gate"), role::vector, first.b_gate, sets.b_gate...);
        if (!first.b_up.empty()) f(param_name(at, "b_up"), role::vector, first.b_up, sets.b_up...);
        if (!first.b_down.empty()) f(param_name(at, "b_down"), role::vector, first.b_down, sets.b_down...);
    }
};

// Inner maps normal with deviation 1 / sqrt(fan-in); the output map and all biases zero, so that a block
// starts as the identity (Zhang et al., "Fixup initialization", 2019).
template <class T>
void initialise(const feed_forward_params<T>& p, const feed_forward_config& c, const random_source& numbers) {
    const double deviation = 1 / std::sqrt(static_cast<double>(c.d_model));
    fill_normal(p.w_gate, deviation, numbers.split(0));
    fill_normal(p.w_up, deviation, numbers.split(1));
    fill(p.w_down, T(0));
    for (const auto& b : {p.b_gate, p.b_up, p.b_down}) fill(b, T(0));
}

inline namespace SLUICE_ISA {

namespace detail {

// From gate and up before the activation, whose gradients take their place; `hidden` is memory like theirs.
template <class Arch, class T, class W>
void feed_forward_backward(const feed_forward_config& c, const feed_forward_params<W>& w, in<T> x, in<T> dy,
                           tensor_view<T> dx, tensor_view<T> gate, tensor_view<T> up, tensor_view<T> hidden,
                           const feed_forward_params<T>& grad, arena& workspace, executor_ref ex) {
    const in<T> none;
    activate<Arch, T>(c.act(), c.gated() ? gate : up, c.gated() ? in<T>(up) : none, hidden, ex, c.glu);
    matmul_dw<Arch, T>(dy, hidden, grad.w_down, workspace, ex);
    if (c.bias) add_rows<Arch, T>(dy, grad.b_down, ex);
    const auto dhidden = hidden; // no longer needed
    matmul_dx<Arch, T>(dy, w.w_down, dhidden, false, workspace, ex);
    if (c.gated())
        activate_backward<Arch, T>(c.act(), gate, up, dhidden, gate, up, ex, c.glu);
    else
        activate_backward<Arch, T>(c.act(), up, {}, dhidden, up, {}, ex);
    auto inner = [&](in<T> d, const tensor_view<W>& weights, bool add, tensor_view<T> dw, tensor_view<T> db) {
        matmul_dx<Arch, T>(d, weights, dx, add, workspace, ex);
        matmul_dw<Arch, T>(d, x, dw, workspace, ex);
        if (c.bias) add_rows<Arch, T>(d, db, ex);
    };
    inner(up, w.w_up, false, grad.w_up, grad.b_up);
    if (c.gated()) inner(gate, w.w_gate, true, grad.w_gate, grad.b_gate);
}

} // namespace detail

template <class T, class W = T, class Arch = simd::native>
class feed_forward {
public:
    using scalar = T;
    using arch = Arch;
    static constexpr bool trainable = std::is_same_v<std::remove_const_t<W>, T>; // weights stored as T
    using config_type = feed_forward_config;
    using params_type = feed_forward_params<W>;
    using grad_type = feed_forward_params<T>;
    using state_type = no_state;

    feed_forward(const feed_forward_config& config, const params_type& params)
        : config_(config), params_(params) {
        const auto& [d, f, kind, bias, glu] = config;
        require_positive(d, "feed_forward", "d_model");
        require_positive(f, "feed_forward", "d_ff");
        const bool gated = config.gated();
        require(gated || glu.plain(), "feed_forward", "a clamp or an offset needs a gated kind");
        require(glu.clamp > 0 && std::isfinite(glu.offset), "feed_forward",
                "glu.clamp must be positive and glu.offset finite");
        require_shape(params.w_gate, gated ? f : 0, gated ? d : 0, "feed_forward", "w_gate");
        require_shape(params.w_up, f, d, "feed_forward", "w_up");
        require_shape(params.w_down, d, f, "feed_forward", "w_down");
        require_shape(params.b_gate, bias && gated, bias && gated ? f : 0, "feed_forward", "b_gate");
        require_shape(params.b_up, bias, bias ? f : 0, "feed_forward", "b_up");
        require_shape(params.b_down, bias, bias ? d : 0, "feed_forward", "b_down");
    }

    const feed_forward_config& config() const { return config_; }
    const params_type& params() const { return params_; }
    idx d_in() const { return config_.d_model; }
    idx d_out() const { return config_.d_model; }

    // The tape keeps the values before the activation; the product of both is computed again in backward.
    void forward(const batch& b, in<T> x, tensor_view<T> y, arena* tape, arena& workspace,
                 executor_ref ex = {}) const {
        require_shape(x, b.rows(), config_.d_model, "feed_forward", "x");
        require_shape(y, b.rows(), config_.d_model, "feed_forward", "y");
        const arena::scope scope(workspace);
        const auto [gate, up] = inner(b.rows(), tape == nullptr ? workspace : *tape);
        const auto hidden = tape == nullptr ? up : workspace.take<T>(b.rows(), config_.d_ff);
        if (config_.gated()) {
            const gated_weights<W> w{.gate = params_.w_gate,
                                     .up = params_.w_up,
                                     .gate_bias = params_.b_gate,
                                     .up_bias = params_.b_up,
                                     .act = config_.act(),
                                     .form = config_.glu};
            matmul_gated<Arch>(x, w, gate, up, hidden, workspace, ex);
        } else {
            matmul<Arch>(x, params_.w_up, up, {.bias = params_.b_up}, workspace, ex);
            activate<Arch>(config_.act(), up, {}, hidden, ex);
        }
        matmul<Arch>(hidden, params_.w_down, y, {.bias = params_.b_down}, workspace, ex);
    }

    void backward(const batch& b, in<T> x, in<T> dy, tensor_view<T> dx, arena& tape, const grad_type& grad,
                  arena& workspace, executor_ref ex = {}) const {
        check_backward<T>(b, x, dy, dx, d_in(), d_out(), "feed_forward");
        rehearse(ex, &tape, [&](executor_ref dry) { backward(b, x, dy, dx, tape, grad, workspace, dry); });
        const arena::scope scope(workspace);
        const auto up = tape.pop<T>(b.rows(), config_.d_ff);
        const auto gate = config_.gated() ? tape.pop<T>(b.rows(), config_.d_ff) : tensor_view<T>();
        const auto hidden = workspace.take<T>(b.rows(), config_.d_ff);
        detail::feed_forward_backward<Arch, T>(config_, params_, x, dy, dx, gate, up, hidden, grad, workspace,
                                               ex);
    }

    no_state bind_state(arena&, const limits&) const { return {}; }
    void extend(const batch& b, in<T> x, tensor_view<T> y, no_state&, arena& workspace,
                executor_ref ex = {}) const {
        forward(b, x, y, nullptr, workspace, ex);
    }
    sizes bytes(const limits& most) const { return layer_bytes(*this, most); }
    double flops(idx n_tokens, idx = 0) const {
        const idx weights = params_.w_gate.size() + params_.w_up.size() + params_.w_down.size();
        return 2.0 * static_cast<double>(n_tokens) * static_cast<double>(weights);
    }

private:
    struct pair {
        tensor_view<T> gate, up;
    };
    pair inner(idx n, arena& keep) const {
        const auto gate = config_.gated() ? keep.take<T>(n, config_.d_ff) : tensor_view<T>();
        return {gate, keep.take<T>(n, config_.d_ff)};
    }
    feed_forward_config config_;
    params_type params_;
};

// Feed-forwards of one config, each over rows of its own: the experts of a mixture. Rows lie one expert's
// after another's: expert e has rows offsets[e] to offsets[e + 1]. Each gives the bits that feed_forward
// gives; all of them together take two regions, whatever their number. In a dry run offsets are null.
template <class T, class W = T, class Arch = simd::native>
class grouped_feed_forward {
public:
    grouped_feed_forward(const feed_forward_config& config, std::span<const feed_forward_params<W>> experts)
        : config_(config), experts_(experts) {
        for (const auto& p : experts) feed_forward<T, W, Arch>(config, p); // checks it
    }

    struct taped { // before the activation
        tensor_view<T> gate, up;
    };
    // For `most` rows, of which n are used.
    taped take(arena& keep, idx most, idx n) const {
        const idx f = config_.d_ff;
        const auto gate = config_.gated() ? keep.take<T>(most, f).row_block(0, n) : tensor_view<T>();
        return {gate, keep.take<T>(most, f).row_block(0, n)};
    }
    taped pop(arena& tape, idx most) const {
        const auto up = tape.pop<T>(most, config_.d_ff);
        return {config_.gated() ? tape.pop<T>(most, config_.d_ff) : tensor_view<T>(), up};
    }

    // y (rows, d_model) from x; `kept` (take) for backward, or, with none wanted, where the products lie.
    void forward(const std::int32_t* offsets, in<T> x, tensor_view<T> y, const taped& kept, bool backward,
                 arena& workspace, executor_ref ex) const {
        require_shape(x, y.rows(), config_.d_model, "grouped_feed_forward", "x");
        require_shape(y, x.rows(), config_.d_model, "grouped_feed_forward", "y");
        const arena::scope scope(workspace);
        const bool gated = config_.gated();
        const auto hidden = backward ? workspace.take<T>(x.rows(), config_.d_ff) : kept.up;
        using P = feed_forward_params<W>;
        const auto rows = detail::product_rows_of<Arch, W>(x, workspace, ex);
        auto up = [&](idx e) { return product_of(offsets, rows, e, &P::w_up, &P::b_up, kept.up); };
        auto inner = [&](idx e) {
            return gated ? product_of(offsets, rows, e, &P::w_gate, &P::b_gate, kept.gate) : up(e);
        };
        const auto n = static_cast<idx>(experts_.size());
        detail::run_products<T>(n, inner(all), inner, workspace, ex,
                                [&](idx e, const auto& task, const auto& with) {
                                    in<T> factor;
                                    if (gated) {
                                        up(e).multiply(task, with);
                                        factor = rows_of(offsets, e, kept.up);
                                    }
                                    detail::activate_block<Arch, T>(task, config_.act(), inner(e).c, factor,
                                                                    rows_of(offsets, e, hidden), config_.glu);
                                });
        const auto inside = detail::product_rows_of<Arch, W>(in<T>(hidden), workspace, ex);
        auto outer = [&](idx e) { return product_of(offsets, inside, e, &P::w_down, &P::b_down, y); };
        detail::run_products<T>(n, outer(all), outer, workspace, ex, [](idx, const auto&, const auto&) {});
    }

    // dx from dy, which it may be; gradients take the place of what was kept.
    void backward(const std::int32_t* offsets, in<T> x, in<T> dy, tensor_view<T> dx, const taped& kept,
                  std::span<const feed_forward_params<T>> grad, arena& workspace, executor_ref ex) const {
        const arena::scope scope(workspace);
        const auto hidden = workspace.take<T>(x.rows(), config_.d_ff);
        auto one = [&](const auto& w, in<T> xs, in<T> dys, tensor_view<T> dxs, tensor_view<T> gate,
                       tensor_view<T> up, tensor_view<T> h, const feed_forward_params<T>& g) {
            detail::feed_forward_backward<Arch, T>(config_, w, xs, dys, dxs, gate, up, h, g, workspace, ex);
        };
        if (offsets == nullptr) // the most rows that one of them can have
            return one(params_of(all), x, dy, dx, kept.gate, kept.up, hidden, shapes<T>());
        for (std::size_t e = 0; e < experts_.size(); ++e) {
            auto part = [&](const auto& t) { return rows_of(offsets, static_cast<idx>(e), t); };
            if (part(x).rows() > 0)
                one(experts_[e], part(x), part(dy), part(dx), part(kept.gate), part(kept.up), part(hidden),
                    grad[e]);
        }
    }

private:
    static constexpr idx all = -1; // rows, of the shape that every expert has

    template <class S>
    feed_forward_params<S> shapes() const {
        arena dry;
        return feed_forward_params<S>::bind(dry, config_);
    }
    feed_forward_params<W> params_of(idx e) const {
        return e == all ? shapes<W>() : experts_[static_cast<std::size_t>(e)];
    }
    template <class V>
    static V rows_of(const std::int32_t* offsets, idx e, const V& t) {
        return e == all || t.empty() ? t : t.row_block(offsets[e], offsets[e + 1] - offsets[e]);
    }
    template <class Rows, class Weights, class Bias>
    auto product_of(const std::int32_t* offsets, const Rows& x, idx e, Weights w, Bias b,
                    const tensor_view<T>& y) const {
        const auto p = params_of(e);
        auto made =
            detail::make_product<Arch>(rows_of(offsets, e, x), p.*w, rows_of(offsets, e, y), {.bias = p.*b});
        made.grouped = true;
        return made;
    }
    feed_forward_config config_;
    std::span<const feed_forward_params<W>> experts_;
};

} // namespace SLUICE_ISA
} // namespace sluice
