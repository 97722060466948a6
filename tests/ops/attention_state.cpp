#include "support/allocations.hpp"
#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/random_data.hpp"

#include <sluice/ops/attention_state.hpp>

#include <array>
#include <limits>
#include <vector>

using namespace sluice::test;
using sluice::arena;
using sluice::attend;
using sluice::attention_shape;
using sluice::attention_state;
using sluice::batch;
using sluice::cached_keys;
using sluice::causal_attention;
using sluice::idx;
using sluice::key_tile;
using sluice::limits;
using sluice::tensor_view;

namespace {

constexpr idx huge = std::numeric_limits<idx>::max();

template <class T>
std::size_t dry_bytes(idx width, idx window, const limits& most) {
    arena dry;
    (void)attention_state<T>::bind(dry, 1, width, window, most);
    return dry.bytes();
}

// A state with the memory it asks for.
template <class T>
struct bound_state {
    bound_state(idx width, idx window, const limits& most, idx n_heads = 1)
        : memory(dry_bytes<T>(width, window, most)),
          state(attention_state<T>::bind(memory, n_heads, width / n_heads, window, most)) {}
    arena memory;
    attention_state<T> state;
};

idx ring_of(idx window, const limits& most) {
    arena dry;
    return attention_state<float>::bind(dry, 1, 1, window, most).keys.ring;
}

// Appends n rows of keys `first`, `first` + 1, ..., an eighth more for each element (values: their
// negatives), to one slot.
template <class T>
idx append(attention_state<T>& state, idx slot, idx n, idx first) {
    padded<T> k(n, state.keys.head_dim), v(n, state.keys.head_dim);
    for (idx i = 0; i < n; ++i) {
        for (idx j = 0; j < state.keys.head_dim; ++j) {
            k(i, j) = static_cast<T>(first + i) + static_cast<T>(j) / 8;
            v(i, j) = -k(i, j);
        }
    }
    batch b = batch::one(n);
    const std::array<idx, 1> slots{slot};
    b.slots = slots;
    std::array<idx, 1> past{-1};
    state.check_room(b);
    state.append(b, k, v, past);
    return past[0];
}

} // namespace

TEST_CASE("attention state: takes what a dry arena counted") {
    for (idx window : {0, 1, 5, 64, 100, 1000})
        for (idx width : {0, 1, 48, 100})
            for (limits most :
                 {limits{.max_tokens = 1}, limits{.max_tokens = 300, .max_rows = 17},
                  limits{.max_tokens = 129, .max_rows = 200, .n_sequences = 3, .max_rollback = 9}}) {
                const std::size_t bytes = dry_bytes<float>(width, window, most);
                bound_state<float> s(width, window, most);
                CHECK((s.memory.used() == bytes && s.memory.bytes() == bytes));
                CHECK((s.state.keys.v.rows() == most.n_sequences * s.state.keys.ring &&
                       s.state.keys.head_dim == width));
                CHECK((s.state.keys.k.cols() == key_tile && s.state.keys.k.size() == s.state.keys.v.size()));
                CHECK((s.state.n_sequences() == most.n_sequences && s.state.window == window));
                arena small(bytes - 64);
                CHECK_THROWS_AS(attention_state<float>::bind(small, 1, width, window, most),
                                sluice::capacity_error);
            }
}

