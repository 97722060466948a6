#include "support/allocations.hpp"
#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/executors.hpp"
#include "support/random_data.hpp"

#include <sluice/core/tensor.hpp>
#include <sluice/ops/table.hpp>
#include <sluice/simd/convert.hpp>

#include <map>
#include <string>
#include <vector>

using namespace sluice::test;
using sluice::idx;
using sluice::look_up;
using sluice::row_gradient;
using sluice::scaled_table;
using sluice::sharded_table;
using sluice::tensor_view;

namespace {

using rows_type = std::vector<std::int32_t>;

rows_type some_rows(idx n, idx n_rows) {
    rows_type rows;
    const sluice::random_source numbers(11);
    for (idx i = 0; i < n; ++i)
        rows.push_back(static_cast<std::int32_t>(numbers.bits(i) % static_cast<std::uint32_t>(n_rows)));
    return rows;
}

} // namespace

TEMPLATE_TEST_CASE("look_up: what each kind of table holds, the same for any workers", "", float_native,
                   float_scalar, double_native) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    const idx n_rows = 70, width = 40;
    const auto rows = some_rows(200, n_rows);
    const auto exact = uniform_matrix<float>(n_rows, width, 1);
    sluice::tensor<sluice::bf16> narrow(n_rows, width);
    sluice::tensor<std::int8_t> bytes(n_rows, width);
    sluice::tensor<float> scale(n_rows, 1);
    sluice::tensor<sluice::f8_e4m3> eighths(n_rows, width);
    sluice::tensor<sluice::f8_e8m0> powers(n_rows, 2);
    for (idx i = 0; i < n_rows; ++i) {
        scale(i, 0) = 0.01F * static_cast<float>(i + 1);
        for (idx k = 0; k < 2; ++k) powers(i, k) = {static_cast<std::uint8_t>(120 + (i + k) % 9)};
        for (idx j = 0; j < width; ++j) {
            narrow(i, j) = sluice::to_bf16(exact.view()(i, j));
            bytes(i, j) = static_cast<std::int8_t>((i * 40 + j) * 7 % 255 - 127);
            eighths(i, j) = {static_cast<std::uint8_t>((i * 40 + j) % 127)};
        }
    }
    for_each_executor([&](sluice::executor_ref ex, const std::string& name) {
        INFO(name);
        auto check = [&](const auto& table, auto&& right) {
            padded<T> y(200, width);
            look_up<Arch, T>(table, rows, y, ex);
            prefetch_rows(table, rows);
            for (idx i = 0; i < 200; ++i)
                for (idx j = 0; j < width; ++j)
                    REQUIRE(y(i, j) == static_cast<T>(right(rows[static_cast<std::size_t>(i)], j)));
            CHECK(y.touched() == "");
        };
        check(exact.view(), [&](idx i, idx j) { return exact.view()(i, j); });
        check(narrow.view(), [&](idx i, idx j) { return sluice::to_float(narrow(i, j)); });
        const scaled_table<const std::int8_t> one_scale{bytes.view(), scale.view()};
        check(one_scale, [&](idx i, idx j) { return static_cast<float>(bytes(i, j)) * scale(i, 0); });
        const scaled_table<const sluice::f8_e4m3, sluice::f8_e8m0> two_scales{eighths.view(), powers.view()};
        check(two_scales, [&](idx i, idx j) {
            return sluice::to_float(eighths(i, j)) * sluice::to_float(powers(i, j / 20));
        });
        const scaled_table<const std::int8_t> parts[] = {
            {bytes.view().row_block(0, 1), scale.view().row_block(0, 1)},
            {bytes.view().row_block(1, 39), scale.view().row_block(1, 39)},
            {bytes.view().row_block(40, 0), scale.view().row_block(40, 0)},
            {bytes.view().row_block(40, 30), scale.view().row_block(40, 30)}};
        const sharded_table<scaled_table<const std::int8_t>> shards{parts};
        CHECK(shards.rows() == n_rows);
        check(shards, [&](idx i, idx j) { return static_cast<float>(bytes(i, j)) * scale(i, 0); });
    });
}

