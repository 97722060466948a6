#include "support/allocations.hpp"
#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/executors.hpp"
#include "support/random_data.hpp"

#include <sluice/core/tensor.hpp>
#include <sluice/ops/routing_plan.hpp>

#include <limits>
#include <numeric>
#include <string>
#include <vector>

using namespace sluice::test;
using namespace sluice;

namespace {

using native = simd::native;

// Distinct experts in a row, drawn; every fifth slot dropped.
sluice::tensor<std::int32_t> drawn_indices(idx n, idx k, idx n_experts, std::uint64_t key, bool drop = true) {
    sluice::tensor<std::int32_t> indices(n, k);
    const random_source numbers(key);
    for (idx t = 0; t < n; ++t) {
        const auto first = static_cast<idx>(numbers.bits(3 * t) % static_cast<std::uint32_t>(n_experts));
        for (idx j = 0; j < k; ++j) {
            const auto e =
                static_cast<std::int32_t>((first + j * (j + 1) / 2) % n_experts); // distinct for k <= 3
            indices(t, j) = drop && numbers.bits(3 * t + j) % 5 == 0 ? ~e : e;
        }
    }
    return indices;
}

template <class T>
struct planned {
    planned(idx n_, idx k_, idx n_experts, idx n_identity = 0, bool drop = true)
        : n(n_),
          k(k_),
          indices(drawn_indices(n_, k_, n_experts + n_identity, 5, drop)),
          memory(std::size_t{1} << 20),
          plan(plan_slots(indices.view(), {.n_experts = n_experts, .n_identity = n_identity}, memory, {})),
          weights(uniform_matrix<T>(n_, k_, 7)) {}
    idx n, k;
    sluice::tensor<std::int32_t> indices;
    arena memory;
    routing_plan plan;
    padded<T> weights;
};

std::vector<std::int32_t> list(const std::int32_t* first, idx n) { return {first, first + n}; }

} // namespace

TEST_CASE("routing_plan: the slots of the golden values") {
    const std::int32_t indices[] = {0, 2, 0, 2, 2, 5, 2, 5, 2, 5, 7, 4};
    arena memory(std::size_t{1} << 12);
    const auto p = plan_slots({indices, 6, 2}, {.n_experts = 8}, memory, {});
    CHECK(p.n_rows() == 12);
    CHECK(list(p.offsets, 9) == std::vector<std::int32_t>{0, 2, 2, 7, 7, 8, 11, 11, 12});
    CHECK(list(p.slots, 12) == std::vector<std::int32_t>{0, 2, 1, 3, 4, 6, 8, 11, 5, 7, 9, 10});
    CHECK(list(p.rows, 12) == std::vector<std::int32_t>{0, 2, 1, 3, 4, 8, 5, 9, 6, 10, 11, 7});
    CHECK(list(p.tokens, 12) == std::vector<std::int32_t>{0, 1, 0, 1, 2, 3, 4, 5, 2, 3, 4, 5});
    CHECK((p.count(2) == 5 && p.begin(2) == 2 && p.count(3) == 0 && p.count(7) == 1));
    CHECK(p.token_of_rows().size() == 12);
}

TEST_CASE("routing_plan: rows are sorted by expert and slot, each kept slot has one, and back") {
    for (idx n : {0, 1, 2, 7, 100})
        for (idx n_experts : {3, 8, 60, 257})
            for (idx n_identity : {0, 2}) {
                planned<float> c(n, 3, n_experts, n_identity);
                const auto& p = c.plan;
                CAPTURE(n, n_experts, n_identity);
                idx kept = 0;
                for (idx s = 0; s < n * 3; ++s) {
                    const std::int32_t e = c.indices.data()[s], row = p.rows[s];
                    if (e < 0) {
                        CHECK(row == routing_plan::dropped);
                    } else if (e >= n_experts) {
                        CHECK(row == routing_plan::identity);
                    } else {
                        ++kept;
                        REQUIRE((row >= p.begin(e) && row < p.begin(e) + p.count(e)));
                        CHECK((p.slots[row] == s && p.tokens[row] == s / 3));
                        if (row > p.begin(e)) CHECK(p.slots[row - 1] < s);
                    }
                }
                CHECK(p.n_rows() == kept);
                CHECK((p.begin(0) == 0 && p.offsets[n_experts] == kept));
            }
}

