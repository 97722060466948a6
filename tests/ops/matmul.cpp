#include "support/allocations.hpp"
#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/executors.hpp"
#include "support/random_data.hpp"

#include <sluice/ops/activation.hpp>
#include <sluice/ops/matmul.hpp>

#include <cmath>
#include <limits>

using namespace sluice::test;
using sluice::arena;
using sluice::dry_run;
using sluice::executor_ref;
using sluice::idx;
using sluice::matmul;
using sluice::matmul_dw;
using sluice::matmul_dx;
using sluice::matmul_options;
using sluice::tensor_view;

namespace {

struct shape {
    idx m, n, k;
};

// Awkward ones, and two that need several blocks in each direction.
constexpr shape shapes[] = {{1, 1, 1},   {1, 7, 5},     {3, 130, 300}, {50, 129, 257},
                            {13, 24, 1}, {100, 33, 64}, {5, 300, 513}, {97, 17, 19}};

// A(i, l) B(l, j) summed over l, from plain loops. a(i, l) and b(l, j) are functions.
template <class A, class B>
oracle product(idx m, idx n, idx k, A&& a, B&& b) {
    oracle c(m, n);
    for (idx i = 0; i < m; ++i)
        for (idx j = 0; j < n; ++j)
            for (idx l = 0; l < k; ++l) {
                const double term = static_cast<double>(a(i, l)) * static_cast<double>(b(l, j));
                c(i, j).value += term;
                c(i, j).size += std::abs(term);
            }
    return c;
}
template <class T>
void add_to(oracle& c, const tensor_view<const T>& start) {
    for (idx i = 0; i < c.rows(); ++i)
        for (idx j = 0; j < c.cols(); ++j) {
            const auto s = static_cast<double>(start(start.rows() == 1 ? 0 : i, j));
            c(i, j).value += s;
            c(i, j).size += std::abs(s);
        }
}

template <class T>
struct operands {
    explicit operands(shape s_)
        : s(s_),
          x(uniform_matrix<T>(s.m, s.k, 1)),
          w(uniform_matrix<T>(s.n, s.k, 2)),
          dy(uniform_matrix<T>(s.m, s.n, 3)),
          bias(uniform_matrix<T>(1, s.n, 4)),
          residual(uniform_matrix<T>(s.m, s.n, 5)),
          dx(uniform_matrix<T>(s.m, s.k, 6)),
          dw(uniform_matrix<T>(s.n, s.k, 7)),
          y(s.m, s.n) {}
    std::string touched() const {
        return x.touched() + w.touched() + dy.touched() + bias.touched() + residual.touched() + dx.touched() +
               dw.touched() + y.touched();
    }
    matmul_options<T> from_bias() { return {.bias = bias.view(), .residual = {}}; }
    matmul_options<T> from_residual() { return {.bias = {}, .residual = residual.view()}; }
    shape s;
    padded<T> x, w, dy, bias, residual, dx, dw, y;
};

tolerance sums(idx k) { return {.chain = k + 1, .may_be_dull = false}; }

// The bytes f(arena, executor) asks for.
template <class F>
std::size_t dry_bytes(idx workers, F&& f) {
    arena dry;
    dry_run executor{workers};
    f(dry, executor_ref(executor));
    return dry.bytes();
}

} // namespace

TEMPLATE_TEST_CASE("matmul: x W^T from zero, a bias or a residual", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    arena ws(std::size_t{1} << 20);
    for (shape s : shapes) {
        operands<T> o(s);
        const oracle plain = product(
            s.m, s.n, s.k, [&](idx i, idx l) { return o.x(i, l); }, [&](idx l, idx j) { return o.w(j, l); });
        CAPTURE(s.m, s.n, s.k);
        matmul<Arch>(o.x, o.w, o.y.view(), {}, ws, {});
        REQUIRE(compare(o.y.view(), plain, sums(s.k)) == "");

        oracle biased = plain, added = plain;
        add_to<T>(biased, o.bias);
        add_to<T>(added, o.residual);
        matmul<Arch>(o.x, o.w, o.y.view(), o.from_bias(), ws, {});
        REQUIRE(compare(o.y.view(), biased, sums(s.k)) == "");
        matmul<Arch>(o.x, o.w, o.y.view(), o.from_residual(), ws, {});
        REQUIRE(compare(o.y.view(), added, sums(s.k)) == "");

        // the residual itself as the result
        matmul<Arch>(o.x, o.w, o.residual.view(), o.from_residual(), ws, {});
        REQUIRE(different_bits(o.residual.view(), o.y.view()) == "");
        REQUIRE(o.touched() == "");
        REQUIRE(ws.used() == 0);
    }
}

