// A small language model from weights to words: training on a rhyme, then writing it down token by token.
#include <sluice/core/eigen.hpp>
#include <sluice/layers/language_model.hpp>
#include <sluice/layers/transformer_block.hpp>
#include <sluice/reference/language_model.hpp>

#include <cstdio>
#include <string>
#include <vector>

using matrix = sluice::eigen_matrix<float>;
using model = sluice::language_model<sluice::stack<sluice::transformer_block<float>>>;

int main() {
    const std::string text = "row row row your boat gently down the stream merrily merrily merrily merrily ";
    const std::vector<sluice::token_id> ids(text.begin(), text.end() - 1),
        targets(text.begin() + 1, text.end());
    const auto n = static_cast<sluice::idx>(ids.size());

    const sluice::idx d = 32;
    const sluice::transformer_block_config block{
        .attention = {.d_model = d, .n_heads = 4, .n_kv_heads = 2, .head_dim = 8},
        .feed_forward = {.d_model = d, .d_ff = 64},
        .norm = {.d_model = d},
    };
    const model::config_type config{.embedding = {.vocabulary = 128, .d_model = d},
                                    .body = {.n_layers = 2, .layer = block},
                                    .norm = {.d_model = d}};

    sluice::owned_params<model::params_type> weights(config), grad(config), momentum(config);
    initialise(weights.view, config, sluice::random_source(1));
    const model lm(config, weights.view);
    const sluice::limits most{.max_tokens = n + 1, .max_rows = n};
    const auto bytes = lm.bytes(most);
    sluice::arena workspace(bytes.workspace), tape(bytes.tape), state_memory(bytes.state);

    double first = 0, loss = 0;
    for (int step = 0; step < 150; ++step) {
        sluice::zero(grad.view);
        loss = lm.loss_and_gradient(sluice::batch::one(ids), targets, grad.view, tape, workspace);
        if (step == 0) first = loss;
        sluice::each_param(
            [](const sluice::param_name&, sluice::role, auto& w, auto& g, auto& m) {
                m.eigen() = 0.9F * m.eigen() + g.eigen();
                w.eigen() -= 0.1F * m.eigen();
            },
            weights.view, grad.view, momentum.view);
    }

    // The first words are the prompt; the model writes the rest.
    auto state = lm.bind_state(state_memory, most);
    std::string written = text.substr(0, 8);
    matrix logits(1, 128); // one row: the logits of the last token only
    const std::vector<sluice::token_id> prompt(written.begin(), written.end());
    lm.prefill(sluice::batch::one(prompt), logits, state, workspace);
    while (written.size() < text.size()) {
        sluice::idx best = 0;
        logits.row(0).maxCoeff(&best);
        const std::vector<sluice::token_id> next{static_cast<sluice::token_id>(best)};
        lm.decode(sluice::batch::one(next, static_cast<sluice::idx>(written.size())), logits, state,
                  workspace);
        written += static_cast<char>(best);
    }

    std::vector<sluice::reference::transformer_block_weights<float>> blocks;
    for (const auto& [norm_a, a, norm_f, f] : weights.view.body.layers)
        blocks.push_back({{norm_a.scale, norm_a.bias},
                          {a.w_q, a.w_k, a.w_v, a.w_o, a.q_norm, a.k_norm},
                          {norm_f.scale, norm_f.bias},
                          {f.w_gate, f.w_up, f.w_down, f.b_gate, f.b_up, f.b_down}});
    matrix all(n, 128), reference(n, 128);
    lm.forward(sluice::batch::one(ids), all, workspace);
    sluice::reference::language_model<float>(
        sluice::batch::one(ids), {.attention = {.n_heads = 4, .n_kv_heads = 2, .head_dim = 8}},
        {weights.view.embedding.table, weights.view.embedding.head, blocks, {weights.view.norm.scale, {}}},
        reference);
    const float difference = (all - reference).cwiseAbs().maxCoeff();

    std::printf("%td weights, logits %td x %td, %zu bytes of workspace, %zu of tape, %zu of state\n",
                sluice::count_params(weights.view), n, all.cols(), bytes.workspace, bytes.tape, bytes.state);
    std::printf("loss %.4f -> %.4f nats\n%s\n", first, loss, written.c_str());
    std::printf("checksum %.4f, largest difference to the reference %.1e\n", static_cast<double>(all.sum()),
                static_cast<double>(difference));
    return difference < 1e-3F && loss < first / 4 && written == text ? 0 : 1;
}
