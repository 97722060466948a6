#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/executors.hpp"
#include "support/message_of.hpp"
#include "support/random_data.hpp"

#include <sluice/core/random.hpp>
#include <sluice/infer/sampling.hpp>

#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

using sluice::arena;
using sluice::config_error;
using sluice::executor_ref;
using sluice::idx;
using sluice::input_error;
using sluice::sample_tokens;
using sluice::sampling_config;
using sluice::tensor_view;
using sluice::token_id;
using sluice::test::approx;
using sluice::test::complaint;
using sluice::test::message_of;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();
constexpr double smallest = std::numeric_limits<double>::denorm_min();
constexpr double below_one = 1 - 0x1p-53;

using row = std::vector<float>;

token_id one(const row& logits, const sampling_config& c, double draw) {
    arena workspace(std::size_t{1} << 14);
    token_id id = -7;
    sample_tokens(tensor_view<const float>(logits.data(), 1, static_cast<idx>(logits.size())), c,
                  std::span<const double>(&draw, 1), std::span(&id, 1), workspace);
    REQUIRE(workspace.used() == 0);
    return id;
}

// How often each token falls on evenly spread draws.
constexpr int n_draws = 2000;
std::vector<double> shares(const row& logits, const sampling_config& c) {
    std::vector<double> count(logits.size(), 0);
    for (int i = 0; i < n_draws; ++i) {
        const token_id id = one(logits, c, (i + 0.5) / n_draws);
        REQUIRE((id >= 0 && id < static_cast<token_id>(logits.size())));
        count[static_cast<std::size_t>(id)] += 1.0 / n_draws;
    }
    return count;
}

// The same by the definition: sorted, cut, renormalised.
std::vector<double> defined(const row& logits, const sampling_config& c) {
    std::vector<std::size_t> order(logits.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return logits[a] > logits[b]; });
    if (c.top_k > 0) order.resize(std::min(order.size(), static_cast<std::size_t>(c.top_k)));
    std::vector<double> p(logits.size(), 0);
    double total = 0, sum = 0;
    for (auto i : order)
        total += p[i] = std::exp(static_cast<double>(logits[i] - logits[order[0]]) / c.temperature);
    std::size_t kept = 0;
    while (kept < order.size() && sum < c.top_p * total) sum += p[order[kept++]];
    for (std::size_t i = kept; i < order.size(); ++i) p[order[i]] = 0;
    for (auto& v : p) v /= sum;
    return p;
}

void check_shares(const row& logits, const sampling_config& c) {
    CAPTURE(c.temperature, c.top_k, c.top_p);
    const auto got = shares(logits, c), want = defined(logits, c);
    for (std::size_t i = 0; i < logits.size(); ++i) {
        CAPTURE(i);
        CHECK(std::abs(got[i] - want[i]) <= 1.001 / n_draws);
        CHECK((want[i] > 0 || got[i] == 0));
    }
}

const row logits{1.5F, -2, 0.25F, 3, 3, -0.5F, 2.75F};

} // namespace

TEST_CASE("shares of evenly spread draws are the probabilities") {
    for (const double temperature : {0.5, 1.0, 2.0, 100.0})
        check_shares(logits, {.temperature = temperature});
}

TEST_CASE("counts of random draws are the probabilities") {
    const sluice::random_source numbers(11);
    const auto want = defined(logits, {});
    constexpr int n = 20'000;
    std::array<int, 7> count{};
    for (int i = 0; i < n; ++i) ++count[static_cast<std::size_t>(one(logits, {}, numbers.uniform(i)))];
    for (std::size_t i = 0; i < 7; ++i) // five standard deviations
        CHECK(std::abs(count[i] - n * want[i]) <= 5 * std::sqrt(n * want[i] * (1 - want[i])));
}

TEST_CASE("top_k keeps the likeliest, of equal ones the lower") {
    for (const idx k : {1, 2, 3, 5, 6, 7, 8, 1000}) check_shares(logits, {.top_k = k});
    CHECK(shares(logits, {.top_k = 1})[3] == approx(1));
    const auto three = shares(row(9, 2.0F), {.top_k = 3});
    for (std::size_t i = 0; i < 9; ++i) CHECK(three[i] == approx(i < 3 ? 1.0 / 3 : 0).margin(0.001));
}

TEST_CASE("top_p keeps the likeliest that reach it, at least one") {
    for (const double p : {1e-9, 0.3, 0.37, 0.5, 0.7, 0.9, 0.999, 1.0}) check_shares(logits, {.top_p = p});
    CHECK(shares(logits, {.top_p = smallest})[3] == approx(1));
    auto kept = [&](double p) { // of four that have a quarter each
        const auto s = shares(row(4, -1.0F), {.top_p = p});
        const auto n = std::count_if(s.begin(), s.end(), [](double v) { return v > 0; });
        CHECK((s[0] > 0 && (n == 4) == (s[3] > 0))); // the lower of equal ones
        return n;
    };
    CHECK(kept(0.25) == 1);
    CHECK(kept(0.26) == 2);
    CHECK(kept(0.5) == 2);
    CHECK(kept(0.75) == 3);
    CHECK(kept(0.76) == 4);
    CHECK(kept(1) == 4);
}

