// A soft mixture of experts learns to do one thing to some tokens and another to the rest. Nobody tells it
// which is which: the slots' shares of the tokens, and the tokens' of the slots, do.
#include <sluice/core/eigen.hpp>
#include <sluice/layers/soft_moe.hpp>
#include <sluice/reference/soft_moe.hpp>

#include <cstdio>
#include <vector>

using matrix = sluice::eigen_matrix<float>;
using params = sluice::soft_moe_params<float>;

// A row for each token, a column for each slot, a bar between experts.
static void print(const char* title, const matrix& shares, sluice::idx slots) {
    std::printf("%s\n", title);
    for (sluice::idx t = 0; t < shares.rows(); ++t) {
        std::printf("  token %td %s |", t, t % 2 == 0 ? "(A)" : "(B)");
        for (sluice::idx s = 0; s < shares.cols(); ++s)
            std::printf("%s %.2f", s > 0 && s % slots == 0 ? " |" : "", static_cast<double>(shares(t, s)));
        std::printf(" |\n");
    }
}

int main() {
    // Two sequences of 8 tokens. The first column tells kind A (+1) from B (-1); A is to be doubled, B to be
    // turned round.
    const sluice::idx n = 16, d = 12;
    const sluice::soft_moe_config config{.d_model = d, .n_experts = 2, .slots = 4, .expert = {.d_ff = 32}};
    sluice::owned_params<params> weights(config), grad(config);
    initialise(weights.view, config, sluice::random_source(5));
    weights.view.scale(0, 0) = 4; // logits of -4 to 4, to begin with
    const sluice::soft_moe<float> layer(config, weights.view);

    const std::vector<sluice::idx> offsets{0, 8, 16};
    const sluice::batch rows{.n_tokens = n, .offsets = offsets};
    const auto bytes = layer.bytes({.max_rows = n, .n_sequences = 2});
    sluice::arena workspace(bytes.workspace), tape(bytes.tape);

    matrix x = matrix::Random(n, d) / 2, wanted(n, d), y(n, d), dx(n, d);
    for (sluice::idx t = 0; t < n; ++t) {
        x(t, 0) = t % 2 == 0 ? 2.0F : -2.0F;
        wanted.row(t) = x.row(t) * (t % 2 == 0 ? 2.0F : -1.0F);
    }
    float first = 0, last = 0;
    for (int step = 0; step < 1500; ++step) {
        layer.forward(rows, x, y, &tape, workspace);
        last = (y - wanted).squaredNorm() / static_cast<float>(n);
        if (step == 0) first = last;
        const matrix dy = (y - wanted) / static_cast<float>(n);
        sluice::zero(grad.view); // gradients accumulate
        layer.backward(rows, x, dy, dx, tape, grad.view, workspace);
        sluice::each_param(
            [](const sluice::param_name&, sluice::role, auto& w, auto& g) { w.eigen() -= 0.2F * g.eigen(); },
            weights.view, grad.view);
    }

    matrix dispatch(n, 8), combine(n, 8), reference(n, d);
    layer.mixing_weights(rows, x, dispatch, combine, workspace);
    layer.forward(rows, x, y, nullptr, workspace);
    const auto& w = weights.view;
    sluice::reference::soft_moe_weights<float> plain{w.phi, w.scale(0, 0), {}};
    for (const auto& e : w.experts) plain.experts.push_back({e.w_gate, e.w_up, e.w_down, {}, {}, {}});
    sluice::reference::soft_moe<float>(rows, sluice::reference::activation::silu, plain, x, reference);
    const float difference = (y - reference).cwiseAbs().maxCoeff();

    std::printf("two experts of four slots; sequences of 8 tokens, %td weights\n", sluice::count_params(w));
    print("shares of the first sequence's tokens in each slot (columns add up to 1):", dispatch.topRows(8),
          4);
    print("shares of the slots in each token (rows add up to 1):", combine.topRows(8), 4);
    std::printf("scale %.2f; squared error of a row %.3f -> %.3f\n", static_cast<double>(w.scale(0, 0)),
                static_cast<double>(first), static_cast<double>(last));
    std::printf("largest difference to the reference %.1e\n", static_cast<double>(difference));
    return difference < 1e-4F && last < first / 2 ? 0 : 1;
}
