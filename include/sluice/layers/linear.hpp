// y = x W^T (+ bias): the plain linear map.
#pragma once

#include "../core/layer.hpp"
#include "../core/random.hpp"
#include "../ops/elementwise.hpp"
#include "../ops/matmul.hpp"

namespace sluice {

struct linear_config {
    idx d_in = 0, d_out = 0;
    bool bias = false;
};

template <class W>
struct linear_params {
    tensor_view<W> w;                 // d_out x d_in
    tensor_view<vector_type<W>> bias; // 1 x d_out, or empty

    static linear_params bind(arena& a, const linear_config& c) {
        linear_params p;
        p.w = a.take<W>(c.d_out, c.d_in);
        if (c.bias) p.bias = a.take<vector_type<W>>(1, c.d_out);
        return p;
    }
    template <class F, class First, class... Sets>
    static void each(F& f, const param_name& at, First& first, Sets&... sets) {
        f(param_name(at, "w"), role::matrix, first.w, sets.w...);
        if (!first.bias.empty()) f(param_name(at, "bias"), role::vector, first.bias, sets.bias...);
    }
};

// Weights normal with deviation 1 / sqrt(d_in), which keeps the variance of unit inputs (LeCun et al.,
// "Efficient backprop", 1998); bias zero.
template <class T>
void initialise(const linear_params<T>& p, const linear_config& c, const random_source& numbers) {
    fill_normal(p.w, 1 / std::sqrt(static_cast<double>(c.d_in)), numbers);
    fill(p.bias, T(0));
}

inline namespace SLUICE_ISA {

template <class T, class W = T, class Arch = simd::native>
class linear {
public:
    using scalar = T;
    using arch = Arch;
    static constexpr bool trainable = std::is_same_v<std::remove_const_t<W>, T>; // weights stored as T
    using config_type = linear_config;
    using params_type = linear_params<W>;
    using grad_type = linear_params<T>;
    using state_type = no_state;

    // Throws config_error where a size is not positive or a tensor has another shape.
    linear(const linear_config& config, const params_type& params) : config_(config), params_(params) {
        require_positive(config.d_in, "linear", "d_in");
        require_positive(config.d_out, "linear", "d_out");
        require_shape(params.w, config.d_out, config.d_in, "linear", "w");
        require_shape(params.bias, config.bias ? 1 : 0, config.bias ? config.d_out : 0, "linear", "bias");
    }

    const linear_config& config() const { return config_; }
    const params_type& params() const { return params_; }
    idx d_in() const { return config_.d_in; }
    idx d_out() const { return config_.d_out; }

    // y (n_tokens, d_out) from x (n_tokens, d_in).
    void forward(const batch& b, in<T> x, tensor_view<T> y, arena*, arena& workspace,
                 executor_ref ex = {}) const {
        require_shape(x, b.rows(), config_.d_in, "linear", "x");
        require_shape(y, b.rows(), config_.d_out, "linear", "y");
        matmul<Arch>(x, params_.w, y, {.bias = params_.bias}, workspace, ex);
    }
    void backward(const batch& b, in<T> x, in<T> dy, tensor_view<T> dx, arena& tape, const grad_type& grad,
                  arena& workspace, executor_ref ex = {}) const {
        check_backward<T>(b, x, dy, dx, d_in(), d_out(), "linear");
        rehearse(ex, &tape, [&](executor_ref dry) { backward(b, x, dy, dx, tape, grad, workspace, dry); });
        matmul_dx<Arch>(dy, params_.w, dx, false, workspace, ex);
        matmul_dw<Arch>(dy, x, grad.w, workspace, ex);
        if (config_.bias) add_rows<Arch>(dy, grad.bias, ex);
    }

    no_state bind_state(arena&, const limits&) const { return {}; }
    void extend(const batch& b, in<T> x, tensor_view<T> y, no_state&, arena& workspace,
                executor_ref ex = {}) const {
        forward(b, x, y, nullptr, workspace, ex);
    }
    sizes bytes(const limits& most) const { return layer_bytes(*this, most); }
    // Multiplications and additions of one forward call.
    double flops(idx n_tokens, idx = 0) const {
        return 2.0 * static_cast<double>(n_tokens) * static_cast<double>(params_.w.size());
    }

private:
    linear_config config_;
    params_type params_;
};

} // namespace SLUICE_ISA
} // namespace sluice