TEMPLATE_TEST_CASE("routing_plan: gathered and combined rows", "", float_native, float_scalar, double_native,
                   double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    for (idx d : {1, 7, 16, 33, 130, 300})
        for (idx n : {1, 23}) {
            planned<T> c(n, 3, 5, 1);
            const auto& p = c.plan;
            const idx m = p.n_rows();
            padded<T> x = uniform_matrix<T>(n, d, 1), out = uniform_matrix<T>(m, d, 2), rows(m, d),
                      weighted(m, d), y(n, d), sums(n, d), products(n, 3), dy = uniform_matrix<T>(n, d, 3);
            gather_slots<Arch, T>(p, x, {}, rows.view(), {});
            gather_slots<Arch, T>(p, x, c.weights, weighted.view(), {});
            combine_slots<Arch, T>(p, out, c.weights, y.view(), {});
            combine_slots<Arch, T>(p, out, {}, sums.view(), {});
            slot_products<Arch, T>(p, dy, out, x, products.view(), {});
            oracle want_y(n, d), want_sums(n, d), want_products(n, 3);
            for (idx r = 0; r < m; ++r)
                for (idx j = 0; j < d; ++j) {
                    const idx t = p.tokens[r];
                    CHECK(rows(r, j) == x(t, j));
                    CHECK(weighted(r, j) == x(t, j) * c.weights(t, p.slots[r] % 3));
                }
            for (idx t = 0; t < n; ++t)
                for (idx j = 0; j < 3; ++j) {
                    const std::int32_t row = p.rows[3 * t + j];
                    if (row == routing_plan::dropped) {
                        CHECK(products(t, j) == 0);
                        continue;
                    }
                    for (idx i = 0; i < d; ++i) {
                        const double other = static_cast<double>(row < 0 ? x(t, i) : out(row, i));
                        const double term = static_cast<double>(dy(t, i)) * other;
                        want_products(t, j).value += term;
                        want_products(t, j).size += std::abs(term);
                        if (row < 0) continue;
                        const double w = static_cast<double>(c.weights(t, j));
                        want_y(t, i).value += w * other;
                        want_y(t, i).size += std::abs(w * other);
                        want_sums(t, i).value += other;
                        want_sums(t, i).size += std::abs(other);
                    }
                }
            CAPTURE(d, n);
            CHECK(compare(y.view(), want_y, {.chain = 3, .may_be_dull = n == 1}) == "");
            CHECK(compare(sums.view(), want_sums, {.chain = 3, .may_be_dull = n == 1}) == "");
            CHECK(compare(products.view(), want_products, {.chain = d, .may_be_dull = n == 1}) == "");
            CHECK(rows.touched() + weighted.touched() + y.touched() + sums.touched() + products.touched() ==
                  "");
        }
}

