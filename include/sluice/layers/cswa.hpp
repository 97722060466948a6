// Attention of repeated tokens (PHD with chunk-wise sliding-window attention; Wu et al., "Efficient
// pretraining length scaling", 2025, section 2): originals see originals, as if there was no repetition;
// hidden copies see originals too, the hidden copies of the last `window` positions of their chunk, and their
// position's copies up to themselves. window 0 is PHD, a chunk without end PHD-SWA, repeat 1 attention.
//
// State: the keys of originals, and a ring of the few hidden keys that can still be seen.
#pragma once

#include "../ops/copy_attention.hpp"
#include "../ops/gather.hpp"
#include "attention.hpp"

namespace sluice {

// Rotary positions of copies: that of their token, or repeat * position + copy.
enum class copy_positions { shared, interleaved };

struct cswa_config {
    attention_config attention{}; // its window is that of originals
    idx repeat = 1;               // K: rows of a token
    idx window = 0;               // W: earlier positions whose hidden copies are seen
    idx chunk = no_chunks;        // C: positions
    window_unit unit = window_unit::positions;
    copy_positions positions = copy_positions::shared;

    copy_rules rules() const { return {repeat, window, chunk, unit, attention.window}; }
};

// The weights of attention.
template <class W>
struct cswa_params : attention_params<W> {
    static cswa_params bind(arena& a, const cswa_config& c) {
        return {attention_params<W>::bind(a, c.attention)};
    }
};
template <class T>
void initialise(const cswa_params<T>& p, const cswa_config& c, const random_source& numbers) {
    initialise(static_cast<const attention_params<T>&>(p), c.attention, numbers);
}

inline namespace SLUICE_ISA {

template <class T, class W = T, class Arch = simd::native>
class cswa {
public:
    using scalar = T;
    using arch = Arch;
    static constexpr bool trainable = std::is_same_v<std::remove_const_t<W>, T>; // weights stored as T
    using config_type = cswa_config;
    using params_type = cswa_params<W>;
    using grad_type = cswa_params<T>;
    using state_type = copy_state<T>;

    cswa(const cswa_config& config, const params_type& params)
        : config_(config), params_(params), heads_(config.attention, params) {
        check_rules(config.rules(), "cswa");
    }

    const cswa_config& config() const { return config_; }
    const params_type& params() const { return params_; }
    idx d_in() const { return config_.attention.d_model; }
    idx d_out() const { return d_in(); }
    copy_rules rules() const { return config_.rules(); }

    // Every sequence of the batch from its first token; b.copies is `repeat`, and y and x (rows, d_model)
    // hold all copies of a token side by side.
    void forward(const batch& b, in<T> x, tensor_view<T> y, arena* tape, arena& workspace,
                 executor_ref ex = {}) const {
        run(b, nullptr, x, y, nullptr, tape, workspace, ex);
    }
    void backward(const batch& b, in<T> x, in<T> dy, tensor_view<T> dx, arena& tape, const grad_type& grad,
                  arena& workspace, executor_ref ex = {}) const {
        run_backward(b, nullptr, x, dy, dx, tape, grad, workspace, ex);
    }
    // The same where only some rows of y are wanted: y (wanted rows, d_model), dy as y.
    void forward_rows(const batch& b, const row_selection& wanted, in<T> x, tensor_view<T> y, arena* tape,
                      arena& workspace, executor_ref ex = {}) const {
        run(b, &wanted, x, y, nullptr, tape, workspace, ex);
    }
    void backward_rows(const batch& b, const row_selection& wanted, in<T> x, in<T> dy, tensor_view<T> dx,
                       arena& tape, const grad_type& grad, arena& workspace, executor_ref ex = {}) const {
        run_backward(b, &wanted, x, dy, dx, tape, grad, workspace, ex);
    }

    state_type bind_state(arena& memory, const limits& most) const {
        const auto& c = config_.attention;
        return state_type::bind(memory, c.n_kv_heads, c.head_dim, config_.rules(), most, c.cache);
    }
    // Appends the batch's tokens to their sequences. Nothing is written when the state cannot hold them.
    void extend(const batch& b, in<T> x, tensor_view<T> y, state_type& state, arena& workspace,
                executor_ref ex = {}) const {
        run(b, nullptr, x, y, &state, nullptr, workspace, ex);
    }
    void extend_rows(const batch& b, const row_selection& wanted, in<T> x, tensor_view<T> y,
                     state_type& state, arena& workspace, executor_ref ex = {}) const {
        run(b, &wanted, x, y, &state, nullptr, workspace, ex);
    }
    void prefill(const batch& b, in<T> x, tensor_view<T> y, state_type& state, arena& workspace,
                 executor_ref ex = {}) const {
        extend(b, x, y, state, workspace, ex);
    }
    void decode(const batch& b, in<T> x, tensor_view<T> y, state_type& state, arena& workspace,
                executor_ref ex = {}) const {
        extend(b, x, y, state, workspace, ex);
    }

    sizes bytes(limits most) const {
        most.copies = config_.repeat;
        return layer_bytes(*this, most);
    }
    // Products and visible pairs of n tokens, with all their copies, after `past` others; of the last copies
    // alone with the keys of all.
    double flops(idx n_tokens, idx past = 0) const { return flops_from(0, n_tokens, past); }
    double flops_last(idx n_tokens, idx past = 0) const {
        return flops_from(rules().hidden(), n_tokens, past);
    }

private:
    using heads = attention_heads<T, W, Arch>;
    // What backward needs; queries, y and lse of the wanted rows only.
    struct tensors {
        typename heads::heads q, k;
        tensor_view<T> v, y, lse;
    };
    // Keys and values by kind: originals (n_tokens), hidden copies (all other rows).
    struct split_rows {
        tensor_view<T> k, v, hidden_k, hidden_v;
    };

    double flops_from(idx first_copy, idx n_tokens, idx past) const {
        double pairs = 0;
        for (idx i = past; i < past + n_tokens; ++i)
            for (idx copy = first_copy; copy < config_.repeat; ++copy) {
                const key_range a = rules().original_keys(i), h = rules().hidden_keys(i, copy);
                pairs += static_cast<double>(a.hi - a.lo + (copy == 0 ? 0 : h.hi - h.lo));
            }
        const auto& p = params_;
        const idx products = (p.w_q.size() + p.w_o.size()) * (config_.repeat - first_copy) +
                             (p.w_k.size() + p.w_v.size()) * config_.repeat;
        return 2.0 * static_cast<double>(n_tokens) * static_cast<double>(products) +
               4.0 * pairs * static_cast<double>(p.w_q.rows());
    }
    tensors take(idx rows, idx wanted, arena& keep) const {
        const auto& c = config_.attention;
        tensors t;
        t.q = heads_.take_queries(keep, wanted);
        t.k = heads_.take_keys(keep, rows);
        t.v = keep.take<T>(rows, params_.w_v.rows());
        t.y = keep.take<T>(wanted, params_.w_q.rows());
        t.lse = keep.take<T>(wanted, c.n_heads);
        return t;
    }
    tensors pop(idx rows, idx wanted, arena& tape) const {
        const auto& c = config_.attention;
        tensors t;
        t.lse = tape.pop<T>(wanted, c.n_heads);
        t.y = tape.pop<T>(wanted, params_.w_q.rows());
        t.v = tape.pop<T>(rows, params_.w_v.rows());
        t.k = heads_.pop_keys(tape, rows);
        t.q = heads_.pop_queries(tape, wanted);
        return t;
    }
    split_rows take_split(const batch& b, arena& workspace) const {
        const idx width = params_.w_v.rows();
        const idx hidden = b.rows() - b.n_tokens;
        split_rows s;
        s.k = workspace.take<T>(b.n_tokens, width);
        s.v = workspace.take<T>(b.n_tokens, width);
        s.hidden_k = workspace.take<T>(hidden, width);
        s.hidden_v = workspace.take<T>(hidden, width);
        return s;
    }
    // Calls f(row, whether it is an original, its number among those of its kind).
    template <class F>
    static void for_each_row(const batch& b, F&& f) {
        for (idx s = 0, original = 0, hidden = 0; s < b.n_sequences(); ++s) {
            const idx bare = b.bare(s), tokens = b.tokens(s);
            for (idx i = 0, row = b.begin(s); i < tokens; ++i) {
                f(row++, true, original++);
                for (idx copy = 1; copy < b.copies && i >= bare; ++copy) f(row++, false, hidden++);
            }
        }
    }
    static void split(const batch& b, in<T> x, tensor_view<T> originals, tensor_view<T> hidden) {
        for_each_row(b, [&](idx row, bool original, idx i) {
            std::copy_n(x.row(row), x.cols(), (original ? originals : hidden).row(i));
        });
    }
    static void merge(const batch& b, in<T> originals, in<T> hidden, tensor_view<T> x) {
        for_each_row(b, [&](idx row, bool original, idx i) {
            std::copy_n((original ? originals : hidden).row(i), x.cols(), x.row(row));
        });
    }

    static bool copies_are_equal(const batch& b, in<T> x) {
        bool equal = true;
        for (idx s = 0; s < b.n_sequences(); ++s)
            for (idx row = b.begin(s); row < b.end(s); ++row)
                for (idx j = 0; j < x.cols() && b.copy(s, row) > 0; ++j) {
                    const T here = x(row, j), before = x(row - 1, j);
                    equal = equal && (here == before || (here != here && before != before));
                }
        return equal;
    }
    bool alike(const batch& b) const { return b.alike && config_.positions == copy_positions::shared; }

    // Rotary positions of all rows.
    std::span<const idx> positions(const batch& b, arena& workspace, bool dry) const {
        idx* to = workspace.take<idx>(b.rows());
        if (dry) return {};
        const bool apart = config_.positions == copy_positions::interleaved;
        for (idx s = 0; s < b.n_sequences(); ++s)
            for (idx row = b.begin(s); row < b.end(s); ++row) {
                const idx at = b.position(s, row);
                to[row] = apart ? config_.repeat * at + b.copy(s, row) : at;
            }
        return {to, static_cast<std::size_t>(b.rows())};
    }
    // What each row sees, after `past` tokens of its sequence.
    const copy_attention::row_keys* row_keys(const batch& b, std::span<const idx> past, arena& workspace,
                                             bool dry) const {
        const copy_rules rules = config_.rules();
        auto* to = workspace.take<copy_attention::row_keys>(b.rows());
        for (idx s = 0; s < b.n_sequences() && !dry; ++s)
            for (idx row = b.begin(s); row < b.end(s); ++row) {
                const idx at = b.token(s, row) + (past.empty() ? 0 : past[static_cast<std::size_t>(s)]);
                const idx copy = b.copy(s, row);
                to[row] = {{rules.original_keys(at), rules.hidden_keys(at, copy)}, copy == 0};
            }
        return to;
    }
    // The wanted ones of things that there is one of for every row.
    template <class V>
    static V* pick(const row_selection& wanted, const V* from, arena& workspace, bool dry) {
        const idx n = wanted.to.rows();
        V* to = workspace.take<V>(n);
        for (idx i = 0; i < n && !dry; ++i) to[i] = from[wanted.rows[static_cast<std::size_t>(i)]];
        return to;
    }
    // Angles for rows at these positions.
    rotary_table<T> rotary(idx rows, std::span<const idx> at, arena& workspace, executor_ref ex) const {
        return heads_.rotary({.n_tokens = rows, .positions = at}, workspace, ex);
    }

    void check_call(const batch& b, const row_selection* wanted, in<T> x, in<T> y) const {
        check_batch(b, "cswa");
        if (b.copies != config_.repeat)
            SLUICE_THROW(input_error("cswa: batch: copies is " + std::to_string(b.copies) + ", repeat is " +
                                     std::to_string(config_.repeat)));
        require_shape(x, b.rows(), d_in(), "cswa", "x");
        require_shape(y, wanted == nullptr ? b.rows() : wanted->to.rows(), d_in(), "cswa", "y");
    }

    void run(const batch& b, const row_selection* wanted, in<T> x, tensor_view<T> y, state_type* state,
             arena* tape, arena& workspace, executor_ref ex) const {
        check_call(b, wanted, x, y);
        const bool dry = ex.dry();
        SLUICE_ASSERT(dry || !b.alike || copies_are_equal(b, x));
        if (state == nullptr && !b.row_offsets.empty())
            SLUICE_THROW(input_error("cswa: batch: only a call with a state may leave out hidden copies"));
        if (state != nullptr) {
            const auto& c = config_.attention;
            state->check_shape(c.n_kv_heads, c.head_dim, config_.rules());
            if (!dry) state->check_room(b);
            rehearse(ex, [&](executor_ref none) { run(b, wanted, x, y, state, tape, workspace, none); });
        }
        const arena::scope scope(workspace);
        const batch& rows = wanted == nullptr ? b : wanted->to; // of the queries
        const tensors t = take(b.rows(), rows.rows(), tape == nullptr ? workspace : *tape);
        {
            const arena::scope inner(workspace);
            const auto at = positions(b, workspace, dry);
            const auto table = rotary(b.rows(), at, workspace, ex);
            heads_.keys(x, table, t.k, workspace, ex);
            heads_.values(x, t.v, workspace, ex);
            if (wanted == nullptr) {
                heads_.queries(x, table, t.q, workspace, ex);
            } else {
                const idx* mine = pick(*wanted, at.data(), workspace, dry);
                const auto some = workspace.take<T>(rows.rows(), d_in());
                gather<Arch>(x, wanted->rows, some, ex);
                const auto angles = rotary(
                    rows.rows(), {mine, dry ? 0 : static_cast<std::size_t>(rows.rows())}, workspace, ex);
                heads_.queries(some, angles, t.q, workspace, ex);
            }
        }
        const split_rows s = take_split(b, workspace);
        if (!dry) split(b, t.k.y, s.k, s.hidden_k);
        if (!dry) split(b, t.v, s.v, s.hidden_v);
        copy_sources<T> sources{{&b, s.k, s.v}, {&b, s.hidden_k, s.hidden_v, config_.repeat - 1}};
        std::span<idx> past;
        if (state != nullptr) {
            const auto slots = static_cast<std::size_t>(state->n_sequences());
            past = {workspace.take<idx>(state->n_sequences()), dry ? 0 : slots};
            auto* kept = workspace.take<attention_source<T>>(2 * state->n_sequences());
            if (dry)
                state->dry_append(b, workspace);
            else
                state->append(b, s.k, s.v, s.hidden_k, s.hidden_v, past, kept, workspace);
            sources.kept = kept;
        }
        const auto* seen = row_keys(b, past, workspace, dry);
        if (wanted != nullptr) seen = pick(*wanted, seen, workspace, dry);
        attend<Arch>(rows, heads_.shape(), t.q.y, sources, copy_attention{&rows, seen, alike(b)}, t.y,
                     state == nullptr ? t.lse : tensor_view<T>(), workspace, ex);
        matmul<Arch>(t.y, params_.w_o, y, {}, workspace, ex);
    }

    void run_backward(const batch& b, const row_selection* wanted, in<T> x, in<T> dy, tensor_view<T> dx,
                      arena& tape, const grad_type& grad, arena& workspace, executor_ref ex) const {
        check_call(b, wanted, x, dy);
        require_shape(dx, b.rows(), d_in(), "cswa", "dx");
        SLUICE_ASSERT(apart(dx, x));
        rehearse(ex, &tape,
                 [&](executor_ref none) { run_backward(b, wanted, x, dy, dx, tape, grad, workspace, none); });
        const bool dry = ex.dry();
        const arena::scope scope(workspace);
        const batch& rows = wanted == nullptr ? b : wanted->to;
        const tensors t = pop(b.rows(), rows.rows(), tape);
        const auto dheads = workspace.take<T>(rows.rows(), t.y.cols());
        const auto dq = workspace.take<T>(rows.rows(), t.y.cols());
        const auto dk = workspace.take<T>(b.rows(), t.v.cols()), dv = workspace.take<T>(b.rows(), t.v.cols());
        matmul_dw<Arch>(dy, t.y, grad.w_o, workspace, ex);
        matmul_dx<Arch>(dy, params_.w_o, dheads, false, workspace, ex);
        {
            const arena::scope inner(workspace);
            const split_rows s = take_split(b, workspace), d = take_split(b, workspace);
            if (!dry) split(b, t.k.y, s.k, s.hidden_k);
            if (!dry) split(b, t.v, s.v, s.hidden_v);
            const packed_keys_gradient<T> originals{{&b, s.k, s.v}, d.k, d.v},
                hidden{{&b, s.hidden_k, s.hidden_v, config_.repeat - 1}, d.hidden_k, d.hidden_v};
            const auto* seen = row_keys(b, {}, workspace, dry);
            if (wanted != nullptr) seen = pick(*wanted, seen, workspace, dry);
            attend_backward<Arch, T>(
                rows, heads_.shape(), t.q.y,
                [&](idx sequence, idx source) {
                    return (source == 0 ? originals : hidden)(sequence, source);
                },
                t.y, t.lse, dheads, copy_attention{&rows, seen}, dq, workspace, ex);
            if (!dry) merge(b, d.k, d.hidden_k, dk);
            if (!dry) merge(b, d.v, d.hidden_v, dv);
        }
        const auto at = positions(b, workspace, dry);
        const auto table = rotary(b.rows(), at, workspace, ex);
        heads_.keys_backward(x, table, t.k, dk, dx, false, grad, workspace, ex);
        heads_.values_backward(x, dv, dx, true, grad, workspace, ex);
        if (wanted == nullptr)
            return heads_.queries_backward(x, table, t.q, dq, dx, true, grad, workspace, ex);
        const idx* mine = pick(*wanted, at.data(), workspace, dry);
        const auto some = workspace.take<T>(rows.rows(), d_in()),
                   dsome = workspace.take<T>(rows.rows(), d_in());
        gather<Arch>(x, wanted->rows, some, ex);
        const auto angles =
            rotary(rows.rows(), {mine, dry ? 0 : static_cast<std::size_t>(rows.rows())}, workspace, ex);
        heads_.queries_backward(some, angles, t.q, dq, dsome, false, grad, workspace, ex);
        add_to_rows<Arch>(dsome, wanted->rows, dx, ex);
    }

    cswa_config config_;
    params_type params_;
    heads heads_;
};

} // namespace SLUICE_ISA
} // namespace sluice
