// Whole models of dense blocks: a training step, and decoding one token. Every later technique is compared
// with them.
#include <sluice/layers/language_model.hpp>
#include <sluice/layers/transformer_block.hpp>
#include <sluice/train/adamw.hpp>
#include <sluice/train/counts.hpp>

#include "../support/contest.hpp"
#include "../support/peers.hpp"

namespace {

using namespace sluice;
using namespace sluice::bench;

using model = language_model<stack<transformer_block<float>>>;

struct size {
    idx d_model, layers;
    std::string text() const { return "d:" + std::to_string(d_model) + ",layers:" + std::to_string(layers); }
};

model::config_type config_of(const size& s) {
    const idx d = s.d_model, head_dim = 64, n_heads = d / head_dim;
    return {.embedding = {.vocabulary = 256, .d_model = d, .head = head_kind::untied},
            .body = {.n_layers = s.layers,
                     .layer = {.attention = {.d_model = d,
                                             .n_heads = n_heads,
                                             .n_kv_heads = n_heads / 4,
                                             .head_dim = head_dim},
                               .feed_forward = {.d_model = d, .d_ff = round_up(8 * d / 3, 32)},
                               .norm = {.d_model = d}}},
            .norm = {.d_model = d}};
}

// For libtorch. The rest of the model is written out there: the same layers in the same order, no biases.
dense_model described(const model::config_type& c, const model::params_type& weights) {
    const auto& attention = c.body.layer.attention;
    dense_model m{{},
                  c.body.n_layers,
                  attention.n_heads,
                  attention.n_kv_heads,
                  attention.head_dim,
                  attention.rotary.base,
                  c.norm.eps};
    each_param(
        [&](const param_name& name, role r, const tensor_view<float>& w) {
            m.weights.push_back({name.str(), w, decay_matrices{}(name, r).decay});
        },
        weights);
    return m;
}

// As after some training: no matrix is zero.
void fill_weights(const model::params_type& weights) {
    std::uint64_t seed = 1;
    each_param(
        [&](const param_name&, role r, const tensor_view<float>& w) {
            if (r == role::vector)
                fill(w, 1.0F);
            else
                fill_uniform(w, 1 / std::sqrt(static_cast<float>(w.cols())), seed++);
        },
        weights);
}

std::vector<token_id> some_text(idx n) {
    std::vector<token_id> ids(static_cast<std::size_t>(n));
    std::uint32_t state = 7;
    for (token_id& id : ids) {
        state = state * 1664525U + 1013904223U;
        id = static_cast<token_id>(state >> 24);
    }
    return ids;
}

struct trained {
    using params = owned_params<model::params_type>;

    trained(const size& s, idx n_tokens, idx workers)
        : config(config_of(s)),
          weights(config),
          gradient(config),
          means(config),
          squares(config),
          net(config, weights.view),
          need(net.bytes({.max_rows = n_tokens, .workers = workers})),
          tape(need.tape),
          workspace(std::max(need.workspace, need_of_optimiser(workers))),
          ids(some_text(n_tokens + 1)) {
        fill_weights(weights.view);
    }
    trained(const trained&) = delete;

    std::span<const token_id> inputs() const { return std::span(ids).first(ids.size() - 1); }
    std::span<const token_id> targets() const { return std::span(ids).last(ids.size() - 1); }
    double gradient_of(idx n, executor_ref ex) {
        const auto count = static_cast<std::size_t>(n);
        zero(gradient.view);
        return net.loss_and_gradient(batch::one(inputs().first(count)), targets().first(count), gradient.view,
                                     tape, workspace, ex);
    }
    double loss_of(idx n, executor_ref ex) {
        const auto count = static_cast<std::size_t>(n);
        return net.loss(batch::one(inputs().first(count)), targets().first(count), workspace, ex);
    }
    void step(executor_ref ex) {
        gradient_of(static_cast<idx>(inputs().size()), ex);
        update(tiny, ++steps, ex);
    }
    void update(const adamw_config& c, idx number, executor_ref ex) {
        adamw(weights.view, gradient.view, means.view, squares.view, c, number, workspace, ex);
    }
    void reset() {
        fill_weights(weights.view);
        zero(means.view);
        zero(squares.view);
        steps = 0;
    }