TEST_CASE("top_p counts within what top_k left, and both follow the temperature") {
    check_shares(logits, {.temperature = 0.7, .top_k = 4, .top_p = 0.6});
    check_shares(logits, {.temperature = 3, .top_k = 3, .top_p = 0.9});
    check_shares(logits, {.temperature = 3, .top_k = 3, .top_p = 0.5}); // of all that would be three
    check_shares(logits, {.temperature = 3, .top_k = 6, .top_p = 0.99});
}

TEST_CASE("temperature zero is the likeliest token, of equal ones the lower") {
    for (const double draw : {0.0, 0.5, below_one}) {
        CHECK(one(logits, {.temperature = 0}, draw) == 3);
        CHECK(one(logits, {.temperature = 0, .top_k = 2, .top_p = 0.1}, draw) == 3);
        CHECK(one({1, 5, 5}, {.temperature = 0}, draw) == 1);
        CHECK(one({-inf, -3, -inf}, {.temperature = 0}, draw) == 1);
    }
}

TEST_CASE("tiny and huge temperatures are no special case") {
    for (const double draw : {0.0, 0.5, below_one}) {
        CHECK(one({1, 5, 4}, {.temperature = 1e-300}, draw) == 1);
        CHECK(one({1, 5, 4}, {.temperature = smallest}, draw) == 1);
        CHECK(one({1, 5, 5}, {.temperature = smallest}, draw) ==
              (draw > 0.5 ? 2 : 1) + (draw == 0.5 ? 1 : 0));
        CHECK(one({-3e38F, 3e38F}, {.temperature = 0.01}, draw) == 1);
    }
    for (const double s : shares({1, 5, -300}, {.temperature = 1e300}))
        CHECK(s == approx(1.0 / 3).margin(0.001));
}

TEST_CASE("the ends of the draws fall on possible tokens") {
    const row masked{-inf, 0, -inf, 0, -inf};
    for (const sampling_config& c :
         {sampling_config{}, sampling_config{.top_k = 4}, sampling_config{.top_p = 0.9},
          sampling_config{.top_k = 5, .top_p = 0.99}}) {
        CHECK(one(masked, c, 0) == 1);
        CHECK(one(masked, c, below_one) == 3);
        CHECK(one({-1e30F, 0, -1e30F}, c, below_one) == 1); // exp of the others is zero
    }
    CHECK(one({7}, {}, below_one) == 0);
}

TEST_CASE("what rounding leaves over falls on a possible token") {
    const sluice::random_source numbers(4);
    arena workspace(std::size_t{1} << 14);
    for (idx i = 0; i < 2000; ++i) { // sums of doubles are rounded, those of few floats would be exact
        std::vector<double> x;
        for (idx j = 0; j < 30; ++j) x.push_back(numbers.normal(30 * i + j));
        x.push_back(-std::numeric_limits<double>::infinity());
        token_id id = 0;
        sample_tokens(tensor_view<const double>(x.data(), 1, 31), {}, std::span<const double>(&below_one, 1),
                      std::span(&id, 1), workspace);
        REQUIRE(id < 30);
    }
}

TEST_CASE("infinite logits share all probability") {
    const auto s = shares({0, inf, 3, inf}, {.temperature = 0.5});
    CHECK(s == std::vector<double>{0, s[1], 0, s[3]});
    CHECK(s[1] == approx(0.5));
    CHECK(one({0, inf}, {.temperature = 0}, 0.5) == 1);
    CHECK(one({0, inf, inf}, {.top_k = 1}, below_one) == 1);
}

TEST_CASE("logits without a meaning are refused and nothing is written") {
    auto said = [](const row& second, double draw) {
        row both{0, 1, 2};
        both.insert(both.end(), second.begin(), second.end());
        const std::array<double, 2> draws{0.5, draw};
        std::array<token_id, 2> ids{-7, -7};
        arena workspace(4096);
        const std::string what = complaint(
            [&] { sample_tokens(tensor_view<const float>(both.data(), 2, 3), {}, draws, ids, workspace); });
        CHECK((ids == std::array<token_id, 2>{-7, -7}) == !what.empty());
        CHECK(workspace.used() == 0);
        return what;
    };
    CHECK(said({0, 0, 0}, 0.5).empty());
    CHECK(said({0, 0, not_a_number}, 0.5) == "sample_tokens: row 1 of the logits is NaN at token 2");
    CHECK(said({not_a_number, inf, 0}, 0.5) == "sample_tokens: row 1 of the logits is NaN at token 0");
    CHECK(said({-inf, -inf, -inf}, 0.5) == "sample_tokens: row 1 of the logits is -inf for every token");
    CHECK(said({0, 0, 0}, 1) == "sample_tokens: a draw must be in [0, 1), is 1.000000");
    CHECK(said({0, 0, 0}, -0x1p-60) != "");
    CHECK(said({0, 0, 0}, static_cast<double>(not_a_number)) != "");
    CHECK_THROWS_AS(one({not_a_number, 1}, {.temperature = 0}, 0.5), input_error);
}

