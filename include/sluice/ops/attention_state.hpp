// The keys and values that attention keeps between calls, for several sequences. With a window it is a ring
// of what can still be seen; rings are whole key tiles, so that a tile is never cut in memory.
#pragma once

#include "../core/layer.hpp"
#include "attention.hpp"

namespace sluice {

// Rings of keys and values, one for each of several sequences: key i is kept in slot i % ring.
template <class T>
struct key_rings {
    tensor_view<T> k; // (sequence, head, tile, element of a head) x key_tile: scores read it so
    tensor_view<T> v; // (sequence, head, ring slot) x head_dim
    idx n_heads = 0;  // of keys and values
    idx ring = 0;     // keys a sequence can hold at a time, whole tiles

    static key_rings bind(arena& a, idx n_sequences, idx n_heads, idx head_dim, idx ring) {
        ring = round_up(ring, key_tile);
        const idx limit = std::numeric_limits<idx>::max() / 4 / std::max<idx>(n_heads, 1);
        require(n_sequences <= limit / std::max<idx>(ring, 1), "attention state", "n_sequences is too large");
        key_rings r;
        r.n_heads = n_heads;
        r.ring = ring;
        r.k = a.take<T>(size_product(n_sequences * n_heads * (ring / key_tile), head_dim), key_tile);
        r.v = a.take<T>(n_sequences * n_heads * ring, head_dim);
        return r;
    }

    // Rows of new_k and new_v become the keys of `sequence` from `first` on.
    void put(idx sequence, idx first, in<T> new_k, in<T> new_v) const {
        const idx d = v.cols();
        for (idx h = 0; h < n_heads; ++h) // head by head: a tile stays in L1 while keys enter it
            for (idx i = 0; i < new_k.rows(); ++i) {
                const idx to = slot(sequence, h, first + i);
                const T* const key = new_k.row(i) + h * d;
                T* const at = k.row(to / key_tile * d) + to % key_tile;
                for (idx e = 0; e < d; ++e) at[e * key_tile] = key[e];
                std::copy_n(new_v.row(i) + h * d, d, v.row(to));
            }
    }
    // The same key as the other's.
    void copy_key(idx sequence, idx key, const key_rings& to, idx to_sequence) const {
        const idx d = v.cols();
        for (idx h = 0; h < n_heads; ++h) {
            const idx a = slot(sequence, h, key), b = to.slot(to_sequence, h, key);
            const T* const old = k.row(a / key_tile * d) + a % key_tile;
            T* const now = to.k.row(b / key_tile * d) + b % key_tile;
            for (idx e = 0; e < d; ++e) now[e * key_tile] = old[e * key_tile];
            std::copy_n(v.row(a), d, to.v.row(b));
        }
    }
    SLUICE_INLINE attention_source<T> source(idx sequence) const {
        const idx d = v.cols(), first = sequence * n_heads * ring;
        return {.k = k.row(first / key_tile * d),
                .v = v.row(first),
                .k_row = d,
                .v_row = d,
                .ring = ring,
                .head = ring * d,
                .layout = key_layout::tiles};
    }

private:
    idx slot(idx sequence, idx head, idx key) const {
        return (sequence * n_heads + head) * ring + key % ring;
    }
};

template <class T>
struct attention_state {
    key_rings<T> keys;
    tensor_view<idx> length; // 1 x n_sequences: tokens each sequence holds
    tensor_view<idx> newest; // 1 x n_sequences: the most it held since it was cleared
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
        s.most = most;
        const idx all = round_up(most.max_tokens, key_tile),
                  seen = window - 1 + most.max_rows + most.max_rollback;
        s.keys = key_rings<T>::bind(a, most.n_sequences, n_heads, head_dim,
                                    window == 0 ? all : std::min(all, round_up(seen, key_tile)));
        s.length = a.take<idx>(1, most.n_sequences);
        s.newest = a.take<idx>(1, most.n_sequences);
        if (!a.dry()) {
            fill(s.length, 0);
            fill(s.newest, 0);
        }
        return s;
    }

    idx n_sequences() const { return length.cols(); }
    // That sequence `slot` holds.
    idx tokens(idx slot) const {
        check_slot(slot);
        return length(0, slot);
    }

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

    // Throws unless it was bound for heads of this shape.
    void check_shape(idx n_heads, idx head_dim, idx seen) const {
        if (keys.n_heads != n_heads || keys.v.cols() != head_dim || window != seen)
            SLUICE_THROW(config_error("attention state: it was bound for " +
                                      shape_text(keys.n_heads, keys.v.cols()) + " heads and window " +
                                      std::to_string(window) + ", the layer has " +
                                      shape_text(n_heads, head_dim) + " and window " + std::to_string(seen)));
    }
    // Throws unless every sequence of the batch has a slot of its own with room for its tokens.
    void check_room(const batch& b) const {
        for (idx s = 0; s < b.n_sequences(); ++s) {
            const idx slot = b.slot(s), n = b.tokens(s);
            check_slot(slot);
            for (idx other = 0; other < s; ++other)
                if (b.slot(other) == slot)
                    SLUICE_THROW(input_error("attention state: two sequences of the batch name slot " +
                                             std::to_string(slot)));
            if (length(0, slot) + n > most.max_tokens)
                SLUICE_THROW(capacity_error("attention state: sequence " + std::to_string(slot),
                                            length(0, slot) + n, most.max_tokens, "tokens (max_tokens)"));
            if (keys.ring < round_up(most.max_tokens, key_tile) && n > most.max_rows)
                SLUICE_THROW(capacity_error("attention state: ring of a window", n, most.max_rows,
                                            "rows in one call (max_rows)"));
        }
    }

    // Stores keys and values (n_tokens rows) behind those there are, and leaves in `past` how many there
    // were.
    void append(const batch& b, in<T> new_k, in<T> new_v, std::span<idx> past) {
        for (idx s = 0; s < b.n_sequences(); ++s) {
            const idx slot = b.slot(s), first = length(0, slot), from = b.first_token(s), n = b.tokens(s);
            past[static_cast<std::size_t>(s)] = first;
            keys.put(slot, first, new_k.row_block(from, n), new_v.row_block(from, n));
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
        return state->keys.source(rows->slot(sequence));
    }
};

} // namespace sluice
