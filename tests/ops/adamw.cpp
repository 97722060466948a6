#include "support/allocations.hpp"
#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/executors.hpp"
#include "support/random_data.hpp"

#include <sluice/ops/adamw.hpp>

#include <cmath>
#include <limits>

using namespace sluice::test;
using sluice::adamw_update;
using sluice::arena;
using sluice::executor_ref;
using sluice::idx;
using sluice::sum_of_squares;
using sluice::tensor_view;
using sluice::kernels::adamw_args;
using sluice::simd::native;

namespace {

template <class T>
struct adamw_data {
    adamw_data(idx m, idx n)
        : weight(uniform_matrix<T>(m, n, 1)),
          gradient(uniform_matrix<T>(m, n, 2)),
          mean(uniform_matrix<T>(m, n, 3)),
          square(uniform_matrix<T>(m, n, 4, 0, 1)) {}
    template <class Arch = native>
    void update(executor_ref ex = {}) {
        adamw_update<Arch, T>(weight.view(), gradient, mean.view(), square.view(), constants(), ex);
    }
    static adamw_args<T> constants() {
        adamw_args<T> a{};
        a.gradient_scale = T(0.75);
        a.beta1 = T(0.9);
        a.beta2 = T(0.95);
        a.step_size = T(0.02);
        a.square_scale = T(3);
        a.eps = T(1e-8);
        a.keep = T(0.999);
        return a;
    }
    std::string touched() const {
        return weight.touched() + gradient.touched() + mean.touched() + square.touched();
    }
    padded<T> weight, gradient, mean, square;
};

} // namespace

TEMPLATE_TEST_CASE("adamw_update: every element of every row once", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    for (idx m : {1, 2, 9})
        for (idx n : {1, 15, 16, 37, 130}) {
            adamw_data<T> data(m, n), before(m, n);
            data.template update<typename TestType::arch>();
            oracle want(m, n);
            const auto a = data.constants();
            auto number = [](auto x) { return static_cast<double>(x); };
            for (idx i = 0; i < m; ++i)
                for (idx j = 0; j < n; ++j) {
                    const double g = number(before.gradient(i, j)) * number(a.gradient_scale);
                    const double b1 = number(a.beta1), b2 = number(a.beta2);
                    const double mean = b1 * number(before.mean(i, j)) + (1 - b1) * g;
                    const double square = b2 * number(before.square(i, j)) + (1 - b2) * g * g;
                    const double step =
                        number(a.step_size) / (std::sqrt(square * number(a.square_scale)) + 1e-8);
                    want(i, j) = {number(before.weight(i, j)) * number(a.keep) - step * mean,
                                  std::abs(number(before.weight(i, j))) +
                                      step * (std::abs(number(before.mean(i, j))) + std::abs(g))};
                }
            CAPTURE(m, n);
            CHECK(compare(data.weight.view(), want, {}) == "");
            CHECK(different_bits(data.gradient.view(), before.gradient.view()) == "");
            CHECK(data.touched() == "");
        }
}

TEMPLATE_TEST_CASE("adamw_update: bits do not depend on the executor", "", float_native, double_scalar) {
    using T = typename TestType::scalar;
    adamw_data<T> first(41, 37);
    first.template update<typename TestType::arch>();
    for_each_executor([&](executor_ref ex, const std::string& name) {
        adamw_data<T> data(41, 37);
        data.template update<typename TestType::arch>(ex);
        INFO(name);
        CHECK(different_bits(data.weight.view(), first.weight.view()) == "");
        CHECK(different_bits(data.mean.view(), first.mean.view()) == "");
        CHECK(different_bits(data.square.view(), first.square.view()) == "");
    });
}

