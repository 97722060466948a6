// A SwiGLU feed-forward layer that learns a fixed mapping, on two threads.
#include <sluice/core/eigen.hpp>
#include <sluice/layers/feed_forward.hpp>
#include <sluice/parallel/thread_pool.hpp>
#include <sluice/reference/feed_forward.hpp>

#include <cstdio>

using matrix = sluice::eigen_matrix<float>;
using params = sluice::feed_forward_params<float>;

int main() {
    const sluice::idx n = 64, d = 24;
    const sluice::feed_forward_config config{.d_model = d, .d_ff = 64}; // swiglu, no biases
    sluice::owned_params<params> weights(config), grad(config);
    initialise(weights.view, config, sluice::random_source(7));
    const sluice::feed_forward<float> layer(config, weights.view);

    sluice::thread_pool pool(2); // results are the same bits for every number of threads
    const auto bytes = layer.bytes({.max_rows = n, .workers = pool.concurrency()});
    sluice::arena workspace(bytes.workspace), tape(bytes.tape);

    const matrix x = matrix::Random(n, d), wanted = x.rowwise().reverse();
    matrix y(n, d), dx(n, d);
    const auto rows = sluice::batch::one(n);
    float first = 0, last = 0;
    for (int step = 0; step < 60; ++step) {
        layer.forward(rows, x, y, &tape, workspace, pool);
        const matrix dy = (y - wanted) / static_cast<float>(n);
        last = (y - wanted).squaredNorm() / static_cast<float>(n);
        if (step == 0) first = last;
        sluice::zero(grad.view); // gradients accumulate
        layer.backward(rows, x, dy, dx, tape, grad.view, workspace, pool);
        // the same walk visits weights and gradients side by side
        sluice::each_param(
            [](const sluice::param_name&, sluice::role, auto& w, auto& g) { w.eigen() -= 0.5F * g.eigen(); },
            weights.view, grad.view);
    }

    layer.forward(rows, x, y, nullptr, workspace, pool);
    matrix reference(n, d);
    const auto& w = weights.view;
    sluice::reference::feed_forward<float>(sluice::reference::activation::silu,
                                           {w.w_gate, w.w_up, w.w_down, w.b_gate, w.b_up, w.b_down}, x,
                                           reference);
    const float difference = (y - reference).cwiseAbs().maxCoeff();

    std::printf("x %td x %td, %td weights, %zu bytes of workspace, %zu of tape\n", n, d,
                sluice::count_params(w), bytes.workspace, bytes.tape);
    std::printf("squared error of a row %.3f -> %.3f after 60 steps\n", static_cast<double>(first),
                static_cast<double>(last));
    std::printf("checksum %.6f, largest difference to the reference %.1e\n", static_cast<double>(y.sum()),
                static_cast<double>(difference));
    return difference < 1e-5F && last < first / 2 ? 0 : 1;
}
