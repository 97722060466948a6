// Layers made of layers: a stack of chains, each a windowed attention and then a feed-forward layer, both
// with a residual. The whole is one layer with one state, one workspace and one set of weights.
#include <sluice/core/eigen.hpp>
#include <sluice/layers/attention.hpp>
#include <sluice/layers/compose.hpp>
#include <sluice/layers/feed_forward.hpp>
#include <sluice/reference/attention.hpp>
#include <sluice/reference/compose.hpp>
#include <sluice/reference/feed_forward.hpp>

#include <cstdio>

using matrix = sluice::eigen_matrix<float>;
using mixer = sluice::residual<sluice::attention<float>>;
using feed_forward = sluice::residual<sluice::feed_forward<float>>;
using model = sluice::stack<sluice::chain<mixer, feed_forward>>;

int main() {
    const sluice::idx n = 60, d = 16;
    const sluice::attention_config attention{
        .d_model = d, .n_heads = 2, .n_kv_heads = 2, .head_dim = 8, .window = 12};
    const sluice::feed_forward_config inner{
        .d_model = d, .d_ff = 40, .kind = sluice::feed_forward_kind::gelu};
    const model::config_type config{.n_layers = 3, .layer = {attention, inner}};

    sluice::owned_params<model::params_type> weights(config);
    sluice::each_param(
        [key = 1u](const sluice::param_name& name, sluice::role, auto& w) mutable {
            sluice::fill_normal(w, 0.2, sluice::random_source(key++));
            std::printf("  %-12s %td x %td\n", name.str().c_str(), w.rows(), w.cols());
        },
        weights.view);
    const model layers(config, weights.view);

    const sluice::limits most{.max_tokens = n, .max_rows = 1};
    const auto bytes = layers.bytes(most);
    sluice::arena state_memory(bytes.state), workspace(bytes.workspace);
    auto state = layers.bind_state(state_memory, most);
    const matrix x = matrix::Random(n, d);
    matrix y(n, d);
    for (sluice::idx i = 0; i < n; ++i)
        layers.extend(sluice::batch::one(1, i), x.middleRows(i, 1), y.middleRows(i, 1), state, workspace);

    namespace reference = sluice::reference;
    using rows_in = sluice::tensor_view<const float>;
    using rows_out = sluice::tensor_view<float>;
    matrix plain(n, d);
    reference::stack<float>(config.n_layers, x, plain, [&](sluice::idx i, rows_in from, rows_out to) {
        const auto& parts = weights.view.layers[static_cast<std::size_t>(i)].layers;
        const auto& a = get<0>(parts);
        const auto& f = get<1>(parts);
        reference::chain<float>(
            from, to,
            [&](rows_in u, rows_out v) {
                reference::residual<float>(u, v, [&](rows_in s, rows_out t) {
                    reference::attention<float>(sluice::batch::one(n),
                                                {.n_heads = 2, .n_kv_heads = 2, .head_dim = 8, .window = 12},
                                                {a.w_q, a.w_k, a.w_v, a.w_o, a.q_norm, a.k_norm}, s, t);
                });
            },
            [&](rows_in u, rows_out v) {
                reference::residual<float>(u, v, [&](rows_in s, rows_out t) {
                    reference::feed_forward<float>(reference::activation::gelu,
                                                   {f.w_gate, f.w_up, f.w_down, f.b_gate, f.b_up, f.b_down},
                                                   s, t);
                });
            });
    });
    const float difference = (y - plain).cwiseAbs().maxCoeff();

    std::printf("x %td x %td through %td layers: %zu bytes of state, %zu of workspace\n", n, d,
                config.n_layers, bytes.state, bytes.workspace);
    std::printf("checksum %.6f, largest difference to the reference %.1e\n", static_cast<double>(y.sum()),
                static_cast<double>(difference));
    return difference < 1e-4F ? 0 : 1;
}
