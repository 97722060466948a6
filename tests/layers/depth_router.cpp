#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/random_data.hpp"

#include <sluice/layers/depth_router.hpp>

#include <array>
#include <optional>
#include <vector>

using namespace sluice::test;
using sluice::arena;
using sluice::batch;
using sluice::depth_router_config;
using sluice::depth_rule;
using sluice::idx;

namespace {

// A router of width 1 whose logits are its input.
template <class T = float>
class router {
public:
    explicit router(depth_router_config c) : config_(fixed(c)), weights_(config_) {
        std::uint64_t key = 3;
        each_param([&](const sluice::param_name&, sluice::role, auto& t) { fill_uniform(t, ++key); },
                   weights_.view);
        weights_.view.w(0, 0) = 1;
    }
    sluice::depth_router_params<T>& weights() { return weights_.view; }

    std::vector<idx> choose(depth_rule rule, bool ahead, const std::vector<T>& x, const batch& b,
                            const sluice::depth_history& past = {}) {
        arena workspace(1 << 16);
        std::vector<std::int32_t> tokens(x.size() + 1);
        std::vector<T> r(x.size() + 1);
        const sluice::tensor_view<const T> xs(x.data(), static_cast<idx>(x.size()), 1);
        const sluice::depth_router<T, T, sluice::simd::native> layer(config_, weights_.view, "test");
        layer.logits(xs, r.data(), {});
        const idx n = layer.choose(rule, ahead, b, xs, r.data(), past, tokens.data(), workspace, {});
        CHECK((ahead ? n == layer.most_routed(ahead, b, past) : n <= layer.most_routed(ahead, b, past)));
        return {tokens.begin(), tokens.begin() + n};
    }
    std::vector<idx> top(const std::vector<T>& x) {
        return choose(depth_rule::top_k, true, x, batch::one(static_cast<idx>(x.size())));
    }

private:
    static depth_router_config fixed(depth_router_config c) {
        c.d_model = 1;
        return c;
    }
    depth_router_config config_;
    sluice::owned_params<sluice::depth_router_params<T>> weights_;
};

constexpr float inf = std::numeric_limits<float>::infinity(),
                no_number = std::numeric_limits<float>::quiet_NaN();

} // namespace

TEST_CASE("exactly as many as the capacity says, at least one, at most all") {
    for (const double capacity : {0.01, 0.125, 0.3, 0.5, 0.7, 1.0}) {
        router<float> r({.capacity = capacity});
        for (idx n : {1, 2, 3, 7, 8, 10, 64, 100, 257}) {
            INFO(capacity << " of " << n);
            const idx wanted =
                std::clamp<idx>(static_cast<idx>(capacity * static_cast<double>(n) + 1e-9), 1, n);
            const auto size = static_cast<std::size_t>(n);
            for (const float same : {0.5F, 0.0F, inf, -inf, no_number}) { // equal ones: the first
                const auto all_equal = r.top(std::vector<float>(size, same));
                CHECK(static_cast<idx>(all_equal.size()) == wanted);
                CHECK((all_equal.front() == 0 && all_equal.back() == wanted - 1));
            }
            std::vector<float> x(size);
            for (std::size_t i = 0; i < size; ++i) x[i] = static_cast<float>((i * 37) % 11);
            const auto some = r.top(x);
            CHECK(static_cast<idx>(some.size()) == wanted);
            CHECK(std::is_sorted(some.begin(), some.end()));
        }
    }
    CHECK(depth_router_config{.capacity = 0.7}.routed_of(10) == 7); // 0.7 * 10 is below 7
    CHECK(depth_router_config{.capacity = 0.125}.routed_of(2048) == 256);
    CHECK(depth_router_config{}.routed_of(0) == 0);
}

TEST_CASE("ties go to the earlier token, and NaN is the smallest") {
    router<float> half({.capacity = 0.5});
    CHECK(half.top({0.5F, 1, 0.5F, 0.5F, 2, 0.5F}) == std::vector<idx>{0, 1, 4});
    CHECK(half.top({no_number, -inf, no_number, 3, -inf, no_number}) == std::vector<idx>{1, 3, 4});
    CHECK(half.top({no_number, no_number, no_number, no_number}) == std::vector<idx>{0, 1});
    CHECK(half.top({0.0F, -0.0F, -1, 0.0F}) == std::vector<idx>{0, 1});
}

TEST_CASE("the capacity is of a sequence") {
    router<float> half({.capacity = 0.5});
    const std::array<idx, 5> offsets{0, 4, 4, 5, 8};
    const std::vector<float> x{9, 8, 7, 6, 1, 2, 3, 0};
    const batch b{.n_tokens = 8, .offsets = offsets};
    CHECK(half.choose(depth_rule::top_k, true, x, b) == std::vector<idx>{0, 1, 4, 6});
}

