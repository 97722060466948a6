#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/random_data.hpp"

#include <sluice/kernels/gemm_few_rows.hpp>

#include <vector>

using namespace sluice::test;
using sluice::bf16;
using sluice::idx;
using sluice::tensor_view;
using sluice::kernels::gemm_block;
using sluice::kernels::gemm_block_args;
using sluice::kernels::gemm_few_rows;
using sluice::kernels::gemm_few_rows_args;
using sluice::kernels::gemm_pack;
using sluice::kernels::gemm_tile;

namespace {

enum class start_kind { none, bias, rows };

// What gemm_block makes of the same operands, B being packed first.
template <class T, class Arch>
void by_panels(const tensor_view<const T>& a, const tensor_view<const T>& b, const T* start, idx start_row,
               tensor_view<T> c) {
    constexpr idx cols = gemm_tile<T, Arch>::cols;
    const idx k = a.cols();
    std::vector<T> panels(static_cast<std::size_t>(sluice::round_up(b.rows(), cols) * k));
    gemm_pack{}(Arch{}, b.data(), b.row_stride(), true, k, b.rows(), panels.data());
    gemm_block{}(Arch{}, gemm_block_args<T>{.a = a.data(),
                                            .a_row = a.row_stride(),
                                            .a_k = 1,
                                            .panels = panels.data(),
                                            .panel_stride = cols * k,
                                            .panel_row = cols,
                                            .start = start,
                                            .start_row = start_row,
                                            .c = c.data(),
                                            .c_row = c.row_stride(),
                                            .m = a.rows(),
                                            .n = b.rows(),
                                            .k = k});
}

// All shapes give the bits of gemm_block; S is what B is stored as, and every operand ends where its memory
// ends.
template <class T, class S, class Arch>
void check_shapes() {
    constexpr idx most_rows = gemm_tile<T, Arch>::rows;
    for (idx k : {0, 1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 64, 70})
        for (idx n : {1, 3, 4, 8, 15, 16, 17, 33}) {
            page_end<T> a(most_rows * k), bias(n), rows(most_rows * n);
            page_end<S> stored(n * k);
            std::vector<T> b(static_cast<std::size_t>(n * k));
            fill_uniform(a.matrix(most_rows, k), 1);
            fill_uniform(tensor_view<T>(b.data(), n, k), 2);
            fill_uniform(bias.row(), 3);
            fill_uniform(rows.row(), 4);
            for (idx i = 0; i < n * k; ++i) {
                T& x = b[static_cast<std::size_t>(i)];
                if constexpr (std::is_same_v<S, bf16>) {
                    stored[i] = sluice::to_bf16(x);
                    x = sluice::to_float(stored[i]);
                } else {
                    stored[i] = x;
                }
            }
            for (idx m = 1; m <= most_rows; ++m)
                for (start_kind kind : {start_kind::none, start_kind::bias, start_kind::rows}) {
                    const T* start = kind == start_kind::none   ? nullptr
                                     : kind == start_kind::bias ? bias.data()
                                                                : rows.data();
                    const idx start_row = kind == start_kind::rows ? n : 0;
                    padded<T> c(m, n, 3), want(m, n);
                    by_panels<T, Arch>(a.matrix(most_rows, k).row_block(0, m),
                                       tensor_view<const T>(b.data(), n, k), start, start_row, want.view());
                    gemm_few_rows{}(Arch{}, gemm_few_rows_args<T, S>{.a = a.data(),
                                                                     .a_row = k,
                                                                     .b = stored.data(),
                                                                     .b_row = k,
                                                                     .start = start,
                                                                     .start_row = start_row,
                                                                     .c = c.data(),
                                                                     .c_row = c.view().row_stride(),
                                                                     .m = m,
                                                                     .n = n,
                                                                     .k = k});
                    std::string wrong = different_bits(c.view(), want.view());
                    if (wrong.empty()) wrong = c.touched();
                    if (!wrong.empty()) FAIL("m " << m << ", n " << n << ", k " << k << ": " << wrong);
                }
        }
}

} // namespace

TEMPLATE_TEST_CASE("gemm_few_rows: the bits of gemm_block, in every shape", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    check_shapes<T, T, typename TestType::arch>();
    SUCCEED("none was wrong");
}

TEMPLATE_TEST_CASE("gemm_few_rows: bf16 is widened exactly", "", float_native, float_scalar) {
    check_shapes<float, bf16, typename TestType::arch>();
    SUCCEED("none was wrong");
}

TEMPLATE_TEST_CASE("gemm_few_rows: NaN in a row of B reaches its column alone", "", float_native,
                   float_scalar) {
    using Arch = typename TestType::arch;
    constexpr idx m = 3, n = 19, k = 21, bad = 17;
    padded<float> a(m, k), b(n, k), c(m, n);
    fill_uniform(a.view(), 1);
    fill_uniform(b.view(), 2);
    b.view()(bad, k - 1) = std::numeric_limits<float>::quiet_NaN();
    gemm_few_rows{}(Arch{}, gemm_few_rows_args<float>{.a = a.data(),
                                                      .a_row = a.view().row_stride(),
                                                      .b = b.data(),
                                                      .b_row = b.view().row_stride(),
                                                      .start = nullptr,
                                                      .start_row = 0,
                                                      .c = c.data(),
                                                      .c_row = c.view().row_stride(),
                                                      .m = m,
                                                      .n = n,
                                                      .k = k});
    for (idx i = 0; i < m; ++i)
        for (idx j = 0; j < n; ++j) CHECK(std::isnan(c.view()(i, j)) == (j == bad));
}
