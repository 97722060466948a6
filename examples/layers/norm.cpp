// RMSNorm in place for inference, LayerNorm with its gradient for training.
#include <sluice/core/eigen.hpp>
#include <sluice/layers/norm.hpp>
#include <sluice/reference/norm.hpp>

#include <cstdio>

using matrix = sluice::eigen_matrix<float>;

int main() {
    const sluice::idx n = 9, d = 100;
    const matrix x = 3 * matrix::Random(n, d);
    const auto rows = sluice::batch::one(n);
    matrix reference(n, d);

    // RMSNorm: y may be x where nothing has to be kept for a gradient.
    const sluice::norm_config rms{.d_model = d};
    matrix scale = matrix::Constant(1, d, 1.5F);
    const sluice::norm<float> rms_norm(rms, {scale, {}});
    sluice::arena workspace(rms_norm.bytes({.max_rows = n}).workspace);
    matrix y = x;
    rms_norm.forward(rows, y, y, nullptr, workspace);
    sluice::reference::norm<float>(sluice::reference::norm_kind::rms, rms.eps, {scale, {}}, x, reference);
    float difference = (y - reference).cwiseAbs().maxCoeff();
    const float length = y.row(0).norm() / std::sqrt(static_cast<float>(d)); // the scale, whatever x was

    // LayerNorm: forward leaves what backward needs on the tape.
    const sluice::norm_config config{.d_model = d, .kind = sluice::norm_kind::layer, .eps = 1e-5};
    sluice::owned_params<sluice::norm_params<float>> weights(config), grad(config);
    initialise(weights.view, config, sluice::random_source(1));
    const sluice::norm<float> layer_norm(config, weights.view);
    const auto bytes = layer_norm.bytes({.max_rows = n});
    sluice::arena tape(bytes.tape), room(bytes.workspace);
    const matrix dy = matrix::Random(n, d);
    matrix dx(n, d);
    layer_norm.forward(rows, x, y, &tape, room);
    sluice::reference::norm<float>(sluice::reference::norm_kind::layer, config.eps,
                                   {weights.view.scale, weights.view.bias}, x, reference);
    difference = std::max(difference, (y - reference).cwiseAbs().maxCoeff());
    layer_norm.backward(rows, x, dy, dx, tape, grad.view, room);
    // moving a whole row changes nothing, so its gradient sums to nothing
    const float residue = dx.rowwise().sum().cwiseAbs().maxCoeff();

    std::printf("x %td x %td, RMSNorm leaves rows of length %.3f\n", n, d, static_cast<double>(length));
    std::printf("LayerNorm: gradients of rows sum to %.1e, %zu bytes of tape\n", static_cast<double>(residue),
                bytes.tape);
    std::printf("checksum %.6f, largest difference to the reference %.1e\n",
                static_cast<double>(y.sum() + dx.squaredNorm()), static_cast<double>(difference));
    return difference < 1e-5F && residue < 1e-5F && std::abs(length - 1.5F) < 1e-3F ? 0 : 1;
}
