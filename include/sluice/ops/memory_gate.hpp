// The gate of looked-up memory and the convolution behind it, over whole batches: see kernels/memory_gate.hpp
// for the formulas. Every token is computed alone and in one order, so that streaming gives forward's bits.
#pragma once

#include "../kernels/elementwise.hpp"
#include "../kernels/memory_gate.hpp"
#include "tokens.hpp"

namespace sluice {

// The parameters, or their gradients: branches x d; taps are n_taps x branches d, of the token itself first.
// Where taps are empty there is no convolution, nor a scale of its input.
template <class T>
struct memory_gate_scales {
    tensor_view<T> key, query, value, taps;
};

inline constexpr idx most_taps = 16;

template <class T>
struct memory_gate_weights {
    memory_gate_scales<const T> scales;
    tensor_view<T> gain; // key times query
    gate_form form = gate_form::signed_root;
    T eps = 0, x_eps = 0;
    idx dilation = 1;

    idx branches() const { return gain.rows(); }
    idx d() const { return gain.cols(); }
    idx n_taps() const { return scales.taps.rows(); }
    kernels::tap_sources<T> conv(const T* const* sources) const {
        return {scales.taps.data(), scales.taps.row_stride(), n_taps(), sources};
    }

    static memory_gate_weights make(arena& workspace, const memory_gate_scales<const T>& scales,
                                    gate_form form, double eps, double x_eps, idx dilation, executor_ref ex) {
        memory_gate_weights w{scales,
                              workspace.take<T>(scales.key.rows(), scales.key.cols()),
                              form,
                              static_cast<T>(eps),
                              static_cast<T>(x_eps),
                              dilation};
        if (!ex.dry())
            for (idx m = 0; m < w.branches(); ++m)
                for (idx j = 0; j < w.d(); ++j) w.gain(m, j) = scales.key(m, j) * scales.query(m, j);
        return w;
    }
};

// What the gate makes of n tokens: kv is its input, the rest is written by it and wanted by backward.
template <class T>
struct gated_memory {
    tensor_view<T> kv;                                // n x (branches + 1) d
    tensor_view<T> score, gate, h_inverse, k_inverse; // n x branches
    tensor_view<T> x, x_inverse;                      // n x branches d, n x branches; empty: no convolution
    const std::int32_t* ids =
        nullptr; // n: where they are below -1 the gate is shut and y zero; null: nowhere

    bool masked(idx i) const { return ids != nullptr && ids[i] < -1; }

