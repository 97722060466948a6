#include "support/allocations.hpp"
#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/executors.hpp"
#include "support/random_data.hpp"

#include <sluice/ops/softmax.hpp>

#include <cmath>
#include <limits>
#include <vector>

using namespace sluice::test;
using sluice::executor_ref;
using sluice::idx;
using sluice::softmax;
using sluice::softmax_backward;
using sluice::tensor_view;

namespace {

template <class T>
struct softmax_data {
    softmax_data(idx m, idx n)
        : x(uniform_matrix<T>(m, n, 1, -7, 7)), dy(uniform_matrix<T>(m, n, 2)), y(m, n), dx(m, n) {}
    template <class Arch>
    void run(executor_ref ex = {}) {
        softmax<Arch, T>(x, y.view(), ex);
        softmax_backward<Arch, T>(y, dy, dx.view(), ex);
    }
    std::string touched() const { return x.touched() + dy.touched() + y.touched() + dx.touched(); }
    padded<T> x, dy, y, dx;
};

} // namespace

TEMPLATE_TEST_CASE("softmax: rows and their gradient", "", float_native, float_scalar, double_native,
                   double_scalar) {
    using T = typename TestType::scalar;
    for (idx n : {2, 8, 17, 64, 301})
        for (idx m : {1, 5}) {
            softmax_data<T> data(m, n);
            data.template run<typename TestType::arch>();
            oracle y(m, n), dx(m, n);
            for (idx i = 0; i < m; ++i) {
                double largest = -1e300, sum = 0, inner = 0, inner_size = 0;
                for (idx j = 0; j < n; ++j) largest = std::max(largest, static_cast<double>(data.x(i, j)));
                for (idx j = 0; j < n; ++j) sum += std::exp(static_cast<double>(data.x(i, j)) - largest);
                for (idx j = 0; j < n; ++j) {
                    const double depth = static_cast<double>(data.x(i, j)) - largest,
                                 p = std::exp(depth) / sum;
                    const double d = static_cast<double>(data.dy(i, j));
                    y(i, j) = {p, p * (1 - depth)};
                    inner += p * d;
                    inner_size += p * (1 - depth) * std::abs(d);
                }
                for (idx j = 0; j < n; ++j) {
                    const double d = static_cast<double>(data.dy(i, j));
                    dx(i, j) = {y(i, j).value * (d - inner), y(i, j).size * (std::abs(d) + inner_size)};
                }
            }
            CAPTURE(m, n);
            REQUIRE(compare(data.y.view(), y, {.chain = n, .nmse = sizeof(T) == 4 ? 1e-12 : 0}) == "");
            REQUIRE(compare(data.dx.view(), dx, {.chain = n}) == "");
            REQUIRE(data.touched() == "");
        }
}

TEMPLATE_TEST_CASE("softmax: y may be x, dx may be dy, and a shift of the row changes little", "",
                   float_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    softmax_data<T> first(4, 45), data(4, 45);
    first.template run<Arch>();
    softmax<Arch, T>(data.x, data.x.view(), {});
    CHECK(different_bits(data.x.view(), first.y.view()) == "");
    softmax_backward<Arch, T>(data.x, data.dy, data.dy.view(), {});
    CHECK(different_bits(data.dy.view(), first.dx.view()) == "");
    CHECK(data.touched() == "");
    padded<T> shifted(4, 45);
    for (idx i = 0; i < 4; ++i)
        for (idx j = 0; j < 45; ++j) shifted(i, j) = first.x(i, j) + T(1024);
    softmax<Arch, T>(shifted, shifted.view(), {});
    for (idx i = 0; i < 4; ++i)
        for (idx j = 0; j < 45; ++j) {
            const auto p = static_cast<double>(first.y(i, j));
            CHECK(compare_number(shifted(i, j), p, p * 1100 * 2 * unit_roundoff<T>) == "");
        }
}

