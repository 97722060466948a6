// Engram: memory looked up by the hash of the last few tokens, gated by the stream (Cheng et al.,
// "Conditional memory via scalable lookup: a new axis of sparsity for large language models", 2026).
//   e = rows of a table, one for each n-gram and head, side by side       ops/ngram_hash.hpp
//   k_1 .. k_M, v = W_kv e + b;  a_m = sigmoid(phi(<norm(h_m), norm(k_m)> / sqrt(d)));  u_m = a_m v
//   y_m = u_m + silu(conv(norm(u_m)))                                     eqs. 4 to 6
// y is what the layer adds: residual<engram<...>> is x + y. The rows to look up depend on token ids alone.
// Copies of a token all get what its original does.
#pragma once

#include "../core/random.hpp"
#include "../core/sequence_lengths.hpp"
#include "../ops/elementwise.hpp"
#include "../ops/matmul.hpp"
#include "../ops/memory_gate.hpp"
#include "../ops/ngram_hash.hpp"
#include "../ops/table.hpp"
#include "../ops/tokens.hpp"

namespace sluice {

// Over the gated values, after a norm of their own. Without taps there is none (DeepSeek-V4.1).
struct engram_convolution {
    idx n_taps = 4;   // tokens that one sees, itself included
    idx dilation = 0; // between them; 0: the longest n-gram (the paper)
    double eps = 1e-5;
};

struct engram_config {
    idx d_model = 0;  // of one residual branch
    idx branches = 1; // side by side in a row of x; each has a gate of its own, all have one value
    idx d_memory = 0; // of all heads together
    ngram_hash hash{};
    tensor_view<const std::int32_t> token_map{}; // 1 x vocabulary, or empty; see check_token_map
    gate_form gate = gate_form::signed_root;
    double eps = 1e-6; // of the norms under the gate
    engram_convolution convolution{};
    bool bias = false;   // of the keys and the value, as in the published demo
    idx max_touched = 0; // rows that a gradient of the table holds; 0: all of them

    idx d_row() const { return hash.heads() == 0 ? 0 : d_memory / hash.heads(); }
    idx d_stream() const { return size_product(branches, d_model); }
    idx d_kv() const { return size_product(branches + 1, d_model); }
    idx dilation() const { return convolution.dilation > 0 ? convolution.dilation : hash.n_gram; }
    // Tokens before one that its convolution sees.
    idx reach() const {
        return convolution.n_taps > 0 ? size_product(convolution.n_taps - 1, dilation()) : 0;
    }
};

// W is the storage of matrices, Table that of the memory (see ops/table.hpp).
template <class W, class Table = tensor_view<W>>
struct engram_params {
    Table table;                      // hash.rows() x d_row
    tensor_view<W> w_kv;              // (branches + 1) d_model x d_memory: the keys', then the value's
    tensor_view<vector_type<W>> b_kv; // 1 x (branches + 1) d_model, or empty
    tensor_view<vector_type<W>> key_scale, query_scale; // branches x d_model
    tensor_view<vector_type<W>> value_scale; // branches x d_model; before the convolution, or empty
    tensor_view<vector_type<W>> taps;        // n_taps x branches d_model, of the token itself first; or empty

