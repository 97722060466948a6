#include "layer_suite/fixtures.hpp"

#include <sluice/layers/moe_presets.hpp>

#include <set>

#if __has_include(<nlohmann/json.hpp>)
#    include <nlohmann/json.hpp>

#    include <fstream>
#endif

using namespace sluice::test;
using sluice::config_error;
using sluice::idx;
using sluice::moe_config;
using sluice::moe_sizes;
using sluice::top_k_norm;
namespace presets = sluice::moe_presets;

namespace {

// A preset with sizes that it accepts, of 8 experts, and which sizes it accepts beside d_model, d_ff and
// n_experts.
struct preset {
    std::string name;
    moe_config (*make)(const moe_sizes&);
    moe_sizes sizes;
    std::set<std::string> fields;
};

// Ten token ids; filled by the test that needs it.
sluice::tensor<std::int32_t>& hash_table() {
    static sluice::tensor<std::int32_t> table(10, 2);
    return table;
}
moe_config v4_hash(const moe_sizes& s) { return presets::deepseek_v4_hash(s, hash_table().view()); }

std::vector<preset> all_presets() {
    const moe_sizes plain{.d_model = 6, .d_ff = 5, .n_experts = 8, .top_k = 2};
    auto with = [&](auto change) {
        moe_sizes s = plain;
        change(s);
        return s;
    };
    const auto shared = [](moe_sizes& s) { s.shared_d_ff = 4; };
    const auto grouped = [&](moe_sizes& s) { shared(s), s.groups = {4, 2}, s.scale = 2.5; };
    const std::set<std::string> grouped_fields{"top_k", "shared_d_ff", "groups", "scale"};
    std::set<std::string> normed_fields = grouped_fields;
    normed_fields.insert("norm");
    const auto limited = [&](moe_sizes& s) { shared(s), s.scale = 1.5, s.clamp = 10; };
    const std::set<std::string> limited_fields{"top_k", "shared_d_ff", "scale", "clamp"};
    return {
        {"mixtral", presets::mixtral, plain, {"top_k"}},
        {"qwen2_moe", presets::qwen2_moe, with(shared), {"top_k", "shared_d_ff", "norm"}},
        {"qwen3_moe", presets::qwen3_moe, plain, {"top_k", "norm"}},
        {"olmoe", presets::olmoe, plain, {"top_k", "norm"}},
        {"deepseek_v2", presets::deepseek_v2, with(grouped), grouped_fields},
        {"deepseek_v3", presets::deepseek_v3, with(grouped), normed_fields},
        {"deepseek_v4", presets::deepseek_v4, with(limited), limited_fields},
        {"deepseek_v4_hash", v4_hash, with(limited), limited_fields},
        {"glm4_moe", presets::glm4_moe, with(grouped), normed_fields},
        {"minimax_m2", presets::minimax_m2, plain, {"top_k"}},
        {"gpt_oss", presets::gpt_oss, with([](moe_sizes& s) { s.clamp = 7; }), {"top_k", "clamp"}},
        {"granite", presets::granite, plain, {"top_k"}},
        {"llama4", presets::llama4, plain, {"top_k"}},
        {"dbrx", presets::dbrx, plain, {"top_k", "norm"}},
        {"switch_transformer",
         presets::switch_transformer,
         with([](moe_sizes& s) { s.top_k = 0, s.capacity_factor = 1.25; }),
         {"capacity_factor"}},
    };
}
const preset& find(const std::string& name) {
    static const auto all = all_presets();
    return *std::find_if(all.begin(), all.end(), [&](const preset& p) { return p.name == name; });
}

} // namespace

