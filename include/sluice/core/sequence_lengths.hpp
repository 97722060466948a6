// How many tokens each sequence of a state holds, and which of them may be taken back: what every state with
// a cache or a ring has to keep and to check. The rows themselves are the state's own.
#pragma once

#include "layer.hpp"

namespace sluice {

struct sequence_lengths {
    tensor_view<idx> length; // 1 x n_sequences: tokens each sequence holds
    tensor_view<idx> newest; // 1 x n_sequences: the most it held since it was cleared
    limits most{};
    std::string_view name; // of the state, in errors; a literal

    // All sequences are empty. Throws config_error where a limit makes no sense.
    static sequence_lengths bind(arena& a, const limits& most, std::string_view name) {
        check_limits(most);
        require_positive(most.max_tokens, name, "max_tokens");
        sequence_lengths s;
        s.most = most;
        s.name = name;
        s.length = a.take<idx>(1, most.n_sequences);
        s.newest = a.take<idx>(1, most.n_sequences);
        if (a.dry()) return s;
        fill(s.length, 0);
        fill(s.newest, 0);
        return s;
    }

    idx n_sequences() const { return length.cols(); }

    // Forgets what `slot` holds beyond `tokens`. Everything may be forgotten at any time; otherwise at most
    // max_rollback tokens behind the newest, for the rest may have been overwritten.
    void truncate(idx slot, idx tokens) {
        check_slot(slot);
        auto fail = [&](const std::string& why) {
            SLUICE_THROW(input_error(std::string(name) + ": truncate sequence " + std::to_string(slot) +
                                     " to " + std::to_string(tokens) + ": " + why));
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
            const idx slot = b.slot(s), n = b.tokens(s);
            check_slot(slot);
            for (idx other = 0; other < s; ++other)
                if (b.slot(other) == slot)
                    SLUICE_THROW(input_error(std::string(name) + ": two sequences of the batch name slot " +
                                             std::to_string(slot)));
            if (n > most.max_tokens - length(0, slot))
                SLUICE_THROW(capacity_error(std::string(name) + ": sequence " + std::to_string(slot),
                                            length(0, slot) + n, most.max_tokens, "tokens (max_tokens)"));
        }
    }

    // Tokens of sequence s of the batch that came before it.
    idx past(const batch& b, idx s) const { return length(0, b.slot(s)); }

    // Counts the batch's tokens: the last thing an extend does, when their rows are stored.
    void append(const batch& b) {
        for (idx s = 0; s < b.n_sequences(); ++s) {
            const idx slot = b.slot(s);
            length(0, slot) += b.tokens(s);
            newest(0, slot) = std::max(newest(0, slot), length(0, slot));
        }
    }

    void check_slot(idx slot) const {
        if (slot < 0 || slot >= n_sequences())
            SLUICE_THROW(input_error(std::string(name) + ": no sequence " + std::to_string(slot) +
                                     ", there are " + std::to_string(n_sequences())));
    }
};

} // namespace sluice
