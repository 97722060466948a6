// Softmax attention for a block of query rows, tile by tile over the keys they see, with a running maximum
// (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018; Rabe and Staats, 2021). Memory
// does not grow with the number of keys.
//
// Tiles, and registers within a tile, are aligned to the absolute key index, and keys that a row does not see
// have weight 0, so a row's bits depend neither on the rows beside it nor on where a prompt was cut.
// Where 0 would not do, for 0 times NaN is NaN, rows are multiplied with what they see alone.
#pragma once

#include "../simd/math.hpp"
#include "attention_keys.hpp"
#include "attention_product.hpp"

#include <array>
#include <utility>

namespace sluice::kernels {

// One block: `tokens` rows of a sequence, the `group` query heads that share one key/value head.
template <class T, class Policy, class Sources>
struct attention_block_args {
    const T* q; // first token, first head of the group
    idx q_row;
    T* y; // as q
    idx y_row;
    T* lse; // as q with one number per head; may be null
    idx lse_row;
    idx tokens, group, head_dim, kv_head;
    idx sequence, first_row; // first_row counts within the sequence
    T scale;
    const Policy* policy;      // range(sequence, row, source) -> key_range, both ends non-decreasing in row
    const Sources* sources;    // (sequence, source) -> attention_source<T>
    T* scratch;                // attention_scratch<T, Arch>(tokens * group, head_dim) elements
    const T* next_q = nullptr; // as q, of the block that comes next; may be null
    idx next_tokens = 0;
};

// head_dim in whole registers: how wide rows are in scratch.
template <class T, class Arch>
constexpr idx whole_registers(idx n) {
    return round_up(n, simd::lanes<T>(Arch{}));
}

// Elements of scratch that a worker needs.
template <class T, class Arch>
idx attention_scratch(idx rows, idx head_dim) {
    const idx width = whole_registers<T, Arch>(head_dim);
    return rows * (2 * width + 1 + simd::lanes<T>(Arch{})) +
           key_tile * (tile_rows<T>(Arch{}) + head_dim + width + 1);
}

struct attention_block {
    template <class Arch, class T, class Policy, class Sources>
    void operator()(Arch, const attention_block_args<T, Policy, Sources>& g) const;
};

template <class T, class Policy, class... Sources>
using attention_calls =
    simd::calls<simd::call<attention_block, const attention_block_args<T, Policy, Sources>&>...>;

// The tokens of a block in their order: all, or without those that repeat the one before.
template <class Policy>
struct block_tokens {
    const Policy* policy;
    idx sequence, first_row, n;
    bool folded = false;

    SLUICE_INLINE bool repeats(idx token) const {
        if constexpr (has_repeated_rows<Policy>)
            return token > 0 && policy->repeats(sequence, first_row + token);
        else
            return false;
    }
    SLUICE_INLINE idx after(idx token) const {
        do ++token;
        while (folded && token < n && repeats(token));
        return token;
    }
};

// The rows of a block while it walks over the tiles.
template <class Arch, class T>
struct attention_rows {
    using P = simd::pack<T, Arch>;
    static constexpr idx step = product_rows<T, Arch>;
    idx n, head_dim, width; // n: those at work; width: of the rows here
    T *q, *o;               // n x width: scaled queries; running sum of p v
    T* largest;             // running maximum
    T* totals;              // n registers: running sum of weights, lane by lane
    T* s;                   // step x key_tile: scores, then weights
    tile_scratch<T> tile;
    T* bias; // of the keys of a tile

    attention_rows(idx rows, idx d, T* scratch) : n(rows), head_dim(d), width(whole_registers<T, Arch>(d)) {
        auto next = [&scratch](idx elements) { return std::exchange(scratch, scratch + elements); };
        q = next(n * width);
        o = next(n * width);
        totals = next(n * P::size);
        s = next(step * key_tile);
        tile = {next(d * key_tile), next(key_tile * width), d, width, n > step};
        bias = next(key_tile);
        largest = next(n); // last: all others are whole registers
        std::fill_n(o, n * width, T(0));
        std::fill_n(largest, n, -std::numeric_limits<T>::infinity());
        std::fill_n(totals, n * P::size, T(0));
    }

