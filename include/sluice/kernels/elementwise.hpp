// Sums and dot products of rows in one pass.
#pragma once

#include "../simd/pack.hpp"

namespace sluice::kernels {

// y = a + b for n elements; y may be a or b.
struct add_elements {
    template <class Arch, class T>
    void operator()(Arch, const T* a, const T* b, T* y, idx n) const;
};

// y = a s for n elements; y may be a.
struct scale_elements {
    template <class Arch, class T>
    void operator()(Arch, const T* a, T s, T* y, idx n) const;
};

// y += a s for n elements.
struct add_scaled {
    template <class Arch, class T>
    void operator()(Arch, const T* a, T s, T* y, idx n) const;
};

// out = sum of a b over n elements, in a fixed order.
struct dot {
    template <class Arch, class T>
    void operator()(Arch, const T* a, const T* b, idx n, T* out) const;
};

// Sum of squares in a fixed order, in double.
struct sum_squares {
    template <class Arch, class T>
    void operator()(Arch, const T* x, idx n, double* out) const;
};

template <class T>
using elementwise_calls =
    simd::calls<simd::call<add_elements, const T*, const T*, T*, idx>,
                simd::call<scale_elements, const T*, T, T*, idx>,
                simd::call<add_scaled, const T*, T, T*, idx>, simd::call<dot, const T*, const T*, idx, T*>,
                simd::call<sum_squares, const T*, idx, double*>>;

template <class Arch, class T>
void add_elements::operator()(Arch, const T* a, const T* b, T* y, idx n) const {
    using P = simd::pack<T, Arch>;
    simd::for_each_pack<P>(n, [&](idx j, idx k) {
        (P::load_partial(a + j, k) + P::load_partial(b + j, k)).store_partial(y + j, k);
    });
}

template <class Arch, class T>
void scale_elements::operator()(Arch, const T* a, T s, T* y, idx n) const {
    using P = simd::pack<T, Arch>;
    simd::for_each_pack<P>(n,
                           [&](idx j, idx k) { (P::load_partial(a + j, k) * P(s)).store_partial(y + j, k); });
}

template <class Arch, class T>
void add_scaled::operator()(Arch, const T* a, T s, T* y, idx n) const {
    using P = simd::pack<T, Arch>;
    simd::for_each_pack<P>(n, [&](idx j, idx k) {
        fma(P::load_partial(a + j, k), P(s), P::load_partial(y + j, k)).store_partial(y + j, k);
    });
}

template <class Arch, class T>
void dot::operator()(Arch, const T* a, const T* b, idx n, T* out) const {
    using P = simd::pack<T, Arch>;
    P total{};
    simd::for_each_pack<P>(
        n, [&](idx j, idx k) { total = fma(P::load_partial(a + j, k), P::load_partial(b + j, k), total); });
    *out = total.sum();
}

template <class Arch, class T>
void sum_squares::operator()(Arch, const T* x, idx n, double* out) const {
    double lanes[16] = {};
    for (idx j = 0; j < n; ++j) lanes[j % 16] += static_cast<double>(x[j]) * static_cast<double>(x[j]);
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    *out = lanes[0];
}

} // namespace sluice::kernels
