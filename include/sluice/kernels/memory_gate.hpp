// What Engram does to the rows it has looked up (Cheng et al., "Conditional memory via scalable lookup",
// 2026, section 2.3), forward and backward. With h the stream, k the keys and v the value of a token, for
// each residual branch of width d by itself:
//   s = <norm(h), norm(k)> / sqrt(d),  a = sigmoid(phi(s)),  u = a v,  x = norm(u),  y = u + silu(conv(x))
// All norms are RMSNorm; conv is causal, depthwise and dilated.
#pragma once

#include "../simd/math.hpp"

namespace sluice {

// phi: as it is (the paper, eq. 4), or copysign(sqrt(max(|s|, 1e-6)), s), as published models are trained.
enum class gate_form { plain, signed_root };

} // namespace sluice

namespace sluice::kernels {

// A block of tokens. What has a value for each token and branch is rows x branches without gaps.
template <class T>
struct memory_gate_args {
    const T* h; // branches side by side
    idx h_row;
    const T* keys; // as h
    const T* value;
    idx keys_row, value_row;
    const T* gain;            // branches x d: scale of norm(h) times scale of norm(k)
    T *score, *gate;          // s, a
    T *h_inverse, *k_inverse; // 1 / rms
    const T* x_scale;         // branches x d; null: no convolution, and no x
    idx x_scale_row;
    T *x, *x_inverse;
    idx x_row;
    idx rows, branches, d;
    T eps, x_eps;
    gate_form form;
};

struct memory_gate {
    template <class Arch, class T>
    void operator()(Arch, const memory_gate_args<T>& a) const;
};

// The taps of a convolution, `row` apart, and what each is to be multiplied by; a null source is zero.
template <class T>
struct tap_sources {
    const T* taps;
    idx row, n;
    const T* const* sources;
};

// One token's y = gate v + silu(sum over j of taps[j] x(t - j)), branches side by side.
struct memory_output {
    template <class Arch, class T>
    void operator()(Arch, const T* gate, const T* value, const tap_sources<T>& conv, idx branches, idx d,
                    T* y) const;
};

// One token's dz = dy silu'(z), with z as above, n elements.
struct memory_dz {
    template <class Arch, class T>
    void operator()(Arch, const T* dy, const tap_sources<T>& conv, idx n, T* dz) const;
};

// One token: from dy, and from dz of itself and the tokens after it that see it, to dx of its normed value,
// the gradients of value, keys and h, and the factor of the gradients of both scales.
template <class T>
struct memory_gate_backward_args {
    const T *h, *keys, *value, *gain, *dy;
    const T *score, *gate, *h_inverse, *k_inverse; // of the branches
    const T* x_scale;                              // null: no convolution
    idx x_scale_row;
    const T* x_inverse;
    tap_sources<T> dz; // of the tokens that see this one
    idx branches, d;
    T* dx;
    T *dvalue, *dkeys, *dh;
    T* factor; // of the branches: d loss / d s, times both 1 / rms, over sqrt(d)
    gate_form form;
};

struct memory_gate_backward {
    template <class Arch, class T>
    void operator()(Arch, const memory_gate_backward_args<T>& a) const;
};

// out = sum over rows of factor[i] a(i) b(i), n columns, rows in order; factor null: ones.
struct weighted_products {
    template <class Arch, class T>
    void operator()(Arch, const T* factor, idx factor_step, const T* a, idx a_row, const T* b, idx b_row,
                    idx rows, idx n, T* out) const;
};

template <class T>
using memory_gate_calls =
    simd::calls<simd::call<memory_gate, const memory_gate_args<T>&>,
                simd::call<memory_output, const T*, const T*, const tap_sources<T>&, idx, idx, T*>,
                simd::call<memory_dz, const T*, const tap_sources<T>&, idx, T*>,
                simd::call<memory_gate_backward, const memory_gate_backward_args<T>&>,
                simd::call<weighted_products, const T*, idx, const T*, idx, const T*, idx, idx, idx, T*>>;

// phi(s) and its slope. The root's slope is at most 500; below 1e-6 phi is constant.
template <class T>
SLUICE_INLINE T gate_argument(gate_form form, T s) {
    return form == gate_form::plain ? s : std::copysign(std::sqrt(std::max(std::abs(s), T(1e-6))), s);
}
template <class T>
SLUICE_INLINE T gate_slope(gate_form form, T s) {
    if (form == gate_form::plain) return T(1);
    return std::abs(s) >= T(1e-6) ? T(0.5) / std::sqrt(std::abs(s)) : T(0);
}

template <class Arch, class T>
void memory_gate::operator()(Arch, const memory_gate_args<T>& a) const {
    using P = simd::pack<T, Arch>;
    const T d = static_cast<T>(a.d), root = std::sqrt(d);
    auto sum_of = [&](const T* x, const T* y) {
        return simd::sum_of_packs<P>(a.d, [&](P sum, idx j, idx k) {
            return fma(P::load_partial(x + j, k), P::load_partial(y + j, k), sum);
        });
    };
    for (idx i = 0; i < a.rows; ++i) {
        const T* const v = a.value + i * a.value_row;
        const T v_square = a.x_scale == nullptr ? T(0) : sum_of(v, v) / d;
        for (idx m = 0; m < a.branches; ++m) {
            const T *h = a.h + i * a.h_row + m * a.d, *key = a.keys + i * a.keys_row + m * a.d;
            const T* const gain = a.gain + m * a.d;
            const idx at = i * a.branches + m;
            const T product = simd::sum_of_packs<P>(a.d, [&](P sum, idx j, idx k) {
                return fma(P::load_partial(h + j, k) * P::load_partial(gain + j, k),
                           P::load_partial(key + j, k), sum);
            });
            const T h_inverse = T(1) / std::sqrt(sum_of(h, h) / d + a.eps);
            const T k_inverse = T(1) / std::sqrt(sum_of(key, key) / d + a.eps);
            const T s = product * h_inverse * k_inverse / root;
            const T gate = T(1) / (T(1) + std::exp(-gate_argument(a.form, s)));
            a.score[at] = s;
            a.gate[at] = gate;
            a.h_inverse[at] = h_inverse;
            a.k_inverse[at] = k_inverse;
            if (a.x_scale == nullptr) continue;
            // the mean square of u = gate v needs no pass of its own
            const T x_inverse = T(1) / std::sqrt(gate * gate * v_square + a.x_eps);
            a.x_inverse[at] = x_inverse;
            T* const x = a.x + i * a.x_row + m * a.d;
            const T* const scale = a.x_scale + m * a.x_scale_row;
            const P factor(gate * x_inverse);
            simd::for_each_pack<P>(a.d, [&](idx j, idx k) {
                (P::load_partial(v + j, k) * factor * P::load_partial(scale + j, k)).store_partial(x + j, k);
            });
        }
    }
}

// sum over j of taps[j] source(j), elements [i, i + k).
template <class P, class T>
SLUICE_INLINE P convolved(const tap_sources<T>& conv, idx i, idx k) {
    P z{};
    for (idx j = 0; j < conv.n; ++j)
        if (conv.sources[j] != nullptr)
            z = fma(P::load_partial(conv.taps + j * conv.row + i, k), P::load_partial(conv.sources[j] + i, k),
                    z);
    return z;
}

template <class Arch, class T>
void memory_output::operator()(Arch, const T* gate, const T* value, const tap_sources<T>& conv, idx branches,
                               idx d, T* y) const {
    using P = simd::pack<T, Arch>;
    for (idx m = 0; m < branches; ++m) {
        const P g(gate[m]);
        simd::for_each_pack<P>(d, [&](idx j, idx k) {
            P u = g * P::load_partial(value + j, k);
            if (conv.n > 0) u = u + silu(convolved<P>(conv, m * d + j, k));
            u.store_partial(y + m * d + j, k);
        });
    }
}

template <class Arch, class T>
void memory_dz::operator()(Arch, const T* dy, const tap_sources<T>& conv, idx n, T* dz) const {
    using P = simd::pack<T, Arch>;
    simd::for_each_pack<P>(n, [&](idx i, idx k) {
        (P::load_partial(dy + i, k) * silu_slope(convolved<P>(conv, i, k))).store_partial(dz + i, k);
    });
}

template <class Arch, class T>
void memory_gate_backward::operator()(Arch, const memory_gate_backward_args<T>& a) const {
    using P = simd::pack<T, Arch>;
    const T width = static_cast<T>(a.d), root = std::sqrt(width);
    const T* const v = a.value;
    auto at = [](const T* p, idx j, idx k) __attribute__((always_inline)) {
        return P::load_partial(p + j, k);
    };
    auto sum = [&](auto&& term) {
        return simd::sum_of_packs<P>(a.d, [&](P total, idx j, idx k) { return total + term(j, k); });
    };
    simd::for_each_pack<P>(a.d, [&](idx j, idx k) { P().store_partial(a.dvalue + j, k); });
    const T v_square = sum([&](idx j, idx k) { return at(v, j, k) * at(v, j, k); });
    for (idx m = 0; m < a.branches; ++m) {
        const idx from = m * a.d;
        const T *dy = a.dy + from, *h = a.h + from, *key = a.keys + from, *gain = a.gain + from;
        const T gate = a.gate[m];
        T dgate = sum([&](idx j, idx k) { return at(dy, j, k) * at(v, j, k); });
        T r = 0, curl = 0; // du = dy + r dx scale - curl v
        if (a.x_scale != nullptr) {
            T* const dx = a.dx + from;
            simd::for_each_pack<P>(
                a.d, [&](idx j, idx k) { convolved<P>(a.dz, from + j, k).store_partial(dx + j, k); });
            const T* const scale = a.x_scale + m * a.x_scale_row;
            const T along = sum([&](idx j, idx k) { return at(dx, j, k) * at(scale, j, k) * at(v, j, k); });
            r = a.x_inverse[m];
            curl = gate * gate * r * r * r * along / width;
            dgate += r * along - curl * v_square;
        }
        simd::for_each_pack<P>(a.d, [&](idx j, idx k) {
            P du = at(dy, j, k) - P(curl) * at(v, j, k);
            if (a.x_scale != nullptr)
                du = fma(P(r) * at(a.dx + from, j, k), at(a.x_scale + m * a.x_scale_row, j, k), du);
            fma(P(gate), du, at(a.dvalue, j, k)).store_partial(a.dvalue + j, k);
        });
        const T s = a.score[m], hr = a.h_inverse[m], kr = a.k_inverse[m];
        const T ds = dgate * gate * (T(1) - gate) * gate_slope(a.form, s);
        const T factor = ds * hr * kr / root;
        a.factor[m] = factor;
        const P p(factor), h_part(ds * hr * hr * s / width), k_part(ds * kr * kr * s / width);
        simd::for_each_pack<P>(a.d, [&](idx j, idx k) {
            const P hj = at(h, j, k), kj = at(key, j, k), g = p * at(gain, j, k);
            (g * hj - k_part * kj).store_partial(a.dkeys + from + j, k);
            (g * kj - h_part * hj).store_partial(a.dh + from + j, k);
        });
    }
}

template <class Arch, class T>
void weighted_products::operator()(Arch, const T* factor, idx factor_step, const T* a, idx a_row, const T* b,
                                   idx b_row, idx rows, idx n, T* out) const {
    using P = simd::pack<T, Arch>;
    simd::for_each_pack<P>(n, [&](idx j, idx k) {
        P total{};
        for (idx i = 0; i < rows; ++i) {
            P x = P::load_partial(a + i * a_row + j, k);
            if (factor != nullptr) x = x * P(factor[i * factor_step]);
            total = fma(x, P::load_partial(b + i * b_row + j, k), total);
        }
        total.store_partial(out + j, k);
    });
}

} // namespace sluice::kernels
