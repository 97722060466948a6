// The keys and values that attention keeps between calls, for several sequences. With a window it is a ring
// of what can still be seen; rings are whole key tiles, so that a tile is never cut in memory.
#pragma once

#include "../core/sequence_lengths.hpp"
#include "attention.hpp"

namespace sluice {

template <class T>
struct attention_state : sequence_lengths {
    tensor_view<T> k; // (sequence, head, tile, element of a head) x key_tile: scores read it so
    tensor_view<T> v; // (sequence, head, ring slot) x head_dim
    idx n_heads = 0;  // of keys and values
    idx ring = 0;     // keys a sequence can hold at a time
    idx window = 0;

    static attention_state bind(arena& a, idx n_heads, idx head_dim, idx window, const limits& most) {
        attention_state s;
        static_cast<sequence_lengths&>(s) = sequence_lengths::bind(a, most, "attention state");
        constexpr idx limit = std::numeric_limits<idx>::max() / 4; // sums below stay in range
        require(window >= 0, "attention state", "window must not be negative");
        require(window <= limit, "attention state", "window is too large");
        s.window = window;
        s.n_heads = n_heads;
        const idx all = round_up(most.max_tokens, key_tile);
        s.ring = window == 0
                     ? all
                     : std::min(all, round_up(window - 1 + most.max_rows + most.max_rollback, key_tile));
        require(most.n_sequences <= limit / s.ring / std::max<idx>(n_heads, 1), "attention state",
                "n_sequences is too large");
        s.k = a.take<T>(most.n_sequences * n_heads * (s.ring / key_tile) * head_dim, key_tile);
        s.v = a.take<T>(most.n_sequences * n_heads * s.ring, head_dim);
        return s;
    }

    // Throws unless every sequence of the batch has a slot of its own with room for its tokens.
    void check_room(const batch& b) const {
        sequence_lengths::check_room(b);
        if (ring == round_up(most.max_tokens, key_tile)) return;
        for (idx s = 0; s < b.n_sequences(); ++s)
            if (const idx n = b.end(s) - b.begin(s); n > most.max_rows)
                SLUICE_THROW(capacity_error("attention state: ring of a window", n, most.max_rows,
                                            "rows in one call (max_rows)"));
    }

    // Stores the batch's keys and values behind those there are, and leaves in `past` how many there were.
    void append(const batch& b, in<T> new_k, in<T> new_v, std::span<idx> past) {
        for (idx s = 0; s < b.n_sequences(); ++s) {
            const idx slot = b.slot(s), first = length(0, slot), n = b.end(s) - b.begin(s);
            past[static_cast<std::size_t>(s)] = first;
            const idx d = v.cols();
            for (idx h = 0; h < n_heads; ++h) // head by head: a tile stays in L1 while keys enter it
                for (idx i = 0; i < n; ++i) {
                    const idx to = (slot * n_heads + h) * ring + (first + i) % ring;
                    const T* const key = new_k.row(b.begin(s) + i) + h * d;
                    T* const at = k.row(to / key_tile * d) + to % key_tile;
                    for (idx e = 0; e < d; ++e) at[e * key_tile] = key[e];
                    std::copy_n(new_v.row(b.begin(s) + i) + h * d, d, v.row(to));
                }
        }
        sequence_lengths::append(b);
    }
};

// The cache as the one source of every sequence of a batch.
template <class T>
struct cached_keys {
    const batch* rows;
    const attention_state<T>* state;
    SLUICE_INLINE attention_source<T> operator()(idx sequence, idx) const {
        const idx d = state->v.cols(), first = rows->slot(sequence) * state->n_heads * state->ring;
        return {.k = state->k.row(first / key_tile * d),
                .v = state->v.row(first),
                .k_row = d,
                .v_row = d,
                .ring = state->ring,
                .head = state->ring * d,
                .layout = key_layout::tiles};
    }
};

} // namespace sluice
