// Mixture-of-Depths in every other block against the same blocks for all tokens (dense): a forward pass, a
// training step, what routing itself costs, and decoding by how often tokens are routed.
#include <sluice/layers/compose.hpp>
#include <sluice/layers/mixture_of_depths.hpp>
#include <sluice/layers/transformer_block.hpp>

#include "../support/contest.hpp"
#include "../support/instance.hpp"

namespace {

using namespace sluice;
using namespace sluice::bench;

template <class W>
using block = transformer_block<float, W>;
template <class W>
using depths = mixture_of_depths<block<W>>;
// A full block and a routed one; two full ones.
template <class W>
using in_turn = chain<block<W>, depths<W>>;
template <class W>
using dense_pair = chain<block<W>, block<W>>;

// 12 d^2 weights a block, as in the paper's table of operations.
transformer_block_config block_config(idx d) {
    return {.attention = {.d_model = d, .n_heads = d / 64, .n_kv_heads = d / 64, .head_dim = 64},
            .feed_forward = {.d_model = d, .d_ff = round_up(8 * d / 3, 32)},
            .norm = {.d_model = d}};
}
mixture_of_depths_config<transformer_block_config> depths_config(idx d, double capacity) {
    return {.block = block_config(d), .router = {.d_model = d, .capacity = capacity}};
}

// y of one routed layer by its parts: the largest logits, the block over their rows, the gate.
template <class W>
double error_of_parts(const depths<W>& net, in<float> x, arena& workspace, executor_ref ex) {
    const idx n = x.rows(), d = x.cols(), m = net.config().router.routed_of(n);
    tensor<float> y(n, d), want(n, d), some(m, d), change(m, d);
    net.forward(batch::one(n), x, y.view(), nullptr, workspace, ex);
    copy<float>(x, want.view(), {});
    std::vector<std::pair<double, idx>> order;
    for (idx i = 0; i < n; ++i) {
        double r = 0;
        for (idx j = 0; j < d; ++j)
            r += static_cast<double>(net.params().router.w(0, j)) * static_cast<double>(x(i, j));
        order.emplace_back(-r, i);
    }
    const auto logits = order;
    std::sort(order.begin(), order.end());
    std::vector<idx> positions;
    for (idx i = 0; i < m; ++i) positions.push_back(order[static_cast<std::size_t>(i)].second);
    std::sort(positions.begin(), positions.end());
    for (idx i = 0; i < m; ++i)
        std::copy_n(x.row(positions[static_cast<std::size_t>(i)]), d, some.view().row(i));
    block<W>(net.config().block, net.params().block)
        .change({.n_tokens = m, .positions = positions}, some, change.view(), nullptr, workspace, ex);
    for (idx i = 0; i < m; ++i) {
        const auto row = static_cast<std::size_t>(positions[static_cast<std::size_t>(i)]);
        for (idx j = 0; j < d; ++j)
            want(positions[static_cast<std::size_t>(i)], j) -=
                static_cast<float>(logits[row].first) * change(i, j);
    }
    return relative_difference(y, want);
}

std::string text_of(idx d, double capacity) {
    std::string c = std::to_string(capacity);
    c.erase(c.find_last_not_of('0') + 1);
    if (c.back() == '.') c.pop_back();
    return "d:" + std::to_string(d) + ",c:" + c;
}

constexpr idx length = 2048;

void forward(idx d, double capacity, when w = when::always) {
    row(
        "mixture_of_depths/forward/f32/" + text_of(d, capacity),
        [d, capacity](contest& c) {
            using W = packed<float>;
            auto& mine = c.hold<instance<in_turn<W>>>(
                typename in_turn<W>::config_type{block_config(d), depths_config(d, capacity)}, length,
                c.threads());
            auto& dense = c.hold<instance<dense_pair<W>>>(
                typename dense_pair<W>::config_type{block_config(d), block_config(d)}, length, c.threads());
            const executor_ref ex = c.executor();
            c.flops(mine.net.flops(length));
            c.tokens(static_cast<double>(length));
            c.ours([&mine, ex] { mine.forward(ex); });
            c.check(
                "its parts",
                [&mine, ex] {
                    const depths<W> routed(get<1>(mine.net.config()), get<1>(mine.weights.view.layers));
                    return error_of_parts<W>(routed, mine.x, mine.workspace, ex);
                },
                1e-4);
            c.against("dense", [&dense, ex] { dense.forward(ex); });
            c.note("ideal_vs_dense", dense.net.flops(length) / mine.net.flops(length));
        },
        w);
}

// Forward, backward, and all gradients.
template <class Layer>
struct trained : instance<Layer> {
    trained(const typename Layer::config_type& config, idx n, idx workers)
        : instance<Layer>(config, n, workers),
          gradient(config),
          tape(this->need.tape),
          dy(uniform(n, this->net.d_in(), 1, 7)),
          dx(n, this->net.d_in()) {}
    void step(executor_ref ex, idx n) {
        const batch b = batch::one(n);
        const auto rows = [n](auto& t) { return t.view().row_block(0, n); };
        this->net.forward(b, rows(this->x), rows(this->y), &tape, this->workspace, ex);
        this->net.backward(b, rows(this->x), rows(dy), rows(dx), tape, gradient.view, this->workspace, ex);
    }
    // The slope of sum(y dy) along dx has to be the square of its length.
    double error(executor_ref ex) {
        constexpr idx n = 64;
        step(ex, n);
        double square = 0;
        for (idx i = 0; i < n; ++i)
            for (idx j = 0; j < dx.cols(); ++j) square += std::pow(static_cast<double>(dx(i, j)), 2);
        const double reach = 1e-3 / std::sqrt(square);
        auto moved = [&](double by) {
            for (idx i = 0; i < n; ++i)
                for (idx j = 0; j < dx.cols(); ++j) this->x(i, j) += static_cast<float>(by) * dx(i, j);
        };
        auto value = [&] {
            this->net.forward(batch::one(n), this->x.view().row_block(0, n), this->y.view().row_block(0, n),
                              nullptr, this->workspace, ex);
            double sum = 0;
            for (idx i = 0; i < n; ++i)
                for (idx j = 0; j < dx.cols(); ++j)
                    sum += static_cast<double>(this->y(i, j)) * static_cast<double>(dy(i, j));
            return sum;
        };
        moved(reach);
        const double ahead = value();
        moved(-2 * reach);
        const double behind = value();
        moved(reach);
        return std::abs((ahead - behind) / (2 * reach) - square) / square;
    }

