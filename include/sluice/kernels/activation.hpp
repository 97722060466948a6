// Activations, element by element, and the gated pair act(gate) * up (Shazeer, "GLU variants improve
// transformer", 2020). GELU is the exact form x Phi(x), quick GELU x sigmoid(1.702 x) (Hendrycks and
// Gimpel, 2016).
#pragma once

#include "../core/error.hpp"
#include "../simd/math.hpp"

namespace sluice {

enum class activation { silu, gelu, relu, quick_gelu };

// What a gated pair does beside: act(min(gate, clamp)) * (clamp(up, -clamp, clamp) + offset), as gpt-oss
// (clamp 7, offset 1, quick GELU) and DeepSeek-V4 (a clamp, SiLU) have it. Values that are cut have gradient
// 0.
struct glu_form {
    double clamp = std::numeric_limits<double>::infinity();
    double offset = 0;

    bool plain() const { return clamp == std::numeric_limits<double>::infinity() && offset == 0; }
};

// Calls f with the kind as a compile-time constant.
template <class F>
void with_activation(activation kind, F&& f) {
    using enum activation;
    switch (kind) {
    case silu:
        return f(std::integral_constant<activation, silu>{});
    case gelu:
        return f(std::integral_constant<activation, gelu>{});
    case relu:
        return f(std::integral_constant<activation, relu>{});
    case quick_gelu:
        return f(std::integral_constant<activation, quick_gelu>{});
    }
    SLUICE_THROW(config_error("activation: unknown kind " + std::to_string(static_cast<int>(kind))));
}

} // namespace sluice

namespace sluice::kernels {

// act(x)
template <activation Kind, class P>
SLUICE_INLINE P activate(P x) {
    using T = typename P::value_type;
    if constexpr (Kind == activation::silu)
        return silu(x);
    else if constexpr (Kind == activation::gelu)
        return gelu(x);
    else if constexpr (Kind == activation::quick_gelu)
        return silu(P(T(1.702)) * x) * P(T(1 / 1.702)); // 0 at -inf, where x sigmoid(x) is not
    else
        return select(x < P(T(0)), P(T(0)), x); // NaN stays NaN
}

// d act(x) / dx; 0 for ReLU at 0
template <activation Kind, class P>
SLUICE_INLINE P activation_slope(P x) {
    using T = typename P::value_type;
    if constexpr (Kind == activation::silu)
        return silu_slope(x);
    else if constexpr (Kind == activation::gelu)
        return gelu_slope(x);
    else if constexpr (Kind == activation::quick_gelu)
        return silu_slope(P(T(1.702)) * x);
    else
        return select(P(T(0)) < x, P(T(1)), P(T(0)));
}

// y = act(x) for n elements, or with `up`: y = act(x) * up in that form. y may be x or up.
template <activation Kind>
struct activation_forward {
    template <class Arch, class T>
    void operator()(Arch, const T* x, const T* up, T* y, idx n, glu_form form = {}) const;
};

// dx = dy act'(x), or with `up`: dx = dy up act'(x) and dup = dy act(x). dx may be dy or x, dup may be up.
template <activation Kind>
struct activation_backward {
    template <class Arch, class T>
    void operator()(Arch, const T* x, const T* up, const T* dy, T* dx, T* dup, idx n,
                    glu_form form = {}) const;
};

template <class T, activation... Kinds>
using activation_calls = simd::calls<
    simd::call<activation_forward<Kinds>, const T*, const T*, T*, idx, const glu_form&>...,
    simd::call<activation_backward<Kinds>, const T*, const T*, const T*, T*, T*, idx, const glu_form&>...>;

// The linear half of a pair: clamp(up, -clamp, clamp) + offset; NaN stays NaN.
template <class P>
struct glu_bounds {
    P most, offset;

    explicit glu_bounds(glu_form form)
        : most(static_cast<typename P::value_type>(form.clamp)),
          offset(static_cast<typename P::value_type>(form.offset)) {}
    SLUICE_INLINE P gate(P x) const { return select(most < x, most, x); }
    SLUICE_INLINE P linear(P up) const { return select(up < -most, -most, gate(up)) + offset; }
    SLUICE_INLINE P where_gate(P x, P d) const { return select(most < x, P(0), d); }
    SLUICE_INLINE P where_linear(P up, P d) const { return select(up < -most, P(0), where_gate(up, d)); }
};

template <activation Kind>
template <class Arch, class T>
void activation_forward<Kind>::operator()(Arch, const T* x, const T* up, T* y, idx n, glu_form form) const {
    using P = simd::pack<T, Arch>;
    if (up != nullptr && !form.plain()) {
        const glu_bounds<P> bounds(form);
        return simd::for_each_pack<P>(
            n, [&](idx j, idx k) __attribute__((always_inline)) {
                const P gate = activate<Kind>(bounds.gate(P::load_partial(x + j, k)));
                (gate * bounds.linear(P::load_partial(up + j, k))).store_partial(y + j, k);
            });
    }
    simd::for_each_pack<P>(
        n, [&](idx j, idx k) __attribute__((always_inline)) {
            P a = activate<Kind>(P::load_partial(x + j, k));
            if (up != nullptr) a = a * P::load_partial(up + j, k);
            a.store_partial(y + j, k);
        });
}

template <activation Kind>
template <class Arch, class T>
void activation_backward<Kind>::operator()(Arch, const T* x, const T* up, const T* dy, T* dx, T* dup, idx n,
                                           glu_form form) const {
    using P = simd::pack<T, Arch>;
    if (up != nullptr && !form.plain()) {
        const glu_bounds<P> bounds(form);
        return simd::for_each_pack<P>(
            n, [&](idx j, idx k) __attribute__((always_inline)) {
                const P xs = P::load_partial(x + j, k), us = P::load_partial(up + j, k);
                const P d = P::load_partial(dy + j, k);
                const P slope = activation_slope<Kind>(bounds.gate(xs));
                bounds.where_linear(us, d * activate<Kind>(bounds.gate(xs))).store_partial(dup + j, k);
                bounds.where_gate(xs, d * bounds.linear(us) * slope).store_partial(dx + j, k);
            });
    }
    simd::for_each_pack<P>(
        n, [&](idx j, idx k) __attribute__((always_inline)) {
            const P xs = P::load_partial(x + j, k);
            const P d = P::load_partial(dy + j, k);
            if (up == nullptr) {
                (d * activation_slope<Kind>(xs)).store_partial(dx + j, k);
            } else {
                const P us = P::load_partial(up + j, k);
                (d * activate<Kind>(xs)).store_partial(dup + j, k);
                (d * us * activation_slope<Kind>(xs)).store_partial(dx + j, k);
            }
        });
}

} // namespace sluice::kernels
