// What a layer has to know about the rows it is given: which sequence they belong to, where they stand in it,
// and what produced them. All of it is the caller's memory. First argument of every layer call.
#pragma once

#include "arena.hpp"

#include <algorithm>
#include <limits>
#include <span>

namespace sluice {

// A token is one row, or with repetition `copies` rows side by side: the original first, then its hidden
// copies. Everything else counts tokens; rows(), begin() and end() say where their rows are.
struct batch {
    idx n_tokens = 0;                 // tokens in this call
    std::span<const idx> offsets{};   // n_sequences + 1 tokens, 0 first, n_tokens last; empty: one sequence
    std::span<const idx> positions{}; // n_tokens, absolute; empty: each sequence counts from first_position
    std::span<const token_id> ids{};  // n_tokens; may be empty where no layer reads them
    std::span<const idx> slots{};     // n_sequences: which sequence of the state; empty: 0, 1, 2, ...
    idx first_position = 0;
    idx copies = 1; // rows of a token (token repetition)
    // The copies of a token hold the same numbers, so what does not tell them apart need be computed once.
    bool alike = false;
    // n_sequences + 1 rows, where hidden copies were left out: the last tokens of a sequence have `copies`
    // rows, as many as there are rows for, and those before them only their original; empty: all have copies
    std::span<const idx> row_offsets{};
    std::uint64_t random_key = 0; // for jitter and sampling; the same key gives the same numbers
    // Where memory is only counted: as many sequences as there may be; offsets are empty then.
    idx counted_sequences = 0;
    // Concepts that each sequence may make in this call; 0: as many as it has tokens. More is a
    // capacity_error.
    idx max_concepts = 0;

    // One sequence of n tokens, the first at `first`.
    static batch one(idx n, idx first = 0) { return {.n_tokens = n, .first_position = first}; }
    static batch one(std::span<const token_id> ids, idx first = 0) {
        return {.n_tokens = static_cast<idx>(ids.size()), .ids = ids, .first_position = first};
    }

    idx n_sequences() const { return offsets.empty() ? 1 : static_cast<idx>(offsets.size()) - 1; }
    idx slot(idx sequence) const { return slots.empty() ? sequence : slots[at(sequence)]; }

    SLUICE_INLINE idx tokens(idx sequence) const {
        return offsets.empty() ? n_tokens : offsets[at(sequence + 1)] - offsets[at(sequence)];
    }
    SLUICE_INLINE idx first_token(idx sequence) const { return offsets.empty() ? 0 : offsets[at(sequence)]; }

    // The sequence that a token of this call belongs to.
    idx sequence_of(idx token) const {
        if (offsets.empty()) return 0;
        return std::upper_bound(offsets.begin(), offsets.end(), token) - offsets.begin() - 1;
    }