TEMPLATE_TEST_CASE("matmul_dx: dy W, overwritten or accumulated", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    arena ws(std::size_t{1} << 20);
    for (shape s : shapes) {
        operands<T> o(s);
        oracle want = product(
            s.m, s.k, s.n, [&](idx i, idx j) { return o.dy(i, j); }, [&](idx j, idx l) { return o.w(j, l); });
        oracle added = want;
        add_to<T>(added, o.dx);
        CAPTURE(s.m, s.n, s.k);
        matmul_dx<Arch>(o.dy, o.w, o.dx.view(), true, ws, {});
        REQUIRE(compare(o.dx.view(), added, sums(s.n)) == "");
        matmul_dx<Arch>(o.dy, o.w, o.dx.view(), false, ws, {});
        REQUIRE(compare(o.dx.view(), want, sums(s.n)) == "");
        REQUIRE(o.touched() == "");
    }
}

TEMPLATE_TEST_CASE("matmul_dw: dy^T x is added to what is there", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    arena ws(std::size_t{1} << 20);
    for (shape s : shapes) {
        operands<T> o(s);
        oracle want = product(
            s.n, s.k, s.m, [&](idx j, idx i) { return o.dy(i, j); }, [&](idx i, idx l) { return o.x(i, l); });
        add_to<T>(want, o.dw);
        matmul_dw<Arch>(o.dy, o.x, o.dw.view(), ws, {});
        CAPTURE(s.m, s.n, s.k);
        REQUIRE(compare(o.dw.view(), want, sums(s.m)) == "");
        REQUIRE(o.touched() == "");
    }
}

TEMPLATE_TEST_CASE("matmul: bits do not depend on the executor", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    operands<T> o({201, 150, 270});
    padded<T> first_y(201, 150), first_dx(201, 270), first_dw(150, 270);
    arena ws(std::size_t{1} << 22);
    bool first = true;
    for_each_executor([&](executor_ref ex, const std::string& name) {
        padded<T> y(201, 150), dx(201, 270), dw(150, 270);
        copy(o.residual.view(), y.view());
        matmul<Arch>(o.x, o.w, y.view(), {.bias = {}, .residual = y.view()}, ws, ex);
        matmul_dx<Arch>(o.dy, o.w, dx.view(), false, ws, ex);
        copy(o.dw.view(), dw.view());
        matmul_dw<Arch>(o.dy, o.x, dw.view(), ws, ex);
        if (first) {
            copy(y.view(), first_y.view());
            copy(dx.view(), first_dx.view());
            copy(dw.view(), first_dw.view());
            first = false;
        }
        INFO(name);
        CHECK(different_bits(y.view(), first_y.view()) == "");
        CHECK(different_bits(dx.view(), first_dx.view()) == "");
        CHECK(different_bits(dw.view(), first_dw.view()) == "");
        CHECK(y.touched() + dx.touched() + dw.touched() == "");
    });
}

TEMPLATE_TEST_CASE("matmul: each row has the bits it has alone, and any part of the batch", "", float_native,
                   float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    operands<T> o({61, 140, 260});
    arena ws(std::size_t{1} << 20);
    matmul<Arch>(o.x, o.w, o.y.view(), o.from_bias(), ws, {});
    matmul_dx<Arch>(o.dy, o.w, o.dx.view(), false, ws, {});
    for (idx n : {1, 2, 7, 13, 48, 60})
        for (idx i = 0; i + n <= 61; i += n) {
            padded<T> y(n, 140), dx(n, 260);
            matmul<Arch>(o.x.view().row_block(i, n), o.w, y.view(), o.from_bias(), ws, {});
            matmul_dx<Arch>(o.dy.view().row_block(i, n), o.w, dx.view(), false, ws, {});
            CAPTURE(i, n);
            REQUIRE(different_bits(y.view(), o.y.view().row_block(i, n)) == "");
            REQUIRE(different_bits(dx.view(), o.dx.view().row_block(i, n)) == "");
        }
    // dW from all rows at once, or from parts in order
    padded<T> whole(140, 260), parts(140, 260);
    matmul_dw<Arch>(o.dy, o.x, whole.view(), ws, {});
    for (idx i = 0; i < 61; i += 7) {
        const idx n = std::min<idx>(7, 61 - i);
        matmul_dw<Arch>(o.dy.view().row_block(i, n), o.x.view().row_block(i, n), parts.view(), ws, {});
    }
    CHECK(different_bits(parts.view(), whole.view()) == "");
}

