#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/random_data.hpp"

#include <sluice/kernels/rotary.hpp>

#include <cmath>
#include <numbers>
#include <vector>

using namespace sluice::test;
using sluice::idx;
using sluice::rotary_pairs;
using sluice::kernels::cos_sin_turns;
using sluice::kernels::rotate_row;

namespace {

constexpr long double full_turn = 2 * std::numbers::pi_v<long double>;

// "" if cosine and sine of `turns` are right to two units of the last place of 1.
template <class T, class Arch>
std::string wrong_turns(page_end<double>& turns, idx n) {
    padded<T> cosine(1, n), sine(1, n);
    cos_sin_turns{}(Arch{}, turns.data(), cosine.data(), sine.data(), n);
    const double allowed = 2 * static_cast<double>(std::numeric_limits<T>::epsilon());
    for (idx j = 0; j < n; ++j) {
        // whole turns leave no error in a long double's fraction
        const long double angle = full_turn * (static_cast<long double>(turns[j]) - std::floor(turns[j]));
        std::string wrong = compare_number(cosine(0, j), static_cast<double>(std::cos(angle)), allowed);
        if (wrong.empty()) wrong = compare_number(sine(0, j), static_cast<double>(std::sin(angle)), allowed);
        if (!wrong.empty()) return "turns " + number_text(turns[j]) + ": " + wrong;
    }
    return cosine.touched() + sine.touched();
}

} // namespace

TEMPLATE_TEST_CASE("cos_sin_turns: right everywhere in a turn, all tails", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    for (idx n = 0; n <= 67; ++n) {
        page_end<double> turns(n);
        fill_uniform(turns.row(), static_cast<std::uint64_t>(n), 0, 1);
        REQUIRE(wrong_turns<T, Arch>(turns, n) == "");
    }
    page_end<double> grid(4097);
    for (idx j = 0; j <= 4096; ++j) grid[j] = static_cast<double>(j) / 4096;
    CHECK(wrong_turns<T, Arch>(grid, 4097) == "");
    page_end<double> wide(2000); // the reduction does not need its argument within one turn
    fill_uniform(wide.row(), 5, -1e6, 1e6);
    CHECK(wrong_turns<T, Arch>(wide, 2000) == "");
}

TEMPLATE_TEST_CASE("cos_sin_turns: quarter turns are exact", "", float_native, float_scalar, double_native,
                   double_scalar) {
    using T = typename TestType::scalar;
    const double turns[] = {0, 0.25, 0.5, 0.75, 1, -0.25, -0.5, 123456789.75};
    const T want_cosine[] = {1, 0, -1, 0, 1, 0, -1, 0}, want_sine[] = {0, 1, 0, -1, 0, -1, 0, -1};
    T cosine[8], sine[8];
    cos_sin_turns{}(typename TestType::arch{}, turns, cosine, sine, 8);
    for (int i = 0; i < 8; ++i) {
        CHECK(cosine[i] == want_cosine[i]);
        CHECK(sine[i] == want_sine[i]);
    }
}

TEMPLATE_TEST_CASE("rotate_row: turns the pairs it names, all head sizes", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    const typename TestType::arch arch;
    constexpr idx heads = 3;
    for (idx half = 1; half <= 35; ++half)
        for (rotary_pairs pairs : {rotary_pairs::half_split, rotary_pairs::interleaved})
            for (bool backwards : {false, true}) {
                const idx d = 2 * half;
                page_end<T> cosine(half), sine(half), x(heads * d);
                padded<T> before(1, heads * d);
                fill_uniform(before.view(), static_cast<std::uint64_t>(half));
                copy(before.view(), x.row());
                for (idx i = 0; i < half; ++i) {
                    cosine[i] = static_cast<T>(std::cos(1 + static_cast<double>(i)));
                    sine[i] = static_cast<T>(std::sin(1 + static_cast<double>(i)));
                }
                rotate_row{}(arch, x.data(), heads, d, cosine.data(), sine.data(), pairs, backwards);
                oracle want(1, heads * d);
                for (idx h = 0; h < heads; ++h)
                    for (idx i = 0; i < half; ++i) {
                        const bool split = pairs == rotary_pairs::half_split;
                        const idx first = h * d + (split ? i : 2 * i), second = first + (split ? half : 1);
                        const double a = static_cast<double>(before(0, first)),
                                     c = static_cast<double>(cosine[i]);
                        const double b = static_cast<double>(before(0, second));
                        const double s = static_cast<double>(sine[i]) * (backwards ? -1 : 1);
                        want(0, first) = {a * c - b * s, std::abs(a * c) + std::abs(b * s)};
                        want(0, second) = {b * c + a * s, std::abs(b * c) + std::abs(a * s)};
                    }
                CAPTURE(half, backwards, pairs == rotary_pairs::half_split);
                REQUIRE(compare(x.row(), want, {.chain = 2}) == "");
                // and back again
                rotate_row{}(arch, x.data(), heads, d, cosine.data(), sine.data(), pairs, !backwards);
                for (idx j = 0; j < heads * d; ++j)
                    REQUIRE(compare_number(x[j], static_cast<double>(before(0, j)), 8 * unit_roundoff<T>) ==
                            "");
            }
}

TEMPLATE_TEST_CASE("rotate_row: writes its heads and nothing else", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    for (idx half : {1, 5, 16, 31})
        for (rotary_pairs pairs : {rotary_pairs::half_split, rotary_pairs::interleaved}) {
            padded<T> x = uniform_matrix<T>(1, 4 * half, 3), cosine = uniform_matrix<T>(1, half, 4),
                      sine = uniform_matrix<T>(1, half, 5);
            rotate_row{}(typename TestType::arch{}, x.data(), 2, 2 * half, cosine.data(), sine.data(), pairs,
                         false);
            CHECK(x.touched() == "");
            for (idx j = 0; j < 4 * half; ++j) CHECK_FALSE(std::isnan(x(0, j)));
        }
}
