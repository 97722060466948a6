// Parallel hidden decoding with the same weights and one to four copies of every token: what copies change,
// and what they cost in a prompt, in decoding and in the cache. The weights are not trained.
#include <sluice/layers/language_model.hpp>
#include <sluice/layers/phd.hpp>
#include <sluice/reference/phd.hpp>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <vector>

using sluice::idx;
using model = sluice::language_model<sluice::phd<float>>;

namespace {

constexpr idx d = 256, vocabulary = 256, layers = 4, prompt = 500, decoded = 20;

model::config_type config_of(idx copies) {
    return {.embedding = {.vocabulary = vocabulary, .d_model = d},
            .body = {.repeat = copies,
                     .body = {.n_layers = layers,
                              .layer = {.attention = {.attention = {.d_model = d,
                                                                    .n_heads = 4,
                                                                    .n_kv_heads = 2,
                                                                    .head_dim = 64},
                                                      .repeat = copies,
                                                      .window = 16,
                                                      .chunk = 32},
                                        .feed_forward = {.d_model = d, .d_ff = 704},
                                        .norm = {.d_model = d}}}},
            .norm = {.d_model = d}};
}

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The model as the paper writes it, over the first n tokens.
void reference(const model::config_type& c, const model::params_type& p,
               std::span<const sluice::token_id> ids, sluice::tensor_view<float> y) {
    namespace ref = sluice::reference;
    const auto n = static_cast<idx>(ids.size());
    sluice::tensor<float> x(n, d);
    for (idx i = 0; i < n; ++i)
        std::copy_n(p.embedding.table.row(ids[static_cast<std::size_t>(i)]), d, x.view().row(i));
    const auto& one = c.body.body.layer;
    const auto& a = one.attention.attention;
    const ref::transformer_block_shape shape{
        .attention = {.n_heads = a.n_heads, .n_kv_heads = a.n_kv_heads, .head_dim = a.head_dim}};
    const ref::copies copies{c.body.repeat, one.attention.window, one.attention.chunk};
    ref::phd<float>(layers, c.body.repeat, x, y, [&](idx i, auto from, auto to) {
        const auto& [norm_a, at, norm_f, f] = p.body.body.layers[static_cast<std::size_t>(i)];
        ref::phd_block<float>(sluice::batch::one(n), shape, copies,
                              {{norm_a.scale, norm_a.bias},
                               {at.w_q, at.w_k, at.w_v, at.w_o, at.q_norm, at.k_norm},
                               {norm_f.scale, norm_f.bias},
                               {f.w_gate, f.w_up, f.w_down, f.b_gate, f.b_up, f.b_down}},
                              from, to);
    });
    ref::norm<float>(ref::norm_kind::rms, c.norm.eps, {p.norm.scale, p.norm.bias}, y, y);
}

} // namespace

int main() {
    sluice::owned_params<model::params_type> weights(config_of(1));
    initialise(weights.view, config_of(1), sluice::random_source(1));
    for (const auto& layer : weights.view.body.body.layers) // start as zero otherwise
        for (const auto& w : {layer.attention.w_o, layer.feed_forward.w_down})
            sluice::fill_normal(w, 0.06, sluice::random_source(2));
    std::vector<sluice::token_id> ids;
    for (idx i = 0; i < prompt + decoded; ++i)
        ids.push_back(static_cast<sluice::token_id>(i * i * 31 % vocabulary));

    bool right = true;
    std::vector<float> plain;
    double plain_prompt = 0, plain_step = 0;
    std::printf("copies  logits move by  cache      prompt  a step  off the reference\n");
    for (idx copies = 1; copies <= 4; ++copies) {
        const model lm(config_of(copies), weights.view);
        // Only the last logits are wanted, so only what can still matter is computed of the hidden copies.
        const sluice::limits most{
            .max_tokens = prompt + decoded, .max_rows = prompt, .wanted = sluice::outputs::last};
        const auto bytes = lm.bytes(most);
        sluice::arena state_memory(bytes.state), workspace(bytes.workspace);
        auto state = lm.bind_state(state_memory, most);
        sluice::tensor<float> logits(1, vocabulary);
        const double start = now();
        lm.prefill(sluice::batch::one(std::span(ids).first(prompt)), logits.view(), state, workspace);
        const double half = now();
        for (idx i = prompt; i < prompt + decoded; ++i)
            lm.decode(sluice::batch::one(std::span(ids).subspan(static_cast<std::size_t>(i), 1), i),
                      logits.view(), state, workspace);
        const double in_prompt = half - start, step = (now() - half) / decoded;

        // The reference for a prompt short enough for plain loops.
        const auto few = std::span(ids).first(70);
        sluice::tensor<float> want(70, d), head(70, vocabulary);
        reference(config_of(copies), weights.view, few, want.view());
        sluice::reference::linear<float>({weights.view.embedding.head, {}}, want, head.view());
        state.truncate(0, 0);
        sluice::tensor<float> short_logits(1, vocabulary);
        lm.prefill(sluice::batch::one(few), short_logits.view(), state, workspace);
        float off = 0, moved = 0;
        for (idx j = 0; j < vocabulary; ++j) off = std::max(off, std::abs(short_logits(0, j) - head(69, j)));
        if (copies == 1) {
            plain.assign(logits.view().row(0), logits.view().row(0) + vocabulary);
            plain_prompt = in_prompt;
            plain_step = step;
        }
        for (idx j = 0; j < vocabulary; ++j)
            moved = std::max(moved, std::abs(logits(0, j) - plain[static_cast<std::size_t>(j)]));
        std::printf("%-6td  %-14.4f  %5.0f KiB  x%.2f   x%.2f   %.0e\n", copies, static_cast<double>(moved),
                    static_cast<double>(bytes.state) / 1024, in_prompt / plain_prompt, step / plain_step,
                    static_cast<double>(off));
        right = right && off < 1e-4F && (copies == 1) == (moved == 0);
    }
    return right ? 0 : 1;
}
