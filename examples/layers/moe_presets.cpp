// The experts of published models from what their config.json says: what one layer weighs in bf16, and how
// much of it a token uses. Then the router of DeepSeek-V3, small: eight experts in four groups, of which each
// token takes two from the two best groups.
#include <sluice/core/tensor.hpp>
#include <sluice/layers/moe_presets.hpp>

#include <cstdio>

namespace presets = sluice::moe_presets;
using sluice::bf16;
using sluice::idx;

int main() {
    const struct {
        const char* name;
        sluice::moe_config config;
    } models[]{
        {"Mixtral-8x7B", presets::mixtral({.d_model = 4096, .d_ff = 14336, .n_experts = 8, .top_k = 2})},
        {"OLMoE-1B-7B", presets::olmoe({.d_model = 2048, .d_ff = 1024, .n_experts = 64, .top_k = 8})},
        {"Qwen1.5-MoE-A2.7B",
         presets::qwen2_moe(
             {.d_model = 2048, .d_ff = 1408, .n_experts = 60, .top_k = 4, .shared_d_ff = 5632})},
        {"Qwen3-30B-A3B", presets::qwen3_moe({.d_model = 2048, .d_ff = 768, .n_experts = 128, .top_k = 8})},
        {"DeepSeek-V2", presets::deepseek_v2({.d_model = 5120,
                                              .d_ff = 1536,
                                              .n_experts = 160,
                                              .top_k = 6,
                                              .shared_d_ff = 2 * 1536,
                                              .groups = {8, 3},
                                              .scale = 16})},
        {"DeepSeek-V3", presets::deepseek_v3({.d_model = 7168,
                                              .d_ff = 2048,
                                              .n_experts = 256,
                                              .top_k = 8,
                                              .shared_d_ff = 2048,
                                              .groups = {8, 4},
                                              .scale = 2.5})},
    };
    for (const auto& [name, config] : models) {
        sluice::moe_config used = config; // as many experts as a token goes to
        used.router.n_experts = config.router.top_k;
        const auto all = static_cast<double>(sluice::params_bytes<sluice::moe_params<bf16>>(config));
        const auto of_token = static_cast<double>(sluice::params_bytes<sluice::moe_params<bf16>>(used));
        std::printf("%-18s a layer of %5.2f GiB, of which a token uses %4.1f%%\n", name, all / 0x1p30,
                    100 * of_token / all);
    }

    const auto config = presets::deepseek_v3({.d_model = 32,
                                              .d_ff = 24,
                                              .n_experts = 8,
                                              .top_k = 2,
                                              .shared_d_ff = 24,
                                              .groups = {4, 2},
                                              .scale = 2.5});
    const idx n = 4;
    sluice::tensor<float> logits(n, 8), bias(1, 8), weights(n, 2);
    sluice::tensor<std::int32_t> experts(n, 2);
    sluice::fill_normal(logits.view(), 1, sluice::random_source(1));
    sluice::arena workspace(1 << 16);
    sluice::route(config.router, logits.view(), {.bias = std::as_const(bias).view()}, experts.view(),
                  weights.view(), workspace, {});
    bool right = true;
    for (idx t = 0; t < n; ++t) {
        std::printf("token %td: expert %d by %.3f, expert %d by %.3f\n", t, experts(t, 0),
                    static_cast<double>(weights(t, 0)), experts(t, 1), static_cast<double>(weights(t, 1)));
        right = right && std::abs(weights(t, 0) + weights(t, 1) - 2.5F) < 1e-6F;
    }
    return right ? 0 : 1;
}
