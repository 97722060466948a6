// The keys and values that attention keeps between calls, for several sequences. With a window it is a ring
// of what can still be seen; rings are whole key tiles, so that a tile is never cut in memory. They may be
// kept smaller than they are computed, and are widened tile by tile; a row's bits then still depend on its
// keys alone.
#pragma once

#include "../core/layer.hpp"
#include "attention.hpp"

namespace sluice {

// Rings of keys and values, one for each of several sequences: key i is kept in slot i % ring.
template <class T>
struct key_rings {
    tensor_view<T> k;              // (sequence, head, tile, element of a head) x key_tile: scores read it so
    tensor_view<T> v;              // (sequence, head, ring slot) x head_dim
    idx n_heads = 0, head_dim = 0; // of keys and values
    idx ring = 0;                  // keys a sequence can hold at a time, whole tiles
    // Or smaller, in the same order; then k and v are empty.
    key_storage storage = key_storage::plain;
    std::byte *small_k = nullptr, *small_v = nullptr;
    float *k_scales = nullptr, *v_scales = nullptr; // of int8: (sequence, head, ring slot)

    static key_rings bind(arena& a, idx n_sequences, idx n_heads, idx head_dim, idx ring,
                          key_storage storage = key_storage::plain) {
        require(storage == key_storage::plain || std::is_same_v<T, float>, "attention state",
                "keys of double are kept as they are");
        ring = round_up(ring, key_tile);
        const idx limit = std::numeric_limits<idx>::max() / 4 / std::max<idx>(n_heads, 1);
        require(n_sequences <= limit / std::max<idx>(ring, 1), "attention state", "n_sequences is too large");
        key_rings r;
        r.n_heads = n_heads;
        r.head_dim = head_dim;
        r.ring = ring;
        r.storage = storage;
        const idx n_keys = n_sequences * n_heads * ring,
                  tile_rows = size_product(n_keys / key_tile, head_dim);
        switch (storage) {
        case key_storage::plain:
            r.k = a.take<T>(tile_rows, key_tile);
            r.v = a.take<T>(n_keys, head_dim);
            break;
        case key_storage::bf16:
            r.small_k = reinterpret_cast<std::byte*>(a.take<bf16>(tile_rows, key_tile).data());
            r.small_v = reinterpret_cast<std::byte*>(a.take<bf16>(n_keys, head_dim).data());
            break;
        case key_storage::int8:
            r.small_k = reinterpret_cast<std::byte*>(a.take<std::int8_t>(tile_rows, key_tile).data());
            r.small_v = reinterpret_cast<std::byte*>(a.take<std::int8_t>(n_keys, head_dim).data());
            r.k_scales = a.take<float>(n_keys);
            r.v_scales = a.take<float>(n_keys);
            break;
        }
        return r;
    }

