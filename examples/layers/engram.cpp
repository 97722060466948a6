// A language model of bytes that sees one token, with and without a memory of the last four: what a table of
// n-grams adds, and where its gate opens. The text is the headers of this library, or a folder's given as
// argument. Letters of both cases are one to the memory.
#include <sluice/core/eigen.hpp>
#include <sluice/layers/compose.hpp>
#include <sluice/layers/engram.hpp>
#include <sluice/layers/feed_forward.hpp>
#include <sluice/layers/language_model.hpp>
#include <sluice/reference/engram.hpp>
#include <sluice/train/row_adam.hpp>

#include "support/corpus.hpp"

#include <cctype>
#include <cmath>
#include <cstdio>
#include <numbers>

using matrix = sluice::eigen_matrix<float>;
using sluice::idx;
using token_span = std::span<const sluice::token_id>;
using memory = sluice::residual<sluice::engram<float>>;
using feed_forward = sluice::residual<sluice::feed_forward<float>>;

constexpr idx model_width = 64, n_tokens = 512, n_steps = 250;

// Trains on pieces of the text and returns the bits for a byte of what was held out.
template <class Body>
double train(const sluice::language_model<Body>& lm, auto& weights, const std::vector<sluice::token_id>& text,
             const std::vector<sluice::token_id>& held_out, auto&& step_table) {
    using model = sluice::language_model<Body>;
    using moments = sluice::owned_params<typename model::grad_type>;
    moments grad(lm.config()), mean(lm.config()), square(lm.config());
    const auto bytes = lm.bytes({.max_rows = n_tokens});
    sluice::arena workspace(bytes.workspace), tape(bytes.tape);
    const sluice::adamw_config adam{.rate = 4e-3};
    auto piece = [](const auto& t, std::size_t first) { return token_span(t).subspan(first, n_tokens); };
    for (idx step = 1; step <= n_steps; ++step) {
        sluice::zero(grad.view);
        const std::size_t first = static_cast<std::size_t>(step) * 104729 % (text.size() - n_tokens - 1);
        lm.loss_and_gradient(sluice::batch::one(piece(text, first)), piece(text, first + 1), grad.view, tape,
                             workspace);
        sluice::adamw(weights, grad.view, mean.view, square.view, adam, step, workspace);
        step_table(grad.view, adam);
    }
    double nats = 0, pieces = 0;
    for (std::size_t first = 0; first + n_tokens + 1 < held_out.size() && pieces < 40;
         first += n_tokens, ++pieces)
        nats += lm.loss(sluice::batch::one(piece(held_out, first)), piece(held_out, first + 1), workspace);
    return nats / pieces / std::numbers::ln2;
}

