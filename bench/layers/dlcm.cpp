// Dynamic concepts at the paper's table 3, scaled: a forward pass against its dense baseline by tokens of a
// concept, the cross-attention against keys repeated for each token and against a mask of all concepts, what
// finding and pooling segments costs, and decoding, whose steps are long where a concept ends.
#include <sluice/core/eigen.hpp>
#include <sluice/layers/dlcm.hpp>
#include <sluice/layers/transformer_block.hpp>

#include "../support/contest.hpp"
#include "../support/instance.hpp"
#include "../support/peers.hpp"

namespace {

using namespace sluice;
using namespace sluice::bench;

template <class W>
using block = transformer_block<float, W>;
template <class W>
using model = dlcm<stack<block<W>>, stack<block<W>>, stack<block<W>>, W>;

transformer_block_config block_config(idx d, idx n_kv_heads, idx d_ff) {
    return {.attention = {.d_model = d, .n_heads = d / 64, .n_kv_heads = n_kv_heads, .head_dim = 64},
            .feed_forward = {.d_model = d, .d_ff = d_ff},
            .norm = {.d_model = d}};
}
// Table 3 at width d for 1536, with half of its layers: 5 + 8 + 3. A boundary every `interval` tokens.
model<float>::config_type model_config(idx d, idx interval) {
    const auto token = block_config(d, d / 128, 4 * d);
    return {
        .encoder = {5, token},
        .boundary = {.d_model = d, .rule = boundary_rule::every, .interval = interval},
        .concepts = {.d_model = d, .d_concept = 2 * d},
        .backbone = {8, block_config(2 * d, d / 64, 4 * d)},
        .cross = {.d_model = d, .d_concept = 2 * d, .n_heads = d / 64, .n_kv_heads = d / 128, .head_dim = 64},
        .decoder = {3, token}};
}
// The baseline: as many layers, inner width 4096 at 1536, as many key heads as heads.
stack<block<float>>::config_type dense_config(idx d) { return {16, block_config(d, d / 64, 8 * d / 3)}; }

void forward(idx interval) {
    row("dlcm/forward/f32/R:" + std::to_string(interval), [interval](contest& c) {
        using W = packed<float>;
        constexpr idx n = 1024, d = 384;
        auto& mine = c.hold<instance<model<W>>>(model_config(d, interval), n, c.threads());
        auto& dense = c.hold<instance<stack<block<W>>>>(dense_config(d), n, c.threads());
        const executor_ref ex = c.executor();
        c.flops(mine.net.flops(n));
        c.tokens(static_cast<double>(n));
        c.ours([&mine, ex] { mine.forward(ex); });
        c.check(
            "two calls",
            [&mine, ex] {
                constexpr idx most = 200, cut = 71;
                const limits room{.max_tokens = most, .max_rows = most, .workers = ex.concurrency()};
                arena memory(mine.net.bytes(room).state);
                auto state = mine.net.bind_state(memory, room);
                tensor<float> y(most, d);
                auto part = [&](idx first, idx rows) {
                    mine.net.extend(batch::one(rows, first), mine.x.view().row_block(first, rows),
                                    y.view().row_block(first, rows), state, mine.workspace, ex);
                };
                part(0, cut);
                part(cut, most - cut);
                return relative_difference(y, mine.y.view().row_block(0, most));
            },
            0);
        c.against("dense", [&dense, ex] { dense.forward(ex); });
        c.note("flop_ratio", mine.net.flops(n) / dense.net.flops(n));
        c.note("ideal_vs_dense", dense.net.flops(n) / mine.net.flops(n));
    });
}

// ---- the cross-attention alone, of keys and queries at hand

constexpr attention_shape heads{.n_heads = 8, .n_kv_heads = 8, .head_dim = 64};
constexpr idx width = heads.n_heads * heads.head_dim;

struct looking {
    looking(idx length, idx interval)
        : tokens(batch::one(length)),
          concepts(batch::one(length / interval)),
          copies(batch::one(length)),
          q(uniform(length, width, 1, 1)),
          k(uniform(length / interval, width, 1, 2)),
          v(uniform(length / interval, width, 1, 3)),
          y(length, width),
          y_peer(length, width),
          k_copies(length, width),
          v_copies(length, width),
          mask(length, length / interval) {
        for (idx t = 0; t < length; ++t) {
            seen.push_back(static_cast<std::int32_t>(std::min(t / interval, concepts.n_tokens)));
            const idx own = std::min(t / interval, concepts.n_tokens - 1);
            std::copy_n(k.row(own), width, k_copies.row(t));
            std::copy_n(v.row(own), width, v_copies.row(t));
            for (idx j = 0; j < mask.cols(); ++j)
                mask(t, j) = j < seen.back() ? 0.0F : -std::numeric_limits<float>::infinity();
            prefix.push_back(static_cast<std::int32_t>(seen.back() * interval));
        }
    }
    looking(const looking&) = delete;