TEST_CASE("presets: every one makes a layer") {
    for (const auto& p : all_presets()) {
        INFO(p.name);
        const moe_config c = p.make(p.sizes);
        sluice::owned_params<sluice::moe_params<float>> params(c);
        initialise(params.view, c, sluice::random_source(1));
        const sluice::moe<float> layer(c, params.view);
        const auto need = layer.bytes({.max_rows = 3});
        sluice::arena workspace(need.workspace), tape(need.tape);
        sluice::tensor<float> x(3, 6), y(3, 6);
        sluice::fill_normal(x.view(), 1, sluice::random_source(2));
        for (idx id = 0; id < 10; ++id) hash_table()(id, 0) = 0, hash_table()(id, 1) = 1;
        sluice::batch b = sluice::batch::one(3);
        const sluice::token_id ids[]{1, 2, 9};
        b.ids = ids;
        layer.forward(b, x.view(), y.view(), &tape, workspace); // can be trained as well
        CHECK(layer.config().router.n_experts == 8);
    }
}

TEST_CASE("presets: what the router does not say") {
    using sluice::feed_forward_kind;
    for (const auto& p : all_presets()) {
        INFO(p.name);
        const moe_config c = p.make(p.sizes);
        const bool llama = p.name == "llama4", qwen2 = p.name == "qwen2_moe",
                   switched = p.name == "switch_transformer";
        CHECK((c.weight_on == sluice::router_weight_on::input) == llama);
        CHECK((c.gate == sluice::shared_gate::sigmoid) == qwen2);
        CHECK(c.shared_d_ff == (llama ? 5 : p.sizes.shared_d_ff));
        CHECK(c.expert.kind == (switched              ? feed_forward_kind::relu
                                : p.name == "gpt_oss" ? feed_forward_kind::quick_geglu
                                                      : feed_forward_kind::swiglu));
        CHECK(c.expert.d_ff == 5);
        const bool gpt = p.name == "gpt_oss";
        CHECK(c.expert.bias == gpt);
        CHECK(c.router_bias == gpt);
        CHECK(c.expert.glu.offset == (gpt ? 1 : 0));
        CHECK(c.shared_config().glu.clamp ==
              (p.sizes.clamp > 0 ? p.sizes.clamp : std::numeric_limits<double>::infinity()));
        CHECK((c.router.capacity.rule == sluice::capacity_rule::mesh) == switched);
        CHECK(c.router.noise.kind == sluice::router_noise::none);
    }
    // 1.25 of the even share, at least 4: 1024 tokens in a group, 64 experts (the paper's numbers)
    moe_sizes s{.d_model = 6, .d_ff = 5, .n_experts = 64, .capacity_factor = 1.25};
    CHECK(sluice::expert_capacity(presets::switch_transformer(s).router, 1024) == 20);
    CHECK(sluice::expert_capacity(presets::switch_transformer(s).router, 64) == 4);
}