int main(int argc, char** argv) {
    const auto here = std::filesystem::path(__FILE__).parent_path() / ".." / ".." / "include";
    const auto files = sluice::examples::load_folder(argc > 1 ? std::filesystem::path(argv[1]) : here);
    const std::vector<sluice::token_id> text(files.training.begin(), files.training.end()),
        held_out(files.held_out.begin(), files.held_out.end());

    // 256 bytes, 230 ids to the memory.
    std::vector<std::int32_t> map(256, -1);
    std::int32_t different = 0;
    for (int c = 0; c < 256; ++c) {
        const auto lower = static_cast<std::size_t>(std::tolower(c));
        if (map[lower] < 0) map[lower] = different++;
        map[static_cast<std::size_t>(c)] = map[lower];
    }
    sluice::ngram_hash hash;
    const idx layer_id = 0;
    sluice::make_ngram_hashes({.vocabulary = different, .n_gram = 4, .n_hashes = 2, .least_rows = {20000}},
                              {&layer_id, 1}, {&hash, 1});

    using plain = sluice::language_model<feed_forward>;
    using with_memory = sluice::language_model<sluice::chain<memory, feed_forward>>;
    const sluice::feed_forward_config inner{.d_model = model_width, .d_ff = 128};
    const sluice::engram_config engram{.d_model = model_width,
                                       .d_memory = 96,
                                       .hash = hash,
                                       .token_map = {map.data(), 1, 256},
                                       .max_touched = n_tokens * 6};
    const sluice::embedding_config bytes{.vocabulary = 256, .d_model = model_width};
    const plain::config_type plain_config{
        .embedding = bytes, .body = inner, .norm = {.d_model = model_width}};
    const with_memory::config_type config{
        .embedding = bytes, .body = {engram, inner}, .norm = {.d_model = model_width}};

    sluice::owned_params<plain::params_type> plain_weights(plain_config);
    initialise(plain_weights.view, plain_config, sluice::random_source(1));
    const plain alone(plain_config, plain_weights.view);
    const double without = train(alone, plain_weights.view, text, held_out, [](auto&, auto) {});

    sluice::owned_params<with_memory::params_type> weights(config);
    initialise(weights.view, config, sluice::random_source(1));
    const with_memory lm(config, weights.view);
    const auto& p = sluice::get<0>(weights.view.body.layers);
    sluice::arena state_memory(3U * sizeof(float) * static_cast<std::size_t>(p.table.size() + hash.rows()));
    const auto state = sluice::row_adam_state<float>::bind(state_memory, p.table.rows(), p.table.cols());
    const double with = train(lm, weights.view, text, held_out, [&](auto& grad, sluice::adamw_config adam) {
        adam.rate *= 5; // the paper's, appendix A
        sluice::row_adam(p.table, sluice::get<0>(grad.body.layers).table, state, adam);
    });

    // Where the gate opens: the darker, the more of the memory is let in.
    const std::string_view phrase = "template <class T> // returns the number of tokens, TEMPLATE <class";
    const std::vector<sluice::token_id> ids(phrase.begin(), phrase.end());
    const auto n = static_cast<idx>(ids.size());
    matrix x(n, model_width), open(n, 1), y(n, model_width), want(n, model_width);
    const sluice::engram<float> layer(engram, p);
    sluice::arena workspace(2 * layer.bytes({.max_rows = n}).workspace);
    sluice::embedding<float>(bytes, weights.view.embedding).forward(sluice::batch::one(ids), x);
    layer.gates(sluice::batch::one(ids), x, open, workspace);
    for (idx i = 0; i < n; ++i)
        std::printf("\033[38;5;16;48;5;%dm%c", 255 - static_cast<int>(16 * open(i, 0)),
                    phrase[static_cast<std::size_t>(i)]);
    std::printf("\033[0m\n");

    layer.forward(sluice::batch::one(ids), x, y, nullptr, workspace);
    sluice::reference::engram_hash plain_hash{{}, {}, hash.n_hashes, 0};
    for (idx k = 0; k < hash.n_gram; ++k)
        plain_hash.multipliers.push_back(hash.multipliers[static_cast<std::size_t>(k)]);
    for (idx j = 0; j < hash.heads(); ++j)
        plain_hash.primes.push_back(static_cast<std::uint64_t>(hash.moduli[static_cast<std::size_t>(j)]));
    std::vector<std::int32_t> compressed;
    for (const auto id : ids) compressed.push_back(map[static_cast<std::size_t>(id)]);
    sluice::reference::engram<float>(
        plain_hash,
        {.d_model = model_width, .eps = engram.eps, .conv_eps = engram.convolution.eps, .dilation = 4},
        {p.table, {p.w_kv, {}}, p.key_scale, p.query_scale, p.value_scale, p.taps}, sluice::batch::one(ids),
        compressed, x, want);
    const float difference = (y - want).cwiseAbs().maxCoeff() / want.cwiseAbs().maxCoeff();

    std::printf("held out: %.2f bits for a byte without memory, %.2f with %td rows of %td\n", without, with,
                p.table.rows(), p.table.cols());
    std::printf("largest difference to the reference %.1e\n", static_cast<double>(difference));
    return with < without - 0.3 && difference < 1e-4F ? 0 : 1;
}
