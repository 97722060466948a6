// Mixture-of-Depths (Raposo et al., "Mixture-of-Depths", 2024): of each sequence some tokens go through a
// block, the others past it, without a product and without an entry in the block's cache.
//   y_i = x_i + g(r_i) f_i(routed tokens) if i is routed, else x_i   (eq. 1; f: what the block would add)
// forward routes by top_k unless told otherwise, which looks at later tokens: text is generated, and models
// are compared, by rules that look at one (see depth_router.hpp). A window of f counts routed tokens.
#pragma once

#include "../core/sequence_lengths.hpp"
#include "depth_router.hpp"

namespace sluice {

template <class BlockConfig>
struct mixture_of_depths_config {
    BlockConfig block{};
    depth_router_config router{};
};

template <class RouterParams, class BlockParams>
struct mixture_of_depths_params {
    RouterParams router;
    BlockParams block;

    static mixture_of_depths_params bind(arena& a, const auto& c) {
        const auto router = RouterParams::bind(a, c.router);
        return {router, BlockParams::bind(a, c.block)};
    }
    template <class F, class First, class... Sets>
    static void each(F& f, const param_name& at, First& first, Sets&... sets) {
        RouterParams::each(f, param_name(at, "router"), first.router, sets.router...);
        BlockParams::each(f, param_name(at, "block"), first.block, sets.block...);
    }
};
template <class R, class B>
void initialise(const mixture_of_depths_params<R, B>& p, const auto& c, const random_source& numbers) {
    initialise(p.router, c.router, numbers.split(0));
    initialise(p.block, c.block, numbers.split(1));
}

template <class BlockState>
struct mixture_of_depths_state {
    sequence_lengths lengths; // all tokens
    tensor_view<idx> counts;  // 1 x n_sequences: those routed, which the block's state holds
    // n_sequences x 2 max_rollback: which tokens the last of them were, a ring. Counts fall at most
    // max_rollback behind the largest there was, and as many entries below a count are looked at.
    tensor_view<idx> recent;
    BlockState block;

