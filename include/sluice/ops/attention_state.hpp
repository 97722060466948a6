// The keys and values that attention keeps between calls, for several sequences. With a window it is a ring
// of what can still be seen; rings are whole key tiles, so that a tile is never cut in memory.
#pragma once

#include "../core/layer.hpp"
#include "attention.hpp"

namespace sluice {

template <class T>
struct attention_state {
    tensor_view<T> k;        // (sequence, head, tile, element of a head) x key_tile: scores read it so
    tensor_view<T> v;        // (sequence, head, ring slot) x head_dim
    tensor_view<idx> length; // 1 x n_sequences: tokens each sequence holds
    tensor_view<idx> newest; // 1 x n_sequences: the most it held since it was cleared
    idx n_heads = 0;         // of keys and values
    idx ring = 0;            // keys a sequence can hold at a time
    idx window = 0;
    limits most{};

    static attention_state bind(arena& a, idx n_heads, idx head_dim, idx window, const limits& most) {
        require_positive(most.max_tokens, "attention state", "max_tokens");
        require_positive(most.n_sequences, "attention state", "n_sequences");
        require_positive(most.max_rows, "attention state", "max_rows");
        require(most.max_rollback >= 0, "attention state", "max_rollback must not be negative");
        require(window >= 0, "attention state", "window must not be negative");
        constexpr idx limit = std::numeric_limits<idx>::max() / 4; // sums below stay in range
        require(std::max({most.max_tokens, most.max_rows, most.max_rollback, window}) <= limit,
                "attention state", "max_tokens, max_rows, max_rollback or window is too large");
        attention_state s;
        s.window = window;
        s.n_heads = n_heads;
        s.most = most;
        const idx all = round_up(most.max_tokens, key_tile);
        s.ring = window == 0
                     ? all
                     : std::min(all, round_up(window - 1 + most.max_rows + most.max_rollback, key_tile));
        require(most.n_sequences <= limit / s.ring / std::max<idx>(n_heads, 1), "attention state",
                "n_sequences is too large");
        s.k = a.take<T>(size_product(most.n_sequences * n_heads * (s.ring / key_tile), head_dim), key_tile);
        s.v = a.take<T>(most.n_sequences * n_heads * s.ring, head_dim);
        s.length = a.take<idx>(1, most.n_sequences);
        s.newest = a.take<idx>(1, most.n_sequences);
        if (!a.dry()) {
            fill(s.length, 0);
            fill(s.newest, 0);
        }
        return s;
    }

    idx n_sequences() const { return length.cols(); }

    // Forgets what `slot` holds beyond `tokens`. Everything may be forgotten at any time; otherwise at most
    // max_rollback tokens behind the newest, for the rest may have been overwritten.
    void truncate(idx slot, idx tokens) {
        check_slot(slot);
        auto fail = [&](const std::string& why) {
            SLUICE_THROW(input_error("attention state: truncate sequence " + std::to_string(slot) + " to " +
                                     std::to_string(tokens) + ": " + why));
        };
        if (tokens < 0 || tokens > length(0, slot))
            fail("it holds " + std::to_string(length(0, slot)) + " tokens");
        if (tokens > 0 && tokens < newest(0, slot) - most.max_rollback)
            fail("only " + std::to_string(most.max_rollback) + " tokens can be taken back (max_rollback)");
        length(0, slot) = tokens;
        if (tokens == 0) newest(0, slot) = 0;
    }

    // Throws unless every sequence of the batch has a slot of its own with room for its tokens.
    void check_room(const batch& b) const {
        for (idx s = 0; s < b.n_sequences(); ++s) {
            const idx slot = b.slot(s), n = b.end(s) - b.begin(s);
            check_slot(slot);
            for (idx other = 0; other < s; ++other)
                if (b.slot(other) == slot)
                    SLUICE_THROW(input_error("attention state: two sequences of the batch name slot " +
                                             std::to_string(slot)));
            if (length(0, slot) + n > most.max_tokens)
                SLUICE_THROW(capacity_error("attention state: sequence " + std::to_string(slot),
                                            length(0, slot) + n, most.max_tokens, "tokens (max_tokens)"));
            if (ring < round_up(most.max_tokens, key_tile) && n > most.max_rows)
                SLUICE_THROW(capacity_error("attention state: ring of a window", n, most.max_rows,
                                            "rows in one call (max_rows)"));
        }
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
            length(0, slot) = first + n;
            newest(0, slot) = std::max(newest(0, slot), first + n);
        }
    }

private:
    void check_slot(idx slot) const {
        if (slot < 0 || slot >= n_sequences())
            SLUICE_THROW(input_error("attention state: no sequence " + std::to_string(slot) + ", there are " +
                                     std::to_string(n_sequences())));
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
