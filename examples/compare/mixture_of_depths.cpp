// Every other block sees some of the tokens; the same with a memory before the first, and with experts.
#include "trained_model.hpp"

namespace sluice::examples {

namespace {

template <class Block>
struct depths_of {
    static constexpr bool looks_ahead = true; // in training, which tokens a block takes
    using body = stack<chain<Block, mixture_of_depths<Block>>>;
    static typename body::config_type config(const model_size& s, const purpose& why) {
        const auto one = block_of<Block>(s, s.d_model);
        return {s.layers / 2, {one, {one, routing_of(s, why)}}};
    }
};
using depths = depths_of<transformer_block<float>>;

struct depths_with_memory {
    static constexpr bool looks_ahead = true;
    using body = chain<residual<engram<float>>, depths::body>;
    static body::config_type config(const model_size& s, const purpose& why) {
        return {memory_of(s), depths::config(s, why)};
    }
};

} // namespace

std::unique_ptr<candidate> make_mod(const model_size& size, std::uint64_t seed) {
    return make_trained<depths>(size, seed);
}
std::unique_ptr<candidate> make_mod_engram(const model_size& size, std::uint64_t seed) {
    return make_trained<depths_with_memory>(size, seed);
}
std::unique_ptr<candidate> make_mod_moe(const model_size& size, std::uint64_t seed) {
    return make_trained<depths_of<expert_block>>(size, seed);
}

} // namespace sluice::examples
