#include "support/allocations.hpp"
#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/executors.hpp"
#include "support/random_data.hpp"

#include <sluice/core/tensor.hpp>
#include <sluice/ops/routing.hpp>
#include <sluice/ops/softmax.hpp>
#include <sluice/reference/routing.hpp>

#if __has_include(<nlohmann/json.hpp>)
#    include <nlohmann/json.hpp>

#    include <fstream>
#endif

#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <vector>

using namespace sluice::test;
using namespace sluice;
namespace plain = sluice::reference;

namespace {

using native = simd::native;

plain::router reference_of(const router_config& c) {
    return {.top_k = c.slots(),
            .score = static_cast<plain::router_score>(c.score),
            .n_groups = c.groups.n_groups,
            .kept_groups = c.groups.kept,
            .pairs = c.groups.rank == group_rank::best_two,
            .post = static_cast<plain::router_post>(c.weights.post),
            .norm = static_cast<plain::router_norm>(c.weights.norm),
            .eps = c.weights.eps,
            .power = c.weights.power,
            .scale = c.weights.scale};
}

template <class T>
struct routed {
    routed(const router_config& config, idx n)
        : c(config),
          logits(n, c.n_experts),
          bias(1, c.selection_bias ? c.n_experts : 0),
          weights(n, c.slots()),
          indices(n, c.slots()) {}
    void draw(std::uint64_t key, double spread = 2) {
        fill_normal(logits.view(), spread, random_source(key));
        fill_normal(bias.view(), 0.1, random_source(key + 1));
    }
    router_inputs<T> inputs() {
        return {.bias = c.selection_bias ? in<T>(bias.view()) : in<T>(), .ids = ids, .hash_table = table};
    }
    template <class Arch = native>
    router_report run(executor_ref ex = {}) {
        static arena workspace(std::size_t{1} << 22); // for all: it is larger than what most need
        return route<Arch, T>(c, logits, inputs(), indices.view(), weights.view(), workspace, ex);
    }
    std::vector<double> row(idx t) const {
        return {logits.view().row(t), logits.view().row(t) + c.n_experts};
    }
    std::vector<double> bias_row() const {
        return {bias.view().data(), bias.view().data() + bias.view().cols()};
    }
    plain::choices chosen(idx t) const { return {indices.row(t), indices.row(t) + c.slots()}; }

    router_config c;
    padded<T> logits, bias, weights;
    sluice::tensor<std::int32_t> indices;
    std::vector<token_id> ids;
    tensor_view<const std::int32_t> table;
};

// "" if experts and weights of every row are those of the reference.
template <class T>
std::string wrong_rows(const routed<T>& r) {
    const auto reference = reference_of(r.c);
    const auto n = r.logits.view().rows();
    const double u = unit_roundoff<T>;
    for (idx t = 0; t < n; ++t) {
        const auto z = r.row(t);
        if (r.c.choice == router_choice::tokens &&
            r.chosen(t) != plain::experts_of(reference, z, r.bias_row()))
            return "experts of row " + std::to_string(t);
        const auto want = plain::weights_of(reference, z, r.chosen(t));
        double size = 0;
        for (double w : want) size = std::max(size, std::abs(w));
        for (idx j = 0; j < r.c.slots(); ++j) {
            const double w = want[static_cast<std::size_t>(j)];
            const std::string wrong =
                compare_number(r.weights.view()(t, j), w, 60 * u * (size + std::abs(w)));
            if (!wrong.empty()) return place_text(t, j) + wrong;
        }
    }
    return "";
}

std::vector<weight_rule> all_rules() {
    std::vector<weight_rule> rules;
    for (auto post : {router_post::none, router_post::softmax, router_post::sigmoid}) {
        rules.push_back({.post = post, .scale = 1.5});
        rules.push_back({.post = post, .norm = weight_norm::sum, .scale = 2.5});
        rules.push_back({.post = post, .norm = weight_norm::sum, .eps = 0.25});
        rules.push_back({.post = post, .norm = weight_norm::clamped_sum, .eps = 1e-9, .scale = 0.5});
        rules.push_back({.post = post, .norm = weight_norm::clamped_sum, .eps = 20, .scale = 50});
        for (double power : {1.0, 2.0, 3.5})
            rules.push_back({.post = post, .norm = weight_norm::power, .power = power, .scale = 3});
    }
    return rules;
}

constexpr router_score all_scores[] = {router_score::none, router_score::softmax, router_score::sigmoid,
                                       router_score::sqrt_softplus};

std::string text_of(const router_config& c) {
    return "experts " + std::to_string(c.n_experts) + ", k " + std::to_string(c.top_k) + ", score " +
           std::to_string(static_cast<int>(c.score)) + ", post " +
           std::to_string(static_cast<int>(c.weights.post)) + ", norm " +
           std::to_string(static_cast<int>(c.weights.norm)) + ", eps " + std::to_string(c.weights.eps) +
           ", power " + std::to_string(c.weights.power) + ", groups " + std::to_string(c.groups.n_groups) +
           "/" + std::to_string(c.groups.kept) + ", bias " + std::to_string(c.selection_bias) + ", drop " +
           std::to_string(static_cast<int>(c.capacity.order)) +
           std::to_string(static_cast<int>(c.capacity.weights));
}

} // namespace

TEMPLATE_TEST_CASE("routing: experts and weights of the reference, every size", "", float_native,
                   float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    for (idx n_experts : {1, 2, 7, 8, 16, 33, 60, 64, 160, 256, 257})
        for (idx k : {idx{1}, idx{2}, idx{3}, idx{6}, idx{8}, idx{9}, n_experts})
            for (auto score : all_scores)
                for (bool bias : {false, true}) {
                    if (k > n_experts) continue;
                    router_config c{.n_experts = n_experts, .top_k = k, .score = score};
                    c.selection_bias = bias;
                    if (score != router_score::none) c.weights = {.norm = weight_norm::sum, .scale = 2.5};
                    routed<T> r(c, 5);
                    r.draw(static_cast<std::uint64_t>(n_experts * 7 + k));
                    r.template run<typename TestType::arch>();
                    INFO(text_of(c));
                    REQUIRE(wrong_rows(r) == "");
                    REQUIRE(r.weights.touched() + r.logits.touched() == "");
                }
}