TEMPLATE_TEST_CASE("matmul: small integers are multiplied exactly", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    operands<T> o({37, 131, 300});
    fill_integers(o.x.view(), 1);
    fill_integers(o.w.view(), 2);
    arena ws(std::size_t{1} << 20);
    matmul<typename TestType::arch>(o.x, o.w, o.y.view(), {}, ws, {});
    const oracle want = product(
        37, 131, 300, [&](idx i, idx l) { return o.x(i, l); }, [&](idx l, idx j) { return o.w(j, l); });
    bool exact = true;
    for (idx i = 0; i < 37; ++i)
        for (idx j = 0; j < 131; ++j) exact = exact && static_cast<double>(o.y(i, j)) == want(i, j).value;
    CHECK(exact);
}

TEMPLATE_TEST_CASE("matmul: NaN and infinity in a row touch that row only", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    operands<T> o({29, 70, 40});
    arena ws(std::size_t{1} << 20);
    matmul<Arch>(o.x, o.w, o.y.view(), {}, ws, {});
    matmul_dx<Arch>(o.dy, o.w, o.dx.view(), false, ws, {});
    padded<T> y(29, 70), dx(29, 40);
    o.x(17, 39) = o.dy(17, 69) = std::numeric_limits<T>::quiet_NaN();
    o.x(18, 0) = o.dy(18, 0) = std::numeric_limits<T>::infinity();
    matmul<Arch>(o.x, o.w, y.view(), {}, ws, {});
    matmul_dx<Arch>(o.dy, o.w, dx.view(), false, ws, {});
    CHECK(not_all_nan(y.view(), 17) == "");
    CHECK(not_all_nan(dx.view(), 17) == "");
    bool infinite = true;
    for (idx j = 0; j < 70; ++j) infinite = infinite && std::isinf(y(18, j));
    CHECK(infinite);
    for (idx i = 0; i < 29; ++i) {
        if (i == 17 || i == 18) continue;
        CHECK(different_bits(y.view().row_block(i, 1), o.y.view().row_block(i, 1)) == "");
        CHECK(different_bits(dx.view().row_block(i, 1), o.dx.view().row_block(i, 1)) == "");
    }
}

TEMPLATE_TEST_CASE("matmul: nothing to sum leaves the start, nothing to write is no work", "", float_native,
                   float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    arena ws(std::size_t{1} << 16);
    operands<T> o({5, 150, 0});
    matmul<Arch>(o.x, o.w, o.y.view(), o.from_residual(), ws, {});
    CHECK(different_bits(o.y.view(), o.residual.view()) == "");
    matmul<Arch>(o.x, o.w, o.y.view(), {}, ws, {});
    for (idx j = 0; j < 150; ++j) CHECK(o.y(4, j) == 0);

    const tensor_view<T> none(nullptr, 0, 140); // zero tokens, as an empty arena gives them
    padded<T> w = uniform_matrix<T>(150, 140, 1), dw = uniform_matrix<T>(150, 140, 2), before = dw;
    const tensor_view<T> no_dy(nullptr, 0, 150);
    matmul<Arch>(none, w, no_dy, {}, ws, {});
    matmul_dx<Arch>(no_dy, w, none, false, ws, {});
    matmul_dw<Arch>(no_dy, none, dw.view(), ws, {});
    CHECK(different_bits(dw.view(), before.view()) == "");
    // no outputs at all: dx has no terms, and is zero or what it was
    padded<T> dx = uniform_matrix<T>(3, 140, 3), dx_before = dx;
    const tensor_view<T> no_outputs(dx.data(), 3, 0), no_w(nullptr, 0, 140);
    matmul_dx<Arch>(no_outputs, no_w, dx.view(), true, ws, {});
    CHECK(different_bits(dx.view(), dx_before.view()) == "");
    matmul_dx<Arch>(no_outputs, no_w, dx.view(), false, ws, {});
    CHECK(dx(2, 139) == 0);
}

TEST_CASE("matmul: the backward products are the gradients of the forward one") {
    operands<double> o({3, 5, 4});
    arena ws(std::size_t{1} << 16);
    auto loss = [&] {
        matmul(o.x, o.w, o.y.view(), o.from_bias(), ws, {});
        double sum = 0;
        for (idx i = 0; i < 3; ++i)
            for (idx j = 0; j < 5; ++j) sum += o.y(i, j) * o.dy(i, j);
        return sum;
    };
    padded<double> dx(3, 4), dw(5, 4);
    matmul_dx(o.dy, o.w, dx.view(), false, ws, {});
    matmul_dw(o.dy, o.x, dw.view(), ws, {});
    CHECK(wrong_gradient(loss, o.x.view(), dx.view()) == "");
    CHECK(wrong_gradient(loss, o.w.view(), dw.view()) == "");
}

