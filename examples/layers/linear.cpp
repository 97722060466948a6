// A linear layer on the weights of your own program, and one step of training it towards given outputs.
#include <sluice/core/eigen.hpp>
#include <sluice/layers/linear.hpp>
#include <sluice/reference/linear.hpp>

#include <cstdio>

using matrix = sluice::eigen_matrix<float>; // row-major, sizes known at run time

int main() {
    const sluice::idx n = 17, d_in = 48, d_out = 31;
    const sluice::linear_config config{.d_in = d_in, .d_out = d_out, .bias = true};

    // Weights are yours; the layer only looks at them.
    matrix w = matrix::Random(d_out, d_in) / std::sqrt(static_cast<float>(d_in));
    matrix bias = matrix::Zero(1, d_out);
    const sluice::linear_params<float> weights{w, bias};
    const sluice::linear<float> layer(config, weights);

    // So is all other memory: the layer says how much, and takes it from arenas.
    const auto bytes = layer.bytes({.max_rows = n});
    sluice::arena workspace(bytes.workspace), tape(bytes.tape);
    sluice::owned_params<sluice::linear_params<float>> grad(config);

    const matrix x = matrix::Random(n, d_in), wanted = matrix::Random(n, d_out);
    matrix y(n, d_out), dx(n, d_in), reference(n, d_out);
    const auto rows = sluice::batch::one(n);

    layer.forward(rows, x, y, &tape, workspace);
    sluice::reference::linear<float>({w, bias}, x, reference);
    const float difference = (y - reference).cwiseAbs().maxCoeff();

    // One step down the slope of the squared error: gradients are added to grad, dx is written.
    const matrix dy = y - wanted;
    layer.backward(rows, x, dy, dx, tape, grad.view, workspace);
    const float step = 0.02F;
    w -= step * grad.view.w.eigen();
    bias -= step * grad.view.bias.eigen();
    const float before = dy.squaredNorm();
    layer.forward(rows, x, y, nullptr, workspace); // the views see the new weights
    const float after = (y - wanted).squaredNorm();

    std::printf("x %td x %td -> y %td x %td, %zu bytes of workspace\n", n, d_in, n, d_out, bytes.workspace);
    std::printf("squared error %.4f -> %.4f after one step\n", static_cast<double>(before),
                static_cast<double>(after));
    std::printf("checksum %.6f, largest difference to the reference %.1e\n", static_cast<double>(y.sum()),
                static_cast<double>(difference));
    return difference < 1e-5F && after < before ? 0 : 1;
}