TEST_CASE("look_up: rows outside are refused before anything is written") {
    const auto table = uniform_matrix<float>(5, 3, 1);
    padded<float> y(2, 3);
    for (const std::int32_t bad : {5, -1, std::numeric_limits<std::int32_t>::min()}) {
        const rows_type rows{0, bad};
        CHECK_THROWS_WITH((look_up<sluice::simd::native, float>(table.view(), rows, y, {})),
                          "look_up: row " + std::to_string(bad) + " at 1 is outside the 5");
    }
    for (idx j = 0; j < 3; ++j) CHECK(y(0, j) == 0);
    const rows_type three{0, 1, 2};
    CHECK_THROWS_AS((look_up<sluice::simd::native, float>(table.view(), three, y, {})), sluice::config_error);
}

TEST_CASE("require_table: shapes of all parts of a table") {
    sluice::tensor<std::int8_t> bytes(5, 64);
    sluice::tensor<float> scale(5, 64);
    const scaled_table<std::int8_t> good{bytes.view(), scale.view().col_block(0, 2)};
    CHECK_NOTHROW(require_table(good, 5, 64, "engram"));
    CHECK_THROWS_WITH(require_table(good, 6, 64, "engram"), "engram: table must be 6 x 64, is 5 x 64");
    const scaled_table<std::int8_t> none{bytes.view(), {}}, many{bytes.view(), scale.view().col_block(0, 60)};
    CHECK_THROWS_AS(require_table(none, 5, 64, "engram"), sluice::config_error);
    CHECK_THROWS_WITH(require_table(many, 5, 64, "engram"),
                      "engram: table_scale: 64 numbers cannot have 60 scales");
    const tensor_view<std::int8_t> parts[] = {bytes.view().row_block(0, 2), bytes.view().row_block(2, 3)};
    CHECK_NOTHROW(require_table(sharded_table<tensor_view<std::int8_t>>{parts}, 5, 64, "engram"));
    CHECK_THROWS_WITH(require_table(sharded_table<tensor_view<std::int8_t>>{parts}, 4, 64, "engram"),
                      "engram: table must be 4 x 64, is 5 x 64");
}

TEST_CASE("row_gradient: a slot for every row that was touched, whatever rows collide") {
    const idx capacity = 100;
    sluice::arena dry;
    row_gradient<float>::bind(dry, capacity, 3);
    sluice::arena memory(dry.bytes());
    const auto g = row_gradient<float>::bind(memory, capacity, 3);
    CHECK(g.empty() == false);
    for (int round = 0; round < 3; ++round) {
        std::map<std::int32_t, std::int32_t> right;
        const sluice::random_source numbers(static_cast<std::uint64_t>(round));
        for (idx call = 0; call < 20; ++call) {
            rows_type rows, slots(12);
            for (idx i = 0; i < 12; ++i)
                rows.push_back(static_cast<std::int32_t>(numbers.bits(12 * call + i) % 90 * 16777216U >> 1));
            g.find(rows, slots.data());
            for (std::size_t i = 0; i < 12; ++i) {
                const auto at = right.emplace(rows[i], static_cast<std::int32_t>(right.size())).first;
                CHECK(slots[i] == at->second);
                CHECK(g.touched()[static_cast<std::size_t>(slots[i])] == rows[i]);
                g.row(slots[i])[1] += 1;
            }
        }
        CHECK(g.rows() == static_cast<idx>(right.size()));
        CHECK(tensor_view<const float>(g).rows() == g.rows());
        fill(g, 0.0F);
        CHECK(g.rows() == 0);
        rows_type again{5}, slot(1);
        g.find(again, slot.data());
        for (idx j = 0; j < 3; ++j) CHECK(g.row(0)[j] == 0); // sums start at zero
        g.clear();
    }
    CHECK_THROWS_AS(fill(g, 1.0F), sluice::config_error);
}

