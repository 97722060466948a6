#include "support/catch.hpp"
#include "support/message_of.hpp"

#include <sluice/core/batch.hpp>

#include <array>
#include <limits>
#include <vector>

using sluice::batch;
using sluice::check_batch;
using sluice::idx;
using sluice::token_id;

static_assert(std::is_trivially_copyable_v<batch> && std::is_aggregate_v<batch>);

namespace {

std::string complaint(const batch& b) {
    return sluice::test::complaint([&] { check_batch(b, "norm"); });
}

} // namespace

TEST_CASE("an empty batch is legal") {
    CHECK(complaint({}).empty());
    CHECK(batch{}.n_sequences() == 1);
    CHECK(complaint(batch::one(0)).empty());
    const std::array<idx, 1> none{0};
    const batch b{.offsets = none};
    CHECK(b.n_sequences() == 0);
    CHECK(complaint(b).empty());
}

TEST_CASE("one sequence needs no tables") {
    const batch b = batch::one(5, 100);
    CHECK((b.n_tokens == 5 && b.n_sequences() == 1));
    CHECK((b.begin(0) == 0 && b.end(0) == 5 && b.slot(0) == 0));
    CHECK((b.position(0, 0) == 100 && b.position(0, 4) == 104));
    CHECK(complaint(b).empty());
}

TEST_CASE("one sequence of ids takes its length from them") {
    const std::array<token_id, 3> ids{7, -1, 9};
    const batch b = batch::one(ids, 2);
    CHECK((b.n_tokens == 3 && b.ids.data() == ids.data() && b.position(0, 1) == 3));
    CHECK(complaint(b).empty()); // ids are judged by the layer that reads them
}

TEST_CASE("several sequences start where the offsets say") {
    const std::array<idx, 4> offsets{0, 3, 3, 8};
    const std::array<idx, 3> slots{5, 0, 2};
    const batch b{.n_tokens = 8, .offsets = offsets, .slots = slots, .first_position = 10};
    CHECK(complaint(b).empty());
    CHECK(b.n_sequences() == 3);
    CHECK((b.begin(0) == 0 && b.end(0) == 3 && b.begin(1) == 3 && b.end(1) == 3 && b.begin(2) == 3 &&
           b.end(2) == 8));
    CHECK((b.slot(0) == 5 && b.slot(1) == 0 && b.slot(2) == 2));
    CHECK((b.position(0, 2) == 12 && b.position(2, 3) == 10 && b.position(2, 7) == 14));
    const batch no_slots{.n_tokens = 8, .offsets = offsets};
    CHECK(no_slots.slot(2) == 2);
}

TEST_CASE("positions override the count from first_position") {
    const std::array<idx, 3> positions{4, 90, 7};
    const batch b{.n_tokens = 3, .positions = positions, .first_position = 1000};
    CHECK((b.position(0, 0) == 4 && b.position(0, 1) == 90 && b.position(0, 2) == 7));
    CHECK(complaint(b).empty());
}

TEST_CASE("negative counts are refused") {
    CHECK(complaint({.n_tokens = -1}) == "norm: batch: n_tokens is -1");
    CHECK(complaint({.n_tokens = 1, .copies = 0}) == "norm: batch: copies must be positive, is 0");
    CHECK(complaint({.n_tokens = 1, .copies = -2}) == "norm: batch: copies must be positive, is -2");
    CHECK(complaint(batch::one(1, -5)) == "norm: batch: first_position is -5");
    CHECK(complaint({.n_tokens = 1, .max_concepts = -1}) == "norm: batch: max_concepts is -1");
}

TEST_CASE("positions must be one a token and not negative") {
    const std::array<idx, 3> positions{0, -4, 2};
    CHECK(complaint({.n_tokens = 2, .positions = positions}) ==
          "norm: batch: positions has 3 entries for 2 tokens");
    CHECK(complaint({.n_tokens = 3, .positions = positions}) == "norm: batch: a position is -4");
}

TEST_CASE("ids must be one a token") {
    const std::array<token_id, 3> ids{1, 2, 3};
    CHECK(complaint({.n_tokens = 4, .ids = ids}) == "norm: batch: ids has 3 entries for 4 tokens");
}

TEST_CASE("offsets must run from zero to the number of tokens") {
    const std::array<idx, 3> late{1, 2, 5}, early{0, 2, 4};
    CHECK(complaint({.n_tokens = 5, .offsets = late}) ==
          "norm: batch: offsets must run from 0 to 5, run from 1 to 5");
    CHECK(complaint({.n_tokens = 5, .offsets = early}) ==
          "norm: batch: offsets must run from 0 to 5, run from 0 to 4");
}

TEST_CASE("offsets must not decrease") {
    const std::array<idx, 4> offsets{0, 4, 3, 5}, outside{0, 9, 5, 5};
    CHECK(complaint({.n_tokens = 5, .offsets = offsets}) ==
          "norm: batch: offsets must not decrease, do so at entry 2");
    CHECK(complaint({.n_tokens = 5, .offsets = outside}) ==
          "norm: batch: offsets must not decrease, do so at entry 2");
    const std::array<idx, 4> negative{0, -1, 3, 5};
    CHECK(complaint({.n_tokens = 5, .offsets = negative}) ==
          "norm: batch: offsets must not decrease, do so at entry 1");
}

