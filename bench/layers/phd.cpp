// Token repetition: what copies cost in decoding and for prompts, against the same weights without copies
// (dense), against plain repetition of every token (naive), and against attention over the dense mask.
#include <sluice/layers/phd.hpp>
#include <sluice/reference/cswa.hpp>

#include "../support/contest.hpp"

namespace {

using namespace sluice;
using namespace sluice::bench;

struct copies {
    idx repeat = 1, window = 0, chunk = no_chunks;
    std::string text() const {
        std::string s = ",K:" + std::to_string(repeat);
        if (window > 0) s += ",W:" + std::to_string(window);
        if (chunk != no_chunks) s += ",C:" + std::to_string(chunk);
        return s;
    }
};
struct size {
    idx d_model, d_ff, n_heads, n_kv_heads, layers;
};

template <class W>
using body = phd<float, packed<W>>;

template <class W>
typename body<W>::config_type config_of(const size& s, const copies& c) {
    const attention_config attention{
        .d_model = s.d_model, .n_heads = s.n_heads, .n_kv_heads = s.n_kv_heads, .head_dim = 64};
    return {.repeat = c.repeat,
            .body = {.n_layers = s.layers,
                     .layer = {.attention = {attention, c.repeat, c.window, c.chunk},
                               .feed_forward = {.d_model = s.d_model, .d_ff = s.d_ff},
                               .norm = {.d_model = s.d_model}}}};
}

// Packed weights, filled where they lie: their order is of no interest here.
template <class W>
struct weights {
    using params = typename body<W>::params_type;

    explicit weights(const size& s)
        : config(config_of<W>(s, {})), memory(params_bytes(config)), view(params::bind(memory, config)) {
        std::uint64_t seed = 1;
        each_param(
            [&]<class To>(const param_name&, role, const tensor_view<To>& w) {
                if constexpr (is_packed<To>) {
                    const idx n = tensor_view<To>::elements(w.rows(), w.cols());
                    const float scale = 1 / std::sqrt(static_cast<float>(w.cols()));
                    tensor<float> some(1, 4096);
                    fill_uniform(some, scale, seed++);
                    for (idx i = 0; i < n; ++i) {
                        if constexpr (std::is_same_v<W, bf16>)
                            w.data()[i] = to_bf16(some(0, (i * 2654435761) % 4093));
                        else
                            w.data()[i] = some(0, (i * 2654435761) % 4093);
                    }
                    bytes += static_cast<double>(n) * static_cast<double>(sizeof(W));
                } else {
                    fill(w, 1.0F);
                }
            },
            view);
    }
    weights(const weights&) = delete;

    static std::size_t params_bytes(const typename body<W>::config_type& c) {
        arena dry;
        (void)params::bind(dry, c);
        return dry.bytes();
    }
    typename body<W>::config_type config;
    arena memory;
    params view;
    double bytes = 0; // of matrices
};

// A model with its state, in the middle of a text.
template <class W>
struct running {
    running(const weights<W>& w, const size& s, const copies& c, const limits& m)
        : net(config_of<W>(s, c), w.view),
          most(m),
          need(net.bytes(m)),
          memory(need.state),
          workspace(need.workspace),
          x(uniform(m.max_tokens, s.d_model, 1, 3)),
          y(1, s.d_model),
          state(net.bind_state(memory, m)) {}
    running(const running&) = delete;

    // Tokens [first, end), of which the last output is left in y.
    void extend(idx first, idx end, executor_ref ex) {
        net.extend(batch::one(end - first, first), x.view().row_block(first, end - first), y.view(), state,
                   workspace, ex);
    }
    // The last output of n tokens against that of forward over all copies.
    double error(idx n, executor_ref ex) {
        arena room(net.bytes({.max_rows = n, .workers = most.workers}).workspace);
        tensor<float> all(n, x.cols());
        net.forward(batch::one(n), x.view().row_block(0, n), all.view(), nullptr, room, ex);
        state.truncate(0, 0);
        extend(0, n, ex);
        return relative_difference(y, std::as_const(all).view().row_block(n - 1, 1));
    }