    idx rows() const { // a product out of range, which check_batch finds, is no undefined behaviour
        if (!row_offsets.empty()) return row_offsets.back();
        return static_cast<idx>(static_cast<std::size_t>(n_tokens) * static_cast<std::size_t>(copies));
    }
    SLUICE_INLINE idx begin(idx sequence) const {
        return row_offsets.empty() ? first_token(sequence) * copies : row_offsets[at(sequence)];
    }
    SLUICE_INLINE idx end(idx sequence) const {
        return row_offsets.empty() ? (first_token(sequence) + tokens(sequence)) * copies
                                   : row_offsets[at(sequence + 1)];
    }
    // Leading tokens of a sequence that have no hidden copies here.
    idx bare(idx sequence) const {
        if (row_offsets.empty()) return 0;
        return (tokens(sequence) * copies - (end(sequence) - begin(sequence))) / (copies - 1);
    }
    // The first row, the original, of the sequence's i-th token here.
    idx original(idx sequence, idx i) const {
        const idx first = bare(sequence);
        return begin(sequence) + (i < first ? i : first + (i - first) * copies);
    }
    // Of a row that belongs to `sequence`: which of the sequence's tokens here it is, which copy of it (0:
    // the original), and the token's absolute position.
    idx token(idx sequence, idx row) const {
        const idx i = row - begin(sequence), first = bare(sequence);
        return copies == 1 || i < first ? i : first + (i - first) / copies;
    }
    idx copy(idx sequence, idx row) const {
        const idx i = row - begin(sequence), first = bare(sequence);
        return copies == 1 || i < first ? 0 : (i - first) % copies;
    }
    idx position(idx sequence, idx row) const {
        const idx i = token(sequence, row);
        return positions.empty() ? first_position + i : positions[at(first_token(sequence) + i)];
    }

private:
    static SLUICE_INLINE std::size_t at(idx i) { return static_cast<std::size_t>(i); }
};

// Some rows of a batch, in rising order within each sequence: all that is wanted of an output. `to` is the
// batch that they make.
struct row_selection {
    std::span<const std::int32_t> rows{};
    batch to{};
};

// Some tokens of a batch with all their rows, as a batch of their own: in their sequences, of which some may
// have become empty, and at their own positions.
struct token_selection {
    const std::int32_t* tokens = nullptr; // to.n_tokens: of the whole batch, rising
    std::int32_t* starts = nullptr;       // to.n_tokens + 1: the first row of each in `to`
    std::int32_t* rows = nullptr;         // to.rows(): of the whole batch, rising
    batch to{};

