#include "support/allocations.hpp"
#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/executors.hpp"
#include "support/random_data.hpp"

#include <sluice/ops/activation.hpp>

#include <cmath>
#include <limits>
#include <numbers>

using namespace sluice::test;
using sluice::activate;
using sluice::activate_backward;
using sluice::activation;
using sluice::executor_ref;
using sluice::idx;
using sluice::tensor_view;

namespace {

constexpr activation kinds[] = {activation::silu, activation::gelu, activation::relu, activation::quick_gelu};

double plain(activation kind, double x) {
    if (kind == activation::silu) return x / (1 + std::exp(-x));
    if (kind == activation::gelu) return x * 0.5 * std::erfc(-x / std::numbers::sqrt2);
    if (kind == activation::quick_gelu) return x / (1 + std::exp(-1.702 * x));
    return x > 0 ? x : 0;
}
// By differences: a formula of its own would only repeat the library's.
double plain_slope(activation kind, double x) {
    return slope([&] { return plain(kind, x); }, x);
}

template <class T>
struct activation_data {
    activation_data(activation kind_, bool gated_, idx m = 11, idx n = 37)
        : kind(kind_),
          gated(gated_),
          x(uniform_matrix<T>(m, n, 1, -5, 5)),
          up(uniform_matrix<T>(m, n, 2)),
          dy(uniform_matrix<T>(m, n, 3)),
          y(m, n),
          dx(m, n),
          dup(m, n) {}
    tensor_view<const T> gate() const { return gated ? up.view() : tensor_view<const T>(); }
    template <class Arch>
    void run(executor_ref ex = {}) {
        activate<Arch, T>(kind, x, gate(), y.view(), ex);
        activate_backward<Arch, T>(kind, x, gate(), dy, dx.view(), gated ? dup.view() : tensor_view<T>(), ex);
    }
    std::string touched() const {
        return x.touched() + up.touched() + dy.touched() + y.touched() + dx.touched() + dup.touched();
    }
    activation kind;
    bool gated;
    padded<T> x, up, dy, y, dx, dup;
};

template <class F>
void for_each_kind(F&& f) {
    for (activation kind : kinds)
        for (bool gated : {false, true}) f(kind, gated);
}

} // namespace

TEMPLATE_TEST_CASE("activate: values and slopes, alone and gated", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    for_each_kind([](activation kind, bool gated) {
        activation_data<T> data(kind, gated);
        data.template run<typename TestType::arch>();
        oracle y(11, 37), dx(11, 37), dup(11, 37);
        for (idx i = 0; i < 11; ++i)
            for (idx j = 0; j < 37; ++j) {
                const auto x = static_cast<double>(data.x(i, j)), d = static_cast<double>(data.dy(i, j));
                const double u = gated ? static_cast<double>(data.up(i, j)) : 1;
                y(i, j) = {plain(kind, x) * u, 1 + std::abs(x * u)};
                // differences around ReLU's kink say nothing
                const bool kink = kind == activation::relu && std::abs(x) < 0.02;
                dx(i, j) = {d * u * (kink ? (x > 0 ? 1 : 0) : plain_slope(kind, x)), 4};
                dup(i, j) = {d * plain(kind, x), 1 + std::abs(x * d)};
            }
        CAPTURE(static_cast<int>(kind), gated);
        // the differences that slopes are held against err by 1e-12, xsimd's erf in double by 7.5e-15
        const tolerance values{.nmse = sizeof(T) == 4 ? 1e-12 : 1e-28, .tiny = sizeof(T) == 4 ? 0 : 4e-14};
        const tolerance slopes{.nmse = sizeof(T) == 4 ? 1e-12 : 1e-22, .tiny = 1e-11};
        CHECK(compare(data.y.view(), y, values) == "");
        CHECK(compare(data.dx.view(), dx, slopes) == "");
        if (gated) CHECK(compare(data.dup.view(), dup, values) == "");
        CHECK(data.touched() == "");
    });
}

TEMPLATE_TEST_CASE("activate: results may replace what the comment allows", "", float_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    for_each_kind([](activation kind, bool gated) {
        activation_data<T> first(kind, gated), data(kind, gated);
        first.template run<Arch>();
        activate_backward<Arch, T>(kind, data.x, data.gate(), data.dy, data.dy.view(),
                                   gated ? data.up.view() : tensor_view<T>(), {});
        CHECK(different_bits(data.dy.view(), first.dx.view()) == "");
        if (gated) CHECK(different_bits(data.up.view(), first.dup.view()) == "");
        copy(first.up.view(), data.up.view());
        if (gated) {
            activate<Arch, T>(kind, data.x, data.gate(), data.up.view(), {});
            CHECK(different_bits(data.up.view(), first.y.view()) == "");
            copy(first.up.view(), data.up.view());
        }
        activate<Arch, T>(kind, data.x, data.gate(), data.x.view(), {});
        CHECK(different_bits(data.x.view(), first.y.view()) == "");
        copy(first.x.view(), data.x.view());
        activate_backward<Arch, T>(kind, data.x, data.gate(), first.dy, data.x.view(),
                                   gated ? data.dup.view() : tensor_view<T>(), {});
        CHECK(different_bits(data.x.view(), first.dx.view()) == "");
        CHECK(data.touched() == "");
    });
}

