// Parallel hidden decoding (PHD; Wu et al., "Efficient pretraining length scaling", 2025): every token is
// repeated, a body works on all copies, and the last copy of each token is the output. More computation for a
// token with the key cache of a plain transformer.
//
// The last layer computes the last copies only. A prompt of which the last output alone is wanted has hidden
// copies only where they can still matter: section 2.4 for chunks, the receptive field for windows without.
#pragma once

#include "compose.hpp"
#include "cswa.hpp"
#include "feed_forward.hpp"
#include "norm.hpp"
#include "transformer_block.hpp"

namespace sluice {

template <class BodyConfig>
struct token_repeat_config {
    idx repeat = 1; // copies of a token
    BodyConfig body{};
};

// Those of the body, under its names.
template <class Body>
struct token_repeat_params {
    Body body;

    static token_repeat_params bind(arena& a, const auto& c) { return {Body::bind(a, c.body)}; }
    template <class F, class First, class... Sets>
    static void each(F& f, const param_name& at, First& first, Sets&... sets) {
        Body::each(f, at, first.body, sets.body...);
    }
};
template <class P>
void initialise(const token_repeat_params<P>& p, const auto& c, const random_source& numbers) {
    initialise(p.body, c.body, numbers);
}

template <class Body>
struct token_repeat_state {
    Body body;
    limits most{}; // what it was bound for