    std::span<const std::int32_t> all_rows() const {
        return {rows, rows == nullptr ? 0 : static_cast<std::size_t>(to.rows())};
    }
    // Rows [first, first + n) of `to` are token i's; the first is the original.
    idx first(idx i) const { return starts[i]; }
    idx count(idx i) const { return starts[i + 1] - starts[i]; }
};

// `tokens` has n of them, rising; memory from `keep`, where a dry one counts the most that n can take.
inline token_selection select_tokens(const batch& b, const std::int32_t* tokens, idx n, arena& keep) {
    token_selection s{.tokens = tokens, .to = b};
    const idx n_sequences = std::max(b.n_sequences(), b.counted_sequences);
    auto* const offsets = keep.take<idx>(n_sequences + 1);
    auto* const row_offsets = b.copies > 1 ? keep.take<idx>(n_sequences + 1) : nullptr;
    auto* const positions = keep.take<idx>(n);
    auto* const ids = keep.take<token_id>(n);
    s.starts = keep.take<std::int32_t>(n + 1);
    s.rows = keep.take<std::int32_t>(n * b.copies);
    s.to.n_tokens = n;
    s.to.offsets = s.to.row_offsets = s.to.positions = {};
    s.to.ids = {};
    if (offsets == nullptr) return s;
    const auto at = [](idx i) { return static_cast<std::size_t>(i); };
    idx i = 0, rows = 0;
    for (idx q = 0; q < b.n_sequences(); ++q) {
        offsets[q] = i;
        if (row_offsets != nullptr) row_offsets[q] = rows;
        const idx first = b.first_token(q), bare = b.bare(q);
        for (; i < n && tokens[i] < first + b.tokens(q); ++i) {
            const idx token = tokens[i] - first;
            positions[i] = b.positions.empty() ? b.first_position + token : b.positions[at(tokens[i])];
            if (!b.ids.empty()) ids[i] = b.ids[at(tokens[i])];
            s.starts[i] = static_cast<std::int32_t>(rows);
            rows += token < bare ? 1 : b.copies;
        }
    }
    s.starts[n] = static_cast<std::int32_t>(rows);
    offsets[b.n_sequences()] = n;
    s.to.offsets = {offsets, at(b.n_sequences() + 1)};
    s.to.positions = {positions, at(n)};
    if (!b.ids.empty()) s.to.ids = {ids, at(n)};
    if (!b.row_offsets.empty()) {
        row_offsets[b.n_sequences()] = rows;
        s.to.row_offsets = {row_offsets, at(b.n_sequences() + 1)};
    }
    i = 0;
    for (idx q = 0; q < b.n_sequences(); ++q)
        for (; i < offsets[q + 1]; ++i) {
            idx row = b.original(q, tokens[i] - b.first_token(q));
            for (idx to = s.starts[i]; to < s.starts[i + 1]; ++to)
                s.rows[to] = static_cast<std::int32_t>(row++);
        }
    return s;
}

// Checks everything about a batch that its own numbers can tell, in every build type. `layer` names the
// caller in the message.
inline void check_batch(const batch& b, std::string_view layer) {
    auto fail = [&](const std::string& what) {
        SLUICE_THROW(input_error(std::string(layer) + ": batch: " + what));
    };
    auto text = [](auto n) { return std::to_string(n); };
    if (b.n_tokens < 0) fail("n_tokens is " + text(b.n_tokens));
    if (b.copies < 1) fail("copies must be positive, is " + text(b.copies));
    if (b.first_position < 0) fail("first_position is " + text(b.first_position));
    if (b.max_concepts < 0) fail("max_concepts is " + text(b.max_concepts));
    if (b.first_position > std::numeric_limits<idx>::max() - b.n_tokens)
        fail("first_position is " + text(b.first_position) + ", too large for " + text(b.n_tokens) +
             " tokens");
    if (b.n_tokens > std::numeric_limits<idx>::max() / b.copies)
        fail("copies is " + text(b.copies) + ", too large for " + text(b.n_tokens) + " tokens");
    const auto n = static_cast<std::size_t>(b.n_tokens);
    if (!b.positions.empty() && b.positions.size() != n)
        fail("positions has " + text(b.positions.size()) + " entries for " + text(n) + " tokens");
    if (!b.ids.empty() && b.ids.size() != n)
        fail("ids has " + text(b.ids.size()) + " entries for " + text(n) + " tokens");
    if (!b.offsets.empty()) {
        if (b.offsets.front() != 0 || b.offsets.back() != b.n_tokens)
            fail("offsets must run from 0 to " + text(n) + ", run from " + text(b.offsets.front()) + " to " +
                 text(b.offsets.back()));
        for (std::size_t i = 1; i < b.offsets.size(); ++i)
            if (b.offsets[i] < b.offsets[i - 1]) fail("offsets must not decrease, do so at entry " + text(i));
    }
    if (!b.slots.empty() && static_cast<idx>(b.slots.size()) != b.n_sequences())
        fail("slots has " + text(b.slots.size()) + " entries for " + text(b.n_sequences()) + " sequences");
    bool rising = true; // then all differ; otherwise each is compared with those before it
    for (std::size_t i = 0; i < b.slots.size(); ++i) {
        const auto before = b.slots.first(i);
        if (b.slots[i] < 0) fail("a slot is " + text(b.slots[i]));
        rising = rising && (i == 0 || b.slots[i] > b.slots[i - 1]);
        if (!rising && std::find(before.begin(), before.end(), b.slots[i]) != before.end())
            fail("slot " + text(b.slots[i]) + " is given twice");
    }
    for (idx p : b.positions)
        if (p < 0) fail("a position is " + text(p));
    if (b.row_offsets.empty()) return;
    if (b.copies == 1) fail("row_offsets leave out hidden copies, and copies is 1");
    if (static_cast<idx>(b.row_offsets.size()) != b.n_sequences() + 1)
        fail("row_offsets has " + text(b.row_offsets.size()) + " entries for " + text(b.n_sequences()) +
             " sequences");
    if (b.row_offsets.front() != 0) fail("row_offsets must start at 0");
    for (idx s = 0; s < b.n_sequences(); ++s) {
        const idx rows = b.end(s) - b.begin(s), most = b.tokens(s) * b.copies;
        if (rows < b.tokens(s) || rows > most || (most - rows) % (b.copies - 1) != 0)
            fail("row_offsets give sequence " + text(s) + " " + text(rows) + " rows for " +
                 text(b.tokens(s)) + " tokens of " + text(b.copies) + " copies");
    }
}

} // namespace sluice