    // A rate so small that the weights stay what they are, however often the step runs.
    static constexpr adamw_config tiny{.rate = 1e-9, .clip = 1};

    model::config_type config;
    params weights, gradient, means, squares;
    model net;
    sizes need;
    arena tape, workspace;
    std::vector<token_id> ids;
    idx steps = 0;

private:
    std::size_t need_of_optimiser(idx workers) {
        return workspace_for(workers, [&](arena& memory,
                                          executor_ref ex) { (void)global_norm(gradient.view, memory, ex); })
            .capacity();
    }
};

void move(const model::params_type& weights, const model::params_type& direction, double by) {
    each_param(
        [&](const param_name&, role, const auto& w, const auto& g) {
            for (idx i = 0; i < w.rows(); ++i)
                for (idx j = 0; j < w.cols(); ++j) w(i, j) += static_cast<float>(by) * g(i, j);
        },
        weights, direction);
}

// The slope of the loss along its gradient has to be the gradient's length: a central difference against it.
double gradient_error(trained& t, executor_ref ex) {
    constexpr idx n = 64;
    t.gradient_of(n, ex);
    const double length = global_norm(t.gradient.view, t.workspace, ex);
    const double reach = 5e-3 / length; // moves the weights by 0.005 in all
    move(t.weights.view, t.gradient.view, reach);
    const double ahead = t.loss_of(n, ex);
    move(t.weights.view, t.gradient.view, -2 * reach);
    const double behind = t.loss_of(n, ex);
    move(t.weights.view, t.gradient.view, reach);
    const double slope = (ahead - behind) / (2 * reach * length);
    return std::abs(slope - length) / length;
}

// The same step by libtorch, from the same weights. Alike: the model, f32, AdamW's numbers, and that the
// gradient is computed, clipped and applied in every step. Unlike: it keeps its table of angles, computes the
// logits of all rows at once, and does not stop at a gradient that is not finite.
struct trained_by_libtorch {
    trained_by_libtorch(const trained& t, idx threads)
        : net(libtorch_training(described(t.config, t.weights.view), threads)) {}

    double gradient_of(idx n, const trained& t) {
        const auto count = static_cast<std::size_t>(n);
        return net->loss_and_gradient(t.inputs().first(count), t.targets().first(count));
    }
    void step(const trained& t) {
        gradient_of(static_cast<idx>(t.inputs().size()), t);
        update(trained::tiny);
    }
    void update(const adamw_config& c) { net->update({c.rate, c.beta1, c.beta2, c.eps, c.decay, c.clip}); }

