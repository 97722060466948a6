#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/executors.hpp"
#include "support/message_of.hpp"
#include "support/random_data.hpp"

#include <sluice/core/tensor.hpp>
#include <sluice/layers/boundary_detector.hpp>
#include <sluice/reference/boundary_detector.hpp>

#include <numeric>

using namespace sluice::test;
using sluice::arena;
using sluice::batch;
using sluice::boundary_choice;
using sluice::boundary_config;
using sluice::boundary_rule;
using sluice::config_error;
using sluice::executor_ref;
using sluice::idx;
using sluice::in;
using sluice::tensor;
using sluice::tensor_view;

namespace {

using detector = sluice::boundary_detector<double>;

// A detector with weights and what it found.
struct subject {
    explicit subject(const boundary_config& config, idx rows)
        : n(rows), weights(config), grad(config), layer(config, weights.view), memory(std::size_t{1} << 20) {
        std::uint64_t key = 5;
        each_param([&](const auto&, auto, const auto& t) { fill_uniform(t, ++key); }, weights.view);
        found = layer.take(memory, n);
    }
    subject(const subject&) = delete;
    void detect(const batch& b, in<double> h, boundary_choice by = boundary_choice::threshold,
                executor_ref ex = {}) {
        arena workspace(std::size_t{1} << 20);
        layer.detect(b, h, by, nullptr, found, workspace, ex);
    }
    std::vector<idx> starts() const {
        std::vector<idx> at;
        for (idx i = 0; i < n; ++i)
            if (found.starts[i] != 0) at.push_back(i);
        return at;
    }

    idx n;
    sluice::owned_params<detector::params_type> weights;
    sluice::owned_params<detector::grad_type> grad;
    detector layer;
    arena memory;
    detector::found found;
};

std::string said(const boundary_config& config) {
    return message_of<config_error>([&] {
        arena memory(std::size_t{1} << 12);
        (void)detector(config, detector::params_type::bind(memory, config));
    });
}

// p of the second of two rows, by the similarity of rows.
double p_of(std::vector<double> first, std::vector<double> second, std::uint8_t* start = nullptr) {
    const auto d = static_cast<idx>(first.size());
    tensor<double> h(2, d);
    std::copy(first.begin(), first.end(), h.row(0));
    std::copy(second.begin(), second.end(), h.row(1));
    subject s({.d_model = d, .rule = boundary_rule::similarity}, 2);
    s.detect(batch::one(2), h);
    CHECK(s.found.p(0, 0) == 1);
    CHECK(s.found.starts[0] == 1);
    if (start != nullptr) *start = s.found.starts[1];
    return s.found.p(0, 1);
}

} // namespace

TEST_CASE("p is how unlike two tokens are") {
    std::uint8_t start = 2;
    CHECK(std::abs(p_of({1, 2, 3}, {1, 2, 3})) < 1e-15);
    CHECK(std::abs(p_of({1, 2, 3}, {-1, -2, -3}) - 1) < 1e-15);
    CHECK(p_of({1, 0}, {0, 2}, &start) == 0.5);
    CHECK(start == 1); // a tie is a boundary
    CHECK(p_of({0, 0}, {3, 4}, &start) == 0.5);
    CHECK(start == 1);
    CHECK(p_of({1, 1}, {1, 0}, &start) < 0.5);
    CHECK(start == 0);
    CHECK(std::abs(p_of({1, 2, -3}, {2, 1, 1}) - p_of({1e-3, 2e-3, -3e-3}, {2e8, 1e8, 1e8})) < 1e-15);
}

