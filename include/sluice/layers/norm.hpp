// RMSNorm and LayerNorm as a layer.
#pragma once

#include "../core/layer.hpp"
#include "../core/random.hpp"
#include "../ops/norm.hpp"

namespace sluice {

enum class norm_kind { rms, layer };

struct norm_config {
    idx d_model = 0;
    norm_kind kind = norm_kind::rms;
    double eps = 1e-6;
};

template <class W>
struct norm_params {
    tensor_view<vector_type<W>> scale; // 1 x d_model
    tensor_view<vector_type<W>> bias;  // 1 x d_model for LayerNorm, or empty

    static norm_params bind(arena& a, const norm_config& c) {
        norm_params p;
        p.scale = a.take<vector_type<W>>(1, c.d_model);
        if (c.kind == norm_kind::layer) p.bias = a.take<vector_type<W>>(1, c.d_model);
        return p;
    }
    template <class F, class First, class... Sets>
    static void each(F& f, const param_name& at, First& first, Sets&... sets) {
        f(param_name(at, "scale"), role::vector, first.scale, sets.scale...);
        if (!first.bias.empty()) f(param_name(at, "bias"), role::vector, first.bias, sets.bias...);
    }
};

template <class T>
void initialise(const norm_params<T>& p, const norm_config&, const random_source&) {
    fill(p.scale, T(1));
    fill(p.bias, T(0));
}

inline namespace SLUICE_ISA {

template <class T, class W = T, class Arch = simd::native>
class norm {
public:
    using scalar = T;
    using arch = Arch;
    static constexpr bool trainable = true; // vectors are stored as T
    using config_type = norm_config;
    using params_type = norm_params<W>;
    using grad_type = norm_params<T>;
    using state_type = no_state;

    norm(const norm_config& config, const params_type& params) : config_(config), params_(params) {
        require_positive(config.d_model, "norm", "d_model");
        require(config.eps >= 0, "norm", "eps must not be negative");
        require_shape(params.scale, 1, config.d_model, "norm", "scale");
        require_shape(params.bias, centred() ? 1 : 0, centred() ? config.d_model : 0, "norm", "bias");
    }

    const norm_config& config() const { return config_; }
    const params_type& params() const { return params_; }
    idx d_in() const { return config_.d_model; }
    idx d_out() const { return config_.d_model; }

    // y may be x unless there is a tape: backward wants x.
    void forward(const batch& b, in<T> x, tensor_view<T> y, arena* tape, arena& workspace,
                 executor_ref ex = {}) const {
        require_shape(x, b.rows(), config_.d_model, "norm", "x");
        const arena::scope scope(workspace);
        arena& keep = tape == nullptr ? workspace : *tape;
        const auto inverse = keep.take<T>(1, b.rows());
        const auto mean = centred() ? keep.take<T>(1, b.rows()) : tensor_view<T>();
        normalise<Arch, T>(x, params_.scale, params_.bias, y, inverse, mean, static_cast<T>(config_.eps), ex);
    }
    // dx may be dy.
    void backward(const batch& b, in<T> x, in<T> dy, tensor_view<T> dx, arena& tape, const grad_type& grad,
                  arena&, executor_ref ex = {}) const {
        check_backward<T>(b, x, dy, dx, d_in(), d_out(), "norm");
        const auto mean = centred() ? tape.pop<T>(1, b.rows()) : tensor_view<T>();
        const auto inverse = tape.pop<T>(1, b.rows());
        normalise_backward<Arch, T>(x, params_.scale, inverse, mean, dy, dx, grad.scale, grad.bias, ex);
    }

    no_state bind_state(arena&, const limits&) const { return {}; }
    void extend(const batch& b, in<T> x, tensor_view<T> y, no_state&, arena& workspace,
                executor_ref ex = {}) const {
        forward(b, x, y, nullptr, workspace, ex);
    }
    sizes bytes(const limits& most) const { return layer_bytes(*this, most); }
    double flops(idx n_tokens, idx = 0) const {
        return 4.0 * static_cast<double>(n_tokens) * static_cast<double>(config_.d_model);
    }

private:
    bool centred() const { return config_.kind == norm_kind::layer; }

    norm_config config_;
    params_type params_;
};

} // namespace SLUICE_ISA
} // namespace sluice
