// Copies of every token, and the same with a memory that all copies of a token share.
#include "trained_model.hpp"

namespace sluice::examples {

namespace {

struct copies {
    using body = phd<float>;
    static body::config_type config(const model_size& s, const purpose&) {
        return {s.copies, {s.layers, block_of<phd_block<float>>(s, s.d_model, s.copies)}};
    }
};

struct copies_with_memory {
    using body = chain<residual<engram<float>>, phd<float>>;
    static body::config_type config(const model_size& s, const purpose& why) {
        return {memory_of(s), copies::config(s, why)};
    }
};

} // namespace

std::unique_ptr<candidate> make_phd(const model_size& size, std::uint64_t seed) {
    return make_trained<copies>(size, seed);
}
std::unique_ptr<candidate> make_phd_engram(const model_size& size, std::uint64_t seed) {
    return make_trained<copies_with_memory>(size, seed);
}

} // namespace sluice::examples
