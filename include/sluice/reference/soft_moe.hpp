// Soft mixture of experts, one sequence at a time: Puigcerver et al., "From sparse to soft mixtures of
// experts", 2024, section 2.1, normalised as in their program (google-research/vmoe).
//   D_ij = exp(x_i . phi_j) / sum_i' exp(x_i' . phi_j),   slots = D^T X
//   C_ij = exp(x_i . phi_j) / sum_j' exp(x_i . phi_j'),   Y = C experts(slots)
#pragma once

#include "../core/batch.hpp"
#include "feed_forward.hpp"

#include <vector>

namespace sluice::reference {

template <class T>
struct soft_moe_weights {
    tensor_view<const T> phi; // slots x d_model, as many for each expert, an expert's side by side
    T scale = 1;
    std::vector<feed_forward_weights<T>> experts;
};

// Rows of length 1.
template <class T>
tensor<T> unit_rows(in<T> x) {
    tensor<T> u(x.rows(), x.cols());
    for (idx i = 0; i < x.rows(); ++i) {
        T sum = T(1e-6);
        for (idx j = 0; j < x.cols(); ++j) sum += x(i, j) * x(i, j);
        for (idx j = 0; j < x.cols(); ++j) u(i, j) = x(i, j) / std::sqrt(sum);
    }
    return u;
}

// One sequence: y (n, d_model) from x (n, d_model).
template <class T>
void soft_moe_of_sequence(activation act, glu_form form, const soft_moe_weights<T>& p, in<T> x,
                          tensor_view<T> y) {
    const idx n = x.rows(), n_slots = p.phi.rows(), d = x.cols();
    const tensor<T> tokens = unit_rows<T>(x), slots = unit_rows<T>(p.phi);
    tensor<T> e(n, n_slots), in_slots(n_slots, d), out_slots(n_slots, d);
    for (idx i = 0; i < n; ++i)
        for (idx j = 0; j < n_slots; ++j) {
            T logit = 0;
            for (idx k = 0; k < d; ++k) logit += tokens(i, k) * p.scale * slots(j, k);
            e(i, j) = std::exp(logit); // at most exp(|scale|)
        }
    for (idx j = 0; j < n_slots; ++j) {
        T sum = 0;
        for (idx i = 0; i < n; ++i) sum += e(i, j);
        for (idx i = 0; i < n; ++i)
            for (idx k = 0; k < d; ++k) in_slots(j, k) += e(i, j) / sum * x(i, k);
    }
    const idx each = n_slots / static_cast<idx>(p.experts.size());
    for (std::size_t at = 0; at < p.experts.size(); ++at) {
        const idx first = static_cast<idx>(at) * each;
        feed_forward<T>(act, p.experts[at], in_slots.view().row_block(first, each),
                        out_slots.view().row_block(first, each), form);
    }
    for (idx i = 0; i < n; ++i) {
        T sum = 0;
        for (idx j = 0; j < n_slots; ++j) sum += e(i, j);
        for (idx k = 0; k < d; ++k) {
            y(i, k) = 0;
            for (idx j = 0; j < n_slots; ++j) y(i, k) += e(i, j) / sum * out_slots(j, k);
        }
    }
}

template <class T>
void soft_moe(const batch& b, activation act, const soft_moe_weights<T>& p, in<T> x, tensor_view<T> y,
              glu_form form = {}) {
    for (idx s = 0; s < b.n_sequences(); ++s) {
        const idx first = b.begin(s), n = b.end(s) - first;
        soft_moe_of_sequence<T>(act, form, p, x.row_block(first, n), y.row_block(first, n));
    }
}

} // namespace sluice::reference
