// A transformer block in a model of your own: several sequences in one batch, one step of training, then
// decoding.
#include <sluice/core/eigen.hpp>
#include <sluice/layers/transformer_block.hpp>
#include <sluice/reference/transformer_block.hpp>

#include <cstdio>

using matrix = sluice::eigen_matrix<float>;
using params = sluice::transformer_block_params<float>;

int main() {
    const sluice::idx d = 32, n = 40;
    const sluice::transformer_block_config config{
        .attention = {.d_model = d, .n_heads = 4, .n_kv_heads = 2, .head_dim = 8},
        .feed_forward = {.d_model = d, .d_ff = 88},
        .norm = {.d_model = d},
    };
    sluice::owned_params<params> weights(config), grad(config);
    initialise(weights.view, config, sluice::random_source(11)); // as the identity
    const sluice::transformer_block<float> block(config, weights.view);

    const sluice::limits most{.max_tokens = n, .max_rows = n, .n_sequences = 2};
    const auto bytes = block.bytes(most);
    sluice::arena workspace(bytes.workspace), tape(bytes.tape), state_memory(bytes.state);

    // Sequences of 25 and 15 rows, one behind the other.
    const sluice::idx offsets[] = {0, 25, 40};
    const sluice::batch rows{.n_tokens = n, .offsets = offsets};
    const matrix x = matrix::Random(n, d), wanted = matrix::Random(n, d);
    matrix y(n, d), dx(n, d);

    block.forward(rows, x, y, &tape, workspace);
    const float before = (y - wanted).squaredNorm();
    block.backward(rows, x, matrix(y - wanted), dx, tape, grad.view, workspace);
    sluice::each_param(
        [](const sluice::param_name&, sluice::role, auto& w, auto& g) { w.eigen() -= 1e-3F * g.eigen(); },
        weights.view, grad.view);
    block.forward(rows, x, y, nullptr, workspace);
    const float after = (y - wanted).squaredNorm();

    // The same rows from a state: both prompts together, then the last token of each.
    auto state = block.bind_state(state_memory, most);
    matrix prompts(n - 2, d), last(2, d), streamed(n - 2, d), decoded(2, d);
    prompts << x.topRows(24), x.middleRows(25, 14);
    last << x.row(24), x.row(39);
    const sluice::idx prompt_offsets[] = {0, 24, 38}, last_offsets[] = {0, 1, 2}, last_positions[] = {24, 14};
    block.prefill({.n_tokens = n - 2, .offsets = prompt_offsets}, prompts, streamed, state, workspace);
    block.decode({.n_tokens = 2, .offsets = last_offsets, .positions = last_positions}, last, decoded, state,
                 workspace);
    const bool same =
        decoded.row(0) == y.row(24) && decoded.row(1) == y.row(39) && streamed.row(30) == y.row(31);

    const auto& [norm_a, a, norm_f, f] = weights.view;
    const sluice::reference::transformer_block_weights<float> plain{
        {norm_a.scale, norm_a.bias},
        {a.w_q, a.w_k, a.w_v, a.w_o, a.q_norm, a.k_norm},
        {norm_f.scale, norm_f.bias},
        {f.w_gate, f.w_up, f.w_down, f.b_gate, f.b_up, f.b_down}};
    matrix reference(n, d);
    sluice::reference::transformer_block<float>(
        rows, {.attention = {.n_heads = 4, .n_kv_heads = 2, .head_dim = 8}}, plain, x, reference);
    const float difference = (y - reference).cwiseAbs().maxCoeff();

    std::printf("x %td x %td in 2 sequences, %zu bytes of workspace, %zu of tape, %zu of state\n", n, d,
                bytes.workspace, bytes.tape, bytes.state);
    std::printf("squared error %.2f -> %.2f after one step; decoding gives %s\n", static_cast<double>(before),
                static_cast<double>(after), same ? "the same bits" : "other numbers");
    std::printf("checksum %.6f, largest difference to the reference %.1e\n", static_cast<double>(y.sum()),
                static_cast<double>(difference));
    return same && difference < 1e-5F && after < before ? 0 : 1;
}
