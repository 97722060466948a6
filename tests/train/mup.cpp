#include "support/catch.hpp"
#include "support/check.hpp"

#include <sluice/layers/dlcm.hpp>
#include <sluice/layers/language_model.hpp>
#include <sluice/layers/linear.hpp>
#include <sluice/layers/transformer_block.hpp>
#include <sluice/train/mup.hpp>

#include <map>

using sluice::idx;
using sluice::role;
using sluice::width_factors;
using sluice::width_group;

namespace {

using body = sluice::dlcm<sluice::stack<sluice::transformer_block<float>>>;
using model = sluice::language_model<body>;

model::config_type config_of(idx d, idx c) {
    auto block = [](idx width) {
        return sluice::transformer_block_config{
            .attention = {.d_model = width, .n_heads = 2, .n_kv_heads = 1, .head_dim = 8},
            .feed_forward = {.d_model = width, .d_ff = 2 * width},
            .norm = {.d_model = width}};
    };
    return {.embedding = {.vocabulary = 50, .d_model = d},
            .body = {.encoder = {1, block(d)},
                     .boundary = {.d_model = d, .d_scan = d / 2},
                     .concepts = {.d_model = d, .d_concept = c},
                     .backbone = {2, block(c)},
                     .cross = {.d_model = d, .d_concept = c, .n_heads = 2, .n_kv_heads = 1, .head_dim = 8},
                     .decoder = {1, block(d)}},
            .norm = {.d_model = d}};
}

// Deviation of every matrix, and what the rule says of every tensor.
struct outcome {
    outcome(idx d, idx c, const width_factors& s) {
        const auto config = config_of(d, c);
        sluice::owned_params<model::params_type> p(config);
        mup_initialise(p.view, 0.5, s, sluice::random_source(1));
        const sluice::mup_rule rule{s};
        each_param(
            [&](const sluice::param_name& name, role r, const auto& t) {
                double square = 0;
                for (idx i = 0; i < t.size(); ++i)
                    square += std::pow(static_cast<double>(t(i / t.cols(), i % t.cols())), 2);
                deviation[name.str()] = std::sqrt(square / static_cast<double>(t.size()));
                groups[name.str()] = rule(name, r);
                width[name.str()] = width_group_of(name, r);
            },
            p.view);
    }
    std::map<std::string, double> deviation;
    std::map<std::string, sluice::adamw_group> groups;
    std::map<std::string, width_group> width;
};

} // namespace

TEST_CASE("matrices belong to the width they read") {
    const outcome o(32, 64, {});
    const std::pair<const char*, width_group> want[] = {
        {"layers.encoder.0.attention.w_q", width_group::tokens},
        {"layers.decoder.0.feed_forward.w_down", width_group::tokens},
        {"layers.boundary.w_k", width_group::tokens},
        {"layers.concepts.w_up", width_group::tokens},
        {"layers.cross.w_q", width_group::tokens},
        {"layers.cross.w_o", width_group::tokens},
        {"layers.cross.w_k", width_group::concepts},
        {"layers.cross.w_v", width_group::concepts},
        {"layers.backbone.1.attention.w_o", width_group::concepts},
        {"layers.cross.q_norm", width_group::none},
        {"layers.backbone.0.attention_norm.scale", width_group::none},
        {"embedding.table", width_group::none},
        {"embedding.head", width_group::none},
        {"norm.scale", width_group::none}};
    for (const auto& [name, group] : want) {
        INFO(name);
        REQUIRE(o.width.contains(name));
        CHECK(o.width.at(name) == group);
    }
}

TEST_CASE("factors of one change nothing") {
    const outcome o(32, 64, {});
    for (const auto& [name, group] : o.groups) {
        INFO(name);
        CHECK(group.rate_factor == 1);
        CHECK(group.eps_factor == 1);
        const bool filled = o.width.at(name) != width_group::none || name.starts_with("embedding");
        CHECK(group.decay == (o.width.at(name) != width_group::none || name == "embedding.head"));
        CHECK(std::abs(o.deviation.at(name) - (filled ? 0.5 : 0)) < (filled ? 0.06 : 1e-9));
    }
    CHECK(width_factors{}.logits() == 1);
}

TEST_CASE("concepts twice as wide halve the backbone's variance and rate, and no other") {
    const width_factors s{.concepts = 2};
    const outcome before(32, 64, {}), after(32, 128, s);
    for (const auto& [name, group] : after.groups) {
        INFO(name);
        const bool wider = after.width.at(name) == width_group::concepts;
        CHECK(group.rate_factor == (wider ? 0.5 : 1));
        CHECK(group.eps_factor == (wider ? 0.5 : 1));
        if (wider) CHECK(std::abs(after.deviation.at(name) - 0.5 / std::sqrt(2.0)) < 0.03);
        if (name.starts_with("layers.encoder") || name.starts_with("embedding"))
            CHECK(after.deviation.at(name) == before.deviation.at(name));
    }
    CHECK(s.logits() == 1);
    CHECK(width_factors{.tokens = 4}.logits() == 0.25);
}

TEST_CASE("a rule of adamw") {
    const sluice::mup_rule rule{{.tokens = 2, .concepts = 4}, 1, 3, 5};
    const sluice::param_name body("backbone"), in_body(body, "w_up"), other("encoder"),
        in_other(other, "w_up");
    CHECK(rule(in_body, role::matrix).rate_factor == 0.75);
    CHECK(rule(in_other, role::matrix).rate_factor == 0.5);
    CHECK(rule(in_body, role::vector).rate_factor == 5);

    // eps of a group: a small gradient moves a weight less where eps is larger
    using params = sluice::linear_params<double>;
    const sluice::linear_config c{.d_in = 1, .d_out = 1};
    sluice::owned_params<params> w(c), g(c), m(c), v(c);
    g.view.w(0, 0) = 1e-8;
    sluice::arena workspace(4096);
    auto half = [](const sluice::param_name&, role) { return sluice::adamw_group{.eps_factor = 0.5}; };
    adamw(w.view, g.view, m.view, v.view, {.rate = 1, .eps = 1e-8}, 1, workspace, {}, half);
    CHECK(std::abs(w.view.w(0, 0) + 1 / 1.5) < 1e-12);
}
