#include "support/allocations.hpp"
#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/executors.hpp"
#include "support/random_data.hpp"

#include <sluice/ops/rotary.hpp>

#include <cmath>
#include <limits>
#include <vector>

using namespace sluice::test;
using sluice::arena;
using sluice::batch;
using sluice::executor_ref;
using sluice::fill_rotary_table;
using sluice::idx;
using sluice::rotary_pairs;
using sluice::rotary_table;
using sluice::rotate;
using sluice::tensor_view;

namespace {

constexpr rotary_pairs both[] = {rotary_pairs::half_split, rotary_pairs::interleaved};

template <class T>
struct table_data {
    table_data(idx n, idx half) : cosine(n, half), sine(n, half) {}
    rotary_table<T> table() { return {cosine.view(), sine.view()}; }
    padded<T> cosine, sine;
};

template <class Arch, class T>
table_data<T> table_of(const batch& b, idx head_dim, double base, executor_ref ex = {}) {
    table_data<T> data(b.n_tokens, head_dim / 2);
    arena ws(std::size_t{1} << 14);
    fill_rotary_table<Arch, T>(b, base, data.table(), ws, ex);
    return data;
}

// The angle of pair i at a position, in long double.
long double angle_of(idx position, idx i, idx half, double base) {
    const long double exponent = -static_cast<long double>(i) / static_cast<long double>(half);
    return static_cast<long double>(position) * std::pow(static_cast<long double>(base), exponent);
}

// What double can keep of an angle: it is rounded with the frequency and once more as a product.
template <class T>
double angle_error(long double angle) {
    return 4 * unit_roundoff<T> + 6 * unit_roundoff<double> * static_cast<double>(angle);
}

} // namespace

TEMPLATE_TEST_CASE("rotary: the table is right for positions up to 2^31", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    std::vector<idx> positions;
    for (idx p = 0; p < 40; ++p) positions.push_back(p);
    for (int power = 6; power <= 31; ++power)
        for (idx beside : {-1, 0, 1}) positions.push_back((idx{1} << power) + beside);
    for (double base : {10000.0, 500000.0})
        for (idx head_dim : {2, 6, 64, 128}) {
            const batch b{.n_tokens = static_cast<idx>(positions.size()), .positions = positions};
            auto data = table_of<typename TestType::arch, T>(b, head_dim, base);
            CAPTURE(base, head_dim);
            for (idx i = 0; i < b.n_tokens; ++i)
                for (idx j = 0; j < head_dim / 2; ++j) {
                    const idx position = positions[static_cast<std::size_t>(i)];
                    const long double angle = angle_of(position, j, head_dim / 2, base);
                    const double c = static_cast<double>(std::cos(angle)),
                                 s = static_cast<double>(std::sin(angle));
                    std::string wrong = compare_number(data.cosine(i, j), c, angle_error<T>(angle));
                    if (wrong.empty()) wrong = compare_number(data.sine(i, j), s, angle_error<T>(angle));
                    if (!wrong.empty()) FAIL("position " << position << ", pair " << j << ": " << wrong);
                }
            CHECK(data.cosine.touched() + data.sine.touched() == "");
        }
}

TEMPLATE_TEST_CASE("rotary: positions count from the start of each sequence", "", float_native,
                   double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    const std::vector<idx> offsets{0, 3, 3, 8, 9};
    const batch packed{.n_tokens = 9, .offsets = offsets, .first_position = 5};
    auto data = table_of<Arch, T>(packed, 10, 10000);
    const idx rows_of_sequence[] = {0, 1, 2, 0, 1, 2, 3, 4, 0};
    auto plain = table_of<Arch, T>(batch::one(5, 5), 10, 10000);
    for (idx i = 0; i < 9; ++i) {
        CHECK(different_bits(data.cosine.view().row_block(i, 1),
                             plain.cosine.view().row_block(rows_of_sequence[i], 1)) == "");
        CHECK(different_bits(data.sine.view().row_block(i, 1),
                             plain.sine.view().row_block(rows_of_sequence[i], 1)) == "");
    }
    CHECK(different_bits(plain.cosine.view().row_block(0, 1), plain.cosine.view().row_block(1, 1)) != "");
    // said outright
    const std::vector<idx> positions{7, 5, 9};
    auto said = table_of<Arch, T>(batch{.n_tokens = 3, .positions = positions}, 10, 10000);
    for (idx i = 0; i < 3; ++i)
        CHECK(different_bits(said.sine.view().row_block(i, 1),
                             plain.sine.view().row_block(positions[static_cast<std::size_t>(i)] - 5, 1)) ==
              "");
}