TEST_CASE("presets: a size that the model has not is refused, one that it has is asked for") {
    for (const auto& p : all_presets()) {
        const std::string place = "moe_presets::" + p.name + ": ";
        auto complaint = [&](auto change) {
            moe_sizes s = p.sizes;
            change(s);
            return message_of<config_error>([&] { (void)p.make(s); });
        };
        const std::pair<std::string, std::function<void(moe_sizes&, bool)>> optional[]{
            {"top_k", [](moe_sizes& s, bool on) { s.top_k = on ? 2 : 0; }},
            {"shared_d_ff", [](moe_sizes& s, bool on) { s.shared_d_ff = on; }},
            {"groups",
             [](moe_sizes& s, bool on) {
                 s.groups = {on, on};
             }},
            {"scale", [](moe_sizes& s, bool on) { s.scale = on; }},
            {"clamp", [](moe_sizes& s, bool on) { s.clamp = on; }},
            {"capacity_factor", [](moe_sizes& s, bool on) { s.capacity_factor = on; }},
        };
        for (const auto& [name, set] : optional) {
            INFO(p.name << " " << name);
            const auto& change = set; // clang 14 captures no structured bindings
            const bool has = p.fields.count(name) == 1;
            CHECK(complaint([&](moe_sizes& s) { change(s, true); }) ==
                  (has ? "no error" : place + name + " is not a size of this model"));
            CHECK(complaint([&](moe_sizes& s) { change(s, false); }) ==
                  (has ? place + name + " must be given" : "no error"));
        }
        INFO(p.name);
        for (const auto norm : {top_k_norm::off, top_k_norm::on})
            CHECK(complaint([&](moe_sizes& s) { s.norm = norm; }) ==
                  (p.fields.count("norm") == 1 ? "no error" : place + "norm is not a size of this model"));
        CHECK(complaint([](moe_sizes& s) { s.d_model = 0; }) == place + "d_model must be given");
        CHECK(complaint([](moe_sizes& s) { s.d_ff = 0; }) == place + "d_ff must be given");
        CHECK(complaint([](moe_sizes& s) { s.n_experts = 0; }) == place + "n_experts must be given");
        CHECK(complaint([](moe_sizes& s) { s.d_model = -1; }) == place + "d_model must be positive, is -1");
        CHECK(complaint([](moe_sizes& s) { s.d_ff = -1; }) == place + "d_ff must be positive, is -1");
        CHECK(complaint([](moe_sizes& s) { s.n_experts = -1; }) ==
              place + "n_experts must be 1 to 16777216, is -1");
    }
    auto v3 = [](auto change) {
        moe_sizes s = find("deepseek_v3").sizes;
        change(s);
        return message_of<config_error>([&] { presets::deepseek_v3(s); });
    };
    const std::string place = "moe_presets::deepseek_v3: ";
    CHECK(v3([](moe_sizes& s) { s.top_k = 5; }) == place + "top_k is 5, the kept groups have 4 experts");
    CHECK(v3([](moe_sizes& s) { s.groups = {3, 1}; }) == place + "8 experts do not make 3 groups");
    CHECK(v3([](moe_sizes& s) { s.groups = {4, 0}; }) == place + "groups.kept must be 1 to 4, is 0");
    CHECK(v3([](moe_sizes& s) { s.groups = {8, 4}; }) == place + "groups of one expert have no best two");
    CHECK(v3([](moe_sizes& s) { s.shared_d_ff = -4; }) == place + "shared_d_ff must not be negative");
}

// No golden case has its scores with a bias.
TEST_CASE("presets: the router of DeepSeek-V4 as its formula has it") {
    const auto& p = find("deepseek_v4");
    sluice::tensor<double> logits(20, 8), bias(1, 8), weights(20, 2);
    sluice::tensor<std::int32_t> experts(20, 2);
    sluice::fill_normal(logits.view(), 2, sluice::random_source(1));
    sluice::fill_normal(bias.view(), 0.5, sluice::random_source(2));
    sluice::arena workspace(1 << 16);
    sluice::route<sluice::simd::native, double>(p.make(p.sizes).router, logits.view(), {.bias = bias.view()},
                                                experts.view(), weights.view(), workspace, {});
    idx moved = 0; // by the bias
    for (idx t = 0; t < 20; ++t) {
        double score[8], sum = 1e-20;
        for (idx e = 0; e < 8; ++e) score[e] = std::sqrt(std::log1p(std::exp(logits(t, e))));
        const idx first = experts(t, 0), second = experts(t, 1);
        for (idx e = 0; e < 8; ++e) {
            const double by = score[e] + bias(0, e);
            CHECK((e == first || e == second || by < score[second] + bias(0, second)));
            moved += e != first && e != second && score[e] > score[second];
        }
        CHECK(score[first] + bias(0, first) > score[second] + bias(0, second));
        for (const idx e : {first, second}) sum += score[e];
        CHECK(std::abs(weights(t, 0) - 1.5 * score[first] / sum) < 1e-14);
        CHECK(std::abs(weights(t, 1) - 1.5 * score[second] / sum) < 1e-14);
    }
    CHECK(moved > 5);
}

