// The C++ side of moe_blocks.py: loads each of the files given by the names of its model, runs the layer
// forward and backward, and compares. Where the same weights lie beside it under the names of modules in
// memory, or in eight bits, they must be the same here as well.
#include "moe_block.hpp"

#include <cstdio>
#include <filesystem>

namespace {

using namespace sluice::test;
namespace io = sluice::io;
using sluice::idx;

// Of float; the largest that was seen with transformers 5.23 is in README.md.
constexpr double bound = 2e-6;

bool same_weights(const moe_block& block, const std::string& path) {
    const io::safetensors other = io::read(path);
    using params = sluice::moe_params<const float>;
    const loaded_moe<params> a(block.file, block.model->naming, block.prefix, block.config);
    const loaded_moe<params> b(other, block.model->naming, block.prefix, block.config);
    bool same = true;
    each_param(
        [&](const sluice::param_name&, sluice::role, const auto& t, const auto& u) {
            for (idx i = 0; i < t.rows(); ++i)
                for (idx j = 0; j < t.cols(); ++j) same = same && t(i, j) == u(i, j);
        },
        a.view, b.view);
    return same;
}

// "d experts.3.w_up" as "d experts.w_up".
std::string kind_of(std::string name) {
    const auto at = name.find_first_of("0123456789");
    if (at != std::string::npos) name.erase(at, name.find('.', at) + 1 - at);
    return name;
}

} // namespace

int main(int count, char** arguments) {
    std::map<std::string, double> largest;
    std::string model;
    bool good = count > 1;
    for (const std::string& path : std::vector<std::string>(arguments + 1, arguments + count)) {
        const moe_block block(io::read(path));
        model = block.model->name;
        for (const auto& [name, error] : errors_of(block)) {
            double& most = largest[kind_of(name)];
            most = std::max(most, error);
            if (error > bound)
                std::printf("%s: %s is off by %.2g\n", path.c_str(), name.c_str(), error), good = false;
        }
        for (const char* other : {".memory.safetensors", ".fp8.safetensors"}) {
            const auto beside = std::filesystem::path(path).replace_extension(other);
            if (exists(beside) && !same_weights(block, beside.string()))
                std::printf("%s: other weights\n", beside.c_str()), good = false;
        }
    }
    double most = 0;
    std::printf("%s:", model.c_str());
    for (const auto& [name, error] : largest)
        std::printf(" %s %.1e", name.c_str(), error), most = std::max(most, error);
    std::printf("; largest %.1e of %d cases\n", most, count - 1);
    return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