    // From rows of folded tokens to rows of all: those that repeat others become equal to them.
    template <class Policy>
    void unfold(const block_tokens<Policy>& tokens, idx group) {
        idx from = n, to = tokens.n * group;
        auto copy_row = [&](T* first, idx elements) {
            std::copy_n(first + from * elements, elements, first + to * elements);
        };
        n = to;
        for (idx token = tokens.n - 1; token >= 0 && from < to; --token) {
            for (idx head = 0; head < group; ++head) {
                --from, --to;
                copy_row(q, width);
                copy_row(o, width);
                copy_row(totals, P::size);
                copy_row(largest, 1);
            }
            if (tokens.repeats(token)) from += group;
        }
    }

    // So few that memory is slower than they are.
    bool few() const { return n <= 16; }

    // Scores of rows [i, i + m) for `keys` of the tile; beside them, up to whole registers, anything.
    void scores(idx i, idx m, key_range keys, const attention_keys<T>& from) const {
        const idx columns = round_up(keys.hi - keys.lo, P::size),
                  first = std::min(keys.lo, key_tile - columns);
        const auto multiply = [&]<class S>(const S* k) {
            row_product<Arch>(row_product_args<T, S, scales_of::columns>{
                .a = q + i * width,
                .a_row = width,
                .b = k + first,
                .b_row = key_tile,
                .c = s + first,
                .c_row = key_tile,
                .m = m,
                .n = columns,
                .k = head_dim,
                .add = false,
                .ask = i == 0 && few() && !from.near ? columns : 0,
                .scales = std::is_same_v<S, std::int8_t> ? from.small.k_scales + first : nullptr});
        };
        as_kept(from.small.storage, from.small.k, from.k, multiply);
    }

    // Takes row i's scores of the keys it sees into its maximum and rescales what was summed before. Scores
    // of the other keys from `first` to `end`, whole registers, become -inf. Returns what to subtract.
    SLUICE_INLINE T raise(idx i, T* row, key_range seen, idx first, idx end, bool masked) const {
        constexpr T lowest = -std::numeric_limits<T>::infinity();
        P most(lowest);
        for (idx j = first; j < end; j += P::size) {
            P x = P::load(row + j);
            if (j < seen.lo || j + P::size > seen.hi) {
                x = only(x, seen.lo - j, seen.hi - j);
                x.store(row + j);
            }
            most = max(most, x);
        }
        const T before = largest[i];
        if (P::any(P(before) < most)) {
            largest[i] = most.largest();
            if (before != lowest) shrink(i, before - largest[i]);
        }
        // -inf less -inf is NaN: right for scores of -inf, wrong where a row sees none of the keys
        return largest[i] == lowest && (masked || seen.lo >= seen.hi) ? T(0) : largest[i];
    }

    void shrink(idx i, T exponent) const {
        const P factor = exp_nonpositive(P(exponent));
        (P::load(totals + i * P::size) * factor).store(totals + i * P::size);
        T* const to = o + i * width;
        for (idx j = 0; j < width; j += P::size) (P::load(to + j) * factor).store(to + j);
    }

    // Turns the scores of rows [i, i + m) from `first` to `end` into weights.
    void weigh(idx i, idx m, idx first, idx end, const T* subtract) const {
        for (idx r = 0; r < m; ++r) {
            T *const row = s + r * key_tile, *const total = totals + (i + r) * P::size;
            const P shift(subtract[r]);
            P sum = P::load(total);
            for (idx j = first; j < end; j += P::size) {
                const P e = exp_nonpositive(P::load(row + j) - shift);
                sum = sum + e;
                e.store(row + j);
            }
            sum.store(total);
        }
    }

    // Lanes below `from` and from `to` on become -inf.
    static SLUICE_INLINE P only(P x, idx from, idx to) {
        static constexpr auto counted = [] {
            std::array<T, static_cast<std::size_t>(P::size)> lanes{};
            for (idx i = 0; i < P::size; ++i) lanes[static_cast<std::size_t>(i)] = static_cast<T>(i);
            return lanes;
        }();
        const P lane = P::load(counted.data()), lowest(-std::numeric_limits<T>::infinity());
        x = select(lane < P(static_cast<T>(to)), x, lowest);
        return select(lane < P(static_cast<T>(from)), lowest, x);
    }

