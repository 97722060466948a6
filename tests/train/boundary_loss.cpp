#include "support/catch.hpp"

#include <sluice/core/random.hpp>
#include <sluice/train/boundary_loss.hpp>

#include <cmath>
#include <string>

using sluice::boundary_counts;
using sluice::boundary_loss;
using sluice::config_error;
using sluice::idx;

namespace {

boundary_counts counts(idx tokens, idx boundaries, double mean) {
    return {tokens, boundaries, mean * static_cast<double>(tokens)};
}

} // namespace

TEST_CASE("the sum is the product") {
    const sluice::random_source numbers(3);
    for (idx i = 0; i < 1000; ++i) {
        const double ratio = 1.01 + 15 * numbers.uniform(3 * i);
        const auto boundaries = static_cast<idx>(1000 * numbers.uniform(3 * i + 1));
        const auto c = counts(1000, boundaries, numbers.uniform(3 * i + 2));
        CHECK(std::abs(boundary_loss(c, ratio) - sluice::boundary_loss_as_product(c, ratio)) < 1e-10);
    }
}

TEST_CASE("zero at the ratio, and a saddle") {
    CHECK(std::abs(boundary_loss(counts(8, 2, 0.9), 4)) < 1e-15); // F = 1 / R
    CHECK(std::abs(boundary_loss(counts(8, 7, 0.25), 4)) < 1e-15);
    CHECK(std::abs(boundary_loss(counts(8, 8, 1), 4) - 3) < 1e-15);
    CHECK(std::abs(boundary_loss(counts(8, 0, 0), 4) - 1.0 / 3) < 1e-15);
    CHECK(boundary_loss(counts(8, 1, 0.5), 4) < 0);
    CHECK(boundary_loss({}, 4) == 0);
    // of the golden values in tests/layers/dlcm.cpp
    CHECK(std::abs(boundary_loss(counts(10, 6, 0.590496942018), 4) - 0.635594291766) < 1e-11);
    CHECK(std::abs(boundary_loss(counts(10, 6, 0.590496942018), 2) - 0.036198776807) < 1e-11);
}

TEST_CASE("its slope by one p") {
    for (const double ratio : {2.0, 4.0, 8.5}) {
        const auto c = counts(10, 6, 0.4);
        auto moved = c;
        moved.probability += 0.01;
        const double slope = (boundary_loss(moved, ratio) - boundary_loss(c, ratio)) / 0.01;
        CHECK(std::abs(c.loss_slope(ratio) - slope) < 1e-12);
    }
    CHECK(counts(10, 6, 0.4).loss_slope(4) > 0); // too many boundaries: p has to fall
    CHECK(counts(10, 1, 0.4).loss_slope(4) < 0);
}

TEST_CASE("parts of a batch count together") {
    const auto all = counts(10, 6, 0.5);
    auto first = counts(4, 4, 0.8), second = counts(6, 2, 0.3);
    const double mean_of_parts = (boundary_loss(first, 4) + boundary_loss(second, 4)) / 2;
    first += second;
    CHECK(std::abs(boundary_loss(first, 4) - boundary_loss(all, 4)) < 1e-15);
    CHECK(std::abs(mean_of_parts - boundary_loss(all, 4)) > 0.1);
}

TEST_CASE("a ratio of one is no ratio") {
    for (const double bad : {1.0, 0.0, -4.0, std::nan("")}) {
        CHECK_THROWS_AS(boundary_loss(counts(8, 2, 0.5), bad), config_error);
        CHECK_THROWS_AS(sluice::boundary_loss_as_product(counts(8, 2, 0.5), bad), config_error);
    }
}
