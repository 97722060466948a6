// What makes a class a layer. Concepts only: nothing to inherit from, nothing virtual.
//
// A layer object holds its config and views of its weights: trivially copyable, const after construction,
// safe to call from many threads with distinct state and workspace. Argument order everywhere: batch, inputs,
// outputs, state or tape, gradients, workspace, executor. `dx` is overwritten, parameter gradients
// accumulate.
#pragma once

#include "arena.hpp"
#include "batch.hpp"
#include "executor.hpp"
#include "params.hpp"

namespace sluice {

// Of what extend computes: every token's output, or the last of each sequence's, which is all that sampling
// needs.
enum class outputs { all, last };

// How large calls will be; sizes of the caller's memory follow from it.
struct limits {
    idx max_tokens = 0;   // tokens a sequence's state must hold; 0: no state is wanted
    idx max_rows = 1;     // tokens of the largest call
    idx n_sequences = 1;  // sequences of a state, or of a call where sizes depend on them
    idx max_rollback = 0; // tokens that truncate may take back
    idx workers = 1;      // concurrency of the executor
    idx copies = 1;       // rows of a token (batch::copies)
    outputs wanted = outputs::all;
    idx max_routed = 0; // of max_tokens, those that a layer which skips tokens must hold; 0: all
    // Concepts that a sequence may make, in a call and of all that its state holds; 0: as many as tokens.
    idx max_concepts = 0;
};

// Throws config_error for a value that no caller can mean; sizes computed from the others cannot overflow
// unnoticed.
inline void check_limits(const limits& most) {
    auto check = [](idx value, idx least, std::string_view name, int bits = 40) {
        if (value < least || value > idx{1} << bits)
            SLUICE_THROW(config_error("limits: " + std::string(name) + " must be " + std::to_string(least) +
                                      " to 2^" + std::to_string(bits) + ", is " + std::to_string(value)));
    };
    check(most.max_tokens, 0, "max_tokens");
    check(most.max_rows, 1, "max_rows");
    check(most.n_sequences, 1, "n_sequences");
    check(most.max_rollback, 0, "max_rollback");
    check(most.workers, 1, "workers", 20);
    check(most.copies, 1, "copies", 20);
    check(most.max_routed, 0, "max_routed");
    check(most.max_concepts, 0, "max_concepts");
}

struct sizes {
    std::size_t state = 0;     // bytes for bind_state
    std::size_t workspace = 0; // bytes for one forward, extend or backward call
    std::size_t tape = 0;      // bytes that one forward call pushes for backward
};

template <class L>
concept has_backward = requires(const L& l, const batch& b, in<typename L::scalar> x,
                                tensor_view<typename L::scalar> dx, arena& tape,
                                const typename L::grad_type& grad, arena& workspace, executor_ref ex) {
    l.backward(b, x, x, dx, tape, grad, workspace, ex);
};

// Whether a layer can be trained as it stands: it has a backward, and its weights are stored in the type it
// computes in. A layer with smaller weights says `trainable = false`.
template <class L>
constexpr bool is_trainable = [] {
    if constexpr (requires { L::trainable; })
        return static_cast<bool>(L::trainable);
    else
        return has_backward<L>;
}();

// What a layer takes for calls of at most `most.max_rows` tokens, found by running its own code on arenas and
// an executor that only count. A layer whose sizes depend on the data says its own worst case instead.
template <class L>
sizes layer_bytes(const L& layer, const limits& most) {
    using T = typename L::scalar;
    check_limits(most);
    sizes result;
    arena workspace, tape, state_memory;
    dry_run counting{most.workers};
    const executor_ref ex(counting);
    batch b = batch::one(most.max_rows);
    b.copies = most.copies;
    b.counted_sequences = most.n_sequences;
    b.max_concepts = most.max_concepts;
    const tensor_view<T> x(nullptr, b.rows(), layer.d_in()), y(nullptr, b.rows(), layer.d_out());
    layer.forward(b, x, y, nullptr, workspace, ex);
    if constexpr (is_trainable<L> && has_backward<L>) {
        layer.forward(b, x, y, &tape, workspace, ex);
        result.tape = tape.bytes();
        arena grad_memory;
        layer.backward(b, x, y, x, tape, L::grad_type::bind(grad_memory, layer.config()), workspace, ex);
    }
    if (most.max_tokens > 0) {
        auto state = layer.bind_state(state_memory, most);
        result.state = state_memory.bytes();
        layer.extend(b, x, y, state, workspace, ex);
    }
    result.workspace = workspace.bytes();
    return result;
}

// Runs a call on an executor that does nothing, so that a workspace too small for it throws before a state is
// written.
template <class F>
void rehearse(executor_ref ex, F&& call) {
    if (ex.dry()) return;
    dry_run counting{ex.concurrency()};
    call(executor_ref(counting));
}

// The same for a call that pushes on a tape or pops from it, which is left as it was: one too small is found
// before an output is written, and a workspace too small for backward before a gradient is added to.
template <class F>
void rehearse(executor_ref ex, arena* tape, F&& call) {
    if (tape == nullptr) return;
    const arena::scope scope(*tape);
    rehearse(ex, call);
}

// Throws config_error where a view of a backward call does not fit, before a gradient is added to. dx may be
// dy where the layer says so.
template <class T>
void check_backward(const batch& b, const tensor_view<const T>& x, const tensor_view<const T>& dy,
                    const tensor_view<T>& dx, idx d_in, idx d_out, std::string_view layer) {
    require_shape(x, b.rows(), d_in, layer, "x");
    require_shape(dy, b.rows(), d_out, layer, "dy");
    require_shape(dx, b.rows(), d_in, layer, "dx");
    SLUICE_ASSERT(apart(dx, x) && apart_or_same(dx, dy));
}

// The state of a layer that needs none.
struct no_state {
    static no_state bind(arena&, const auto&, const limits&) { return {}; }
    void truncate(idx, idx) const {}
};

template <class L>
concept layer = std::is_trivially_copyable_v<L> &&
    requires(const L& l, const batch& b, in<typename L::scalar> x, tensor_view<typename L::scalar> y,
             arena* tape, arena& workspace, executor_ref ex) {
    typename L::config_type;
    typename L::params_type;
    { l.config() } -> std::convertible_to<typename L::config_type>;
    { l.d_in() } -> std::convertible_to<idx>;
    { l.d_out() } -> std::convertible_to<idx>;
    l.forward(b, x, y, tape, workspace, ex);
};

template <class L>
concept streaming_layer = layer<L> &&
    requires(const L& l, const batch& b, in<typename L::scalar> x, tensor_view<typename L::scalar> y,
             typename L::state_type& state, arena& memory, executor_ref ex, const limits& most) {
    { l.bind_state(memory, most) } -> std::same_as<typename L::state_type>;
    l.extend(b, x, y, state, memory, ex);
    state.truncate(idx{}, idx{});
};

template <class L>
concept trainable_layer = layer<L> && is_trainable<L> && has_backward<L>;

} // namespace sluice
