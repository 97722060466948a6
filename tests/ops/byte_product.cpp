// Products with quantised matrices: what they stand for, and the promises of all products.
#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/executors.hpp"
#include "support/packed_copy.hpp"

#include <sluice/ops/matmul.hpp>

#include <vector>

using namespace sluice;
using namespace sluice::test;

namespace {

struct shape {
    idx m, k, n;
};
constexpr shape shapes[] = {{1, 1, 1},     {1, 300, 33},     {2, 257, 31},  {5, 64, 64},
                            {9, 1100, 40}, {13, 17, 32},     {25, 300, 70}, {97, 33, 129},
                            {3, 0, 40},    {130, 1057, 300}, {0, 20, 30},   {2, 2500, 65}};

template <class S, class Arch = simd::native>
void multiply(in<float> x, const tensor_view<packed<S>>& w, tensor_view<float> y,
              const matmul_options<float>& o = {}, executor_ref ex = {}) {
    arena workspace(1 << 23);
    matmul<Arch, float>(x, w, y, o, workspace, ex);
}

} // namespace

TEMPLATE_TEST_CASE("byte_product: in_float gives the bits of a product with the floats", "", int8_row,
                   int8_block, int4_block, int4_block_min, f8_block) {
    for (const auto& [m, k, n] : shapes) {
        padded<float> x = uniform_matrix<float>(m, k, 1), w = uniform_matrix<float>(n, k, 2), y(m, n),
                      z(m, n);
        const packed_copy<in_float<TestType>> p(w.view());
        const padded<float> floats = unpacked(p.view);
        arena workspace(1 << 23);
        matmul<simd::native, float>(x, floats, y.view(), {}, workspace, {});
        multiply<in_float<TestType>>(x, p.view, z.view());
        CAPTURE(m, k, n);
        CHECK(different_bits(y.view(), z.view()) == "");
        CHECK(z.touched() == "");
    }
}

TEMPLATE_TEST_CASE("byte_product: in integers, to within half a step of x", "", int8_row, int8_block,
                   int4_block, int4_block_min) {
    constexpr idx group = panel_format<TestType>::group;
    for (const auto& [m, k, n] : shapes) {
        padded<float> x = uniform_matrix<float>(m, k, 1), w = uniform_matrix<float>(n, k, 2), y(m, n);
        const packed_copy<TestType> p(w.view());
        const padded<float> floats = unpacked(p.view);
        multiply<TestType>(x, p.view, y.view());
        CAPTURE(m, k, n);
        for (idx i = 0; i < m; ++i)
            for (idx j = 0; j < n; ++j) {
                double want = 0, allowed = 1e-5;
                for (idx first = 0; first < k; first += group) {
                    double most = 0, weights = 0;
                    for (idx q = first; q < std::min(k, first + group); ++q) {
                        const double a = static_cast<double>(x(i, q)),
                                     b = static_cast<double>(floats.view()(j, q));
                        want += a * b;
                        most = std::max(most, std::abs(a));
                        weights += std::abs(b);
                    }
                    allowed += most / 127 * 0.501 * weights;
                }
                REQUIRE(compare_number(y(i, j), want, allowed) == "");
            }
        CHECK(y.touched() == "");
    }
}

TEMPLATE_TEST_CASE(
    "byte_product: a row's bits do not depend on the others, on workers, or on the Arch's tile", "", int8_row,
    int8_block, int4_block, int4_block_min) {
    const idx m = 61, k = 1100, n = 150;
    padded<float> x = uniform_matrix<float>(m, k, 1), w = uniform_matrix<float>(n, k, 2), y(m, n), z(m, n);
    const packed_copy<TestType> p(w.view());
    multiply<TestType>(x, p.view, y.view());
    for (const idx rows : {1, 2, 7, 8, 13, 30})
        for (idx i = 0; i + rows <= m; i += 16) {
            multiply<TestType>(x.view().row_block(i, rows), p.view, z.view().row_block(i, rows));
            REQUIRE(different_bits(y.view().row_block(i, rows), z.view().row_block(i, rows)) == "");
        }
    for_each_executor([&](executor_ref ex, const std::string& name) {
        fill(z.view(), 0.0F);
        multiply<TestType>(x, p.view, z.view(), {}, ex);
        CAPTURE(name);
        CHECK(different_bits(y.view(), z.view()) == "");
    });
}

TEMPLATE_TEST_CASE("byte_product: bias, residual, activation and gates", "", int8_row, int4_block_min) {
    const idx m = 9, k = 70, n = 45;
    padded<float> x = uniform_matrix<float>(m, k, 1), w = uniform_matrix<float>(n, k, 2),
                  up = uniform_matrix<float>(n, k, 3);
    padded<float> plain(m, n), other(m, n), y(m, n), gate(m, n);
    const packed_copy<TestType> p(w.view()), q(up.view());
    multiply<TestType>(x, p.view, plain.view());
    multiply<TestType>(x, q.view, other.view());
    const padded<float> bias = uniform_matrix<float>(1, n, 4), residual = uniform_matrix<float>(m, n, 5);
    multiply<TestType>(x, p.view, y.view(), {.bias = bias});
    for (idx i = 0; i < m; ++i)
        for (idx j = 0; j < n; ++j) REQUIRE(y(i, j) == approx(plain(i, j) + bias.view()(0, j)).margin(1e-5));
    copy(residual.view(), y.view());
    multiply<TestType>(x, p.view, y.view(), {.residual = y.view(), .act = activation::relu});
    for (idx i = 0; i < m; ++i)
        for (idx j = 0; j < n; ++j)
            REQUIRE(y(i, j) == approx(std::max(0.0F, plain(i, j) + residual.view()(i, j))).margin(1e-5));
    arena workspace(1 << 20);
    const gated_weights<packed<TestType>> both{.gate = p.view, .up = q.view};
    matmul_gated<simd::native, float>(x, both, gate.view(), y.view(), y.view(), workspace, {});
    for (idx i = 0; i < m; ++i)
        for (idx j = 0; j < n; ++j)
            REQUIRE(y(i, j) == approx(plain(i, j) / (1 + std::exp(-plain(i, j))) * other(i, j)).margin(1e-5));
}

TEMPLATE_TEST_CASE("byte_product: what is not finite spoils its own row only", "", int8_row, int4_block) {
    padded<float> x = uniform_matrix<float>(3, 80, 1), w = uniform_matrix<float>(20, 80, 2), y(3, 20),
                  z(3, 20);
    const packed_copy<TestType> p(w.view());
    multiply<TestType>(x, p.view, y.view());
    x(1, 79) = std::numeric_limits<float>::infinity();
    multiply<TestType>(x, p.view, z.view());
    CHECK(not_all_nan(z.view(), 1) == "");
    CHECK(different_bits(y.view().row_block(0, 1), z.view().row_block(0, 1)) == "");
    CHECK(different_bits(y.view().row_block(2, 1), z.view().row_block(2, 1)) == "");
}

TEST_CASE("byte_product: workspace that is too small is an error before anything is written") {
    padded<float> x = uniform_matrix<float>(4, 80, 1), w = uniform_matrix<float>(20, 80, 2), y(4, 20);
    const packed_copy<int8_block> p(w.view());
    arena workspace(64);
    fill(y.view(), 5.0F);
    CHECK_THROWS_AS((matmul<simd::native, float>(x, p.view, y.view(), {}, workspace, {})), capacity_error);
    CHECK(y(3, 19) == 5.0F);
    CHECK_THROWS_AS((multiply<int8_block>(x.view().col_block(0, 79), p.view, y.view())), config_error);
}
