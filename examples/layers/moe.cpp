// A Mixtral block: causal attention and a mixture of eight SwiGLU experts, of which each token takes two,
// chosen by the softmax of the router and weighted by their share of it. The prompt at once, then a token at
// a time, the same bits.
#include <sluice/core/eigen.hpp>
#include <sluice/layers/moe.hpp>
#include <sluice/layers/transformer_block.hpp>
#include <sluice/reference/moe.hpp>

#include <cstdio>

using matrix = sluice::eigen_matrix<float>;
using block =
    sluice::basic_transformer_block<sluice::attention<float>, sluice::moe<float>, sluice::norm<float>>;

int main() {
    const sluice::idx n = 40, prompt = 30, d = 32;
    const sluice::moe_config experts{
        .d_model = d,
        .router = {.n_experts = 8, .top_k = 2, .weights = {.norm = sluice::weight_norm::sum}},
        .expert = {.d_ff = 48}};
    const block::config_type config{.attention = {.d_model = d, .n_heads = 4, .n_kv_heads = 2, .head_dim = 8},
                                    .feed_forward = experts,
                                    .norm = {.d_model = d}};
    sluice::owned_params<block::params_type> weights(config);
    initialise(weights.view, config, sluice::random_source(1));
    for (const auto& e : weights.view.feed_forward.experts) // start as zero otherwise
        sluice::fill_normal(e.w_down, 0.1, sluice::random_source(2));
    const block mixtral(config, weights.view);

    const sluice::limits most{.max_tokens = n, .max_rows = n};
    const auto bytes = mixtral.bytes(most);
    sluice::arena state_memory(bytes.state), workspace(bytes.workspace);
    auto state = mixtral.bind_state(state_memory, most);
    const matrix x = matrix::Random(n, d);
    matrix y(n, d), whole(n, d);
    mixtral.prefill(sluice::batch::one(prompt), x.topRows(prompt), y.topRows(prompt), state, workspace);
    for (sluice::idx i = prompt; i < n; ++i)
        mixtral.decode(sluice::batch::one(1, i), x.middleRows(i, 1), y.middleRows(i, 1), state, workspace);
    mixtral.forward(sluice::batch::one(n), x, whole, nullptr, workspace);
    const bool same = (y.array() == whole.array()).all();

    // The experts alone, against the formula.
    const auto& p = weights.view.feed_forward;
    sluice::reference::moe_weights<float> plain{p.router, {}, {}, {}, {}, {}};
    for (const auto& e : p.experts) plain.experts.push_back({e.w_gate, e.w_up, e.w_down, {}, {}, {}});
    matrix out(n, d), want(n, d);
    const sluice::moe<float> alone(experts, p);
    alone.forward(sluice::batch::one(n), x, out, nullptr, workspace);
    sluice::reference::moe<float>({.router = {.top_k = 2, .norm = sluice::reference::router_norm::sum}},
                                  plain, x, want);
    const float difference = (out - want).cwiseAbs().maxCoeff();

    std::printf("%td tokens, %td of them decoded: %s forward\n", n, n - prompt,
                same ? "the same bits as" : "not");
    std::printf("%td parameters, of which a token uses %.0f%% in products\n", count_params(weights.view),
                100 * mixtral.flops(1) / 2 / static_cast<double>(count_params(weights.view)));
    std::printf("largest difference to the reference %.1e\n", static_cast<double>(difference));
    return same && difference < 1e-5F ? 0 : 1;
}