TEST_CASE("routing_plan: gathering and combining are each other's backward") {
    planned<double> c(9, 3, 5, 2);
    const auto& p = c.plan;
    const idx m = p.n_rows(), d = 6;
    padded<double> x = uniform_matrix<double>(9, d, 1), out = uniform_matrix<double>(m, d, 2),
                   dy = uniform_matrix<double>(9, d, 3), drows = uniform_matrix<double>(m, d, 4), y(9, d),
                   rows(m, d), dx(9, d), dout(m, d), dweights(9, 3);
    auto inner = [](padded<double>& a, padded<double>& b) {
        double sum = 0;
        for (idx i = 0; i < a.view().rows(); ++i)
            for (idx j = 0; j < a.view().cols(); ++j) sum += a(i, j) * b(i, j);
        return sum;
    };
    SECTION("combine, with identity experts") {
        auto loss = [&] {
            combine_slots<native, double>(p, out, c.weights, y.view(), {});
            add_identity<native, double>(p, x, c.weights, y.view(), {});
            return inner(y, dy);
        };
        gather_slots<native, double>(p, dy, c.weights, dout.view(), {});
        slot_products<native, double>(p, dy, out, x, dweights.view(), {});
        add_identity<native, double>(p, dy, c.weights, dx.view(), {});
        CHECK(wrong_gradient(loss, out.view(), dout.view()) == "");
        CHECK(wrong_gradient(loss, c.weights.view(), dweights.view()) == "");
        CHECK(wrong_gradient(loss, x.view(), dx.view()) == "");
    }
    SECTION("gather, with weights on the inputs and without") {
        for (bool weighted : {true, false}) {
            const in<double> w = weighted ? in<double>(c.weights.view()) : in<double>();
            auto loss = [&] {
                gather_slots<native, double>(p, x, w, rows.view(), {});
                return inner(rows, drows);
            };
            combine_slots<native, double>(p, drows, w, dx.view(), {});
            CHECK(wrong_gradient(loss, x.view(), dx.view()) == "");
            if (!weighted) continue;
            slot_products<native, double>(p, x, drows, {}, dweights.view(), {});
            CHECK(wrong_gradient(loss, c.weights.view(), dweights.view()) == "");
        }
    }
}

TEMPLATE_TEST_CASE("routing_plan: the same bits for every executor", "", float_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    planned<T> c(41, 3, 7, 1);
    const auto& p = c.plan;
    const idx m = p.n_rows(), d = 77;
    padded<T> x = uniform_matrix<T>(41, d, 1), out = uniform_matrix<T>(m, d, 2);
    struct results {
        padded<T> rows, y, products;
    };
    auto run = [&](executor_ref ex) {
        results r{padded<T>(m, d), padded<T>(41, d), padded<T>(41, 3)};
        gather_slots<Arch, T>(p, x, c.weights, r.rows.view(), ex);
        combine_slots<Arch, T>(p, out, c.weights, r.y.view(), ex);
        add_identity<Arch, T>(p, x, c.weights, r.y.view(), ex);
        slot_products<Arch, T>(p, x, out, x, r.products.view(), ex);
        return r;
    };
    results first = run({});
    for_each_executor([&](executor_ref ex, const std::string& name) {
        results r = run(ex);
        arena memory(std::size_t{1} << 16);
        const auto other = plan_slots(c.indices.view(), {.n_experts = 7, .n_identity = 1}, memory, ex);
        INFO(name);
        CHECK(list(other.rows, 41 * 3) == list(p.rows, 41 * 3));
        CHECK(list(other.slots, m) == list(p.slots, m));
        CHECK(different_bits(r.rows.view(), first.rows.view()) == "");
        CHECK(different_bits(r.y.view(), first.y.view()) == "");
        CHECK(different_bits(r.products.view(), first.products.view()) == "");
    });
    // and for every company: a token alone gives its rows
    for (idx t = 0; t < 41; ++t) {
        arena memory(std::size_t{1} << 12);
        const auto alone =
            plan_slots(c.indices.view().row_block(t, 1), {.n_experts = 7, .n_identity = 1}, memory, {});
        padded<T> own(alone.n_rows(), d), y(1, d);
        for (idx j = 0; j < 3; ++j)
            if (alone.rows[j] >= 0)
                copy(out.view().row_block(p.rows[3 * t + j], 1), own.view().row_block(alone.rows[j], 1));
        combine_slots<Arch, T>(alone, own, c.weights.view().row_block(t, 1), y.view(), {});
        add_identity<Arch, T>(alone, x.view().row_block(t, 1), c.weights.view().row_block(t, 1), y.view(),
                              {});
        CHECK(different_bits(y.view(), first.y.view().row_block(t, 1)) == "");
    }
}