    static engram_params bind(arena& a, const engram_config& c) {
        engram_params p;
        p.table = bind_table<Table>(a, c.hash.rows(), c.d_row(), c.max_touched);
        p.w_kv = a.take<W>(c.d_kv(), c.d_memory);
        if (c.bias) p.b_kv = a.take<vector_type<W>>(1, c.d_kv());
        p.key_scale = a.take<vector_type<W>>(c.branches, c.d_model);
        p.query_scale = a.take<vector_type<W>>(c.branches, c.d_model);
        if (c.convolution.n_taps == 0) return p;
        p.value_scale = a.take<vector_type<W>>(c.branches, c.d_model);
        p.taps = a.take<vector_type<W>>(c.convolution.n_taps, c.d_stream());
        return p;
    }
    template <class F, class First, class... Sets>
    static void each(F& f, const param_name& at, First& first, Sets&... sets) {
        each_table(f, at, first.table, sets.table...);
        f(param_name(at, "w_kv"), role::matrix, first.w_kv, sets.w_kv...);
        if (!first.b_kv.empty()) f(param_name(at, "b_kv"), role::vector, first.b_kv, sets.b_kv...);
        f(param_name(at, "key_scale"), role::vector, first.key_scale, sets.key_scale...);
        f(param_name(at, "query_scale"), role::vector, first.query_scale, sets.query_scale...);
        if (first.taps.empty()) return;
        f(param_name(at, "value_scale"), role::vector, first.value_scale, sets.value_scale...);
        f(param_name(at, "taps"), role::vector, first.taps, sets.taps...);
    }
};

// The table normal with deviation 0.02, W_kv with 1 / sqrt(fan-in), scales one; taps zero, so that y = u at
// the start (the paper, appendix A; it does not state the others).
template <class T>
void initialise(const engram_params<T>& p, const engram_config& c, const random_source& numbers) {
    fill_normal(p.table, 0.02, numbers.split(0));
    fill_normal(p.w_kv, 1 / std::sqrt(static_cast<double>(c.d_memory)), numbers.split(1));
    for (const auto& t : {p.key_scale, p.query_scale, p.value_scale}) fill(t, T(1));
    for (const auto& t : {p.b_kv, p.taps}) fill(t, T(0));
}

// The last ids and rows of each sequence: what the next token's n-grams and convolution see.
template <class T>
struct engram_state : sequence_lengths {
    tensor_view<std::int32_t> ids; // sequence x position modulo its columns; compressed
    tensor_view<T> rows;           // (sequence, position modulo ring) x branches d_model
    idx ring = 0;

