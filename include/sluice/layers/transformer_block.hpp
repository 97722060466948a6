// The pre-norm transformer block: h = x + attention(norm(x)), y = h + feed_forward(norm(h)) (Vaswani et al.,
// 2017, with the order of Xiong et al., "On layer normalization in the transformer architecture", 2020).
//
// basic_transformer_block takes any two layers of equal width, so other mixers and other feed-forwards make
// blocks too; transformer_block is the usual pair.
#pragma once

#include "../ops/copy_attention.hpp"
#include "../ops/gather.hpp"
#include "attention.hpp"
#include "feed_forward.hpp"
#include "norm.hpp"

namespace sluice {

template <class MixerConfig, class FeedForwardConfig>
struct basic_transformer_block_config {
    MixerConfig attention{};
    FeedForwardConfig feed_forward{};
    norm_config norm{}; // of both norms
};
using transformer_block_config = basic_transformer_block_config<attention_config, feed_forward_config>;

template <class Norm, class Mixer, class FeedForward>
struct basic_transformer_block_params {
    Norm attention_norm;
    Mixer attention;
    Norm feed_forward_norm;
    FeedForward feed_forward;

    static basic_transformer_block_params bind(arena& a, const auto& c) {
        basic_transformer_block_params p;
        p.attention_norm = Norm::bind(a, c.norm);
        p.attention = Mixer::bind(a, c.attention);
        p.feed_forward_norm = Norm::bind(a, c.norm);
        p.feed_forward = FeedForward::bind(a, c.feed_forward);
        return p;
    }
    template <class F, class First, class... Sets>
    static void each(F& f, const param_name& at, First& first, Sets&... sets) {
        Norm::each(f, param_name(at, "attention_norm"), first.attention_norm, sets.attention_norm...);
        Mixer::each(f, param_name(at, "attention"), first.attention, sets.attention...);
        Norm::each(f, param_name(at, "feed_forward_norm"), first.feed_forward_norm,
                   sets.feed_forward_norm...);
        FeedForward::each(f, param_name(at, "feed_forward"), first.feed_forward, sets.feed_forward...);
    }
};
template <class W>
using transformer_block_params =
    basic_transformer_block_params<norm_params<W>, attention_params<W>, feed_forward_params<W>>;

// Each part by its own rule.
template <class N, class M, class F>
void initialise(const basic_transformer_block_params<N, M, F>& p, const auto& c,
                const random_source& numbers) {
    initialise(p.attention_norm, c.norm, numbers.split(0));
    initialise(p.attention, c.attention, numbers.split(1));
    initialise(p.feed_forward_norm, c.norm, numbers.split(2));
    initialise(p.feed_forward, c.feed_forward, numbers.split(3));
}

template <class MixerState, class FeedForwardState>
struct basic_transformer_block_state {
    MixerState attention;
    FeedForwardState feed_forward;