TEST_CASE("routing_plan: NaN in a row reaches its token only, and dropped slots reach nobody") {
    planned<float> c(20, 3, 6);
    padded<float> out = uniform_matrix<float>(c.plan.n_rows(), 40, 1), clean(20, 40), y(20, 40);
    combine_slots<native, float>(c.plan, out, c.weights, clean.view(), {});
    const idx at = c.plan.tokens[4];
    out(4, 39) = std::numeric_limits<float>::quiet_NaN();
    for (idx i = 0; i < 60; ++i)
        if (c.indices.data()[i] < 0) c.weights(i / 3, i % 3) = std::numeric_limits<float>::quiet_NaN();
    combine_slots<native, float>(c.plan, out, c.weights, y.view(), {});
    for (idx t = 0; t < 20; ++t)
        for (idx j = 0; j < 40; ++j)
            if (t == at && j == 39)
                CHECK(std::isnan(y(t, j)));
            else
                CHECK(y(t, j) == clean(t, j));
    // all slots dropped: zero
    const std::int32_t none[] = {~0, ~1, ~2};
    arena memory(std::size_t{1} << 12);
    const auto p = plan_slots({none, 1, 3}, {.n_experts = 6}, memory, {});
    CHECK(p.n_rows() == 0);
    padded<float> no_rows(0, 40), zero(1, 40);
    fill(zero.view(), 5.0F);
    combine_slots<native, float>(p, no_rows, {}, zero.view(), {});
    for (idx j = 0; j < 40; ++j) CHECK(zero(0, j) == 0);
}

TEST_CASE("routing_plan: experts choose tokens, of equal ones the earlier") {
    for_each_executor([](executor_ref ex, const std::string&) {
        padded<double> weights = uniform_matrix<double>(30, 5, 9);
        for (idx t = 0; t < 30; ++t) weights(t, 4) = static_cast<double>(t % 3);
        const padded<double> before = weights;
        sluice::tensor<std::int32_t> indices(30, 5);
        arena workspace(std::size_t{1} << 14);
        choose_tokens<native, double>(12, indices.view(), weights.view(), workspace, ex);
        for (idx e = 0; e < 5; ++e) {
            idx taken = 0;
            double least = 9, most = -9;
            for (idx t = 0; t < 30; ++t) {
                const double w = before.view()(t, e);
                const bool kept = indices(t, e) == e;
                taken += kept;
                CHECK(indices(t, e) == (kept ? e : ~e));
                CHECK(weights(t, e) == (kept ? w : 0));
                double& bound = kept ? least : most;
                bound = kept ? std::min(least, w) : std::max(most, w);
            }
            CHECK(taken == 12);
            CHECK(least >= most);
        }
        for (idx t = 0; t < 30; ++t) // ten tokens of 2, and the first two of 1
            CHECK((indices(t, 4) == 4) == (t % 3 == 2 || t == 1 || t == 4));
        choose_tokens<native, double>(100, indices.view(), weights.view(), workspace, ex);
        for (idx i = 0; i < 150; ++i) CHECK(indices.data()[i] >= 0);
        CHECK(workspace.used() == 0);
    });
}

TEST_CASE("routing_plan: what is dropped already takes no room") {
    sluice::tensor<std::int32_t> indices(6, 1);
    padded<float> weights(6, 1);
    const std::int32_t given[] = {0, ~0, 0, 1, 0, 2};
    std::copy_n(given, 6, indices.data());
    arena workspace(std::size_t{1} << 12);
    drop_overflow<float>(drop_order::slot_major, 2, 2, indices.view(), weights, workspace, {});
    CHECK(list(indices.data(), 6) == std::vector<std::int32_t>{0, ~0, 0, 1, ~0, 2});
    drop_overflow<float>(drop_order::slot_major, 0, 2, indices.view(), weights, workspace, {});
    CHECK(list(indices.data(), 6) == std::vector<std::int32_t>{~0, ~0, ~0, ~1, ~0, 2}); // 2 is an identity
    // NaN is the smallest weight
    std::copy_n(given, 6, indices.data());
    weights(0, 0) = std::numeric_limits<float>::quiet_NaN();
    weights(2, 0) = -std::numeric_limits<float>::infinity();
    drop_overflow<float>(drop_order::by_weight, 2, 2, indices.view(), weights, workspace, {});
    CHECK(list(indices.data(), 6) == std::vector<std::int32_t>{~0, ~0, 0, 1, 0, 2});
}

