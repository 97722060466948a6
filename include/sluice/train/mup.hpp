// Maximal-update parametrisation of a model of two widths, each with its own factor to the width that was
// tuned (Qu et al., "Dynamic large concept models", 2025, section 6.1, eqs. 18-21; Yang et al., "Tensor
// programs V", 2022): a matrix starts with variance sigma^2 / s and learns at rate / s with eps / s, where s
// belongs to the width that it reads; embeddings, biases and norms do not change. Logits are divided by the
// factor of tokens.
#pragma once

#include "../core/random.hpp"
#include "adamw.hpp"

namespace sluice {

enum class width_group { tokens, concepts, none };

// Of a parameter set of layers/dlcm.hpp, also inside a model: what the backbone reads, and the keys and
// values of the cross-attention, are of the width of concepts. The head is an embedding of its own.
inline width_group width_group_of(const param_name& name, role r) {
    if (r != role::matrix || name.last() == "head") return width_group::none;
    const bool keys = name.last() == "w_k" || name.last() == "w_v";
    return name.within("backbone") || (name.within("cross") && keys) ? width_group::concepts
                                                                     : width_group::tokens;
}

struct width_factors {
    double tokens = 1, concepts = 1; // d_model and d_concept over those that were tuned

    double of(width_group g) const {
        return g == width_group::tokens ? tokens : g == width_group::concepts ? concepts : 1;
    }
    // What logits are multiplied with. A final norm whose scale starts at it, instead of 1, makes the same
    // first step.
    double logits() const { return 1 / tokens; }
};

// A rule for adamw(), whose rate and eps are those that were tuned, and rates of the groups beside each
// other.
struct mup_rule {
    width_factors factors{};
    double token_rate = 1, concept_rate = 1, other_rate = 1;

    adamw_group operator()(const param_name& name, role r) const {
        const width_group g = width_group_of(name, r);
        const double s = factors.of(g);
        const double rate = g == width_group::tokens     ? token_rate
                            : g == width_group::concepts ? concept_rate
                                                         : other_rate;
        return {.rate_factor = rate / s, .decay = r == role::matrix, .eps_factor = 1 / s};
    }
};

// Matrices normal with variance deviation^2 / s, embeddings with deviation^2; all else is left alone.
template <class P>
void mup_initialise(const P& params, double deviation, const width_factors& factors,
                    const random_source& numbers) {
    std::uint64_t i = 0;
    each_param(
        [&](const param_name& name, role r, const auto& t) {
            const random_source own = numbers.split(i++);
            if (r == role::matrix || r == role::embedding)
                fill_normal(t, deviation / std::sqrt(factors.of(width_group_of(name, r))), own);
        },
        params);
}

} // namespace sluice
