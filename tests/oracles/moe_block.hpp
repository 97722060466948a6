// A file of moe_blocks.py: a mixture of experts under the names of a published model, inputs,
// and what another implementation made of them. Metadata holds the sizes, all tensors are F32.
#pragma once

#include <sluice/core/tensor.hpp>
#include <sluice/io/checkpoints.hpp>
#include <sluice/layers/moe_presets.hpp>

#include <map>
#include <string>
#include <vector>

namespace sluice::test {

struct published_moe {
    const char* name;
    io::moe_naming naming;
    moe_config (*config)(const moe_sizes&); // null: with a table
};
inline const published_moe published_moes[]{
    {"mixtral", io::moe_naming::mixtral, moe_presets::mixtral},
    {"qwen2_moe", io::moe_naming::qwen2_moe, moe_presets::qwen2_moe},
    {"qwen3_moe", io::moe_naming::qwen3_moe, moe_presets::qwen3_moe},
    {"olmoe", io::moe_naming::olmoe, moe_presets::olmoe},
    {"deepseek_v2", io::moe_naming::deepseek_v2, moe_presets::deepseek_v2},
    {"deepseek_v3", io::moe_naming::deepseek_v3, moe_presets::deepseek_v3},
    {"deepseek_v4", io::moe_naming::deepseek_v4, moe_presets::deepseek_v4},
    {"deepseek_v4_hash", io::moe_naming::deepseek_v4, nullptr},
    {"glm4_moe", io::moe_naming::glm4_moe, moe_presets::glm4_moe},
    {"minimax_m2", io::moe_naming::minimax_m2, moe_presets::minimax_m2},
    {"gpt_oss", io::moe_naming::gpt_oss, moe_presets::gpt_oss},
    {"granite", io::moe_naming::granite, moe_presets::granite},
    {"llama4", io::moe_naming::llama4, moe_presets::llama4},
    {"dbrx", io::moe_naming::dbrx, moe_presets::dbrx},
    {"switch_transformer", io::moe_naming::switch_transformer, moe_presets::switch_transformer},
};

// Parameters with the memory that is theirs alone.
template <class P>
struct loaded_moe {
    loaded_moe(const io::safetensors& file, io::moe_naming naming, std::string_view prefix,
               const moe_config& config) {
        arena dry;
        (void)io::load_moe<P>(file, naming, prefix, config, dry);
        memory = arena(dry.bytes());
        view = io::load_moe<P>(file, naming, prefix, config, memory);
    }
    arena memory;
    P view;
};

struct moe_block {
    explicit moe_block(io::file source) : file(std::move(source)), model(nullptr) {
        const auto& given = file.metadata();
        for (const auto& m : published_moes)
            if (given.at("model") == m.name) model = &m;
        if (model == nullptr) SLUICE_THROW(input_error(file.path() + ": no such model"));
        prefix = given.at("prefix");
        auto number = [&](const char* name) {
            const auto at = given.find(name);
            return at == given.end() ? 0 : std::stod(at->second);
        };
        auto size = [&](const char* name) { return static_cast<idx>(number(name)); };
        moe_sizes sizes{.d_model = size("d_model"),
                        .d_ff = size("d_ff"),
                        .n_experts = size("n_experts"),
                        .top_k = size("top_k"),
                        .shared_d_ff = size("shared_d_ff"),
                        .groups = {size("n_groups"), size("kept_groups")},
                        .scale = number("scale"),
                        .clamp = number("clamp")};
        if (model->naming == io::moe_naming::llama4) sizes.shared_d_ff = 0; // as wide as an expert
        const idx room = size("room"); // of an expert, a number of tokens
        if (room > 0) sizes.capacity_factor = 1;
        if (model->config == nullptr) {
            arena dry;
            (void)io::load_hash_table(file, model->naming, prefix, dry);
            table_memory = arena(dry.bytes());
            const auto table = io::load_hash_table(file, model->naming, prefix, table_memory);
            config = moe_presets::deepseek_v4_hash(sizes, table);
            const auto read = file.view<std::int64_t>("ids");
            for (idx i = 0; i < read.size(); ++i) ids.push_back(static_cast<token_id>(read(0, i)));
        } else {
            config = model->config(sizes);
        }
        if (room > 0) config.router.capacity = {.rule = capacity_rule::share, .factor = 0, .minimum = room};
    }

    io::safetensors file;
    const published_moe* model;
    std::string prefix;
    moe_config config;
    arena table_memory;
    std::vector<token_id> ids; // of the rows of x, where there is a table
};

// The largest difference, relative to the largest number of `want`.
inline double relative_error(in<float> got, in<float> want) {
    double most = 0, difference = 0;
    for (idx i = 0; i < want.rows(); ++i)
        for (idx j = 0; j < want.cols(); ++j) {
            most = std::max(most, std::abs(static_cast<double>(want(i, j))));
            const double d = static_cast<double>(got(i, j)) - static_cast<double>(want(i, j));
            difference = std::max(difference, std::isnan(d) ? 1e300 : std::abs(d));
        }
    return difference == 0 ? 0 : most == 0 ? 1e300 : difference / most;
}

// Runs the layer forward and backward; relative errors by tensor.
inline std::map<std::string, double> errors_of(const moe_block& block) {
    const auto& c = block.config;
    const auto x = block.file.view<float>("x"), dy = block.file.view<float>("dy");
    const loaded_moe<moe_params<const float>> weights(block.file, block.model->naming, block.prefix, c);
    const loaded_moe<moe_params<float>> want(block.file, block.model->naming, "grad." + block.prefix, c);
    const owned_params<moe_params<float>> grad(c);
    const moe<float, const float> layer(c, weights.view);
    const auto need = layer.bytes({.max_rows = x.rows()});
    arena workspace(need.workspace), tape(need.tape);
    tensor<float> y(x.rows(), x.cols()), dx(x.rows(), x.cols());
    batch b = batch::one(x.rows());
    b.ids = block.ids;
    layer.forward(b, x, y.view(), &tape, workspace);
    layer.backward(b, x, dy, dx.view(), tape, grad.view, workspace);
    std::map<std::string, double> errors{{"y", relative_error(y.view(), block.file.view<float>("y"))},
                                         {"dx", relative_error(dx.view(), block.file.view<float>("dx"))}};
    each_param(
        [&](const param_name& name, role r, const auto& got, const auto& expected) {
            if (r != role::buffer) errors["d " + name.str()] = relative_error(got, expected);
        },
        grad.view, want.view);
    return errors;
}

} // namespace sluice::test
