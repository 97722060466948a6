// Soft mixture of experts (Puigcerver et al., "From sparse to soft mixtures of experts", 2024, section 2.1):
// each slot of an expert takes a mean of a sequence's tokens, each token a mean of the slots' outputs.
//   L = x/|x| (scale phi/|phi|)^T,  D = softmax of L's columns,  C = softmax of its rows,  y = C F(D^T x)
// |v| = sqrt(sum v^2 + 1e-6). Nothing is dropped, nothing is chosen. It is not causal: a slot has seen every
// token of its sequence, so one more token changes the outputs of all. There is no state to append to, and
// soft_moe is no streaming_layer: it encodes sequences that are there as a whole.
#pragma once

#include "../ops/norm.hpp"
#include "../ops/softmax.hpp"
#include "feed_forward.hpp"

namespace sluice {

struct soft_moe_config {
    idx d_model = 0;
    idx n_experts = 0;
    idx slots = 1;                // of each expert, for each sequence
    feed_forward_config expert{}; // d_model may be left out

    feed_forward_config expert_config() const {
        feed_forward_config c = expert;
        c.d_model = d_model;
        return c;
    }
    idx n_slots() const { return size_product(n_experts, slots); }
};

template <class W>
struct soft_moe_params {
    using V = vector_type<W>;
    tensor_view<V> phi;                        // n_experts * slots x d_model, an expert's slots side by side
    tensor_view<V> scale;                      // 1 x 1
    std::span<feed_forward_params<W>> experts; // the views themselves live in the arena they were bound from