TEMPLATE_TEST_CASE("routing: every rule of weights, and groups", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    for (auto score : all_scores)
        for (const auto& rule : all_rules())
            for (idx k : {2, 5}) {
                router_config c{.n_experts = 24, .top_k = k, .score = score, .weights = rule};
                routed<T> r(c, 4);
                r.draw(3);
                // sums that are far from zero
                for (idx t = 0; t < 4; ++t)
                    for (idx e = 0; e < 24; ++e) r.logits(t, e) = std::abs(r.logits(t, e)) + T(0.1);
                r.template run<typename TestType::arch>();
                INFO(text_of(c));
                REQUIRE(wrong_rows(r) == "");
            }
    for (auto score : all_scores)
        for (auto rank : {group_rank::best, group_rank::best_two})
            for (auto [n_experts, n_groups, kept] : {std::array<idx, 3>{256, 8, 4},
                                                     {160, 8, 3},
                                                     {64, 32, 5},
                                                     {60, 4, 1},
                                                     {66, 2, 1},
                                                     {12, 3, 2},
                                                     {6, 3, 3}})
                for (bool bias : {false, true}) {
                    router_config c{.n_experts = n_experts,
                                    .top_k = std::min<idx>(6, kept * n_experts / n_groups),
                                    .score = score,
                                    .groups = {n_groups, kept, rank},
                                    .weights = {.scale = 16}};
                    c.selection_bias = bias;
                    routed<T> r(c, 9);
                    r.draw(17);
                    r.template run<typename TestType::arch>();
                    INFO(text_of(c));
                    REQUIRE(wrong_rows(r) == "");
                }
}

#if __has_include(<nlohmann/json.hpp>)

namespace {

const nlohmann::json& golden() {
    static const auto all = nlohmann::json::parse(std::ifstream(SLUICE_TEST_DIR "/data/moe.json"));
    return all;
}
template <class T>
void load(const tensor_view<T>& t, const nlohmann::json& values) {
    for (idx i = 0; i < t.rows(); ++i)
        for (idx j = 0; j < t.cols(); ++j) {
            const auto& row = values.at(static_cast<std::size_t>(i));
            t(i, j) = (row.is_array() ? row.at(static_cast<std::size_t>(j))
                                      : values.at(static_cast<std::size_t>(j)))
                          .template get<T>();
        }
}

struct named_config {
    const char* name;
    router_config c;
};
std::vector<named_config> golden_routers() {
    using enum router_score;
    const router_config base{.n_experts = 8, .top_k = 2};
    auto with = [&](auto&& change) {
        router_config c = base;
        change(c);
        return c;
    };
    return {{"softmax_topk_raw", base},
            {"softmax_topk_norm", with([](auto& c) { c.weights.norm = weight_norm::sum; })},
            {"topk_then_softmax", with([](auto& c) {
                 c.score = none;
                 c.weights.post = router_post::softmax;
             })},
            {"topk_then_sigmoid", with([](auto& c) {
                 c.top_k = 1;
                 c.score = none;
                 c.weights.post = router_post::sigmoid;
             })},
            {"switch_top1", with([](auto& c) { c.top_k = 1; })},
            {"sigmoid_bias_group_top2sum", with([](auto& c) {
                 c.score = sigmoid;
                 c.selection_bias = true;
                 c.groups = {4, 2, group_rank::best_two};
                 c.weights = {.norm = weight_norm::sum, .eps = 1e-20, .scale = 2.5};
             })},
            {"softmax_group_max", with([](auto& c) {
                 c.groups = {4, 2, group_rank::best};
                 c.weights.scale = 16;
             })},
            {"sigmoid_bias_norm", with([](auto& c) {
                 c.score = sigmoid;
                 c.selection_bias = true;
                 c.weights.norm = weight_norm::sum;
             })},
            {"hash_table_sqrtsoftplus", with([](auto& c) {
                 c.score = sqrt_softplus;
                 c.choice = router_choice::hash_table;
                 c.weights = {.norm = weight_norm::sum, .eps = 1e-20, .scale = 1.5};
             })}};
}

} // namespace

TEMPLATE_TEST_CASE("routing: golden values of the published routers", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    std::set<std::string> seen;
    for (const auto& [name, c] : golden_routers()) {
        const auto& want = golden()["router"][name];
        seen.insert(name);
        routed<T> r(c, 6);
        load(r.logits.view(), golden()["logits"]);
        if (c.selection_bias) load(r.bias.view(), golden()["bias"]);
        sluice::tensor<std::int32_t> table(10, 2);
        if (c.choice == router_choice::hash_table) {
            load(table.view(), want["table"]);
            r.table = table;
            r.ids = want["token_ids"].template get<std::vector<token_id>>();
        }
        CHECK(r.template run<typename TestType::arch>().rows_with_nan == 0);
        INFO(name);
        sluice::tensor<std::int32_t> indices(6, c.top_k);
        sluice::tensor<double> weights(6, c.top_k);
        load(indices.view(), want["indices"]);
        load(weights.view(), want["weights"]);
        for (idx i = 0; i < indices.size(); ++i) {
            CHECK(r.indices.data()[i] == indices.data()[i]);
            const double w = weights.data()[i];
            CHECK(compare_number(r.weights(i / c.top_k, i % c.top_k), w, 20 * unit_roundoff<T> * w) == "");
        }
        CHECK(wrong_rows(r) == ""); // the reference says the same
    }
    for (const auto& [name, values] : golden()["router"].items())
        CHECK((seen.count(name) == 1 || name.starts_with("expert_choice") || name == "soft_moe"));
}

