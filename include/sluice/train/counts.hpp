// How large a model is and what training it costs.
#pragma once

#include "../core/params.hpp"

namespace sluice {

struct param_counts {
    idx matrices = 0, vectors = 0, embeddings = 0, tables = 0, buffers = 0;

    idx trained() const { return matrices + vectors + embeddings + tables; }
};

template <class P>
param_counts counts_by_role(const P& params) {
    param_counts n;
    each_param(
        [&](const param_name&, role r, const auto& t) {
            switch (r) {
            case role::matrix:
                n.matrices += t.size();
                break;
            case role::vector:
                n.vectors += t.size();
                break;
            case role::embedding:
                n.embeddings += t.size();
                break;
            case role::table:
                n.tables += t.size();
                break;
            case role::buffer:
                n.buffers += t.size();
                break;
            }
        },
        params);
    return n;
}

// Multiplications and additions of one training step on sequences of `length` tokens: the forward pass and
// twice as much for the two products of the backward pass (Kaplan et al., "Scaling laws", 2020, section 2.1).
// What backward recomputes is not counted.
template <class Model>
double training_flops(const Model& model, idx n_sequences, idx length) {
    return 3 * static_cast<double>(n_sequences) * model.flops(length);
}

} // namespace sluice
