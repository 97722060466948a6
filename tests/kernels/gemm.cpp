#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/random_data.hpp"

#include <sluice/kernels/gemm.hpp>

#include <vector>

using namespace sluice::test;
using sluice::idx;
using sluice::tensor_view;
using sluice::kernels::gemm_block;
using sluice::kernels::gemm_block_args;
using sluice::kernels::gemm_pack;
using sluice::kernels::gemm_tile;

namespace {

enum class start_kind { none, bias, rows };

constexpr idx most_rows = 30, most_cols = 70;
constexpr idx depths[] = {0, 1, 5, 64, 300};

template <class Arch>
std::vector<idx> widths() {
    if constexpr (std::is_same_v<Arch, sluice::simd::scalar>)
        return {1, 2, 3, 4, 7, 70};
    else
        return {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 23, 31, 32, 33, 47, 48, 49, 63, 64, 65, 70};
}

// Operands of the largest product, with A both ways, B packed from both ways, and every kind of start.
template <class T>
struct operands {
    explicit operands(idx depth)
        : k(depth),
          a(most_rows * depth),
          a_turned(most_rows * depth),
          b(depth * most_cols),
          b_turned(most_cols * depth),
          bias(most_cols),
          rows(most_rows * most_cols) {}
    tensor_view<T> a_view() { return a.matrix(most_rows, k); }
    tensor_view<T> b_view() { return b.matrix(k, most_cols); }
    void turn() {
        for (idx l = 0; l < k; ++l) {
            for (idx i = 0; i < most_rows; ++i) a_turned[l * most_rows + i] = a[i * k + l];
            for (idx j = 0; j < most_cols; ++j) b_turned[j * k + l] = b[l * most_cols + j];
        }
    }
    T start(start_kind kind, idx i, idx j) {
        return kind == start_kind::none ? T(0) : kind == start_kind::bias ? bias[j] : rows[i * most_cols + j];
    }
    std::vector<T> chains(start_kind kind) {
        std::vector<T> c;
        for (idx i = 0; i < most_rows; ++i)
            for (idx j = 0; j < most_cols; ++j) {
                T sum = start(kind, i, j);
                for (idx l = 0; l < k; ++l) sum = chain_step(a[i * k + l], b[l * most_cols + j], sum);
                c.push_back(sum);
            }
        return c;
    }

    idx k;
    page_end<T> a, a_turned, b, b_turned, bias, rows;
};

template <class T, class Arch>
idx panels_size(idx n, idx k) {
    return sluice::round_up(n, gemm_tile<T, Arch>::cols) * k;
}

// Columns [j0, j0 + n) of the first m rows, into c.
template <class Arch, class T>
void multiply(operands<T>& o, start_kind kind, bool turned, idx j0, idx m, idx n, const T* panels,
              padded<T>& c) {
    gemm_block_args<T> g{.a = turned ? o.a_turned.data() : o.a.data(),
                         .a_row = turned ? 1 : o.k,
                         .a_k = turned ? most_rows : 1,
                         .panels = panels,
                         .panel_stride = gemm_tile<T, Arch>::cols * o.k,
                         .panel_row = gemm_tile<T, Arch>::cols,
                         .start = nullptr,
                         .start_row = 0,
                         .c = c.data(),
                         .c_row = c.view().row_stride(),
                         .m = m,
                         .n = n,
                         .k = o.k};
    if (kind == start_kind::bias) g.start = o.bias.data() + j0;
    if (kind == start_kind::rows) {
        g.start = o.rows.data() + j0;
        g.start_row = most_cols;
    }
    gemm_block{}(Arch{}, g);
}

// Every element of every shape has the bits of its chain.
template <class T, class Arch>
void check_all_shapes(operands<T>& o, start_kind kind) {
    o.turn();
    const std::vector<T> want = o.chains(kind);
    const tensor_view<const T> want_view(want.data(), most_rows, most_cols);
    for (idx n : widths<Arch>()) {
        const idx j0 = most_cols - n; // so that the start is read up to the end of its page
        page_end<T> panels(panels_size<T, Arch>(n, o.k));
        gemm_pack{}(Arch{}, o.b.data() + j0, most_cols, false, o.k, n, panels.data());
        for (idx m = 1; m <= most_rows; ++m)
            for (bool turned : {false, true}) {
                padded<T> c(m, n, 5, 19 + m % 7);
                multiply<Arch>(o, kind, turned, j0, m, n, panels.data(), c);
                std::string wrong = different_bits(c.view(), want_view.row_block(0, m).col_block(j0, n));
                if (wrong.empty()) wrong = c.touched();
                if (!wrong.empty()) FAIL("m " << m << ", n " << n << ", k " << o.k << ": " << wrong);
            }
    }
}

} // namespace