TEMPLATE_TEST_CASE("routing: golden values of experts that choose, and of soft routing", "", float_native,
                   float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    for (idx room : {1, 2}) {
        router_config c{.n_experts = 8, .choice = router_choice::experts};
        c.capacity = {.rule = capacity_rule::share, .factor = static_cast<double>(8 * room) / 6};
        routed<T> r(c, 6);
        load(r.logits.view(), golden()["logits"]);
        r.template run<Arch>();
        const auto& want = golden()["router"]["expert_choice_cap" + std::to_string(room)];
        for (idx e = 0; e < 8; ++e) {
            const auto& tokens = want["tokens"][static_cast<std::size_t>(e)];
            idx taken = 0;
            for (idx t = 0; t < 6; ++t) {
                const auto at = std::find(tokens.begin(), tokens.end(), t);
                const bool chosen = at != tokens.end();
                taken += chosen;
                CHECK(r.indices(t, e) == (chosen ? e : ~e));
                const double w = chosen ? want["weights"][static_cast<std::size_t>(e)]
                                              [static_cast<std::size_t>(at - tokens.begin())]
                                                  .get<double>()
                                        : 0;
                CHECK(compare_number(r.weights(t, e), w, 20 * unit_roundoff<T> * w) == "");
            }
            CHECK(taken == room);
        }
    }
    // L = X Phi; the golden values leave out what normalises both
    const auto x = golden()["X"].template get<std::vector<std::vector<double>>>();
    padded<T> logits(6, 4), dispatch(6, 4), combine(6, 4);
    for (std::size_t t = 0; t < 6; ++t)
        for (std::size_t s = 0; s < 4; ++s) {
            double product = 0;
            for (std::size_t h = 0; h < 8; ++h)
                product += x[t][h] * (static_cast<double>((41 * (4 * h + s) + 5) % 89) / 44.5 - 1);
            logits(static_cast<idx>(t), static_cast<idx>(s)) = static_cast<T>(product);
        }
    softmax<Arch, T>(logits, combine.view(), {});
    softmax_columns<Arch, T>(logits, dispatch.view(), {});
    const auto& want = golden()["router"]["soft_moe"];
    for (std::size_t t = 0; t < 6; ++t)
        for (std::size_t s = 0; s < 4; ++s) {
            const double c = want["combine"][t][s], d = want["dispatch"][t][s];
            CHECK(compare_number(combine(static_cast<idx>(t), static_cast<idx>(s)), c,
                                 30 * unit_roundoff<T>) == "");
            CHECK(compare_number(dispatch(static_cast<idx>(t), static_cast<idx>(s)), d,
                                 30 * unit_roundoff<T>) == "");
        }
}

TEST_CASE("routing: golden values of capacity") {
    for (auto order : {drop_order::slot_major, drop_order::batch_priority}) {
        router_config c{.n_experts = 8, .top_k = 2, .weights = {.norm = weight_norm::none}};
        c.capacity = {.rule = capacity_rule::share, .factor = 8.0 / 12, .order = order};
        REQUIRE(expert_capacity(c, 6) == 1);
        routed<double> r(c, 6);
        load(r.logits.view(), golden()["logits"]);
        r.run();
        const auto& want = golden()[order == drop_order::slot_major ? "capacity_1_slot_major"
                                                                    : "capacity_1_batch_priority"]["keep"];
        for (idx t = 0; t < 6; ++t)
            for (idx j = 0; j < 2; ++j)
                CHECK((r.indices(t, j) >= 0) ==
                      (want[static_cast<std::size_t>(t)][static_cast<std::size_t>(j)] == 1));
    }
}

#endif

TEST_CASE("routing: backward is the gradient of the weights, for every score and rule") {
    // a table in place of a choice: the indices stay what they are
    for (auto score : all_scores)
        for (const auto& rule : all_rules())
            for (auto drop : {capacity_rule::none, capacity_rule::share})
                for (auto after : {weights_after_drop::kept, weights_after_drop::renormalised}) {
                    if (drop == capacity_rule::none && after == weights_after_drop::renormalised) continue;
                    router_config c{.n_experts = 7, .top_k = 3, .choice = router_choice::hash_table};
                    c.score = score;
                    c.weights = rule;
                    c.capacity = {.rule = drop, .factor = 0.6, .weights = after};
                    routed<double> r(c, 5);
                    fill_uniform(r.logits.view(), 3, score == router_score::none ? 0.2 : -1.5, 1.5);
                    sluice::tensor<std::int32_t> table(5, 3);
                    for (std::int32_t t = 0; t < 5; ++t) {
                        for (std::int32_t j = 0; j < 3; ++j) table(t, j) = (t + 2 * j) % 7;
                        r.ids.push_back(t);
                    }
                    r.table = table;
                    const auto dweights = uniform_matrix<double>(5, 3, 4);
                    padded<double> dlogits(5, 7);
                    auto loss = [&] {
                        r.run();
                        double sum = 0;
                        for (idx t = 0; t < 5; ++t)
                            for (idx j = 0; j < 3; ++j) sum += r.weights(t, j) * dweights.view()(t, j);
                        return sum;
                    };
                    loss();
                    idx dropped = 0;
                    for (idx i = 0; i < 15; ++i) dropped += r.indices.data()[i] < 0;
                    arena workspace(std::size_t{1} << 16);
                    auto back = [&](auto arch, const tensor_view<double>& to) {
                        route_backward<decltype(arch), double>(c, r.logits, r.indices.view(), dweights, to,
                                                               workspace, {});
                    };
                    padded<double> by_scalar(5, 7);
                    back(native{}, dlogits.view());
                    back(simd::scalar{}, by_scalar.view());
                    INFO(text_of(c));
                    REQUIRE((dropped > 0) == (drop == capacity_rule::share));
                    for (idx t = 0; t < 5; ++t)
                        for (idx e = 0; e < 7; ++e)
                            REQUIRE(compare_number(by_scalar(t, e), dlogits(t, e), 1e-13) == "");
                    REQUIRE(wrong_gradient(loss, r.logits.view(), dlogits.view()) == "");
                    REQUIRE(dlogits.touched() == "");
                }
}