TEMPLATE_TEST_CASE("rotary: turns every head as the formula says", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    for (rotary_pairs pairs : both)
        for (idx head_dim : {2, 14, 64})
            for (idx heads : {1, 3}) {
                constexpr idx n = 7;
                const idx half = head_dim / 2;
                auto data = table_of<Arch, T>(batch::one(n, 11), head_dim, 10000);
                padded<T> x = uniform_matrix<T>(n, heads * head_dim, 1), before = x;
                rotate<Arch>(x.view(), data.table(), pairs, false, {});
                oracle want(n, heads * head_dim);
                for (idx i = 0; i < n; ++i)
                    for (idx h = 0; h < heads; ++h)
                        for (idx j = 0; j < half; ++j) {
                            const auto angle = static_cast<double>(angle_of(11 + i, j, half, 10000));
                            const bool split = pairs == rotary_pairs::half_split;
                            const idx first = h * head_dim + (split ? j : 2 * j),
                                      second = first + (split ? half : 1);
                            const auto a = static_cast<double>(before(i, first));
                            const auto b = static_cast<double>(before(i, second));
                            want(i, first) = {a * std::cos(angle) - b * std::sin(angle),
                                              1 + std::abs(a) + std::abs(b)};
                            want(i, second) = {b * std::cos(angle) + a * std::sin(angle),
                                               1 + std::abs(a) + std::abs(b)};
                        }
                CAPTURE(head_dim, heads, pairs == rotary_pairs::half_split);
                REQUIRE(compare(x.view(), want, {.chain = 2, .nmse = sizeof(T) == 4 ? 1e-12 : 1e-26}) == "");
                // and back again
                rotate<Arch>(x.view(), data.table(), pairs, true, {});
                for (idx i = 0; i < n; ++i)
                    for (idx j = 0; j < heads * head_dim; ++j)
                        REQUIRE(compare_number(x(i, j), static_cast<double>(before(i, j)),
                                               8 * unit_roundoff<T>) == "");
                REQUIRE(x.touched() == "");
            }
}

TEMPLATE_TEST_CASE("rotary: the two ways to pair are one another's permutation", "", float_native,
                   float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    constexpr idx n = 5, heads = 2, head_dim = 38, half = head_dim / 2;
    auto data = table_of<Arch, T>(batch::one(n, 3), head_dim, 10000);
    padded<T> split = uniform_matrix<T>(n, heads * head_dim, 1), beside(n, heads * head_dim);
    auto turn_around = [&](auto&& f) {
        for (idx i = 0; i < n; ++i)
            for (idx h = 0; h < heads; ++h)
                for (idx j = 0; j < half; ++j) {
                    f(split(i, h * head_dim + j), beside(i, h * head_dim + 2 * j));
                    f(split(i, h * head_dim + half + j), beside(i, h * head_dim + 2 * j + 1));
                }
    };
    turn_around([](T& a, T& b) { b = a; });
    rotate<Arch>(split.view(), data.table(), rotary_pairs::half_split, false, {});
    rotate<Arch>(beside.view(), data.table(), rotary_pairs::interleaved, false, {});
    // one of them may round a product and a sum at once, the other not
    turn_around(
        [](T& a, T& b) { CHECK(compare_number(a, static_cast<double>(b), 4 * unit_roundoff<T>) == ""); });
}