TEST_CASE("matmul: shapes that do not fit are named") {
    padded<float> x(2, 3), w(4, 3), y(2, 4), bias(1, 4), wrong_bias(1, 5), row(1, 4);
    arena ws(std::size_t{1} << 16);
    const matmul_options<float> none;
    auto product_of = [&](const auto& a, const auto& b, const auto& c, const matmul_options<float>& start) {
        matmul(a.view(), b.view(), c, start, ws, {});
    };
    CHECK_THROWS_WITH(product_of(x, padded<float>(4, 2), y.view(), none),
                      "matmul: w must be 4 x 3, is 4 x 2");
    CHECK_THROWS_WITH(product_of(x, padded<float>(5, 3), y.view(), none),
                      "matmul: w must be 4 x 3, is 5 x 3");
    CHECK_THROWS_WITH(product_of(x, w, row.view(), none), "matmul: y must be 2 x 4, is 1 x 4");
    CHECK_THROWS_WITH(product_of(x, w, y.view(), {.bias = wrong_bias.view(), .residual = {}}),
                      "matmul: bias must be 1 x 4, is 1 x 5");
    CHECK_THROWS_WITH(product_of(x, w, y.view(), {.bias = y.view(), .residual = {}}),
                      "matmul: bias must be 1 x 4, is 2 x 4");
    CHECK_THROWS_WITH(product_of(x, w, y.view(), {.bias = {}, .residual = row.view()}),
                      "matmul: residual must be 2 x 4, is 1 x 4");
    CHECK_THROWS_WITH(product_of(x, w, y.view(), {.bias = bias.view(), .residual = y.view()}),
                      "matmul: bias and residual exclude each other");
    CHECK_THROWS_AS(product_of(x, w, row.view(), none), sluice::config_error);

    padded<float> dx(2, 3), dw(4, 3);
    CHECK_THROWS_WITH(matmul_dx(y, padded<float>(3, 3).view(), dx.view(), false, ws, {}),
                      "matmul_dx: w must be 4 x 3, is 3 x 3");
    CHECK_THROWS_WITH(matmul_dx(row, w, dx.view(), false, ws, {}), "matmul_dx: dx must be 1 x 3, is 2 x 3");
    CHECK_THROWS_WITH(matmul_dw(row, x, dw.view(), ws, {}), "matmul_dw: x must be 1 x 3, is 2 x 3");
    CHECK_THROWS_WITH(matmul_dw(y, x, padded<float>(5, 3).view(), ws, {}),
                      "matmul_dw: dw must be 4 x 3, is 5 x 3");
    CHECK(ws.used() == 0);
}

TEMPLATE_TEST_CASE("matmul: a dry run tells the workspace exactly", "", float_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    for (shape s : shapes)
        for (idx workers = 1; workers <= 3; ++workers) {
            operands<T> o(s);
            const tensor_view<T> x(nullptr, s.m, s.k), w(nullptr, s.n, s.k), y(nullptr, s.m, s.n);
            auto dry = [&](auto&& f) { return dry_bytes(workers, f); };
            auto real = [&](std::size_t bytes, auto&& f) {
                reverse_in_parts parts{workers};
                arena enough(bytes);
                f(enough, executor_ref(parts));
                CHECK(enough.bytes() == bytes);
                if (bytes == 0) return;
                arena short_by_one(bytes - 1);
                CHECK_THROWS_AS(f(short_by_one, executor_ref(parts)), sluice::capacity_error);
            };
            CAPTURE(s.m, s.n, s.k, workers);
            real(dry([&](arena& a, executor_ref ex) { matmul<Arch>(x, w, y, {}, a, ex); }),
                 [&](arena& a, executor_ref ex) { matmul<Arch>(o.x, o.w, o.y.view(), {}, a, ex); });
            real(dry([&](arena& a, executor_ref ex) { matmul_dx<Arch>(y, w, x, false, a, ex); }),
                 [&](arena& a, executor_ref ex) { matmul_dx<Arch>(o.dy, o.w, o.dx.view(), false, a, ex); });
            real(dry([&](arena& a, executor_ref ex) { matmul_dw<Arch>(y, x, w, a, ex); }),
                 [&](arena& a, executor_ref ex) { matmul_dw<Arch>(o.dy, o.x, o.dw.view(), a, ex); });
        }
}