    static soft_moe_params bind(arena& a, const soft_moe_config& c) {
        require(c.n_experts >= 1, "soft_moe", "there must be an expert");
        soft_moe_params p;
        p.phi = a.take<V>(c.n_slots(), c.d_model);
        p.scale = a.take<V>(1, 1);
        auto* at = a.take_views<feed_forward_params<W>>(c.n_experts);
        if (at == nullptr)
            a.count(c.n_experts, [&] { (void)feed_forward_params<W>::bind(a, c.expert_config()); });
        for (idx e = 0; at != nullptr && e < c.n_experts; ++e)
            at[e] = feed_forward_params<W>::bind(a, c.expert_config());
        p.experts = {at, at == nullptr ? 0 : static_cast<std::size_t>(c.n_experts)};
        return p;
    }
    template <class F, class First, class... Sets>
    static void each(F& f, const param_name& at, First& first, Sets&... sets) {
        f(param_name(at, "phi"), role::matrix, first.phi, sets.phi...);
        f(param_name(at, "scale"), role::vector, first.scale, sets.scale...);
        const param_name experts(at, "experts");
        for (std::size_t e = 0; e < first.experts.size(); ++e)
            feed_forward_params<W>::each(f, param_name(experts, static_cast<idx>(e)), first.experts[e],
                                         sets.experts[e]...);
    }
};

// phi normal with deviation 1 / sqrt(d_model) and scale one, as the authors' program has them
// (google-research/vmoe, projects/soft_moe/router.py); experts as feed_forward.
template <class T>
void initialise(const soft_moe_params<T>& p, const soft_moe_config& c, const random_source& numbers) {
    fill_normal(p.phi, 1 / std::sqrt(static_cast<double>(c.d_model)), numbers.split(0));
    fill(p.scale, T(1));
    for (std::size_t e = 0; e < p.experts.size(); ++e)
        initialise(p.experts[e], c.expert_config(), numbers.split(1 + e));
}

inline namespace SLUICE_ISA {

template <class T, class W = T, class Arch = simd::native>
class soft_moe {
public:
    using scalar = T;
    using arch = Arch;
    static constexpr bool trainable = std::is_same_v<std::remove_const_t<W>, T>; // weights stored as T
    using config_type = soft_moe_config;
    using params_type = soft_moe_params<W>;
    using grad_type = soft_moe_params<T>;

    soft_moe(const soft_moe_config& config, const params_type& params) : config_(config), params_(params) {
        require_positive(config.d_model, "soft_moe", "d_model");
        require_positive(config.n_experts, "soft_moe", "n_experts");
        require_positive(config.slots, "soft_moe", "slots");
        require(config.expert.d_model == 0 || config.expert.d_model == config.d_model, "soft_moe",
                "expert.d_model must be d_model, or left out");
        require_shape(params.phi, config.n_slots(), config.d_model, "soft_moe", "phi");
        require_shape(params.scale, 1, 1, "soft_moe", "scale");
        if (static_cast<idx>(params.experts.size()) != config.n_experts)
            SLUICE_THROW(config_error("soft_moe: params hold " + std::to_string(params.experts.size()) +
                                      " experts, the config says " + std::to_string(config.n_experts)));
        (void)experts(); // checks their shapes
    }

    const soft_moe_config& config() const { return config_; }
    const params_type& params() const { return params_; }
    idx d_in() const { return config_.d_model; }
    idx d_out() const { return config_.d_model; }

    // All rows of a sequence meet, hidden copies too; sequences do not.
    void forward(const batch& b, in<T> x, tensor_view<T> y, arena* tape, arena& workspace,
                 executor_ref ex = {}) const {
        check_batch(b, "soft_moe");
        require_shape(x, b.rows(), d_in(), "soft_moe", "x");
        require_shape(y, b.rows(), d_in(), "soft_moe", "y");
        SLUICE_ASSERT(apart(y, x));
        const division most = worst(b.rows(), b.n_sequences());
        auto dry = [&](executor_ref nobody) { forward_of(most, x, y, tape, workspace, nobody); };
        tape == nullptr ? rehearse(ex, dry) : rehearse(ex, tape, dry);
        forward_of(ex.dry() ? most : divided(b, most), x, y, tape, workspace, ex);
    }

    // dx may be dy.
    void backward(const batch& b, in<T> x, in<T> dy, tensor_view<T> dx, arena& tape, const grad_type& grad,
                  arena& workspace, executor_ref ex = {}) const {
        check_batch(b, "soft_moe");
        check_backward<T>(b, x, dy, dx, d_in(), d_in(), "soft_moe");
        const division most = worst(b.rows(), b.n_sequences());
        rehearse(ex, &tape,
                 [&](executor_ref nobody) { backward_of(most, x, dy, dx, tape, grad, workspace, nobody); });
        backward_of(ex.dry() ? most : divided(b, most), x, dy, dx, tape, grad, workspace, ex);
    }

    // What forward mixes with, both (rows, n_slots): column s of `dispatch` holds the share of each token of
    // a sequence in slot s (its sum over the sequence is 1), row t of `combine` that of each slot in token t.
    void mixing_weights(const batch& b, in<T> x, tensor_view<T> dispatch, tensor_view<T> combine,
                        arena& workspace, executor_ref ex = {}) const {
        check_batch(b, "soft_moe");
        require_shape(x, b.rows(), d_in(), "soft_moe", "x");
        require_shape(dispatch, b.rows(), config_.n_slots(), "soft_moe", "dispatch");
        require_shape(combine, b.rows(), config_.n_slots(), "soft_moe", "combine");
        SLUICE_ASSERT(apart(dispatch, x, combine) && apart(combine, x));
        rehearse(ex, [&](executor_ref nobody) { logits_of(x, dispatch, workspace, nobody); });
        logits_of(x, dispatch, workspace, ex);
        softmax<Arch, T>(dispatch, combine, ex);
        dispatch_of(divided(b, worst(b.rows(), b.n_sequences())), dispatch, dispatch, ex);
    }

    // For calls of at most most.n_sequences sequences: each has slots of its own. No state.
    sizes bytes(const limits& most) const {
        check_limits(most);
        const idx n = size_product(most.max_rows, most.copies);
        const division of = worst(n, most.n_sequences);
        const tensor_view<T> x(nullptr, n, d_in());
        dry_run counting{most.workers};
        const executor_ref ex(counting);
        arena workspace, tape, grad;
        forward_of(of, x, x, nullptr, workspace, ex);
        if constexpr (trainable) {
            forward_of(of, x, x, &tape, workspace, ex);
            backward_of(of, x, x, x, tape, grad_type::bind(grad, config_), workspace, ex);
        }
        return {.workspace = workspace.bytes(), .tape = tape.bytes()};
    }
    // Of one sequence.
    double flops(idx n_tokens, idx = 0) const {
        if (n_tokens == 0) return 0;
        const idx n = config_.n_slots();
        const double product = 2.0 * static_cast<double>(n) * static_cast<double>(d_in());
        return 3 * product * static_cast<double>(n_tokens) +
               feed_forward<T, W, Arch>(config_.expert_config(), params_.experts[0]).flops(n);
    }

private:
    using grouped = grouped_feed_forward<T, W, Arch>;

    // What becomes of a batch: each of its `used` sequences that have rows gets slots; memory is taken for
    // `most`, which does not depend on where the rows are.
    struct division {
        const batch* of; // null in a dry run: one sequence has all rows, since no other takes more workspace
        idx rows, most, used;
    };
    division worst(idx rows, idx n_sequences) const {
        const idx most = std::min(n_sequences, rows);
        require(size_product(most, config_.n_slots()) <= std::numeric_limits<std::int32_t>::max(), "soft_moe",
                "more slots in a call than 32 bits count");
        return {nullptr, rows, most, most};
    }
    static division divided(const batch& b, const division& most) {
        idx used = 0;
        for (idx s = 0; s < b.n_sequences(); ++s) used += b.end(s) > b.begin(s);
        return {&b, most.rows, most.most, used};
    }
    // f(number of the sequence among those used, its first row, its rows)
    template <class F>
    static void for_each_sequence(const division& d, const F& f) {
        if (d.of == nullptr) return d.rows > 0 ? f(0, 0, d.rows) : void();
        for (idx s = 0, at = 0; s < d.of->n_sequences(); ++s) {
            const idx first = d.of->begin(s), n = d.of->end(s) - first;
            if (n > 0) f(at++, first, n);
        }
    }

    // Rows of slots, for `most` sequences, of which those in use are returned.
    tensor_view<T> used(const division& d, const tensor_view<T>& slots) const {
        return slots.row_block(0, d.used * config_.n_slots());
    }
    tensor_view<T> take_slots(const division& d, arena& from) const {
        return used(d, from.take<T>(d.most * config_.n_slots(), d_in()));
    }
    // One sequence's of those that lie sequence after sequence.
    template <class V>
    V slots_of(const V& slots, idx sequence) const {
        return slots.row_block(sequence * config_.n_slots(), config_.n_slots());
    }
    // Experts want their slots of all sequences side by side; null in a dry run.
    const std::int32_t* offsets_of(const division& d, arena& workspace) const {
        auto* const at = workspace.take<std::int32_t>(config_.n_experts + 1);
        if (d.of == nullptr || at == nullptr) return nullptr;
        for (idx e = 0; e <= config_.n_experts; ++e)
            at[e] = static_cast<std::int32_t>(e * d.used * config_.slots);
        return at;
    }
    // From sequence after sequence to expert after expert, or back.
    void regroup(const division& d, in<T> from, tensor_view<T> to, bool by_expert, executor_ref ex) const {
        const idx n_experts = config_.n_experts, slots = config_.slots;
        ex(d.used * n_experts, [&](idx begin, idx end, idx) {
            for (idx i = begin; i < end; ++i) {
                const idx sequence = i / n_experts, expert = i % n_experts;
                const idx other = (expert * d.used + sequence) * slots;
                for (idx s = 0; s < slots; ++s)
                    std::copy_n(from.row((by_expert ? i * slots : other) + s), d_in(),
                                to.row((by_expert ? other : i * slots) + s));
            }
        });
    }
    static void clear(const tensor_view<T>& t, executor_ref ex) {
        ex(t.rows(), [&](idx begin, idx end, idx) { fill(t.row_block(begin, end - begin), T(0)); });
    }
    // y = w^T x
    static void transposed_product(in<T> w, in<T> x, tensor_view<T> y, arena& workspace, executor_ref ex) {
        clear(y, ex);
        matmul_dw<Arch, T>(w, x, y, workspace, ex);
    }

    void forward_of(const division& d, in<T> x, tensor_view<T> y, arena* tape, arena& workspace,
                    executor_ref ex) const {
        const arena::scope scope(workspace);
        arena& keep = tape == nullptr ? workspace : *tape;
        const auto logits = keep.take<T>(d.rows, config_.n_slots());
        const auto in_slots = take_slots(d, keep), out_slots = take_slots(d, keep);
        const auto inner = experts().take(keep, d.most * config_.n_slots(), out_slots.rows());
        logits_of(x, logits, workspace, ex);
        const auto probs = workspace.take<T>(d.rows, config_.n_slots());
        const auto* const offsets = offsets_of(d, workspace);
        // of one sequence both orders are the same
        const bool several = d.most > 1;
        const auto between = several ? take_slots(d, workspace) : tensor_view<T>();
        dispatch_of(d, logits, probs, ex);
        for_each_sequence(d, [&](idx i, idx first, idx n) {
            transposed_product(probs.row_block(first, n), x.row_block(first, n),
                               slots_of(several ? between : in_slots, i), workspace, ex);
        });
        if (several) regroup(d, between, in_slots, true, ex);
        experts().forward(offsets, in_slots, several ? between : out_slots, inner, tape != nullptr, workspace,
                          ex);
        if (several) regroup(d, between, out_slots, false, ex);
        softmax<Arch, T>(logits, probs, ex);
        for_each_sequence(d, [&](idx i, idx first, idx n) {
            matmul_dx<Arch, T>(probs.row_block(first, n), slots_of(out_slots, i), y.row_block(first, n),
                               false, workspace, ex);
        });
    }

    // The tape keeps logits, what experts read and wrote, and their values before the activation; both
    // softmaxes are computed again.
    void backward_of(const division& d, in<T> x, in<T> dy, tensor_view<T> dx, arena& tape,
                     const grad_type& grad, arena& workspace, executor_ref ex) const {
        const arena::scope scope(workspace);
        const idx n_slots = config_.n_slots(), most = d.most * n_slots;
        const auto inner = experts().pop(tape, most);
        const auto out_slots = used(d, tape.pop<T>(most, d_in())),
                   in_slots = used(d, tape.pop<T>(most, d_in()));
        const auto logits = tape.pop<T>(d.rows, n_slots);
        const auto dlogits = workspace.take<T>(d.rows, n_slots), probs = workspace.take<T>(d.rows, n_slots);
        const auto* const offsets = offsets_of(d, workspace);
        const bool several = d.most > 1;
        const auto dslots = take_slots(d, workspace), by_expert = several ? take_slots(d, workspace) : dslots;
        softmax<Arch, T>(logits, probs, ex);
        for_each_sequence(d, [&](idx i, idx first, idx n) {
            const auto p = probs.row_block(first, n);
            const auto dys = dy.row_block(first, n);
            matmul<Arch, T>(dys, slots_of(out_slots, i), dlogits.row_block(first, n), {}, workspace, ex);
            transposed_product(p, dys, slots_of(dslots, i), workspace, ex);
        });
        softmax_backward<Arch, T>(probs, dlogits, dlogits, ex);
        if (several) regroup(d, dslots, by_expert, true, ex);
        experts().backward(offsets, in_slots, by_expert, by_expert, inner, grad.experts, workspace, ex);
        if (several) regroup(d, by_expert, dslots, false, ex);
        dispatch_of(d, logits, logits, ex);
        for_each_sequence(d, [&](idx i, idx first, idx n) {
            const auto p = logits.row_block(first, n), dp = probs.row_block(first, n);
            matmul<Arch, T>(x.row_block(first, n), slots_of(dslots, i), dp, {}, workspace, ex);
            matmul_dx<Arch, T>(p, slots_of(dslots, i), dx.row_block(first, n), false, workspace, ex);
            softmax_columns_backward<Arch, T>(p, dp, dlogits.row_block(first, n), ex);
        });
        logits_backward(x, dlogits, dx, grad, workspace, ex);
    }

    // Rows x / |x| times `length` (1 x 1): an RMS norm of eps 1e-6 / d and scale length / sqrt(d).
    struct directions {
        tensor_view<T> scale, inverse, rows; // inverse as normalise leaves it
    };
    directions directions_of(in<T> x, in<T> length, arena& workspace, executor_ref ex) const {
        const directions r{workspace.take<T>(1, d_in()), workspace.take<T>(1, x.rows()),
                           workspace.take<T>(x.rows(), d_in())};
        const auto d = static_cast<T>(d_in());
        if (!ex.dry()) fill(r.scale, length(0, 0) / std::sqrt(d));
        normalise<Arch, T>(x, r.scale, {}, r.rows, r.inverse, {}, T(1e-6) / d, ex);
        return r;
    }
    static constexpr T one = 1;

    void logits_of(in<T> x, tensor_view<T> logits, arena& workspace, executor_ref ex) const {
        const arena::scope scope(workspace);
        const auto tokens = directions_of(x, {&one, 1, 1}, workspace, ex),
                   slots = directions_of(params_.phi, params_.scale, workspace, ex);
        matmul<Arch, T>(tokens.rows, slots.rows, logits, {}, workspace, ex);
    }
    // dx is added to.
    void logits_backward(in<T> x, in<T> dlogits, tensor_view<T> dx, const grad_type& grad, arena& workspace,
                         executor_ref ex) const {
        const arena::scope scope(workspace);
        const auto tokens = directions_of(x, {&one, 1, 1}, workspace, ex),
                   slots = directions_of(params_.phi, params_.scale, workspace, ex);
        const auto dslots = workspace.take<T>(config_.n_slots(), d_in()),
                   dscale = workspace.take<T>(1, d_in());
        transposed_product(dlogits, tokens.rows, dslots, workspace, ex);
        matmul_dx<Arch, T>(dlogits, slots.rows, tokens.rows, false, workspace, ex);
        auto through_norm = [&](in<T> raw, const directions& of, tensor_view<T> d, tensor_view<T> sum) {
            clear(dscale, ex);
            normalise_backward<Arch, T>(raw, of.scale, of.inverse, {}, d, d, dscale, {}, ex);
            add<Arch, T>(sum, d, sum, ex);
        };
        through_norm(x, tokens, tokens.rows, dx);
        through_norm(params_.phi, slots, dslots, grad.phi);
        if (ex.dry()) return;
        T sum = 0;
        for (idx j = 0; j < d_in(); ++j) sum += dscale(0, j);
        grad.scale(0, 0) += sum / std::sqrt(static_cast<T>(d_in()));
    }
    // probs may be logits.
    static void dispatch_of(const division& d, in<T> logits, tensor_view<T> probs, executor_ref ex) {
        for_each_sequence(d, [&](idx, idx first, idx n) {
            softmax_columns<Arch, T>(logits.row_block(first, n), probs.row_block(first, n), ex);
        });
    }

    grouped experts() const { return grouped(config_.expert_config(), params_.experts); }

    soft_moe_config config_;
    params_type params_;
};

} // namespace SLUICE_ISA
} // namespace sluice
