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

// Of a model that works on concepts (layers/dlcm.hpp): multiplications with weights, and numbers kept as keys
// and values, once a token and once a concept. Embeddings and attention maps are not counted, an untied head
// is.
struct concept_counts {
    double token_products = 0, concept_products = 0;
    double token_keys = 0, concept_keys = 0;
    double backbone = 0; // of the concept_products

    double products(double tokens_per_concept) const { // of one token
        return token_products + concept_products / tokens_per_concept;
    }
    double keys(double tokens_per_concept) const { return token_keys + concept_keys / tokens_per_concept; }
};

template <class P>
concept_counts counts_by_concept(const P& params) {
    concept_counts n;
    each_param(
        [&](const param_name& name, role r, const auto& t) {
            if (r != role::matrix) return;
            const auto size = static_cast<double>(t.size()), rows = static_cast<double>(t.rows());
            const bool keys = (name.last() == "w_k" || name.last() == "w_v") && !name.within("boundary");
            const bool backbone = name.within("backbone"), cross = name.within("cross");
            const bool concepts = backbone || name.within("concepts") || (cross && keys);
            (concepts ? n.concept_products : n.token_products) += size;
            if (backbone) n.backbone += size;
            if (keys) (concepts ? n.concept_keys : n.token_keys) += rows;
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