    void truncate(idx slot, idx tokens) { body.truncate(slot, tokens); }
    void check_room(const batch& b) const { check_room_of(body, b); }
};

using phd_block_config = basic_transformer_block_config<cswa_config, feed_forward_config>;

inline namespace SLUICE_ISA {

template <class T, class W = T, class Arch = simd::native>
using phd_block = basic_transformer_block<cswa<T, W, Arch>, feed_forward<T, W, Arch>, norm<T, W, Arch>>;

// Body: any layer that takes batches with copies. Of cswa, its blocks and their stacks the parts that do not
// reach the output are left out.
template <class Body>
class token_repeat {
    static constexpr bool stacked = requires(const Body& b) {
        { b.at(0).rules() } -> std::same_as<copy_rules>;
    };
    static constexpr bool selects = stacked || row_selecting<Body>;

public:
    using scalar = typename Body::scalar;
    using arch = typename Body::arch;
    static constexpr bool trainable = is_trainable<Body>;
    static constexpr bool takes_last = true; // extend may be asked for the last outputs alone
    using T = scalar;
    using config_type = token_repeat_config<typename Body::config_type>;
    using params_type = token_repeat_params<typename Body::params_type>;
    using grad_type = token_repeat_params<typename Body::grad_type>;
    using state_type = token_repeat_state<typename Body::state_type>;

    token_repeat(const config_type& config, const params_type& params)
        : config_(config), params_(params), body_(config.body, params.body) {
        require(config.repeat >= 1 && config.repeat <= (idx{1} << 20), "token_repeat",
                "repeat must be 1 to 2^20, is " + std::to_string(config.repeat));
        if constexpr (selects)
            if (layer(0).rules().repeat != config.repeat)
                SLUICE_THROW(config_error("token_repeat: repeat is " + std::to_string(config.repeat) +
                                          ", of cswa " + std::to_string(layer(0).rules().repeat)));
        if (body_.d_in() != body_.d_out())
            SLUICE_THROW(config_error("token_repeat: the body maps width " + std::to_string(body_.d_in()) +
                                      " to " + std::to_string(body_.d_out())));
    }
    const config_type& config() const { return config_; }
    const params_type& params() const { return params_; }
    idx d_in() const { return body_.d_in(); }
    idx d_out() const { return d_in(); }

    // y (n_tokens, d_model) from x of the same shape; b counts tokens and has one copy of each.
    void forward(const batch& b, in<T> x, tensor_view<T> y, arena* tape, arena& workspace,
                 executor_ref ex = {}) const {
        check_call(b, x);
        require_shape(y, b.n_tokens, d_in(), "token_repeat", "y");
        rehearse(ex, tape, [&](executor_ref dry) { forward(b, x, y, tape, workspace, dry); });
        const arena::scope scope(workspace);
        const batch rows = repeated(b);
        const auto copies = workspace.take<T>(rows.rows(), d_in());
        repeat(x, copies, ex);
        const row_selection wanted = last_copies(b, workspace);
        if constexpr (selects) {
            relay<T> walk("token_repeat", n_layers(), rows.rows(), d_in(), copies, y, tape, workspace,
                          b.n_tokens);
            for (idx i = 0; i < n_layers(); ++i)
                walk.step(i, [&](in<T> from, tensor_view<T> to) {
                    const batch mine = repeated(b, i == 0);
                    if (i + 1 < n_layers())
                        layer(i).forward(mine, from, to, tape, workspace, ex);
                    else
                        layer(i).forward_rows(mine, wanted, from, to, tape, workspace, ex);
                });
            walk.finish();
        } else {
            const auto all = workspace.take<T>(rows.rows(), d_in());
            body_.forward(rows, copies, all, tape, workspace, ex);
            gather<arch>(all, wanted.rows, y, ex);
        }
    }

    void backward(const batch& b, in<T> x, in<T> dy, tensor_view<T> dx, arena& tape, const grad_type& grad,
                  arena& workspace, executor_ref ex = {}) const {
        check_backward<T>(b, x, dy, dx, d_in(), d_in(), "token_repeat");
        rehearse(ex, &tape, [&](executor_ref dry) { backward(b, x, dy, dx, tape, grad, workspace, dry); });
        const arena::scope scope(workspace);
        const batch rows = repeated(b);
        const auto copies = workspace.take<T>(rows.rows(), d_in()),
                   dcopies = workspace.take<T>(rows.rows(), d_in());
        repeat(x, copies, ex);
        const row_selection wanted = last_copies(b, workspace);
        if constexpr (selects) {
            relay_back<T> walk(n_layers(), rows.rows(), d_in(), copies, dy, dcopies, tape, workspace);
            for (idx i = n_layers() - 1; i >= 0; --i)
                walk.step(i, [&](in<T> from, in<T> d, tensor_view<T> to) {
                    const auto part = part_of(grad.body, i);
                    if (i + 1 < n_layers())
                        layer(i).backward(rows, from, d, to, tape, part, workspace, ex);
                    else
                        layer(i).backward_rows(rows, wanted, from, d, to, tape, part, workspace, ex);
                });
        } else {
            const auto all = workspace.take<T>(rows.rows(), d_in());
            if (!ex.dry()) fill(all, T(0));
            add_to_rows<arch>(dy, wanted.rows, all, ex);
            body_.backward(rows, copies, all, dcopies, tape, grad.body, workspace, ex);
        }
        ex(b.n_tokens, [&](idx begin, idx end, idx) {
            for (idx i = begin; i < end; ++i) {
                std::copy_n(dcopies.row(i * config_.repeat), d_in(), dx.row(i));
                const auto to = dx.row_block(i, 1);
                for (idx copy = 1; copy < config_.repeat; ++copy)
                    add<arch>(to, dcopies.row_block(i * config_.repeat + copy, 1), to, {});
            }
        });
    }

    state_type bind_state(arena& memory, const limits& most) const {
        return {body_.bind_state(memory, most), most};
    }
    // Appends the batch's tokens. y has a row for every token, or one for the last token of each sequence,
    // and then none may be empty.
    void extend(const batch& b, in<T> x, tensor_view<T> y, state_type& state, arena& workspace,
                executor_ref ex = {}) const {
        check_call(b, x);
        const bool all = y.rows() != b.n_sequences() || y.rows() == b.n_tokens;
        require_shape(y, all ? b.n_tokens : b.n_sequences(), d_in(), "token_repeat", "y");
        for (idx s = 0; s < b.n_sequences() && !all; ++s)
            if (b.tokens(s) == 0)
                SLUICE_THROW(input_error("token_repeat: sequence " + std::to_string(s) +
                                         " of the batch is empty, so it has no last token"));
        if (!ex.dry()) state.check_room(b);
        rehearse(ex, [&](executor_ref dry) { extend(b, x, y, state, workspace, dry); });
        const arena::scope scope(workspace);
        if constexpr (selects) {
            extend_selected(b, x, y, state, all, workspace, ex);
        } else {
            const batch rows = repeated(b);
            const auto copies = workspace.take<T>(rows.rows(), d_in()),
                       out = workspace.take<T>(rows.rows(), d_in());
            repeat(x, copies, ex);
            const row_selection wanted = all ? last_copies(b, workspace) : last_rows(rows, state, workspace);
            body_.extend(rows, copies, out, state.body, workspace, ex);
            gather<arch>(out, wanted.rows, y, ex);
        }
    }
    void prefill(const batch& b, in<T> x, tensor_view<T> y, state_type& state, arena& workspace,
                 executor_ref ex = {}) const {
        extend(b, x, y, state, workspace, ex);
    }
    void decode(const batch& b, in<T> x, tensor_view<T> y, state_type& state, arena& workspace,
                executor_ref ex = {}) const {
        extend(b, x, y, state, workspace, ex);
    }

    sizes bytes(const limits& most) const {
        if (most.wanted == outputs::all || most.max_tokens == 0) return layer_bytes(*this, most);
        check_limits(most);
        arena workspace, memory;
        dry_run counting{most.workers};
        auto state = bind_state(memory, most);
        const tensor_view<T> x(nullptr, most.max_rows, d_in()), y(nullptr, 1, d_in());
        extend(batch::one(most.max_rows), x, y, state, workspace, counting);
        return {.state = memory.bytes(), .workspace = workspace.bytes()};
    }
    // Of forward: all copies in all layers but the last, which computes the last copies.
    double flops(idx n_tokens, idx past = 0) const {
        if constexpr (selects)
            return static_cast<double>(n_layers() - 1) * layer(0).flops(n_tokens, past) +
                   layer(0).flops_last(n_tokens, past);
        else
            return body_.flops(n_tokens * config_.repeat, past);
    }

private:
    idx n_layers() const {
        if constexpr (stacked)
            return body_.n_layers();
        else
            return 1;
    }
    auto layer([[maybe_unused]] idx i) const {
        if constexpr (stacked)
            return body_.at(i);
        else
            return body_;
    }
    auto part_of(const typename Body::grad_type& grad, [[maybe_unused]] idx i) const {
        if constexpr (stacked)
            return body_.part_of(grad, i);
        else
            return grad;
    }
    // Calls f(state of layer i).
    template <class F>
    void with_state(typename Body::state_type& state, idx i, F&& f) const {
        if constexpr (stacked)
            body_.with_state(state, i, f);
        else
            f(state);
    }

    void check_call(const batch& b, in<T> x) const {
        check_batch(b, "token_repeat");
        if (b.copies != 1)
            SLUICE_THROW(input_error("token_repeat: batch: copies is " + std::to_string(b.copies) +
                                     "; it makes the copies itself"));
        if (b.n_tokens > std::numeric_limits<std::int32_t>::max() / config_.repeat)
            SLUICE_THROW(input_error("token_repeat: " + std::to_string(b.n_tokens) + " tokens of " +
                                     std::to_string(config_.repeat) + " copies are more than 2^31 rows"));
        require_shape(x, b.n_tokens, d_in(), "token_repeat", "x");
    }
    // Copies are alike until they have been through attention.
    batch repeated(const batch& b, bool alike = false) const {
        batch rows = b;
        rows.copies = config_.repeat;
        rows.alike = alike;
        return rows;
    }
    // Every row of x as often as `copies` has rows for it.
    void repeat(in<T> x, tensor_view<T> copies, executor_ref ex) const {
        ex(copies.rows(), [&](idx begin, idx end, idx) {
            for (idx i = begin; i < end; ++i) std::copy_n(x.row(i / config_.repeat), x.cols(), copies.row(i));
        });
    }
    // Index tables are filled in rehearsals too, where there is memory for them.
    row_selection last_copies(const batch& b, arena& workspace) const {
        auto* rows = workspace.take<std::int32_t>(b.n_tokens);
        if (workspace.dry()) return {{}, b};
        for (idx i = 0; i < b.n_tokens; ++i)
            rows[i] = static_cast<std::int32_t>((i + 1) * config_.repeat - 1);
        return {{rows, static_cast<std::size_t>(b.n_tokens)}, b};
    }
    // The last row of every sequence; counted as many as the state has.
    row_selection last_rows(const batch& b, const state_type& state, arena& workspace) const {
        const idx most = state.most.n_sequences, n = workspace.dry() ? most : b.n_sequences();
        auto* rows = workspace.take<std::int32_t>(most);
        auto* offsets = workspace.take<idx>(most + 1);
        auto* positions = workspace.take<idx>(most);
        auto* ids = workspace.take<token_id>(most);
        batch to{.n_tokens = n, .slots = b.slots, .random_key = b.random_key};
        if (workspace.dry()) return {{}, to};
        offsets[0] = 0;
        for (idx s = 0; s < n; ++s) {
            rows[s] = static_cast<std::int32_t>(b.end(s) - 1);
            offsets[s + 1] = s + 1;
            positions[s] = b.position(s, b.end(s) - 1);
            if (!b.ids.empty()) ids[s] = b.ids[static_cast<std::size_t>(b.first_token(s) + b.tokens(s) - 1)];
        }
        const auto size = static_cast<std::size_t>(n);
        to.offsets = {offsets, size + 1};
        to.positions = {positions, size};
        if (!b.ids.empty()) to.ids = {ids, size};
        return {{rows, size}, to};
    }

    // How many of the last of n tokens, which follow `past` others, have to enter layer i with their hidden
    // copies: those that reach a wanted output, or that a later call may see.
    idx needed(idx i, idx past, idx n, bool all, idx rollback) const requires selects {
        const copy_rules rules = layer(0).rules();
        const idx end = past + n, seen = rules.first_seen(std::max<idx>(end - rollback, 0));
        idx first = all ? past : end - 1;
        for (idx j = n_layers() - 1; j >= i; --j)
            first = std::min(rules.first_seen(std::max(first, past)), seen);
        return std::clamp<idx>(end - first, 0, n);
    }
    // The most that needed() can be for n tokens in one call.
    idx most_needed(idx i, idx n, const limits& most) const requires selects {
        const copy_rules rules = layer(0).rules();
        const idx back = std::max<idx>(most.max_rollback, 1), layers = n_layers() - i;
        const idx far = layers > n / std::max<idx>(rules.reach(), 1) ? n : layers * rules.reach();
        const idx each = back + std::min(far, rules.chunk - 1);
        return each > n / most.n_sequences ? n : each * most.n_sequences;
    }
    // The batch that enters layer i; `past` null: the largest there can be.
    batch entering(idx i, const batch& b, const idx* past, const limits& most, bool all,
                   idx* offsets) const requires selects {
        batch rows = repeated(b, i == 0);
        if (config_.repeat == 1 || all) return rows;
        offsets[0] = 0;
        for (idx s = 0; s < b.n_sequences(); ++s) {
            const idx n = b.tokens(s), copied = past == nullptr
                                                    ? most_needed(i, n, most)
                                                    : needed(i, past[s], n, all, most.max_rollback);
            offsets[s + 1] = offsets[s] + n + copied * (config_.repeat - 1);
        }
        rows.row_offsets = {offsets, static_cast<std::size_t>(b.n_sequences() + 1)};
        return rows;
    }
    // Tokens that each sequence of a batch holds before it.
    const idx* held(const batch& b, const state_type& state, arena& workspace) const requires selects {
        idx* past = workspace.take<idx>(state.most.n_sequences);
        for (idx s = 0; s < b.n_sequences() && past != nullptr; ++s) {
            if constexpr (stacked)
                past[s] = state.body.layers[0].tokens(b.slot(s));
            else
                past[s] = state.body.tokens(b.slot(s));
        }
        return past;
    }
    // Of the rows that entered one layer those that enter the next: fewer tokens have copies there.
    static row_selection kept(const batch& from, const batch& to, std::int32_t* rows) {
        std::int32_t* at = rows;
        for (idx s = 0; s < from.n_sequences() && rows != nullptr; ++s)
            for (idx row = from.begin(s); row < from.end(s); ++row)
                if (from.copy(s, row) == 0 || from.token(s, row) >= to.bare(s))
                    *at++ = static_cast<std::int32_t>(row);
        return {{rows, static_cast<std::size_t>(at - rows)}, to};
    }

    void extend_selected(const batch& given, in<T> x, tensor_view<T> y, state_type& state, bool all,
                         arena& workspace, executor_ref ex) const requires selects {
        const bool counts = workspace.dry(); // then sequences are one, as long as all together
        const batch b = counts ? batch::one(given.n_tokens) : given;
        idx none[2][2];
        idx* offsets[2];
        for (int i = 0; i < 2; ++i) {
            offsets[i] = workspace.take<idx>(state.most.n_sequences + 1);
            if (counts) offsets[i] = none[i];
        }
        const idx* past = held(b, state, workspace);
        batch rows = entering(0, b, past, state.most, all, offsets[0]);
        tensor_view<T> buffers[2];
        for (auto& buffer : buffers) buffer = workspace.take<T>(rows.rows(), d_in());
        auto* picked = workspace.take<std::int32_t>(rows.rows());
        for (idx s = 0; s < b.n_sequences() && !ex.dry(); ++s)
            for (idx row = rows.begin(s); row < rows.end(s); ++row)
                std::copy_n(x.row(b.first_token(s) + rows.token(s, row)), d_in(), buffers[0].row(row));
        tensor_view<T> from = buffers[0];
        for (idx i = 0; i < n_layers(); ++i)
            with_state(state.body, i, [&](auto& mine) {
                if (i + 1 == n_layers()) {
                    const row_selection last =
                        all ? last_copies(b, workspace) : last_rows(rows, state, workspace);
                    const tensor_view<T> to = counts ? tensor_view<T>(nullptr, last.to.rows(), d_in()) : y;
                    return layer(i).extend_rows(rows, last, from, to, mine, workspace, ex);
                }
                const batch next = entering(i + 1, b, past, state.most, all, offsets[(i + 1) % 2]);
                const auto to = buffers[(i + 1) % 2].row_block(0, next.rows());
                if (next.rows() == rows.rows())
                    layer(i).extend(rows, from, to, mine, workspace, ex);
                else
                    layer(i).extend_rows(rows, kept(rows, next, picked), from, to, mine, workspace, ex);
                rows = next;
                from = to;
            });
    }

    config_type config_;
    params_type params_;
    Body body_;
};

template <class T, class W = T, class Arch = simd::native>
using phd = token_repeat<stack<phd_block<T, W, Arch>>>;

} // namespace SLUICE_ISA
} // namespace sluice
