// Grouped-query attention with a sliding window: the prompt at once, then a token at a time from a ring of
// keys.
#include <sluice/core/eigen.hpp>
#include <sluice/layers/attention.hpp>
#include <sluice/reference/attention.hpp>

#include <cstdio>

using matrix = sluice::eigen_matrix<float>;

int main() {
    const sluice::idx n = 200, prompt = 150, d = 32;
    const sluice::attention_config config{.d_model = d,
                                          .n_heads = 4,
                                          .n_kv_heads = 2,
                                          .head_dim = 16,
                                          .window = 24,
                                          .norm = sluice::qk_norm::per_head};

    sluice::owned_params<sluice::attention_params<float>> weights(config);
    initialise(weights.view, config, sluice::random_source(3));
    sluice::fill_normal(weights.view.w_o, 0.1, sluice::random_source(4)); // starts as zero otherwise
    const sluice::attention<float> layer(config, weights.view);

    // What has to survive between calls, and what one call takes.
    const sluice::limits most{.max_tokens = n, .max_rows = prompt};
    const auto bytes = layer.bytes(most);
    sluice::arena state_memory(bytes.state), workspace(bytes.workspace);
    auto state = layer.bind_state(state_memory, most);

    const matrix x = matrix::Random(n, d);
    matrix y(n, d);
    layer.prefill(sluice::batch::one(prompt), x.topRows(prompt), y.topRows(prompt), state, workspace);
    for (sluice::idx i = prompt; i < n; ++i)
        layer.decode(sluice::batch::one(1, i), x.middleRows(i, 1), y.middleRows(i, 1), state, workspace);

    // Without a state: the whole sequence in one call, the same bits.
    matrix whole(n, d);
    sluice::arena room(layer.bytes({.max_tokens = n, .max_rows = n}).workspace);
    layer.forward(sluice::batch::one(n), x, whole, nullptr, room);
    const bool same = (y.array() == whole.array()).all();

    matrix reference(n, d);
    const auto& w = weights.view;
    sluice::reference::attention<float>(sluice::batch::one(n),
                                        {.n_heads = config.n_heads,
                                         .n_kv_heads = config.n_kv_heads,
                                         .head_dim = config.head_dim,
                                         .window = config.window},
                                        {w.w_q, w.w_k, w.w_v, w.w_o, w.q_norm, w.k_norm}, x, reference);
    const float difference = (y - reference).cwiseAbs().maxCoeff();

    std::printf("x %td x %td: %td rows of prompt, %td decoded, %s forward\n", n, d, prompt, n - prompt,
                same ? "the same bits as" : "different from");
    std::printf("the ring holds %td keys: %zu bytes of state, %zu of workspace\n", state.keys.ring,
                bytes.state, bytes.workspace);
    std::printf("checksum %.6f, largest difference to the reference %.1e\n", static_cast<double>(y.sum()),
                static_cast<double>(difference));
    return same && difference < 1e-5F ? 0 : 1;
}