    // o += p v for rows [i, i + m), whose weights are p, and `keys` of the tile.
    void accumulate(idx i, const T* p, idx m, key_range keys, const attention_keys<T>& from) const {
        if (keys.lo >= keys.hi) return;
        const auto multiply = [&]<class S>(const S* v) {
            row_product<Arch>(row_product_args<T, S>{
                .a = p + keys.lo,
                .a_row = key_tile,
                .b = v + keys.lo * from.v_row,
                .b_row = from.v_row,
                .c = o + i * width,
                .c_row = width,
                .m = m,
                .n = width,
                .k = keys.hi - keys.lo,
                .add = true,
                .ask = i == 0 && few() && !from.near ? width : 0,
                .scales = std::is_same_v<S, std::int8_t> ? from.small.v_scales + keys.lo : nullptr});
        };
        as_kept(from.small.storage, from.small.v, from.v, multiply);
    }
};

// Rows that will be needed soon and lie too far apart for the hardware to guess.
template <class T>
struct coming_rows {
    const T* first;
    idx stride, n, elements;

    template <int Write>
    SLUICE_INLINE void ask(idx rows) {
        for (; rows > 0 && n > 0; --rows, --n, first += stride)
            for (idx j = 0; j < elements; j += 64 / static_cast<idx>(sizeof(T)))
                __builtin_prefetch(first + j, Write);
    }
};

// They are asked for a few at a time between products: all at once would wait for each other.
template <class T>
struct coming_block {
    coming_rows<T> y, q, k, v;
    SLUICE_INLINE void ask(idx rows) {
        y.template ask<1>(rows);
        q.template ask<0>(rows);
        k.template ask<0>(rows);
        v.template ask<0>(rows);
    }
};

// One tile for all rows of a block, as many at a time as a product takes. `place` is the tile, of which the
// block sees `keys`.
template <class Arch, class T, class Policy>
void attention_over_tile(const attention_rows<Arch, T>& rows, const attention_keys<T>& tile, key_range keys,
                         const block_tokens<Policy>& tokens, const tile_place& place, idx group,
                         coming_block<T>& coming) {
    constexpr idx step = attention_rows<Arch, T>::step, lanes = attention_rows<Arch, T>::P::size;
    const Policy& policy = *tokens.policy;
    key_biases(policy, place, rows.bias);
    auto inside = [&](idx key) { return std::clamp(key - place.first, keys.lo, keys.hi); };
    key_range seen[std::size_t{step}], mine, hull;
    bool sees = true;
    T subtract[std::size_t{step}];
    int finite = -1; // not known yet
    const idx pace = ceil_div(step, 3 * group);
    for (idx i = 0, token = 0, head = 0; i < rows.n; i += step) {
        const idx m = std::min(step, rows.n - i);
        idx row_of[std::size_t{step}];
        key_range all;
        idx blind = 0;
        for (idx r = 0; r < m; ++r) {
            row_of[r] = tokens.first_row + token;
            if (r == 0 || head == 0) {
                const key_range range = policy.range(place.sequence, row_of[r], place.source);
                mine = hull = {inside(range.lo), inside(range.hi)};
                sees = !is_blind(policy, place.sequence, row_of[r], place.source);
                if (!sees) mine.hi = mine.lo;
            }
            blind += sees ? 0 : 1;
            seen[r] = mine;
            if (r == 0) all.lo = hull.lo; // neither end ever decreases
            all.hi = hull.hi;
            if (++head == group) {
                head = 0;
                token = tokens.after(token);
            }
        }
        if (all.lo >= all.hi || blind == m) continue;
        coming.ask(pace);
        rows.scores(i, m, all, tile);
        coming.ask(pace);
        const idx first = all.lo / lanes * lanes, end = round_up(all.hi, lanes);
        for (idx r = 0; r < m; ++r) {
            T* const row = rows.s + r * key_tile;
            add_biases(policy, place, rows.bias, row_of[r], seen[r], row);
            subtract[r] = rows.raise(i + r, row, seen[r], first, end, has_tail<Policy>);
        }
        rows.weigh(i, m, first, end, subtract);
        coming.ask(pace);
        const bool alike = blind == 0 && seen[0].hi == all.hi && seen[m - 1].lo == all.lo;
        if (!alike && finite < 0)
            finite =
                all_finite<Arch>(tile.v + keys.lo * tile.v_row, tile.v_row, keys.hi - keys.lo, rows.width);
        if (alike || finite == 1) {
            rows.accumulate(i, rows.s, m, all, tile);
            continue;
        }
        for (idx r = 0; r < m; ++r) rows.accumulate(i + r, rows.s + r * key_tile, 1, seen[r], tile);
    }
}

template <class Arch, class T, class Policy, class Sources>
void attention_block::operator()(Arch, const attention_block_args<T, Policy, Sources>& g) const {
    using P = simd::pack<T, Arch>;
    const idx d = g.head_dim;
    attention_rows<Arch, T> rows(g.tokens * g.group, d, g.scratch);
    // All rows see the same keys, and values need not be looked through.
    rows.tile.once = g.tokens == 1 && rows.n <= rows.step && !has_blind_rows<Policy>;
    block_tokens<Policy> tokens{g.policy, g.sequence, g.first_row, g.tokens, has_repeated_rows<Policy>};
    T* q = rows.q;
    for (idx token = 0; token < g.tokens; token = tokens.after(token))
        for (idx head = 0; head < g.group; ++head, q += rows.width) {
            const T* from = g.q + token * g.q_row + head * d;
            simd::for_each_pack<P>(
                d, [&](idx j, idx k) { (P::load_partial(from + j, k) * P(g.scale)).store(q + j); });
        }
    rows.n = (q - rows.q) / rows.width;
    coming_block<T> coming{
        {g.y, g.y_row, g.tokens, g.group * d}, {g.next_q, g.q_row, g.next_tokens, g.group * d}, {}, {}};
    for (idx source = 0; source < Policy::n_sources; ++source) {
        const attention_source<T> from = (*g.sources)(g.sequence, source);
        auto seen = [&](idx token) { return g.policy->range(g.sequence, g.first_row + token, source); };
        auto blind = [&](idx token) { return is_blind(*g.policy, g.sequence, g.first_row + token, source); };
        idx begin = 0, end = g.tokens; // of those that see anything
        while (begin < end && blind(begin)) ++begin;
        while (begin < end && blind(end - 1)) --end;
        const idx first = begin < end ? seen(begin).lo : 0, last = begin < end ? seen(end - 1).hi : 0;
        const idx head_row = from.head == 0 ? d : from.head, head = g.kv_head * head_row;
        for (idx tile = first / key_tile * key_tile; tile < last; tile += key_tile) {
            const key_range keys{std::max(first - tile, idx{0}), std::min(key_tile, last - tile)};
            if (from.layout == key_layout::rows) {
                // the next tile, or the first one of the next head, which most often comes then
                const bool more = tile + key_tile < last;
                const idx next = more ? tile + key_tile : first, row = from.row(next),
                          at = more ? head : head + head_row;
                const idx n = std::min(round_up(next + 1, key_tile), last) - next;
                coming.k = {from.k + row * from.k_row + at, from.k_row, n, d};
                coming.v = {from.v + row * from.v_row + at, from.v_row, n, d};
            }
            const auto here = take_tile<Arch>(rows.tile, from, head, from.row(tile), keys);
            attention_over_tile(rows, here, keys, tokens, {g.sequence, source, tile, keys.hi}, g.group,
                                coming);
            coming.k.template ask<0>(key_tile);
            coming.v.template ask<0>(key_tile);
        }
        if (tokens.folded) {
            rows.unfold(tokens, g.group);
            tokens.folded = false;
        }
    }
    for (idx i = 0; i < rows.n; ++i) {
        T* to = g.y + i / g.group * g.y_row + i % g.group * d;
        const T total = P::load(rows.totals + i * P::size).sum();
        const P share(total == T(0) ? T(0) : T(1) / total); // 0: sees no key at all
        simd::for_each_pack<P>(d, [&](idx j, idx k) {
            // plus 0: whether a sum of nothing is 0 or -0 depends on the rows beside
            (P::load(rows.o + i * rows.width + j) * share + P(T(0))).store_partial(to + j, k);
        });
        if (g.lse != nullptr)
            g.lse[i / g.group * g.lse_row + i % g.group] = rows.largest[i] + std::log(total);
    }
}

} // namespace sluice::kernels