    static engram_state bind(arena& a, const engram_config& c, const limits& most) {
        engram_state s{sequence_lengths::bind(a, most, "engram state"), {}, {}};
        s.ids = a.take<std::int32_t>(most.n_sequences, c.hash.n_gram - 1 + most.max_rollback);
        if (c.reach() == 0) return s;
        s.ring = c.reach() + most.max_rollback;
        s.rows = a.take<T>(size_product(most.n_sequences, s.ring), c.d_stream());
        return s;
    }
    T* row(idx slot, idx position) const { return rows.row(slot * ring + position % ring); }
    // The compressed id at a position, below 0 before the first.
    std::int32_t id(idx slot, idx position) const {
        return position < 0 ? -1 : ids(slot, position % ids.cols());
    }
    // x is empty where there is no convolution.
    void append(const batch& b, const std::int32_t* new_ids, in<T> x) {
        for (idx s = 0; s < b.n_sequences(); ++s) {
            const idx begin = b.begin(s), end = b.end(s), slot = b.slot(s), first = past(b, s) - begin;
            for (idx i = std::max(begin, end - ids.cols()); i < end; ++i)
                ids(slot, (first + i) % ids.cols()) = new_ids[i];
            for (idx i = std::max(begin, end - ring); i < end; ++i)
                std::copy_n(x.row(i), x.cols(), row(slot, first + i));
        }
        sequence_lengths::append(b);
    }
};

inline namespace SLUICE_ISA {

template <class T, class W = T, class Table = tensor_view<W>, class Arch = simd::native>
class engram {
public:
    using scalar = T;
    using arch = Arch;
    static constexpr bool trainable = std::is_same_v<std::remove_const_t<W>, T>; // weights stored as T
    using config_type = engram_config;
    using params_type = engram_params<W, Table>;
    using grad_type = engram_params<T, row_gradient<T>>;
    using state_type = engram_state<T>;

    engram(const config_type& config, const params_type& params) : config_(config), params_(params) {
        const auto& c = config_;
        require_positive(c.d_model, "engram", "d_model");
        require_positive(c.branches, "engram", "branches");
        require(c.hash.heads() > 0, "engram", "hash is empty; see make_ngram_hashes");
        require_positive(c.d_memory, "engram", "d_memory");
        if (c.d_memory % c.hash.heads() != 0)
            SLUICE_THROW(config_error("engram: d_memory is " + std::to_string(c.d_memory) + ", which the " +
                                      std::to_string(c.hash.heads()) + " heads do not divide"));
        require(c.eps >= 0 && c.convolution.eps >= 0, "engram", "eps must not be negative");
        require(c.max_touched >= 0, "engram", "max_touched must not be negative");
        require(c.convolution.n_taps >= 0 && c.convolution.n_taps <= most_taps &&
                    c.convolution.dilation >= 0 && c.convolution.dilation <= idx{1} << 20,
                "engram", "convolution must have 0 to 16 taps and a dilation of 0 to 2^20");
        check_token_map(c.token_map, c.hash, "engram");
        require_table(params.table, c.hash.rows(), c.d_row(), "engram");
        const bool some = c.convolution.n_taps > 0;
        require_shape(params.w_kv, c.d_kv(), c.d_memory, "engram", "w_kv");
        require_shape(params.b_kv, c.bias, c.bias ? c.d_kv() : 0, "engram", "b_kv");
        require_shape(params.key_scale, c.branches, c.d_model, "engram", "key_scale");
        require_shape(params.query_scale, c.branches, c.d_model, "engram", "query_scale");
        require_shape(params.value_scale, some ? c.branches : 0, some ? c.d_model : 0, "engram",
                      "value_scale");
        require_shape(params.taps, c.convolution.n_taps, some ? c.d_stream() : 0, "engram", "taps");
    }

    const config_type& config() const { return config_; }
    const params_type& params() const { return params_; }
    idx d_in() const { return config_.d_stream(); }
    idx d_out() const { return config_.d_stream(); }

    // plan (n_tokens x heads): the rows of the table that b.ids, from their sequences' start or behind what
    // `state` holds, will look up. It needs ids alone, so it may be made and prefetched long before x is
    // known.
    void hash(const batch& b, const state_type* state, tensor_view<std::int32_t> plan, arena& workspace,
              executor_ref ex = {}) const {
        check_tokens(b, state, ex);
        const arena::scope scope(workspace);
        const auto ids = workspace.take<std::int32_t>(1, b.n_tokens);
        find_rows(b, state, ids, plan, ex);
    }
    // Returns at once; rows of a file are read meanwhile.
    void prefetch(const tensor_view<const std::int32_t>& plan, executor_ref ex = {}) const {
        prefetch_rows(params_.table, {plan.data(), static_cast<std::size_t>(plan.size())}, ex);
    }

    // Every sequence from its first token. The tape keeps all but the convolution's result.
    void forward(const batch& b, in<T> x, tensor_view<T> y, arena* tape, arena& workspace,
                 executor_ref ex = {}) const {
        run(b, {}, x, y, nullptr, tape, workspace, ex);
    }
    // With rows that hash() found for the same batch.
    void forward_planned(const batch& b, const tensor_view<const std::int32_t>& plan, in<T> x,
                         tensor_view<T> y, arena* tape, arena& workspace, executor_ref ex = {}) const {
        require_plan(b, plan);
        run(b, plan, x, y, nullptr, tape, workspace, ex);
    }

    // open (n_tokens, branches): how far each token's gates open, 0 to 1, for sequences from their start.
    void gates(const batch& b, in<T> x, tensor_view<T> open, arena& workspace, executor_ref ex = {}) const {
        require_shape(x, b.rows(), d_in(), "engram", "x");
        require_shape(open, b.n_tokens, config_.branches, "engram", "open");
        check_tokens(b, nullptr, ex);
        const arena::scope scope(workspace);
        const in<T> originals = b.copies == 1 ? x : in<T>(originals_of<T>(b, x, workspace, ex));
        const kept k = look_up_all(tokens_of(b), {}, nullptr, nullptr, workspace, ex);
        open_memory_gate<Arch, T>(weights(workspace, ex), originals, k.gated, ex);
        if (!ex.dry()) copy<T>(k.gated.gate, open, ex);
    }

    // dx is overwritten, gradients are added to; the table's may be a row_gradient or a dense matrix.
    template <class TableGradient>
    void backward(const batch& b, in<T> x, in<T> dy, tensor_view<T> dx, arena& tape,
                  const engram_params<T, TableGradient>& grad, arena& workspace, executor_ref ex = {}) const {
        check_backward<T>(b, x, dy, dx, d_in(), d_out(), "engram");
        SLUICE_ASSERT(apart(dx, dy)); // read again
        rehearse(ex, &tape, [&](executor_ref dry) { backward(b, x, dy, dx, tape, grad, workspace, dry); });
        const arena::scope scope(workspace);
        if (b.copies > 1) {
            const auto d_tokens = workspace.take<T>(b.n_tokens, d_in());
            backward_tokens(tokens_of(b), originals_of<T>(b, x, workspace, ex),
                            sums_of_copies<T>(b, dy, workspace, ex), d_tokens, tape, grad, workspace, ex);
            rows_from_tokens<T>(b, d_tokens, dx, false, ex);
        } else {
            backward_tokens(b, x, dy, dx, tape, grad, workspace, ex);
        }
    }

    state_type bind_state(arena& memory, const limits& most) const {
        return state_type::bind(memory, config_, most);
    }
    // Appends the batch's tokens to their sequences, or throws before anything is written.
    void extend(const batch& b, in<T> x, tensor_view<T> y, state_type& state, arena& workspace,
                executor_ref ex = {}) const {
        run(b, {}, x, y, &state, nullptr, workspace, ex);
    }
    void extend_planned(const batch& b, const tensor_view<const std::int32_t>& plan, in<T> x,
                        tensor_view<T> y, state_type& state, arena& workspace, executor_ref ex = {}) const {
        require_plan(b, plan);
        run(b, plan, x, y, &state, nullptr, workspace, ex);
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
    // However many rows the table has.
    double flops(idx n_tokens, idx = 0) const {
        return 2.0 * static_cast<double>(n_tokens) *
               static_cast<double>(config_.d_kv() * config_.d_memory + params_.taps.size());
    }

private:
    struct kept {
        tensor_view<std::int32_t> plan;
        tensor_view<T> memory; // (token, head) x d_row
        gated_memory<T> gated;
    };
    kept take_kept(arena& a, idx n) const {
        const auto plan = a.take<std::int32_t>(n, config_.hash.heads());
        const auto memory = a.take<T>(n * config_.hash.heads(), config_.d_row());
        return {plan, memory,
                gated_memory<T>::take(a, n, config_.branches, config_.d_model, !params_.taps.empty())};
    }
    kept pop_kept(arena& tape, idx n) const {
        const auto gated =
            gated_memory<T>::pop(tape, n, config_.branches, config_.d_model, !params_.taps.empty());
        const auto memory = tape.pop<T>(n * config_.hash.heads(), config_.d_row());
        return {tape.pop<std::int32_t>(n, config_.hash.heads()), memory, gated};
    }
    tensor_view<T> flat(const tensor_view<T>& memory, idx n) const {
        return {memory.data(), n, config_.d_memory};
    }
    static std::span<const std::int32_t> span_of(const tensor_view<const std::int32_t>& plan) {
        return {plan.data(), static_cast<std::size_t>(plan.size())};
    }

    void check_tokens(const batch& b, const state_type* state, executor_ref ex) const {
        check_batch(b, "engram");
        if (ex.dry()) return;
        if (static_cast<idx>(b.ids.size()) != b.n_tokens)
            SLUICE_THROW(input_error("engram: the batch has no ids"));
        if (state != nullptr) state->check_room(b);
    }
    void require_plan(const batch& b, const tensor_view<const std::int32_t>& plan) const {
        require_shape(plan, b.n_tokens, config_.hash.heads(), "engram", "plan");
        require(plan.contiguous(), "engram", "plan must be contiguous");
    }
    void find_rows(const batch& b, const state_type* state, const tensor_view<std::int32_t>& ids,
                   const tensor_view<std::int32_t>& plan, executor_ref ex) const {
        require_plan(b, plan);
        if (ex.dry()) return;
        compress_ids(config_.token_map, config_.hash, b.ids, ids, "engram");
        auto before = [&](idx s, idx k) {
            return state == nullptr ? -1 : state->id(b.slot(s), state->past(b, s) - 1 - k);
        };
        ngram_rows<Arch>(config_.hash, b, ids.data(), before, plan, ex);
    }
    memory_gate_weights<T> weights(arena& workspace, executor_ref ex) const {
        return memory_gate_weights<T>::make(
            workspace, {params_.key_scale, params_.query_scale, params_.value_scale, params_.taps},
            config_.gate, config_.eps, config_.convolution.eps, config_.dilation(), ex);
    }

    void run(const batch& b, const tensor_view<const std::int32_t>& plan, in<T> x, tensor_view<T> y,
             state_type* state, arena* tape, arena& workspace, executor_ref ex) const {
        require_shape(x, b.rows(), d_in(), "engram", "x");
        require_shape(y, b.rows(), d_out(), "engram", "y");
        check_tokens(b, state, ex);
        SLUICE_ASSERT(apart(y, x));
        const arena::scope scope(workspace);
        if (b.copies == 1) return run_tokens(b, plan, x, y, state, tape, workspace, ex);
        const auto out = workspace.take<T>(b.n_tokens, d_out());
        run_tokens(tokens_of(b), plan, originals_of<T>(b, x, workspace, ex), out, state, tape, workspace, ex);
        rows_from_tokens<T>(b, out, y, true, ex);
    }
    void run_tokens(const batch& b, const tensor_view<const std::int32_t>& plan, in<T> x, tensor_view<T> y,
                    state_type* state, arena* tape, arena& workspace, executor_ref ex) const {
        const kept k = look_up_all(b, plan, state, tape, workspace, ex);
        auto earlier = [&](idx s, idx back) -> const T* { // rows before the batch's
            const idx position = state == nullptr ? -1 : state->past(b, s) - back;
            return position < 0 ? nullptr : state->row(b.slot(s), position);
        };
        // nothing after it can fail
        apply_memory_gate<Arch, T>(b, weights(workspace, ex), x, k.gated, earlier, y, ex);
        if (state != nullptr && !ex.dry()) state->append(b, k.gated.ids, k.gated.x);
    }
    // All that depends on ids alone.
    kept look_up_all(const batch& b, const tensor_view<const std::int32_t>& plan, const state_type* state,
                     arena* tape, arena& workspace, executor_ref ex) const {
        const idx n = b.n_tokens;
        const auto ids = workspace.take<std::int32_t>(1, n);
        kept k = take_kept(tape == nullptr ? workspace : *tape, n);
        k.gated.ids = ids.data();
        if (plan.data() == nullptr) {
            find_rows(b, state, ids, k.plan, ex);
        } else if (!ex.dry()) {
            compress_ids(config_.token_map, config_.hash, b.ids, ids, "engram");
            std::copy_n(plan.data(), plan.size(), k.plan.data());
        }
        look_up<Arch, T>(params_.table, span_of(k.plan), k.memory, ex);
        matmul<Arch>(flat(k.memory, n), params_.w_kv, k.gated.kv, {.bias = params_.b_kv}, workspace, ex);
        return k;
    }
    template <class TableGradient>
    void backward_tokens(const batch& b, in<T> x, in<T> dy, tensor_view<T> dx, arena& tape,
                         const engram_params<T, TableGradient>& grad, arena& workspace,
                         executor_ref ex) const {
        auto k = pop_kept(tape, b.n_tokens);
        if (!config_.token_map.empty()) {
            const auto ids = workspace.take<std::int32_t>(1, b.n_tokens);
            if (!ex.dry()) compress_ids(config_.token_map, config_.hash, b.ids, ids, "engram");
            k.gated.ids = ids.data();
        }
        const auto d_kv = workspace.take<T>(b.n_tokens, config_.d_kv());
        const auto slots = touch_rows(grad.table, span_of(k.plan), workspace, ex);
        const memory_gate_weights<T> w = weights(workspace, ex);
        memory_gate_backward<Arch, T>(b, w, x, k.gated, dy, d_kv, dx,
                                      {grad.key_scale, grad.query_scale, grad.value_scale, grad.taps},
                                      workspace, ex);
        const auto memory = flat(k.memory, b.n_tokens);
        matmul_dw<Arch, T>(d_kv, memory, grad.w_kv, workspace, ex);
        if (config_.bias) add_rows<Arch, T>(d_kv, grad.b_kv, ex);
        matmul_dx<Arch, T>(d_kv, params_.w_kv, memory, false, workspace, ex); // its gradient takes its place
        embed_backward<Arch, T>(slots, k.memory, tensor_view<T>(grad.table), ex);
    }

    config_type config_;
    params_type params_;
};

} // namespace SLUICE_ISA
} // namespace sluice
