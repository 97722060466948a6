// What the copies of repeated tokens see (Wu et al., "Efficient pretraining length scaling", 2025, eq. 2 and
// section 2.4), as a policy of two sources: the keys of originals, which every copy of a position sees as its
// original does; then the keys of hidden copies, of which originals see none.
//
// The hidden copies of position n are the keys n * (repeat - 1) and on. They see those of the last `window`
// positions of their chunk, all copies, and of their own position those up to themselves.
#pragma once

#include "attention_state.hpp"

namespace sluice {

// What a window counts: positions, each with all its hidden copies, or hidden copies.
enum class window_unit { positions, hidden_tokens };

constexpr idx no_chunks = idx{1} << 40; // positions

struct copy_rules {
    idx repeat = 1;        // copies of a token, the original among them
    idx window = 0;        // earlier positions, or hidden copies, that hidden copies see
    idx chunk = no_chunks; // positions; windows do not reach from one chunk into another
    window_unit unit = window_unit::positions;
    idx originals = 0; // originals that a row sees, its own among them; 0: all

    idx hidden() const { return repeat - 1; }
    // Earlier positions whose hidden copies a row can see, at most.
    idx reach() const {
        if (hidden() == 0) return 0;
        return std::min(unit == window_unit::positions ? window : ceil_div(window, hidden()), chunk - 1);
    }
    idx chunk_start(idx position) const { return position / chunk * chunk; }
    // The first position whose hidden copies those of `position` may see.
    idx first_seen(idx position) const { return std::max(chunk_start(position), position - reach()); }

    key_range original_keys(idx position) const {
        return {originals == 0 ? 0 : std::max<idx>(0, position + 1 - originals), position + 1};
    }
    // For an original, copy 0, which sees none, a range that keeps the order.
    key_range hidden_keys(idx position, idx copy) const {
        const idx own = position * hidden(), start = chunk_start(position);
        if (unit == window_unit::positions)
            return {std::max(position - window, start) * hidden(), own + copy};
        return {std::min(own, std::max(own + copy - 1 - window, start * hidden())), own + copy};
    }
};

// A layer for repeated tokens that can leave out rows of its output (core/batch.hpp: row_selection).
template <class L>
concept row_selecting = requires(const L& l) {
    { l.rules() } -> std::same_as<copy_rules>;
};

inline void check_rules(const copy_rules& rules, std::string_view layer) {
    auto check = [&](idx value, idx least, idx largest, std::string_view name) {
        if (value < least || value > largest)
            SLUICE_THROW(config_error(std::string(layer) + ": " + std::string(name) + " must be " +
                                      std::to_string(least) + " to " + std::to_string(largest) + ", is " +
                                      std::to_string(value)));
    };
    check(rules.repeat, 1, idx{1} << 20, "repeat");
    check(rules.window, 0, idx{1} << 40, "window");
    check(rules.chunk, 1, no_chunks, "chunk");
}

struct copy_attention {
    static constexpr idx n_sources = 2;
    struct row_keys {
        key_range seen[2];
        bool original;
    };
    const batch* rows;
    const row_keys* keys; // of each row
    bool alike = false;   // the queries of a token are all the same

    SLUICE_INLINE key_range range(idx sequence, idx row, idx source) const {
        return keys[rows->begin(sequence) + row].seen[source];
    }
    SLUICE_INLINE bool blind(idx sequence, idx row, idx source) const {
        return source == 1 && keys[rows->begin(sequence) + row].original;
    }
    SLUICE_INLINE bool repeats(idx sequence, idx row) const {
        const row_keys* const at = keys + rows->begin(sequence) + row;
        return alike && row > 0 && at[-1].seen[0].hi == at->seen[0].hi; // the token's own original
    }
};

// Keys of a call, or where `kept` says, two sources of each sequence.
template <class T>
struct copy_sources {
    packed_keys<T> originals, hidden;
    const attention_source<T>* kept = nullptr;
    SLUICE_INLINE attention_source<T> operator()(idx sequence, idx source) const {
        if (kept != nullptr) return kept[2 * sequence + source];
        return source == 0 ? originals(sequence, 0) : hidden(sequence, 0);
    }
};

// The cache of the originals, which is that of the model without repetition, and a ring of the hidden copies
// that can still be seen, or seen again after a truncation.
template <class T>
struct copy_state {
    attention_state<T> originals;
    key_rings<T> hidden;
    copy_rules rules;
    idx kept = 0; // positions in the ring of hidden copies

