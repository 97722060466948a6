#include "support/catch.hpp"

#include <sluice/core/error.hpp>

#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

static_assert(std::is_base_of_v<std::runtime_error, sluice::error>);
static_assert(std::is_base_of_v<sluice::error, sluice::config_error>);
static_assert(std::is_base_of_v<sluice::error, sluice::input_error>);
static_assert(std::is_base_of_v<sluice::error, sluice::capacity_error>);

TEST_CASE("a capacity error names the place and what is needed and there") {
    const sluice::capacity_error e("attention: state", 12, 7, "tokens");
    CHECK(std::string(e.what()) == "attention: state: needs 12 tokens, has 7");
    CHECK(e.needed == 12);
    CHECK(e.have == 7);
}

TEST_CASE("every error is caught as sluice::error with its message") {
    auto message = [](auto&& raise) {
        try {
            raise();
        } catch (const sluice::error& e) {
            return std::string(e.what());
        }
        return std::string("nothing thrown");
    };
    CHECK(message([] { SLUICE_THROW(sluice::error("plain")); }) == "plain");
    CHECK(message([] { SLUICE_THROW(sluice::config_error("config")); }) == "config");
    CHECK(message([] { SLUICE_THROW(sluice::input_error("input")); }) == "input");
    CHECK(message([] { SLUICE_THROW(sluice::capacity_error("x", 2, 1, "bytes")); }) ==
          "x: needs 2 bytes, has 1");
}

TEST_CASE("require throws a config error that names the layer") {
    CHECK_NOTHROW(sluice::require(true, "moe", "never seen"));
    CHECK_THROWS_AS(sluice::require(false, "moe", "top_k exceeds n_experts"), sluice::config_error);
    CHECK_THROWS_WITH(sluice::require(false, "moe", "top_k exceeds n_experts"),
                      "moe: top_k exceeds n_experts");
}

TEST_CASE("require_positive refuses zero and negative values and tells them") {
    CHECK_NOTHROW(sluice::require_positive(1, "norm", "d_model"));
    CHECK_THROWS_AS(sluice::require_positive(0, "norm", "d_model"), sluice::config_error);
    CHECK_THROWS_WITH(sluice::require_positive(0, "norm", "d_model"), "norm: d_model must be positive, is 0");
    CHECK_THROWS_WITH(sluice::require_positive(-4, "norm", "d_model"),
                      "norm: d_model must be positive, is -4");
}

TEST_CASE("the hook for builds without exceptions can be set and starts empty") {
    CHECK(sluice::on_error() == nullptr);
    sluice::on_error() = [](const char*) {};
    CHECK(sluice::on_error() != nullptr);
    // With exceptions it is not called.
    sluice::on_error() = [](const char*) { std::abort(); };
    CHECK_THROWS_AS([] { SLUICE_THROW(sluice::error("thrown")); }(), sluice::error);
    sluice::on_error() = nullptr;
}

#if !defined(NDEBUG) || defined(SLUICE_ENABLE_ASSERTS)
TEST_CASE("an assertion tells its condition") {
    const int value = 3;
    CHECK_NOTHROW([&] { SLUICE_ASSERT(value == 3); }());
    CHECK_THROWS_WITH([&] { SLUICE_ASSERT(value == 4); }(), "assertion failed: value == 4");
}
#else
TEST_CASE("assertions are off and do not evaluate their condition") {
    int calls = 0;
    auto count = [&] { return ++calls, false; };
    (void)count;
    CHECK_NOTHROW([&] { SLUICE_ASSERT(count()); }());
    CHECK(calls == 0);
}
#endif

TEST_CASE("a product of sizes is in range or refused") {
    using sluice::idx;
    using sluice::size_product;
    constexpr idx most = std::numeric_limits<idx>::max();
    CHECK((size_product(3, 5) == 15 && size_product(0, most) == 0 && size_product(most, 0) == 0));
    CHECK((size_product(most, 1) == most && size_product(most / 3, 3) == most / 3 * 3));
    CHECK_THROWS_WITH(size_product(idx{1} << 40, idx{1} << 23), "1099511627776 times 8388608 is no size");
    for (const auto& [a, b] :
         {std::pair<idx, idx>{most, 2}, {2, most}, {-1, 3}, {3, -1}, {most, most}, {most / 3 + 1, 3}})
        CHECK_THROWS_AS(size_product(a, b), sluice::config_error);
}
