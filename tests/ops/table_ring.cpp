#include "support/allocations.hpp"
#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/executors.hpp"
#include "support/random_data.hpp"

#include <sluice/ops/table_ring.hpp>

#include <atomic>
#include <set>
#include <vector>

using namespace sluice::test;
using sluice::idx;
using sluice::table_ring;

namespace {

// Rows that count how often they are read; those below zero of `broken` cannot be.
struct source {
    idx rows() const { return 1000; }
    idx cols() const { return 5; }
    idx scales() const { return 1; }
    bool read(idx row, void* elements, void* scales) const {
        if (row == broken) return false;
        for (idx j = 0; j < 5; ++j)
            static_cast<std::int8_t*>(elements)[j] = static_cast<std::int8_t>((row + j) % 100);
        *static_cast<float*>(scales) = static_cast<float>(row);
        ++reads;
        return true;
    }
    void advise(idx) const { ++advised; }
    [[noreturn]] void fail(idx row) const { throw sluice::input_error("row " + std::to_string(row)); }

    mutable std::atomic<idx> reads{0}, advised{0};
    idx broken = -1;
};
using ring_type = table_ring<source, std::int8_t>;

std::string look_up_all(const ring_type& ring, const std::vector<std::int32_t>& rows,
                        sluice::executor_ref ex = {}) {
    padded<float> y(static_cast<idx>(rows.size()), 5);
    sluice::look_up<sluice::simd::native, float>(ring, rows, y, ex);
    for (idx i = 0; i < y.view().rows(); ++i)
        for (idx j = 0; j < 5; ++j) {
            const idx row = rows[static_cast<std::size_t>(i)];
            if (y(i, j) != static_cast<float>((row + j) % 100 * row)) return "row " + std::to_string(row);
        }
    return y.touched();
}

std::vector<std::int32_t> some_rows(idx n, std::uint64_t key, std::uint32_t most) {
    std::vector<std::int32_t> rows;
    const sluice::random_source numbers(key);
    for (idx i = 0; i < n; ++i) rows.push_back(static_cast<std::int32_t>(numbers.bits(i) % most));
    return rows;
}

} // namespace

TEST_CASE("table_ring: rows of any call, however few it holds, for any workers") {
    for (const idx capacity : {1, 8, 64, 2000})
        for_each_executor([&](sluice::executor_ref ex, const std::string& name) {
            INFO(name << ", capacity " << capacity);
            const source from;
            sluice::arena memory(1 << 20);
            const auto ring = ring_type::bind(memory, from, capacity);
            for (std::uint64_t call = 0; call < 3; ++call) {
                CHECK(look_up_all(ring, some_rows(call == 0 ? 3000 : 60, call, 1000), {}) == "");
                CHECK(look_up_all(ring, some_rows(40, call, 1000), ex) == "");
            }
            CHECK(ring.asked() == 3000 + 2 * 60 + 3 * 40);
            CHECK(ring.reads() == from.reads);
            if (capacity == 2000) CHECK(from.reads < 1200); // hardly a row is read twice
        });
}

TEST_CASE("table_ring: what is kept is not read again, nor asked for ahead") {
    const source from;
    sluice::arena memory(1 << 20);
    const auto ring = ring_type::bind(memory, from, 512);
    const auto rows = some_rows(40, 1, 50);
    const idx different = static_cast<idx>(std::set<std::int32_t>(rows.begin(), rows.end()).size());
    ring.prefetch(rows); // each row once
    CHECK(different < 40);
    CHECK(from.advised == different);
    CHECK_THROWS_AS(ring.prefetch(std::vector<std::int32_t>{1000}), sluice::input_error);
    CHECK(look_up_all(ring, rows) == "");
    const idx first = from.reads;
    CHECK(first == different);
    CHECK(look_up_all(ring, rows) == "");
    CHECK(from.reads == first);
    ring.prefetch(rows);
    CHECK(from.advised == different);
}

TEST_CASE("table_ring: rows seen once do not drive out those that come again and again") {
    const source from;
    sluice::arena memory(1 << 20);
    const auto ring = ring_type::bind(memory, from, 64);
    std::vector<std::int32_t> hot;
    for (std::int32_t i = 0; i < 24; ++i) hot.push_back(i * 41);
    for (int i = 0; i < 8; ++i) CHECK(look_up_all(ring, hot) == "");
    const idx kept = from.reads;
    CHECK(kept < 32);
    std::int32_t next = 0;
    for (int round = 0; round < 12; ++round) {
        std::vector<std::int32_t>
            once; // 80 rows between two rounds of the hot ones: more than there is room for
        while (once.size() < 80)
            if (next++ % 41 != 0) once.push_back(next - 1);
        CHECK(look_up_all(ring, once) == "");
        CHECK(look_up_all(ring, hot) == "");
    }
    CHECK(from.reads - kept < 12 * 80 + 24); // few of the 288 times was a hot row read again
}

TEST_CASE("table_ring: a row that cannot be read is an error, and right once it can be") {
    source from;
    sluice::arena memory(1 << 20);
    const auto ring = ring_type::bind(memory, from, 64);
    from.broken = 7;
    for (int i = 0; i < 2; ++i) CHECK_THROWS_WITH(look_up_all(ring, {3, 7, 4}), "row 7");
    CHECK(look_up_all(ring, {3, 4}) == "");
    from.broken = -1;
    CHECK(look_up_all(ring, {3, 7, 4}) == "");
    CHECK_THROWS_AS(look_up_all(ring, {1000}), sluice::input_error);
    CHECK_THROWS_AS(ring_type::bind(memory, from, 0), sluice::config_error);
    REQUIRE(allocations_are_noticed());
    const std::vector<std::int32_t> rows{1, 2, 3};
    padded<float> y(3, 5);
    CHECK(allocations_of([&] { sluice::look_up<sluice::simd::native, float>(ring, rows, y, {}); }) == 0);
}