    body<W> net;
    limits most;
    sizes need;
    arena memory, workspace;
    tensor<float> x, y;
    typename body<W>::state_type state;
};

// One token after S - 1 others. Weights come from memory, so copies are nearly free until the products are
// bound by arithmetic.
template <class W>
void decode(const char* storage, const size& s, const copies& c) {
    row("phd/decode/" + std::string(storage) + c.text(), [s, c](contest& at) {
        constexpr idx n = 256;
        auto& w = at.hold<weights<W>>(s);
        const limits most{.max_tokens = n,
                          .max_rows = n,
                          .max_rollback = 1,
                          .workers = at.threads(),
                          .wanted = outputs::last};
        auto& mine = at.hold<running<W>>(w, s, c, most);
        auto& dense = at.hold<running<W>>(w, s, copies{}, most);
        const executor_ref ex = at.executor();
        for (auto* r : {&mine, &dense}) r->extend(0, n - 1, ex);
        auto step = [ex](running<W>& r) {
            r.extend(n - 1, n, ex);
            r.state.truncate(0, n - 1);
        };
        at.bytes(w.bytes, traffic::read);
        at.tokens(1);
        at.ours([&mine, step] { step(mine); });
        at.check(
            "forward over all copies",
            [&mine, ex] {
                const double error = mine.error(40, ex);
                mine.state.truncate(0, 0);
                mine.extend(0, n - 1, ex);
                return error;
            },
            1e-4);
        at.against("dense", [&dense, step] { step(dense); });
        at.note("kv_extra_bytes", static_cast<double>(mine.need.state - dense.need.state));
    });
}

// A prompt of which the last output is wanted.
void prefill(const std::string& kind, const size& s, const copies& c, idx n) {
    row("phd/prefill/f32/" + kind + c.text() + ",T:" + std::to_string(n), [s, c, n, kind](contest& at) {
        auto& w = at.hold<weights<float>>(s);
        const limits most{.max_tokens = n, .max_rows = n, .workers = at.threads(), .wanted = outputs::last};
        auto& mine = at.hold<running<float>>(w, s, c, most);
        auto& dense = at.hold<running<float>>(w, s, copies{}, most);
        const executor_ref ex = at.executor();
        auto prompt = [ex, n](running<float>& r) {
            r.state.truncate(0, 0);
            r.extend(0, n, ex);
        };
        at.tokens(static_cast<double>(n));
        at.ours([&mine, prompt] { prompt(mine); });
        at.check(
            "forward over all copies",
            [&mine, ex, prompt] {
                const double error = mine.error(200, ex);
                prompt(mine);
                return error;
            },
            1e-4);
        at.against("dense", [&dense, prompt] { prompt(dense); });
        at.note("kv_bytes", static_cast<double>(mine.need.state));
        at.note("kv_dense_bytes", static_cast<double>(dense.need.state));
        if (kind != "swa") return;
        // the same prompt with the copies of every token, as a mask would have it
        struct all_outputs {
            explicit all_outputs(const running<float>& r, idx rows)
                : workspace(r.net.bytes({.max_tokens = rows, .max_rows = rows, .workers = r.most.workers})
                                .workspace),
                  y(rows, r.x.cols()) {}
            arena workspace;
            tensor<float> y;
        };
        auto& all = at.hold<all_outputs>(mine, n);
        at.against("masked", [&mine, &all, ex, n] {
            mine.state.truncate(0, 0);
            mine.net.extend(batch::one(n), mine.x, all.y.view(), mine.state, all.workspace, ex);
        });
    });
}

// Every token K times through the plain model: what repetition costs without PHD.
void naive(const size& s, idx repeat, idx n) {
    row("phd_naive/prefill/f32,K:" + std::to_string(repeat) + ",T:" + std::to_string(n), [s, repeat,
                                                                                          n](contest& at) {
        auto& w = at.hold<weights<float>>(s);
        const idx rows = n * repeat;
        auto& plain = at.hold<running<float>>(
            w, s, copies{},
            limits{.max_tokens = rows, .max_rows = rows, .workers = at.threads(), .wanted = outputs::last});
        auto& ours = at.hold<running<float>>(
            w, s, copies{repeat, 16, 32},
            limits{.max_tokens = n, .max_rows = n, .workers = at.threads(), .wanted = outputs::last});
        const executor_ref ex = at.executor();
        auto prompt = [ex](running<float>& r, idx tokens) {
            r.state.truncate(0, 0);
            r.extend(0, tokens, ex);
        };
        at.tokens(static_cast<double>(n));
        at.ours([&plain, prompt, rows] { prompt(plain, rows); });
        at.check(
            "forward", [&plain, ex] { return plain.error(100, ex); }, 1e-4);
        at.against("cswa", [&ours, prompt, n] { prompt(ours, n); });
        at.note("kv_bytes", static_cast<double>(plain.need.state));
        at.note("kv_cswa_bytes", static_cast<double>(ours.need.state));
    });
    row("phd_naive/decode/f32,K:" + std::to_string(repeat) + ",S:" + std::to_string(n),
        [s, repeat, n](contest& at) {
            auto& w = at.hold<weights<float>>(s);
            const idx rows = n * repeat;
            const limits most{.max_tokens = rows,
                              .max_rows = rows,
                              .max_rollback = repeat,
                              .workers = at.threads(),
                              .wanted = outputs::last};
            auto& plain = at.hold<running<float>>(w, s, copies{}, most);
            auto& ours = at.hold<running<float>>(w, s, copies{repeat, 16, 32}, most);
            const executor_ref ex = at.executor();
            plain.extend(0, rows - repeat, ex);
            ours.extend(0, n - 1, ex);
            at.tokens(1);
            at.ours([&plain, repeat, rows, ex] {
                for (idx i = rows - repeat; i < rows; ++i) plain.extend(i, i + 1, ex);
                plain.state.truncate(0, rows - repeat);
            });
            at.check(
                "forward",
                [&plain, repeat, rows, ex] {
                    const double error = plain.error(100, ex);
                    plain.state.truncate(0, 0);
                    plain.extend(0, rows - repeat, ex);
                    return error;
                },
                1e-4);
            at.against("cswa", [&ours, n, ex] {
                ours.extend(n - 1, n, ex);
                ours.state.truncate(0, n - 1);
            });
        });
}

// Attention alone over the copies of T tokens: originals and hidden copies as two sources against one
// sequence of K T keys. The latter is plain causal attention, which does not even read a mask: what any
// implementation by a dense mask computes at least.
struct grouped {
    grouped(idx tokens, const copy_rules& r, idx workers)
        : rules(r),
          n(tokens),
          rows(tokens * r.repeat),
          shape{.n_heads = 8, .n_kv_heads = 2, .head_dim = 64},
          q(uniform(rows, 512, 1, 1)),
          k(uniform(rows, 128, 1, 2)),
          v(uniform(rows, 128, 1, 3)),
          originals_k(n, 128),
          originals_v(n, 128),
          hidden_k(rows - n, 128),
          hidden_v(rows - n, 128),
          y(rows, 512),
          y_masked(rows, 512),
          keys(static_cast<std::size_t>(rows)),
          b(batch::one(n)),
          flat(batch::one(rows)),
          workspace(workspace_for(workers, [&](arena& memory, executor_ref ex) {
              attend(flat, shape, in<float>(q), packed_keys<float>{&flat, k, v}, causal_attention{},
                     y_masked.view(), {}, memory, ex);
          })) {
        b.copies = rules.repeat;
        for (idx i = 0; i < rows; ++i) {
            const idx at = i / rules.repeat, copy = i % rules.repeat;
            keys[static_cast<std::size_t>(i)] = {{rules.original_keys(at), rules.hidden_keys(at, copy)},
                                                 copy == 0};
            const idx to = copy == 0 ? at : at * rules.hidden() + copy - 1;
            std::copy_n(std::as_const(k).row(i), 128, (copy == 0 ? originals_k : hidden_k).row(to));
            std::copy_n(std::as_const(v).row(i), 128, (copy == 0 ? originals_v : hidden_v).row(to));
        }
    }
    grouped(const grouped&) = delete;

