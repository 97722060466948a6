#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/executors.hpp"
#include "support/random_data.hpp"

#include <sluice/train/adamw.hpp>

#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

using namespace sluice::test;
using sluice::adamw;
using sluice::adamw_config;
using sluice::adamw_group;
using sluice::arena;
using sluice::dry_run;
using sluice::executor_ref;
using sluice::global_norm;
using sluice::idx;
using sluice::param_name;
using sluice::role;
using sluice::tensor_view;

namespace {

// A tensor of every role; the widths leave tails in every register.
template <class T>
struct every_role {
    tensor_view<T> w, scale, embedding, table, buffer;

    static every_role bind(arena& a, idx n) {
        every_role p;
        p.w = a.take<T>(5, n);
        p.scale = a.take<T>(1, n);
        p.embedding = a.take<T>(3, n);
        p.table = a.take<T>(2, n);
        p.buffer = a.take<T>(1, n);
        return p;
    }
    template <class F, class First, class... Sets>
    static void each(F& f, const param_name& at, First& first, Sets&... sets) {
        const param_name part(at, "part");
        f(param_name(part, "w"), role::matrix, first.w, sets.w...);
        f(param_name(part, "scale"), role::vector, first.scale, sets.scale...);
        f(param_name(at, "embedding"), role::embedding, first.embedding, sets.embedding...);
        f(param_name(at, "table"), role::table, first.table, sets.table...);
        f(param_name(at, "buffer"), role::buffer, first.buffer, sets.buffer...);
    }
    std::array<tensor_view<T>, 5> all() const { return {w, scale, embedding, table, buffer}; }
};

// Gradients are drawn anew for every step. Their table and buffer hold numbers too, which nobody may use.
template <class T>
struct training {
    using params = sluice::owned_params<every_role<T>>;

    explicit training(idx n = 37)
        : weights(n), gradients(n), means(n), squares(n), workspace(std::size_t{1} << 12) {
        std::uint64_t key = 1;
        for (const auto& t : weights.view.all()) fill_uniform(t, key++);
        draw(1);
    }
    void draw(idx step) {
        std::uint64_t key = static_cast<std::uint64_t>(100 * step);
        for (const auto& t : gradients.view.all()) fill_uniform(t, key++, -0.5, 1);
        fill(gradients.view.table, T(0)); // counts for the norm
    }
    template <class Rule = sluice::decay_matrices>
    double step(const adamw_config& c, idx number, executor_ref ex = {}, const Rule& rule = {}) {
        return adamw(weights.view, gradients.view, means.view, squares.view, c, number, workspace, ex, rule);
    }
    std::vector<const params*> sets() const { return {&weights, &gradients, &means, &squares}; }
    params weights, gradients, means, squares;
    arena workspace;
};

template <class T>
std::string different(const training<T>& a, const training<T>& b) {
    std::string all;
    for (std::size_t set = 0; set < 4; ++set)
        for (std::size_t t = 0; t < 5; ++t)
            all += different_bits(a.sets()[set]->view.all()[t], b.sets()[set]->view.all()[t]);
    return all;
}

// AdamW as the paper has it, in double, with `size` for the bound. One tensor.
class plain_adamw {
public:
    template <class T>
    explicit plain_adamw(const tensor_view<T>& start)
        : weight(start.rows(), start.cols()), mean_(weight), square_(weight) {
        for (idx i = 0; i < start.rows(); ++i)
            for (idx j = 0; j < start.cols(); ++j) {
                const auto w = static_cast<double>(start(i, j));
                weight(i, j) = {w, std::abs(w)};
            }
    }
    template <class T>
    void step(const tensor_view<T>& gradient, const adamw_config& c, idx number, double rate, double decay,
              double gradient_scale) {
        const auto t = static_cast<double>(number);
        for (idx i = 0; i < weight.rows(); ++i)
            for (idx j = 0; j < weight.cols(); ++j) {
                const double g = gradient_scale * static_cast<double>(gradient(i, j));
                expected &w = weight(i, j), &m = mean_(i, j), &v = square_(i, j);
                m.value = c.beta1 * m.value + (1 - c.beta1) * g;
                m.size = c.beta1 * m.size + (1 - c.beta1) * std::abs(g);
                v.value = c.beta2 * v.value + (1 - c.beta2) * g * g;
                const double root = std::sqrt(v.value / (1 - std::pow(c.beta2, t))) + c.eps;
                const double step = rate / (1 - std::pow(c.beta1, t)) / root;
                w.value -= rate * decay * w.value + step * m.value;
                w.size += rate * decay * w.size + step * m.size;
            }
    }
    oracle weight;

private:
    oracle mean_, square_;
};

// Compares the three trained tensors after each of `steps` steps.
template <class T>
void check_steps(const adamw_config& c, idx steps) {
    training<T> t;
    const training<T> start;
    plain_adamw w(t.weights.view.w), scale(t.weights.view.scale), embedding(t.weights.view.embedding);
    for (idx number = 1; number <= steps; ++number) {
        t.draw(number);
        double squares = 0;
        for (const auto& g : {t.gradients.view.w, t.gradients.view.scale, t.gradients.view.embedding})
            for (idx i = 0; i < g.rows(); ++i)
                for (idx j = 0; j < g.cols(); ++j) squares += std::pow(static_cast<double>(g(i, j)), 2);
        const double norm = std::sqrt(squares), shrink = c.clip > 0 ? std::min(1.0, c.clip / norm) : 1;
        CHECK(compare_number(t.step(c, number), norm, 1e-12 * norm) == "");
        w.step(t.gradients.view.w, c, number, c.rate, c.decay, shrink);
        scale.step(t.gradients.view.scale, c, number, c.rate, 0, shrink);
        embedding.step(t.gradients.view.embedding, c, number, c.rate, 0, shrink);
        CAPTURE(number, c.rate, c.beta2, c.clip);
        const tolerance limit{.chain = number};
        REQUIRE(compare(t.weights.view.w, w.weight, limit) == "");
        REQUIRE(compare(t.weights.view.scale, scale.weight, limit) == "");
        REQUIRE(compare(t.weights.view.embedding, embedding.weight, limit) == "");
    }
    for (std::size_t set : {0U, 2U, 3U}) {
        const auto &now = t.sets()[set]->view, &then = start.sets()[set]->view;
        CHECK(different_bits(now.table, then.table) == "");
        CHECK(different_bits(now.buffer, then.buffer) == "");
    }
    CHECK(t.workspace.used() == 0);
}

} // namespace