TEMPLATE_TEST_CASE("rotary: a product of two turned rows depends on their distance only", "", float_native,
                   double_native) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    constexpr idx head_dim = 16;
    const padded<T> q = uniform_matrix<T>(1, head_dim, 1), k = uniform_matrix<T>(1, head_dim, 2);
    for (rotary_pairs pairs : both) {
        std::vector<double> scores;
        for (idx shift : {0, 1, 1000, 100000}) {
            padded<T> turned_q = q, turned_k = k;
            auto at_q = table_of<Arch, T>(batch::one(1, shift + 9), head_dim, 10000);
            auto at_k = table_of<Arch, T>(batch::one(1, shift + 2), head_dim, 10000);
            rotate<Arch>(turned_q.view(), at_q.table(), pairs, false, {});
            rotate<Arch>(turned_k.view(), at_k.table(), pairs, false, {});
            double score = 0;
            for (idx j = 0; j < head_dim; ++j)
                score += static_cast<double>(turned_q(0, j)) * static_cast<double>(turned_k(0, j));
            scores.push_back(score);
        }
        for (double score : scores) CHECK(std::abs(score - scores[0]) < 100 * unit_roundoff<T> + 1e-10);
    }
}

TEMPLATE_TEST_CASE("rotary: bits depend on neither the executor nor the other rows, NaN stays in its row", "",
                   float_native, float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    constexpr idx n = 23, head_dim = 26, width = 3 * head_dim;
    const std::vector<idx> offsets{0, 4, 23};
    const batch b{.n_tokens = n, .offsets = offsets, .first_position = 100};
    for (rotary_pairs pairs : both) {
        auto first = table_of<Arch, T>(b, head_dim, 10000);
        padded<T> x = uniform_matrix<T>(n, width, 1);
        rotate<Arch>(x.view(), first.table(), pairs, false, {});
        for_each_executor([&](executor_ref ex, const std::string& name) {
            auto data = table_of<Arch, T>(b, head_dim, 10000, ex);
            padded<T> other = uniform_matrix<T>(n, width, 1);
            rotate<Arch>(other.view(), data.table(), pairs, false, ex);
            INFO(name);
            CHECK(different_bits(data.cosine.view(), first.cosine.view()) == "");
            CHECK(different_bits(data.sine.view(), first.sine.view()) == "");
            CHECK(different_bits(other.view(), x.view()) == "");
        });
        for (idx i = 0; i < n; ++i) {
            auto data = table_of<Arch, T>(batch::one(1, 100 + (i < 4 ? i : i - 4)), head_dim, 10000);
            padded<T> all = uniform_matrix<T>(n, width, 1);
            rotate<Arch>(all.view().row_block(i, 1), data.table(), pairs, false, {});
            CHECK(different_bits(all.view().row_block(i, 1), x.view().row_block(i, 1)) == "");
        }
        padded<T> spoilt = uniform_matrix<T>(n, width, 1);
        spoilt(7, 0) = std::numeric_limits<T>::quiet_NaN();
        rotate<Arch>(spoilt.view(), first.table(), pairs, false, {});
        CHECK(std::isnan(spoilt(7, 0)));
        CHECK_FALSE(std::isnan(spoilt(7, head_dim))); // not even the next head
        copy(x.view().row_block(7, 1), spoilt.view().row_block(7, 1));
        CHECK(different_bits(spoilt.view(), x.view()) == "");
    }
}

TEST_CASE("rotary: workers at the same time do not share their memory") {
    using Arch = sluice::simd::native;
    const batch b = batch::one(4000);
    auto alone = table_of<Arch, float>(b, 128, 10000);
    sluice::thread_pool pool(2);
    start_all(pool);
    auto together = table_of<Arch, float>(b, 128, 10000, pool);
    CHECK(different_bits(together.cosine.view(), alone.cosine.view()) == "");
    CHECK(different_bits(together.sine.view(), alone.sine.view()) == "");
}

TEST_CASE("rotary: turning backwards is the gradient") {
    for (rotary_pairs pairs : both) {
        auto data = table_of<sluice::simd::native, double>(batch::one(3, 2), 6, 100);
        padded<double> x = uniform_matrix<double>(3, 12, 1), dy = uniform_matrix<double>(3, 12, 2), dx = dy;
        auto loss = [&] {
            padded<double> y = x;
            rotate(y.view(), data.table(), pairs, false, {});
            double sum = 0;
            for (idx i = 0; i < 3; ++i)
                for (idx j = 0; j < 12; ++j) sum += y(i, j) * dy(i, j);
            return sum;
        };
        rotate(dx.view(), data.table(), pairs, true, {});
        CHECK(wrong_gradient(loss, x.view(), dx.view()) == "");
    }
}

