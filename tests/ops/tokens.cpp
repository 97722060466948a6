#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/executors.hpp"
#include "support/random_data.hpp"

#include <sluice/ops/tokens.hpp>

#include <string>
#include <vector>

using namespace sluice::test;
using sluice::batch;
using sluice::idx;

// Three sequences, one of them empty; of the last only the last token has copies.
TEST_CASE("tokens: originals, sums over copies and the way back, for any workers") {
    const std::vector<idx> offsets{0, 2, 2, 5}, row_offsets{0, 6, 6, 11};
    const std::vector<idx> originals{0, 3, 6, 7, 8}, counts{3, 3, 1, 1, 3};
    const batch b{.n_tokens = 5, .offsets = offsets, .copies = 3, .row_offsets = row_offsets};
    REQUIRE(b.rows() == 11);
    CHECK(tokens_of(b).rows() == 5);
    CHECK_NOTHROW(check_batch(tokens_of(b), "test"));
    const std::vector<idx> sequences{0, 0, 2, 2, 2};
    for (idx i = 0; i < 5; ++i) CHECK(b.sequence_of(i) == sequences[static_cast<std::size_t>(i)]);
    CHECK(batch::one(4).sequence_of(3) == 0);
    const auto x = uniform_matrix<double>(11, 3, 1), t = uniform_matrix<double>(5, 3, 2);
    for_each_executor([&](sluice::executor_ref ex, const std::string& name) {
        INFO(name);
        sluice::arena keep(4096);
        const auto first = sluice::originals_of<double>(b, x.view(), keep, ex);
        const auto sums = sluice::sums_of_copies<double>(b, x.view(), keep, ex);
        for (const bool copies_too : {false, true}) {
            padded<double> y(11, 3);
            sluice::rows_from_tokens<double>(b, t.view(), y, copies_too, ex);
            for (idx i = 0; i < 5; ++i)
                for (idx j = 0; j < 3; ++j) {
                    const idx row = originals[static_cast<std::size_t>(i)];
                    double sum = 0;
                    for (idx c = 0; c < counts[static_cast<std::size_t>(i)]; ++c) {
                        sum += x.view()(row + c, j);
                        CHECK(y(row + c, j) == (c == 0 || copies_too ? t.view()(i, j) : 0));
                    }
                    CHECK(first(i, j) == x.view()(row, j));
                    CHECK(sums(i, j) == sum);
                }
            CHECK(y.touched() == "");
        }
    });
}
