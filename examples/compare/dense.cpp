// The dense model, and the same with a memory of n-grams before its second block.
#include "trained_model.hpp"

namespace sluice::examples {

namespace {

struct dense {
    using body = stack<transformer_block<float>>;
    static body::config_type config(const model_size& s, const purpose&) {
        return {s.layers, block_of<transformer_block<float>>(s, s.d_model)};
    }
};

struct dense_with_memory {
    using blocks = stack<transformer_block<float>>;
    using body = chain<blocks, residual<engram<float>>, blocks>;
    static body::config_type config(const model_size& s, const purpose&) {
        const auto block = block_of<transformer_block<float>>(s, s.d_model);
        return {{1, block}, memory_of(s), {s.layers - 1, block}};
    }
};

} // namespace

std::unique_ptr<candidate> make_dense(const model_size& size, std::uint64_t seed) {
    return make_trained<dense>(size, seed);
}
std::unique_ptr<candidate> make_dense_engram(const model_size& size, std::uint64_t seed) {
    return make_trained<dense_with_memory>(size, seed);
}

} // namespace sluice::examples
