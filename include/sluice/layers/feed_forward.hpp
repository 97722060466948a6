// The position-wise feed-forward layer.
//   swiglu, geglu, quick_geglu: y = (act(x W_gate^T) * (x W_up^T)) W_down^T   (Shazeer, "GLU variants
//   improve transformer", 2020; quick_geglu with x sigmoid(1.702 x), and clamps and an offset by choice)
//   gelu, relu: y = act(x W_up^T) W_down^T   (Vaswani et al., 2017)
// Each of the products with a bias by choice.
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
        activate_inner(gate, up, hidden, ex);
        matmul_dw<Arch>(dy, hidden, grad.w_down, workspace, ex);
        if (config_.bias) add_rows<Arch>(dy, grad.b_down, ex);
        const auto dhidden = hidden; // no longer needed
        matmul_dx<Arch>(dy, params_.w_down, dhidden, false, workspace, ex);
        // gradients take the place of the taped values
        if (config_.gated())
            activate_backward<Arch>(config_.act(), gate, up, dhidden, gate, up, ex, config_.glu);
        else
            activate_backward<Arch>(config_.act(), up, {}, dhidden, up, {}, ex);
        inner_backward(x, up, dx, false, params_.w_up, grad.w_up, grad.b_up, workspace, ex);
        if (config_.gated())
            inner_backward(x, gate, dx, true, params_.w_gate, grad.w_gate, grad.b_gate, workspace, ex);
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
    void activate_inner(in<T> gate, in<T> up, tensor_view<T> hidden, executor_ref ex) const {
        if (config_.gated())
            activate<Arch>(config_.act(), gate, up, hidden, ex, config_.glu);
        else
            activate<Arch>(config_.act(), up, {}, hidden, ex);
    }
    void inner_backward(in<T> x, in<T> dinner, tensor_view<T> dx, bool add, const tensor_view<W>& w,
                        tensor_view<T> dw, tensor_view<T> db, arena& workspace, executor_ref ex) const {
        matmul_dx<Arch>(dinner, w, dx, add, workspace, ex);
        matmul_dw<Arch>(dinner, x, dw, workspace, ex);
        if (config_.bias) add_rows<Arch>(dinner, db, ex);
    }

    feed_forward_config config_;
    params_type params_;
};

} // namespace SLUICE_ISA
} // namespace sluice
