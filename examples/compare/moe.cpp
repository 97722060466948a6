// Blocks whose feed-forward is a mixture of experts, and the same with a memory before the second.
#include "trained_model.hpp"

namespace sluice::examples {

namespace {

struct experts {
    using body = stack<expert_block>;
    static body::config_type config(const model_size& s, const purpose&) {
        return {s.layers, block_of<expert_block>(s, s.d_model)};
    }
};

struct experts_with_memory {
    using body = chain<stack<expert_block>, residual<engram<float>>, stack<expert_block>>;
    static body::config_type config(const model_size& s, const purpose&) {
        const auto block = block_of<expert_block>(s, s.d_model);
        return {{1, block}, memory_of(s), {s.layers - 1, block}};
    }
};

} // namespace

std::unique_ptr<candidate> make_moe(const model_size& size, std::uint64_t seed) {
    return make_trained<experts>(size, seed);
}
std::unique_ptr<candidate> make_moe_engram(const model_size& size, std::uint64_t seed) {
    return make_trained<experts_with_memory>(size, seed);
}

} // namespace sluice::examples
