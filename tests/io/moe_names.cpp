#include "support/catch.hpp"

#include <sluice/io/moe_names.hpp>

namespace io = sluice::io;
using io::moe_naming;
using sluice::input_error;

namespace {

// A file with one tensor of one byte.
io::safetensors file_with(const std::string& name) {
    const std::string header = "{\"" + name + "\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}";
    std::string bytes(8, '\0');
    bytes[0] = static_cast<char>(header.size());
    bytes += header + "x";
    return io::from_memory(std::as_bytes(std::span(bytes)), "f");
}

} // namespace

TEST_CASE("names of the files that models were released as") {
    struct expected {
        moe_naming naming;
        std::string router, gate, up, down, selection_bias, shared_down;
    };
    const std::string proj[]{"mlp.experts.0.gate_proj.weight", "mlp.experts.0.up_proj.weight",
                             "mlp.experts.0.down_proj.weight"};
    const std::string sparse = "block_sparse_moe.", bias = "mlp.gate.e_score_correction_bias",
                      shared = "mlp.shared_experts.down_proj.weight";
    const expected all[]{
        {moe_naming::mixtral, sparse + "gate.weight", sparse + "experts.0.w1.weight",
         sparse + "experts.0.w3.weight", sparse + "experts.0.w2.weight", "", ""},
        {moe_naming::minimax_m2, sparse + "gate.weight", sparse + "experts.0.w1.weight",
         sparse + "experts.0.w3.weight", sparse + "experts.0.w2.weight", sparse + "e_score_correction_bias",
         ""},
        {moe_naming::qwen2_moe, "mlp.gate.weight", proj[0], proj[1], proj[2], "",
         "mlp.shared_expert.down_proj.weight"},
        {moe_naming::qwen3_moe, "mlp.gate.weight", proj[0], proj[1], proj[2], "", ""},
        {moe_naming::olmoe, "mlp.gate.weight", proj[0], proj[1], proj[2], "", ""},
        {moe_naming::deepseek_v2, "mlp.gate.weight", proj[0], proj[1], proj[2], "", shared},
        {moe_naming::deepseek_v3, "mlp.gate.weight", proj[0], proj[1], proj[2], bias, shared},
        {moe_naming::glm4_moe, "mlp.gate.weight", proj[0], proj[1], proj[2], bias, shared},
        {moe_naming::deepseek_v4, "ffn.gate.weight", "ffn.experts.0.w1.weight", "ffn.experts.0.w3.weight",
         "ffn.experts.0.w2.weight", "ffn.gate.bias", "ffn.shared_experts.w2.weight"},
        {moe_naming::gpt_oss, "mlp.router.weight", "mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj",
         "mlp.experts.down_proj", "", ""},
        {moe_naming::granite, sparse + "router.layer.weight", sparse + "input_linear.weight",
         sparse + "input_linear.weight", sparse + "output_linear.weight", "", ""},
        {moe_naming::llama4, "feed_forward.router.weight", "feed_forward.experts.gate_up_proj",
         "feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj", "",
         "feed_forward.shared_expert.down_proj.weight"},
        {moe_naming::dbrx, "ffn.router.layer.weight", "ffn.experts.mlp.w1", "ffn.experts.mlp.v1",
         "ffn.experts.mlp.w2", "", ""},
        {moe_naming::switch_transformer, "mlp.router.classifier.weight", "", "mlp.experts.expert_0.wi.weight",
         "mlp.experts.expert_0.wo.weight", "", ""},
    };
    for (const auto& want : all) {
        const auto names = io::detail::names_of(want.naming);
        INFO(names.model);
        auto full = [&](std::string_view name) {
            return name.empty() ? std::string() : std::string(names.block) + std::string(name);
        };
        auto of_expert = [&](std::size_t part) {
            if (names.layout != io::detail::expert_layout::single) return full(names.stacked[part]);
            if (names.parts[part].empty()) return std::string();
            return full(names.experts) + "0." + std::string(names.parts[part]) + ".weight";
        };
        CHECK(full(names.router) == want.router);
        CHECK(of_expert(0) == want.gate);
        CHECK(of_expert(1) == want.up);
        CHECK(of_expert(2) == want.down);
        CHECK(full(names.selection_bias) == want.selection_bias);
        const std::string shared_down =
            names.shared.empty() ? "" : full(names.shared) + std::string(names.parts[2]) + ".weight";
        CHECK(shared_down == want.shared_down);
    }
    CHECK_THROWS_AS(io::detail::names_of(static_cast<moe_naming>(99)), sluice::config_error);
}

TEST_CASE("names of modules in memory are taken where the file has them") {
    using io::detail::expert_layout;
    const auto file = file_with("a.mlp.experts.gate_up_proj");
    for (const auto naming : {moe_naming::mixtral, moe_naming::minimax_m2, moe_naming::deepseek_v4}) {
        const auto names = io::detail::names_in(file, naming, "a.");
        CHECK(names.block == "mlp.");
        CHECK(names.layout == expert_layout::fused);
        CHECK(names.parts[0] == "gate_proj"); // of a shared expert
        CHECK(io::detail::names_in(file, naming, "b.").layout == expert_layout::single);
    }
    CHECK(io::detail::names_in(file, moe_naming::deepseek_v4, "a.").selection_bias ==
          "gate.e_score_correction_bias");
    CHECK(io::detail::names_in(file, moe_naming::gpt_oss, "a.").layout == expert_layout::interleaved);
    const auto granite = file_with("a.block_sparse_moe.experts.gate_up_proj");
    CHECK(io::detail::names_in(granite, moe_naming::granite, "a.").router == "router.weight");
    CHECK(io::detail::names_in(file, moe_naming::granite, "a.").router == "router.layer.weight");
}