    idx tokens(idx slot) const {
        lengths.check_slot(slot);
        return lengths.length(0, slot);
    }
    idx routed(idx slot) const {
        lengths.check_slot(slot);
        return counts(0, slot);
    }
    void truncate(idx slot, idx tokens) {
        lengths.truncate(slot, tokens);
        idx& n = counts(0, slot);
        const idx ring = recent.cols();
        idx left = n;
        while (left > 0 && n - left < ring / 2 && recent(slot, (left - 1) % ring) >= tokens) --left;
        n = tokens == 0 ? 0 : left;
        block.truncate(slot, n);
    }
    // Throws unless there is room for the tokens. Whether there is for those that will be routed, fewer than
    // all where max_routed says so, is known only when they are.
    void check_room(const batch& b) const { lengths.check_room(b); }
};

inline namespace SLUICE_ISA {

// Block: a streaming_layer that offers its change alone, such as transformer blocks of all kinds. V: how the
// router's weights are stored, T or const T.
template <class Block, class V = typename Block::scalar>
class mixture_of_depths {
    static_assert(streaming_layer<Block>, "sluice: mixture_of_depths takes a streaming_layer");
    static_assert(
        requires {
            &Block::change;
            &Block::extend_change;
        },
        "sluice: mixture_of_depths takes a block that has change and extend_change");

public:
    using scalar = typename Block::scalar;
    using arch = typename Block::arch;
    static constexpr bool trainable = is_trainable<Block>;
    using T = scalar;
    using config_type = mixture_of_depths_config<typename Block::config_type>;
    using params_type = mixture_of_depths_params<depth_router_params<V>, typename Block::params_type>;
    using grad_type = mixture_of_depths_params<depth_router_params<T>, typename Block::grad_type>;
    using state_type = mixture_of_depths_state<typename Block::state_type>;

    mixture_of_depths(const config_type& config, const params_type& params)
        : config_(config),
          params_(params),
          router_(config.router, params.router, "mixture_of_depths"),
          block_(config.block, params.block) {
        auto same = [&](idx width, std::string_view what) {
            if (width != config.router.d_model)
                SLUICE_THROW(config_error("mixture_of_depths: " + std::string(what) + " of the block is " +
                                          std::to_string(width) + ", router.d_model is " +
                                          std::to_string(config.router.d_model)));
        };
        same(block_.d_in(), "d_in");
        same(block_.d_out(), "d_out");
    }
    const config_type& config() const { return config_; }
    const params_type& params() const { return params_; }
    idx d_in() const { return config_.router.d_model; }
    idx d_out() const { return d_in(); }

    // Every sequence of the batch from its first token; a packed batch has no padding, so that `capacity` is
    // of a sequence's own tokens. Copies of a token go where its original goes. y (rows, d_model) as x.
    void forward(const batch& b, in<T> x, tensor_view<T> y, arena* tape, arena& workspace,
                 executor_ref ex = {}) const {
        check_call(b, x, y);
        rehearse(ex, tape, [&](executor_ref dry) { forward(b, x, y, tape, workspace, dry); });
        const arena::scope scope(workspace);
        const depth_rule rule = config_.router.forward_by;
        const bool ahead = rule == depth_rule::top_k || rule == depth_rule::random;
        const routed r = route(rule, ahead, b, x, {}, tape == nullptr ? workspace : *tape, workspace, ex);
        if (r.some.to.n_tokens > 0) {
            const arena::scope inner(workspace);
            const auto gathered = gather_routed(r, x, workspace, ex);
            block_.change(r.some.to, gathered, r.change, tape, workspace, ex);
        }
        if (tape != nullptr) tape->push_record(r);
        combine(r, x, y, ex);
    }

    // b as in forward. The choice is a constant; gradients of losses (depth_losses) are added here.
    void backward(const batch& b, in<T> x, in<T> dy, tensor_view<T> dx, arena& tape, const grad_type& grad,
                  arena& workspace, executor_ref ex = {}) const {
        check_backward<T>(b, x, dy, dx, d_in(), d_in(), "mixture_of_depths");
        SLUICE_ASSERT(apart(dx, dy));
        rehearse(ex, &tape, [&](executor_ref dry) { backward(b, x, dy, dx, tape, grad, workspace, dry); });
        const arena::scope scope(workspace);
        routed r = tape.pop_record<routed>();
        if (tape.dry()) r = counted(b);
        const idx m = r.some.to.rows(), n = r.some.to.n_tokens, d = d_in();
        const auto gathered = gather_routed(r, x, workspace, ex);
        const auto dchange = workspace.take<T>(m, d), drows = workspace.take<T>(m, d);
        const auto dlogits = workspace.take<T>(n, 1);
        gather<arch, T>(dy, r.some.all_rows(), dchange, ex);
        ex(n, [&](idx begin, idx end, idx) {
            for (idx i = begin; i < end; ++i) {
                const T logit = r.logits[r.some.tokens[i]], gate = router_.gate(logit);
                T sum = 0, part = 0;
                for (idx j = r.some.first(i); j < r.some.first(i + 1); ++j) {
                    T* const row = dchange.row(j);
                    simd::invoke(arch{}, kernels::dot{}, static_cast<const T*>(row),
                                 static_cast<const T*>(r.change.row(j)), d, &part);
                    simd::invoke(arch{}, kernels::scale_elements{}, static_cast<const T*>(row), gate, row, d);
                    sum += part;
                }
                dlogits(i, 0) = router_.gate_slope(logit) * sum;
            }
        });
        if (n > 0)
            block_.change_backward(r.some.to, gathered, dchange, drows, tape, grad.block, workspace, ex);
        copy<T>(dy, dx, ex);
        add_to_rows<arch, T>(drows, r.some.all_rows(), dx, ex);
        router_backward(b, r, x, gathered, dlogits, dx, grad.router, workspace, ex);
        pop(b, r, tape);
    }

    // As many tokens as max_routed says, or all, may be routed of a sequence.
    state_type bind_state(arena& memory, const limits& most) const {
        state_type s;
        s.lengths = sequence_lengths::bind(memory, most, "mixture_of_depths state");
        limits inner = most;
        if (most.max_routed > 0) inner.max_tokens = std::min(most.max_tokens, most.max_routed);
        s.counts = memory.take<idx>(1, most.n_sequences);
        s.recent = memory.take<idx>(most.n_sequences, 2 * most.max_rollback);
        if (!memory.dry()) fill(s.counts, 0);
        s.block = block_.bind_state(memory, inner);
        return s;
    }
    // Appends the batch's tokens. Throws capacity_error, before anything is written, where more tokens than
    // max_routed are routed; layers in front of this one in a stack are then to be truncated.
    void extend(const batch& b, in<T> x, tensor_view<T> y, state_type& state, arena& workspace,
                executor_ref ex = {}) const {
        extend_by(config_.router.extend_by, b, x, y, state, workspace, ex);
    }
    void prefill(const batch& b, in<T> x, tensor_view<T> y, state_type& state, arena& workspace,
                 executor_ref ex = {}) const {
        extend(b, x, y, state, workspace, ex);
    }
    void decode(const batch& b, in<T> x, tensor_view<T> y, state_type& state, arena& workspace,
                executor_ref ex = {}) const {
        extend(b, x, y, state, workspace, ex);
    }
    // The prompt by top_k over the tokens of this call: each looks at later ones, and the result depends on
    // how the prompt is cut. Decoding goes on by extend_by.
    void prefill_not_causal(const batch& b, in<T> x, tensor_view<T> y, state_type& state, arena& workspace,
                            executor_ref ex = {}) const {
        extend_by(depth_rule::top_k, b, x, y, state, workspace, ex);
    }

    sizes bytes(const limits& most) const { return layer_bytes(*this, most); }
    // With `capacity` of the tokens routed.
    double flops(idx n_tokens, idx past = 0) const {
        const auto& c = config_.router;
        return 2.0 * static_cast<double>(n_tokens) * static_cast<double>(params_.router.w.size()) +
               block_.flops(c.routed_of(n_tokens), c.routed_of(past));
    }

private:
    struct routed {                     // what a call did with its tokens
        T* logits = nullptr;            // n_tokens
        std::int32_t* tokens = nullptr; // n_tokens, of which the first are filled: those routed
        token_selection some{};
        tensor_view<T> change{}; // some.to.rows() x d_model
    };
    routed route(depth_rule rule, bool ahead, const batch& b, in<T> x, const depth_history& past, arena& keep,
                 arena& workspace, executor_ref ex) const {
        routed r;
        r.logits = keep.take<T>(b.n_tokens);
        r.tokens = keep.take<std::int32_t>(b.n_tokens);
        idx n = 0;
        {
            const arena::scope scope(workspace);
            const in<T> xs = router_.originals(b, x, workspace, ex);
            router_.logits(xs, r.logits, ex);
            n = router_.choose(rule, ahead, b, xs, r.logits, past, r.tokens, workspace, ex);
        }
        r.some = select_tokens(b, r.tokens, n, keep);
        r.change = keep.take<T>(r.some.to.rows(), d_in());
        return r;
    }
    // What route() leaves of a batch that only counts.
    routed counted(const batch& b) const {
        arena none;
        const depth_rule rule = config_.router.forward_by;
        const bool ahead = rule == depth_rule::top_k || rule == depth_rule::random;
        routed r;
        r.some = select_tokens(b, nullptr, router_.most_routed(ahead, b, {}), none);
        r.change = {nullptr, r.some.to.rows(), d_in()};
        return r;
    }
    // Takes from the tape what route() took: as much as the same calls take from an arena that counts.
    void pop(const batch& b, const routed& r, arena& tape) const {
        arena taken;
        (void)taken.take<T>(b.n_tokens), (void)taken.take<std::int32_t>(b.n_tokens);
        (void)select_tokens(b, nullptr, r.some.to.n_tokens, taken);
        (void)taken.take<T>(r.some.to.rows(), d_in());
        tape.release(tape.used() - taken.used());
    }
    tensor_view<T> gather_routed(const routed& r, in<T> x, arena& workspace, executor_ref ex) const {
        const auto rows = workspace.take<T>(r.some.to.rows(), d_in());
        gather<arch, T>(x, r.some.all_rows(), rows, ex);
        return rows;
    }
    void combine(const routed& r, in<T> x, tensor_view<T> y, executor_ref ex) const {
        copy<T>(x, y, ex);
        ex(r.some.to.n_tokens, [&](idx begin, idx end, idx) {
            for (idx i = begin; i < end; ++i)
                for (idx j = r.some.first(i); j < r.some.first(i + 1); ++j)
                    simd::invoke(arch{}, kernels::add_scaled{}, static_cast<const T*>(r.change.row(j)),
                                 router_.gate(r.logits[r.some.tokens[i]]), y.row(r.some.rows[j]), d_in());
        });
    }
    // Gradients of the router, and of x through it: of routed tokens, with losses of all.
    void router_backward(const batch& b, const routed& r, in<T> x, in<T> gathered, in<T> dlogits,
                         tensor_view<T> dx, const depth_router_params<T>& grad, arena& workspace,
                         executor_ref ex) const {
        const arena::scope scope(workspace);
        auto through = [&](in<T> xs, in<T> dr, auto row_of) {
            matmul_dw<arch, T>(dr, xs, grad.w, workspace, ex);
            ex(xs.rows(), [&](idx begin, idx end, idx) {
                for (idx i = begin; i < end; ++i)
                    simd::invoke(arch{}, kernels::add_scaled{},
                                 static_cast<const T*>(params_.router.w.data()), dr(i, 0), dx.row(row_of(i)),
                                 d_in());
            });
        };
        if (!router_.has_losses()) {
            const in<T> xs = router_.originals(r.some.to, gathered, workspace, ex);
            return through(xs, dlogits, [&](idx i) { return r.some.rows[r.some.first(i)]; });
        }
        const auto all = workspace.take<T>(b.n_tokens, 1);
        if (!ex.dry()) fill(all, T(0));
        for (idx i = 0; i < dlogits.rows() && !ex.dry(); ++i) all(r.some.tokens[i], 0) = dlogits(i, 0);
        const in<T> xs = router_.originals(b, x, workspace, ex);
        router_.losses_backward(xs, r.logits, r.tokens, r.some.to.n_tokens, all.data(), grad, workspace, ex);
        const auto rows = router_.original_rows(b, workspace, ex);
        through(xs, all, [&](idx i) { return rows[static_cast<std::size_t>(i)]; });
    }

    void check_call(const batch& b, in<T> x, in<T> y) const {
        check_batch(b, "mixture_of_depths");
        require_shape(x, b.rows(), d_in(), "mixture_of_depths", "x");
        require_shape(y, b.rows(), d_in(), "mixture_of_depths", "y");
        SLUICE_ASSERT(apart(y, x));
        if (b.rows() > std::numeric_limits<std::int32_t>::max())
            SLUICE_THROW(input_error("mixture_of_depths: " + std::to_string(b.rows()) +
                                     " rows in a call, there may be 2^31 - 1"));
    }
    void extend_by(depth_rule rule, const batch& given, in<T> x, tensor_view<T> y, state_type& state,
                   arena& workspace, executor_ref ex) const {
        check_call(given, x, y);
        batch b = given;
        b.counted_sequences = state.lengths.n_sequences(); // as many as a batch can name
        depth_history past;
        if (const idx most = state.lengths.most.max_routed; most > 0) past.most = most;
        if (!ex.dry()) {
            state.check_room(b);
            past.tokens = state.lengths.length.data();
            past.routed = state.counts.data();
        }
        const arena::scope scope(workspace);
        const routed r = route(rule, rule == depth_rule::top_k, b, x, past, workspace, workspace, ex);
        if (r.some.to.n_tokens > 0) {
            const auto gathered = gather_routed(r, x, workspace, ex);
            block_.extend_change(r.some.to, gathered, r.change, state.block, workspace, ex);
        }
        if (ex.dry()) return;
        count(b, r, state);
        combine(r, x, y, ex);
    }
    static void count(const batch& b, const routed& r, state_type& state) {
        const idx ring = state.recent.cols();
        for (idx s = 0; s < b.n_sequences(); ++s) {
            const idx slot = b.slot(s), before = state.lengths.past(b, s) - b.first_token(s);
            idx& n = state.counts(0, slot);
            for (idx i = r.some.to.first_token(s), end = i + r.some.to.tokens(s); i < end; ++i, ++n)
                if (ring > 0) state.recent(slot, n % ring) = before + r.some.tokens[i];
        }
        state.lengths.append(b);
    }

    config_type config_;
    params_type params_;
    depth_router<T, V, arch> router_;
    Block block_;
};

} // namespace SLUICE_ISA
} // namespace sluice
