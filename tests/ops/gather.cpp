#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/executors.hpp"

#include <sluice/core/random.hpp>
#include <sluice/core/tensor.hpp>
#include <sluice/ops/gather.hpp>

#include <vector>

using namespace sluice::test;
using sluice::idx;

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
