// A language model around any body of blocks: embedding, body, final norm, output head. The loss takes the
// head and the cross-entropy in blocks of rows; everything else is the body's.
#pragma once

#include "compose.hpp"
#include "embedding.hpp"
#include "norm.hpp"

namespace sluice {

template <class BodyConfig>
struct language_model_config {
    embedding_config embedding{};
    BodyConfig body{};
    norm_config norm{}; // before the head
};

template <class Embedding, class Body, class Norm>
struct language_model_params {
    Embedding embedding;
    Body body;
    Norm norm;

    static language_model_params bind(arena& a, const auto& c) {
        language_model_params p;
        p.embedding = Embedding::bind(a, c.embedding);
        p.body = Body::bind(a, c.body);
        p.norm = Norm::bind(a, c.norm);
        return p;
    }
    template <class F, class First, class... Sets>
    static void each(F& f, const param_name& at, First& first, Sets&... sets) {
        Embedding::each(f, param_name(at, "embedding"), first.embedding, sets.embedding...);
        Body::each(f, param_name(at, "layers"), first.body, sets.body...);
        Norm::each(f, param_name(at, "norm"), first.norm, sets.norm...);
    }
};

// Each part by its own rule.
template <class E, class B, class N>
void initialise(const language_model_params<E, B, N>& p, const auto& c, const random_source& numbers) {
    initialise(p.embedding, c.embedding, numbers.split(0));
    initialise(p.body, c.body, numbers.split(1));
    initialise(p.norm, c.norm, numbers.split(2));
}

inline namespace SLUICE_ISA {

// Body: a layer from (n_tokens, d_model) to the same shape. W is the storage of embedding and norm.
template <class Body, class W = typename Body::scalar>
class language_model {
    static_assert(streaming_layer<Body>, "sluice: the body is a streaming_layer; see core/layer.hpp");

public:
    using scalar = typename Body::scalar;
    using arch = typename Body::arch;
    static constexpr bool trainable = is_trainable<Body> && std::is_same_v<std::remove_const_t<W>, scalar>;
    using T = scalar;
    using config_type = language_model_config<typename Body::config_type>;
    using params_type =
        language_model_params<embedding_params<W>, typename Body::params_type, norm_params<W>>;
    using grad_type = language_model_params<embedding_params<T>, typename Body::grad_type, norm_params<T>>;
    using state_type = typename Body::state_type;

    language_model(const config_type& config, const params_type& params)
        : config_(config),
          params_(params),
          embedding_(config.embedding, params.embedding),
          body_(config.body, params.body),
          norm_(config.norm, params.norm) {
        if (body_.d_in() != d_model() || body_.d_out() != d_model() || config.norm.d_model != d_model())
            SLUICE_THROW(config_error("language_model: d_model of the embedding is " +
                                      std::to_string(d_model()) + ", of the body " +
                                      std::to_string(body_.d_in()) + " to " + std::to_string(body_.d_out()) +
                                      ", of the norm " + std::to_string(config.norm.d_model)));
    }

    const config_type& config() const { return config_; }
    const params_type& params() const { return params_; }
    idx d_model() const { return config_.embedding.d_model; }
    idx vocabulary() const { return config_.embedding.vocabulary; }

    // logits (n_tokens, vocabulary) of every row of b.ids, each sequence from its first token.
    void forward(const batch& b, tensor_view<T> logits, arena& workspace, executor_ref ex = {}) const {
        require_shape(logits, b.n_tokens, vocabulary(), "language_model", "logits");
        const arena::scope scope(workspace);
        const auto x = workspace.take<T>(b.n_tokens, d_model()), y = workspace.take<T>(b.n_tokens, d_model());
        embed(b, x, ex);
        body_.forward(b, x, y, nullptr, workspace, ex);
        head(b, y, logits, workspace, ex);
    }

    // Mean cross-entropy in nats of b.ids against `targets` (n_tokens, ignored_target where a row has none).
    double loss(const batch& b, std::span<const token_id> targets, arena& workspace,
                executor_ref ex = {}) const {
        const arena::scope scope(workspace);
        const auto x = workspace.take<T>(b.n_tokens, d_model()), y = workspace.take<T>(b.n_tokens, d_model());
        embed(b, x, ex);
        body_.forward(b, x, y, nullptr, workspace, ex);
        norm_.forward(b, y, y, nullptr, workspace, ex);
        const double weight = 1 / count(targets);
        return weight * embedding_.loss(y, targets, weight, nullptr, {}, workspace, ex);
    }

    // The same, and its gradient added to grad. The tape is empty again afterwards.
    double loss_and_gradient(const batch& b, std::span<const token_id> targets, const grad_type& grad,
                             arena& tape, arena& workspace, executor_ref ex = {}) const {
        const arena::scope scope(workspace);
        const idx n = b.n_tokens;
        if (!ex.dry()) embedding_.check_targets(targets, n); // before the tape holds anything
        rehearse(ex, &tape,
                 [&](executor_ref dry) { loss_and_gradient(b, targets, grad, tape, workspace, dry); });
        const auto x = workspace.take<T>(n, d_model()), y = workspace.take<T>(n, d_model());
        const auto h = workspace.take<T>(n, d_model()), dx = workspace.take<T>(n, d_model());
        embed(b, x, ex);
        body_.forward(b, x, y, &tape, workspace, ex);
        norm_.forward(b, y, h, &tape, workspace, ex);
        const double weight = 1 / count(targets);
        const double total = embedding_.loss(h, targets, weight, &grad.embedding, h, workspace, ex);
        norm_.backward(b, y, h, h, tape, grad.norm, workspace, ex);
        body_.backward(b, x, h, dx, tape, grad.body, workspace, ex);
        embedding_.backward(b, dx, grad.embedding, ex);
        return weight * total;
    }

    state_type bind_state(arena& memory, const limits& most) const { return body_.bind_state(memory, most); }

    // Appends b.ids to their sequences. logits has a row for every token, or one for the last token of every
    // sequence (then no sequence may be empty).
    void extend(const batch& b, tensor_view<T> logits, state_type& state, arena& workspace,
                executor_ref ex = {}) const {
        const bool all = logits.rows() != b.n_sequences() || logits.rows() == b.n_tokens;
        require_shape(logits, all ? b.n_tokens : b.n_sequences(), vocabulary(), "language_model", "logits");
        rehearse(ex, [&](executor_ref dry) { extend(b, logits, state, workspace, dry); });
        const arena::scope scope(workspace);
        const auto x = workspace.take<T>(b.n_tokens, d_model());
        for (idx s = 0; s < b.n_sequences() && !all; ++s)
            if (b.end(s) == b.begin(s))
                SLUICE_THROW(input_error("language_model: sequence " + std::to_string(s) +
                                         " of the batch is empty, so it has no last token"));
        embed(b, x, ex);
        if (all || body_takes_last) {
            const auto y = workspace.take<T>(logits.rows(), d_model());
            body_.extend(b, x, y, state, workspace, ex);
            return head(batch::one(y.rows()), y, logits, workspace, ex);
        }
        const auto y = workspace.take<T>(b.n_tokens, d_model());
        body_.extend(b, x, y, state, workspace, ex);
        for (idx s = 0; s < b.n_sequences() && !ex.dry(); ++s)
            std::copy_n(y.row(b.end(s) - 1), d_model(), y.row(s));
        head(batch::one(b.n_sequences()), y.row_block(0, logits.rows()), logits, workspace, ex);
    }
    void prefill(const batch& b, tensor_view<T> logits, state_type& state, arena& workspace,
                 executor_ref ex = {}) const {
        extend(b, logits, state, workspace, ex);
    }
    void decode(const batch& b, tensor_view<T> logits, state_type& state, arena& workspace,
                executor_ref ex = {}) const {
        extend(b, logits, state, workspace, ex);
    }

    sizes bytes(const limits& most) const {
        check_limits(most);
        sizes result;
        arena workspace, tape, state_memory, grad_memory;
        dry_run counting{most.workers};
        const executor_ref ex(counting);
        batch b = batch::one(most.max_rows);
        b.counted_sequences = most.n_sequences;
        b.max_concepts = most.max_concepts;
        const bool last = most.wanted == outputs::last && most.max_tokens > 0; // then only extend is asked
        const tensor_view<T> logits(nullptr, last ? 1 : most.max_rows, vocabulary());
        if (!last) {
            forward(b, logits, workspace, ex);
            (void)loss(b, {}, workspace, ex);
        }
        if constexpr (trainable)
            if (!last) {
                const auto grad = grad_type::bind(grad_memory, config_);
                loss_and_gradient(b, {}, grad, tape, workspace, ex);
                result.tape = tape.bytes();
            }
        if (most.max_tokens > 0) {
            auto state = bind_state(state_memory, most);
            result.state = state_memory.bytes();
            extend(b, logits, state, workspace, ex);
        }
        result.workspace = workspace.bytes();
        return result;
    }
    double flops(idx n_tokens, idx past = 0) const {
        return body_.flops(n_tokens, past) + norm_.flops(n_tokens) + embedding_.flops(n_tokens);
    }

private:
    static constexpr bool body_takes_last = requires { requires Body::takes_last; };

    void embed(const batch& b, tensor_view<T> x, executor_ref ex) const {
        check_batch(b, "language_model");
        embedding_.forward(b, x, ex);
    }
    void head(const batch& b, tensor_view<T> y, tensor_view<T> logits, arena& workspace,
              executor_ref ex) const {
        norm_.forward(b, y, y, nullptr, workspace, ex);
        embedding_.logits(y, logits, workspace, ex);
    }
    static double count(std::span<const token_id> targets) {
        double n = 0;
        for (token_id t : targets) n += t >= 0 ? 1 : 0;
        return std::max(n, 1.0);
    }

    config_type config_;
    params_type params_;
    embedding<T, W, arch> embedding_;
    Body body_;
    norm<T, W, arch> norm_;
};

} // namespace SLUICE_ISA
} // namespace sluice