TEMPLATE_TEST_CASE("gemm_block: small integers are multiplied exactly in every shape", "", float_native,
                   float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    for (idx k : depths)
        for (start_kind kind : {start_kind::none, start_kind::bias, start_kind::rows}) {
            operands<T> o(k);
            fill_integers(o.a_view(), 1);
            fill_integers(o.b_view(), 2);
            fill_integers(o.bias.row(), 3);
            fill_integers(o.rows.row(), 4);
            // exact, whatever chain_step does
            const std::vector<T> chain = o.chains(kind);
            for (idx i = 0; i < most_rows; ++i)
                for (idx j = 0; j < most_cols; ++j) {
                    auto sum = static_cast<std::int64_t>(o.start(kind, i, j));
                    for (idx l = 0; l < k; ++l)
                        sum += static_cast<std::int64_t>(o.a[i * k + l]) *
                               static_cast<std::int64_t>(o.b[l * most_cols + j]);
                    if (chain[static_cast<std::size_t>(i * most_cols + j)] != static_cast<T>(sum))
                        FAIL("not exact");
                }
            check_all_shapes<T, typename TestType::arch>(o, kind);
        }
    SUCCEED("none was wrong");
}

TEMPLATE_TEST_CASE("gemm_block: an element is one chain over k, whatever the shape and its place", "",
                   float_native, float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    for (idx k : depths) {
        operands<T> o(k);
        fill_uniform(o.a_view(), 1);
        fill_uniform(o.b_view(), 2);
        fill_uniform(o.bias.row(), 3);
        fill_uniform(o.rows.row(), 4);
        check_all_shapes<T, typename TestType::arch>(o, start_kind::rows);
    }
    SUCCEED("none was wrong");
}

TEMPLATE_TEST_CASE("gemm_block: bits do not depend on where k is cut", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    constexpr idx k = 300, m = 17, n = 41;
    operands<T> o(k);
    fill_uniform(o.a_view(), 1);
    fill_uniform(o.b_view(), 2);
    fill_uniform(o.bias.row(), 3);
    const std::vector<T> want = o.chains(start_kind::bias);
    constexpr idx cols = gemm_tile<T, Arch>::cols;
    // packed part by part, or once for all of k, where a part begins inside its panels
    page_end<T> all_panels(panels_size<T, Arch>(n, k));
    gemm_pack{}(Arch{}, o.b.data(), most_cols, false, k, n, all_panels.data());
    for (bool at_once : {false, true})
        for (idx cut : {1, 7, 128, 256, 299}) {
            padded<T> c(m, n);
            const T* start = o.bias.data();
            idx start_row = 0;
            for (idx k0 = 0; k0 < k; k0 += cut) {
                const idx part = std::min(cut, k - k0);
                page_end<T> panels(panels_size<T, Arch>(n, part));
                gemm_pack{}(Arch{}, o.b.data() + k0 * most_cols, most_cols, false, part, n, panels.data());
                gemm_block{}(Arch{}, gemm_block_args<T>{.a = o.a.data() + k0,
                                                        .a_row = k,
                                                        .a_k = 1,
                                                        .panels = at_once ? all_panels.data() + k0 * cols
                                                                          : panels.data(),
                                                        .panel_stride = cols * (at_once ? k : part),
                                                        .panel_row = gemm_tile<T, Arch>::cols,
                                                        .start = start,
                                                        .start_row = start_row,
                                                        .c = c.data(),
                                                        .c_row = c.view().row_stride(),
                                                        .m = m,
                                                        .n = n,
                                                        .k = part});
                start = c.data();
                start_row = c.view().row_stride();
            }
            const tensor_view<const T> all(want.data(), most_rows, most_cols);
            CHECK(different_bits(c.view(), all.row_block(0, m).col_block(0, n)) == "");
        }
}

