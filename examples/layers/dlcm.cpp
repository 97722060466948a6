// A language model of bytes most of which works on concepts: it learns where to cut a text, and prints one
// cut. The text is the headers of this library, or a folder's given as argument. Then the same text a byte at
// a time, with the open segment as state.
#include <sluice/core/eigen.hpp>
#include <sluice/layers/dlcm.hpp>
#include <sluice/layers/language_model.hpp>
#include <sluice/layers/transformer_block.hpp>
#include <sluice/reference/dlcm.hpp>
#include <sluice/reference/transformer_block.hpp>
#include <sluice/train/adamw.hpp>
#include <sluice/train/boundary_loss.hpp>

#include "support/corpus.hpp"

#include <cstdio>
#include <numbers>

using sluice::batch;
using sluice::idx;
using matrix = sluice::eigen_matrix<float>;
using token_span = std::span<const sluice::token_id>;
using block = sluice::transformer_block<float>;
using body = sluice::dlcm<block, sluice::stack<block>, block>;
using model = sluice::language_model<body>;

namespace {

constexpr idx d = 64, d_concept = 96, n_tokens = 512, n_steps = 300;

sluice::transformer_block_config block_of(idx width) {
    return {.attention = {.d_model = width, .n_heads = width / 16, .n_kv_heads = width / 16, .head_dim = 16},
            .feed_forward = {.d_model = width, .d_ff = 2 * width},
            .norm = {.d_model = width}};
}

auto plain(const sluice::transformer_block_config& c, const block::params_type& p) {
    return [&c, &p](const std::vector<idx>& positions, auto x, auto y) {
        const auto& [norm_a, a, norm_f, f] = p;
        sluice::reference::transformer_block<float>(
            {.n_tokens = x.rows(), .positions = positions},
            {.attention = {c.attention.n_heads, c.attention.n_kv_heads, c.attention.head_dim}},
            {{norm_a.scale, norm_a.bias},
             {a.w_q, a.w_k, a.w_v, a.w_o, a.q_norm, a.k_norm},
             {norm_f.scale, norm_f.bias},
             {f.w_gate, f.w_up, f.w_down, {}, {}, {}}},
            x, y);
    };
}

} // namespace

int main(int argc, char** argv) {
    const auto here = std::filesystem::path(__FILE__).parent_path() / ".." / ".." / "include";
    const auto files = sluice::examples::load_folder(argc > 1 ? std::filesystem::path(argv[1]) : here);
    const std::vector<sluice::token_id> text(files.training.begin(), files.training.end()),
        held_out(files.held_out.begin(), files.held_out.end());

    sluice::boundary_counts counts; // of a step
    model::config_type config{
        .embedding = {.vocabulary = 256, .d_model = d},
        .body =
            {.encoder = block_of(d),
             .boundary = {.d_model = d,
                          .d_scan = d,
                          .forward_by = sluice::boundary_choice::sampled,
                          .loss = {.weight = 0.3, .ratio = 4, .counts = &counts}},
             .concepts = {.d_model = d,
                          .d_concept = d_concept,
                          .gradient = sluice::boundary_gradient::through_smoothing},
             .backbone = {2, block_of(d_concept)},
             .cross = {.d_model = d, .d_concept = d_concept, .n_heads = 4, .n_kv_heads = 2, .head_dim = 16},
             .decoder = block_of(d)},
        .norm = {.d_model = d}};
    using owned = sluice::owned_params<model::params_type>;
    owned weights(config), grad(config), mean(config), square(config);
    initialise(weights.view, config, sluice::random_source(1));
    const model training(config, weights.view);
    const auto need = training.bytes({.max_rows = n_tokens});
    sluice::arena workspace(need.workspace), tape(need.tape);
    auto piece = [](const auto& t, std::size_t first) { return token_span(t).subspan(first, n_tokens); };
    for (idx step = 1; step <= n_steps; ++step) {
        counts = {};
        zero(grad.view);
        const std::size_t first = static_cast<std::size_t>(step) * 104729 % (text.size() - n_tokens - 1);
        batch b = batch::one(piece(text, first));
        b.random_key = static_cast<std::uint64_t>(step);
        const double loss = training.loss_and_gradient(b, piece(text, first + 1), grad.view, tape, workspace);
        adamw(weights.view, grad.view, mean.view, square.view, {.rate = 3e-3, .clip = 1}, step, workspace);
        if (step % 50 == 0)
            std::printf("step %td: %.2f bits a byte, %.2f bytes a concept, loss on boundaries %+.3f\n", step,
                        loss / std::numbers::ln2, 1 / counts.share(), sluice::boundary_loss(counts, 4));
    }

    // By the threshold, as text is generated.
    config.body.boundary.forward_by = sluice::boundary_choice::threshold;
    config.body.boundary.loss = {};
    const body layer(config.body, weights.view.body);
    const auto ids = token_span(held_out).first(n_tokens);
    matrix x(n_tokens, d), y(n_tokens, d), want(n_tokens, d), p(1, n_tokens);
    sluice::embedding<float>(config.embedding, weights.view.embedding).forward(batch::one(ids), x);
    const sluice::limits most{.max_tokens = n_tokens, .max_rows = n_tokens};
    sluice::arena room(layer.bytes(most).workspace), memory(layer.bytes(most).state);
    std::vector<std::uint8_t> starts(n_tokens);
    const auto found = layer.boundaries(batch::one(n_tokens), x, p, starts, room);
    for (std::size_t i = 0; i < n_tokens; ++i)
        std::printf("%s%c", starts[i] != 0 ? "|" : "", static_cast<char>(ids[i]));
    layer.forward(batch::one(n_tokens), x, y, nullptr, room);

    auto state = layer.bind_state(memory, most);
    for (idx i = 0; i < n_tokens; ++i)
        layer.decode(batch::one(1, i), x.middleRows(i, 1), want.middleRows(i, 1), state, room);
    const bool same = y == want;
    const auto& w = weights.view.body;
    const auto& c = w.cross;
    const auto& backbone = config.body.backbone.layer;
    sluice::reference::dlcm<float>(
        batch::one(n_tokens), {.cross = {4, 2, 16}},
        {{w.boundary.w_q, w.boundary.w_k}, w.concepts.w_up, {c.w_q, c.w_k, c.w_v, c.w_o, c.q_norm, c.k_norm}},
        x, want, plain(config.body.encoder, w.encoder),
        [&](const auto& positions, auto from, auto to) {
            matrix between(from.rows(), from.cols());
            plain(backbone, w.backbone.layers[0])(positions, from, sluice::tensor_view<float>(between));
            plain(backbone, w.backbone.layers[1])(positions, sluice::in<float>(between), to);
        },
        plain(config.body.decoder, w.decoder));
    const float difference = (y - want).cwiseAbs().maxCoeff() / y.cwiseAbs().maxCoeff();
    std::printf("\n%.2f bytes a concept; decoding gives %s bits as all at once, with %td concepts\n"
                "largest difference to the reference %.1e\n",
                1 / found.share(), same ? "the same" : "other", state.concepts(0),
                static_cast<double>(difference));
    return same && difference < 1e-4F && found.share() > 0.1 && found.share() < 0.6 ? 0 : 1;
}