    void run(executor_ref ex) {
        const copy_sources<float> sources{{&b, originals_k, originals_v},
                                          {&b, hidden_k, hidden_v, rules.hidden()}};
        attend(b, shape, in<float>(q), sources, copy_attention{&b, keys.data()}, y.view(), {}, workspace, ex);
    }
    void run_masked(executor_ref ex) {
        attend(flat, shape, in<float>(q), packed_keys<float>{&flat, k, v}, causal_attention{},
               y_masked.view(), {}, workspace, ex);
    }
    // Some rows by the mask itself.
    double error() const {
        const reference::copies c{.repeat = rules.repeat, .window = rules.window, .chunk = rules.chunk};
        difference apart;
        for (idx row = 5; row < rows; row += 331)
            for (idx h = 0; h < 8; h += 3) {
                std::vector<double> out(64);
                double total = 0;
                for (idx j = 0; j < rows; ++j) {
                    const idx K = rules.repeat;
                    if (!reference::visible(c, j / K, j % K + 1, row / K, row % K + 1)) continue;
                    double score = 0;
                    for (idx e = 0; e < 64; ++e)
                        score += static_cast<double>(q(row, h * 64 + e)) *
                                 static_cast<double>(k(j, h / 4 * 64 + e));
                    const double weight = std::exp(score / 8);
                    total += weight;
                    for (idx e = 0; e < 64; ++e)
                        out[static_cast<std::size_t>(e)] +=
                            weight * static_cast<double>(v(j, h / 4 * 64 + e));
                }
                for (idx e = 0; e < 64; ++e)
                    apart.add(static_cast<double>(y(row, h * 64 + e)),
                              out[static_cast<std::size_t>(e)] / total);
            }
        return apart.relative();
    }