TEMPLATE_TEST_CASE("matmul: a gated pair is two products and an activation, bit for bit", "", float_native,
                   double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    for (shape s : shapes)
        for (idx workers : {1, 3}) {
            padded<T> x(s.m, s.k), wg(s.n, s.k), wu(s.n, s.k), bias(1, s.n), gate(s.m, s.n), up(s.m, s.n),
                y(s.m, s.n), want_gate(s.m, s.n), want_up(s.m, s.n), want(s.m, s.n);
            fill_uniform(x.view(), 1);
            fill_uniform(wg.view(), 2);
            fill_uniform(wu.view(), 3);
            fill_uniform(bias.view(), 4);
            arena ws(std::size_t{1} << 22);
            matmul<Arch>(x.view(), wg.view(), want_gate.view(), {.bias = bias.view()}, ws, {});
            matmul<Arch>(x.view(), wu.view(), want_up.view(), {}, ws, {});
            sluice::activate<Arch, T>(sluice::activation::gelu, want_gate.view(), want_up.view(), want.view(),
                                      {});
            const sluice::gated_weights<T> w{.gate = wg.view(),
                                             .up = wu.view(),
                                             .gate_bias = bias.view(),
                                             .up_bias = {},
                                             .act = sluice::activation::gelu};
            reverse_in_parts parts{workers};
            sluice::matmul_gated<Arch, T>(x.view(), w, gate.view(), up.view(), y.view(), ws, parts);
            CAPTURE(s.m, s.n, s.k, workers);
            CHECK(different_bits(y.view(), want.view()) == "");
            CHECK(different_bits(gate.view(), want_gate.view()) == "");
            CHECK(different_bits(up.view(), want_up.view()) == "");
            // in place of a factor
            sluice::matmul_gated<Arch, T>(x.view(), w, gate.view(), up.view(), up.view(), ws, parts);
            CHECK(different_bits(up.view(), want.view()) == "");
        }
}

TEST_CASE("matmul: too little workspace is an error before anything is written") {
    operands<float> o({5, 40, 30});
    fill(o.y.view(), 3.0F);
    arena small(64);
    CHECK_THROWS_AS(matmul(o.x, o.w, o.y.view(), {}, small, {}), sluice::capacity_error);
    for (idx i = 0; i < 5; ++i)
        for (idx j = 0; j < 40; ++j) CHECK(o.y(i, j) == 3);
}

TEST_CASE("matmul: allocates nothing") {
    REQUIRE(allocations_are_noticed());
    operands<float> o({150, 140, 270});
    arena ws(std::size_t{1} << 20);
    sluice::thread_pool pool(2);
    start_all(pool);
    for (executor_ref ex : {executor_ref(), executor_ref(pool)}) {
        const idx made = allocations_of([&] {
            matmul(o.x, o.w, o.y.view(), o.from_bias(), ws, ex);
            matmul_dx(o.dy, o.w, o.dx.view(), true, ws, ex);
            matmul_dw(o.dy, o.x, o.dw.view(), ws, ex);
        });
        CHECK(made == 0);
    }
}

TEST_CASE("matmul: an output that overlaps an input is noticed") {
    shifted_views<float> m(4);
    const tensor_view<float> a = m.first(), b = m.shifted(), c = m.apart();
    const sluice::gated_weights<const float> gates{.gate = c, .up = c};
    arena workspace(1 << 20);
    auto run = [&](tensor_view<float> x, tensor_view<float> w, tensor_view<float> y,
                   const matmul_options<float>& o = {}) {
        return overlap_is_noticed([&] { matmul<sluice::simd::native, float>(x, w, y, o, workspace, {}); });
    };
    CHECK((run(a, c, b) && run(a, c, a) && run(c, a, b) && run(c, c, a, {.residual = b})));
    CHECK(run(c, c, a, {.bias = a.row_block(2, 1)}));
    CHECK_FALSE((run(c, c, a) || run(c, c, a, {.residual = a})));
    CHECK(overlap_is_noticed(
        [&] { sluice::matmul_gated<sluice::simd::native, float>(c, gates, a, b, a, workspace, {}); }));
    CHECK(overlap_is_noticed([&] {
        sluice::matmul_gated<sluice::simd::native, float>(c, gates, a, m.apart(), a, workspace, {});
    }));
    CHECK(overlap_is_noticed([&] { matmul_dx(a, c, b, false, workspace, {}); }));
    CHECK(overlap_is_noticed([&] { matmul_dx(c, a, b, true, workspace, {}); }));
    CHECK(overlap_is_noticed([&] { matmul_dw(a, c, b, workspace, {}); }));
    CHECK(overlap_is_noticed([&] { matmul_dw(c, a, b, workspace, {}); }));
}