TEMPLATE_TEST_CASE("activate: bits depend on neither the executor nor the other rows", "", float_native,
                   float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    for_each_kind([](activation kind, bool gated) {
        activation_data<T> first(kind, gated);
        first.template run<Arch>();
        for_each_executor([&](executor_ref ex, const std::string& name) {
            activation_data<T> data(kind, gated);
            data.template run<Arch>(ex);
            INFO(name);
            CHECK(different_bits(data.y.view(), first.y.view()) == "");
            CHECK(different_bits(data.dx.view(), first.dx.view()) == "");
            CHECK(different_bits(data.dup.view(), first.dup.view()) == "");
        });
        for (idx i = 0; i < 11; ++i) {
            padded<T> y(1, 37);
            activate<Arch, T>(kind, first.x.view().row_block(i, 1),
                              gated ? first.gate().row_block(i, 1) : tensor_view<const T>(), y.view(), {});
            CHECK(different_bits(y.view(), first.y.view().row_block(i, 1)) == "");
        }
    });
}

TEMPLATE_TEST_CASE("activate: NaN touches its element only", "", float_native, float_scalar, double_native,
                   double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    for_each_kind([](activation kind, bool gated) {
        activation_data<T> clean(kind, gated), data(kind, gated);
        data.x(5, 36) = data.x(5, 3) = std::numeric_limits<T>::quiet_NaN();
        clean.template run<Arch>();
        data.template run<Arch>();
        for (idx j : {3, 36}) {
            CHECK(std::isnan(data.y(5, j)));
            // ReLU's slope at NaN is 0 like that at every number that is not above 0
            CHECK((kind == activation::relu || std::isnan(data.dx(5, j))));
            clean.y(5, j) = data.y(5, j);
            clean.dx(5, j) = data.dx(5, j);
        }
        CHECK(different_bits(data.y.view(), clean.y.view()) == "");
        CHECK(different_bits(data.dx.view(), clean.dx.view()) == "");
    });
}

TEST_CASE("activate_backward is the gradient of activate") {
    for_each_kind([](activation kind, bool gated) {
        activation_data<double> data(kind, gated, 3, 19);
        if (kind == activation::relu) // keep the stencil away from the kink
            for (idx i = 0; i < 3; ++i)
                for (idx j = 0; j < 19; ++j)
                    if (std::abs(data.x(i, j)) < 0.02) data.x(i, j) = 0.5;
        auto loss = [&] {
            activate<sluice::simd::native, double>(kind, data.x, data.gate(), data.y.view(), {});
            double sum = 0;
            for (idx i = 0; i < 3; ++i)
                for (idx j = 0; j < 19; ++j) sum += data.y(i, j) * data.dy(i, j);
            return sum;
        };
        data.run<sluice::simd::native>();
        CAPTURE(static_cast<int>(kind), gated);
        CHECK(wrong_gradient(loss, data.x.view(), data.dx.view()) == "");
        if (gated) CHECK(wrong_gradient(loss, data.up.view(), data.dup.view()) == "");
    });
}

TEST_CASE("activate: no rows, wrong shapes and unknown kinds") {
    using native = sluice::simd::native;
    padded<float> x(3, 8), y(3, 8), wrong(3, 9), none(0, 8);
    const tensor_view<float> empty;
    activate<native, float>(activation::silu, none, none, none.view(), {});
    activate_backward<native, float>(activation::silu, none, none, none, none.view(), none.view(), {});
    CHECK(none.touched() == "");
    CHECK_THROWS_WITH((activate<native, float>(activation::silu, x, empty, wrong.view(), {})),
                      "activate: y must be 3 x 8, is 3 x 9");
    CHECK_THROWS_WITH((activate<native, float>(activation::silu, x, wrong, y.view(), {})),
                      "activate: up must be 3 x 8, is 3 x 9");
    CHECK_THROWS_WITH((activate<native, float>(static_cast<activation>(99), x, empty, y.view(), {})),
                      "activation: unknown kind 99");
    auto backward = [&](const auto& up, const auto& dy, const auto& dx, const auto& dup) {
        activate_backward<native, float>(activation::relu, x, up, dy, dx, dup, {});
    };
    CHECK_THROWS_WITH(backward(empty, wrong, y.view(), empty),
                      "activate_backward: dy must be 3 x 8, is 3 x 9");
    CHECK_THROWS_WITH(backward(empty, y, wrong.view(), empty),
                      "activate_backward: dx must be 3 x 8, is 3 x 9");
    CHECK_THROWS_WITH(backward(wrong, y, y.view(), y.view()),
                      "activate_backward: up must be 3 x 8, is 3 x 9");
    CHECK_THROWS_WITH(backward(y, y, y.view(), empty), "activate_backward: dup must be 3 x 8, is 0 x 0");
    CHECK_THROWS_AS(backward(y, y, y.view(), empty), sluice::config_error);
}

TEST_CASE("activate: allocates nothing") {
    REQUIRE(allocations_are_noticed());
    activation_data<float> data(activation::silu, true);
    sluice::thread_pool pool(2);
    start_all(pool);
    for (executor_ref ex : {executor_ref(), executor_ref(pool)})
        CHECK(allocations_of([&] { data.run<sluice::simd::native>(ex); }) == 0);
}

TEST_CASE("activate: an output that overlaps an input is noticed") {
    shifted_views<float> m(4);
    const tensor_view<float> a = m.first(), b = m.shifted(), c = m.apart();
    const auto kind = activation::silu;
    CHECK(overlap_is_noticed([&] { activate(kind, a, {}, b, {}); }));
    CHECK(overlap_is_noticed([&] { activate(kind, c, a, b, {}); }));
    CHECK(overlap_is_noticed([&] { activate_backward(kind, a, {}, c, b, {}, {}); }));
    CHECK(overlap_is_noticed([&] { activate_backward(kind, c, c, a, b, c, {}); }));
    CHECK(overlap_is_noticed([&] { activate_backward(kind, a, c, a, a, a, {}); }));
}