TEST_CASE("row_gradient: too many rows are refused and leave it as it was") {
    sluice::arena memory(4096);
    const auto g = row_gradient<double>::bind(memory, 5, 1);
    rows_type slots(9);
    g.find(rows_type{7, 3, 7}, slots.data());
    for (int i = 0; i < 3; ++i) {
        CHECK_THROWS_AS(g.find(rows_type{1, 2, 3, 4, 5, 6}, slots.data()), sluice::capacity_error);
        CHECK(g.rows() == 2);
        g.find(rows_type{3, 7}, slots.data());
        CHECK((slots[0] == 1 && slots[1] == 0));
    }
    g.find(rows_type{1, 2, 3, 4, 7, 1}, slots.data());
    CHECK(g.rows() == 5);
}

TEST_CASE("looking up allocates nothing") {
    REQUIRE(allocations_are_noticed());
    const auto table = uniform_matrix<float>(50, 16, 1);
    const auto rows = some_rows(64, 50);
    padded<float> y(64, 16);
    CHECK(allocations_of([&] { look_up<sluice::simd::native, float>(table.view(), rows, y, {}); }) == 0);
}

TEST_CASE("store_rows: look_up gives what was stored, as near as the type allows, for any workers") {
    const idx n_rows = 12, width = 70, first = 2, n = 9;
    auto x = uniform_matrix<float>(n, width, 1);
    for (idx j = 0; j < width; ++j) x(3, j) = 0;      // no scale
    for (idx j = 0; j < width; ++j) x(4, j) *= 1e-6F; // scales differ by row
    x(5, 7) = 1000;
    rows_type rows;
    for (std::int32_t i = 0; i < n; ++i) rows.push_back(static_cast<std::int32_t>(first) + i);
    for_each_executor([&](sluice::executor_ref ex, const std::string& name) {
        INFO(name);
        // `fine`: of the largest magnitude of its part, and of the number itself
        auto check = [&](const auto& table, idx part, double fine, double own, double least = 0) {
            store_rows(x.view(), table, first, ex);
            padded<float> y(n, width);
            look_up<sluice::simd::native, float>(table, rows, y, ex);
            for (idx i = 0; i < n; ++i)
                for (idx j = 0; j < width; ++j) {
                    float largest = 0;
                    for (idx k = j / part * part; k < std::min(width, (j / part + 1) * part); ++k)
                        largest = std::max(largest, std::abs(x.view()(i, k)));
                    const double off =
                        std::abs(static_cast<double>(y(i, j)) - static_cast<double>(x.view()(i, j)));
                    REQUIRE(off <= least + fine * static_cast<double>(largest) +
                                       own * static_cast<double>(std::abs(x.view()(i, j))));
                }
        };
        sluice::tensor<float> exact(n_rows, width);
        sluice::tensor<sluice::bf16> narrow(n_rows, width);
        sluice::tensor<sluice::half> halves(n_rows, width);
        sluice::tensor<std::int8_t> bytes(n_rows, width);
        sluice::tensor<float> scale(n_rows, 1);
        sluice::tensor<sluice::f8_e4m3> eighths(n_rows, width);
        sluice::tensor<sluice::f8_e8m0> powers(n_rows, 3);
        check(exact.view(), width, 0, 0);
        check(narrow.view(), width, 0, 1.0 / 256);
        check(halves.view(), width, 0, 1.0 / 2048, 3e-8);
        check(scaled_table<std::int8_t>{bytes.view(), scale.view()}, width, 0.5001 / 127, 0);
        check(scaled_table<sluice::f8_e4m3, sluice::f8_e8m0>{eighths.view(), powers.view()}, 24,
              1.0 / 224 / 1024, 1.0 / 16);
        CHECK(bytes(first - 1, 0) == 0);
        CHECK(bytes(first + n, 0) == 0);
    });
    sluice::tensor<std::int8_t> bytes(n_rows, width);
    sluice::tensor<float> scale(n_rows, 1);
    const scaled_table<std::int8_t> table{bytes.view(), scale.view()};
    CHECK_THROWS_WITH(store_rows(x.view(), table, 4), "store_rows: rows are outside the table");
    x(8, 69) = std::numeric_limits<float>::infinity();
    CHECK_THROWS_WITH(store_rows(x.view(), table, 0), "store_rows: row 8 holds a number that is not finite");
}
