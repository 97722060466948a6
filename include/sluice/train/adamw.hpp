// AdamW over a whole parameter set: roles decide what decays, groups may have their own rate, gradients may
// be clipped by their global norm (Pascanu et al., "On the difficulty of training recurrent neural networks",
// 2013).
#pragma once

#include "../core/params.hpp"
#include "../ops/adamw.hpp"

#include <cmath>

namespace sluice {

struct adamw_config {
    double rate = 1e-3;
    double beta1 = 0.9, beta2 = 0.95;
    double eps = 1e-8;
    double decay = 0.1; // of matrices
    double clip = 0;    // largest global norm of the gradient; 0: no limit
};

// What a rule says about one tensor.
struct adamw_group {
    double rate_factor = 1;
    bool decay = false;
    double eps_factor = 1;
};

// The usual rule: matrices decay; vectors, embeddings and tables do not.
struct decay_matrices {
    adamw_group operator()(const param_name&, role r) const { return {.decay = r == role::matrix}; }
};

inline namespace SLUICE_ISA {

// sqrt of the sum of squares over all tensors but buffers.
template <class Arch = simd::native, class P>
double global_norm(const P& gradients, arena& workspace, executor_ref ex = {}) {
    double total = 0;
    each_param(
        [&](const param_name&, role r, const auto& g) {
            using T = typename std::remove_cvref_t<decltype(g)>::value_type;
            if (r != role::buffer) total += sum_of_squares<Arch, T>(g, workspace, ex);
        },
        gradients);
    return std::sqrt(total);
}

// One step; `step` counts from 1. Tables (large memories; see row_adam.hpp) and buffers are left alone.
// Gradients and moments may be sets of another kind, whose tables hold touched rows. Returns the gradient's
// global norm before clipping. Throws input_error, and changes nothing, when that norm is not finite.
template <class Arch = simd::native, class P, class G, class Rule = decay_matrices>
double adamw(P& weights, const G& gradients, G& means, G& squares, const adamw_config& c, idx step,
             arena& workspace, executor_ref ex = {}, const Rule& rule = {}) {
    require(step >= 1, "adamw", "step counts from 1");
    const double norm_before = global_norm<Arch>(gradients, workspace, ex);
    if (!std::isfinite(norm_before) && !ex.dry())
        SLUICE_THROW(input_error("adamw: the gradient of step " + std::to_string(step) + " is not finite"));
    const double shrink = c.clip > 0 && norm_before > c.clip ? c.clip / norm_before : 1;
    const double t = static_cast<double>(step);
    each_param(
        [&](const param_name& name, role r, const auto& w, const auto& g, const auto& m, const auto& v) {
            using T = typename std::remove_cvref_t<decltype(w)>::value_type;
            if (r == role::buffer || r == role::table) return;
            const adamw_group group = rule(name, r);
            const double rate = c.rate * group.rate_factor;
            kernels::adamw_args<T> a{};
            a.gradient_scale = static_cast<T>(shrink);
            a.beta1 = static_cast<T>(c.beta1);
            a.beta2 = static_cast<T>(c.beta2);
            // of the betas as T rounds them: the moments are sums with those, and 1 - 0.999 in float is 1e-5
            // off
            a.step_size = static_cast<T>(rate / (1 - std::pow(static_cast<double>(a.beta1), t)));
            a.square_scale = static_cast<T>(1 / (1 - std::pow(static_cast<double>(a.beta2), t)));
            a.eps = static_cast<T>(c.eps * group.eps_factor);
            // rounded once, so that flags make no difference
            a.keep = static_cast<T>(group.decay ? std::fma(-rate, c.decay, 1.0) : 1);
            adamw_update<Arch, T>(w, g, m, v, a, ex);
        },
        weights, gradients, means, squares);
    return norm_before;
}

} // namespace SLUICE_ISA
} // namespace sluice