TEMPLATE_TEST_CASE("adamw: steps of the paper's algorithm", "", float, double) {
    check_steps<TestType>({}, 10);
    check_steps<TestType>({.rate = 0.05, .beta1 = 0.8, .beta2 = 0.99, .eps = 1e-4, .decay = 0.5}, 10);
    check_steps<TestType>({.rate = 0.01, .decay = 0}, 10);
    check_steps<TestType>({.rate = 0.01, .clip = 0.5}, 10);
    check_steps<TestType>({.rate = 0.01, .clip = 1e9}, 3);
    check_steps<TestType>({.rate = 0.01, .beta1 = 0, .beta2 = 0}, 5);
}

TEST_CASE("adamw: the first step is as long as the rate, whatever the betas") {
    for (double beta2 : {0.95, 0.99, 0.999, 0.9999}) {
        training<float> t;
        for (const auto& w : t.weights.view.all()) fill(w, 0.0F);
        t.step({.rate = 0.125, .beta2 = beta2, .eps = 0}, 1);
        for (idx j = 0; j < 37; ++j) {
            const double want = t.gradients.view.w(2, j) > 0 ? -0.125 : 0.125;
            CHECK(compare_number(t.weights.view.w(2, j), want, 1e-7) == "");
        }
    }
}

TEMPLATE_TEST_CASE("adamw: the global norm is exact where its sum is", "", float, double) {
    training<TestType> t;
    for (const auto& g : t.gradients.view.all()) fill(g, TestType(0));
    t.gradients.view.w(4, 36) = 2;
    t.gradients.view.scale(0, 0) = -3;
    t.gradients.view.embedding(1, 20) = 6;
    t.gradients.view.table(0, 0) = 24;
    fill(t.gradients.view.buffer, TestType(1000)); // no gradient at all
    CHECK(global_norm(t.gradients.view, t.workspace) == 25);
    CHECK(t.step({}, 1) == 25);
    t.gradients.view.table(0, 0) = 0;
    CHECK(t.step({.clip = 1}, 2) == 7);
    for (const auto& g : t.gradients.view.all()) fill(g, TestType(0));
    CHECK(t.step({.clip = 1}, 3) == 0);
}

TEST_CASE("adamw: clipping begins above the limit") {
    training<double> free, at_limit, above;
    const double norm = global_norm(free.gradients.view, free.workspace);
    free.step({}, 1);
    at_limit.step({.clip = norm}, 1);
    CHECK(different(free, at_limit) == "");
    above.step({.clip = norm / 4}, 1);
    CHECK(different(free, above) != "");
    CHECK(compare_number(above.means.view.w(3, 5), free.means.view.w(3, 5) / 4, 1e-16) == "");
    CHECK(compare_number(above.squares.view.w(3, 5), free.squares.view.w(3, 5) / 16, 1e-16) == "");
}