    batch tokens, concepts, copies;
    std::vector<std::int32_t> seen, prefix; // concepts, and copies of concepts, that a token sees
    tensor<float> q, k, v, y, y_peer, k_copies, v_copies, mask;
};

call attending(contest& c, looking& d, const batch& keys, const tensor<float>& k, const tensor<float>& v,
               const std::vector<std::int32_t>& seen, tensor<float>& y) {
    auto f = [&](arena& workspace, executor_ref ex) {
        attend(d.tokens, heads, in<float>(d.q), packed_keys<float>{&keys, k, v},
               ragged_prefix{&d.tokens, seen.data()}, y.view(), {}, workspace, ex);
    };
    auto& workspace = c.hold<arena>(workspace_for(c.threads(), f));
    return [&workspace, f, ex = c.executor()] { f(workspace, ex); };
}

// `rows` tokens at a time against all concepts: products by OpenBLAS, the mask added from memory, Eigen's
// exponential. With all tokens at once scores are a matrix of the mask's size, as where each step is an
// operation on tensors.
call with_mask(contest& c, looking& d, idx rows) {
    if (!has_openblas()) return {};
    auto& scores = c.hold<tensor<float>>(c.threads(), rows * d.mask.cols());
    return [&d, &scores, rows, ex = c.executor()] {
        openblas_one_thread();
        const idx length = d.q.rows(), m = d.mask.cols();
        ex(length / rows * heads.n_heads, [&](idx begin, idx end, idx worker) {
            using array = Eigen::Map<Eigen::Array<float, 1, Eigen::Dynamic>>;
            for (idx task = begin; task < end; ++task) {
                const idx first = task / heads.n_heads * rows, at = task % heads.n_heads * heads.head_dim;
                float* const s = scores.row(worker);
                openblas_gemm(false, true, rows, m, heads.head_dim, static_cast<float>(heads.scale()),
                              d.q.row(first) + at, width, d.k.row(0) + at, width, 0, s, m);
                for (idx i = 0; i < rows; ++i) {
                    array all(s + i * m, m), hidden(d.mask.row(first + i), m);
                    all += hidden;
                    const float most = all.maxCoeff();
                    if (std::isinf(most)) {
                        all.setZero();
                        continue;
                    }
                    all = (all - most).exp();
                    all *= 1 / all.sum();
                }
                openblas_gemm(false, false, rows, heads.head_dim, m, 1, s, m, d.v.row(0) + at, width, 0,
                              d.y_peer.row(first) + at, width);
            }
        });
    };
}

void cross(idx length, when w = when::always) {
    row(
        "dlcm/cross/f32/ragged,L:" + std::to_string(length),
        [length](contest& c) {
            auto& d = c.hold<looking>(length, 6);
            double pairs = 0;
            for (const auto n : d.seen) pairs += static_cast<double>(n);
            c.flops(4 * pairs * static_cast<double>(width));
            c.tokens(static_cast<double>(length));
            c.ours(attending(c, d, d.concepts, d.k, d.v, d.seen, d.y), d.y);
            c.against("replicated", attending(c, d, d.copies, d.k_copies, d.v_copies, d.prefix, d.y_peer),
                      d.y_peer);
            c.against("masked", with_mask(c, d, length), d.y_peer);
            c.against("masked_libtorch",
                      libtorch_attention(
                          {d.q, d.k, d.v, d.y_peer.view(), heads.n_heads, heads.n_kv_heads, false, d.mask},
                          c.threads(), torch_gqa::option),
                      d.y_peer);
            c.against("masked_blocks", with_mask(c, d, 128), d.y_peer);
        },
        w);
}

// ---- boundaries and pooling, in front of a layer of table 3

void boundary() {
    row("dlcm/boundary/f32/d_scan:d/8", [](contest& c) {
        using W = packed<float>;
        constexpr idx n = 512, d = 1536;
        constexpr auto form = concept_forming::mean;
        struct finding {
            explicit finding(idx workers)
                : layer(block_config(d, 12, 4 * d), n, workers),
                  config{.d_model = d, .d_scan = d / 8},
                  weights(config),
                  detector(config, weights.view) {
                run_counting(workers);
            }
            void run_counting(idx workers) {
                workspace = workspace_for(workers, [this](arena& a, executor_ref ex) { find(a, ex); });
                mean = tensor<float>(n, d);
            }
            void find(arena& a, executor_ref ex) {
                const arena::scope scope(a);
                const batch b = batch::one(n);
                const auto found = detector.take(a, n);
                auto cut = segments<float>::take(a, b);
                detector.detect(b, layer.x, boundary_choice::threshold, nullptr, found, a, ex);
                cut.number(n, [&](idx s) {
                    return ex.dry() ? n : segments<float>::made(b, s, found.starts, form, nullptr);
                });
                cut.take_made(a);
                if (ex.dry()) return;
                cut.fill(b, found.starts, found.p.data(), form, nullptr);
                made = cut.to.n_tokens;
                segment_rows<simd::native, float>(layer.x, cut, form, nullptr, mean.view().row_block(0, made),
                                                  ex);
            }
            instance<block<W>> layer;
            boundary_config config;
            filled<boundary_params<W>> weights;
            boundary_detector<float, W> detector;
            arena workspace;
            tensor<float> mean;
            idx made = 0;
        };
        auto& all = c.hold<finding>(c.threads());
        const executor_ref ex = c.executor();
        c.flops(all.layer.net.flops(n) + all.detector.flops(n));
        c.ours([&all, ex] {
            all.layer.forward(ex);
            all.find(all.workspace, ex);
        });
        c.check(
            "half of random rows opening a segment",
            [&all, ex] {
                all.find(all.workspace, ex);
                return all.made > n / 4 && all.made < 3 * n / 4 ? 0.0 : 1.0;
            },
            0);
        c.overhead_over([&all, ex] { all.layer.forward(ex); });
    });
}

// ---- decoding: R tokens, of which one ends a concept

void decode(idx interval) {
    row("dlcm/decode/f32/R:" + std::to_string(interval), [interval](contest& c) {
        using W = packed<float>;
        constexpr idx d = 512, start = 512, steps = 32, end = start + steps;
        auto& mine = c.hold<instance<model<W>>>(model_config(d, interval), 1, c.threads());
        auto& dense = c.hold<instance<stack<block<W>>>>(dense_config(d), 1, c.threads());
        const limits most{.max_tokens = end,
                          .max_rows = 1,
                          .max_rollback = steps,
                          .workers = c.threads(),
                          .max_concepts = end / interval};
        const sizes need = mine.net.bytes(most), plain = dense.net.bytes(most);
        auto& memory = c.hold<arena>(need.state);
        auto& plain_memory = c.hold<arena>(plain.state);
        auto& workspace = c.hold<arena>(std::max(need.workspace, plain.workspace));
        auto& state = c.hold<model<W>::state_type>(mine.net.bind_state(memory, most));
        auto& plain_state = c.hold<stack<block<W>>::state_type>(dense.net.bind_state(plain_memory, most));
        auto& x = c.hold<tensor<float>>(uniform(end, d, 1.7F, 3));
        auto& y = c.hold<tensor<float>>(end, d);
        const executor_ref ex = c.executor();
        auto step = [&x, &y, &workspace, ex](auto& net, auto& of, idx i) {
            net.extend(batch::one(1, i), x.view().row_block(i, 1), y.view().row_block(i, 1), of, workspace,
                       ex);
        };
        auto run = [step](auto& net, auto& of) {
            for (idx i = start; i < end; ++i) step(net, of, i);
            of.truncate(0, start);
        };
        std::vector<double> took;
        for (idx i = 0; i < end; ++i) {
            step(dense.net, plain_state, i);
            took.push_back(seconds_of([&] { step(mine.net, state, i); }, 1));
        }
        const double live = static_cast<double>(state.concepts(0));
        state.truncate(0, start);
        plain_state.truncate(0, start);
        took.erase(took.begin(), took.begin() + start / 2);
        c.tokens(static_cast<double>(steps));
        c.ours([&mine, &state, run] { run(mine.net, state); });
        c.check(
            "all at once",
            [&mine, &x, &y, &state, run, ex] {
                run(mine.net, state);
                arena room(mine.net.bytes({.max_rows = end, .workers = ex.concurrency()}).workspace);
                tensor<float> want(end, d);
                mine.net.forward(batch::one(end), x, want.view(), nullptr, room, ex);
                return relative_difference(y, want);
            },
            0);
        c.against("dense", [&dense, &plain_state, run] { run(dense.net, plain_state); });
        c.note("p50_us", 1e6 * quantile(took, 0.5));
        c.note("p95_us", 1e6 * quantile(took, 0.95));
        const auto& k = mine.net.config();
        auto keys = [](const transformer_block_config& b, double layers) {
            return 2 * layers * static_cast<double>(b.attention.n_kv_heads * b.attention.head_dim);
        };
        const double of_tokens = keys(k.encoder.layer, 8),
                     of_concepts = keys(k.backbone.layer, 8) +
                                   2 * static_cast<double>(k.cross.n_kv_heads * k.cross.head_dim);
        c.note("kv_live_bytes", 4 * (of_tokens * end + of_concepts * live));
        c.note("kv_dense_bytes", 4 * keys(dense.net.config().layer, 16) * end);
        c.note("state_reserved_bytes", static_cast<double>(need.state));
        c.note("state_dense_bytes", static_cast<double>(plain.state));
    });
}

const declare dlcm_rows([] {
    for (const idx interval : {2, 4, 8}) forward(interval);
    cross(2048);
    cross(8192);
    cross(16384, when::full);
    boundary();
    for (const idx interval : {2, 4, 8}) decode(interval);
});

} // namespace
