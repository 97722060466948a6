// Mixture of experts, one token at a time:
//   y = sum_j w_j F_{e_j}(x)                      Jiang et al., "Mixtral of experts", 2024, section 2.1
//     + F_shared(x)                               DeepSeek-AI, "DeepSeek-V2", 2024, eq. 20
//     + sigmoid(x . v) F_shared(x)                Qwen team, Qwen1.5-MoE, 2024
//   y = sum_j F_{e_j}(w_j x)                      Meta, Llama 4, 2025
#pragma once

#include "feed_forward.hpp"
#include "routing.hpp"

namespace sluice::reference {

struct moe_shape {
    reference::router router{};
    activation act = activation::silu;
    glu_form glu{};
    idx n_identity = 0;    // experts behind the others, which return their input
    bool on_input = false; // where the weight acts
    idx n_null = 0;        // the last experts, which return nothing (Raposo et al., 2024, section 3.3)
};

template <class T>
struct moe_weights {
    tensor_view<const T> router, router_bias, selection_bias; // n_experts x d_model, 1 x n_experts or empty
    std::vector<feed_forward_weights<T>> experts;
    feed_forward_weights<T> shared;   // or empty
    tensor_view<const T> shared_gate; // 1 x d_model, or empty
};

// y (n, d_model) from x (n, d_model).
template <class T>
void moe(const moe_shape& shape, const moe_weights<T>& p, in<T> x, tensor_view<T> y) {
    const idx n_experts = p.router.rows(), d = x.cols();
    tensor<T> logits(x.rows(), n_experts), input(1, d), output(1, d);
    linear<T>({p.router, p.router_bias}, x, logits);
    for (idx i = 0; i < x.rows(); ++i) {
        const in<T> row = x.row_block(i, 1);
        numbers z, bias;
        for (idx e = 0; e < n_experts; ++e) z.push_back(static_cast<double>(logits(i, e)));
        for (idx e = 0; e < p.selection_bias.cols(); ++e)
            bias.push_back(static_cast<double>(p.selection_bias(0, e)));
        const choices chosen = experts_of(shape.router, z, bias);
        const numbers weights = weights_of(shape.router, z, chosen);
        for (idx j = 0; j < d; ++j) y(i, j) = 0;
        for (std::size_t j = 0; j < chosen.size(); ++j) {
            const T w = static_cast<T>(weights[j]);
            for (idx c = 0; c < d; ++c)
                input(0, c) = output(0, c) = shape.on_input ? w * row(0, c) : row(0, c);
            if (chosen[j] >= n_experts - shape.n_null) continue;
            if (chosen[j] < n_experts - shape.n_null - shape.n_identity)
                feed_forward<T>(shape.act, p.experts[static_cast<std::size_t>(chosen[j])], input, output,
                                shape.glu);
            for (idx c = 0; c < d; ++c) y(i, c) += shape.on_input ? output(0, c) : w * output(0, c);
        }
        if (p.shared.w_up.empty()) continue;
        feed_forward<T>(shape.act, p.shared, row, output, shape.glu);
        T sum = 0, open = 1;
        for (idx c = 0; c < p.shared_gate.cols(); ++c) sum += p.shared_gate(0, c) * row(0, c);
        if (!p.shared_gate.empty()) open = 1 / (1 + std::exp(-sum));
        for (idx c = 0; c < d; ++c) y(i, c) += open * output(0, c);
    }
}

} // namespace sluice::reference
