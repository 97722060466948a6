// What a layer has to know about the rows it is given: which sequence they belong to, where they stand in it,
// and what produced them. All of it is the caller's memory. First argument of every layer call.
#pragma once

#include "error.hpp"

#include <algorithm>
#include <limits>
#include <span>

namespace sluice {

struct batch {
    idx n_tokens = 0;                 // rows in this call
    std::span<const idx> offsets{};   // n_sequences + 1 rows, 0 first, n_tokens last; empty: one sequence
    std::span<const idx> positions{}; // n_tokens, absolute; empty: each sequence counts from first_position
    std::span<const token_id> ids{};  // n_tokens; may be empty where no layer reads them
    std::span<const idx> slots{};     // n_sequences: which sequence of the state; empty: 0, 1, 2, ...
    idx first_position = 0;
    idx copies = 1;               // rows that share a position (token repetition)
    std::uint64_t random_key = 0; // for jitter and sampling; the same key gives the same numbers

    // One sequence of n tokens, the first at `first`.
    static batch one(idx n, idx first = 0) { return {.n_tokens = n, .first_position = first}; }
    static batch one(std::span<const token_id> ids, idx first = 0) {
        return {.n_tokens = static_cast<idx>(ids.size()), .ids = ids, .first_position = first};
    }

    idx n_sequences() const { return offsets.empty() ? 1 : static_cast<idx>(offsets.size()) - 1; }
    idx begin(idx sequence) const { return offsets.empty() ? 0 : offsets[at(sequence)]; }
    idx end(idx sequence) const { return offsets.empty() ? n_tokens : offsets[at(sequence + 1)]; }
    idx slot(idx sequence) const { return slots.empty() ? sequence : slots[at(sequence)]; }
    // The absolute position of a row that belongs to `sequence`.
    idx position(idx sequence, idx row) const {
        return positions.empty() ? first_position + row - begin(sequence) : positions[at(row)];
    }

private:
    static std::size_t at(idx i) { return static_cast<std::size_t>(i); }
};

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
    if (b.first_position > std::numeric_limits<idx>::max() - b.n_tokens)
        fail("first_position is " + text(b.first_position) + ", too large for " + text(b.n_tokens) +
             " tokens");
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
}

} // namespace sluice
