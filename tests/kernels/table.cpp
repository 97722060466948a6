#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/random_data.hpp"

#include <sluice/kernels/table.hpp>

#include <vector>

using namespace sluice::test;
using sluice::idx;

TEMPLATE_TEST_CASE("decode_rows: rows in any order, with the scales of their parts, and nothing beyond", "",
                   float_native, float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    const idx n_rows = 9;
    const std::vector<std::int32_t> rows{8, 0, 3, 3, 7, 1, 0, 0, 5, 8, 2, 2, 1, 6, 4, 0, 0, 8, 3};
    const auto n = static_cast<idx>(rows.size());
    for (const idx width : {1, 5, 15, 16, 17, 32, 64, 80, 100})
        for (const idx parts : {idx{0}, idx{1}, (width + 31) / 32}) {
            const idx stride = width + 3, scale_stride = parts + 2;
            std::vector<std::int8_t> x(static_cast<std::size_t>(n_rows * stride));
            std::vector<float> scale(static_cast<std::size_t>(n_rows * scale_stride));
            for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<std::int8_t>(i * 37 % 255 - 127);
            for (std::size_t i = 0; i < scale.size(); ++i) scale[i] = 0.001F * static_cast<float>(i + 1);
            padded<T> y(n, width);
            sluice::kernels::decode_rows{}(typename TestType::arch{},
                                           sluice::kernels::decode_rows_args<std::int8_t, float>{
                                               x.data(), stride, parts == 0 ? nullptr : scale.data(),
                                               scale_stride, parts, rows.data(), n, width},
                                           y.view().data(), y.view().row_stride());
            const idx part = parts == 0 ? width : (width + parts - 1) / parts;
            for (idx i = 0; i < n; ++i)
                for (idx j = 0; j < width; ++j) {
                    const idx r = rows[static_cast<std::size_t>(i)];
                    const float s =
                        parts == 0 ? 1.0F : scale[static_cast<std::size_t>(r * scale_stride + j / part)];
                    REQUIRE(
                        y(i, j) ==
                        static_cast<T>(static_cast<float>(x[static_cast<std::size_t>(r * stride + j)]) * s));
                }
            CHECK(y.touched() == "");
        }
}