    filled<typename Layer::grad_type> gradient;
    arena tape;
    tensor<float> dy, dx;
};

void train(idx d, double capacity, when w = when::always) {
    row(
        "mixture_of_depths/train/f32/" + text_of(d, capacity),
        [d, capacity](contest& c) {
            using ours = in_turn<float>;
            using theirs = dense_pair<float>;
            auto& mine = c.hold<trained<ours>>(ours::config_type{block_config(d), depths_config(d, capacity)},
                                               length, c.threads());
            auto& dense = c.hold<trained<theirs>>(theirs::config_type{block_config(d), block_config(d)},
                                                  length, c.threads());
            const executor_ref ex = c.executor();
            c.flops(3 * mine.net.flops(length));
            c.tokens(static_cast<double>(length));
            c.ours([&mine, ex] { mine.step(ex, length); });
            c.check(
                "the slope along dx", [&mine, ex] { return mine.error(ex); }, 1e-2);
            c.against("dense", [&dense, ex] { dense.step(ex, length); });
            c.note("tape_vs_dense",
                   static_cast<double>(dense.need.tape) / static_cast<double>(mine.need.tape));
        },
        w);
}

// A block that changes nothing in no time.
class idle_block {
public:
    struct config_type {
        idx d = 0;
    };
    struct params_type {
        static params_type bind(arena&, const config_type&) { return {}; }
        template <class F, class... Sets>
        static void each(F&, const param_name&, Sets&...) {}
    };
    using scalar = float;
    using arch = simd::native;
    using grad_type = params_type;
    using state_type = no_state;