TEST_CASE("slots must be one a sequence") {
    const std::array<idx, 2> slots{0, 1};
    CHECK(complaint({.n_tokens = 1, .slots = slots}) == "norm: batch: slots has 2 entries for 1 sequences");
    const std::array<idx, 4> offsets{0, 1, 1, 1};
    CHECK(complaint({.n_tokens = 1, .offsets = offsets, .slots = slots}) ==
          "norm: batch: slots has 2 entries for 3 sequences");
}

TEST_CASE("slots must be distinct and not negative") {
    const std::array<idx, 4> offsets{0, 1, 2, 3};
    const std::array<idx, 3> negative{0, -1, 2}, twice{4, 1, 4}, falling{4, 3, 1};
    CHECK(complaint({.n_tokens = 3, .offsets = offsets, .slots = negative}) == "norm: batch: a slot is -1");
    CHECK(complaint({.n_tokens = 3, .offsets = offsets, .slots = twice}) ==
          "norm: batch: slot 4 is given twice");
    CHECK(complaint({.n_tokens = 3, .offsets = offsets, .slots = falling}).empty());
}

TEST_CASE("positions beyond the largest index are refused") {
    constexpr idx most = std::numeric_limits<idx>::max();
    CHECK(complaint(batch::one(3, most - 2)) ==
          "norm: batch: first_position is " + std::to_string(most - 2) + ", too large for 3 tokens");
    CHECK(complaint(batch::one(3, most - 3)).empty());
}

namespace {

std::vector<idx> values(auto&& span) { return {span.begin(), span.end()}; }

} // namespace

TEST_CASE("some tokens of a batch are a batch") {
    const std::array<idx, 5> offsets{0, 3, 3, 6, 8};
    const std::array<idx, 8> positions{4, 5, 6, 0, 1, 2, 9, 11};
    const std::array<token_id, 8> ids{10, 11, 12, 13, 14, 15, 16, 17};
    const std::array<idx, 4> slots{3, 0, 2, 1};
    const batch b{.n_tokens = 8,
                  .offsets = offsets,
                  .positions = positions,
                  .ids = ids,
                  .slots = slots,
                  .random_key = 7};
    const std::array<std::int32_t, 4> tokens{0, 2, 6, 7};
    sluice::arena memory(4096);
    const auto s = sluice::select_tokens(b, tokens.data(), 4, memory);
    CHECK(complaint(s.to).empty());
    CHECK((s.to.n_tokens == 4 && s.to.random_key == 7 && s.to.slot(3) == 1));
    CHECK(values(s.to.offsets) == std::vector<idx>{0, 2, 2, 2, 4});
    CHECK(values(s.to.positions) == std::vector<idx>{4, 6, 9, 11});
    CHECK(values(s.to.ids) == std::vector<idx>{10, 12, 16, 17});
    CHECK(values(s.all_rows()) == std::vector<idx>{0, 2, 6, 7});
    CHECK((s.first(2) == 2 && s.count(2) == 1));

    const auto none = sluice::select_tokens(b, tokens.data(), 0, memory);
    CHECK((none.to.n_tokens == 0 && none.to.n_sequences() == 4 && complaint(none.to).empty()));
}

TEST_CASE("all rows of a token go with it") {
    const std::array<std::int32_t, 3> tokens{0, 2, 3};
    sluice::arena memory(4096);
    batch b = batch::one(4, 20);
    b.copies = 3;
    auto s = sluice::select_tokens(b, tokens.data(), 3, memory);
    CHECK(values(s.all_rows()) == std::vector<idx>{0, 1, 2, 6, 7, 8, 9, 10, 11});
    CHECK((s.to.rows() == 9 && complaint(s.to).empty() && b.original(0, 2) == 6));
    const std::array<idx, 2> rows{0, 8}; // two bare tokens in front of two with copies
    b.row_offsets = rows;
    CHECK(complaint(b).empty());
    CHECK((b.original(0, 1) == 1 && b.original(0, 2) == 2 && b.original(0, 3) == 5));
    s = sluice::select_tokens(b, tokens.data(), 3, memory);
    CHECK(values(s.all_rows()) == std::vector<idx>{0, 2, 3, 4, 5, 6, 7});
    CHECK((s.to.rows() == 7 && s.to.bare(0) == 1 && complaint(s.to).empty()));
    CHECK((s.first(1) == 1 && s.count(0) == 1 && s.count(1) == 3));
    CHECK(values(s.to.positions) == std::vector<idx>{20, 22, 23});
}

TEST_CASE("a selection counts as much memory as it takes") {
    const std::array<idx, 4> offsets{0, 2, 3, 5};
    const std::array<std::int32_t, 3> tokens{1, 2, 4};
    const batch b{.n_tokens = 5, .offsets = offsets, .copies = 2};
    batch counted{.n_tokens = 5, .copies = 2, .counted_sequences = 3};
    sluice::arena memory(4096), dry;
    (void)sluice::select_tokens(b, tokens.data(), 3, memory);
    const auto s = sluice::select_tokens(counted, nullptr, 3, dry);
    CHECK(dry.used() == memory.used());
    CHECK((s.to.rows() == 6 && s.all_rows().empty()));
}
