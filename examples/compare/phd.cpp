// Copies of every token; the same with a memory that all copies of a token share, and with experts.
#include "trained_model.hpp"

namespace sluice::examples {

namespace {

template <class Block>
struct copies_of {
    using body = token_repeat<stack<Block>>;
    static typename body::config_type config(const model_size& s, const purpose&) {
        return {s.copies, {s.layers, block_of<Block>(s, s.d_model, s.copies)}};
    }
};
using copies = copies_of<phd_block<float>>;
using copies_of_experts = copies_of<basic_transformer_block<cswa<float>, moe<float>, norm<float>>>;

struct copies_with_memory {
    using body = chain<residual<engram<float>>, copies::body>;
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
std::unique_ptr<candidate> make_phd_moe(const model_size& size, std::uint64_t seed) {
    return make_trained<copies_of_experts>(size, seed);
}

} // namespace sluice::examples
