// Activations, element by element, and the gated pair act(gate) * up (Shazeer, "GLU variants improve
// transformer", 2020). GELU is the exact form x Phi(x) (Hendrycks and Gimpel, 2016).
#pragma once

#include "../core/error.hpp"
#include "../simd/math.hpp"

namespace sluice {

enum class activation { silu, gelu, relu };

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
    else
        return select(P(T(0)) < x, P(T(1)), P(T(0)));
}

// y = act(x) for n elements, or with `up`: y = act(x) * up. y may be x or up.
template <activation Kind>
struct activation_forward {
    template <class Arch, class T>
    void operator()(Arch, const T* x, const T* up, T* y, idx n) const;
};

// dx = dy act'(x), or with `up`: dx = dy up act'(x) and dup = dy act(x). dx may be dy or x, dup may be up.
template <activation Kind>
struct activation_backward {
    template <class Arch, class T>
    void operator()(Arch, const T* x, const T* up, const T* dy, T* dx, T* dup, idx n) const;
};

template <class T, activation... Kinds>
using activation_calls =
    simd::calls<simd::call<activation_forward<Kinds>, const T*, const T*, T*, idx>...,
                simd::call<activation_backward<Kinds>, const T*, const T*, const T*, T*, T*, idx>...>;

template <activation Kind>
template <class Arch, class T>
void activation_forward<Kind>::operator()(Arch, const T* x, const T* up, T* y, idx n) const {
    using P = simd::pack<T, Arch>;
    simd::for_each_pack<P>(
        n, [&](idx j, idx k) __attribute__((always_inline)) {
            P a = activate<Kind>(P::load_partial(x + j, k));
            if (up != nullptr) a = a * P::load_partial(up + j, k);
            a.store_partial(y + j, k);
        });
}

template <activation Kind>
template <class Arch, class T>
void activation_backward<Kind>::operator()(Arch, const T* x, const T* up, const T* dy, T* dx, T* dup,
                                           idx n) const {
    using P = simd::pack<T, Arch>;
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
