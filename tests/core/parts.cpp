#include "support/catch.hpp"

#include <sluice/core/parts.hpp>

#include <cstring>
#include <string>
#include <type_traits>

using sluice::get;
using sluice::parts;

namespace {

struct no_default {
    explicit no_default(int v) : value(v) {}
    int value;
};

constexpr int sum() {
    parts<int, int, int> p(1, 2, 3);
    get<1>(p) = 20;
    return get<0>(p) + get<1>(p) + get<2>(p);
}

} // namespace

static_assert(std::is_trivially_copyable_v<parts<>>);
static_assert(std::is_trivially_copyable_v<parts<int, double, float*>>);
static_assert(std::is_trivially_copyable_v<parts<parts<int>, parts<int, int>>>);
static_assert(std::is_trivially_copyable_v<parts<no_default, no_default>>);
static_assert(!std::is_trivially_copyable_v<parts<int, std::string>>);

// default construction where all parts have it
static_assert(std::is_default_constructible_v<parts<>> &&
              std::is_default_constructible_v<parts<int, double>>);
static_assert(!std::is_default_constructible_v<parts<int, no_default>>);
// from one value for each part, and no other number of them
static_assert(std::is_constructible_v<parts<int, no_default>, int, no_default>);
static_assert(!std::is_constructible_v<parts<int, double>, int>);
static_assert(!std::is_constructible_v<parts<int, double>, int, double, int>);
static_assert(!std::is_constructible_v<parts<int>, std::string>);

static_assert(std::is_same_v<decltype(parts(1, 2.5, 'c')), parts<int, double, char>>);
static_assert(std::is_same_v<decltype(get<1>(std::declval<parts<int, double>&>())), double&>);
static_assert(std::is_same_v<decltype(get<1>(std::declval<const parts<int, double>&>())), const double&>);
static_assert(sum() == 24);

TEST_CASE("parts start from zero") {
    const parts<int, double, const char*> p;
    CHECK((get<0>(p) == 0 && get<1>(p) == 0 && get<2>(p) == nullptr));
    const parts<parts<int, int>, int> nested;
    CHECK((get<0>(get<0>(nested)) == 0 && get<1>(get<0>(nested)) == 0));
}

TEST_CASE("parts hold what they were given, each in its place") {
    parts<int, std::string, int> p(1, "two", 3);
    CHECK((get<0>(p) == 1 && get<1>(p) == "two" && get<2>(p) == 3));
    get<2>(p) = 4;
    get<1>(p) += "!";
    CHECK((get<0>(p) == 1 && get<1>(p) == "two!" && get<2>(p) == 4));
    CHECK(&get<0>(p) != &get<2>(p)); // of one type, but two
    const auto copy = p;
    get<0>(p) = 9;
    CHECK((get<0>(copy) == 1 && get<1>(copy) == "two!" && get<2>(copy) == 4));
    const parts<no_default, int> q(no_default(5), 6);
    CHECK((get<0>(q).value == 5 && get<1>(q) == 6));
}

TEST_CASE("parts of parts") {
    const parts<parts<int, char>, parts<int>> p(parts(1, 'a'), parts<int>(2));
    CHECK((get<0>(get<0>(p)) == 1 && get<1>(get<0>(p)) == 'a' && get<0>(get<1>(p)) == 2));
}

TEST_CASE("parts may be copied as bytes") {
    const parts<int, double, char> from(7, 2.5, 'x');
    parts<int, double, char> to;
    std::memcpy(static_cast<void*>(&to), &from, sizeof from);
    CHECK((get<0>(to) == 7 && get<1>(to) == 2.5 && get<2>(to) == 'x'));
}