TEST_CASE("a threshold looks at one token") {
    router<float> r({.threshold = 0.5});
    const std::vector<float> x{0.5F, 0.6F, no_number, inf, -inf, 0.4F, 7};
    CHECK(r.choose(depth_rule::router_threshold, false, x, batch::one(7)) == std::vector<idx>{1, 3, 6});
    for (idx i = 0; i < 7; ++i) {
        const bool goes = i == 1 || i == 3 || i == 6;
        CHECK(r.choose(depth_rule::router_threshold, false, {x[static_cast<std::size_t>(i)]}, batch::one(1))
                  .size() == (goes ? 1 : 0));
    }
}

TEST_CASE("a budget counts what came before") {
    router<float> r({.budget = {0.25, 1}});
    const std::vector<float> all(12, 1.0F);
    // fewer than t / 4 + 1 of the first t
    CHECK(r.choose(depth_rule::router_threshold, false, all, batch::one(12)) == std::vector<idx>{0, 1, 4, 8});
    // the same one at a time
    std::vector<idx> found;
    idx tokens = 0, routed = 0;
    for (idx i = 0; i < 12; ++i) {
        const auto one =
            r.choose(depth_rule::router_threshold, false, {1.0F}, batch::one(1), {&tokens, &routed});
        if (!one.empty()) found.push_back(i);
        ++tokens;
        routed += static_cast<idx>(one.size());
    }
    CHECK(found == r.choose(depth_rule::router_threshold, false, all, batch::one(12)));
}

TEST_CASE("no more than a sequence has room for") {
    router<float> r({});
    const std::array<idx, 2> tokens{5, 9}, routed{2, 3};
    const std::array<idx, 3> offsets{0, 2, 4};
    const std::array<idx, 2> slots{1, 0};
    const batch b{.n_tokens = 4, .offsets = offsets, .slots = slots};
    const sluice::depth_history past{tokens.data(), routed.data(), 4};
    CHECK(r.choose(depth_rule::router_threshold, false, {1, -1, 1, 1}, b, past) == std::vector<idx>{0, 2, 3});
    try {
        r.choose(depth_rule::router_threshold, false, {1, 1, 1, 1}, b, past);
        FAIL("five are no four");
    } catch (const sluice::capacity_error& e) {
        CHECK((e.needed == 5 && e.have == 4));
        CHECK(std::string(e.what()) ==
              "mixture_of_depths: sequence 1: needs 5 routed tokens (max_routed), has 4");
    }
}

TEST_CASE("random routing takes its share wherever it is asked") {
    router<float> r({.capacity = 0.2});
    const idx n = 5000;
    const std::vector<float> x(static_cast<std::size_t>(n), 1.0F);
    batch b = batch::one(n);
    b.random_key = 5;
    CHECK(r.choose(depth_rule::random, true, x, b).size() == 1000);
    const auto drawn = r.choose(depth_rule::random, false, x, b);
    CHECK(std::abs(static_cast<double>(drawn.size()) - 1000) < 4 * std::sqrt(5000 * 0.2 * 0.8));
    // by position, however the text is cut
    std::vector<idx> parts;
    for (idx i = 0; i < n; i += 1250) {
        batch part = batch::one(1250, i);
        part.random_key = 5;
        for (idx t : r.choose(depth_rule::random, false, std::vector<float>(1250, 1.0F), part))
            parts.push_back(i + t);
    }
    CHECK(parts == drawn);
    b.random_key = 6;
    CHECK(r.choose(depth_rule::random, false, x, b) != drawn);
}

TEST_CASE("settings that mean nothing are named") {
    auto complaint = [](const depth_router_config& c) {
        try {
            sluice::check_depth_router(c, "layer");
        } catch (const sluice::config_error& e) {
            return std::string(e.what());
        }
        return std::string("no error");
    };
    CHECK(complaint({}) == "no error");
    for (const double capacity : {0.0, -0.5, 1.001, std::numeric_limits<double>::quiet_NaN()})
        CHECK_THAT(complaint({.capacity = capacity}),
                   contains_text("layer: capacity must be in (0, 1], is "));
    CHECK(complaint({.extend_by = depth_rule::top_k}) ==
          "layer: extend_by must be a rule that does not look at later tokens");
    const std::string missing = "layer: to route by a predictor there must be one: predictor is 0";
    CHECK(complaint({.extend_by = depth_rule::predictor}) == missing);
    CHECK(complaint({.forward_by = depth_rule::predictor}) == missing);
    CHECK(complaint({.threshold = inf}) == "layer: threshold must be finite");
    CHECK(complaint({.predictor = -1}) == "layer: predictor must not be negative");
    for (const sluice::depth_budget& budget :
         {sluice::depth_budget{-1, 0}, {0.1, -1}, {no_number, 0}, {0.1, inf}})
        CHECK(complaint({.budget = budget}) ==
              "layer: budget.share and budget.slack must be finite and not negative");
    CHECK(complaint({.losses = {.router = -1}}) ==
          "layer: weights of losses must be finite and not negative");
    CHECK(complaint({.losses = {.predictor = 1}}) == "layer: losses.predictor needs a predictor");
    CHECK(complaint({.forward_by = depth_rule::router_threshold, .losses = {.router = 1}}) ==
          "layer: losses need forward_by top_k, whose choice is their target");
}