    // Rows of new_k and new_v become the keys of `sequence` from `first` on.
    void put(idx sequence, idx first, in<T> new_k, in<T> new_v) const {
        const idx d = head_dim;
        for (idx h = 0; h < n_heads; ++h) // head by head: a tile stays in L1 while keys enter it
            for (idx i = 0; i < new_k.rows(); ++i) {
                const idx to = slot(sequence, h, first + i);
                const T *const key = new_k.row(i) + h * d, *const value = new_v.row(i) + h * d;
                with_element([&]<class S>(S* ks, S* vs) {
                    narrow(key, ks + key_at(to), key_tile, k_scales, to);
                    narrow(value, vs + to * d, 1, v_scales, to);
                });
            }
    }
    // The same key as the other's, which is of the same storage.
    void copy_key(idx sequence, idx key, const key_rings& to, idx to_sequence) const {
        const idx d = head_dim;
        for (idx h = 0; h < n_heads; ++h) {
            const idx a = slot(sequence, h, key), b = to.slot(to_sequence, h, key);
            with_element([&]<class S>(const S* ks, const S* vs) {
                to.with_element([&]<class Same>(Same* to_ks, Same* to_vs) {
                    if constexpr (std::is_same_v<S, Same>) {
                        for (idx e = 0; e < d; ++e)
                            to_ks[to.key_at(b) + e * key_tile] = ks[key_at(a) + e * key_tile];
                        std::copy_n(vs + a * d, d, to_vs + b * d);
                    }
                });
            });
            if (k_scales != nullptr) {
                to.k_scales[b] = k_scales[a];
                to.v_scales[b] = v_scales[a];
            }
        }
    }
    SLUICE_INLINE attention_source<T> source(idx sequence) const {
        const idx d = head_dim, first = sequence * n_heads * ring;
        attention_source<T> s{
            .k_row = d, .v_row = d, .ring = ring, .head = ring * d, .layout = key_layout::tiles};
        if (storage == key_storage::plain) {
            s.k = k.row(first / key_tile * d);
            s.v = v.row(first);
            return s;
        }
        const idx bytes = storage == key_storage::bf16 ? 2 : 1;
        s.small = {.storage = storage, .k = small_k + first * d * bytes, .v = small_v + first * d * bytes};
        if (k_scales != nullptr) {
            s.small.k_scales = k_scales + first;
            s.small.v_scales = v_scales + first;
        }
        return s;
    }

private:
    idx slot(idx sequence, idx head, idx key) const {
        return (sequence * n_heads + head) * ring + key % ring;
    }
    idx key_at(idx at) const { return at / key_tile * head_dim * key_tile + at % key_tile; }

    template <class F>
    void with_element(F&& f) const {
        if (storage == key_storage::plain)
            f(k.data(), v.data());
        else if (storage == key_storage::bf16)
            f(reinterpret_cast<bf16*>(small_k), reinterpret_cast<bf16*>(small_v));
        else
            f(reinterpret_cast<std::int8_t*>(small_k), reinterpret_cast<std::int8_t*>(small_v));
    }
    // A key or a value, its elements `step` apart. What is not finite makes an int8 scale NaN.
    template <class S>
    void narrow(const T* from, S* to, idx step, float* scales, idx at) const {
        if constexpr (std::is_same_v<S, T>) {
            for (idx e = 0; e < head_dim; ++e) to[e * step] = from[e];
        } else if constexpr (std::is_same_v<S, bf16>) {
            for (idx e = 0; e < head_dim; ++e) to[e * step] = to_bf16(static_cast<float>(from[e]));
        } else {
            float most = 0, finite = 0;
            for (idx e = 0; e < head_dim; ++e) {
                most = std::max(most, std::abs(static_cast<float>(from[e])));
                finite += 0 * static_cast<float>(from[e]);
            }
            const float inverse = most > 0x1p-119F && finite == 0 ? 127 / most : 0;
            scales[at] = finite == 0 ? most / 127 : std::numeric_limits<float>::quiet_NaN();
            for (idx e = 0; e < head_dim; ++e)
                to[e * step] =
                    inverse == 0
                        ? std::int8_t{0}
                        : static_cast<std::int8_t>(std::nearbyint(static_cast<float>(from[e]) * inverse));
        }
    }
};

template <class T>
struct attention_state {
    key_rings<T> keys;
    tensor_view<idx> length; // 1 x n_sequences: tokens each sequence holds
    tensor_view<idx> newest; // 1 x n_sequences: the most it held since it was cleared
    idx window = 0;
    limits most{};

    static attention_state bind(arena& a, idx n_heads, idx head_dim, idx window, const limits& most,
                                key_storage storage = key_storage::plain) {
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
                                    window == 0 ? all : std::min(all, round_up(seen, key_tile)), storage);
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
        if (keys.n_heads != n_heads || keys.head_dim != head_dim || window != seen)
            SLUICE_THROW(config_error("attention state: it was bound for " +
                                      shape_text(keys.n_heads, keys.head_dim) + " heads and window " +
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