    void truncate(idx slot, idx tokens) {
        attention.truncate(slot, tokens);
        feed_forward.truncate(slot, tokens);
    }
    idx tokens(idx slot) const { return attention.tokens(slot); }
    void check_room(const batch& b) const {
        if constexpr (requires { attention.check_room(b); }) attention.check_room(b);
        if constexpr (requires { feed_forward.check_room(b); }) feed_forward.check_room(b);
    }
};

inline namespace SLUICE_ISA {

template <class Mixer, class FeedForward, class Norm>
class basic_transformer_block {
    static_assert(streaming_layer<Mixer> && streaming_layer<FeedForward> && layer<Norm>,
                  "sluice: transformer_block takes streaming_layers; see core/layer.hpp");
    template <class L>
    using params_of = typename L::params_type;
    template <class L>
    using grad_of = typename L::grad_type;

public:
    using scalar = typename Mixer::scalar;
    using arch = typename Mixer::arch;
    static constexpr bool trainable = is_trainable<Mixer> && is_trainable<FeedForward> && is_trainable<Norm>;
    // Whether there are forward_rows, backward_rows and extend_rows: then only attention sees other rows.
    static constexpr bool selects_rows =
        row_selecting<Mixer> && std::is_same_v<typename FeedForward::state_type, no_state>;
    using T = scalar;
    using config_type =
        basic_transformer_block_config<typename Mixer::config_type, typename FeedForward::config_type>;
    using params_type =
        basic_transformer_block_params<params_of<Norm>, params_of<Mixer>, params_of<FeedForward>>;
    using grad_type = basic_transformer_block_params<grad_of<Norm>, grad_of<Mixer>, grad_of<FeedForward>>;
    using state_type =
        basic_transformer_block_state<typename Mixer::state_type, typename FeedForward::state_type>;

    basic_transformer_block(const config_type& config, const params_type& params)
        : config_(config),
          params_(params),
          attention_norm_(config.norm, params.attention_norm),
          attention_(config.attention, params.attention),
          feed_forward_norm_(config.norm, params.feed_forward_norm),
          feed_forward_(config.feed_forward, params.feed_forward) {
        auto same = [&](idx width, std::string_view part) {
            if (width != d_in())
                SLUICE_THROW(config_error("transformer_block: d_model of " + std::string(part) + " is " +
                                          std::to_string(width) + ", of attention " +
                                          std::to_string(d_in())));
        };
        same(config.norm.d_model, "norm");
        same(feed_forward_.d_in(), "feed_forward");
    }

    const config_type& config() const { return config_; }
    const params_type& params() const { return params_; }
    idx d_in() const { return attention_.d_in(); }
    idx d_out() const { return d_in(); }

    copy_rules rules() const requires selects_rows { return attention_.rules(); }

    // y = x + change(x).
    void forward(const batch& b, in<T> x, tensor_view<T> y, arena* tape, arena& workspace,
                 executor_ref ex = {}) const {
        rehearse(ex, tape,
                 [&](executor_ref dry) { run(b, nullptr, x, y, true, nullptr, tape, workspace, dry); });
        run(b, nullptr, x, y, true, nullptr, tape, workspace, ex);
    }
    void backward(const batch& b, in<T> x, in<T> dy, tensor_view<T> dx, arena& tape, const grad_type& grad,
                  arena& workspace, executor_ref ex = {}) const {
        run_backward(b, nullptr, x, dy, dx, true, tape, grad, workspace, ex);
    }

    // The same where only some rows of y are wanted: y (wanted rows, d_model), dy as y.
    void forward_rows(const batch& b, const row_selection& wanted, in<T> x, tensor_view<T> y, arena* tape,
                      arena& workspace, executor_ref ex = {}) const {
        rehearse(ex, tape,
                 [&](executor_ref dry) { run(b, &wanted, x, y, true, nullptr, tape, workspace, dry); });
        run(b, &wanted, x, y, true, nullptr, tape, workspace, ex);
    }
    void backward_rows(const batch& b, const row_selection& wanted, in<T> x, in<T> dy, tensor_view<T> dx,
                       arena& tape, const grad_type& grad, arena& workspace, executor_ref ex = {}) const {
        run_backward(b, &wanted, x, dy, dx, true, tape, grad, workspace, ex);
    }
    void extend_rows(const batch& b, const row_selection& wanted, in<T> x, tensor_view<T> y,
                     state_type& state, arena& workspace, executor_ref ex = {}) const {
        rehearse(ex, [&](executor_ref dry) { run(b, &wanted, x, y, true, &state, nullptr, workspace, dry); });
        run(b, &wanted, x, y, true, &state, nullptr, workspace, ex);
    }

    // What the block would add to x: attention + feed-forward.
    void change(const batch& b, in<T> x, tensor_view<T> y, arena* tape, arena& workspace,
                executor_ref ex = {}) const {
        rehearse(ex, tape,
                 [&](executor_ref dry) { run(b, nullptr, x, y, false, nullptr, tape, workspace, dry); });
        run(b, nullptr, x, y, false, nullptr, tape, workspace, ex);
    }
    void change_backward(const batch& b, in<T> x, in<T> dy, tensor_view<T> dx, arena& tape,
                         const grad_type& grad, arena& workspace, executor_ref ex = {}) const {
        run_backward(b, nullptr, x, dy, dx, false, tape, grad, workspace, ex);
    }

    state_type bind_state(arena& memory, const limits& most) const {
        auto mixer = attention_.bind_state(memory, most);
        return {mixer, feed_forward_.bind_state(memory, most)};
    }
    void extend(const batch& b, in<T> x, tensor_view<T> y, state_type& state, arena& workspace,
                executor_ref ex = {}) const {
        rehearse(ex, [&](executor_ref dry) { run(b, nullptr, x, y, true, &state, nullptr, workspace, dry); });
        run(b, nullptr, x, y, true, &state, nullptr, workspace, ex);
    }
    void extend_change(const batch& b, in<T> x, tensor_view<T> y, state_type& state, arena& workspace,
                       executor_ref ex = {}) const {
        rehearse(ex,
                 [&](executor_ref dry) { run(b, nullptr, x, y, false, &state, nullptr, workspace, dry); });
        run(b, nullptr, x, y, false, &state, nullptr, workspace, ex);
    }
    void prefill(const batch& b, in<T> x, tensor_view<T> y, state_type& state, arena& workspace,
                 executor_ref ex = {}) const {
        extend(b, x, y, state, workspace, ex);
    }
    void decode(const batch& b, in<T> x, tensor_view<T> y, state_type& state, arena& workspace,
                executor_ref ex = {}) const {
        extend(b, x, y, state, workspace, ex);
    }

    sizes bytes(const limits& most) const { return layer_bytes(*this, most); }
    double flops(idx n_tokens, idx past = 0) const {
        idx rows = n_tokens;
        if constexpr (selects_rows) rows *= rules().repeat;
        return attention_norm_.flops(rows) + attention_.flops(n_tokens, past) +
               feed_forward_norm_.flops(rows) + feed_forward_.flops(rows, past);
    }
    // With the last copies wanted alone.
    double flops_last(idx n_tokens, idx past = 0) const requires selects_rows {
        return attention_norm_.flops(n_tokens * rules().repeat) + attention_.flops_last(n_tokens, past) +
               feed_forward_norm_.flops(n_tokens) + feed_forward_.flops(n_tokens, past);
    }

private:
    // What backward needs of its own: the normed inputs of both layers and the stream between them.
    struct record {
        T *normed_x, *h, *normed_h;
    };

    // `wanted` null: all rows.
    void run(const batch& b, const row_selection* wanted, in<T> x, tensor_view<T> y, bool residual,
             state_type* state, arena* tape, arena& workspace, executor_ref ex) const {
        const batch& out = wanted == nullptr ? b : wanted->to;
        const idx n = b.rows(), m = out.rows(), d = d_in();
        require_shape(x, n, d, "transformer_block", "x");
        require_shape(y, m, d, "transformer_block", "y");
        const arena::scope scope(workspace);
        arena& keep = tape == nullptr ? workspace : *tape;
        const auto normed_x = keep.take<T>(n, d), h = keep.take<T>(m, d), normed_h = keep.take<T>(m, d);
        const auto a = workspace.take<T>(m, d);
        attention_norm_.forward(b, x, normed_x, tape, workspace, ex);
        mix(b, wanted, normed_x, a, state, tape, workspace, ex);
        if (wanted == nullptr) {
            add<arch>(x, a, h, ex);
        } else {
            gather<arch>(x, wanted->rows, h, ex);
            add<arch>(h, a, h, ex);
        }
        feed_forward_norm_.forward(out, h, normed_h, tape, workspace, ex);
        if (state == nullptr)
            feed_forward_.forward(out, normed_h, y, tape, workspace, ex);
        else
            feed_forward_.extend(out, normed_h, y, state->feed_forward, workspace, ex);
        add<arch>(residual ? h : a, y, y, ex);
        if (tape != nullptr) tape->push_record(record{normed_x.data(), h.data(), normed_h.data()});
    }
    void mix(const batch& b, const row_selection* wanted, in<T> x, tensor_view<T> y, state_type* state,
             arena* tape, arena& workspace, executor_ref ex) const {
        if constexpr (selects_rows) {
            if (wanted != nullptr && state == nullptr)
                return attention_.forward_rows(b, *wanted, x, y, tape, workspace, ex);
            if (wanted != nullptr)
                return attention_.extend_rows(b, *wanted, x, y, state->attention, workspace, ex);
        }
        if (state == nullptr)
            attention_.forward(b, x, y, tape, workspace, ex);
        else
            attention_.extend(b, x, y, state->attention, workspace, ex);
    }

    void run_backward(const batch& b, const row_selection* wanted, in<T> x, in<T> dy, tensor_view<T> dx,
                      bool residual, arena& tape, const grad_type& grad, arena& workspace,
                      executor_ref ex) const {
        const batch& out = wanted == nullptr ? b : wanted->to;
        const idx n = b.rows(), m = out.rows(), d = d_in();
        require_shape(x, n, d, "transformer_block", "x");
        require_shape(dy, m, d, "transformer_block", "dy");
        require_shape(dx, n, d, "transformer_block", "dx");
        rehearse(ex, &tape, [&](executor_ref dry) {
            run_backward(b, wanted, x, dy, dx, residual, tape, grad, workspace, dry);
        });
        const arena::scope scope(workspace);
        const record kept = tape.pop_record<record>();
        const tensor_view<T> normed_x(kept.normed_x, n, d), h(kept.h, m, d), normed_h(kept.normed_h, m, d);
        const auto dh = workspace.take<T>(m, d), da = workspace.take<T>(m, d);
        feed_forward_.backward(out, normed_h, dy, dh, tape, grad.feed_forward, workspace, ex);
        feed_forward_norm_.backward(out, h, dh, dh, tape, grad.feed_forward_norm, workspace, ex);
        add<arch>(dy, dh, da, ex);
        mix_backward(b, wanted, normed_x, da, dx, tape, grad, workspace, ex);
        attention_norm_.backward(b, x, dx, dx, tape, grad.attention_norm, workspace, ex);
        const auto skipped = residual ? da : dh; // past attention
        if (wanted == nullptr)
            add<arch>(dx, skipped, dx, ex);
        else
            add_to_rows<arch>(skipped, wanted->rows, dx, ex);
        (void)tape.pop<T>(m, d), (void)tape.pop<T>(m, d), (void)tape.pop<T>(n, d);
    }
    void mix_backward(const batch& b, const row_selection* wanted, in<T> x, in<T> dy, tensor_view<T> dx,
                      arena& tape, const grad_type& grad, arena& workspace, executor_ref ex) const {
        if constexpr (selects_rows)
            if (wanted != nullptr)
                return attention_.backward_rows(b, *wanted, x, dy, dx, tape, grad.attention, workspace, ex);
        attention_.backward(b, x, dy, dx, tape, grad.attention, workspace, ex);
    }

    config_type config_;
    params_type params_;
    Norm attention_norm_;
    Mixer attention_;
    Norm feed_forward_norm_;
    FeedForward feed_forward_;
};

template <class T, class W = T, class Arch = simd::native>
using transformer_block =
    basic_transformer_block<attention<T, W, Arch>, feed_forward<T, W, Arch>, norm<T, W, Arch>>;

} // namespace SLUICE_ISA
} // namespace sluice
