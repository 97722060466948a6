// What files of published models call the tensors of a mixture of experts, and how they lay experts out: as
// Hugging Face transformers 5.23 writes them (conversion_mapping.py there), which is how the models were
// released, and as its modules call them in memory.
#pragma once

#include "safetensors.hpp"

namespace sluice::io {

// Whose files; named as the configs of layers/moe_presets.hpp.
enum class moe_naming {
    mixtral,
    qwen2_moe,
    qwen3_moe,
    olmoe,
    deepseek_v2,
    deepseek_v3,
    deepseek_v4,
    glm4_moe,
    minimax_m2,
    gpt_oss,
    granite,
    llama4,
    dbrx,
    switch_transformer
};

inline namespace SLUICE_ISA {

namespace detail {

// How experts lie in a file. I is the inner width, H that of the model.
enum class expert_layout {
    single,      // a matrix (out, in) for each expert and part
    fused,       // gate and up (E, 2 I, H), rows of the gate first; down (E, H, I)
    halves,      // input-major: (E, H, 2 I), columns of the gate first; down (E, I, H)
    interleaved, // the same with columns of gate and up in turn
    inner_rows   // gate, up and down (E I, H): a row for each inner unit
};

struct moe_names {
    std::string_view model;
    std::string_view block; // behind the layer's prefix, before everything below
    std::string_view router = "gate.weight", router_bias{}, selection_bias{};
    expert_layout layout = expert_layout::single;
    std::array<std::string_view, 3> parts{"gate_proj", "up_proj", "down_proj"}; // of single experts, shared
    std::string_view experts = "experts.";                                      // before a number
    std::array<std::string_view, 3> stacked{"experts.gate_up_proj", "experts.gate_up_proj",
                                            "experts.down_proj"}; // of all experts
    std::string_view shared{}, shared_gate{};
    std::string_view hash_table{}; // see load_hash_table
};

inline moe_names names_of(moe_naming naming) {
    using enum expert_layout;
    constexpr std::array<std::string_view, 3> numbered{"w1", "w3", "w2"};
    switch (naming) {
    case moe_naming::mixtral:
        return {.model = "mixtral", .block = "block_sparse_moe.", .parts = numbered};
    case moe_naming::qwen2_moe:
        return {.model = "qwen2_moe",
                .block = "mlp.",
                .shared = "shared_expert.",
                .shared_gate = "shared_expert_gate.weight"};
    case moe_naming::qwen3_moe:
        return {.model = "qwen3_moe", .block = "mlp."};
    case moe_naming::olmoe:
        return {.model = "olmoe", .block = "mlp."};
    case moe_naming::deepseek_v2:
        return {.model = "deepseek_v2", .block = "mlp.", .shared = "shared_experts."};
    case moe_naming::deepseek_v3:
    case moe_naming::glm4_moe:
        return {.model = naming == moe_naming::glm4_moe ? "glm4_moe" : "deepseek_v3",
                .block = "mlp.",
                .selection_bias = "gate.e_score_correction_bias",
                .shared = "shared_experts."};
    case moe_naming::deepseek_v4:
        return {.model = "deepseek_v4",
                .block = "ffn.",
                .selection_bias = "gate.bias",
                .parts = numbered,
                .shared = "shared_experts.",
                .hash_table = "gate.tid2eid"};
    case moe_naming::minimax_m2:
        return {.model = "minimax_m2",
                .block = "block_sparse_moe.",
                .selection_bias = "e_score_correction_bias",
                .parts = numbered};
    case moe_naming::gpt_oss:
        return {.model = "gpt_oss",
                .block = "mlp.",
                .router = "router.weight",
                .router_bias = "router.bias",
                .layout = interleaved};
    case moe_naming::granite:
        return {.model = "granite",
                .block = "block_sparse_moe.",
                .router = "router.layer.weight",
                .layout = fused,
                .stacked = {"input_linear.weight", "input_linear.weight", "output_linear.weight"}};
    case moe_naming::llama4:
        return {.model = "llama4",
                .block = "feed_forward.",
                .router = "router.weight",
                .layout = halves,
                .shared = "shared_expert."};
    case moe_naming::dbrx:
        return {.model = "dbrx",
                .block = "ffn.",
                .router = "router.layer.weight",
                .layout = inner_rows,
                .stacked = {"experts.mlp.w1", "experts.mlp.v1", "experts.mlp.w2"}};
    case moe_naming::switch_transformer:
        return {.model = "switch_transformer",
                .block = "mlp.",
                .router = "router.classifier.weight",
                .parts = {"", "wi", "wo"},
                .experts = "experts.expert_"};
    }
    SLUICE_THROW(config_error("io::load_moe: no such naming"));
}

// The names of modules in memory, where the file has them.
inline moe_names names_in(const safetensors& file, moe_naming naming, std::string_view prefix) {
    const moe_names saved = names_of(naming);
    moe_names names = saved;
    const bool granite = naming == moe_naming::granite;
    if ((saved.layout != expert_layout::single && !granite) || saved.parts[0].empty()) return saved;
    if (granite)
        names.router = "router.weight";
    else
        names.block = "mlp.";
    const moe_names usual;
    names.layout = expert_layout::fused;
    names.parts = usual.parts;
    names.stacked = usual.stacked;
    if (naming == moe_naming::deepseek_v4) names.selection_bias = "gate.e_score_correction_bias";
    const std::string experts =
        std::string(prefix) + std::string(names.block) + std::string(names.stacked[0]);
    return file.contains(experts) ? names : saved;
}

} // namespace detail

} // namespace SLUICE_ISA
} // namespace sluice::io
