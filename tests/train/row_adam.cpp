#include "support/allocations.hpp"
#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/executors.hpp"
#include "support/random_data.hpp"

#include <sluice/core/tensor.hpp>
#include <sluice/train/row_adam.hpp>

#include <vector>

using namespace sluice::test;
using sluice::adamw_config;
using sluice::idx;
using sluice::row_adam_state;
using sluice::row_gradient;
using sluice::tensor_view;

namespace {

constexpr idx n_rows = 20, width = 7;
constexpr adamw_config some{.rate = 0.05, .beta1 = 0.8, .beta2 = 0.9, .eps = 1e-6, .decay = 0.5};

template <class T>
struct problem {
    problem()
        : memory(1 << 16),
          gradient(row_gradient<T>::bind(memory, n_rows, width)),
          state(row_adam_state<T>::bind(memory, n_rows, width)),
          table(uniform_matrix<T>(n_rows, width, 1)) {}
    // Gradients of a step: rows 3 (in even steps), 5 and 19.
    void touch(idx step) {
        gradient.clear();
        std::vector<std::int32_t> rows{19, 5}, slots(3);
        if (step % 2 == 0) rows.push_back(3);
        gradient.find(rows, slots.data());
        for (std::size_t i = 0; i < rows.size(); ++i)
            for (idx j = 0; j < width; ++j) gradient.row(slots[i])[j] = value(step, rows[i], j);
    }
    static T value(idx step, idx row, idx j) {
        return static_cast<T>(sluice::random_source(9).normal(step * 1000 + row * 10 + j));
    }
    sluice::arena memory;
    row_gradient<T> gradient;
    row_adam_state<T> state;
    padded<T> table;
};

} // namespace

TEMPLATE_TEST_CASE("row_adam: each touched row as Adam alone would have it, the others as they were", "",
                   float_native, float_scalar, double_native) {
    using T = typename TestType::scalar;
    for_each_executor([&](sluice::executor_ref ex, const std::string& name) {
        INFO(name);
        problem<T> p;
        const padded<T> before = p.table;
        for (idx step = 0; step < 6; ++step) {
            p.touch(step);
            sluice::row_adam<typename TestType::arch, T>(p.table.view(), p.gradient, p.state, some, T(0.5),
                                                         ex);
        }
        for (idx row = 0; row < n_rows; ++row) {
            const idx every = row == 3 ? 2 : row == 5 || row == 19 ? 1 : 0;
            CHECK(p.state.steps(0, row) == (every == 0 ? 0 : 6 / every));
            for (idx j = 0; j < width; ++j) {
                auto w = static_cast<double>(before.view()(row, j));
                double m = 0, v = 0;
                for (idx step = 0, t = 1; every > 0 && step < 6; step += every, ++t) {
                    const double g = 0.5 * static_cast<double>(problem<T>::value(step, row, j));
                    m = 0.8 * m + 0.2 * g;
                    v = 0.9 * v + 0.1 * g * g;
                    w -= 0.05 * (m / (1 - std::pow(0.8, static_cast<double>(t)))) /
                         (std::sqrt(v / (1 - std::pow(0.9, static_cast<double>(t)))) + 1e-6);
                }
                if (every == 0)
                    CHECK(p.table(row, j) == before.view()(row, j));
                else
                    CHECK(compare_number(p.table(row, j), w, 64 * unit_roundoff<T>) == "");
            }
        }
        CHECK(p.table.touched() == "");
    });
}

TEST_CASE("row_adam: shapes that do not fit are named, rows outside refused, nothing is allocated") {
    REQUIRE(allocations_are_noticed());
    problem<float> p;
    p.touch(0);
    CHECK(allocations_of([&] {
              sluice::row_adam<sluice::simd::native, float>(p.table.view(), p.gradient, p.state, some);
          }) == 0);
    const padded<float> before = p.table;
    auto step = [&](tensor_view<float> table) {
        sluice::row_adam<sluice::simd::native, float>(table, p.gradient, p.state, some);
    };
    CHECK_THROWS_WITH(step(p.table.view().row_block(0, 19)), "row_adam: mean must be 19 x 7, is 20 x 7");
    CHECK_THROWS_WITH(step(p.table.view().col_block(0, 6)),
                      "row_adam: gradient is of another width than the table");
    sluice::arena memory(1 << 12);
    const auto small = row_adam_state<float>::bind(memory, 19, width);
    CHECK_THROWS_WITH((sluice::row_adam<sluice::simd::native, float>(p.table.view().row_block(0, 19),
                                                                     p.gradient, small, some)),
                      "row_adam: row 19 at 0 is outside the 19");
    CHECK(different_bits(p.table.view(), before.view()) == "");
}
