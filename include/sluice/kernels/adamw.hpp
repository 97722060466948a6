// One step of AdamW on a run of elements (Loshchilov and Hutter, "Decoupled weight decay regularization",
// 2019, algorithm 2, with the decay multiplied by the rate).
#pragma once

#include "../simd/pack.hpp"

namespace sluice::kernels {

template <class T>
struct adamw_args {
    T* weight;
    const T* gradient;
    T *mean, *square; // first and second moment
    idx n;
    T gradient_scale; // clipping
    T beta1, beta2;
    T step_size;    // rate / (1 - beta1^t)
    T square_scale; // 1 / (1 - beta2^t)
    T eps;
    T keep; // 1 - rate * decay
};

struct adamw_step {
    template <class Arch, class T>
    void operator()(Arch, const adamw_args<T>& a) const;
};

template <class T>
using adamw_calls = simd::calls<simd::call<adamw_step, const adamw_args<T>&>>;

template <class Arch, class T>
void adamw_step::operator()(Arch, const adamw_args<T>& a) const {
    using P = simd::pack<T, Arch>;
    simd::for_each_pack<P>(a.n, [&](idx j, idx k) {
        const P g = P::load_partial(a.gradient + j, k) * P(a.gradient_scale);
        const P mean = fma(P(a.beta1), P::load_partial(a.mean + j, k), P(T(1) - a.beta1) * g);
        const P square = fma(P(a.beta2), P::load_partial(a.square + j, k), P(T(1) - a.beta2) * g * g);
        const P change = P(a.step_size) * mean / (sqrt(square * P(a.square_scale)) + P(a.eps));
        mean.store_partial(a.mean + j, k);
        square.store_partial(a.square + j, k);
        (P::load_partial(a.weight + j, k) * P(a.keep) - change).store_partial(a.weight + j, k);
    });
}

} // namespace sluice::kernels
