#include "support/allocations.hpp"
#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/executors.hpp"
#include "support/random_data.hpp"

#include <sluice/ops/elementwise.hpp>

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <csignal>
#include <limits>
#include <string>
#include <vector>

using namespace sluice::test;
using sluice::add;
using sluice::executor_ref;
using sluice::idx;
using sluice::tensor_view;

TEMPLATE_TEST_CASE("add: exact sums of strided views under every executor", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    for (idx n : {1, 8, 37, 130}) {
        padded<T> a = uniform_matrix<T>(11, n, 1), b = uniform_matrix<T>(11, n, 2), want(11, n);
        for (idx i = 0; i < 11; ++i)
            for (idx j = 0; j < n; ++j) want(i, j) = a(i, j) + b(i, j);
        for_each_executor([&](executor_ref ex, const std::string& name) {
            padded<T> y(11, n), over_a = a, over_b = b;
            add<Arch, T>(a, b, y.view(), ex);
            add<Arch, T>(over_a, b, over_a.view(), ex);
            add<Arch, T>(a, over_b, over_b.view(), ex);
            INFO(name << ", n " << n);
            CHECK(different_bits(y.view(), want.view()) == "");
            CHECK(different_bits(over_a.view(), want.view()) == "");
            CHECK(different_bits(over_b.view(), want.view()) == "");
            CHECK(y.touched() + over_a.touched() + over_b.touched() == "");
        });
    }
}

TEST_CASE("add: NaN touches its element only, no rows are no work, wrong shapes are named") {
    using native = sluice::simd::native;
    padded<float> a = uniform_matrix<float>(3, 20, 1), b = uniform_matrix<float>(3, 20, 2), y(3, 20),
                  wrong(3, 21);
    a(1, 19) = std::numeric_limits<float>::quiet_NaN();
    add<native, float>(a, b, y.view(), {});
    for (idx i = 0; i < 3; ++i)
        for (idx j = 0; j < 20; ++j) CHECK(std::isnan(y(i, j)) == (i == 1 && j == 19));
    padded<float> none(0, 20);
    add<native, float>(none, none, none.view(), {});
    CHECK(none.touched() == "");
    CHECK_THROWS_WITH((add<native, float>(wrong, b, y.view(), {})), "add: a must be 3 x 20, is 3 x 21");
    CHECK_THROWS_WITH((add<native, float>(a, none, y.view(), {})), "add: b must be 3 x 20, is 0 x 20");
    CHECK_THROWS_AS((add<native, float>(a, none, y.view(), {})), sluice::config_error);
}

TEST_CASE("add: allocates nothing") {
    REQUIRE(allocations_are_noticed());
    padded<float> a(30, 40), y(30, 40);
    sluice::thread_pool pool(2);
    start_all(pool);
    for (executor_ref ex : {executor_ref(), executor_ref(pool)})
        CHECK(allocations_of([&] { add<sluice::simd::native, float>(a, a, y.view(), ex); }) == 0);
}

// What all tests of numbers stand on must itself be able to fail.

TEST_CASE("support: a comparison with an oracle sees what is wrong") {
    padded<float> y(2, 3);
    oracle want(2, 3);
    for (idx i = 0; i < 2; ++i)
        for (idx j = 0; j < 3; ++j) {
            y(i, j) = static_cast<float>(1 + i + 2 * j);
            want(i, j) = {static_cast<double>(1 + i + 2 * j), 1};
        }
    CHECK(compare(y.view(), want) == "");
    CHECK(compare(y.view().row_block(0, 1), want) == "shapes differ");
    const float right = y(1, 2), nan = std::numeric_limits<float>::quiet_NaN();
    const float inf = std::numeric_limits<float>::infinity();
    for (float wrong : {right * 1.00001F, -right, nan, inf, -inf}) {
        y(1, 2) = wrong;
        CHECK(compare(y.view(), want).substr(0, 9) == "at (1, 2)");
    }
    want(1, 2).value = static_cast<double>(inf);
    CHECK(compare(y.view(), want) != ""); // -inf
    y(1, 2) = inf;
    CHECK(compare(y.view(), want) == "");
    want(1, 2).value = y(1, 2) = nan;
    CHECK(compare(y.view(), want) == "");
    want(1, 2) = {static_cast<double>(right), 1e9}; // within the bound of the element, but not on the whole
    y(1, 2) = right * 1.01F;
    CHECK(compare(y.view(), want).substr(0, 4) == "nmse");
}

