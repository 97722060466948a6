// Attention of repeated tokens: three copies of each, windows of 4 positions in chunks of 8. Every token is
// three rows side by side; the cache holds the originals, and a ring of hidden keys that does not grow.
#include <sluice/core/eigen.hpp>
#include <sluice/layers/cswa.hpp>
#include <sluice/reference/cswa.hpp>

#include <cstdio>

using matrix = sluice::eigen_matrix<float>;

int main() {
    const sluice::idx n = 60, prompt = 45, d = 32, copies = 3;
    const sluice::cswa_config config{
        .attention = {.d_model = d, .n_heads = 4, .n_kv_heads = 2, .head_dim = 16},
        .repeat = copies,
        .window = 4,
        .chunk = 8};
    sluice::owned_params<sluice::cswa_params<float>> weights(config);
    initialise(weights.view, config, sluice::random_source(3));
    sluice::fill_normal(weights.view.w_o, 0.1, sluice::random_source(4)); // starts as zero otherwise
    const sluice::cswa<float> layer(config, weights.view);

    const sluice::limits most{.max_tokens = n, .max_rows = prompt};
    const auto bytes = layer.bytes(most);
    sluice::arena state_memory(bytes.state), workspace(bytes.workspace);
    auto state = layer.bind_state(state_memory, most);

    const matrix x = matrix::Random(n * copies, d);
    matrix y(n * copies, d);
    auto extend = [&](sluice::idx first, sluice::idx tokens) {
        sluice::batch b = sluice::batch::one(tokens, first);
        b.copies = copies;
        layer.extend(b, x.middleRows(first * copies, tokens * copies),
                     y.middleRows(first * copies, tokens * copies), state, workspace);
    };
    extend(0, prompt);
    for (sluice::idx i = prompt; i < n; ++i) extend(i, 1);

    // Without a state: the whole sequence in one call, the same bits.
    matrix whole(n * copies, d), reference(n * copies, d);
    sluice::arena room(layer.bytes({.max_rows = n}).workspace);
    sluice::batch all = sluice::batch::one(n);
    all.copies = copies;
    layer.forward(all, x, whole, nullptr, room);
    const bool same = (y.array() == whole.array()).all();

    const auto& w = weights.view;
    const auto& a = config.attention;
    sluice::reference::cswa<float>(sluice::batch::one(n),
                                   {.n_heads = a.n_heads, .n_kv_heads = a.n_kv_heads, .head_dim = a.head_dim},
                                   {.repeat = copies, .window = config.window, .chunk = config.chunk},
                                   {w.w_q, w.w_k, w.w_v, w.w_o, w.q_norm, w.k_norm}, x, reference);
    const float difference = (y - reference).cwiseAbs().maxCoeff();

    std::printf("%td tokens of %td copies: %td of prompt, %td decoded, %s forward\n", n, copies, prompt,
                n - prompt, same ? "the same bits as" : "different from");
    std::printf("hidden copies of %td positions are kept, of %td those of the last chunk can be seen\n",
                state.kept, state.live(0));
    std::printf("largest difference to the reference %.1e\n", static_cast<double>(difference));
    return same && difference < 1e-5F ? 0 : 1;
}