    static gated_memory take(arena& a, idx n, idx branches, idx d, bool convolution) {
        gated_memory g;
        g.kv = a.take<T>(n, (branches + 1) * d);
        for (auto* t : {&g.score, &g.gate, &g.h_inverse, &g.k_inverse}) *t = a.take<T>(n, branches);
        if (!convolution) return g;
        g.x = a.take<T>(n, branches * d);
        g.x_inverse = a.take<T>(n, branches);
        return g;
    }
    static gated_memory pop(arena& tape, idx n, idx branches, idx d, bool convolution) {
        gated_memory g;
        if (convolution) g.x_inverse = tape.pop<T>(n, branches);
        if (convolution) g.x = tape.pop<T>(n, branches * d);
        for (auto* t : {&g.k_inverse, &g.h_inverse, &g.gate, &g.score}) *t = tape.pop<T>(n, branches);
        g.kv = tape.pop<T>(n, (branches + 1) * d);
        return g;
    }
};

inline namespace SLUICE_ISA {

// The gates of n tokens, and what the convolution sees, from the stream h (n, branches d) and g.kv.
template <class Arch = simd::native, class T>
void open_memory_gate(const memory_gate_weights<T>& w, in<T> h, const gated_memory<T>& g, executor_ref ex) {
    const idx d = w.d(), branches = w.branches(), n_taps = w.n_taps();
    ex(h.rows(), [&](idx begin, idx end, idx) {
        simd::invoke(Arch{}, kernels::memory_gate{},
                     kernels::memory_gate_args<T>{.h = h.row(begin),
                                                  .h_row = h.row_stride(),
                                                  .keys = g.kv.row(begin),
                                                  .value = g.kv.row(begin) + branches * d,
                                                  .keys_row = g.kv.row_stride(),
                                                  .value_row = g.kv.row_stride(),
                                                  .gain = w.gain.data(),
                                                  .score = g.score.row(begin),
                                                  .gate = g.gate.row(begin),
                                                  .h_inverse = g.h_inverse.row(begin),
                                                  .k_inverse = g.k_inverse.row(begin),
                                                  .x_scale = n_taps > 0 ? w.scales.value.data() : nullptr,
                                                  .x_scale_row = w.scales.value.row_stride(),
                                                  .x = n_taps > 0 ? g.x.row(begin) : nullptr,
                                                  .x_inverse = n_taps > 0 ? g.x_inverse.row(begin) : nullptr,
                                                  .x_row = g.x.row_stride(),
                                                  .rows = end - begin,
                                                  .branches = branches,
                                                  .d = d,
                                                  .eps = w.eps,
                                                  .x_eps = w.x_eps,
                                                  .form = w.form});
        for (idx i = begin; i < end; ++i)
            if (g.masked(i)) {
                std::fill_n(g.gate.row(i), branches, T(0));
                if (n_taps > 0) std::fill_n(g.x.row(i), branches * d, T(0));
            }
    });
}

// y (n, branches d) from the stream h (same shape) and g.kv. `earlier(s, back)` is the row of x that stands
// `back` tokens before the first that sequence s has here, or null.
template <class Arch = simd::native, class T, class F>
void apply_memory_gate(const batch& b, const memory_gate_weights<T>& w, in<T> h, const gated_memory<T>& g,
                       const F& earlier, tensor_view<T> y, executor_ref ex) {
    const idx d = w.d(), branches = w.branches(), n_taps = w.n_taps();
    open_memory_gate<Arch, T>(w, h, g, ex);
    ex(b.n_tokens, [&](idx begin, idx end, idx) {
        for_each_token(b, begin, end, [&](idx s, idx i) {
            const T* sources[most_taps];
            for (idx j = 0; j < n_taps; ++j) {
                const idx t = i - b.first_token(s) - j * w.dilation;
                sources[j] = t >= 0 ? g.x.row(b.first_token(s) + t) : earlier(s, -t);
            }
            simd::invoke(Arch{}, kernels::memory_output{}, static_cast<const T*>(g.gate.row(i)),
                         static_cast<const T*>(g.kv.row(i) + branches * d), w.conv(sources), branches, d,
                         y.row(i));
            if (g.masked(i)) std::fill_n(y.row(i), y.cols(), T(0));
        });
    });
}

// From dy to dh and d_kv, both overwritten; gradients of the parameters are added to, in the order of tokens
// whatever the workers. For batches without rows before them.
template <class Arch = simd::native, class T>
void memory_gate_backward(const batch& b, const memory_gate_weights<T>& w, in<T> h, const gated_memory<T>& g,
                          in<T> dy, tensor_view<T> d_kv, tensor_view<T> dh, const memory_gate_scales<T>& grad,
                          arena& workspace, executor_ref ex) {
    const arena::scope scope(workspace);
    const idx n = b.n_tokens, d = w.d(), branches = w.branches(), width = branches * d, n_taps = w.n_taps();
    const auto dz = n_taps > 0 ? workspace.take<T>(n, width) : tensor_view<T>();
    const auto dx = n_taps > 0 ? workspace.take<T>(n, width) : tensor_view<T>();
    const auto factor = workspace.take<T>(n, branches), x_factor = workspace.take<T>(n, branches);
    const auto sums = workspace.take<T>(1, width);
    if (ex.dry()) return;
    if (n_taps > 0)
        ex(n, [&](idx begin, idx end, idx) {
            for_each_token(b, begin, end, [&](idx s, idx i) {
                const T* sources[most_taps];
                for (idx j = 0; j < n_taps; ++j)
                    sources[j] =
                        i - j * w.dilation >= b.first_token(s) ? g.x.row(i - j * w.dilation) : nullptr;
                simd::invoke(Arch{}, kernels::memory_dz{}, dy.row(i), w.conv(sources), width, dz.row(i));
                if (g.masked(i)) std::fill_n(dz.row(i), width, T(0));
            });
        });
    ex(n, [&](idx begin, idx end, idx) {
        for_each_token(b, begin, end, [&](idx s, idx i) {
            const T* later[most_taps];
            const idx last = b.first_token(s) + b.tokens(s);
            for (idx j = 0; j < n_taps; ++j)
                later[j] = i + j * w.dilation < last ? dz.row(i + j * w.dilation) : nullptr;
            simd::invoke(
                Arch{}, kernels::memory_gate_backward{},
                kernels::memory_gate_backward_args<T>{.h = h.row(i),
                                                      .keys = g.kv.row(i),
                                                      .value = g.kv.row(i) + width,
                                                      .gain = w.gain.data(),
                                                      .dy = dy.row(i),
                                                      .score = g.score.row(i),
                                                      .gate = g.gate.row(i),
                                                      .h_inverse = g.h_inverse.row(i),
                                                      .k_inverse = g.k_inverse.row(i),
                                                      .x_scale = n_taps > 0 ? w.scales.value.data() : nullptr,
                                                      .x_scale_row = w.scales.value.row_stride(),
                                                      .x_inverse = n_taps > 0 ? g.x_inverse.row(i) : nullptr,
                                                      .dz = w.conv(later),
                                                      .branches = branches,
                                                      .d = d,
                                                      .dx = n_taps > 0 ? dx.row(i) : nullptr,
                                                      .dvalue = d_kv.row(i) + width,
                                                      .dkeys = d_kv.row(i),
                                                      .dh = dh.row(i),
                                                      .factor = factor.row(i),
                                                      .form = w.form});
            for (idx m = 0; m < branches && n_taps > 0; ++m)
                x_factor(i, m) = g.gate(i, m) * g.x_inverse(i, m);
        });
    });
    // Sums over tokens: workers share out columns.
    constexpr idx strip = 64;
    ex(ceil_div(d, strip), [&](idx begin, idx end, idx) {
        const idx first = begin * strip, cols = std::min(end * strip, d) - first;
        for (idx m = 0; m < branches; ++m) {
            const idx col = m * d + first;
            T* const out = sums.data() + col;
            auto products = [&](const T* f, const T* p, idx p_row, const T* q, idx q_row, idx rows) {
                simd::invoke(Arch{}, kernels::weighted_products{}, f, branches, p, p_row, q, q_row, rows,
                             cols, out);
            };
            auto add = [&](T* to) {
                simd::invoke(Arch{}, kernels::add_elements{}, static_cast<const T*>(to),
                             static_cast<const T*>(out), to, cols);
            };
            products(factor.data() + m, h.row(0) + col, h.row_stride(), g.kv.row(0) + col, g.kv.row_stride(),
                     n);
            for (idx j = 0; j < cols; ++j) {
                grad.key(m, first + j) += out[j] * w.scales.query(m, first + j);
                grad.query(m, first + j) += out[j] * w.scales.key(m, first + j);
            }
            if (n_taps == 0) continue;
            products(x_factor.data() + m, dx.row(0) + col, width, g.kv.row(0) + width + first,
                     g.kv.row_stride(), n);
            add(grad.value.row(m) + first);
            for (idx s = 0; s < b.n_sequences(); ++s)
                for (idx j = 0; j < n_taps && j * w.dilation < b.tokens(s); ++j) {
                    const idx start = b.first_token(s), shift = j * w.dilation;
                    products(nullptr, dz.row(start + shift) + col, width, g.x.row(start) + col, width,
                             b.tokens(s) - shift);
                    add(grad.taps.row(j) + col);
                }
        }
    });
}

} // namespace SLUICE_ISA
} // namespace sluice