#if __has_include(<nlohmann/json.hpp>)
TEST_CASE("presets: golden values of the published routers") {
    const auto golden = nlohmann::json::parse(std::ifstream(SLUICE_TEST_DIR "/data/moe.json"));
    struct match {
        std::string preset, golden;
        std::function<void(moe_sizes&)> change = [](moe_sizes&) {};
    };
    const auto on = [](moe_sizes& s) { s.norm = top_k_norm::on; };
    const auto off = [](moe_sizes& s) { s.norm = top_k_norm::off; };
    const match matches[]{
        {"mixtral", "softmax_topk_norm"},
        {"qwen2_moe", "softmax_topk_raw"},
        {"qwen2_moe", "softmax_topk_norm", on},
        {"qwen3_moe", "softmax_topk_norm"},
        {"qwen3_moe", "softmax_topk_raw", off},
        {"olmoe", "softmax_topk_raw"},
        {"olmoe", "softmax_topk_norm", on},
        {"deepseek_v2", "softmax_group_max", [](moe_sizes& s) { s.scale = 16; }},
        {"deepseek_v2", "softmax_topk_raw",
         [](moe_sizes& s) {
             s.groups = {1, 1}, s.scale = 1;
         }},
        {"deepseek_v3", "sigmoid_bias_group_top2sum"},
        {"glm4_moe", "sigmoid_bias_group_top2sum"},
        {"glm4_moe", "sigmoid_bias_norm",
         [](moe_sizes& s) {
             s.groups = {1, 1}, s.scale = 1;
         }},
        {"minimax_m2", "sigmoid_bias_norm"},
        {"granite", "topk_then_softmax"},
        {"llama4", "topk_then_sigmoid", [](moe_sizes& s) { s.top_k = 1; }},
        {"dbrx", "softmax_topk_norm"},
        {"dbrx", "softmax_topk_raw", off},
        {"deepseek_v4_hash", "hash_table_sqrtsoftplus"},
        {"gpt_oss", "topk_then_softmax"},
        {"switch_transformer", "switch_top1"},
    };
    auto matrix = [](const nlohmann::json& values, auto zero) {
        const bool flat = !values.at(0).is_array();
        sluice::tensor<decltype(zero)> t(flat ? 1 : static_cast<idx>(values.size()),
                                         static_cast<idx>(flat ? values.size() : values.at(0).size()));
        std::size_t i = 0;
        for (const auto& row : values)
            for (const auto& value : flat ? nlohmann::json::array({row}) : row)
                t.data()[i++] = value.get<decltype(zero)>();
        return t;
    };
    const auto logits = matrix(golden["logits"], double{}), bias = matrix(golden["bias"], double{});
    for (const auto& m : matches) {
        INFO(m.preset << " as " << m.golden);
        moe_sizes s = find(m.preset).sizes;
        m.change(s);
        const moe_config c = find(m.preset).make(s);
        const idx k = c.router.top_k;
        sluice::router_inputs<double> given;
        if (c.router.selection_bias) given.bias = bias.view();
        const auto& want = golden["router"][m.golden];
        std::vector<sluice::token_id> ids;
        if (want.contains("table")) {
            hash_table() = matrix(want["table"], std::int32_t{});
            ids = want["token_ids"].get<std::vector<sluice::token_id>>();
            given.hash_table = hash_table().view();
            given.ids = ids;
        }
        const auto experts = matrix(want["indices"], std::int32_t{});
        const auto numbers = matrix(want["weights"], double{});
        REQUIRE(experts.cols() == k);
        sluice::tensor<std::int32_t> indices(6, k);
        sluice::tensor<double> weights(6, k);
        sluice::arena workspace(1 << 16);
        sluice::route<sluice::simd::native, double>(c.router, logits.view(), given, indices.view(),
                                                    weights.view(), workspace, {});
        for (idx i = 0; i < 6 * k; ++i) {
            CHECK(indices.data()[i] == experts.data()[i]);
            CHECK(std::abs(weights.data()[i] - numbers.data()[i]) < 1e-14 * numbers.data()[i]);
        }
    }
}
#endif
