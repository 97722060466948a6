// A mixture of experts, router and all, against loops over experts in other libraries and against a dense
// feed-forward of equal active size; what the router and the plan cost in it.
#include <sluice/core/eigen.hpp>
#include <sluice/layers/moe.hpp>

#include "../support/contest.hpp"
#include "../support/peers.hpp"

#include <numeric>

namespace {

using namespace sluice;
using namespace sluice::bench;

struct size {
    idx d_model, d_ff, n_experts, top_k;
    std::string text() const {
        return std::to_string(d_model) + "x" + std::to_string(d_ff) + "x" + std::to_string(n_experts) + "x" +
               std::to_string(top_k);
    }
};

// How tokens spread over experts: evenly; the e-th expert about as often as 1 / (e + 1); all to the first.
enum class spread { uniform, zipf, one };

moe_config config_of(const size& s) {
    return {.d_model = s.d_model,
            .router = {.n_experts = s.n_experts, .top_k = s.top_k, .weights = {.norm = weight_norm::sum}},
            .expert = {.d_ff = s.d_ff},
            .router_bias = true};
}

// Weights and inputs. `ring` blocks of rows come in turn, so that a few tokens do not find their experts in
// the caches.
struct problem {
    problem(const size& s_, spread how, idx tokens_)
        : s(s_),
          tokens(tokens_),
          ring(tokens >= 512  ? 1
               : tokens >= 16 ? 8
                              : 64),
          router(uniform(s.n_experts, s.d_model, 2 / std::sqrt(static_cast<float>(s.d_model)), 1)),
          bias(1, s.n_experts),
          gate_up(
              uniform(s.n_experts * 2 * s.d_ff, s.d_model, 1 / std::sqrt(static_cast<float>(s.d_model)), 2)),
          down(uniform(s.n_experts * s.d_model, s.d_ff, 1 / std::sqrt(static_cast<float>(s.d_ff)), 3)),
          x(uniform(tokens * ring, s.d_model, 1.7F, 4)) {
        for (idx e = 0; e < s.n_experts; ++e)
            bias(0, e) = how == spread::uniform ? 0.0F
                         : how == spread::zipf  ? -std::log(static_cast<float>(e + 1))
                                                : (e < s.top_k ? 100.0F : 0.0F);
    }
    problem(const problem&) = delete;

    tensor_view<const float> block(idx call) const {
        return x.view().row_block(call % ring * tokens, tokens);
    }
    // Gate, up and down of the experts that a token goes to.
    double flops() const { return 6.0 * static_cast<double>(tokens * s.top_k * s.d_model * s.d_ff); }
    // Of the experts that a block goes to, on average.
    double bytes(double of_element) const {
        double experts = 0;
        for (idx i = 0; i < ring; ++i) {
            std::vector<bool> hit(static_cast<std::size_t>(s.n_experts));
            const auto rows = block(i);
            for (idx t = 0; t < tokens; ++t)
                for (const idx e : choice(rows.row(t))) hit[static_cast<std::size_t>(e)] = true;
            experts +=
                static_cast<double>(std::count(hit.begin(), hit.end(), true)) / static_cast<double>(ring);
        }
        return experts * 3 * static_cast<double>(s.d_model * s.d_ff) * of_element;
    }
    // How many times the experts of a block go into all.
    idx windows() const {
        return std::llround(static_cast<double>(3 * s.n_experts * s.d_model * s.d_ff) / bytes(1));
    }
    std::vector<idx> choice(const float* row) const {
        std::vector<double> z(static_cast<std::size_t>(s.n_experts));
        for (idx e = 0; e < s.n_experts; ++e)
            z[static_cast<std::size_t>(e)] = static_cast<double>(bias(0, e)) +
                                             std::inner_product(row, row + s.d_model, router.row(e), 0.0);
        std::vector<idx> order(z.size());
        std::iota(order.begin(), order.end(), idx{0});
        std::partial_sort(order.begin(), order.begin() + s.top_k, order.end(), [&](idx a, idx b) {
            return z[static_cast<std::size_t>(a)] > z[static_cast<std::size_t>(b)];
        });
        order.resize(static_cast<std::size_t>(s.top_k));
        return order;
    }

    size s;
    idx tokens, ring;
    tensor<float> router, bias, gate_up, down, x;
};

// Ours, with packed weights of W.
template <class W>
struct mixture {
    using params = moe_params<packed<W>>;
    using layer = moe<float, packed<W>>;