TEST_CASE("agrees with its reference") {
    const std::vector<idx> lengths{37, 0, 1, 40};
    auto h = uniform_matrix<double>(78, 7, 3);
    for (const boundary_config& c :
         {boundary_config{.d_model = 7, .d_scan = 5},
          boundary_config{.d_model = 7, .d_scan = 11, .threshold = 0.6},
          boundary_config{.d_model = 7, .rule = boundary_rule::similarity, .threshold = 0.3},
          boundary_config{.d_model = 7, .d_scan = 5, .threshold = 0.7, .max_segment = 3},
          boundary_config{.d_model = 7, .rule = boundary_rule::every, .interval = 4}}) {
        subject s(c, 78);
        std::vector<idx> offsets{0};
        for (const idx n : lengths) offsets.push_back(offsets.back() + n);
        const batch b{.n_tokens = 78, .offsets = offsets};
        for_each_executor([&](executor_ref ex, const std::string& name) {
            INFO(name);
            s.detect(b, h.view(), boundary_choice::threshold, ex);
            std::vector<idx> starts;
            for (idx q = 0; q < 4; ++q) {
                std::vector<double> p;
                const idx first = b.first_token(q);
                for (const idx at : sluice::reference::boundaries<double>(
                         {c.threshold, c.rule == boundary_rule::every ? c.interval : 0, c.max_segment},
                         {s.weights.view.w_q, s.weights.view.w_k}, h.view().row_block(first, b.tokens(q)), p))
                    starts.push_back(first + at);
                for (idx i = 0; i < b.tokens(q); ++i)
                    CHECK(std::abs(p[static_cast<std::size_t>(i)] - s.found.p(0, first + i)) < 1e-13);
            }
            CHECK(s.starts() == starts);
            CHECK(starts.size() > 10);
            CHECK(starts.size() < 78);
        });
        const auto counts = s.layer.count(s.found, 78);
        CHECK(counts.tokens == 78);
        CHECK(counts.boundaries == static_cast<idx>(s.starts().size()));
    }
}

TEST_CASE("draws by the batch's key and the position") {
    const idx n = 4000;
    auto h = uniform_matrix<double>(n, 4, 1);
    auto share = [&](double sharpness, std::uint64_t key, double& expected) {
        subject s({.d_model = 4, .d_scan = 4, .sharpness = sharpness}, n);
        batch b = batch::one(n);
        b.random_key = key;
        s.detect(b, h.view(), boundary_choice::sampled);
        expected = 0;
        for (idx i = 0; i < n; ++i)
            expected += sluice::sharpened(s.found.p(0, i), sharpness) / static_cast<double>(n);
        return s.starts();
    };
    double expected = 0, other = 0;
    for (const double sharpness : {1.0, 6.0}) {
        const auto drawn = share(sharpness, 3, expected);
        CHECK(std::abs(static_cast<double>(drawn.size()) / static_cast<double>(n) - expected) < 0.02);
        CHECK(drawn == share(sharpness, 3, other));
        CHECK(drawn != share(sharpness, 4, other));
    }
    const double sharp[][2] = {
        {0.1, 0.017407}, {0.3, 0.057713}, {0.5, 0.109101}, {0.6, 0.918386}, {0.9, 0.982593}};
    for (const auto& [p, want] : sharp) {
        CHECK(std::abs(sluice::sharpened(p, 6) - want) < 1e-6);
        CHECK(std::abs(sluice::sharpened(p, 1) - p) < 1e-15);
    }
}