TEST_CASE("routing: gradients with groups, a bias, experts that choose, and top-1 without a norm") {
    std::vector<router_config> configs;
    configs.push_back({.n_experts = 12,
                       .top_k = 3,
                       .score = router_score::sigmoid,
                       .selection_bias = true,
                       .groups = {4, 2, group_rank::best_two},
                       .weights = {.norm = weight_norm::sum, .eps = 1e-20, .scale = 2.5}});
    configs.push_back({.n_experts = 12,
                       .top_k = 3,
                       .selection_bias = true,
                       .weights = {.norm = weight_norm::clamped_sum, .eps = 1e-12}});
    configs.push_back({.n_experts = 9, .top_k = 1});
    configs.push_back({.n_experts = 9, .top_k = 9, .weights = {.norm = weight_norm::sum}});
    configs.push_back(
        {.n_experts = 9, .top_k = 1, .score = router_score::none, .weights = {.post = router_post::sigmoid}});
    for (auto score : {router_score::softmax, router_score::sigmoid}) {
        router_config c{.n_experts = 4, .choice = router_choice::experts, .score = score};
        c.capacity = {.rule = capacity_rule::share};
        configs.push_back(c);
    }
    for (const auto& c : configs) {
        CHECK_NOTHROW(check_router(c, "router", router_use::training));
        routed<double> r(c, 6);
        r.draw(20);
        r.run();
        const sluice::tensor<std::int32_t> indices = std::move(r.indices);
        r.indices = sluice::tensor<std::int32_t>(6, c.slots());
        const auto dweights = uniform_matrix<double>(6, c.slots(), 4);
        bool same = true; // the margins are wider than the steps
        auto loss = [&] {
            r.run();
            double sum = 0;
            for (idx t = 0; t < 6; ++t)
                for (idx j = 0; j < c.slots(); ++j) {
                    sum += r.weights(t, j) * dweights.view()(t, j);
                    same = same && r.indices(t, j) == indices(t, j);
                }
            return sum;
        };
        loss();
        padded<double> dlogits(6, c.n_experts);
        arena workspace(std::size_t{1} << 16);
        route_backward<native, double>(c, r.logits, r.indices.view(), dweights, dlogits.view(), workspace,
                                       {});
        INFO(text_of(c));
        CHECK(wrong_gradient(loss, r.logits.view(), dlogits.view()) == "");
        CHECK(same);
    }
}

TEMPLATE_TEST_CASE("routing: the same bits for every executor and in every company", "", float_native,
                   double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    std::vector<router_config> configs;
    configs.push_back({.n_experts = 64,
                       .top_k = 6,
                       .score = router_score::sigmoid,
                       .selection_bias = true,
                       .groups = {8, 3, group_rank::best_two},
                       .weights = {.norm = weight_norm::sum}});
    configs.push_back({.n_experts = 33, .top_k = 4});
    configs.push_back(configs[1]);
    configs.back().capacity = {.rule = capacity_rule::share, .order = drop_order::by_weight};
    configs.push_back(configs[1]);
    configs.back().choice = router_choice::experts;
    configs.back().capacity = {.rule = capacity_rule::share};
    for (const auto& c : configs) {
        routed<T> first(c, 29);
        first.draw(8);
        first.logits(3, 4) = std::numeric_limits<T>::quiet_NaN();
        const auto report = first.template run<Arch>();
        CHECK(report.rows_with_nan == 1);
        const auto dweights = uniform_matrix<T>(29, c.slots(), 4);
        padded<T> want(29, c.n_experts);
        arena workspace(std::size_t{1} << 22);
        route_backward<Arch, T>(c, first.logits, first.indices.view(), dweights, want.view(), workspace, {});
        for_each_executor([&](executor_ref ex, const std::string& name) {
            routed<T> r(c, 29);
            copy(first.logits.view(), r.logits.view());
            copy(first.bias.view(), r.bias.view());
            INFO(text_of(c) << ", " << name);
            CHECK(r.template run<Arch>(ex).rows_with_nan == 1);
            padded<T> dlogits(29, c.n_experts);
            route_backward<Arch, T>(c, r.logits, r.indices.view(), dweights, dlogits.view(), workspace, ex);
            CHECK(different_bits(r.weights.view(), first.weights.view()) == "");
            CHECK(different_bits(dlogits.view(), want.view()) == "");
            CHECK(std::equal(r.indices.data(), r.indices.data() + r.indices.size(), first.indices.data()));
        });
        if (c.capacity.rule != capacity_rule::none) continue; // then rows depend on each other
        for (idx t = 0; t < 29; ++t) {
            routed<T> one(c, 1);
            copy(first.logits.view().row_block(t, 1), one.logits.view());
            copy(first.bias.view(), one.bias.view());
            one.template run<Arch>();
            CHECK(different_bits(one.weights.view(), first.weights.view().row_block(t, 1)) == "");
        }
    }
}

TEMPLATE_TEST_CASE("routing: NaN and infinities give experts in range and finite weights", "", float_native,
                   float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    constexpr T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
    for (auto score : all_scores)
        for (const auto& rule : all_rules())
            for (bool bias : {false, true})
                for (idx n_groups : {1, 5}) {
                    router_config c{.n_experts = 20, .top_k = 4, .score = score, .weights = rule};
                    c.selection_bias = bias;
                    if (n_groups > 1) c.groups = {n_groups, 2, group_rank::best_two};
                    routed<T> r(c, 7), clean(c, 7);
                    r.draw(5);
                    for (idx t = 0; t < 7; ++t) // no sums that vanish
                        for (idx e = 0; e < 20; ++e) r.logits(t, e) = std::abs(r.logits(t, e)) + T(0.1);
                    copy(r.logits.view(), clean.logits.view());
                    copy(r.bias.view(), clean.bias.view());
                    clean.template run<typename TestType::arch>();
                    const idx best = clean.indices(1, 0);
                    for (idx e = 0; e < 20; ++e) {
                        r.logits(0, e) = nan;
                        if (e != best) r.logits(1, e) = nan;
                        r.logits(3, e) = e % 2 == 0 ? nan : -inf;
                        if (e != 11) r.logits(4, e) = -inf;
                    }
                    r.logits(5, 13) = nan;
                    const auto report = r.template run<typename TestType::arch>();
                    INFO(text_of(c));
                    CHECK(report.rows_with_nan == 4);
                    const bool infinite = score == router_score::none && rule.post == router_post::none;
                    for (idx t : {0, 1, 3, 4, 5, 2, 6}) {
                        std::set<std::int32_t> distinct;
                        for (idx j = 0; j < 4; ++j) {
                            REQUIRE((r.indices(t, j) >= 0 && r.indices(t, j) < 20));
                            distinct.insert(r.indices(t, j));
                            // -inf as a weight is what was asked for
                            if (!infinite) REQUIRE(std::isfinite(r.weights(t, j)));
                            if (t == 2 || t == 6) REQUIRE(r.weights(t, j) == clean.weights(t, j));
                        }
                        REQUIRE(distinct.size() == 4);
                    }
                    CHECK(r.indices(1, 0) == best);
                    CHECK(r.indices(4, 0) == 11);
                    for (idx j = 0; j < 4; ++j) CHECK(r.indices(5, j) != 13);
                    if (n_groups == 1)
                        for (std::int32_t j = 0; j < 4; ++j) {
                            CHECK(r.indices(0, j) == j);
                            if (!bias) CHECK(r.indices(3, j) == 2 * j + 1);
                        }
                }
    // the whole softmax for infinite logits
    for (auto norm : {weight_norm::none, weight_norm::sum}) {
        routed<T> r({.n_experts = 20, .top_k = 3, .weights = {.norm = norm}}, 1);
        r.draw(1);
        r.logits(0, 7) = r.logits(0, 16) = inf;
        r.template run<typename TestType::arch>();
        CHECK((r.indices(0, 0) == 7 && r.indices(0, 1) == 16));
        CHECK((r.weights(0, 0) == T(0.5) && r.weights(0, 1) == T(0.5) && r.weights(0, 2) == 0));
    }
    routed<T> r({.n_experts = 20, .top_k = 3}, 4);
    r.draw(1);
    for (idx e = 0; e < 20; ++e) r.logits(2, e) = -inf;
    CHECK_THROWS_WITH(r.run(), "router: row 2 of the logits is -inf for every expert");
    CHECK_THROWS_AS(r.run(), input_error);
    for_each_executor([&](executor_ref ex, const std::string&) {
        for (idx e = 0; e < 20; ++e) r.logits(3, e) = -inf;
        CHECK_THROWS_WITH(r.run(ex), "router: row 2 of the logits is -inf for every expert");
    });
}