    std::shared_ptr<torch_training> net;
};

// Of the first tokens, so that the comparison takes less time than the clock; more than one block of rows.
constexpr idx compared_tokens = 320;

// The largest of the differences of the loss and of every tensor of the gradient.
double difference_of_gradients(trained& ours, trained_by_libtorch& theirs, executor_ref ex) {
    ours.reset(); // another check moved them there and back, which left their last bits changed
    difference losses;
    losses.add(ours.gradient_of(compared_tokens, ex), theirs.gradient_of(compared_tokens, ours));
    double worst = losses.relative();
    each_param(
        [&](const param_name& name, role, const tensor_view<float>& g) {
            tensor<float> expected(g.rows(), g.cols());
            theirs.net->read_gradient(name.str(), expected.view());
            worst = std::max(worst, relative_difference(g, expected));
        },
        ours.gradient.view);
    return worst;
}

// The same of what one update does to the weights. With an eps far above the gradient the change is in
// proportion to it; with the usual one it is little but the sign, and rounding turns the signs of zeros.
double difference_of_updates(trained& ours, trained_by_libtorch& theirs, executor_ref ex) {
    constexpr adamw_config large{.rate = 1, .eps = 1, .decay = 0.01, .clip = 0.5};
    trained::params before(ours.config);
    fill_weights(before.view);
    ours.reset();
    theirs.net->reset();
    ours.gradient_of(compared_tokens, ex);
    theirs.gradient_of(compared_tokens, ours);
    ours.update(large, 1, ex);
    theirs.update(large);
    double worst = 0;
    each_param(
        [&](const param_name& name, role, const tensor_view<float>& w, const tensor_view<float>& old) {
            tensor<float> expected(w.rows(), w.cols());
            theirs.net->read_weight(name.str(), expected.view());
            difference changes;
            for (idx i = 0; i < w.rows(); ++i)
                for (idx j = 0; j < w.cols(); ++j)
                    changes.add(static_cast<double>(w(i, j) - old(i, j)),
                                static_cast<double>(expected(i, j) - old(i, j)));
            worst = std::max(worst, changes.relative());
        },
        ours.weights.view, before.view);
    ours.reset();
    theirs.net->reset();
    return worst;
}

void train_step(const size& s, idx n_tokens, when w = when::always) {
    row(
        "train_step/dense/f32/" + s.text() + ",T:" + std::to_string(n_tokens),
        [s, n_tokens](contest& c) {
            auto& t = c.hold<trained>(s, n_tokens, c.threads());
            c.flops(training_flops(t.net, 1, n_tokens));
            c.tokens(static_cast<double>(n_tokens));
            c.ours([&t, ex = c.executor()] { t.step(ex); });
            c.check(
                "the slope of the loss", [&t, ex = c.executor()] { return gradient_error(t, ex); }, 1e-2);
            auto& peer = c.hold<trained_by_libtorch>(t, c.threads());
            if (peer.net == nullptr) return;
            c.check(
                "libtorch's loss and gradient",
                [&t, &peer, ex = c.executor()] { return difference_of_gradients(t, peer, ex); }, 2e-5);
            c.check(
                "libtorch's update",
                [&t, &peer, ex = c.executor()] { return difference_of_updates(t, peer, ex); }, 1e-3);
            c.against("libtorch", [&t, &peer] { peer.step(t); });
        },
        w);
}

struct decoded {
    decoded(const size& s, idx n_tokens, idx workers)
        : config(config_of(s)),
          weights(config),
          net(config, weights.view),
          most{.max_tokens = n_tokens, .max_rows = n_tokens, .max_rollback = 1, .workers = workers},
          need(net.bytes(most)),
          memory(need.state),
          workspace(need.workspace),
          ids(some_text(n_tokens)),
          logits(1, 256),
          state(net.bind_state(memory, most)) {
        fill_weights(weights.view);
    }
    decoded(const decoded&) = delete;

    idx before() const { return static_cast<idx>(ids.size()) - 1; }
    void prefill(executor_ref ex) {
        net.prefill(batch::one(std::span<const token_id>(ids).first(ids.size() - 1)), logits.view(), state,
                    workspace, ex);
    }
    // The last token, which is forgotten again.
    void step(executor_ref ex) {
        net.decode(batch::one(std::span<const token_id>(ids).last(1), before()), logits.view(), state,
                   workspace, ex);
        state.truncate(0, before());
    }
    double error(executor_ref ex) {
        tensor<float> all(before() + 1, 256);
        net.forward(batch::one(ids), all.view(), workspace, ex);
        return relative_difference(logits, std::as_const(all).view().row_block(before(), 1));
    }

    model::config_type config;
    owned_params<model::params_type> weights;
    model net;
    limits most;
    sizes need;
    arena memory, workspace;
    std::vector<token_id> ids;
    tensor<float> logits;
    model::state_type state;
};

// Token number S. Bound by reading the weights, and the keys and values of every layer.
void decode(const size& s, idx n_tokens, when w = when::always) {
    row(
        "decode/dense/f32/" + s.text() + ",S:" + std::to_string(n_tokens),
        [s, n_tokens](contest& c) {
            auto& t = c.hold<decoded>(s, n_tokens, c.threads());
            t.prefill(c.executor());
            const auto counts = counts_by_role(t.weights.view);
            const auto& attention = t.config.body.layer.attention;
            const idx cache = 2 * s.layers * n_tokens * attention.n_kv_heads * attention.head_dim;
            // Of the embedding only a row is read.
            c.bytes(4.0 * static_cast<double>(counts.matrices + cache), traffic::read);
            c.flops(t.net.flops(1, n_tokens - 1));
            c.tokens(1);
            c.ours([&t, ex = c.executor()] { t.step(ex); }, t.logits);
            c.check(
                "forward over all tokens", [&t, ex = c.executor()] { return t.error(ex); }, 1e-4);
        },
        w);
}

const declare rows([] {
    train_step({512, 4}, 1024);
    decode({1024, 4}, 512);
    train_step({1024, 8}, 1024, when::full);
    decode({2048, 8}, 1024, when::full);
});

} // namespace