TEST_CASE("routing_plan: null experts have no rows, and add nothing") {
    const std::int32_t indices[] = {0, 2, 4, 1, 3, 4, 2, ~1}; // 0 and 1 have weights, 2 is the identity
    arena memory(std::size_t{1} << 12);
    const auto p = plan_slots({indices, 4, 2}, {.n_experts = 2, .n_identity = 1, .n_null = 2}, memory, {});
    constexpr auto none = routing_plan::dropped, self = routing_plan::identity;
    CHECK(list(p.rows, 8) == std::vector<std::int32_t>{0, self, none, 1, none, none, self, none});
    CHECK(p.n_rows() == 2);
    CHECK_THROWS_WITH(plan_slots({indices, 4, 2}, {.n_experts = 2, .n_identity = 1, .n_null = 1}, memory, {}),
                      "routing_plan: expert 4 of token 1 is outside the 4");
}

TEST_CASE("routing_plan: indices that are no experts, too many rows and other shapes are refused") {
    arena memory(std::size_t{1} << 14);
    sluice::tensor<std::int32_t> indices = drawn_indices(4, 2, 5, 3, false);
    for (std::int32_t bad :
         {6, std::numeric_limits<std::int32_t>::max(), ~6, std::numeric_limits<std::int32_t>::min()}) {
        indices(2, 1) = bad;
        auto plan = [&] { plan_slots(indices.view(), {.n_experts = 5, .n_identity = 1}, memory, {}); };
        CHECK_THROWS_WITH(plan(),
                          "routing_plan: expert " + std::to_string(bad) + " of token 2 is outside the 6");
        CHECK_THROWS_AS(plan(), input_error);
    }
    indices(2, 1) = 5;
    CHECK_NOTHROW(plan_slots(indices.view(), {.n_experts = 5, .n_identity = 1}, memory, {}));
    CHECK_THROWS_AS(plan_slots(indices.view(), {.n_experts = 6, .room = 1}, memory, {}), capacity_error);
    const auto p = plan_slots(indices.view(), {.n_experts = 6}, memory, {});
    padded<float> x(4, 3), rows(8, 3), weights(4, 2), wrong(5, 3);
    CHECK_THROWS_WITH((gather_slots<native, float>(p, wrong, {}, rows.view(), {})),
                      "gather_slots: x must be 4 x 3, is 5 x 3");
    CHECK_THROWS_WITH((gather_slots<native, float>(p, x, {}, wrong.view(), {})),
                      "gather_slots: y must be 8 x 3, is 5 x 3");
    CHECK_THROWS_WITH((gather_slots<native, float>(p, x, x, rows.view(), {})),
                      "gather_slots: weights must be 4 x 2, is 4 x 3");
    CHECK_THROWS_WITH((combine_slots<native, float>(p, wrong, {}, x.view(), {})),
                      "combine_slots: x must be 8 x 3, is 5 x 3");
    CHECK_THROWS_WITH((combine_slots<native, float>(p, rows, {}, wrong.view(), {})),
                      "combine_slots: y must be 4 x 3, is 5 x 3");
    CHECK_THROWS_WITH((combine_slots<native, float>(p, rows, x, x.view(), {})),
                      "combine_slots: weights must be 4 x 2, is 4 x 3");
    CHECK_THROWS_WITH((slot_products<native, float>(p, wrong, rows, {}, weights.view(), {})),
                      "slot_products: of_tokens must be 4 x 3, is 5 x 3");
    CHECK_THROWS_WITH((slot_products<native, float>(p, x, wrong, {}, weights.view(), {})),
                      "slot_products: of_rows must be 8 x 3, is 5 x 3");
    CHECK_THROWS_WITH((slot_products<native, float>(p, x, rows, wrong, weights.view(), {})),
                      "slot_products: identity must be 4 x 3, is 5 x 3");
    CHECK_THROWS_WITH((slot_products<native, float>(p, x, rows, {}, wrong.view(), {})),
                      "slot_products: dweights must be 4 x 2, is 5 x 3");
    CHECK_THROWS_WITH((add_identity<native, float>(p, wrong, weights, x.view(), {})),
                      "add_identity: x must be 4 x 3, is 5 x 3");
    CHECK_THROWS_WITH((add_identity<native, float>(p, x, wrong, x.view(), {})),
                      "add_identity: weights must be 4 x 2, is 5 x 3");
    CHECK_THROWS_WITH((choose_tokens<native, float>(1, indices.view(), wrong.view(), memory, {})),
                      "choose_tokens: indices must be 5 x 3, is 4 x 2");
}