TEST_CASE("attention state: a ring is whole tiles of what can still be seen") {
    // everything, where nothing is forgotten
    CHECK(ring_of(0, {.max_tokens = 1}) == 64);
    CHECK(ring_of(0, {.max_tokens = 64}) == 64);
    CHECK(ring_of(0, {.max_tokens = 65}) == 128);
    // the window of the first row of a call and the rows after it: window - 1 + max_rows
    CHECK(ring_of(1, {.max_tokens = 10'000}) == 64);
    CHECK(ring_of(64, {.max_tokens = 10'000}) == 64);
    CHECK(ring_of(65, {.max_tokens = 10'000}) == 128);
    CHECK(ring_of(64, {.max_tokens = 10'000, .max_rows = 2}) == 128);
    CHECK(ring_of(100, {.max_tokens = 10'000, .max_rows = 29}) == 128);
    CHECK(ring_of(100, {.max_tokens = 10'000, .max_rows = 30}) == 192);
    // and what may be taken back
    CHECK(ring_of(64, {.max_tokens = 10'000, .max_rollback = 1}) == 128);
    CHECK(ring_of(33, {.max_tokens = 10'000, .max_rows = 16, .max_rollback = 16}) == 64);
    CHECK(ring_of(33, {.max_tokens = 10'000, .max_rows = 16, .max_rollback = 17}) == 128);
    // never more than everything
    CHECK(ring_of(5000, {.max_tokens = 100}) == 128);
    CHECK(ring_of(50, {.max_tokens = 100, .max_rows = 100, .max_rollback = 100}) == 128);
}

TEST_CASE("attention state: starts empty in memory that was used before") {
    const limits most{.max_tokens = 5, .n_sequences = 4};
    std::vector<std::byte> memory(dry_bytes<float>(3, 0, most) + arena::alignment, std::byte{0xA5});
    arena used{std::span(memory)};
    const auto state = attention_state<float>::bind(used, 1, 3, 0, most);
    for (idx slot = 0; slot < 4; ++slot) CHECK((state.length(0, slot) == 0 && state.newest(0, slot) == 0));
}

TEST_CASE("attention state: append stores rows at their place modulo the ring") {
    bound_state<double> bound(6, 10, {.max_tokens = 1000, .max_rows = 50, .n_sequences = 3});
    auto& s = bound.state;
    REQUIRE(s.keys.ring == 64);
    idx held = 0;
    for (idx n : {50, 0, 3, 20, 50, 1}) {
        CHECK(append(s, 1, n, held) == held);
        held += n;
        CHECK((s.length(0, 1) == held && s.newest(0, 1) == held));
        for (idx key = std::max<idx>(0, held - 64); key < held; ++key)
            for (idx j = 0; j < 6; ++j) {
                REQUIRE(s.keys.k(6 + j, key % 64) == static_cast<double>(key) + static_cast<double>(j) / 8);
                REQUIRE(s.keys.v(64 + key % 64, j) == -s.keys.k(6 + j, key % 64));
            }
    }
    for (idx slot : {0, 2}) {
        CHECK(s.length(0, slot) == 0);
        for (idx i = 0; i < 64; ++i) CHECK((s.keys.k(slot * 6, i) == 0 && s.keys.v(slot * 64 + i, 5) == 0));
    }
}

TEST_CASE("attention state: append takes several sequences in any order of slots") {
    bound_state<float> bound(2, 0, {.max_tokens = 10, .n_sequences = 4});
    auto& s = bound.state;
    append(s, 3, 2, 100);
    padded<float> k(6, 2), v(6, 2);
    for (idx i = 0; i < 6; ++i)
        for (auto* m : {&k, &v}) fill(m->view().row_block(i, 1), static_cast<float>(i + 1));
    const std::array<idx, 4> offsets{0, 3, 3, 6};
    const std::array<idx, 3> slots{3, 0, 2};
    const batch b{.n_tokens = 6, .offsets = offsets, .slots = slots};
    std::array<idx, 3> past{-1, -1, -1};
    s.check_room(b);
    s.append(b, k, v, past);
    CHECK((past[0] == 2 && past[1] == 0 && past[2] == 0));
    CHECK((s.length(0, 0) == 0 && s.length(0, 1) == 0 && s.length(0, 2) == 3 && s.length(0, 3) == 5));
    CHECK((s.keys.k(3 * 2, 1) == 101 && s.keys.k(3 * 2, 2) == 1 && s.keys.k(3 * 2 + 1, 4) == 3));
    CHECK((s.keys.k(2 * 2, 0) == 4 && s.keys.k(2 * 2, 2) == 6 && s.keys.k(0, 0) == 0));
    CHECK((s.keys.v(3 * 64 + 1, 0) == -101 && s.keys.v(3 * 64 + 4, 1) == 3 && s.keys.v(2 * 64 + 2, 0) == 6));

    const cached_keys<float> keys{&b, &s};
    const auto source = keys(0, 0);
    CHECK((source.k == s.keys.k.row(3 * 2) && source.v == s.keys.v.row(3 * 64) && source.ring == 64));
    CHECK((source.k_row == 2 && source.v_row == 2 && source.row(65) == 1));
    CHECK((source.layout == sluice::key_layout::tiles && source.head == 64 * 2));
}

TEST_CASE("attention state: truncate takes back, and no more than was promised") {
    bound_state<float> bound(1, 8, {.max_tokens = 500, .max_rows = 10, .n_sequences = 2, .max_rollback = 4});
    auto& s = bound.state;
    for (idx held = 0; held < 100; held += 10) append(s, 1, 10, held);
    s.truncate(1, 100);
    CHECK(s.length(0, 1) == 100);
    CHECK_THROWS_WITH(s.truncate(1, 101), "attention state: truncate sequence 1 to 101: it holds 100 tokens");
    CHECK_THROWS_WITH(s.truncate(1, -1), "attention state: truncate sequence 1 to -1: it holds 100 tokens");
    CHECK_THROWS_WITH(
        s.truncate(1, 95),
        "attention state: truncate sequence 1 to 95: only 4 tokens can be taken back (max_rollback)");
    CHECK_THROWS_AS(s.truncate(1, 95), sluice::input_error);
    CHECK(s.length(0, 1) == 100);
    s.truncate(1, 98);
    s.truncate(1, 96);
    CHECK(s.length(0, 1) == 96);
    // what was overwritten counts from the newest there ever was
    CHECK_THROWS_AS(s.truncate(1, 95), sluice::input_error);
    CHECK_THROWS_AS(s.truncate(1, 97), sluice::input_error);
    CHECK(append(s, 1, 2, 96) == 96);
    CHECK_THROWS_AS(s.truncate(1, 95), sluice::input_error);
    s.truncate(1, 96);
    CHECK(append(s, 1, 8, 96) == 96);
    CHECK_THROWS_AS(s.truncate(1, 99), sluice::input_error);
    s.truncate(1, 100);
    // everything may go at any time
    s.truncate(1, 0);
    CHECK((s.length(0, 1) == 0 && s.newest(0, 1) == 0));
    CHECK_THROWS_WITH(s.truncate(1, 1), "attention state: truncate sequence 1 to 1: it holds 0 tokens");
    CHECK(append(s, 1, 3, 0) == 0);
    s.truncate(1, 1);
    CHECK_THROWS_WITH(s.truncate(2, 0), "attention state: no sequence 2, there are 2");
    CHECK_THROWS_WITH(s.truncate(-1, 0), "attention state: no sequence -1, there are 2");
    CHECK(s.length(0, 0) == 0);
}

TEST_CASE("attention state: a batch without room is refused before anything is written") {
    bound_state<float> bound(1, 0, {.max_tokens = 10, .max_rows = 2, .n_sequences = 3});
    auto& s = bound.state;
    append(s, 1, 7, 0);
    auto check = [&](std::vector<idx> lengths, std::vector<idx> slots) {
        std::vector<idx> offsets{0};
        for (idx n : lengths) offsets.push_back(offsets.back() + n);
        s.check_room({.n_tokens = offsets.back(), .offsets = offsets, .slots = slots});
    };
    CHECK_NOTHROW(check({10, 3, 10}, {}));
    CHECK_NOTHROW(check({3, 10}, {1, 2}));
    CHECK_NOTHROW(check({0, 0}, {1, 2}));
    CHECK_THROWS_WITH(check({1, 4}, {}), "attention state: sequence 1: needs 11 tokens (max_tokens), has 10");
    CHECK_THROWS_WITH(check({11}, {2}), "attention state: sequence 2: needs 11 tokens (max_tokens), has 10");
    CHECK_THROWS_WITH(check({1}, {3}), "attention state: no sequence 3, there are 3");
    CHECK_THROWS_WITH(check({1}, {-1}), "attention state: no sequence -1, there are 3");
    CHECK_THROWS_WITH(check({1, 1, 1, 1}, {}), "attention state: no sequence 3, there are 3");
    CHECK_THROWS_WITH(check({1, 1, 1}, {2, 0, 2}), "attention state: two sequences of the batch name slot 2");
    try {
        check({1, 4}, {});
        FAIL("must be refused");
    } catch (const sluice::capacity_error& e) {
        CHECK((e.needed == 11 && e.have == 10));
    }
    CHECK((s.length(0, 0) == 0 && s.length(0, 1) == 7));

    // rows in one call matter only where a ring could overwrite what they still see
    bound_state<float> ring(1, 20, {.max_tokens = 1000, .max_rows = 8});
    CHECK_NOTHROW(ring.state.check_room(batch::one(8)));
    CHECK_THROWS_WITH(ring.state.check_room(batch::one(9)),
                      "attention state: ring of a window: needs 9 rows in one call (max_rows), has 8");
    CHECK_THROWS_AS(ring.state.check_room(batch::one(9)), sluice::capacity_error);
    bound_state<float> whole(1, 20, {.max_tokens = 50, .max_rows = 8});
    CHECK_NOTHROW(whole.state.check_room(batch::one(50)));
}

TEST_CASE("attention state: limits that make no sense are refused") {
    auto bind = [](idx window, const limits& most, idx width = 4) {
        arena dry;
        (void)attention_state<float>::bind(dry, 1, width, window, most);
    };
    CHECK_THROWS_WITH(bind(0, {}), "attention state: max_tokens must be positive, is 0");
    CHECK_THROWS_WITH(bind(0, {.max_tokens = -3}), "attention state: max_tokens must be positive, is -3");
    CHECK_THROWS_WITH(bind(0, {.max_tokens = 1, .max_rows = 0}),
                      "attention state: max_rows must be positive, is 0");
    CHECK_THROWS_WITH(bind(0, {.max_tokens = 1, .n_sequences = 0}),
                      "attention state: n_sequences must be positive, is 0");
    CHECK_THROWS_WITH(bind(0, {.max_tokens = 1, .max_rollback = -1}),
                      "attention state: max_rollback must not be negative");
    CHECK_THROWS_WITH(bind(-1, {.max_tokens = 1}), "attention state: window must not be negative");
    CHECK_THROWS_AS(bind(0, {.max_tokens = 1}, -1), sluice::config_error);
    // nothing wraps around on the way to a size
    CHECK_THROWS_AS(bind(0, {.max_tokens = huge}), sluice::config_error);
    CHECK_THROWS_AS(bind(huge, {.max_tokens = 1}), sluice::config_error);
    CHECK_THROWS_AS(bind(5, {.max_tokens = 1, .max_rows = huge}), sluice::config_error);
    CHECK_THROWS_AS(bind(5, {.max_tokens = 1, .max_rollback = huge}), sluice::config_error);
    CHECK_THROWS_AS(bind(0, {.max_tokens = 100, .n_sequences = huge}), sluice::config_error);
    CHECK_THROWS_AS(bind(0, {.max_tokens = idx{1} << 40, .n_sequences = idx{1} << 30}), sluice::config_error);
    CHECK_THROWS_AS(bind(0, {.max_tokens = idx{1} << 60}, idx{1} << 40), sluice::config_error);
}

// Two states under the same calls, one a ring and one that keeps everything: attention must give the same
// bits, after any number of times around, and after tokens were taken back and replaced.
TEMPLATE_TEST_CASE("attention state: a ring sees what a full cache sees", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    const attention_shape shape{4, 2, 8};
    constexpr idx length = 700, n_slots = 2;
    arena workspace(std::size_t{1} << 20);
    for (idx window : {1, 5, 64, 100}) {
        const limits most{
            .max_tokens = length + 20, .max_rows = 13, .n_sequences = n_slots, .max_rollback = 6};
        bound_state<T> ring(2 * 8, window, most, 2), full(2 * 8, 0, most, 2);
        REQUIRE(ring.state.keys.ring <= 192);
        REQUIRE(full.state.keys.ring >= length);
        const sluice::random_source numbers(static_cast<std::uint64_t>(window));
        idx turn = 0;
        auto draw = [&](idx below) {
            return static_cast<idx>(numbers.bits(turn++) % static_cast<unsigned>(below));
        };
        while (ring.state.length(0, 0) < length || ring.state.length(0, 1) < length) {
            for (idx slot = 0; slot < n_slots; ++slot) {
                const idx held = ring.state.length(0, slot), newest = ring.state.newest(0, slot);
                const idx back = std::min(draw(most.max_rollback + 1), held);
                if (draw(3) != 0 || held - back < newest - most.max_rollback) continue;
                ring.state.truncate(slot, held - back);
                full.state.truncate(slot, held - back);
            }
            std::array<idx, 3> offsets{0, 0, 0};
            for (std::size_t i = 0; i < 2; ++i) {
                const idx room = length + 20 - ring.state.length(0, static_cast<idx>(i));
                offsets[i + 1] = offsets[i] + std::min(room, draw(most.max_rows + 1));
            }
            const std::array<idx, 2> slots{1, 0};
            const bool swapped = draw(2) == 0;
            batch b{.n_tokens = offsets[2], .offsets = offsets};
            if (swapped && ring.state.length(0, 1) + 13 <= length && ring.state.length(0, 0) + 13 <= length)
                b.slots = slots;
            const auto key = static_cast<std::uint64_t>(turn);
            const padded<T> q = uniform_matrix<T>(b.n_tokens, 32, key, -2, 2);
            const padded<T> k = uniform_matrix<T>(b.n_tokens, 16, key + 1, -2, 2);
            const padded<T> v = uniform_matrix<T>(b.n_tokens, 16, key + 2);
            padded<T> y_ring(b.n_tokens, 32), y_full(b.n_tokens, 32);
            auto run = [&](attention_state<T>& state, padded<T>& y) {
                std::array<idx, 2> past{};
                state.check_room(b);
                state.append(b, k, v, past);
                attend<Arch, T>(b, shape, q, cached_keys<T>{&b, &state}, causal_attention{window, past},
                                y.view(), {}, workspace, {});
            };
            run(ring.state, y_ring);
            run(full.state, y_full);
            CAPTURE(window, ring.state.length(0, 0), ring.state.length(0, 1));
            REQUIRE(different_bits(y_ring.view(), y_full.view()) == "");
        }
    }
}

TEST_CASE("attention state: allocates nothing") {
    REQUIRE(allocations_are_noticed());
    bound_state<float> bound(4, 10, {.max_tokens = 100, .max_rows = 8, .n_sequences = 2, .max_rollback = 2});
    padded<float> k(8, 4), v(8, 4);
    const std::array<idx, 3> offsets{0, 3, 8};
    const batch b{.n_tokens = 8, .offsets = offsets};
    std::array<idx, 2> past{};
    CHECK(allocations_of([&] {
              bound.state.check_room(b);
              bound.state.append(b, k, v, past);
              bound.state.truncate(1, 4);
          }) == 0);
    CHECK(bound.state.length(0, 1) == 4);
}

TEST_CASE("attention_state: smaller keys give the bits of the numbers they stand for") {
    using sluice::key_storage;
    // heads of whole registers and others; one row, whose keys need not be widened before, and several
    const idx d = GENERATE(20, 32), rows = GENERATE(1, 5);
    CAPTURE(d, rows);
    const idx n = 150, heads = 2, width = 2 * d;
    const limits most{.max_tokens = 200};
    padded<float> k = uniform_matrix<float>(n, width, 1), v = uniform_matrix<float>(n, width, 2),
                  q = uniform_matrix<float>(rows, 2 * width, 3);
    // as they come back
    auto rounded = [&](const padded<float>& from, key_storage storage) {
        padded<float> to(n, width);
        for (idx i = 0; i < n; ++i)
            for (idx h = 0; h < heads; ++h) {
                float largest = 0;
                for (idx e = 0; e < d; ++e) largest = std::max(largest, std::abs(from.view()(i, h * d + e)));
                for (idx e = 0; e < d; ++e) {
                    const float x = from.view()(i, h * d + e);
                    to(i, h * d + e) = storage == key_storage::bf16
                                           ? sluice::to_float(sluice::to_bf16(x))
                                           : std::nearbyint(x * (127 / largest)) * (largest / 127);
                }
            }
        return to;
    };
    auto attended = [&](key_storage storage, const padded<float>& keys, const padded<float>& values) {
        arena dry;
        (void)attention_state<float>::bind(dry, heads, d, 0, most, storage);
        arena memory(dry.bytes()), workspace(1 << 20);
        auto state = attention_state<float>::bind(memory, heads, d, 0, most, storage);
        const batch before = batch::one(n - rows), b = batch::one(rows, n - rows);
        std::array<idx, 1> past{};
        state.append(before, keys.view().row_block(0, n - rows), values.view().row_block(0, n - rows), past);
        state.append(b, keys.view().row_block(n - rows, rows), values.view().row_block(n - rows, rows), past);
        padded<float> y(rows, 2 * width);
        attend<sluice::simd::native, float>(b, {.n_heads = 4, .n_kv_heads = 2, .head_dim = d}, q.view(),
                                            cached_keys<float>{&b, &state}, causal_attention{.past = past},
                                            y.view(), {}, workspace, {});
        return std::pair(y, memory.capacity());
    };
    const auto [plain, plain_bytes] = attended(key_storage::plain, k, v);
    for (const auto storage : {key_storage::bf16, key_storage::int8}) {
        const auto [small, bytes] = attended(storage, k, v);
        const auto [same, same_bytes] =
            attended(key_storage::plain, rounded(k, storage), rounded(v, storage));
        CHECK(different_bits(small.view(), same.view()) == "");
        CHECK(different_bits(small.view(), plain.view()) != "");
        CHECK(bytes < plain_bytes * 6 / 10);
    }
    arena dry;
    CHECK_THROWS_AS(attention_state<double>::bind(dry, 1, 4, 0, most, key_storage::bf16),
                    sluice::config_error);
}

TEST_CASE("attention_state: a smaller ring keeps the newest keys, and what is not finite stays so") {
    using sluice::key_storage;
    for (const auto storage : {key_storage::bf16, key_storage::int8}) {
        arena memory(1 << 16);
        const auto ring = sluice::key_rings<float>::bind(memory, 2, 1, 3, 64, storage);
        const auto other = sluice::key_rings<float>::bind(memory, 1, 1, 3, 64, storage);
        padded<float> k = uniform_matrix<float>(70, 3, 1);
        k(69, 2) = std::numeric_limits<float>::infinity();
        ring.put(1, 0, k.view(), k.view());
        ring.copy_key(1, 66, other, 0);
        const auto from = ring.source(1), to = other.source(0);
        const idx size = storage == key_storage::bf16 ? 2 : 1;
        const auto at = [&](const void* p, idx element) {
            return static_cast<const std::byte*>(p) + element * size;
        };
        for (idx e = 0; e < 3; ++e) {
            CHECK(std::memcmp(at(from.small.k, e * 64 + 2), at(to.small.k, e * 64 + 2),
                              static_cast<std::size_t>(size)) == 0);
            CHECK(std::memcmp(at(from.small.v, 2 * 3 + e), at(to.small.v, 2 * 3 + e),
                              static_cast<std::size_t>(size)) == 0);
        }
        if (storage == key_storage::int8) {
            CHECK(from.small.k_scales[2] == to.small.k_scales[2]);
            CHECK(std::isnan(from.small.k_scales[5]));
            CHECK_FALSE(std::isnan(from.small.k_scales[4]));
        }
    }
}