TEST_CASE("gradients of the losses are slopes, and the predictor's stop at x") {
    sluice::depth_report report;
    const depth_router_config c{
        .d_model = 3, .predictor = 4, .losses = {.router = 0.7, .predictor = 1.3, .report = &report}};
    sluice::owned_params<sluice::depth_router_params<double>> weights(c), grad(c);
    std::uint64_t key = 8;
    each_param([&](const sluice::param_name&, sluice::role, auto& t) { fill_uniform(t, ++key); },
               weights.view);
    const sluice::depth_router<double, double, sluice::simd::native> router(c, weights.view, "test");
    const auto x = uniform_matrix<double>(9, 3, 1);
    const std::array<std::int32_t, 3> chosen{1, 4, 8};
    arena workspace(1 << 16);
    std::vector<double> r(9), dlogits(9);
    auto run = [&] {
        report = {};
        auto none = grad.view;
        router.logits(x.view(), r.data(), {});
        router.losses_backward(x.view(), r.data(), chosen.data(), 3, dlogits.data(), none, workspace, {});
        return (0.7 * report.router_loss + 1.3 * report.predictor_loss) / 9;
    };
    run();
    CHECK((report.tokens == 9 && report.routed == 3));
    // by hand
    double agrees = 0;
    for (std::size_t i = 0; i < 9; ++i) agrees += (r[i] > 0) == (i == 1 || i == 4 || i == 8) ? 1 : 0;
    CHECK(static_cast<double>(report.router_agrees) == agrees);
    const std::vector<double> slopes = dlogits;
    sluice::owned_params<sluice::depth_router_params<double>> first(c);
    each_param(
        [](const sluice::param_name&, sluice::role, auto& from, auto& to) {
            for (idx i = 0; i < from.rows(); ++i) std::copy_n(from.row(i), from.cols(), to.row(i));
        },
        grad.view, first.view);
    for (std::size_t i = 0; i < 9; ++i) {
        const double t = i == 1 || i == 4 || i == 8 ? 1 : 0;
        CHECK(slopes[i] == approx(0.7 / 9 * (1 / (1 + std::exp(-r[i])) - t)).epsilon(1e-12));
    }
    CHECK(wrong_gradient(run, weights.view.predictor_in, first.view.predictor_in) == "");
    CHECK(wrong_gradient(run, weights.view.predictor_in_bias, first.view.predictor_in_bias) == "");
    CHECK(wrong_gradient(run, weights.view.predictor_out, first.view.predictor_out) == "");
    CHECK(wrong_gradient(run, weights.view.predictor_out_bias, first.view.predictor_out_bias) == "");
    CHECK(first.view.w(0, 0) == 0); // through dlogits, by the layer
}

TEST_CASE("losses of large logits are finite") {
    sluice::depth_report report;
    const depth_router_config c{.d_model = 1, .losses = {.router = 1, .report = &report}};
    sluice::owned_params<sluice::depth_router_params<float>> weights(c), grad(c);
    const sluice::depth_router<float, float, sluice::simd::native> router(c, weights.view, "test");
    const std::array<float, 4> r{1e30F, -1e30F, 200, -200};
    const std::array<std::int32_t, 2> chosen{1, 2};
    const sluice::tensor_view<const float> x(r.data(), 4, 1);
    std::array<float, 4> d{};
    arena workspace(4096);
    router.losses_backward(x, r.data(), chosen.data(), 2, d.data(), grad.view, workspace, {});
    CHECK(report.router_loss == approx(2e30));
    CHECK((d[0] == 0.25F && d[1] == -0.25F && d[2] == 0 && d[3] == 0));
}

TEST_CASE("a new predictor says the capacity, and a new router ties no tokens") {
    const depth_router_config c{.d_model = 64, .capacity = 0.125, .predictor = 8};
    sluice::owned_params<sluice::depth_router_params<float>> weights(c);
    initialise(weights.view, c, sluice::random_source(1));
    const float bias = weights.view.predictor_out_bias(0, 0);
    CHECK(1 / (1 + std::exp(-bias)) == approx(0.125F));
    CHECK(weights.view.w(0, 0) != weights.view.w(0, 1));
    CHECK(weights.view.predictor_out(0, 3) == 0);
}
