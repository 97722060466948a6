#include "support/allocations.hpp"
#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/executors.hpp"
#include "support/random_data.hpp"

#include <sluice/ops/softmax.hpp>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

using namespace sluice::test;
using sluice::cross_entropy;
using sluice::cross_entropy_backward;
using sluice::executor_ref;
using sluice::idx;
using sluice::ignored_target;
using sluice::softmax;
using sluice::softmax_backward;
using sluice::softmax_columns;
using sluice::softmax_columns_backward;
using sluice::tensor_view;
using sluice::token_id;

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

template <class T>
struct loss_data {
    loss_data(idx m, idx n, double spread = 6)
        : logits(uniform_matrix<T>(m, n, 1, -spread, spread)), loss(1, m), lse(1, m), gradient(m, n) {
        for (idx i = 0; i < m; ++i)
            targets.push_back(i % 4 == 3 ? ignored_target : static_cast<token_id>((7 * i + n - 1) % n));
    }
    template <class Arch>
    void run(executor_ref ex = {}) {
        cross_entropy<Arch, T>(logits, targets, loss.view(), lse.view(), ex);
        cross_entropy_backward<Arch, T>(logits, targets, lse, weight, gradient.view(), ex);
    }
    token_id target(idx i) const { return targets[static_cast<std::size_t>(i)]; }
    std::string touched() const {
        return logits.touched() + loss.touched() + lse.touched() + gradient.touched();
    }
    T weight = T(0.25);
    padded<T> logits, loss, lse, gradient;
    std::vector<token_id> targets;
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

TEMPLATE_TEST_CASE("cross_entropy: loss, log-sum-exp and gradient", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    for (idx n : {2, 17, 100, 1003})
        for (idx m : {1, 9}) {
            loss_data<T> data(m, n);
            data.template run<typename TestType::arch>();
            oracle loss(1, m), lse(1, m), gradient(m, n);
            for (idx i = 0; i < m; ++i) {
                double sum = 0; // no shift: these logits are small
                for (idx j = 0; j < n; ++j) sum += std::exp(static_cast<double>(data.logits(i, j)));
                lse(0, i) = {std::log(sum), 8 + std::abs(std::log(sum))};
                const token_id t = data.target(i);
                if (t == ignored_target) continue;
                loss(0, i) = {std::log(sum) - static_cast<double>(data.logits(i, t)),
                              16 + std::abs(std::log(sum))};
                for (idx j = 0; j < n; ++j) {
                    const double p = std::exp(static_cast<double>(data.logits(i, j))) / sum,
                                 hit = j == t ? 1 : 0;
                    gradient(i, j) = {static_cast<double>(data.weight) * (p - hit), 0.25 * (p * 20 + hit)};
                }
            }
            CAPTURE(m, n);
            REQUIRE(compare(data.loss.view(), loss, {.chain = n}) == "");
            REQUIRE(compare(data.lse.view(), lse, {.chain = n}) == "");
            REQUIRE(compare(data.gradient.view(), gradient, {.chain = n}) == "");
            REQUIRE(data.touched() == "");
        }
}

TEMPLATE_TEST_CASE("cross_entropy: ignored rows have neither loss nor gradient", "", float_native,
                   float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    loss_data<T> data(8, 21);
    fill(data.gradient.view(), T(5));
    fill(data.loss.view(), T(5));
    data.logits(7, 3) = std::numeric_limits<T>::quiet_NaN();
    data.template run<typename TestType::arch>();
    for (idx i : {3, 7}) {
        CHECK(data.loss(0, i) == 0);
        for (idx j = 0; j < 21; ++j) CHECK(data.gradient(i, j) == 0);
    }
    CHECK(data.loss(0, 0) > 0);
}

TEMPLATE_TEST_CASE("cross_entropy: the gradient may replace the logits", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    loss_data<T> data(9, 77);
    data.template run<typename TestType::arch>();
    cross_entropy_backward<typename TestType::arch, T>(data.logits, data.targets, data.lse, data.weight,
                                                       data.logits.view(), {});
    CHECK(different_bits(data.logits.view(), data.gradient.view()) == "");
    CHECK(data.logits.touched() == "");
}

TEMPLATE_TEST_CASE("cross_entropy: huge logits give finite losses", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    loss_data<T> data(2, 19);
    for (T huge : {T(400), T(1e4), T(1e30)}) {
        for (idx j = 0; j < 19; ++j) {
            data.logits(0, j) = huge;                  // all alike
            data.logits(1, j) = j == 4 ? huge : -huge; // one beyond doubt
        }
        data.targets = {18, 4};
        data.template run<Arch>();
        CHECK(compare_number(data.loss(0, 0), huge > T(1e20) ? 0 : std::log(19.0),
                             4 * unit_roundoff<T> * static_cast<double>(huge)) == "");
        CHECK(data.loss(0, 1) == 0);
        CHECK(data.gradient(1, 4) == 0);
        CHECK(data.gradient(1, 5) == 0);
        data.targets = {18, 5}; // sure and wrong
        data.template run<Arch>();
        CHECK(compare_number(data.loss(0, 1), 2 * static_cast<double>(huge),
                             1e-6 * static_cast<double>(huge)) == "");
        CHECK(data.gradient(1, 4) == data.weight);
        CHECK(data.gradient(1, 5) == -data.weight);
    }
    // classes that are ruled out
    data.logits(1, 6) = -std::numeric_limits<T>::infinity();
    data.template run<Arch>();
    CHECK(std::isfinite(data.loss(0, 1)));
    CHECK(data.gradient(1, 6) == 0);
}

TEMPLATE_TEST_CASE(
    "cross_entropy: bits depend on neither the executor nor the other rows, NaN stays in its row", "",
    float_native, float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    loss_data<T> first(21, 65);
    first.template run<Arch>();
    for_each_executor([&](executor_ref ex, const std::string& name) {
        loss_data<T> data(21, 65);
        data.template run<Arch>(ex);
        INFO(name);
        CHECK(different_bits(data.loss.view(), first.loss.view()) == "");
        CHECK(different_bits(data.lse.view(), first.lse.view()) == "");
        CHECK(different_bits(data.gradient.view(), first.gradient.view()) == "");
    });
    for (idx i = 0; i < 21; ++i) {
        loss_data<T> one(1, 65);
        copy(first.logits.view().row_block(i, 1), one.logits.view());
        one.targets = {first.target(i)};
        one.template run<Arch>();
        CHECK(different_bits(one.loss.view(), first.loss.view().col_block(i, 1)) == "");
        CHECK(different_bits(one.gradient.view(), first.gradient.view().row_block(i, 1)) == "");
    }
    loss_data<T> spoilt(21, 65);
    spoilt.logits(5, 64) = std::numeric_limits<T>::quiet_NaN();
    spoilt.template run<Arch>();
    CHECK(std::isnan(spoilt.loss(0, 5)));
    CHECK(not_all_nan(spoilt.gradient.view(), 5) == "");
    spoilt.loss(0, 5) = first.loss(0, 5);
    copy(first.gradient.view().row_block(5, 1), spoilt.gradient.view().row_block(5, 1));
    CHECK(different_bits(spoilt.loss.view(), first.loss.view()) == "");
    CHECK(different_bits(spoilt.gradient.view(), first.gradient.view()) == "");
}

TEST_CASE("cross_entropy_backward is the gradient of cross_entropy") {
    loss_data<double> data(4, 7, 2);
    auto loss = [&] {
        cross_entropy<sluice::simd::native, double>(data.logits, data.targets, data.loss.view(),
                                                    data.lse.view(), {});
        double sum = 0;
        for (idx i = 0; i < 4; ++i) sum += data.loss(0, i);
        return data.weight * sum;
    };
    data.run<sluice::simd::native>();
    CHECK(wrong_gradient(loss, data.logits.view(), data.gradient.view()) == "");
}

TEST_CASE("cross_entropy: targets and shapes that do not fit are named") {
    using native = sluice::simd::native;
    loss_data<float> data(3, 8);
    padded<float> row9(1, 9), wide(3, 9);
    auto forward = [&](const auto& loss, const auto& lse) {
        cross_entropy<native, float>(data.logits, data.targets, loss, lse, {});
    };
    auto backward = [&](const auto& lse, const auto& gradient) {
        cross_entropy_backward<native, float>(data.logits, data.targets, lse, 1.0F, gradient, {});
    };
    CHECK_THROWS_WITH(forward(row9.view(), data.lse.view()), "cross_entropy: loss must be 1 x 3, is 1 x 9");
    CHECK_THROWS_WITH(forward(data.loss.view(), row9.view()), "cross_entropy: lse must be 1 x 3, is 1 x 9");
    CHECK_THROWS_WITH(backward(row9, data.gradient.view()),
                      "cross_entropy_backward: lse must be 1 x 3, is 1 x 9");
    CHECK_THROWS_WITH(backward(data.lse, wide.view()),
                      "cross_entropy_backward: dlogits must be 3 x 8, is 3 x 9");
    CHECK_THROWS_AS(backward(data.lse, wide.view()), sluice::config_error);
    for (token_id bad : {8, -2, std::numeric_limits<token_id>::max(), std::numeric_limits<token_id>::min()}) {
        data.targets[2] = bad;
        fill(data.loss.view(), 5.0F);
        fill(data.gradient.view(), 5.0F);
        const std::string message =
            "cross_entropy: target " + std::to_string(bad) + " is outside the vocabulary of 8";
        CHECK_THROWS_WITH(forward(data.loss.view(), data.lse.view()), message);
        CHECK_THROWS_WITH(backward(data.lse, data.gradient.view()), message);
        CHECK_THROWS_AS(backward(data.lse, data.gradient.view()), sluice::input_error);
        CHECK(data.loss(0, 0) == 5);
        CHECK(data.gradient(0, 0) == 5);
        CHECK(data.touched() == "");
    }
    data.targets = {1, 2};
    CHECK_THROWS_WITH(forward(data.loss.view(), data.lse.view()), "cross_entropy: 2 targets for 3 rows");
    CHECK_THROWS_WITH(backward(data.lse, data.gradient.view()), "cross_entropy: 2 targets for 3 rows");
}

TEST_CASE("cross_entropy: no rows, and a dry run without targets") {
    using native = sluice::simd::native;
    loss_data<float> none(0, 8);
    none.run<native>();
    CHECK(none.touched() == "");
    const tensor_view<float> logits(nullptr, 3, 8), row(nullptr, 1, 3);
    sluice::dry_run dry;
    CHECK_NOTHROW(cross_entropy<native, float>(logits, {}, row, row, dry));
    CHECK_NOTHROW(cross_entropy_backward<native, float>(logits, {}, row, 1.0F, logits, dry));
}

TEST_CASE("cross_entropy: allocates nothing") {
    REQUIRE(allocations_are_noticed());
    loss_data<float> data(30, 70);
    sluice::thread_pool pool(2);
    start_all(pool);
    for (executor_ref ex : {executor_ref(), executor_ref(pool)})
        CHECK(allocations_of([&] { data.run<sluice::simd::native>(ex); }) == 0);
}

TEMPLATE_TEST_CASE("softmax_columns: the softmax of the transpose, forward and backward", "", float_native,
                   float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    for (idx m : {1, 6, 40})
        for (idx n : {1, 7, 16, 33, 64, 130}) {
            padded<T> x = uniform_matrix<T>(m, n, 1, -7, 7), dy = uniform_matrix<T>(m, n, 2), y(m, n),
                      dx = uniform_matrix<T>(m, n, 3);
            const padded<T> before = dx;
            softmax_columns<Arch, T>(x, y.view(), {});
            softmax_columns_backward<Arch, T>(y, dy, dx.view(), {});
            oracle want(m, n), want_dx(m, n);
            for (idx j = 0; j < n; ++j) {
                double sum = 0, inner = 0, inner_size = 0;
                for (idx i = 0; i < m; ++i) sum += std::exp(static_cast<double>(x(i, j)));
                for (idx i = 0; i < m; ++i) {
                    const double p = std::exp(static_cast<double>(x(i, j))) / sum;
                    want(i, j) = {p, 15 * p};
                    inner += p * static_cast<double>(dy(i, j));
                    inner_size += 15 * p * std::abs(static_cast<double>(dy(i, j)));
                }
                for (idx i = 0; i < m; ++i) {
                    const double p = want(i, j).value, d = static_cast<double>(dy(i, j)),
                                 old = static_cast<double>(before.view()(i, j));
                    want_dx(i, j) = {old + p * (d - inner),
                                     std::abs(old) + 15 * p * (std::abs(d) + inner_size)};
                }
            }
            CAPTURE(m, n);
            CHECK(compare(y.view(), want, {.chain = m, .may_be_dull = m == 1}) == "");
            CHECK(compare(dx.view(), want_dx, {.chain = m, .may_be_dull = true}) == "");
            CHECK(y.touched() + dx.touched() == "");
            for_each_executor([&](executor_ref ex, const std::string&) {
                padded<T> y2 = x, dx2 = before;
                softmax_columns<Arch, T>(y2, y2.view(), ex); // in place
                softmax_columns_backward<Arch, T>(y2, dy, dx2.view(), ex);
                CHECK(different_bits(y2.view(), y.view()) == "");
                CHECK(different_bits(dx2.view(), dx.view()) == "");
            });
        }
    padded<T> wrong(3, 9), y(3, 8);
    CHECK_THROWS_WITH((softmax_columns<Arch, T>(y, wrong.view(), {})),
                      "softmax_columns: y must be 3 x 8, is 3 x 9");
    CHECK_THROWS_WITH((softmax_columns_backward<Arch, T>(y, wrong, y.view(), {})),
                      "softmax_columns_backward: dy must be 3 x 8, is 3 x 9");
    CHECK_THROWS_WITH((softmax_columns_backward<Arch, T>(y, y, wrong.view(), {})),
                      "softmax_columns_backward: dx must be 3 x 8, is 3 x 9");
}

TEST_CASE("cross_entropy: a gradient that overlaps the logits is noticed") {
    shifted_views<float> m(4);
    const std::vector<token_id> targets(4, 1);
    CHECK(overlap_is_noticed(
        [&] { cross_entropy_backward(m.first(), targets, m.apart().row_block(0, 1), 1, m.shifted(), {}); }));
    CHECK(overlap_is_noticed(
        [&] { cross_entropy_backward(m.apart(), targets, m.first().row_block(0, 1), 1, m.first(), {}); }));
}