TEST_CASE("settings out of range are refused by name") {
    auto said = [](const sampling_config& c) {
        return message_of<config_error>([&] { one(logits, c, 0.5); });
    };
    const double infinite = std::numeric_limits<double>::infinity();
    CHECK(said({.temperature = -0.5}) == "sample_tokens: temperature must not be negative, is -0.500000");
    CHECK(said({.temperature = infinite}).starts_with("sample_tokens: "));
    CHECK(said({.temperature = static_cast<double>(not_a_number)}).starts_with("sample_tokens: "));
    CHECK(said({.top_k = -1}) == "sample_tokens: top_k must not be negative, is -1");
    CHECK(said({.top_p = 0}) == "sample_tokens: top_p must be above 0 and at most 1, is 0.000000");
    CHECK(said({.top_p = 1.5}).starts_with("sample_tokens: "));
    CHECK(said({.top_p = static_cast<double>(not_a_number)}).starts_with("sample_tokens: "));
    CHECK(said({.temperature = -0.0}) == "no error");
    arena workspace(4096);
    const double draw = 0;
    token_id id = 0;
    CHECK_THROWS_WITH(sample_tokens(tensor_view<const float>(nullptr, 1, 0), {},
                                    std::span<const double>(&draw, 1), std::span(&id, 1), workspace),
                      "sample_tokens: the vocabulary must hold 1 to 2^31 - 1 tokens");
    CHECK_THROWS_WITH(
        sample_tokens(tensor_view<const float>(logits.data(), 1, 7), {}, {}, std::span(&id, 1), workspace),
        "sample_tokens: 0 draws and 1 ids for 1 rows");
    CHECK_NOTHROW(sample_tokens(tensor_view<const float>(nullptr, 0, 7), {}, {}, {}, workspace));
}

TEST_CASE("rows are drawn alone, by any executor, without allocation, in the memory that is counted") {
    REQUIRE(sluice::test::allocations_are_noticed());
    constexpr idx m = 13, n = 301;
    auto data = sluice::test::uniform_matrix<float>(m, n, 5);
    for (idx i = 0; i < m; ++i)
        for (idx j = 0; j < n; ++j) data(i, j) *= 8;
    const sluice::random_source numbers(3);
    std::vector<double> draws;
    for (idx i = 0; i < m; ++i) draws.push_back(numbers.uniform(i));
    const sampling_config config{.temperature = 0.9, .top_k = 40, .top_p = 0.95};
    std::vector<token_id> alone;
    for (idx i = 0; i < m; ++i)
        alone.push_back(
            one(row(data.view().row(i), data.view().row(i) + n), config, draws[static_cast<std::size_t>(i)]));
    sluice::test::for_each_executor([&](executor_ref ex, const std::string& name) {
        INFO(name);
        arena counted;
        sluice::dry_run counting{ex.concurrency()};
        sample_tokens(tensor_view<const float>(nullptr, m, n), config, {}, {}, counted, counting);
        arena workspace(counted.bytes());
        std::vector<token_id> ids(m, -1);
        const idx allocated = sluice::test::allocations_of(
            [&] { sample_tokens(data.view(), config, draws, ids, workspace, ex); });
        if (ex.concurrency() == 1) CHECK(allocated == 0); // a pool's threads may still be starting
        CHECK(ids == alone);
        CHECK(workspace.bytes() == counted.bytes());
    });
}

TEST_CASE("a seed and a position repeat a text, in double as well") {
    const std::vector<double> wide{0.5, 1, -1, 0.25};
    auto text = [&](std::uint64_t seed) {
        std::vector<token_id> ids;
        arena workspace(4096);
        for (idx position = 0; position < 50; ++position) {
            const double draw = sluice::random_source(seed).uniform(position);
            token_id id = 0;
            sample_tokens(tensor_view<const double>(wide.data(), 1, 4), {}, std::span(&draw, 1),
                          std::span(&id, 1), workspace);
            ids.push_back(id);
        }
        return ids;
    };
    CHECK(text(1) == text(1));
    CHECK(text(1) != text(2));
}