TEMPLATE_TEST_CASE("routing: properties", "", float_native, double_native) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    const router_config v3{.n_experts = 32,
                           .top_k = 4,
                           .score = router_score::sigmoid,
                           .selection_bias = true,
                           .groups = {8, 3, group_rank::best_two},
                           .weights = {.norm = weight_norm::sum, .scale = 2.5}};
    const router_config mixtral{.n_experts = 32, .top_k = 4, .weights = {.norm = weight_norm::sum}};
    SECTION("equal logits: the first experts, equal weights") {
        routed<T> r(mixtral, 2);
        fill(r.logits.view(), T(0.7));
        r.template run<Arch>();
        for (idx j = 0; j < 4; ++j) CHECK((r.indices(1, j) == j && r.weights(1, j) == T(0.25)));
    }
    SECTION("a constant added to the logits changes nothing for softmax, and weights for sigmoid") {
        for (const auto& c : {mixtral, v3}) {
            routed<T> r(c, 9), moved(c, 9);
            r.draw(4);
            copy(r.bias.view(), moved.bias.view());
            for (idx t = 0; t < 9; ++t)
                for (idx e = 0; e < 32; ++e) moved.logits(t, e) = r.logits(t, e) + T(0.5);
            r.template run<Arch>();
            moved.template run<Arch>();
            double most = 0;
            for (idx t = 0; t < 9; ++t)
                for (idx j = 0; j < 4; ++j)
                    most =
                        std::max(most, std::abs(static_cast<double>(r.weights(t, j) - moved.weights(t, j))));
            CHECK((most < 1e-5) == (c.score == router_score::softmax));
        }
    }
    SECTION("a constant added to the bias changes nothing, and no bias changes weights of one set") {
        routed<T> r(v3, 40), moved(v3, 40);
        r.draw(4);
        copy(r.logits.view(), moved.logits.view());
        for (idx e = 0; e < 32; ++e) moved.bias(0, e) = r.bias(0, e) - T(8); // all choices below zero
        r.template run<Arch>();
        moved.template run<Arch>();
        for (idx t = 0; t < 40; ++t) {
            CHECK(r.chosen(t) == moved.chosen(t)); // groups hold below zero too
            std::set<idx> groups;
            for (idx e : r.chosen(t)) groups.insert(e / 4);
            CHECK(groups.size() <= 3);
        }
        CHECK(different_bits(r.weights.view(), moved.weights.view()) == "");
    }
    SECTION("permuted experts") {
        routed<T> r(mixtral, 9), turned(mixtral, 9);
        r.draw(4);
        for (idx t = 0; t < 9; ++t)
            for (idx e = 0; e < 32; ++e) turned.logits(t, (5 * e + 3) % 32) = r.logits(t, e);
        r.template run<Arch>();
        turned.template run<Arch>();
        for (idx t = 0; t < 9; ++t)
            for (idx j = 0; j < 4; ++j) CHECK(turned.indices(t, j) == (5 * r.indices(t, j) + 3) % 32);
        CHECK(different_bits(r.weights.view(), turned.weights.view()) == "");
    }
    SECTION("weights add up to the scale") {
        routed<T> r(v3, 9);
        r.draw(4);
        r.template run<Arch>();
        for (idx t = 0; t < 9; ++t) {
            double sum = 0;
            for (idx j = 0; j < 4; ++j) sum += static_cast<double>(r.weights(t, j));
            CHECK(compare_number(sum, 2.5, 1e-6) == "");
        }
    }
    SECTION("softmax and columns of it") {
        padded<T> x = uniform_matrix<T>(11, 70, 5, -4, 4), y(11, 70);
        softmax_columns<Arch, T>(x, y.view(), {});
        for (idx j = 0; j < 70; ++j) {
            double sum = 0;
            for (idx i = 0; i < 11; ++i) sum += static_cast<double>(y(i, j));
            CHECK(compare_number(sum, 1, 1e-6) == "");
        }
    }
}

TEST_CASE("routing: what experts have room for") {
    auto room = [](capacity_config rule, idx n, idx k = 2, idx n_experts = 8) {
        return expert_capacity({.n_experts = n_experts, .top_k = k, .capacity = rule}, n);
    };
    using enum capacity_rule;
    CHECK(room({}, 77) == 77);
    CHECK(room({.rule = share, .factor = 1.25}, 50) == 16); // 15.625
    CHECK(room({.rule = share, .factor = 1.25, .round = rounding::down}, 50) == 15);
    CHECK(room({.rule = share, .factor = 1.25, .round = rounding::nearest}, 50) == 16);
    CHECK(room({.rule = share, .factor = 1, .round = rounding::nearest}, 50) == 12); // 12.5
    CHECK(room({.rule = share, .factor = 1, .multiple_of = 4}, 52) == 16);           // 13
    CHECK(room({.rule = share, .factor = 1, .minimum = 4}, 8) == 4);
    CHECK(room({.rule = mesh, .factor = 1.25, .minimum = 4}, 1024) == 160);
    CHECK(room({.rule = mesh, .factor = 1.25, .minimum = 4}, 10) == 4);
    CHECK(room({.rule = mesh, .factor = 100}, 10) == 10);
    CHECK(room({.rule = fairseq_top1, .factor = 1.5}, 50) == 10); // 1.5 * 7
    CHECK(room({.rule = fairseq_top2}, 50) == 14);
    CHECK(room({.rule = fairseq_eval, .factor = 0.25}, 50) == 13);
    CHECK(room({.rule = share}, 0) == 0);
}

