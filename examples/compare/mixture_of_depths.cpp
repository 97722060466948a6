// Every other block sees some of the tokens, and the same with a memory before the first.
#include "trained_model.hpp"

namespace sluice::examples {

namespace {

struct depths {
    using block = transformer_block<float>;
    using body = stack<chain<block, mixture_of_depths<block>>>;
    static body::config_type config(const model_size& s, const purpose& why) {
        const auto one = block_of<block>(s, s.d_model);
        return {s.layers / 2, {one, {one, routing_of(s, why)}}};
    }
};

struct depths_with_memory {
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

} // namespace sluice::examples
