// Checks the noise of seeds against values worked out by hand and against tables.
#include "../../examples/support/seed_noise.hpp"

#include "support/catch.hpp"

#include <utility>

using Catch::Matchers::WithinAbs;
using sluice::examples::noise_of;
using sluice::examples::seed_noise;
using sluice::examples::seeded_result;

namespace {

constexpr double usual = 0.03;

} // namespace

TEST_CASE("without a second seed the usual noise is all that is known") {
    const seed_noise noise = noise_of({{"a", 1, 2.0}, {"b", 1, 3.0}}, usual);
    CHECK(noise.deviation == usual);
    CHECK_THAT(noise.least_difference(1, 1), WithinAbs(1.96 * usual * std::sqrt(2.0), 1e-12));
    CHECK(noise_of({}, usual).deviation == usual);
}

TEST_CASE("one model: its spread") {
    const seed_noise noise = noise_of({{"a", 1, 1.0}, {"a", 2, 2.0}, {"a", 3, 6.0}}, usual);
    CHECK_THAT(noise.deviation, WithinAbs(std::sqrt(7.0), 1e-12)); // (4 + 1 + 9) / 2
    CHECK(noise.degrees == 2);
}

TEST_CASE("two models of the same seeds: Student's t of the pairs") {
    // Differences 1, 0, 1: mean 2/3, variance 1/3, so t(2) * sqrt(1/9).
    const seed_noise noise =
        noise_of({{"a", 1, 1}, {"b", 2, 2}, {"a", 2, 2}, {"b", 1, 2}, {"a", 3, 4}, {"b", 3, 5}}, usual);
    CHECK(noise.degrees == 2);
    CHECK_THAT(noise.least_difference(3, 3), WithinAbs(4.303 / 3, 1e-12));
}

TEST_CASE("what a seed does to all models alike is no noise") {
    std::vector<seeded_result> results;
    const double luck[] = {0.5, -0.25, 0.125, 0};
    for (std::uint64_t seed = 0; seed < 4; ++seed)
        for (const auto& [model, mean] : {std::pair("a", 1.0), std::pair("b", 4.0), std::pair("c", 2.0)})
            results.push_back({model, seed, mean + luck[seed]});
    CHECK(noise_of(results, usual).deviation == 0);
    CHECK(noise_of(results, usual).degrees == 6);
    results.back().value += 0.3; // (1 - 1/3) (1 - 1/4) of its square is not explained
    CHECK_THAT(noise_of(results, usual).deviation, WithinAbs(0.3 * std::sqrt(0.5 / 6), 1e-12));
}

TEST_CASE("models of different seeds: each one's own spread") {
    const seed_noise noise =
        noise_of({{"a", 1, 1}, {"a", 2, 2}, {"a", 3, 4}, {"b", 1, 2}, {"b", 2, 2}}, usual);
    CHECK(noise.degrees == 3);
    CHECK_THAT(noise.deviation, WithinAbs(std::sqrt(42.0 / 9 / 3), 1e-12));
    // As many seeds, but others.
    CHECK(noise_of({{"a", 1, 1}, {"a", 2, 2}, {"b", 1, 2}, {"b", 3, 2}}, usual).degrees == 2);
}

TEST_CASE("Student's t where degrees are many") {
    // Quantiles of 0.975 from tables.
    for (const auto& [degrees, t] : {std::pair(1, 12.706), std::pair(10, 2.228), std::pair(11, 2.201),
                                     std::pair(15, 2.131), std::pair(40, 2.021), std::pair(120, 1.980)}) {
        CAPTURE(degrees);
        CHECK_THAT((seed_noise{1, static_cast<double>(degrees)}.least_difference(2, 2)), WithinAbs(t, 0.003));
    }
}