TEMPLATE_TEST_CASE("gemm_block: rows may lie in pages of their own", "", float_native, double_native) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    // Nothing but the elements may be read or written: c and the start end with their pages too.
    for (idx m : {1, 5, 12, 13})
        for (idx n : {1, 15, 16, 31, 32, 33, 70}) {
            constexpr idx k = 9;
            page_end<T> a(m * k), panels(panels_size<T, Arch>(n, k)), b(k * n), c(m * n);
            fill_uniform(a.row(), 1);
            fill_uniform(b.row(), 2);
            gemm_pack{}(Arch{}, b.data(), n, false, k, n, panels.data());
            for (idx i = 0; i < 2; ++i) // the second time with c as its own start
                gemm_block{}(Arch{}, gemm_block_args<T>{.a = a.data(),
                                                        .a_row = k,
                                                        .a_k = 1,
                                                        .panels = panels.data(),
                                                        .panel_stride = gemm_tile<T, Arch>::cols * k,
                                                        .panel_row = gemm_tile<T, Arch>::cols,
                                                        .start = i == 0 ? nullptr : c.data(),
                                                        .start_row = n,
                                                        .c = c.data(),
                                                        .c_row = n,
                                                        .m = m,
                                                        .n = n,
                                                        .k = k});
            oracle want(m, n);
            for (idx i = 0; i < m; ++i)
                for (idx j = 0; j < n; ++j)
                    for (idx l = 0; l < k; ++l) {
                        const double term =
                            static_cast<double>(a[i * k + l]) * static_cast<double>(b[l * n + j]);
                        want(i, j).value += 2 * term;
                        want(i, j).size += 2 * std::abs(term);
                    }
            CHECK(compare(c.matrix(m, n), want, {.chain = 2 * k}) == "");
        }
}

TEMPLATE_TEST_CASE("gemm_pack: panels hold B by rows, from either layout, with zeros behind", "",
                   float_native, float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    constexpr idx cols = gemm_tile<T, Arch>::cols;
    for (idx k : {0, 1, 5, 64})
        for (idx n = 1; n <= 70; ++n) {
            page_end<T> by_rows(k * n), by_cols(n * k);
            fill_uniform(by_rows.row(), static_cast<std::uint64_t>(100 * k + n), 1, 2);
            for (idx l = 0; l < k; ++l)
                for (idx j = 0; j < n; ++j) by_cols[j * k + l] = by_rows[l * n + j];
            const idx size = panels_size<T, Arch>(n, k);
            padded<T> panels(1, size), turned(1, size);
            gemm_pack{}(Arch{}, by_rows.data(), n, false, k, n, panels.data());
            gemm_pack{}(Arch{}, by_cols.data(), k, true, k, n, turned.data());
            bool good = panels.touched().empty() && turned.touched().empty();
            for (idx at = 0; at < size; ++at) {
                const idx panel = at / (cols * k), l = at % (cols * k) / cols, j = panel * cols + at % cols;
                const T want = j < n ? by_rows[l * n + j] : T(0);
                good = good && panels(0, at) == want && turned(0, at) == want;
            }
            if (!good) FAIL("k " << k << ", n " << n);
        }
    SUCCEED("none was wrong");
}

TEMPLATE_TEST_CASE("gemm_pack: reads strided sources", "", float_native, float_scalar, double_native,
                   double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    auto source = uniform_matrix<T>(20, 37, 5, 1, 2);
    const idx stride = source.view().row_stride();
    std::vector<T> panels(static_cast<std::size_t>(panels_size<T, Arch>(37, 37)));
    gemm_pack{}(Arch{}, source.data(), stride, false, 20, 37, panels.data());
    CHECK(panels[static_cast<std::size_t>(3 * gemm_tile<T, Arch>::cols)] == source(3, 0));
    bool nan = false; // what lies between the rows
    for (T p : panels) nan = nan || std::isnan(p);
    gemm_pack{}(Arch{}, source.data(), stride, true, 37, 20, panels.data());
    CHECK(panels[static_cast<std::size_t>(3 * gemm_tile<T, Arch>::cols)] == source(0, 3));
    for (T p : panels) nan = nan || std::isnan(p);
    CHECK_FALSE(nan);
}
