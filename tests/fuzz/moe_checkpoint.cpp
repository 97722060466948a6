// Any bytes as a checkpoint of a mixture of experts. The last ones are the config: whose names, five sizes of
// eight bytes, and what else the config may ask for.
#include "target.hpp"

#include <sluice/io/checkpoints.hpp>

namespace io = sluice::io;
using sluice::idx;

namespace {

template <class P>
void load(const io::safetensors& file, io::moe_naming naming, const sluice::moe_config& config) {
    sluice::arena dry;
    (void)io::load_moe<P>(file, naming, "", config, dry);
    sluice::arena memory(dry.bytes());
    const P weights = io::load_moe<P>(file, naming, "", config, memory);
    SLUICE_FUZZ_CHECK(memory.used() == dry.bytes());
    SLUICE_FUZZ_CHECK(static_cast<idx>(weights.experts.size()) == config.n_experts());
    sluice::each_param(
        [](const sluice::param_name&, sluice::role, const auto& t) {
            for (idx i = 0; i < t.rows(); ++i)
                sluice::test::read_bytes(
                    std::as_bytes(std::span(t.row(i), static_cast<std::size_t>(t.cols()))));
        },
        weights);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    sluice::moe_config config;
    idx* const sizes[] = {&config.d_model, &config.expert.d_ff, &config.router.n_experts, &config.shared_d_ff,
                          &config.router.n_identity};
    if (size < 2 + sizeof(sizes) / sizeof(*sizes) * sizeof(idx)) return 0;
    const unsigned flags = data[--size];
    const auto naming = static_cast<io::moe_naming>(data[--size] % 14);
    for (idx* const n : sizes) {
        size -= sizeof(idx);
        std::memcpy(n, data + size, sizeof(idx));
    }
    config.router_bias = (flags & 1U) != 0;
    config.router.selection_bias = (flags & 2U) != 0;
    config.expert.bias = (flags & 4U) != 0;
    if ((flags & 8U) != 0) config.gate = sluice::shared_gate::sigmoid;
    if ((flags & 16U) != 0) config.expert.kind = sluice::feed_forward_kind::relu;
    if ((flags & 32U) != 0) config.router.choice = sluice::router_choice::hash_table;
    sluice::test::attempt([&] {
        const io::safetensors file = io::from_memory(std::as_bytes(std::span(data, size)), "f");
        if ((flags & 32U) != 0) {
            sluice::arena dry;
            (void)io::load_hash_table(file, naming, "", dry);
            sluice::arena memory(dry.bytes());
            const auto table = io::load_hash_table(file, naming, "", memory);
            sluice::test::read_bytes(
                std::as_bytes(std::span(table.data(), static_cast<std::size_t>(table.size()))));
        }
        if ((flags & 64U) != 0)
            load<sluice::moe_params<const sluice::bf16>>(file, naming, config);
        else
            load<sluice::moe_params<const float>>(file, naming, config);
    });
    return 0;
}
