// A layer of one's own in a language model: trained on a rhyme, saved, loaded from the file, and streamed
// token by token, with the bits that the whole text at once gives. The layer is
// support/short_convolution.hpp.
#include "support/short_convolution.hpp"

#include <sluice/sluice.hpp>

#include <nlohmann/json.hpp> // files need it

#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

using sluice::batch;
using sluice::idx;

// W is the storage of the weights: float to train, const float for what lies in a file.
template <class W>
using block = sluice::chain<sluice::residual<sluice::examples::short_convolution<float, W>>,
                            sluice::residual<sluice::feed_forward<float, W>>>;
template <class W>
using model = sluice::language_model<sluice::stack<block<W>>, W>;
using matrix = sluice::eigen_matrix<float>;

int main() {
    const idx d = 32, vocabulary = 128;
    const model<float>::config_type config{
        .embedding = {.vocabulary = vocabulary, .d_model = d},
        .body = {.n_layers = 2, .layer = {{.d_model = d, .n_taps = 4}, {.d_model = d, .d_ff = 64}}},
        .norm = {.d_model = d}};
    const std::string text = "row row row your boat gently down the stream merrily merrily merrily merrily ";
    const std::vector<sluice::token_id> ids(text.begin(), text.end() - 1), next(text.begin() + 1, text.end());
    const auto n = static_cast<idx>(ids.size());

    // Train.
    using params = sluice::owned_params<model<float>::params_type>;
    params weights(config), gradient(config), means(config), squares(config);
    initialise(weights.view, config, sluice::random_source(1));
    const model<float> trained(config, weights.view);
    const auto need = trained.bytes({.max_rows = n});
    sluice::arena workspace(need.workspace), tape(need.tape);
    double first = 0, loss = 0;
    for (idx step = 1; step <= 150; ++step) {
        sluice::zero(gradient.view);
        loss = trained.loss_and_gradient(batch::one(ids), next, gradient.view, tape, workspace);
        if (step == 1) first = loss;
        sluice::adamw(weights.view, gradient.view, means.view, squares.view, {.rate = 1e-2}, step, workspace);
    }

    // Save, and load: the weights are read where they lie in the file.
    const std::string path =
        (std::filesystem::temp_directory_path() / "sluice_custom_layer.safetensors").string();
    sluice::io::safetensors_writer out;
    sluice::io::save_params(out, "", weights.view);
    out.save(path);
    const sluice::io::bound_params<model<const float>::params_type> loaded(
        sluice::io::safetensors(sluice::io::read(path)), "", config);
    std::filesystem::remove(path);
    const model<const float> lm(config, loaded.view);

    // The whole text at once, and token by token; now and then some wrong tokens that are taken back.
    const sluice::limits most{.max_tokens = n, .max_rows = n, .max_rollback = 2};
    const auto bytes = lm.bytes(most);
    sluice::arena room(bytes.workspace), state_memory(bytes.state);
    auto state = lm.bind_state(state_memory, most);
    matrix whole(n, vocabulary), streamed(n, vocabulary), dropped(2, vocabulary);
    lm.forward(batch::one(ids), whole, room);
    const std::vector<sluice::token_id> wrong{1, 2};
    const std::span<const sluice::token_id> all(ids);
    for (idx i = 0; i < n; ++i) {
        if (i % 10 == 5 && i + 2 <= n) {
            lm.extend(batch::one(wrong, i), dropped, state, room);
            state.truncate(0, i);
        }
        lm.decode(batch::one(all.subspan(static_cast<std::size_t>(i), 1), i), streamed.middleRows(i, 1),
                  state, room);
    }

    std::string guessed = text.substr(0, 1);
    for (idx i = 0, best = 0; i < n; ++i) {
        streamed.row(i).maxCoeff(&best);
        guessed += static_cast<char>(best);
    }
    const bool same = whole == streamed;
    std::printf("%td weights, loss %.4f -> %.4f nats\n%s\n", sluice::count_params(weights.view), first, loss,
                guessed.c_str());
    std::printf("streamed = computed at once, bit for bit: %s\n", same ? "true" : "false");
    return same && loss < first / 4 ? 0 : 1;
}