    mixture(const problem& p_, idx workers)
        : p(p_),
          config(config_of(p.s)),
          memory(params_bytes<params>(config)),
          weights(packed_weights()),
          net(config, weights),
          workspace(net.bytes({.max_rows = p.tokens, .workers = workers}).workspace),
          y(p.tokens, p.s.d_model) {}
    mixture(const mixture&) = delete;

    void run(executor_ref ex) {
        net.forward(batch::one(p.tokens), p.block(calls++), y.view(), nullptr, workspace, ex);
    }

    params packed_weights() {
        const auto& [d, f, n, k] = p.s;
        const params out = params::bind(memory, config);
        copy<float>(p.router, out.router, {});
        copy<float>(p.bias, out.router_bias, {});
        for (idx e = 0; e < n; ++e) {
            const auto& to = out.experts[static_cast<std::size_t>(e)];
            pack_matrix(p.gate_up.view().row_block(e * 2 * f, f), to.w_gate);
            pack_matrix(p.gate_up.view().row_block(e * 2 * f + f, f), to.w_up);
            pack_matrix(p.down.view().row_block(e * d, d), to.w_down);
        }
        return out;
    }

    const problem& p;
    moe_config config;
    arena memory;
    params weights;
    layer net;
    arena workspace;
    tensor<float> y;
    idx calls = 0;
};

// The same by one product after another of OpenBLAS, an expert to a thread, as its users would write it.
struct blas_loop {
    blas_loop(const problem& p_) : p(p_), logits(p.tokens, p.s.n_experts), y(p.tokens, p.s.d_model) {
        const idx rows = p.tokens * p.s.top_k;
        gathered = tensor<float>(rows, p.s.d_model);
        inner = tensor<float>(rows, 2 * p.s.d_ff);
        out = tensor<float>(rows, p.s.d_model);
        of_expert.resize(static_cast<std::size_t>(p.s.n_experts));
        rows_of.resize(static_cast<std::size_t>(rows));
        weights.resize(static_cast<std::size_t>(rows));
    }
    blas_loop(const blas_loop&) = delete;

    void run(executor_ref ex) {
        const auto& [d, f, n, k] = p.s;
        const auto x = p.block(calls++);
        openblas_gemm(false, true, x.rows(), n, d, 1, x.data(), x.row_stride(), p.router.data(), d, 0,
                      logits.data(), n);
        route();
        std::vector<idx> first(static_cast<std::size_t>(n) + 1);
        for (std::size_t e = 0; e < of_expert.size(); ++e)
            first[e + 1] = first[e] + static_cast<idx>(of_expert[e].size());
        ex(n, [&](idx begin, idx end, idx) {
            for (idx e = begin; e < end; ++e) expert(e, first[static_cast<std::size_t>(e)], x);
        });
        ex(x.rows(), [&](idx begin, idx end, idx) {
            for (idx t = begin; t < end; ++t) {
                auto row = y.view().row_block(t, 1).eigen();
                row.setZero();
                for (idx j = 0; j < k; ++j) {
                    const auto slot = static_cast<std::size_t>(t * k + j);
                    row += weights[slot] * std::as_const(out).view().row_block(rows_of[slot], 1).eigen();
                }
            }
        });
    }
    void route() {
        const idx n = p.s.n_experts, k = p.s.top_k;
        for (auto& slots : of_expert) slots.clear();
        std::vector<std::pair<float, idx>> order(static_cast<std::size_t>(n));
        for (idx t = 0; t < logits.rows(); ++t) {
            for (idx e = 0; e < n; ++e)
                order[static_cast<std::size_t>(e)] = {-logits(t, e) - p.bias(0, e), e};
            std::partial_sort(order.begin(), order.begin() + k, order.end());
            float sum = 0;
            for (idx j = 0; j < k; ++j) {
                const auto& [negative, e] = order[static_cast<std::size_t>(j)];
                const auto slot = static_cast<std::size_t>(t * k + j);
                sum += weights[slot] = std::exp(order[0].first - negative);
                of_expert[static_cast<std::size_t>(e)].push_back(static_cast<idx>(slot));
            }
            for (idx j = 0; j < k; ++j) weights[static_cast<std::size_t>(t * k + j)] /= sum;
        }
    }
    void expert(idx e, idx first, tensor_view<const float> x) {
        const auto& [d, f, n, k] = p.s;
        const auto& slots = of_expert[static_cast<std::size_t>(e)];
        const idx m = static_cast<idx>(slots.size());
        if (m == 0) return;
        for (idx i = 0; i < m; ++i) {
            const idx slot = slots[static_cast<std::size_t>(i)];
            rows_of[static_cast<std::size_t>(slot)] = first + i;
            std::copy_n(x.row(slot / k), d, gathered.row(first + i));
        }
        openblas_gemm(false, true, m, 2 * f, d, 1, gathered.row(first), d, p.gate_up.row(e * 2 * f), d, 0,
                      inner.row(first), 2 * f);
        auto gate = inner.view().row_block(first, m).col_block(0, f).eigen().array();
        const auto up = inner.view().row_block(first, m).col_block(f, f).eigen().array();
        gate = gate / (1 + (-gate).exp()) * up;
        openblas_gemm(false, true, m, d, f, 1, inner.row(first), 2 * f, p.down.row(e * d), f, 0,
                      out.row(first), d);
    }