TEST_CASE("adamw: a rule sets rates and decay by name and role") {
    training<float> usual, ruled;
    std::vector<std::string> names;
    auto rule = [&](const param_name& name, role r) {
        names.push_back(name.str());
        CHECK(r == (name.str() == "part.w"       ? role::matrix
                    : name.str() == "part.scale" ? role::vector
                                                 : role::embedding));
        if (name.str() == "part.scale") return adamw_group{.rate_factor = 0, .decay = true};
        if (name.str() == "embedding") return adamw_group{.rate_factor = 3, .decay = true};
        return adamw_group{};
    };
    const adamw_config c{.rate = 0.01, .decay = 0.5};
    plain_adamw w(usual.weights.view.w), embedding(usual.weights.view.embedding);
    usual.step(c, 1);
    ruled.step(c, 1, {}, rule);
    w.step(ruled.gradients.view.w, c, 1, 0.01, 0, 1);
    embedding.step(ruled.gradients.view.embedding, c, 1, 0.03, 0.5, 1);
    // asked once for each tensor that is trained here
    CHECK(names == std::vector<std::string>{"part.w", "part.scale", "embedding"});
    CHECK(compare(ruled.weights.view.w, w.weight, {}) == "");
    CHECK(compare(ruled.weights.view.embedding, embedding.weight, {}) == "");
    CHECK(different_bits(ruled.weights.view.scale, training<float>().weights.view.scale) == "");
    CHECK(different_bits(ruled.means.view.scale, usual.means.view.scale) == "");
    CHECK(different_bits(ruled.weights.view.w, usual.weights.view.w) != "");
}

TEMPLATE_TEST_CASE("adamw: a gradient that is not finite changes nothing", "", float, double) {
    const TestType inf = std::numeric_limits<TestType>::infinity();
    for (TestType bad : {std::numeric_limits<TestType>::quiet_NaN(), inf, -inf})
        for (std::size_t tensor : {0U, 1U, 2U, 3U}) {
            training<TestType> t, before;
            for (auto* each : {&t, &before}) {
                each->step({}, 1);
                const auto g = each->gradients.view.all()[tensor];
                g(g.rows() - 1, g.cols() - 1) = bad;
            }
            CHECK_THROWS_WITH(t.step({.clip = 1}, 2), "adamw: the gradient of step 2 is not finite");
            CHECK_THROWS_AS(t.step({}, 2), sluice::input_error);
            CHECK(different(t, before) == "");
            CHECK(t.workspace.used() == 0);
        }
    training<TestType> t; // a buffer has no gradient
    t.gradients.view.buffer(0, 0) = inf;
    CHECK_NOTHROW(t.step({}, 1));
}

TEST_CASE("adamw: steps count from one") {
    training<float> t;
    const training<float> before;
    CHECK_THROWS_WITH(t.step({}, 0), "adamw: step counts from 1");
    CHECK_THROWS_AS(t.step({}, -1), sluice::config_error);
    CHECK(different(t, before) == "");
    t.step({}, 1'000'000); // and do not run out
    for (idx j = 0; j < 37; ++j) CHECK(std::isfinite(t.weights.view.w(0, j)));
}

TEST_CASE("adamw: bits do not depend on the executor") {
    training<float> first(133);
    first.step({.clip = 0.1}, 1);
    first.draw(2);
    const double norm = first.step({.clip = 0.1}, 2);
    for_each_executor([&](executor_ref ex, const std::string& name) {
        training<float> t(133);
        t.step({.clip = 0.1}, 1, ex);
        t.draw(2);
        INFO(name);
        CHECK(t.step({.clip = 0.1}, 2, ex) == norm);
        CHECK(different(t, first) == "");
    });
}

TEST_CASE("adamw: a dry run counts its workspace") {
    arena none, dry;
    auto shapes = every_role<float>::bind(none, 37);
    dry_run counting{2};
    CHECK(adamw(shapes, shapes, shapes, shapes, {}, 1, dry, counting) == 0);
    CHECK(dry.bytes() == 64); // a number for each of 5 rows
    training<float> t;
    arena exact(dry.bytes()), small(0);
    CHECK_NOTHROW(adamw(t.weights.view, t.gradients.view, t.means.view, t.squares.view, {}, 1, exact));
    const training<float> after = [] {
        training<float> one;
        one.step({}, 1);
        return one;
    }();
    CHECK_THROWS_AS(adamw(t.weights.view, t.gradients.view, t.means.view, t.squares.view, {}, 2, small),
                    sluice::capacity_error);
    CHECK(different(t, after) == "");
}

TEST_CASE("adamw: allocates nothing, not even for names") {
    REQUIRE(allocations_are_noticed());
    training<float> t;
    sluice::thread_pool pool(2);
    start_all(pool);
    for (executor_ref ex : {executor_ref(), executor_ref(pool)})
        CHECK(allocations_of([&] { t.step({.clip = 0.5}, 1, ex); }) == 0);
}
