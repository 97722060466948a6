#include "support/catch.hpp"

#include <sluice/core/sequence_lengths.hpp>

#include <limits>
#include <vector>

using sluice::arena;
using sluice::batch;
using sluice::idx;
using sluice::limits;
using sluice::sequence_lengths;

namespace {

std::vector<std::byte> old_memory(1024, std::byte{0xA5});

sequence_lengths bind(const limits& most) {
    arena memory{std::span(old_memory)};
    return sequence_lengths::bind(memory, most, "ring");
}
void append(sequence_lengths& s, idx slot, idx n) {
    const std::vector<idx> slots{slot};
    batch b = batch::one(n);
    b.slots = slots;
    s.check_room(b);
    s.append(b);
}

} // namespace

TEST_CASE("every sequence starts empty, in memory that was used before") {
    const sequence_lengths s = bind({.max_tokens = 4, .n_sequences = 3});
    CHECK(s.n_sequences() == 3);
    for (idx i = 0; i < 3; ++i) CHECK((s.length(0, i) == 0 && s.newest(0, i) == 0));
}

TEST_CASE("a batch counts for the slots it names") {
    sequence_lengths s = bind({.max_tokens = 9, .n_sequences = 3});
    const std::vector<idx> offsets{0, 2, 2, 7}, slots{2, 1, 0};
    const batch b{.n_tokens = 7, .offsets = offsets, .slots = slots};
    s.check_room(b);
    s.append(b);
    CHECK((s.length(0, 0) == 5 && s.length(0, 1) == 0 && s.length(0, 2) == 2));
    CHECK((s.past(b, 0) == 2 && s.past(b, 1) == 0 && s.past(b, 2) == 5));
    s.append({.n_tokens = 7, .offsets = offsets});
    CHECK((s.length(0, 0) == 7 && s.length(0, 1) == 0 && s.length(0, 2) == 7));
}

TEST_CASE("tokens are taken back as far as max_rollback, and all of them at any time") {
    sequence_lengths s = bind({.max_tokens = 20, .n_sequences = 2, .max_rollback = 3});
    append(s, 1, 10);
    s.truncate(1, 8);
    CHECK((s.length(0, 1) == 8 && s.newest(0, 1) == 10));
    CHECK_THROWS_WITH(s.truncate(1, 6), "ring: truncate sequence 1 to 6: only 3 tokens can be taken back "
                                        "(max_rollback)"); // of the newest there was
    CHECK_THROWS_WITH(s.truncate(1, 9), "ring: truncate sequence 1 to 9: it holds 8 tokens");
    CHECK_THROWS_WITH(s.truncate(1, -1), "ring: truncate sequence 1 to -1: it holds 8 tokens");
    CHECK_THROWS_WITH(s.truncate(2, 0), "ring: no sequence 2, there are 2");
    CHECK_THROWS_WITH(s.truncate(-1, 0), "ring: no sequence -1, there are 2");
    append(s, 1, 4);
    CHECK((s.length(0, 1) == 12 && s.newest(0, 1) == 12));
    s.truncate(1, 0);
    CHECK((s.length(0, 1) == 0 && s.newest(0, 1) == 0));
    append(s, 1, 2);
    s.truncate(1, 1);
}

TEST_CASE("what has no room is refused") {
    sequence_lengths s = bind({.max_tokens = 5, .n_sequences = 2});
    append(s, 1, 4);
    CHECK_NOTHROW(append(s, 1, 1));
    CHECK_THROWS_WITH(append(s, 1, 1), "ring: sequence 1: needs 6 tokens (max_tokens), has 5");
    CHECK_THROWS_AS(append(s, 0, std::numeric_limits<idx>::max()), sluice::capacity_error);
    CHECK_THROWS_WITH(append(s, 2, 1), "ring: no sequence 2, there are 2");
    const std::vector<idx> offsets{0, 1, 2}, twice{0, 0};
    CHECK_THROWS_WITH(s.check_room({.n_tokens = 2, .offsets = offsets, .slots = twice}),
                      "ring: two sequences of the batch name slot 0");
    CHECK((s.length(0, 0) == 0 && s.length(0, 1) == 5));
}

TEST_CASE("limits that no caller can mean are refused") {
    CHECK_THROWS_WITH(bind({}), "ring: max_tokens must be positive, is 0");
    CHECK_THROWS_AS(bind({.max_tokens = 1, .n_sequences = 0}), sluice::config_error);
    CHECK_THROWS_AS(bind({.max_tokens = idx{1} << 60}), sluice::config_error);
    CHECK_THROWS_AS(bind({.max_tokens = 1, .max_rollback = -1}), sluice::config_error);
}

TEST_CASE("a dry arena counts what it takes") {
    arena dry, memory{std::span(old_memory)};
    const limits most{.max_tokens = 5, .n_sequences = 9};
    CHECK(sequence_lengths::bind(dry, most, "ring").length.data() == nullptr);
    (void)sequence_lengths::bind(memory, most, "ring");
    CHECK(dry.bytes() == memory.bytes());
}