TEMPLATE_TEST_CASE("sum_of_squares: exact where the sum is, and close where it is not", "", float_native,
                   float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    arena ws(std::size_t{1} << 12);
    for (idx m : {1, 3, 40})
        for (idx n : {1, 2, 15, 16, 17, 33, 200}) {
            padded<T> x(m, n);
            fill_integers(x.view(), static_cast<std::uint64_t>(m * n), 1000);
            double want = 0;
            for (idx i = 0; i < m; ++i)
                for (idx j = 0; j < n; ++j)
                    want += static_cast<double>(x(i, j)) * static_cast<double>(x(i, j));
            CHECK(sum_of_squares<Arch, T>(x, ws, {}) == want);
            CHECK(ws.used() == 0);
            CHECK(x.touched() == "");
        }
    padded<T> x = uniform_matrix<T>(20, 77, 5);
    double want = 0;
    for (idx i = 0; i < 20; ++i)
        for (idx j = 0; j < 77; ++j) want += static_cast<double>(x(i, j)) * static_cast<double>(x(i, j));
    CHECK(compare_number(sum_of_squares<Arch, T>(x, ws, {}), want, 1e-14 * want) == "");
    // squares beyond the largest float
    fill(x.view(), static_cast<T>(1e30));
    const double big = static_cast<double>(x(0, 0));
    CHECK(compare_number(sum_of_squares<Arch, T>(x, ws, {}), 1540 * big * big, 1e-12 * 1540 * big * big) ==
          "");
    x(19, 76) = std::numeric_limits<T>::quiet_NaN();
    CHECK(std::isnan(sum_of_squares<Arch, T>(x, ws, {})));
    x(19, 76) = -std::numeric_limits<T>::infinity();
    CHECK(std::isinf(sum_of_squares<Arch, T>(x, ws, {})));
    CHECK(sum_of_squares<Arch, T>(tensor_view<const T>(), ws, {}) == 0);
}

TEST_CASE("sum_of_squares: bits do not depend on the executor, and a dry one counts") {
    arena ws(std::size_t{1} << 12);
    const padded<float> x = uniform_matrix<float>(100, 33, 7);
    const double first = sum_of_squares<native, float>(x, ws, {});
    for_each_executor([&](executor_ref ex, const std::string& name) {
        INFO(name);
        CHECK(sum_of_squares<native, float>(x, ws, ex) == first);
    });
    arena dry;
    sluice::dry_run counting;
    CHECK(sum_of_squares<native, float>({nullptr, 100, 33}, dry, counting) == 0);
    arena exact(dry.bytes());
    CHECK(sum_of_squares<native, float>(x, exact, {}) == first);
    arena small(64);
    CHECK_THROWS_AS((sum_of_squares<native, float>(x, small, {})), sluice::capacity_error);
}

TEST_CASE("adamw_update: shapes that do not fit are named") {
    adamw_data<float> d(3, 4);
    padded<float> other(2, 4);
    const auto a = d.constants();
    auto update = [&](auto& gradient, auto& mean, auto& square) {
        adamw_update<native, float>(d.weight.view(), gradient, mean.view(), square.view(), a, {});
    };
    CHECK_THROWS_WITH(update(other, d.mean, d.square), "adamw: gradient must be 3 x 4, is 2 x 4");
    CHECK_THROWS_WITH(update(d.gradient, other, d.square), "adamw: mean must be 3 x 4, is 2 x 4");
    CHECK_THROWS_WITH(update(d.gradient, d.mean, other), "adamw: square must be 3 x 4, is 2 x 4");
    CHECK_THROWS_AS(update(other, d.mean, d.square), sluice::config_error);
    adamw_data<float> none(0, 4);
    none.update();
    CHECK(none.touched() == "");
}

TEST_CASE("adamw_update and sum_of_squares: allocate nothing") {
    REQUIRE(allocations_are_noticed());
    adamw_data<float> data(40, 33);
    arena ws(std::size_t{1} << 12);
    sluice::thread_pool pool(2);
    start_all(pool);
    for (executor_ref ex : {executor_ref(), executor_ref(pool)})
        CHECK(allocations_of([&] {
                  data.update(ex);
                  (void)sum_of_squares<native, float>(data.gradient, ws, ex);
              }) == 0);
}
