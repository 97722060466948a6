// Token ids to vectors and back to logits: a bigram model, the smallest thing that an embedding can learn.
#include <sluice/core/eigen.hpp>
#include <sluice/layers/embedding.hpp>
#include <sluice/reference/embedding.hpp>

#include <cstdio>
#include <vector>

using matrix = sluice::eigen_matrix<float>;

int main() {
    const sluice::embedding_config config{.vocabulary = 11, .d_model = 16};
    sluice::owned_params<sluice::embedding_params<float>> weights(config), grad(config);
    initialise(weights.view, config, sluice::random_source(5));
    const sluice::embedding<float> layer(config, weights.view);

    // After token t comes 3 t + 1.
    std::vector<sluice::token_id> ids{2}, targets;
    while (targets.size() < 300) {
        targets.push_back(static_cast<sluice::token_id>((3 * ids.back() + 1) % 11));
        if (ids.size() < 300) ids.push_back(targets.back());
    }
    const auto n = static_cast<sluice::idx>(ids.size());
    const auto rows = sluice::batch::one(ids);

    // The arena in a dry run has no memory and counts: this is how bytes() of other layers works.
    sluice::arena counter;
    sluice::dry_run dry;
    const sluice::tensor_view<float> nothing(nullptr, n, config.d_model);
    layer.loss(nothing, {}, 1, &grad.view, nothing, counter, dry);
    sluice::arena workspace(counter.bytes());

    matrix h(n, config.d_model), dh(n, config.d_model);
    double first = 0, loss = 0;
    for (int step = 0; step < 80; ++step) {
        sluice::zero(grad.view);
        layer.forward(rows, h);
        loss = layer.loss(h, targets, 1.0 / 300, &grad.view, dh, workspace) / 300;
        layer.backward(rows, dh, grad.view);
        sluice::each_param(
            [](const sluice::param_name&, sluice::role, auto& w, auto& g) { w.eigen() -= 3.0F * g.eigen(); },
            weights.view, grad.view);
        if (step == 0) first = loss;
    }

    matrix logits(n, config.vocabulary), reference(n, config.vocabulary), looked_up(n, config.d_model);
    layer.forward(rows, h);
    layer.logits(h, logits, workspace);
    sluice::reference::embedding<float>(ids, weights.view.table, looked_up);
    sluice::reference::output_logits<float>(weights.view.head, looked_up, reference);
    const float difference = (logits - reference).cwiseAbs().maxCoeff();
    sluice::idx right = 0;
    for (sluice::idx i = 0; i < n; ++i) {
        sluice::idx best = 0;
        logits.row(i).maxCoeff(&best);
        right += best == targets[static_cast<std::size_t>(i)] ? 1 : 0;
    }

    std::printf("%td ids -> %td x %td -> logits %td x %td, %zu bytes of workspace\n", n, n, h.cols(), n,
                logits.cols(), counter.bytes());
    std::printf("loss %.4f -> %.4f nats, %td of %td next tokens right\n", first, loss, right, n);
    std::printf("checksum %.6f, largest difference to the reference %.1e\n",
                static_cast<double>(logits.sum()), static_cast<double>(difference));
    return difference < 1e-4F && loss < first / 2 && right == n ? 0 : 1;
}
