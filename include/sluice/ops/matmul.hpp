// Matrix products on views: y = act(x W^T + bias or residual), and the two products of the backward pass,
// dx = dy W and dW += dy^T x. W is (out, in), plain or packed, T or bf16.
//
// Bits of an element depend on its row of x, its row of W and nothing else: not on the number of rows, the
// workers, the tile, or whether W is packed. Outputs must not overlap inputs, except that y may be the
// residual.
#pragma once

#include "../core/arena.hpp"
#include "../core/executor.hpp"
#include "../core/params.hpp"
#include "byte_product.hpp"
#include "product.hpp"
#include "quantise.hpp"

namespace sluice {

// What a product's chains start from (at most one of the two), and what is applied to its result.
template <class T>
struct matmul_options {
    tensor_view<const T> bias{};     // 1 x n_out, added to every row
    tensor_view<const T> residual{}; // same shape as the result; may be the result: y += x W^T
    std::optional<activation> act{}; // of the sum
};

inline namespace SLUICE_ISA {
namespace detail {

template <class T>
void check_matmul(idx m, idx k, idx w_rows, idx w_cols, const tensor_view<T>& y, const matmul_options<T>& o) {
    if (w_rows != y.cols() || w_cols != k)
        SLUICE_THROW(config_error("matmul: w must be " + shape_text(y.cols(), k) + ", is " +
                                  shape_text(w_rows, w_cols)));
    require_shape(y, m, w_rows, "matmul", "y");
    const bool biased = o.bias.cols() > 0, added = o.residual.cols() > 0;
    require(!(biased && added), "matmul", "bias and residual exclude each other");
    if (biased) require_shape(o.bias, 1, y.cols(), "matmul", "bias");
    if (added) require_shape(o.residual, y.rows(), y.cols(), "matmul", "residual");
}

// What a product reads of x: x itself, or its rows as bytes, in workspace that the caller gives back.
template <class Arch, class W, class T>
auto product_rows_of(const tensor_view<const T>& x, arena& workspace, executor_ref ex) {
    if constexpr (multiplies_bytes<W>)
        return make_byte_rows<Arch, storage_of<W>>(x, workspace, ex);
    else
        return x;
}

template <class Arch, class W, class Rows, class T>
auto make_product(const Rows& x, const tensor_view<W>& w, tensor_view<T> y, const matmul_options<T>& o) {
    check_matmul<T>(x.rows(), x.cols(), w.rows(), w.cols(), y, o);
    SLUICE_ASSERT(apart_or_same(y, o.residual) && apart(y, o.bias));
    using P = std::conditional_t<multiplies_bytes<W>, byte_product<Arch, storage_of<W>>,
                                 product<Arch, T, storage_of<W>>>;
    P p{.a = x, .b = w, .c = y, .k = x.cols()};
    if (o.bias.cols() > 0) p.start = o.bias.data();
    if (o.residual.cols() > 0) {
        p.start = o.residual.data();
        p.start_row = o.residual.row_stride();
    }
    p.act = o.act;
    return p;
}

template <class Arch, class T, class W>
void run_matmul(in<T> x, const tensor_view<W>& w, tensor_view<T> y, const matmul_options<T>& o,
                arena& workspace, executor_ref ex) {
    const arena::scope scope(workspace);
    SLUICE_ASSERT(apart(y, x));
    if constexpr (!is_packed<W>) SLUICE_ASSERT(apart(y, w));
    const auto p = make_product<Arch>(product_rows_of<Arch, W>(x, workspace, ex), w, y, o);
    if (!y.empty()) p.run(workspace, ex);
}

} // namespace detail

// y (m, n_out) = act(x (m, n_in) W^T + start), W (n_out, n_in) of T.
template <class Arch = simd::native, class T>
void matmul(in<T> x, in<T> w, tensor_view<T> y, const matmul_options<T>& options, arena& workspace,
            executor_ref ex) {
    detail::run_matmul<Arch, T>(x, w, y, options, workspace, ex);
}

// The same with W stored as bf16 or packed.
template <class Arch = simd::native, class T, class W>
requires(!std::is_same_v<std::remove_const_t<W>, T>) void matmul(in<T> x, const tensor_view<W>& w,
                                                                 tensor_view<T> y,
                                                                 const matmul_options<T>& options,
                                                                 arena& workspace, executor_ref ex) {
    detail::run_matmul<Arch, T>(x, w, y, options, workspace, ex);
}

// Two products of the same x, one gating the other (Shazeer, "GLU variants improve transformer", 2020):
// y = act(gate) * up, or as the form has it, with gate = x Wg^T + bg and up = x Wu^T + bu, all (m, n_out), in
// one pass over x. y may be gate or up; biases may be empty.
template <class W>
struct gated_weights {
    tensor_view<W> gate, up;
    in<compute_type<std::remove_const_t<W>>> gate_bias{}, up_bias{};
    activation act = activation::silu;
    glu_form form{};
};
template <class Arch = simd::native, class T, class W>
void matmul_gated(in<T> x, const gated_weights<W>& w, tensor_view<T> gate, tensor_view<T> up,
                  tensor_view<T> y, arena& workspace, executor_ref ex) {
    require_shape(gate, y.rows(), y.cols(), "matmul_gated", "gate");
    require_shape(up, y.rows(), y.cols(), "matmul_gated", "up");
    SLUICE_ASSERT(apart(gate, up, x) && apart(up, x) && apart(y, x) && apart_or_same(y, gate, up));
    if constexpr (!is_packed<W>) SLUICE_ASSERT(apart(gate, w.gate, w.up) && apart(up, w.gate, w.up));
    const arena::scope scope(workspace);
    const auto rows = detail::product_rows_of<Arch, W>(x, workspace, ex);
    const auto first = detail::make_product<Arch>(rows, w.gate, gate, {.bias = w.gate_bias});
    const auto second = detail::make_product<Arch>(rows, w.up, up, {.bias = w.up_bias});
    if (y.empty()) return;
    first.run(workspace, ex, [&](const auto& task, const auto& tools) {
        second.multiply(task, tools);
        detail::activate_block<Arch, T>(task, w.act, gate, up, y, w.form);
    });
}

// dx (m, n_in) = dy (m, n_out) W; with `accumulate`, dx += dy W.
template <class Arch = simd::native, class T>
void matmul_dx(in<T> dy, in<T> w, tensor_view<T> dx, bool accumulate, arena& workspace, executor_ref ex) {
    require_shape(w, dy.cols(), dx.cols(), "matmul_dx", "w");
    require_shape(dx, dy.rows(), w.cols(), "matmul_dx", "dx");
    SLUICE_ASSERT(apart(dx, dy, w));
    if (dx.empty()) return;
    detail::product<Arch, T, T> p{.a = dy, .b = w, .c = dx, .k = dy.cols()};
    p.b.by_rows = true;
    if (accumulate) {
        p.start = dx.data();
        p.start_row = dx.row_stride();
    }
    p.run(workspace, ex);
}

// dW (n_out, n_in) += dy^T (n_out, m) x (m, n_in): accumulates, in the order of the rows.
template <class Arch = simd::native, class T>
void matmul_dw(in<T> dy, in<T> x, tensor_view<T> dw, arena& workspace, executor_ref ex) {
    require_shape(x, dy.rows(), dw.cols(), "matmul_dw", "x");
    require_shape(dw, dy.cols(), x.cols(), "matmul_dw", "dw");
    SLUICE_ASSERT(apart(dw, dy, x));
    if (dw.empty() || dy.rows() == 0) return;
    detail::product<Arch, T, T> p{.a = {dy.data(), 1, dy.row_stride()}, .b = x, .c = dw, .k = dy.rows()};
    p.b.by_rows = true;
    p.start = dw.data();
    p.start_row = dw.row_stride();
    p.run(workspace, ex);
}

// A parameter set for inference with its matrices packed (and narrowed, where S is bf16), bound from
// `memory`; all else is copied. `Packed` is the set of packed<S>:
// pack_params<attention_params<packed<bf16>>>(weights, config, memory). With a dry arena it only counts.
template <class Packed, class P, class Config>
Packed pack_params(const P& params, const Config& config, arena& memory) {
    Packed out = Packed::bind(memory, config);
    if (memory.dry()) return out;
    each_param(
        []<class To, class From>(const param_name&, role, const tensor_view<To>& to,
                                 const tensor_view<From>& from) {
            if constexpr (is_packed<To>)
                pack_matrix(from, to);
            else
                for (idx i = 0; i < to.rows(); ++i) std::copy_n(from.row(i), to.cols(), to.row(i));
        },
        out, params);
    return out;
}

} // namespace SLUICE_ISA
} // namespace sluice