TEST_CASE("support: results that prove nothing are refused") {
    oracle zeros(2, 3), alike(2, 3), nothing(0, 3);
    for (idx j = 0; j < 3; ++j) alike(0, j) = alike(1, j) = {5, 1};
    padded<float> y(2, 3);
    CHECK(compare(y.view(), zeros).substr(0, 11) == "meaningless");
    CHECK(compare(y.view(), zeros, {.may_be_dull = true}) == "");
    CHECK(meaningless(alike).substr(0, 11) == "meaningless");
    CHECK(meaningless(nothing).substr(0, 11) == "meaningless");
    double x = 3;
    const tensor_view<double> one(&x, 1, 1);
    double slope_of_square = 6, wrong_slope = 6.00001, flat = 0;
    CHECK(wrong_gradient([&] { return x * x; }, one, tensor_view<double>(&slope_of_square, 1, 1)) == "");
    CHECK(wrong_gradient([&] { return x * x; }, one, tensor_view<double>(&wrong_slope, 1, 1)) != "");
    CHECK(wrong_gradient([] { return 1.0; }, one, tensor_view<double>(&flat, 1, 1)).substr(0, 11) ==
          "meaningless");
    CHECK(x == 3);
}

TEST_CASE("support: bits, guards and page ends") {
    padded<double> a = uniform_matrix<double>(3, 4, 1), b = a;
    CHECK(different_bits(a.view(), b.view()) == "");
    a(2, 3) = 0.0;
    b(2, 3) = -0.0;
    CHECK(different_bits(a.view(), b.view()).substr(0, 9) == "at (2, 3)");
    for (idx offset : {-1, 4, 8, 3 * 9, -19}) { // before, between and behind the rows
        padded<double> c(3, 4);
        CHECK(c.touched() == "");
        *(c.data() + offset) = 0;
        CHECK(c.touched() != "");
    }
    // a child that reads one element past the end does not survive it
    for (idx past : {0, 1}) {
        page_end<float> memory(5);
        const pid_t child = fork();
        if (child == 0) {
            std::signal(SIGSEGV, SIG_DFL);
            const volatile float* last = memory.data() + 4;
            _exit(last[past] == 0 ? 0 : 1);
        }
        int status = 0;
        REQUIRE(waitpid(child, &status, 0) == child);
        const bool survived = WIFEXITED(status) && WEXITSTATUS(status) == 0;
        CHECK(survived == (past == 0));
    }
}

TEST_CASE("support: executors visit each index once, with workers they have") {
    for_each_executor([](executor_ref ex, const std::string& name) {
        for (idx n : {0, 1, 2, 7, 100}) {
            std::vector<std::atomic<int>> seen(static_cast<std::size_t>(n));
            std::atomic<int> bad{0};
            ex(n, [&](idx begin, idx end, idx worker) {
                bad += begin >= end || worker < 0 || worker >= ex.concurrency();
                for (idx i = begin; i < end; ++i) ++seen[static_cast<std::size_t>(i)];
            });
            bool once = bad == 0;
            for (const auto& s : seen) once = once && s == 1;
            INFO(name << ", n " << n);
            CHECK(once);
        }
    });
}

TEST_CASE("add, add_rows and copy: an output that overlaps an input is noticed") {
    shifted_views<float> m(4);
    const tensor_view<float> a = m.first(), b = m.shifted(), c = m.apart();
    CHECK(overlap_is_noticed([&] { add(a, c, b, {}); }));
    CHECK(overlap_is_noticed([&] { add(c, a, b, {}); }));
    CHECK(overlap_is_noticed([&] { sluice::add_rows(a, a.row_block(1, 1), {}); }));
    CHECK(overlap_is_noticed([&] { sluice::copy(a, b, {}); }));
}