    const problem& p;
    tensor<float> logits, gathered, inner, out, y;
    std::vector<std::vector<idx>> of_expert;
    std::vector<idx> rows_of;
    std::vector<float> weights;
    idx calls = 0;
};

// A feed-forward through which every token goes, as wide as the experts of a token together: what a
// mixture's bookkeeping and small products cost.
template <class W>
struct dense {
    dense(const problem& p_, idx workers)
        : p(p_),
          config{.d_model = p.s.d_model, .d_ff = p.s.d_ff * p.s.top_k},
          memory(params_bytes<feed_forward_params<packed<W>>>(config)),
          weights(feed_forward_params<packed<W>>::bind(memory, config)),
          net(config, weights),
          workspace(net.bytes({.max_rows = p.tokens, .workers = workers}).workspace),
          y(p.tokens, p.s.d_model) {
        const idx f = config.d_ff, d = config.d_model;
        pack_matrix(p.gate_up.view().row_block(0, f), weights.w_gate);
        pack_matrix(p.gate_up.view().row_block(f, f), weights.w_up);
        pack_matrix(tensor_view<const float>(p.down.data(), d, f), weights.w_down);
    }
    dense(const dense&) = delete;
    void run(executor_ref ex) {
        net.forward(batch::one(p.tokens), p.block(calls++), y.view(), nullptr, workspace, ex);
    }

