#include "support/allocations.hpp"
#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/executors.hpp"
#include "support/random_data.hpp"

#include <sluice/core/tensor.hpp>
#include <sluice/ops/gather.hpp>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

using namespace sluice::test;
using sluice::embed;
using sluice::embed_backward;
using sluice::executor_ref;
using sluice::idx;
using sluice::tensor_view;
using sluice::token_id;

namespace {

constexpr idx n_rows = 9, width = 150;
// repeats, the first row, the last row, and one that never occurs (4)
const std::vector<token_id> some_ids{3, 0, 8, 3, 3, 7, 1, 0, 2, 5, 6, 3, 8};
constexpr idx n_ids = 13;

} // namespace

TEST_CASE("gather and gather_sum: rows by index, the same for any workers") {
    sluice::tensor<double> x(20, 33);
    sluice::fill_normal(x.view(), 1, sluice::random_source(1));
    std::vector<std::int32_t> rows;
    for (std::int32_t i = 0; i < 60; ++i) rows.push_back(i * 7 % 20);
    for_each_executor([&](sluice::executor_ref ex, const std::string&) {
        sluice::tensor<double> y(60, 33), sums(15, 33);
        sluice::gather(x, rows, y.view(), ex);
        sluice::gather_sum(x, rows, sums.view(), ex);
        for (idx i = 0; i < 60; ++i)
            for (idx j = 0; j < 33; ++j) REQUIRE(y(i, j) == x(rows[static_cast<std::size_t>(i)], j));
        for (idx i = 0; i < 15; ++i)
            for (idx j = 0; j < 33; ++j)
                REQUIRE(sums(i, j) == y(4 * i, j) + y(4 * i + 1, j) + y(4 * i + 2, j) + y(4 * i + 3, j));
    });
}

TEST_CASE("gather: rows outside are refused and nothing is written") {
    sluice::tensor<float> x(4, 3), y(2, 3);
    for (std::int32_t bad : {-1, 4, 1 << 30}) {
        const std::vector<std::int32_t> rows{1, bad};
        REQUIRE_THROWS_WITH(sluice::gather(x, rows, y.view(), {}),
                            "gather: row " + std::to_string(bad) + " at 1 is outside the 4");
        REQUIRE_THROWS_AS(sluice::gather_sum(x, rows, y.view(), {}), sluice::input_error);
    }
    const std::vector<std::int32_t> three{0, 1, 2};
    REQUIRE_THROWS_AS(sluice::gather(x, three, y.view(), {}), sluice::config_error);
    REQUIRE_THROWS_AS(sluice::gather_sum(x, three, y.view(), {}), sluice::config_error);
    for (idx i = 0; i < y.size(); ++i) CHECK(y.data()[i] == 0.0F);
}

TEST_CASE("gather: an output that overlaps the input is noticed") {
    shifted_views<float> m(4);
    const std::vector<std::int32_t> rows(4, 1);
    CHECK(overlap_is_noticed([&] { sluice::gather(m.first(), rows, m.shifted(), {}); }));
    CHECK(overlap_is_noticed([&] { sluice::gather_sum(m.first(), rows, m.shifted(), {}); }));
}

TEMPLATE_TEST_CASE("embed: copies rows bit for bit", "", float_native, float_scalar, double_native,
                   double_scalar) {
    using T = typename TestType::scalar;
    padded<T> table = uniform_matrix<T>(n_rows, width, 1), y(n_ids, width);
    table(3, 5) = std::numeric_limits<T>::quiet_NaN();
    table(8, 0) = -T(0);
    embed<typename TestType::arch, T>(some_ids, table, y.view(), {});
    for (idx i = 0; i < n_ids; ++i) {
        const idx id = some_ids[static_cast<std::size_t>(i)];
        CHECK(different_bits(y.view().row_block(i, 1), table.view().row_block(id, 1)) == "");
    }
    CHECK(y.touched() + table.touched() == "");
}

TEMPLATE_TEST_CASE("embed_backward: adds each row to its id's, in order", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    for (idx d : {idx{1}, idx{7}, idx{63}, idx{64}, idx{65}, width}) {
        padded<T> dy = uniform_matrix<T>(n_ids, d, 1), dtable = uniform_matrix<T>(n_rows, d, 2),
                  want = dtable;
        for (idx i = 0; i < n_ids; ++i)
            for (idx j = 0; j < d; ++j) want(some_ids[static_cast<std::size_t>(i)], j) += dy(i, j);
        embed_backward<Arch, T>(some_ids, dy, dtable.view(), {});
        CAPTURE(d);
        CHECK(different_bits(dtable.view(), want.view()) == "");
        CHECK(dtable.touched() == "");
    }
}

TEMPLATE_TEST_CASE("embed: bits depend on neither the executor nor how rows are split", "", float_native,
                   double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    padded<T> table = uniform_matrix<T>(n_rows, width, 1), dy = uniform_matrix<T>(n_ids, width, 2),
              y(n_ids, width), dtable(n_rows, width);
    embed<Arch, T>(some_ids, table, y.view(), {});
    embed_backward<Arch, T>(some_ids, dy, dtable.view(), {});
    for_each_executor([&](executor_ref ex, const std::string& name) {
        padded<T> other_y(n_ids, width), other(n_rows, width);
        embed<Arch, T>(some_ids, table, other_y.view(), ex);
        embed_backward<Arch, T>(some_ids, dy, other.view(), ex);
        INFO(name);
        CHECK(different_bits(other_y.view(), y.view()) == "");
        CHECK(different_bits(other.view(), dtable.view()) == "");
    });
    padded<T> parts(n_rows, width);
    const std::span<const token_id> ids(some_ids);
    for (idx i = 0; i < n_ids; ++i)
        embed_backward<Arch, T>(ids.subspan(static_cast<std::size_t>(i), 1), dy.view().row_block(i, 1),
                                parts.view(), {});
    CHECK(different_bits(parts.view(), dtable.view()) == "");
}