TEST_CASE("rotary: shapes that do not fit are named") {
    table_data<float> data(3, 4), other(3, 5);
    arena ws(std::size_t{1} << 12);
    auto table_for = [&](idx n, const rotary_table<float>& table) {
        fill_rotary_table(batch::one(n), 10000, table, ws, {});
    };
    CHECK_THROWS_WITH(table_for(2, data.table()), "rotary: cosine must be 2 x 4, is 3 x 4");
    CHECK_THROWS_WITH(table_for(3, {data.cosine.view(), other.sine.view()}),
                      "rotary: sine must be 3 x 4, is 3 x 5");
    CHECK_THROWS_AS(table_for(2, data.table()), sluice::config_error);
    padded<float> two(2, 16), twelve(3, 12);
    auto turn = [&](const tensor_view<float>& x, const rotary_table<float>& table) {
        rotate(x, table, rotary_pairs::half_split, false, {});
    };
    CHECK_THROWS_WITH(turn(two.view(), data.table()), "rotary: x must be 3 x 16, is 2 x 16");
    CHECK_THROWS_WITH(turn(twelve.view(), data.table()), "rotary: x must hold whole heads");
    CHECK_THROWS_WITH(turn(twelve.view(), {tensor_view<float>(nullptr, 3, 0), {}}),
                      "rotary: x must hold whole heads");
    CHECK_THROWS_WITH(turn(padded<float>(3, 8).view(), {data.cosine.view(), other.sine.view()}),
                      "rotary: sine must be 3 x 4, is 3 x 5");
    for (const auto pairs : {rotary_pairs::none, static_cast<rotary_pairs>(7)}) {
        padded<float> x(3, 8);
        fill(x.view(), 5.0F);
        CHECK_THROWS_WITH(rotate(x.view(), data.table(), pairs, false, {}),
                          "rotary: pairs must be half_split or interleaved");
        CHECK(x(0, 0) == 5);
    }
    CHECK(ws.used() == 0);
}

TEST_CASE("rotary: no tokens, dry runs and workspace") {
    using table_type = rotary_table<float>;
    table_data<float> none(0, 4);
    arena ws(std::size_t{1} << 12);
    fill_rotary_table(batch::one(0), 10000, none.table(), ws, {});
    padded<float> no_rows(0, 16);
    rotate(no_rows.view(), none.table(), rotary_pairs::interleaved, false, {});
    CHECK(no_rows.touched() + none.cosine.touched() == "");

    for (idx workers = 1; workers <= 3; ++workers) {
        auto use = [&](arena& a, executor_ref ex) {
            const arena::scope scope(a);
            const table_type table = table_type::bind(a, 5, 38);
            fill_rotary_table(batch::one(5), 10000, table, a, ex);
            rotate(a.take<float>(5, 76), table, rotary_pairs::half_split, false, ex);
        };
        arena dry;
        sluice::dry_run nothing{workers};
        use(dry, nothing);
        reverse_in_parts parts{workers};
        arena real(dry.bytes());
        use(real, parts);
        CHECK(real.bytes() == dry.bytes());
        arena small(dry.bytes() - 1);
        CHECK_THROWS_AS(use(small, parts), sluice::capacity_error);
    }
}

TEST_CASE("rotary: allocates nothing") {
    REQUIRE(allocations_are_noticed());
    table_data<float> data(20, 16);
    padded<float> x(20, 64);
    arena ws(std::size_t{1} << 12);
    sluice::thread_pool pool(2);
    start_all(pool);
    for (executor_ref ex : {executor_ref(), executor_ref(pool)})
        CHECK(allocations_of([&] {
                  fill_rotary_table(batch::one(20), 10000, data.table(), ws, ex);
                  rotate(x.view(), data.table(), rotary_pairs::half_split, false, ex);
              }) == 0);
}
