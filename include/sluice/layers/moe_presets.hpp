// Configs of moe for published models: what the model fixes is set here, what its config.json says is given
// as moe_sizes. Taken from the models' files in Hugging Face transformers 5.23 (modeling_<name>.py), the
// releases' config.json, and for Switch from mesh-tensorflow's transformer/moe.py.
//
// A size that the model has must be given and one that it has not must be left out: config_error names it.
// The result is a plain config, to be changed where a checkpoint differs. Noise of training is left out.
#pragma once

#include "moe.hpp"

namespace sluice {

// Whether the weights of the chosen experts are divided by their sum: norm_topk_prob in config.json.
enum class top_k_norm { as_released, off, on };

struct expert_groups { // n_group and topk_group in config.json
    idx n_groups = 0, kept = 0;
};

struct moe_sizes {
    idx d_model = 0;
    idx d_ff = 0; // of one expert
    idx n_experts = 0, top_k = 0;
    idx shared_d_ff = 0;    // of all shared experts together: n_shared_experts times their width
    expert_groups groups{}; // {1, 1}: none
    double scale = 0;       // routed_scaling_factor
    top_k_norm norm = top_k_norm::as_released;
    double clamp = 0; // swiglu_limit
    double capacity_factor = 0;
};

namespace moe_presets {
inline namespace SLUICE_ISA {

namespace detail {

enum size_fields : unsigned { // beside d_model, d_ff, n_experts and top_k
    plain = 0,
    with_shared = 1,
    with_groups = 2,
    with_scale = 4,
    with_norm = 8, // may be given
    with_clamp = 16,
    with_capacity = 32,
    without_top_k = 64
};

// What all of them have in common: sizes, SwiGLU experts without biases, the softmax of all logits.
inline moe_config checked(const char* model, const moe_sizes& s, unsigned fields) {
    auto check = [&](const char* field, bool given, bool has) {
        if (given == has) return;
        SLUICE_THROW(config_error(std::string("moe_presets::") + model + ": " + field +
                                  (has ? " must be given" : " is not a size of this model")));
    };
    check("d_model", s.d_model != 0, true);
    check("d_ff", s.d_ff != 0, true);
    check("n_experts", s.n_experts != 0, true);
    check("top_k", s.top_k != 0, (fields & without_top_k) == 0);
    check("shared_d_ff", s.shared_d_ff != 0, (fields & with_shared) != 0);
    check("groups", s.groups.n_groups != 0 || s.groups.kept != 0, (fields & with_groups) != 0);
    check("scale", s.scale != 0, (fields & with_scale) != 0);
    check("clamp", s.clamp != 0, (fields & with_clamp) != 0);
    check("capacity_factor", s.capacity_factor != 0, (fields & with_capacity) != 0);
    if ((fields & with_norm) == 0) check("norm", s.norm != top_k_norm::as_released, false);
    const std::string name = std::string("moe_presets::") + model;
    require_positive(s.d_model, name, "d_model");
    require_positive(s.d_ff, name, "d_ff");
    require(s.shared_d_ff >= 0, name, "shared_d_ff must not be negative");
    moe_config c{.d_model = s.d_model,
                 .router = {.n_experts = s.n_experts, .top_k = s.top_k},
                 .expert = {.d_ff = s.d_ff},
                 .shared_d_ff = s.shared_d_ff};
    if ((fields & without_top_k) != 0) c.router.top_k = 1;
    if ((fields & with_groups) != 0) c.router.groups = {.n_groups = s.groups.n_groups, .kept = s.groups.kept};
    if ((fields & with_scale) != 0) c.router.weights.scale = s.scale;
    if ((fields & with_clamp) != 0) {
        require(s.clamp > 0, name, "clamp must be positive");
        c.expert.glu.clamp = s.clamp;
    }
    check_router(c.router, name);
    return c;
}

inline bool normalised(const moe_sizes& s, bool as_released) {
    return s.norm == top_k_norm::as_released ? as_released : s.norm == top_k_norm::on;
}

// The softmax of all logits, divided by the sum over the chosen or not.
inline moe_config softmax_all(const char* model, const moe_sizes& s, unsigned fields, bool as_released) {
    moe_config c = checked(model, s, fields);
    if (normalised(s, as_released)) c.router.weights.norm = weight_norm::sum;
    return c;
}

// The softmax of the chosen logits alone.
inline moe_config softmax_chosen(const char* model, const moe_sizes& s, unsigned fields) {
    moe_config c = checked(model, s, fields);
    c.router.score = router_score::none;
    c.router.weights.post = router_post::softmax;
    return c;
}

inline moe_config sqrt_softplus(const char* model, const moe_sizes& s) {
    moe_config c = checked(model, s, with_shared | with_scale | with_clamp);
    c.router.score = router_score::sqrt_softplus;
    c.router.weights.norm = weight_norm::sum;
    c.router.weights.eps = 1e-20;
    return c;
}

// Sigmoids, a bias for the choice, groups ranked by their two best.
inline moe_config sigmoid_groups(const char* model, const moe_sizes& s) {
    moe_config c = checked(model, s, with_shared | with_groups | with_scale | with_norm);
    c.router.score = router_score::sigmoid;
    c.router.selection_bias = true;
    if (s.groups.n_groups > 1) c.router.groups.rank = group_rank::best_two; // one group has no rank
    if (normalised(s, true)) c.router.weights.norm = weight_norm::sum, c.router.weights.eps = 1e-20;
    check_router(c.router, std::string("moe_presets::") + model);
    return c;
}

} // namespace detail

inline moe_config mixtral(const moe_sizes& s) {
    return detail::softmax_all("mixtral", s, detail::plain, true);
}
// Qwen1.5-MoE and Qwen2-MoE: one shared expert behind a sigmoid; not normalised as released.
inline moe_config qwen2_moe(const moe_sizes& s) {
    moe_config c = detail::softmax_all("qwen2_moe", s, detail::with_shared | detail::with_norm, false);
    c.gate = shared_gate::sigmoid;
    return c;
}
// Normalised as released, though the class of transformers has norm_topk_prob = false where a file has none.
inline moe_config qwen3_moe(const moe_sizes& s) {
    return detail::softmax_all("qwen3_moe", s, detail::with_norm, true);
}
// Not normalised as released.
inline moe_config olmoe(const moe_sizes& s) {
    return detail::softmax_all("olmoe", s, detail::with_norm, false);
}
// Groups {1, 1} where topk_method is "greedy" (V2-Lite). Never normalised: no release sets norm_topk_prob.
inline moe_config deepseek_v2(const moe_sizes& s) {
    using namespace detail;
    return softmax_all("deepseek_v2", s, with_shared | with_groups | with_scale, false);
}
inline moe_config deepseek_v3(const moe_sizes& s) { return detail::sigmoid_groups("deepseek_v3", s); }
inline moe_config deepseek_v4(const moe_sizes& s) {
    moe_config c = detail::sqrt_softplus("deepseek_v4", s);
    c.router.selection_bias = true;
    return c;
}
// The layers whose mlp_layer_types is "hash_moe": experts by the token's id, from `table` (vocabulary x
// top_k, tid2eid in the checkpoint), which has to outlive the layer.
inline moe_config deepseek_v4_hash(const moe_sizes& s, const tensor_view<const std::int32_t>& table) {
    moe_config c = detail::sqrt_softplus("deepseek_v4_hash", s);
    require_shape(table, table.rows(), s.top_k, "moe_presets::deepseek_v4_hash", "table");
    c.router.choice = router_choice::hash_table;
    c.hash_table = table;
    return c;
}
// GLM-4.5 and later; released with groups {1, 1}.
inline moe_config glm4_moe(const moe_sizes& s) { return detail::sigmoid_groups("glm4_moe", s); }
inline moe_config minimax_m2(const moe_sizes& s) {
    moe_config c = detail::checked("minimax_m2", s, detail::plain);
    c.router.score = router_score::sigmoid;
    c.router.selection_bias = true;
    c.router.weights.norm = weight_norm::sum;
    return c;
}
// act(gate) = gate sigmoid(1.702 gate), times one more than the other half; biases everywhere.
inline moe_config gpt_oss(const moe_sizes& s) {
    moe_config c = detail::softmax_chosen("gpt_oss", s, detail::with_clamp);
    c.expert.kind = feed_forward_kind::quick_geglu;
    c.expert.bias = true;
    c.expert.glu.offset = 1;
    c.router_bias = true;
    return c;
}
inline moe_config granite(const moe_sizes& s) { return detail::softmax_chosen("granite", s, detail::plain); }
// The weight, a sigmoid of the chosen logit, multiplies the expert's input; a shared expert as wide as a
// routed one.
inline moe_config llama4(const moe_sizes& s) {
    moe_config c = detail::checked("llama4", s, detail::plain);
    c.router.score = router_score::none;
    c.router.weights.post = router_post::sigmoid;
    c.weight_on = router_weight_on::input;
    c.shared_d_ff = s.d_ff;
    return c;
}
// As released moe_normalize_expert_weights is 1: divided by their 1-norm; `off` where it is null.
inline moe_config dbrx(const moe_sizes& s) {
    moe_config c = detail::checked("dbrx", s, detail::with_norm);
    if (detail::normalised(s, true)) c.router.weights.norm = weight_norm::power, c.router.weights.power = 1;
    return c;
}
// One ReLU expert a token, weighted by its probability. Room for tokens of a call as mesh-tensorflow computes
// it, at least 4 each; the paper's factors are 1.25 in training and 2 after. For a fixed room of n tokens,
// what transformers calls expert_capacity, set router.capacity to {.rule = capacity_rule::share,
// .factor = 0, .minimum = n}; for none, to {}.
inline moe_config switch_transformer(const moe_sizes& s) {
    moe_config c = detail::checked("switch_transformer", s, detail::with_capacity | detail::without_top_k);
    c.expert.kind = feed_forward_kind::relu;
    c.router.capacity = {.rule = capacity_rule::mesh, .factor = s.capacity_factor, .minimum = 4};
    check_router(c.router, "moe_presets::switch_transformer");
    return c;
}

} // namespace SLUICE_ISA
} // namespace moe_presets
} // namespace sluice