TEST_CASE("routing_plan: a dry run counts the worst case; nothing is allocated") {
    REQUIRE(allocations_are_noticed());
    const dry_run counting{3};
    const tensor_view<std::int32_t> nowhere(nullptr, 20, 3);
    for (idx room : {idx{2}, idx{1000}, std::numeric_limits<idx>::max()}) {
        arena dry;
        const auto p = plan_slots(nowhere, {.n_experts = 6, .room = room}, dry, counting);
        CHECK(p.n_rows() == (room == 2 ? 12 : 60));
        const tensor_view<float> x(nullptr, 20, 8), rows(nullptr, p.n_rows(), 8), w(nullptr, 20, 3);
        CHECK_NOTHROW(gather_slots<native, float>(p, x, w, rows, counting));
        CHECK_NOTHROW(combine_slots<native, float>(p, rows, w, x, counting));
        CHECK_NOTHROW(slot_products<native, float>(p, x, rows, x, w, counting));
        CHECK_NOTHROW(add_identity<native, float>(p, x, w, x, counting));
        arena exact(dry.bytes()), small(dry.bytes() - 1);
        sluice::tensor<std::int32_t> indices(20, 3);
        fill(indices.view(), ~0);
        CHECK_NOTHROW(plan_slots(indices.view(), {.n_experts = 6, .room = room}, exact, {}));
        CHECK_THROWS_AS(plan_slots(indices.view(), {.n_experts = 6, .room = room}, small, {}),
                        capacity_error);
    }
    planned<float> c(30, 3, 7, 1);
    padded<float> x(30, 40), rows(c.plan.n_rows(), 40), dweights(30, 3), scores(30, 8);
    sluice::tensor<std::int32_t> taken(30, 8);
    sluice::thread_pool pool(2);
    start_all(pool);
    for (executor_ref ex : {executor_ref(), executor_ref(pool)})
        CHECK(allocations_of([&] {
                  arena::scope scope(c.memory);
                  plan_slots(c.indices.view(), {.n_experts = 7, .n_identity = 1}, c.memory, ex);
                  gather_slots<native, float>(c.plan, x, c.weights, rows.view(), ex);
                  combine_slots<native, float>(c.plan, rows, c.weights, x.view(), ex);
                  slot_products<native, float>(c.plan, x, rows, x, dweights.view(), ex);
                  add_identity<native, float>(c.plan, x, c.weights, x.view(), ex);
                  choose_tokens<native, float>(3, taken.view(), scores.view(), c.memory, ex);
                  drop_overflow<float>(drop_order::by_weight, 2, 8, taken.view(), scores, c.memory, ex);
              }) == 0);
}