TEMPLATE_TEST_CASE("embed_backward: NaN touches its id's row only", "", float_native, double_scalar) {
    using T = typename TestType::scalar;
    padded<T> dy = uniform_matrix<T>(n_ids, width, 2), dtable(n_rows, width);
    dy(5, 149) = std::numeric_limits<T>::quiet_NaN(); // id 7
    embed_backward<typename TestType::arch, T>(some_ids, dy, dtable.view(), {});
    for (idx i = 0; i < n_rows; ++i)
        for (idx j = 0; j < width; ++j)
            if (std::isnan(dtable(i, j)) != (i == 7 && j == 149)) FAIL("row " << i << ", column " << j);
    SUCCEED("none was wrong");
}

TEST_CASE("embed_backward is the gradient of embed") {
    padded<double> table = uniform_matrix<double>(n_rows, 3, 1), dy = uniform_matrix<double>(n_ids, 3, 2),
                   dtable(n_rows, 3);
    auto loss = [&] {
        padded<double> y(n_ids, 3);
        embed<sluice::simd::native, double>(some_ids, table, y.view(), {});
        double sum = 0;
        for (idx i = 0; i < n_ids; ++i)
            for (idx j = 0; j < 3; ++j) sum += y(i, j) * dy(i, j);
        return sum;
    };
    embed_backward<sluice::simd::native, double>(some_ids, dy, dtable.view(), {});
    CHECK(wrong_gradient(loss, table.view(), dtable.view()) == "");
}

TEST_CASE("embed: ids out of range and shapes that do not fit are named") {
    using native = sluice::simd::native;
    padded<float> table(n_rows, 4), y(3, 4), wrong(3, 5), two(2, 4);
    const std::vector<token_id> good{0, 8, 1};
    auto look_up = [&](const std::vector<token_id>& ids, const tensor_view<float>& to) {
        embed<native, float>(ids, table, to, {});
    };
    auto back = [&](const std::vector<token_id>& ids, const tensor_view<float>& from) {
        embed_backward<native, float>(ids, from, table.view(), {});
    };
    for (token_id bad : {9, -1, std::numeric_limits<token_id>::max(), std::numeric_limits<token_id>::min()}) {
        fill(y.view(), 5.0F);
        fill(table.view(), 6.0F);
        const std::string message =
            "embedding: token id " + std::to_string(bad) + " at row 2 is outside the vocabulary of 9";
        CHECK_THROWS_WITH(look_up({0, 8, bad}, y.view()), message);
        CHECK_THROWS_WITH(back({0, 8, bad}, y.view()), message);
        CHECK_THROWS_AS(back({0, 8, bad}, y.view()), sluice::input_error);
        CHECK(y(0, 0) == 5); // nothing was written
        CHECK(table(0, 0) == 6);
        CHECK(y.touched() + table.touched() == "");
    }
    CHECK_THROWS_WITH(look_up(good, wrong.view()), "embedding: y must be 3 x 4, is 3 x 5");
    CHECK_THROWS_WITH(look_up(good, two.view()), "embedding: y must be 3 x 4, is 2 x 4");
    CHECK_THROWS_WITH(back(good, wrong.view()), "embedding: dy must be 3 x 4, is 3 x 5");
    CHECK_THROWS_AS(back(good, wrong.view()), sluice::config_error);
    CHECK_THROWS_WITH(sluice::check_ids(good, 8, "some layer"),
                      "some layer: token id 8 at row 1 is outside the vocabulary of 8");
    CHECK_NOTHROW(sluice::check_ids(good, 9, "some layer"));
    CHECK_NOTHROW(sluice::check_ids({}, 0, "some layer"));
}

TEST_CASE("embed: no ids, and a dry run without any") {
    using native = sluice::simd::native;
    padded<float> table = uniform_matrix<float>(n_rows, 4, 1), before = table, y(0, 4);
    embed<native, float>({}, table, y.view(), {});
    embed_backward<native, float>({}, y, table.view(), {});
    CHECK(different_bits(table.view(), before.view()) == "");
    sluice::dry_run dry;
    const tensor_view<float> nowhere(nullptr, 3, 4);
    CHECK_NOTHROW(embed<native, float>({}, table, nowhere, dry));
    CHECK_NOTHROW(embed_backward<native, float>({}, nowhere, table.view(), dry));
}

TEST_CASE("embed: allocates nothing") {
    REQUIRE(allocations_are_noticed());
    padded<float> table(n_rows, width), y(n_ids, width);
    sluice::thread_pool pool(2);
    start_all(pool);
    for (executor_ref ex : {executor_ref(), executor_ref(pool)})
        CHECK(allocations_of([&] {
                  embed<sluice::simd::native, float>(some_ids, table, y.view(), ex);
                  embed_backward<sluice::simd::native, float>(some_ids, y, table.view(), ex);
              }) == 0);
}

TEST_CASE("embed: an output that overlaps the table is noticed") {
    shifted_views<float> m(4);
    const std::vector<token_id> ids(4, 1);
    CHECK(overlap_is_noticed([&] { embed(ids, m.first(), m.shifted(), {}); }));
    CHECK(overlap_is_noticed([&] { embed_backward(ids, m.first(), m.shifted(), {}); }));
}