TEMPLATE_TEST_CASE("softmax: bits depend on neither the executor nor the other rows", "", float_native,
                   float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    softmax_data<T> first(23, 130);
    first.template run<Arch>();
    for_each_executor([&](executor_ref ex, const std::string& name) {
        softmax_data<T> data(23, 130);
        data.template run<Arch>(ex);
        INFO(name);
        CHECK(different_bits(data.y.view(), first.y.view()) == "");
        CHECK(different_bits(data.dx.view(), first.dx.view()) == "");
    });
    for (idx i = 0; i < 23; ++i) {
        padded<T> y(1, 130), dx(1, 130);
        softmax<Arch, T>(first.x.view().row_block(i, 1), y.view(), {});
        softmax_backward<Arch, T>(y, first.dy.view().row_block(i, 1), dx.view(), {});
        CHECK(different_bits(y.view(), first.y.view().row_block(i, 1)) == "");
        CHECK(different_bits(dx.view(), first.dx.view().row_block(i, 1)) == "");
    }
}

TEMPLATE_TEST_CASE("softmax: NaN and infinities touch their row only", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    constexpr T inf = std::numeric_limits<T>::infinity();
    softmax_data<T> clean(9, 33), data(9, 33);
    data.x(2, 32) = std::numeric_limits<T>::quiet_NaN();
    data.x(4, 0) = inf;
    for (idx j = 0; j < 33; ++j) data.x(6, j) = -inf;
    data.x(8, 5) = -inf;
    clean.template run<Arch>();
    data.template run<Arch>();
    for (idx i : {2, 4, 6}) {
        CHECK(not_all_nan(data.y.view(), i) == "");
        CHECK(not_all_nan(data.dx.view(), i) == "");
    }
    CHECK(data.y(8, 5) == 0);
    CHECK(data.dx(8, 5) == 0);
    CHECK(data.y(8, 4) > clean.y(8, 4));
    for (idx i : {0, 1, 3, 5, 7}) {
        CHECK(different_bits(data.y.view().row_block(i, 1), clean.y.view().row_block(i, 1)) == "");
        CHECK(different_bits(data.dx.view().row_block(i, 1), clean.dx.view().row_block(i, 1)) == "");
    }
}

TEST_CASE("softmax_backward is the gradient of softmax") {
    softmax_data<double> data(2, 11);
    fill_uniform(data.x.view(), 4);
    auto loss = [&] {
        softmax<sluice::simd::native, double>(data.x, data.y.view(), {});
        double sum = 0;
        for (idx i = 0; i < 2; ++i)
            for (idx j = 0; j < 11; ++j) sum += data.y(i, j) * data.dy(i, j);
        return sum;
    };
    data.run<sluice::simd::native>();
    CHECK(wrong_gradient(loss, data.x.view(), data.dx.view()) == "");
}

TEST_CASE("softmax: no rows, no columns and wrong shapes") {
    using native = sluice::simd::native;
    softmax_data<float> no_rows(0, 8), no_cols(3, 0), data(3, 8);
    no_rows.run<native>();
    no_cols.run<native>();
    CHECK(no_rows.touched() + no_cols.touched() == "");
    padded<float> wrong(3, 9);
    CHECK_THROWS_WITH((softmax<native, float>(data.x, wrong.view(), {})),
                      "softmax: y must be 3 x 8, is 3 x 9");
    CHECK_THROWS_WITH((softmax_backward<native, float>(data.y, wrong, data.dx.view(), {})),
                      "softmax_backward: dy must be 3 x 8, is 3 x 9");
    CHECK_THROWS_WITH((softmax_backward<native, float>(data.y, data.dy, wrong.view(), {})),
                      "softmax_backward: dx must be 3 x 8, is 3 x 9");
    CHECK_THROWS_AS((softmax<native, float>(data.x, wrong.view(), {})), sluice::config_error);
}

TEST_CASE("softmax: allocates nothing") {
    REQUIRE(allocations_are_noticed());
    softmax_data<float> data(30, 70);
    sluice::thread_pool pool(2);
    start_all(pool);
    for (executor_ref ex : {executor_ref(), executor_ref(pool)})
        CHECK(allocations_of([&] { data.run<sluice::simd::native>(ex); }) == 0);
}

TEST_CASE("softmax: an output that overlaps an input is noticed") {
    shifted_views<float> m(4);
    CHECK(overlap_is_noticed([&] { softmax(m.first(), m.shifted(), {}); }));
    CHECK(overlap_is_noticed([&] { softmax_backward(m.apart(), m.first(), m.shifted(), {}); }));
    CHECK(overlap_is_noticed([&] { softmax_backward(m.first(), m.apart(), m.first(), {}); }));
}