    const problem& p;
    feed_forward_config config;
    arena memory;
    feed_forward_params<packed<W>> weights;
    feed_forward<float, packed<W>> net;
    arena workspace;
    tensor<float> y;
    idx calls = 0;
};

// What the weights are kept in, ours and a peer's.
template <class W>
constexpr double bytes_of_weight = sizeof(W);
template <quantised W> // codes, and a half scale for 32 of them
inline constexpr double bytes_of_weight<W> = panel_format<W>::bits / 8.0 + 1.0 / 16;
template <class W>
constexpr expert_storage peer_storage = std::is_same_v<W, float>        ? expert_storage::f32
                                        : std::is_same_v<W, bf16>       ? expert_storage::bf16
                                        : std::is_same_v<W, int8_block> ? expert_storage::q8_0
                                                                        : expert_storage::q4_0;

template <class W>
void layer(const char* storage, const size& s, idx tokens, spread how = spread::uniform) {
    const std::string kind = how == spread::uniform ? "" : how == spread::zipf ? ",zipf" : ",one_expert";
    row("moe/layer/" + std::string(storage) + "/" + s.text() + ",tokens:" + std::to_string(tokens) + kind,
        [s, tokens, how](contest& c) {
            constexpr bool narrow = !std::is_same_v<W, float>, whole = multiplies_bytes<W>;
            auto& p = c.hold<problem>(s, how, tokens);
            auto& mine = c.hold<mixture<W>>(p, c.threads());
            const executor_ref ex = c.executor();
            if (tokens >= 64)
                c.flops(p.flops(), whole ? unit::int8_dot : unit::f32_fma);
            else
                c.bytes(p.bytes(bytes_of_weight<W>), traffic::read, p.windows());
            c.tokens(static_cast<double>(tokens));
            c.ours([&mine, ex] { mine.run(ex); }, mine.y);
            // of whole numbers, against products of the weights before they were rounded
            const double tolerance = std::is_same_v<W, int4_block> ? 0.4
                                     : whole                       ? 0.05
                                     : narrow                      ? 2e-2
                                                                   : 1e-4;
            if (has_openblas()) {
                auto& loop = c.hold<blas_loop>(p);
                openblas_one_thread();
                c.against(
                    "openblas", [&loop, ex] { openblas_one_thread(), loop.run(ex); }, loop.y, tolerance);
            }
            const experts_of_tokens experts{p.router, p.bias, p.gate_up, p.down, s.top_k};
            auto against = [&](const char* name, const mixture_call& theirs) {
                if (!theirs) return;
                auto& y = c.hold<tensor<float>>(tokens, s.d_model);
                auto& calls = c.hold<idx>(0);
                c.against(
                    name, [&p, &y, &calls, theirs] { theirs(p.block(calls++), y.view()); }, y, tolerance);
            };
            against("libtorch", libtorch_mixture(experts, c.threads()));
            against("ggml", ggml_mixture(experts, c.threads(), peer_storage<W>));
            if (narrow) {
                auto& wide = c.hold<mixture<float>>(p, c.threads());
                c.against(
                    "f32", [&wide, ex] { wide.run(ex); }, wide.y, tolerance);
            }
            auto& equal = c.hold<dense<W>>(p, c.threads());
            c.against("dense", [&equal, ex] { equal.run(ex); });
        });
}

// Of the layer's time, what goes into logits, choice and plan.
void overhead(const size& s, idx tokens) {
    row("moe_plan/" + s.text() + ",tokens:" + std::to_string(tokens), [s, tokens](contest& c) {
        auto& p = c.hold<problem>(s, spread::uniform, tokens);
        auto& mine = c.hold<mixture<float>>(p, c.threads());
        struct routed {
            tensor<float> logits, weights;
            tensor<std::int32_t> indices;
            arena workspace;
        };
        const executor_ref ex = c.executor();
        auto& r = c.hold<routed>();
        r.logits = tensor<float>(tokens, s.n_experts);
        r.weights = tensor<float>(tokens, s.top_k);
        r.indices = tensor<std::int32_t>(tokens, s.top_k);
        auto run = [&p, &mine, &r](arena& memory, executor_ref on) {
            const arena::scope scope(memory);
            matmul(p.block(0), mine.weights.router, r.logits.view(), {.bias = mine.weights.router_bias},
                   memory, on);
            route<simd::native, float>(mine.config.router, r.logits, {}, r.indices.view(), r.weights.view(),
                                       memory, on);
            (void)plan_slots(r.indices, {p.s.n_experts}, memory, on);
        };
        r.workspace = workspace_for(c.threads(), run);
        c.tokens(static_cast<double>(tokens));
        c.ours([&mine, ex] { mine.run(ex); }, mine.y);
        c.check(
            "the experts of some tokens",
            [&p, &r, run, ex] {
                run(r.workspace, ex);
                double wrong = 0;
                for (idx t = 0; t < r.indices.rows(); t += 17) {
                    const auto want = p.choice(p.block(0).row(t));
                    for (idx j = 0; j < r.indices.cols(); ++j)
                        wrong += r.indices(t, j) != want[static_cast<std::size_t>(j)];
                }
                return wrong;
            },
            0);
        c.against("routing", [&r, run, ex] { run(r.workspace, ex); });
    });
}

const declare rows([] {
    const size many{1024, 512, 64, 8}, wide{2048, 1024, 64, 8}, few{1024, 3584, 8, 2};
    for (const size& s : {many, wide, few}) layer<float>("f32", s, 512);
    for (const size& s : {many, wide, few})
        for (idx tokens : {1, 16}) layer<float>("f32", s, tokens);
    for (const size& s : {many, wide, few}) layer<bf16>("bf16", s, 16);
    layer<bf16>("bf16", many, 512);
    for (idx tokens : {512, 16, 1}) {
        layer<int8_block>("int8block", wide, tokens);
        layer<int4_block>("int4block", wide, tokens);
    }
    for (spread how : {spread::zipf, spread::one}) layer<float>("f32", many, 512, how);
    for (const size& s : {many, wide, few}) overhead(s, 512);
});

} // namespace
