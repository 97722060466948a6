#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/random_data.hpp"

#include <sluice/kernels/adamw.hpp>

#include <cmath>
#include <limits>

using namespace sluice::test;
using sluice::idx;
using sluice::kernels::adamw_args;
using sluice::kernels::adamw_step;

namespace {

template <class T>
adamw_args<T> constants() {
    adamw_args<T> a{};
    a.gradient_scale = T(0.5);
    a.beta1 = T(0.875);
    a.beta2 = T(0.96875);
    a.step_size = T(0.01);
    a.square_scale = T(8);
    a.eps = T(1e-3);
    a.keep = T(0.99);
    return a;
}

} // namespace

TEMPLATE_TEST_CASE("adamw kernel: one step for all widths, at the end of a page", "", float_native,
                   float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    for (idx n = 0; n <= 67; ++n) {
        page_end<T> weight(n), gradient(n), mean(n), square(n);
        fill_uniform(weight.row(), 1);
        fill_uniform(gradient.row(), 2, -3, 3);
        fill_uniform(mean.row(), 3);
        fill_uniform(square.row(), 4, 0, 2);
        adamw_args<T> a = constants<T>();
        oracle w(1, n), m(1, n), v(1, n);
        auto number = [](T x) { return static_cast<double>(x); };
        for (idx j = 0; j < n; ++j) {
            const double g = number(gradient[j]) * number(a.gradient_scale);
            const double b1 = number(a.beta1), b2 = number(a.beta2);
            m(0, j) = {b1 * number(mean[j]) + (1 - b1) * g, std::abs(number(mean[j])) + std::abs(g)};
            v(0, j) = {b2 * number(square[j]) + (1 - b2) * g * g, number(square[j]) + g * g};
            const double below = std::sqrt(v(0, j).value * number(a.square_scale)) + number(a.eps);
            const double step = number(a.step_size) / below;
            w(0, j) = {number(weight[j]) * number(a.keep) - step * m(0, j).value,
                       std::abs(number(weight[j])) + step * m(0, j).size};
        }
        a.weight = weight.data();
        a.gradient = gradient.data();
        a.mean = mean.data();
        a.square = square.data();
        a.n = n;
        adamw_step{}(typename TestType::arch{}, a);
        CAPTURE(n);
        const tolerance limit{.may_be_dull = n == 0};
        REQUIRE(compare(mean.row(), m, limit) == "");
        REQUIRE(compare(square.row(), v, limit) == "");
        REQUIRE(compare(weight.row(), w, limit) == "");
    }
}

TEMPLATE_TEST_CASE("adamw kernel: nothing happens where all is zero, and NaN stays in its element", "",
                   float_native, float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    constexpr idx n = 21;
    padded<T> weight(1, n), gradient(1, n), mean(1, n), square(1, n);
    adamw_args<T> a = constants<T>();
    a.weight = weight.data();
    a.gradient = gradient.data();
    a.mean = mean.data();
    a.square = square.data();
    a.n = n;
    adamw_step{}(typename TestType::arch{}, a);
    for (idx j = 0; j < n; ++j) REQUIRE((weight(0, j) == 0 && mean(0, j) == 0 && square(0, j) == 0));
    for (idx bad : {0, 15, 20}) {
        for (auto* t : {&weight, &gradient, &mean, &square}) fill(t->view(), T(0));
        gradient(0, bad) = std::numeric_limits<T>::quiet_NaN();
        adamw_step{}(typename TestType::arch{}, a);
        for (idx j = 0; j < n; ++j) {
            REQUIRE(std::isnan(weight(0, j)) == (j == bad));
            REQUIRE(std::isnan(mean(0, j)) == (j == bad));
        }
    }
    CHECK(weight.touched() + gradient.touched() + mean.touched() + square.touched() == "");
}
