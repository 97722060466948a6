// Root-mean-square and layer normalisation of rows, and what their backward passes need of one row.
//   RMSNorm:   y = x r scale,            r = 1 / sqrt(mean(x^2) + eps)          (Zhang and Sennrich, 2019)
//   LayerNorm: y = (x - m) r scale + b,  r = 1 / sqrt(mean((x - m)^2) + eps)    (Ba et al., 2016)
#pragma once

#include "../simd/pack.hpp"

namespace sluice::kernels {

// A block of rows of width n. `bias` may be null; `mean` null means RMSNorm.
template <class T>
struct norm_rows_args {
    const T* x;
    idx x_row;
    const T* scale;
    const T* bias;
    T* y; // forward: output
    idx y_row;
    T* inverse; // r of each row
    T* mean;    // m of each row
    idx rows, n;
    T eps;
};

struct norm_rows {
    template <class Arch, class T>
    void operator()(Arch, const norm_rows_args<T>& g) const;
};

// dx of a block of rows: with g = dy scale and h = (x - m) r,  dx = r (g - mean(g) - h mean(g h)), where the
// middle term is absent for RMSNorm. `x_row` etc. as above; dy and dx may be the same memory.
template <class T>
struct norm_dx_args {
    const T* x;
    idx x_row;
    const T* dy;
    idx dy_row;
    const T* scale;
    const T* inverse;
    const T* mean;
    T* dx;
    idx dx_row;
    idx rows, n;
};

struct norm_dx {
    template <class Arch, class T>
    void operator()(Arch, const norm_dx_args<T>& g) const;
};

// dscale += sum over rows of dy h and dbias += sum of dy, for columns [0, n) and rows in order.
struct norm_dscale {
    template <class Arch, class T>
    void operator()(Arch, const norm_dx_args<T>& g, T* dscale, T* dbias) const;
};

template <class T>
using norm_calls =
    simd::calls<simd::call<norm_rows, const norm_rows_args<T>&>, simd::call<norm_dx, const norm_dx_args<T>&>,
                simd::call<norm_dscale, const norm_dx_args<T>&, T*, T*>>;

template <class Arch, class T>
void norm_rows::operator()(Arch, const norm_rows_args<T>& g) const {
    using P = simd::pack<T, Arch>;
    for (idx i = 0; i < g.rows; ++i) {
        const T* x = g.x + i * g.x_row;
        T* y = g.y + i * g.y_row;
        T m = 0;
        if (g.mean != nullptr) {
            m = simd::sum_of_packs<P>(g.n,
                                      [&](P sum, idx j, idx k) { return sum + P::load_partial(x + j, k); }) /
                static_cast<T>(g.n);
            g.mean[i] = m;
        }
        const T squares = simd::sum_of_packs<P>(g.n, [&](P sum, idx j, idx k) {
            P d = P::load_partial(x + j, k) - P(m);
            if (k < P::size && g.mean != nullptr) d = zero_beyond(d, k);
            return fma(d, d, sum);
        });
        const T r = T(1) / std::sqrt(squares / static_cast<T>(g.n) + g.eps);
        g.inverse[i] = r;
        simd::for_each_pack<P>(g.n, [&](idx j, idx k) {
            __builtin_prefetch(x + g.x_row + j); // the next row
            P h = (P::load_partial(x + j, k) - P(m)) * P(r) * P::load_partial(g.scale + j, k);
            if (g.bias != nullptr) h = h + P::load_partial(g.bias + j, k);
            h.store_partial(y + j, k);
        });
    }
}

template <class Arch, class T>
void norm_dx::operator()(Arch, const norm_dx_args<T>& a) const {
    using P = simd::pack<T, Arch>;
    const T share = T(1) / static_cast<T>(a.n);
    for (idx i = 0; i < a.rows; ++i) {
        const T* x = a.x + i * a.x_row;
        const T* dy = a.dy + i * a.dy_row;
        T* dx = a.dx + i * a.dx_row;
        const T r = a.inverse[i];
        const T m = a.mean == nullptr ? T(0) : a.mean[i];
        auto g_at = [&](idx j, idx k) {
            return P::load_partial(dy + j, k) * P::load_partial(a.scale + j, k);
        };
        const T with_h = simd::sum_of_packs<P>(a.n, [&](P sum, idx j, idx k) {
            return fma(g_at(j, k), (P::load_partial(x + j, k) - P(m)) * P(r), sum); // g is zero beyond k
        });
        const T alone = a.mean == nullptr ? T(0) : simd::sum_of_packs<P>(a.n, [&](P sum, idx j, idx k) {
            return sum + g_at(j, k);
        });
        const P mean_gh(with_h * share), mean_g(alone * share);
        simd::for_each_pack<P>(a.n, [&](idx j, idx k) {
            const P g = g_at(j, k);
            const P h = (P::load_partial(x + j, k) - P(m)) * P(r);
            (P(r) * (g - mean_g - h * mean_gh)).store_partial(dx + j, k);
        });
    }
}

template <class Arch, class T>
void norm_dscale::operator()(Arch, const norm_dx_args<T>& a, T* dscale, T* dbias) const {
    using P = simd::pack<T, Arch>;
    simd::for_each_pack<P>(a.n, [&](idx j, idx k) {
        P scale_sum = P::load_partial(dscale + j, k);
        P bias_sum = dbias == nullptr ? P() : P::load_partial(dbias + j, k);
        for (idx i = 0; i < a.rows; ++i) {
            const P dy = P::load_partial(a.dy + i * a.dy_row + j, k);
            const P m(a.mean == nullptr ? T(0) : a.mean[i]);
            const P h = (P::load_partial(a.x + i * a.x_row + j, k) - m) * P(a.inverse[i]);
            scale_sum = fma(dy, h, scale_sum);
            bias_sum = bias_sum + dy;
        }
        scale_sum.store_partial(dscale + j, k);
        if (dbias != nullptr) bias_sum.store_partial(dbias + j, k);
    });
}

} // namespace sluice::kernels