TEST_CASE("routing: capacity drops who comes last") {
    for (auto order : {drop_order::slot_major, drop_order::batch_priority, drop_order::by_weight})
        for (auto after : {weights_after_drop::kept, weights_after_drop::renormalised})
            for (idx n : {1, 13, 40}) {
                router_config c{.n_experts = 6, .top_k = 3, .weights = {.norm = weight_norm::sum}};
                if (order == drop_order::by_weight) c.weights.norm = weight_norm::none;
                c.capacity = {.rule = capacity_rule::share, .factor = 0.7, .order = order, .weights = after};
                routed<double> r(c, n), free(c, n);
                r.draw(2);
                for (idx t = 0; t < n; ++t) r.logits(t, 2) += 2; // a favourite
                copy(r.logits.view(), free.logits.view());
                free.c.capacity = {};
                r.run();
                free.run();
                INFO(text_of(c) << ", n " << n);
                const idx most = expert_capacity(c, n);
                std::vector<plain::choices> chosen;
                plain::choices tokens(static_cast<std::size_t>(n)), load(6);
                std::iota(tokens.begin(), tokens.end(), 0);
                for (idx t = 0; t < n; ++t) chosen.push_back(free.chosen(t));
                if (order == drop_order::batch_priority)
                    std::stable_sort(tokens.begin(), tokens.end(),
                                     [&](idx a, idx b) { return free.weights(a, 0) > free.weights(b, 0); });
                const auto kept = plain::kept_slots(chosen, tokens, 6, most);
                for (idx t = 0; t < n; ++t) {
                    plain::choices survivors;
                    for (idx j = 0; j < 3; ++j) {
                        const std::int32_t e = r.indices(t, j);
                        CHECK((e < 0 ? ~e : e) == free.indices(t, j));
                        if (e >= 0) survivors.push_back(e);
                        if (e >= 0) ++load[static_cast<std::size_t>(e)];
                        if (order != drop_order::by_weight)
                            CHECK((e >= 0) == kept[static_cast<std::size_t>(t)][static_cast<std::size_t>(j)]);
                        if (e < 0) CHECK(r.weights(t, j) == 0);
                        if (e >= 0 && after == weights_after_drop::kept)
                            CHECK(r.weights(t, j) == free.weights(t, j));
                    }
                    if (after == weights_after_drop::kept || survivors.empty()) continue;
                    const auto want = plain::weights_of(reference_of(c), r.row(t), survivors);
                    std::size_t at = 0;
                    for (idx j = 0; j < 3; ++j)
                        if (r.indices(t, j) >= 0)
                            CHECK(compare_number(r.weights(t, j), want[at++], 1e-14) == "");
                }
                for (idx e = 0; e < 6; ++e) {
                    idx wanted = 0;
                    double least = 2, dropped = 0;
                    for (idx t = 0; t < n; ++t)
                        for (idx j = 0; j < 3; ++j)
                            if (free.indices(t, j) == e) {
                                ++wanted;
                                double& at = r.indices(t, j) < 0 ? dropped : least;
                                at = r.indices(t, j) < 0 ? std::max(at, free.weights(t, j))
                                                         : std::min(at, free.weights(t, j));
                            }
                    CHECK(load[static_cast<std::size_t>(e)] == std::min(most, wanted));
                    if (order == drop_order::by_weight) CHECK(least >= dropped);
                }
            }
    // room for all is no rule at all, and identity experts are never full
    router_config c{.n_experts = 6, .top_k = 3, .weights = {.norm = weight_norm::sum}};
    routed<double> free(c, 20);
    free.draw(2);
    free.run();
    for (double factor : {2.0, 0.1}) {
        c.capacity = {.rule = capacity_rule::share, .factor = factor};
        c.n_identity = factor < 1 ? 5 : 0;
        routed<double> r(c, 20);
        copy(free.logits.view(), r.logits.view());
        r.run();
        for (idx t = 0; t < 20; ++t)
            for (idx j = 0; j < 3; ++j)
                if (factor > 1 || free.indices(t, j) > 0) CHECK(r.indices(t, j) == free.indices(t, j));
    }
}

TEST_CASE("routing: noise is drawn by key and place") {
    padded<double> logits(40, 50), spread = uniform_matrix<double>(40, 50, 3, -2, 2), y(40, 50), z(40, 50);
    const std::uint64_t key = 77;
    for (auto kind : {router_noise::gumbel, router_noise::fixed, router_noise::learnt}) {
        const router_perturbation noise{.kind = kind, .sigma = 0.25};
        perturb_logits<double>(noise, key, logits, spread, y.view(), {});
        for_each_executor([&](executor_ref ex, const std::string&) {
            perturb_logits<double>(noise, key, logits, spread, z.view(), ex);
            CHECK(different_bits(y.view(), z.view()) == "");
        });
        perturb_logits<double>(noise, key + 1, logits, spread, z.view(), {});
        CHECK(different_bits(y.view(), z.view()) != "");
        double mean = 0, square = 0;
        for (idx t = 0; t < 40; ++t)
            for (idx e = 0; e < 50; ++e) {
                double v = y(t, e);
                if (kind == router_noise::fixed) v /= 0.25;
                if (kind == router_noise::learnt) v /= 0.25 + std::log1p(std::exp(spread(t, e)));
                mean += v / 2000;
                square += v * v / 2000;
            }
        // Euler's constant, and pi^2 / 6
        CHECK(compare_number(mean, kind == router_noise::gumbel ? 0.5772 : 0, 0.1) == "");
        CHECK(compare_number(square - mean * mean, kind == router_noise::gumbel ? 1.645 : 1, 0.15) == "");
    }
    perturb_logits<double>({}, key, spread, {}, y.view(), {});
    CHECK(different_bits(y.view(), spread.view()) == "");
    const auto dy = uniform_matrix<double>(40, 50, 9);
    const tensor_view<double> few = spread.view().row_block(0, 2);
    padded<double> dspread(2, 50), out(2, 50);
    perturb_logits_backward<double>(key, few, dy.view().row_block(0, 2), dspread.view(), {});
    auto loss = [&] {
        perturb_logits<double>({.kind = router_noise::learnt, .sigma = 0.01}, key,
                               logits.view().row_block(0, 2), few, out.view(), {});
        double sum = 0;
        for (idx t = 0; t < 2; ++t)
            for (idx e = 0; e < 50; ++e) sum += out(t, e) * dy.view()(t, e);
        return sum;
    };
    CHECK(wrong_gradient(loss, few, dspread.view()) == "");
}