    idle_block(const config_type& c, const params_type&) : config_(c) {}
    const config_type& config() const { return config_; }
    idx d_in() const { return config_.d; }
    idx d_out() const { return config_.d; }
    void change(const batch&, in<float>, tensor_view<float> y, arena*, arena&, executor_ref ex = {}) const {
        if (!ex.dry()) fill(y, 0.0F);
    }
    void forward(const batch& b, in<float> x, tensor_view<float> y, arena* tape, arena& workspace,
                 executor_ref ex = {}) const {
        change(b, x, y, tape, workspace, ex);
    }
    no_state bind_state(arena&, const limits&) const { return {}; }
    void extend_change(const batch& b, in<float> x, tensor_view<float> y, no_state&, arena& workspace,
                       executor_ref ex = {}) const {
        change(b, x, y, nullptr, workspace, ex);
    }
    void extend(const batch& b, in<float> x, tensor_view<float> y, no_state&, arena& workspace,
                executor_ref ex = {}) const {
        change(b, x, y, nullptr, workspace, ex);
    }

private:
    config_type config_;
};

// Router, choice, gather and scatter alone, against the products that they are in front of: those of a full
// block and of a routed one with its rows at hand. The overhead is 1 / vs_blocks.
void routing(idx d, double capacity) {
    row("mixture_of_depths/routing/f32/" + text_of(d, capacity), [d, capacity](contest& c) {
        using W = packed<float>;
        using alone = mixture_of_depths<idle_block>;
        struct blocks : instance<in_turn<W>> {
            blocks(idx width, double share, idx workers)
                : instance({block_config(width), depths_config(width, share)}, length, workers),
                  some(uniform(get<1>(net.config()).router.routed_of(length), width, 1.7F, 5)),
                  change(some.rows(), width) {
                const idx step = length / some.rows();
                for (idx i = 0; i < some.rows(); ++i) positions.push_back(i * step);
            }
            void run(executor_ref ex) {
                const block<W> first(block_config(x.cols()), get<0>(weights.view.layers));
                const block<W> second(block_config(x.cols()), get<1>(weights.view.layers).block);
                first.forward(batch::one(length), x, y.view(), nullptr, workspace, ex);
                second.change({.n_tokens = some.rows(), .positions = positions}, some, change.view(), nullptr,
                              workspace, ex);
            }
            tensor<float> some, change;
            std::vector<idx> positions;
        };
        auto& all = c.hold<blocks>(d, capacity, c.threads());
        auto& mine = c.hold<instance<alone>>(alone::config_type{{d}, {.d_model = d, .capacity = capacity}},
                                             length, c.threads());
        const executor_ref ex = c.executor();
        c.bytes(4.0 * static_cast<double>(3 * length * d), traffic::copy); // read twice, written once
        c.ours([&mine, ex] { mine.forward(ex); });
        c.check(
            "the input", [&mine] { return relative_difference(mine.y, mine.x); }, 0);
        c.against("blocks", [&all, ex] { all.run(ex); });
    });
}

// Four routed blocks, of which each lets a token in with the given probability, for one token of each of
// n_sequences: a block whose turn nobody is in reads no weights.
void decode(idx n_sequences, double share, when w = when::always) {
    const std::string name = text_of(1024, share);
    row(
        "mixture_of_depths/decode/f32/B:" + std::to_string(n_sequences) + name.substr(name.find(',')),
        [n_sequences, share](contest& c) {
            using W = packed<float>;
            constexpr idx n = 256, d = 1024, layers = 4;
            const limits most{.max_tokens = n,
                              .max_rows = n,
                              .n_sequences = n_sequences,
                              .max_rollback = 1,
                              .workers = c.threads()};
            // Sequences stand at different places, or all would be routed together.
            struct text {
                text(idx sequences, idx width)
                    : x(uniform(sequences * n, width, 1.7F, 3)), y(sequences, width) {
                    for (idx s = 0; s <= sequences; ++s) offsets.push_back(s);
                    for (idx s = 0; s < sequences; ++s) positions.push_back(n - 1 + 5 * s);
                }
                tensor<float> x, y;
                std::vector<idx> offsets, positions;
                std::uint64_t key = 0;
            };
            // A step is short or long as the draw says, so as many are timed together.
            constexpr idx steps = 32;
            auto run = [n_sequences](auto& layer, auto& state, text& t, arena& workspace, executor_ref ex) {
                const batch b{.n_tokens = n_sequences,
                              .offsets = t.offsets,
                              .positions = t.positions,
                              .random_key = ++t.key};
                layer.extend(b, t.x.view().row_block(0, n_sequences), t.y.view(), state, workspace, ex);
                for (idx s = 0; s < n_sequences; ++s) state.truncate(s, n - 1);
            };
            auto fill_cache = [n_sequences](auto& layer, auto& state, text& t, arena& workspace,
                                            executor_ref ex) {
                tensor<float> y(n - 1, d);
                for (idx s = 0; s < n_sequences; ++s) {
                    const idx offsets[] = {0, n - 1}, slots[] = {s};
                    layer.extend({.n_tokens = n - 1,
                                  .offsets = offsets,
                                  .slots = slots,
                                  .first_position = 5 * s,
                                  .random_key = 11},
                                 t.x.view().row_block(s * n, n - 1), y.view(), state, workspace, ex);
                }
            };
            using routed = stack<depths<W>>;
            using plain = stack<block<W>>;
            routed::config_type config{layers, depths_config(d, share)};
            config.layer.router.forward_by = config.layer.router.extend_by = depth_rule::random;
            auto& mine = c.hold<instance<routed>>(config, 1, c.threads());
            auto& dense =
                c.hold<instance<plain>>(plain::config_type{layers, block_config(d)}, 1, c.threads());
            for (idx i = 0; i < layers; ++i) // each draws for itself
                mine.weights.view.layers[static_cast<std::size_t>(i)].router.w(0, 0) =
                    0.01F * static_cast<float>(i);
            auto& t = c.hold<text>(n_sequences, d);
            const sizes need = mine.net.bytes(most), plain_need = dense.net.bytes(most);
            auto& memory = c.hold<arena>(need.state);
            auto& plain_memory = c.hold<arena>(plain_need.state);
            auto& workspace = c.hold<arena>(std::max(need.workspace, plain_need.workspace));
            auto& state = c.hold<routed::state_type>(mine.net.bind_state(memory, most));
            auto& plain_state = c.hold<plain::state_type>(dense.net.bind_state(plain_memory, most));
            const executor_ref ex = c.executor();
            fill_cache(mine.net, state, t, workspace, ex);
            fill_cache(dense.net, plain_state, t, workspace, ex);
            double drawn = 0; // of the steps that are timed
            for (idx i = 0; i < steps; ++i) {
                const batch b{.n_tokens = n_sequences,
                              .offsets = t.offsets,
                              .positions = t.positions,
                              .random_key = static_cast<std::uint64_t>(i + 1)};
                mine.net.extend(b, t.x.view().row_block(0, n_sequences), t.y.view(), state, workspace, ex);
                for (auto& layer : state.layers)
                    for (idx s = 0; s < n_sequences; ++s) {
                        const idx held = layer.routed(s);
                        layer.truncate(s, n - 1);
                        drawn += static_cast<double>(held - layer.routed(s)) /
                                 static_cast<double>(steps * layers * n_sequences);
                    }
            }
            c.tokens(static_cast<double>(steps * n_sequences));
            c.ours([&mine, &state, &t, &workspace, run, ex] {
                t.key = 0;
                for (idx i = 0; i < steps; ++i) run(mine.net, state, t, workspace, ex);
            });
            c.check(
                "each sequence alone",
                [&mine, &state, &t, &workspace, run, ex, n_sequences] {
                    t.key = 3;
                    run(mine.net, state, t, workspace, ex);
                    double worst = 0;
                    tensor<float> one(1, d);
                    for (idx s = 0; s < n_sequences; ++s) {
                        const idx slots[] = {s}, offsets[] = {0, 1};
                        mine.net.extend({.n_tokens = 1,
                                         .offsets = offsets,
                                         .slots = slots,
                                         .first_position = t.positions[static_cast<std::size_t>(s)],
                                         .random_key = 4},
                                        t.x.view().row_block(s, 1), one.view(), state, workspace, ex);
                        state.truncate(s, n - 1);
                        worst = std::max(worst,
                                         relative_difference(one, std::as_const(t.y).view().row_block(s, 1)));
                    }
                    return worst;
                },
                0);
            c.against("dense", [&dense, &plain_state, &t, &workspace, run, ex] {
                for (idx i = 0; i < steps; ++i) run(dense.net, plain_state, t, workspace, ex);
            });
            c.note("routed_share", drawn);
            idx live = 0;
            for (const auto& layer : state.layers)
                for (idx s = 0; s < n_sequences; ++s) live += layer.routed(s);
            c.note("kv_bytes_live", static_cast<double>(live * 2 * d) * sizeof(float));
            c.note("kv_bytes_live_dense",
                   static_cast<double>(layers * n_sequences * (n - 1) * 2 * d) * sizeof(float));
            c.note("kv_bytes_reserved", static_cast<double>(need.state));
            limits few = most;
            few.max_routed = static_cast<idx>(share * n) + 32;
            c.note("kv_bytes_reserved_max_routed", static_cast<double>(mine.net.bytes(few).state));
            c.note("kv_bytes_reserved_dense", static_cast<double>(plain_need.state));
        },
        w);
}

const declare rows([] {
    for (const idx d : {768, 1024}) {
        forward(d, 0.125);
        for (const double c : {1.0, 0.5, 0.25, 0.0625}) forward(d, c, when::full);
    }
    train(768, 0.125);
    for (const double c : {0.5, 0.25}) train(768, c, when::full);
    routing(768, 0.125);
    for (const idx n_sequences : {1, 8})
        for (const double share : {0.125, 0.5, 1.0})
            decode(n_sequences, share, share == 0.5 ? when::full : when::always);
});

} // namespace