TEST_CASE("slopes of p") {
    const idx n = 9;
    const std::vector<idx> offsets{0, 4, 4, 5, 9};
    const batch b{.n_tokens = n, .offsets = offsets};
    auto h = uniform_matrix<double>(n, 6, 2), dp = uniform_matrix<double>(1, n, 3);
    for (const boundary_config& c : {boundary_config{.d_model = 6, .d_scan = 4},
                                     boundary_config{.d_model = 6, .rule = boundary_rule::similarity}}) {
        subject s(c, n);
        auto value = [&] {
            s.detect(b, h.view());
            double sum = 0;
            for (idx i = 0; i < n; ++i) sum += s.found.p(0, i) * dp(0, i);
            return sum;
        };
        value();
        tensor<double> dh(n, 6);
        arena workspace(std::size_t{1} << 20);
        s.layer.backward(b, h.view(), s.found, dp.view(), dh.view(), s.grad.view, workspace, {});
        CHECK(wrong_gradient(value, h.view(), dh.view()) == "");
        if (!c.learned()) continue;
        CHECK(wrong_gradient(value, s.weights.view.w_q, s.grad.view.w_q) == "");
        CHECK(wrong_gradient(value, s.weights.view.w_k, s.grad.view.w_k) == "");
    }
    subject s({.d_model = 2, .rule = boundary_rule::similarity}, 2);
    tensor<double> zero(2, 2), one(1, 2), dh(2, 2); // vectors without a direction have no slope
    zero(1, 0) = 1;
    fill(one.view(), 1.0);
    arena workspace(4096);
    s.detect(batch::one(2), zero);
    s.layer.backward(batch::one(2), zero, s.found, one, dh.view(), s.grad.view, workspace, {});
    for (idx j = 0; j < 2; ++j) {
        CHECK(dh(0, j) == 0);
        CHECK(std::isfinite(dh(1, j)));
    }
}

TEST_CASE("starts as unlikeness") {
    for (const idx d_scan : {4, 300}) {
        const boundary_config c{.d_model = 4, .d_scan = d_scan};
        sluice::owned_params<detector::params_type> p(c);
        initialise(p.view, c, sluice::random_source(1));
        CHECK(different_bits(in<double>(p.view.w_q), in<double>(p.view.w_k)) == "");
        if (d_scan == 4) CHECK((p.view.w_q(1, 1) == 1 && p.view.w_q(1, 2) == 0));
    }
}

TEST_CASE("NaN reaches no earlier token") {
    auto h = uniform_matrix<double>(6, 4, 1);
    subject s({.d_model = 4, .d_scan = 4}, 6);
    s.detect(batch::one(6), h.view());
    const auto before = s.starts();
    h(3, 1) = std::numeric_limits<double>::quiet_NaN();
    s.detect(batch::one(6), h.view());
    CHECK(std::isnan(s.found.p(0, 3)));
    CHECK(std::isnan(s.found.p(0, 4)));
    CHECK(!std::isnan(s.found.p(0, 5)));
    CHECK(s.found.starts[3] == 0);
    for (const idx i : {0, 1, 2})
        CHECK((s.found.starts[i] != 0) == (std::find(before.begin(), before.end(), i) != before.end()));
}

TEST_CASE("what does not fit is named") {
    CHECK(said({}) == "boundary_detector: boundary.d_model must be positive, is 0");
    CHECK(said({.d_model = 4}) == "boundary_detector: boundary.d_scan must be positive, is 0");
    CHECK(said({.d_model = 4, .rule = boundary_rule::every}) ==
          "boundary_detector: boundary.interval must be positive, is 0");
    for (const double bad : {0.0, 1.0, -0.5, std::nan("")})
        CHECK(said({.d_model = 4, .d_scan = 4, .threshold = bad})
                  .starts_with("boundary_detector: boundary.threshold must be in (0, 1), is "));
    for (const double bad : {1.0, 0.5, -3.0, std::nan("")})
        CHECK(said({.d_model = 4, .d_scan = 4, .loss = {.ratio = bad}})
                  .starts_with("boundary_detector: boundary.loss.ratio must be above 1, is "));
    CHECK(said({.d_model = 4, .d_scan = 4, .sharpness = 0})
              .starts_with("boundary_detector: boundary.sharpness must be positive"));
    CHECK(said({.d_model = 4, .d_scan = 4, .max_segment = -1}) ==
          "boundary_detector: boundary.max_segment must not be negative");
    CHECK(said({.d_model = 4, .d_scan = 4, .loss = {.weight = -1}}) ==
          "boundary_detector: boundary.loss.weight must be finite and not negative");
    CHECK(said({.d_model = 4, .rule = boundary_rule::every, .interval = 2, .loss = {.weight = 1}}) ==
          "boundary_detector: boundary.loss moves nothing where boundaries are fixed");
}