TEST_CASE("routing: jitter is drawn by key and place, and is its own backward") {
    padded<double> x = uniform_matrix<double>(20, 30, 1), y(20, 30), z(20, 30),
                   dy = uniform_matrix<double>(20, 30, 2), dx(20, 30);
    jitter<double>(0.1, 5, x, y.view(), {});
    double least = 2, most = 0, mean = 0;
    for (idx t = 0; t < 20; ++t)
        for (idx j = 0; j < 30; ++j) {
            const double r = y(t, j) / x(t, j);
            least = std::min(least, r);
            most = std::max(most, r);
            mean += r / 600;
        }
    CHECK((least >= 0.9 - 1e-12 && least < 0.91 && most <= 1.1 + 1e-12 && most > 1.09));
    CHECK(compare_number(mean, 1, 0.01) == "");
    for_each_executor([&](executor_ref ex, const std::string&) {
        padded<double> over = x;
        jitter<double>(0.1, 5, over, over.view(), ex);
        CHECK(different_bits(over.view(), y.view()) == "");
    });
    jitter<double>(0.1, 6, x, z.view(), {});
    CHECK(different_bits(z.view(), y.view()) != "");
    jitter<double>(0, 5, x, z.view(), {});
    CHECK(different_bits(z.view(), x.view()) == "");
    jitter<double>(0.1, 5, dy, dx.view(), {});
    auto loss = [&] {
        jitter<double>(0.1, 5, x, y.view(), {});
        double sum = 0;
        for (idx t = 0; t < 20; ++t)
            for (idx j = 0; j < 30; ++j) sum += y(t, j) * dy(t, j);
        return sum;
    };
    CHECK(wrong_gradient(loss, x.view(), dx.view()) == "");
    CHECK(x.touched() + y.touched() == "");
}

TEMPLATE_TEST_CASE("routing: scores of rows, with NaN as -inf", "", float_native, float_scalar, double_native,
                   double_scalar) {
    using T = typename TestType::scalar;
    for (auto score : all_scores)
        for (idx n_experts : {1, 7, 16, 60, 257}) {
            padded<T> logits = uniform_matrix<T>(5, n_experts, 3, -3, 3), s(5, n_experts);
            if (n_experts > 1) logits(2, 1) = std::numeric_limits<T>::quiet_NaN();
            router_scores<typename TestType::arch, T>(score, logits, s.view(), {});
            for (idx t = 0; t < 5; ++t) {
                const auto want = plain::scores_of({.score = static_cast<plain::router_score>(score)},
                                                   {logits.view().row(t), logits.view().row(t) + n_experts});
                for (idx e = 0; e < n_experts; ++e) {
                    const double w = want[static_cast<std::size_t>(e)];
                    REQUIRE(compare_number(s(t, e), w, 40 * unit_roundoff<T> * std::abs(w)) == "");
                }
            }
            REQUIRE(s.touched() == "");
        }
}

TEST_CASE("routing: settings that cannot be are refused") {
    const router_config good{.n_experts = 8, .top_k = 2};
    auto complaint = [&](auto&& change, router_use use = router_use::inference) {
        router_config c = good;
        change(c);
        try {
            check_router(c, "moe", use);
        } catch (const config_error& e) {
            return std::string(e.what());
        }
        return std::string("no error");
    };
    CHECK(complaint([](auto&) {}) == "no error");
    CHECK(complaint([](auto& c) { c.n_experts = 0; }) == "moe: n_experts must be 1 to 16777216, is 0");
    CHECK(complaint([](auto& c) { c.top_k = 9; }) == "moe: top_k must be 1 to 8, is 9");
    CHECK(complaint([](auto& c) { c.top_k = 0; }) == "moe: top_k must be 1 to 8, is 0");
    CHECK(complaint([](auto& c) { c.groups = {3, 1}; }) == "moe: 8 experts do not make 3 groups");
    CHECK(complaint([](auto& c) { c.groups = {4, 5}; }) == "moe: groups.kept must be 1 to 4, is 5");
    CHECK(complaint([](auto& c) {
              c.groups = {8, 2};
              c.top_k = 3;
          }) == "moe: top_k is 3, the kept groups have 2 experts");
    CHECK(complaint([](auto& c) {
              c.groups = {8, 2, group_rank::best_two};
          }) == "moe: groups of one expert have no best two");
    CHECK(complaint([](auto& c) { c.n_identity = 8; }) == "moe: n_identity must be 0 to 7, is 8");
    CHECK(complaint([](auto& c) { c.n_null = 8; }) == "moe: n_null must be 0 to 7, is 8");
    CHECK(complaint([](auto& c) {
              c.n_identity = 5;
              c.n_null = 3;
          }) == "moe: n_null must be 0 to 2, is 3");
    CHECK(complaint([](auto& c) { c.weights.eps = -1; }).starts_with("moe: weights.eps must be"));
    CHECK(complaint([](auto& c) { c.weights.eps = std::nan(""); }).starts_with("moe: weights.eps must be"));
    CHECK(complaint([](auto& c) { c.weights.power = 0; }).starts_with("moe: weights.power must be"));
    CHECK(complaint([](auto& c) { c.weights.scale = HUGE_VAL; }).starts_with("moe: weights.scale must be"));
    CHECK(complaint([](auto& c) { c.noise.jitter = 2; }).starts_with("moe: noise.jitter must be"));
    CHECK(complaint([](auto& c) { c.noise.sigma = -1; }).starts_with("moe: noise.sigma must be"));
    CHECK(complaint([](auto& c) { c.capacity.factor = -1; }).starts_with("moe: capacity.factor must be"));
    CHECK(complaint([](auto& c) { c.capacity.minimum = -1; }).starts_with("moe: capacity.minimum must be"));
    CHECK(complaint([](auto& c) {
              c.capacity.multiple_of = 0;
          }).starts_with("moe: capacity.multiple_of must be"));
    CHECK(complaint([](auto& c) {
              c.choice = router_choice::hash_table;
              c.selection_bias = true;
          }) == "moe: groups and a selection bias need tokens that choose");
    CHECK(complaint([](auto& c) { c.choice = router_choice::experts; }) ==
          "moe: experts that choose need a capacity rule");
    CHECK(complaint([](auto& c) {
              c.choice = router_choice::experts;
              c.weights.norm = weight_norm::sum;
          }) == "moe: weights of experts that choose are scores, with no norm");
    auto one_normalised = [](auto& c) {
        c.top_k = 1;
        c.weights.norm = weight_norm::sum;
    };
    CHECK(complaint(one_normalised) == "no error");
    CHECK(complaint(one_normalised, router_use::training) ==
          "moe: top_k 1 with normalised weights cannot be trained: the weight is constant, so the router has "
          "no gradient");
}

