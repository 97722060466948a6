#include "support/catch.hpp"
#include "support/check.hpp"

#include <sluice/train/schedule.hpp>

#include <cmath>
#include <numbers>

using sluice::constant_schedule;
using sluice::cosine_schedule;
using sluice::idx;
using sluice::test::compare_number;

static_assert(std::is_trivially_copyable_v<cosine_schedule> &&
              std::is_trivially_copyable_v<constant_schedule>);

TEST_CASE("cosine_schedule: rises in a line, falls along half a cosine") {
    const cosine_schedule rate{.steps = 110, .warm_up = 10, .peak = 2, .last = 0.5};
    for (idx step = 1; step <= 10; ++step)
        CHECK(compare_number(rate(step), 0.2 * static_cast<double>(step), 1e-15) == "");
    CHECK(rate(10) == 2);
    CHECK(compare_number(rate(60), 1.25, 1e-15) == ""); // half way
    CHECK(compare_number(rate(35), 0.5 + 0.75 * (1 + std::sqrt(0.5)), 1e-15) == "");
    CHECK(compare_number(rate(85), 0.5 + 0.75 * (1 - std::sqrt(0.5)), 1e-15) == "");
    CHECK(rate(110) == 0.5);
    for (idx step = 11; step <= 110; ++step) {
        const double angle = std::numbers::pi * static_cast<double>(step - 10) / 100;
        CHECK(compare_number(rate(step), 1.25 + 0.75 * std::cos(angle), 1e-14) == "");
        CHECK(rate(step) < rate(step - 1));
    }
}

TEST_CASE("cosine_schedule: stays at its end, and short runs are runs") {
    const cosine_schedule rate{.steps = 20, .warm_up = 5, .peak = 1, .last = 0.25};
    for (idx step : {21, 100, 1'000'000}) CHECK(rate(step) == 0.25);
    const cosine_schedule no_warm_up{.steps = 4, .peak = 1};
    CHECK(compare_number(no_warm_up(1), 0.5 * (1 + std::sqrt(0.5)), 1e-15) == "");
    CHECK(no_warm_up(4) == 0);
    const cosine_schedule one_step{.steps = 1, .warm_up = 1, .peak = 3};
    CHECK(one_step(1) == 3);
    const cosine_schedule only_warm_up{.steps = 3, .warm_up = 6, .peak = 3};
    CHECK(only_warm_up(3) == 1.5);
    const cosine_schedule none{};
    CHECK(std::isfinite(none(1)));
}

TEST_CASE("cosine_schedule: may rise to its end") {
    const cosine_schedule rate{.steps = 10, .peak = 1, .last = 3};
    CHECK(compare_number(rate(5), 2, 1e-15) == "");
    CHECK(rate(10) == 3);
}

TEST_CASE("constant_schedule: rises in a line and stays") {
    const constant_schedule rate{.warm_up = 4, .peak = 8};
    CHECK((rate(1) == 2 && rate(2) == 4 && rate(3) == 6 && rate(4) == 8 && rate(5) == 8 &&
           rate(1'000'000) == 8));
    const constant_schedule flat{.peak = 0.1};
    CHECK((flat(1) == 0.1 && flat(2) == 0.1));
}

TEST_CASE("routed_layers: every other layer, and not the first") {
    const sluice::routed_layers routed;
    for (idx layer = 0; layer < 9; ++layer) CHECK(routed(layer) == (layer % 2 == 1));
    CHECK((routed.count(9) == 4 && routed.count(8) == 4 && routed.count(1) == 0));
    const sluice::routed_layers third{.every = 3}, all{.every = 1};
    for (idx layer = 0; layer < 9; ++layer) CHECK((third(layer) == (layer % 3 == 2) && all(layer)));
    CHECK((third.count(8) == 2 && all.count(8) == 8));
}

TEST_CASE("capacity_schedule: falls in a line and stays") {
    const sluice::capacity_schedule capacity{.steps = 8, .last = 0.125};
    CHECK(capacity(1) == 1);
    for (idx step = 1; step < 8; ++step)
        CHECK(compare_number(capacity(step), 1.0 - 0.125 * static_cast<double>(step - 1), 1e-15) == "");
    for (idx step : {8, 9, 1000}) CHECK(capacity(step) == 0.125);
    const sluice::capacity_schedule none{};
    CHECK((none(1) == 0.125 && sluice::capacity_schedule{.steps = 1}(1) == 0.125));
}
