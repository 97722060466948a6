#include "support/catch.hpp"
#include "support/executors.hpp"

#include <sluice/core/random.hpp>
#include <sluice/core/tensor.hpp>
#include <sluice/ops/top_k.hpp>

using namespace sluice::test;
using sluice::idx;

TEST_CASE("top_k: every row alone, the same for any workers") {
    sluice::tensor<float> x(37, 50);
    sluice::fill_normal(x.view(), 1, sluice::random_source(3));
    sluice::tensor<std::int32_t> want(37, 6), one(1, 6);
    sluice::top_k(x.view(), sluice::top_k_order::by_value, want.view(), {});
    for (idx i = 0; i < 37; ++i) {
        sluice::top_k(x.view().row_block(i, 1), sluice::top_k_order::by_value, one.view(), {});
        for (idx j = 0; j < 6; ++j) CHECK(one(0, j) == want(i, j));
        for (idx j = 1; j < 6; ++j) CHECK(x(i, want(i, j)) <= x(i, want(i, j - 1)));
    }
    for_each_executor([&](sluice::executor_ref ex, const std::string&) {
        sluice::tensor<std::int32_t> got(37, 6);
        sluice::top_k(x.view(), sluice::top_k_order::by_value, got.view(), ex);
        for (idx i = 0; i < got.size(); ++i) REQUIRE(got.data()[i] == want.data()[i]);
    });
}

TEST_CASE("top_k: refuses more than a row has, and outputs of another shape") {
    sluice::tensor<float> x(2, 5);
    sluice::tensor<std::int32_t> many(2, 6), rows(3, 2);
    REQUIRE_THROWS_WITH(sluice::top_k(x.view(), sluice::top_k_order::by_index, many.view(), {}),
                        "top_k: k is 6, a row has 5 entries");
    REQUIRE_THROWS_WITH(sluice::top_k(x.view(), sluice::top_k_order::by_index, rows.view(), {}),
                        "top_k: indices must be 2 x 2, is 3 x 2");
}
