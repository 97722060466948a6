// Mixture-of-Depths around a transformer block: a quarter of the tokens go through it, the others past it. A
// predictor learns which ones top-k takes, which no token knows when text is generated; then a prompt and
// decoding by the predictor, the same bits as at once, with a cache of only what was routed.
#include <sluice/core/eigen.hpp>
#include <sluice/layers/mixture_of_depths.hpp>
#include <sluice/layers/transformer_block.hpp>
#include <sluice/reference/mixture_of_depths.hpp>
#include <sluice/reference/transformer_block.hpp>
#include <sluice/train/adamw.hpp>

#include <cstdio>

using sluice::depth_rule;
using sluice::idx;
using matrix = sluice::eigen_matrix<float>;
using depths = sluice::mixture_of_depths<sluice::transformer_block<float>>;
using params = depths::params_type;

namespace {

constexpr idx d = 32, n = 256, prompt = 200;

// Top-k as the paper writes it.
void reference(const depths::config_type& c, const params& p, const matrix& x, matrix& y) {
    namespace ref = sluice::reference;
    const auto& [norm_a, a, norm_f, f] = p.block;
    const ref::transformer_block_weights<float> weights{{norm_a.scale, norm_a.bias},
                                                        {a.w_q, a.w_k, a.w_v, a.w_o, a.q_norm, a.k_norm},
                                                        {norm_f.scale, norm_f.bias},
                                                        {f.w_gate, f.w_up, f.w_down, {}, {}, {}}};
    const ref::transformer_block_shape block{.attention = {.n_heads = c.block.attention.n_heads,
                                                           .n_kv_heads = c.block.attention.n_kv_heads,
                                                           .head_dim = c.block.attention.head_dim}};
    ref::mixture_of_depths<float>(sluice::batch::one(n), {.capacity = c.router.capacity}, p.router.w, {}, x,
                                  y, [&](const std::vector<idx>& positions, auto some, auto change) {
                                      const sluice::batch routed{.n_tokens = some.rows(),
                                                                 .positions = positions};
                                      ref::transformer_block<float>(routed, block, weights, some, change);
                                      change.eigen() -= some.eigen();
                                  });
}

} // namespace

int main() {
    sluice::depth_report report;
    depths::config_type config{
        .block = {.attention = {.d_model = d, .n_heads = 4, .n_kv_heads = 2, .head_dim = 8},
                  .feed_forward = {.d_model = d, .d_ff = 96},
                  .norm = {.d_model = d}},
        .router = {.d_model = d,
                   .capacity = 0.25,
                   .extend_by = depth_rule::predictor,
                   .predictor = 16,
                   .losses = {.predictor = 1, .report = &report}}};
    sluice::owned_params<params> weights(config), grad(config), means(config), squares(config);
    initialise(weights.view, config, sluice::random_source(1));
    sluice::fill_normal(weights.view.router.w, 0.3, sluice::random_source(4));
    for (const auto& w : {weights.view.block.attention.w_o, weights.view.block.feed_forward.w_down})
        sluice::fill_normal(w, 0.1, sluice::random_source(2)); // start as zero otherwise

    const depths trained(config, weights.view);
    const sluice::limits most{.max_tokens = n, .max_rows = n};
    const sluice::sizes bytes = trained.bytes(most);
    sluice::arena workspace(std::max<std::size_t>(bytes.workspace, 1 << 20)), tape(bytes.tape);
    matrix x = matrix::Random(n, d), y(n, d), want(n, d), dx(n, d);
    trained.forward(sluice::batch::one(n), x, y, nullptr, workspace);
    reference(config, weights.view, x, want);
    const float difference = (y - want).cwiseAbs().maxCoeff();

    // The predictor alone learns here: no other loss, so dy is zero.
    const matrix dy = matrix::Zero(n, d);
    const sluice::adamw_config optimiser{.rate = 1e-2, .decay = 0};
    double first = 0;
    for (idx step = 1; step <= 400; ++step) {
        if (step % 20 == 1) report = {};
        x = matrix::Random(n, d);
        zero(grad.view);
        trained.forward(sluice::batch::one(n), x, y, &tape, workspace);
        trained.backward(sluice::batch::one(n), x, dy, dx, tape, grad.view, workspace);
        adamw(weights.view, grad.view, means.view, squares.view, optimiser, step, workspace);
        const double agreement =
            static_cast<double>(report.predictor_agrees) / static_cast<double>(report.tokens);
        if (step == 1) first = agreement;
        if (step % 100 == 0)
            std::printf("step %td: loss %.3f, the predictor says what top-k says of %.1f%% of tokens\n", step,
                        report.predictor_loss / static_cast<double>(report.tokens), 100 * agreement);
    }
    const bool learnt =
        static_cast<double>(report.predictor_agrees) > 0.95 * static_cast<double>(report.tokens);

    // At once by the predictor, then as a prompt and token by token.
    config.router.losses = {};
    config.router.forward_by = depth_rule::predictor;
    const depths causal(config, weights.view);
    sluice::arena state_memory(causal.bytes(most).state), room(causal.bytes(most).workspace);
    auto state = causal.bind_state(state_memory, most);
    causal.forward(sluice::batch::one(n), x, want, nullptr, room);
    causal.prefill(sluice::batch::one(prompt), x.topRows(prompt), y.topRows(prompt), state, room);
    for (idx i = prompt; i < n; ++i)
        causal.decode(sluice::batch::one(1, i), x.middleRows(i, 1), y.middleRows(i, 1), state, room);
    const bool same = (y.array() == want.array()).all();
    const auto cached = state.block.tokens(0);

    std::printf("agreement in the first step %.1f%%\n", 100 * first);
    std::printf("decoding gives %s bits as all at once; %td of %td tokens are in the cache\n",
                same ? "the same" : "other", cached, n);
    std::printf("%.0f%% of the block's operations; largest difference to the reference %.1e\n",
                100 * causal.flops(n) /
                    sluice::transformer_block<float>(config.block, weights.view.block).flops(n),
                static_cast<double>(difference));
    return learnt && same && difference < 1e-5F && cached == state.routed(0) ? 0 : 1;
}
