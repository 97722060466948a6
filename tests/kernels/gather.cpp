#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/random_data.hpp"

#include <sluice/kernels/gather.hpp>

#include <cmath>
#include <vector>

using namespace sluice::test;
using sluice::idx;

namespace {

constexpr idx n_rows = 50;

std::vector<std::int32_t> some_rows(idx n) {
    std::vector<std::int32_t> rows;
    for (idx i = 0; i < n; ++i) rows.push_back(static_cast<std::int32_t>(i * 37 % n_rows));
    return rows;
}

} // namespace

TEMPLATE_TEST_CASE("gather_rows: copies rows bit for bit at every width", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    for (idx width : {1, 3, 16, 17, 64, 100, 600, 1000}) {
        padded<T> x = uniform_matrix<T>(n_rows, width, 1), y(70, width);
        const auto rows = some_rows(70);
        sluice::kernels::gather_rows{}(typename TestType::arch{}, static_cast<const T*>(x.data()),
                                       x.view().row_stride(), rows.data(), idx{70}, width, y.data(),
                                       y.view().row_stride());
        CAPTURE(width);
        for (idx i = 0; i < 70; ++i)
            CHECK(different_bits(y.view().row_block(i, 1),
                                 x.view().row_block(rows[static_cast<std::size_t>(i)], 1)) == "");
        CHECK(y.touched() + x.touched() == "");
    }
}

TEMPLATE_TEST_CASE("gather_sum: adds rows in order at every width", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    for (idx width : {1, 3, 16, 17, 64, 100, 128, 129, 300, 1000})
        for (idx n : {0, 1, 2, 30}) {
            const idx outputs = 3;
            padded<T> x = uniform_matrix<T>(n_rows, width, 1), y(outputs, width), want(outputs, width);
            const auto rows = some_rows(n * outputs);
            sluice::fill(want.view(), T(0));
            for (idx i = 0; i < n * outputs; ++i)
                for (idx j = 0; j < width; ++j) want(i / n, j) += x(rows[static_cast<std::size_t>(i)], j);
            sluice::kernels::gather_sum{}(typename TestType::arch{}, static_cast<const T*>(x.data()),
                                          x.view().row_stride(), rows.data(), n, width, y.view().data(),
                                          y.view().row_stride(), outputs);
            CAPTURE(width, n);
            CHECK(different_bits(y.view(), want.view()) == "");
            CHECK(y.touched() == "");
        }
}

TEMPLATE_TEST_CASE("gather_weighted: rows times weights in order, negative rows left out", "", float_native,
                   float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    for (idx width : {1, 3, 16, 17, 64, 100, 128, 129, 300, 1000})
        for (idx n : {0, 1, 2, 9})
            for (bool weighted : {true, false}) {
                page_end<T> x(n_rows * width), w(n);
                fill_uniform(x.row(), 1);
                fill_uniform(w.row(), 2);
                padded<T> y(1, width);
                oracle want(1, width);
                auto rows = some_rows(n);
                for (idx i = 0; i < n; ++i) {
                    std::int32_t& r = rows[static_cast<std::size_t>(i)];
                    if (i % 4 == 1) r = -1 - r;
                    for (idx j = 0; j < width && r >= 0; ++j) {
                        const double term = static_cast<double>(x[r * width + j]) *
                                            (weighted ? static_cast<double>(w[i]) : 1);
                        want(0, j).value += term;
                        want(0, j).size += std::abs(term);
                    }
                }
                sluice::kernels::gather_weighted{}(
                    typename TestType::arch{}, static_cast<const T*>(x.data()), width, rows.data(),
                    static_cast<const T*>(weighted ? w.data() : nullptr), n, width, y.data());
                CAPTURE(width, n, weighted);
                CHECK(compare(y.view(), want, {.chain = 9, .may_be_dull = true}) == "");
                CHECK(y.touched() == "");
            }
}