    copy_rules rules;
    idx n, rows;
    attention_shape shape;
    tensor<float> q, k, v, originals_k, originals_v, hidden_k, hidden_v, y, y_masked;
    std::vector<copy_attention::row_keys> keys;
    batch b, flat;
    arena workspace;
};

void attention_of_copies(idx repeat, idx n) {
    row("phd/grouped/f32/K:" + std::to_string(repeat) + ",T:" + std::to_string(n), [repeat, n](contest& at) {
        auto& d = at.hold<grouped>(n, copy_rules{repeat, 16, 32}, at.threads());
        const executor_ref ex = at.executor();
        double pairs = 0;
        for (const auto& row : d.keys)
            pairs += static_cast<double>(row.seen[0].hi - row.seen[0].lo +
                                         (row.original ? 0 : row.seen[1].hi - row.seen[1].lo));
        at.flops(4 * pairs * 8 * 64);
        at.ours([&d, ex] { d.run(ex); });
        at.check(
            "the mask", [&d] { return d.error(); }, 1e-4);
        at.against("masked", [&d, ex] { d.run_masked(ex); });
    });
}

const declare rows([] {
    const size streamed{2048, 5632, 32, 8, 4}, narrow{768, 2048, 12, 4, 4};
    for (idx repeat : {2, 4, 16}) decode<float>("f32", streamed, {repeat, 16, 32});
    decode<bf16>("bf16", {2048, 5632, 32, 8, 7}, {4, 16, 32});
    prefill("cswa", narrow, {16, 16, 32}, 4096);
    prefill("phd", narrow, {16}, 4096);
    prefill("swa", narrow, {4, 16}, 1024);
    attention_of_copies(4, 2048);
    for (idx repeat : {2, 4}) naive(narrow, repeat, 512);
});

} // namespace