TEST_CASE("routing: arguments that do not fit are named, tables and ids always") {
    arena workspace(std::size_t{1} << 16);
    padded<float> logits = uniform_matrix<float>(3, 8, 1), weights(3, 2), wide(3, 9);
    sluice::tensor<std::int32_t> indices(3, 2), table(4, 2);
    router_config c{.n_experts = 8, .top_k = 2};
    auto run = [&](const router_inputs<float>& given = {}) {
        route<native, float>(c, logits, given, indices.view(), weights.view(), workspace, {});
    };
    CHECK_THROWS_WITH((route<native, float>(c, wide, {}, indices.view(), weights.view(), workspace, {})),
                      "router: logits must be 3 x 8, is 3 x 9");
    CHECK_THROWS_WITH(
        (route<native, float>(c, logits, {}, indices.view().row_block(0, 2), weights.view(), workspace, {})),
        "router: indices must be 3 x 2, is 2 x 2");
    CHECK_THROWS_WITH((route<native, float>(c, logits, {}, indices.view(), wide.view(), workspace, {})),
                      "router: weights must be 3 x 2, is 3 x 9");
    CHECK_THROWS_WITH(run({.bias = wide}), "router: bias must be 0 x 0, is 3 x 9");
    c.selection_bias = true;
    CHECK_THROWS_WITH(run(), "router: bias must be 1 x 8, is 0 x 0");
    c.selection_bias = false;
    c.choice = router_choice::soft;
    CHECK_THROWS_AS(run(), config_error);
    c.choice = router_choice::hash_table;
    for (std::int32_t i = 0; i < 8; ++i) table.data()[i] = i;
    std::vector<token_id> ids{0, 3, 1};
    CHECK_NOTHROW(run({.ids = ids, .hash_table = table}));
    CHECK(indices(1, 1) == 7);
    CHECK_THROWS_WITH(run({.ids = ids}), "router: hash table must be 0 x 2, is 0 x 0");
    CHECK_THROWS_WITH(run({.ids = std::span(ids).first(2), .hash_table = table}),
                      "router: hash table: 2 ids for 3 rows");
    for (token_id bad : {-1, 4, std::numeric_limits<token_id>::min()}) {
        ids[2] = bad;
        CHECK_THROWS_WITH(run({.ids = ids, .hash_table = table}), "router: hash table: token id " +
                                                                      std::to_string(bad) +
                                                                      " at row 2 is outside the 4");
        CHECK_THROWS_AS(run({.ids = ids, .hash_table = table}), input_error);
    }
    ids[2] = 1;
    for (std::int32_t bad : {-1, 8, std::numeric_limits<std::int32_t>::min()}) {
        table(3, 1) = bad;
        CHECK_THROWS_WITH(run({.ids = ids, .hash_table = table}), "router: hash table: expert " +
                                                                      std::to_string(bad) +
                                                                      " of token id 3 is outside the 8");
    }
    table(3, 1) = 6;
    CHECK_THROWS_WITH(run({.ids = ids, .hash_table = table}),
                      "router: hash table: expert 6 occurs twice for token id 3");
    CHECK(workspace.used() == 0);
    table(3, 1) = 7;
    CHECK_THROWS_WITH(
        (route_backward<native, float>(c, logits, indices.view(), weights, wide.view(), workspace, {})),
        "router: dlogits must be 3 x 8, is 3 x 9");
    CHECK_THROWS_WITH(
        (route_backward<native, float>(c, logits, indices.view(), wide, logits.view(), workspace, {})),
        "router: dweights must be 3 x 2, is 3 x 9");
}

TEST_CASE("routing: no tokens, dry runs and exact memory; nothing is allocated") {
    REQUIRE(allocations_are_noticed());
    std::vector<router_config> configs;
    configs.push_back({.n_experts = 60, .top_k = 4, .weights = {.norm = weight_norm::sum}});
    configs.push_back(configs[0]);
    configs.back().capacity = {.rule = capacity_rule::share, .order = drop_order::by_weight};
    configs.push_back(configs[0]);
    configs.back().capacity = {.rule = capacity_rule::share, .order = drop_order::batch_priority};
    configs.push_back({.n_experts = 60, .choice = router_choice::experts});
    configs.back().capacity = {.rule = capacity_rule::share};
    sluice::thread_pool pool(2);
    start_all(pool);
    for (const auto& c : configs) {
        routed<float> none(c, 0), some(c, 33);
        CHECK(none.run().rows_with_nan == 0);
        some.draw(3);
        padded<float> dlogits(33, 60), dweights = uniform_matrix<float>(33, c.slots(), 3);
        for (executor_ref ex : {executor_ref(), executor_ref(pool)}) {
            arena dry;
            dry_run counting{ex.concurrency()};
            const tensor_view<float> z(nullptr, 33, 60), w(nullptr, 33, c.slots());
            const tensor_view<std::int32_t> i(nullptr, 33, c.slots());
            route<native, float>(c, z, {}, i, w, dry, counting);
            route_backward<native, float>(c, z, i, w, z, dry, counting);
            arena exact(dry.bytes()), small(dry.bytes() - 1);
            auto run = [&](arena& workspace) {
                route<native, float>(c, some.logits, {}, some.indices.view(), some.weights.view(), workspace,
                                     ex);
                route_backward<native, float>(c, some.logits, some.indices.view(), dweights, dlogits.view(),
                                              workspace, ex);
            };
            CHECK(allocations_of([&] { run(exact); }) == 0);
            CHECK(exact.used() == 0);
            CHECK_THROWS_AS(run(small), capacity_error);
        }
    }
}