    static copy_state bind(arena& a, idx n_heads, idx head_dim, const copy_rules& rules, const limits& most,
                           key_storage storage = key_storage::plain) {
        copy_state s;
        s.rules = rules;
        s.originals = attention_state<T>::bind(a, n_heads, head_dim, rules.originals, most, storage);
        if (rules.reach() > 0)
            s.kept = std::min(rules.reach() + std::max<idx>(most.max_rollback, 1), most.max_tokens);
        s.hidden = key_rings<T>::bind(a, most.n_sequences, n_heads, head_dim, keys_of(s.kept, rules.hidden()),
                                      storage);
        return s;
    }

    idx n_sequences() const { return originals.n_sequences(); }
    idx tokens(idx slot) const { return originals.tokens(slot); }
    void truncate(idx slot, idx tokens) { originals.truncate(slot, tokens); }
    void check_room(const batch& b) const { originals.check_room(b); }
    void check_shape(idx n_heads, idx head_dim, const copy_rules& of_layer) const {
        originals.check_shape(n_heads, head_dim, of_layer.originals);
        const auto same = [&](idx a, idx b, std::string_view name) {
            if (a != b)
                SLUICE_THROW(config_error("cswa state: it was bound for " + std::string(name) + " " +
                                          std::to_string(a) + ", the layer has " + std::to_string(b)));
        };
        same(rules.repeat, of_layer.repeat, "repeat");
        same(rules.window, of_layer.window, "window");
        same(rules.chunk, of_layer.chunk, "chunk");
        same(static_cast<idx>(rules.unit), static_cast<idx>(of_layer.unit), "window_unit");
    }
    // Positions whose hidden copies stand in the ring since the last step and can be seen by their chunk.
    idx live(idx slot) const {
        const idx n = originals.length(0, slot);
        return n == 0 ? 0 : std::min(rules.reach(), n - rules.chunk_start(n - 1));
    }

    // Stores the keys of originals (n_tokens rows) and of hidden copies (all others), leaves in `past` how
    // many tokens there were and in `sources` where each sequence finds its keys: in the state, or where the
    // ring is too small for all that this call sees, in the workspace.
    void append(const batch& b, in<T> k, in<T> v, in<T> hidden_k, in<T> hidden_v, std::span<idx> past,
                attention_source<T>* sources, arena& workspace) {
        originals.append(b, k, v, past);
        const idx copies = rules.hidden();
        for (idx s = 0, row = 0; s < b.n_sequences(); ++s) {
            const idx slot = b.slot(s), first = past[static_cast<std::size_t>(s)] + b.bare(s);
            const idx n = b.tokens(s) - b.bare(s), rows = n * copies;
            const in<T> new_k = hidden_k.row_block(row, rows), new_v = hidden_v.row_block(row, rows);
            row += rows;
            sources[2 * s] = originals.keys.source(slot);
            sources[2 * s + 1] = hidden.source(slot);
            if (!in_place(n)) {
                const auto all = key_rings<T>::bind(workspace, 1, hidden.n_heads, hidden.head_dim,
                                                    keys_of(rules.reach() + n, copies), hidden.storage);
                const idx seen = b.bare(s) == 0 ? rules.first_seen(first) : first;
                for (idx key = seen * copies; key < first * copies; ++key) hidden.copy_key(slot, key, all, 0);
                all.put(0, first * copies, new_k, new_v);
                sources[2 * s + 1] = all.source(0);
            }
            const idx old = std::max<idx>(0, n - kept) * copies; // these fell out of the ring at once
            hidden.put(slot, first * copies + old, new_k.row_block(old, rows - old),
                       new_v.row_block(old, rows - old));
        }
    }
    // Counts what append() takes, for any number of sequences.
    void dry_append(const batch& b, arena& workspace) const {
        const idx copies = rules.hidden(), n = copies == 0 ? 0 : (b.rows() - b.n_tokens) / copies;
        if (in_place(n)) return;
        for (idx s = 0; s < n_sequences(); ++s)
            key_rings<T>::bind(workspace, 1, hidden.n_heads, hidden.head_dim,
                               keys_of(rules.reach() + (s == 0 ? n : 1), copies) + (s == 0 ? 0 : key_tile),
                               hidden.storage);
    }

private:
    static idx keys_of(idx positions, idx copies) {
        require(positions <= (idx{1} << 60) / std::max<idx>(copies, 1), "cswa state", "repeat is too large");
        return positions * copies;
    }
    bool in_place(idx positions) const {
        return positions == 0 || rules.hidden() == 0 || positions + rules.reach() <= kept;
    }
};

} // namespace sluice
