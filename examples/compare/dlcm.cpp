// A block over bytes, blocks over concepts, a block over bytes; the same with a memory before the first, and
// with experts among the concepts.
#include "trained_model.hpp"

namespace sluice::examples {

namespace {

template <class Block>
struct concepts_of {
    using outer_blocks = stack<transformer_block<float>>;
    using body = dlcm<outer_blocks, stack<Block>, outer_blocks>;
    static typename body::config_type config(const model_size& s, const purpose& why) {
        const auto outer = block_of<transformer_block<float>>(s, s.d_model);
        const idx heads = outer.attention.n_heads;
        boundary_config boundary{.d_model = s.d_model, .d_scan = s.d_model};
        boundary.loss.ratio = static_cast<double>(s.ratio);
        if (s.fixed_segments) {
            boundary.rule = boundary_rule::every;
            boundary.interval = s.ratio;
        } else if (why.training != nullptr) {
            boundary.forward_by = boundary_choice::sampled;
            boundary.loss.weight = 0.03;
            boundary.loss.counts = &why.training->boundaries;
        } else if (why.share > 0) {
            boundary.loss.ratio = std::max(1 / why.share, 1.001);
        }
        return {.encoder = {1, outer},
                .boundary = boundary,
                .concepts = {.d_model = s.d_model,
                             .d_concept = s.d_concept,
                             .smoothing = concept_smoothing::none},
                .backbone = {s.layers, block_of<Block>(s, s.d_concept)},
                .cross = {.d_model = s.d_model,
                          .d_concept = s.d_concept,
                          .n_heads = heads,
                          .n_kv_heads = heads,
                          .head_dim = s.head_dim},
                .decoder = {1, outer}};
    }
};

using concepts = concepts_of<transformer_block<float>>;

struct concepts_with_memory {
    using body = chain<residual<engram<float>>, concepts::body>;
    static body::config_type config(const model_size& s, const purpose& why) {
        return {memory_of(s), concepts::config(s, why)};
    }
};

} // namespace

std::unique_ptr<candidate> make_dlcm(const model_size& size, std::uint64_t seed) {
    return make_trained<concepts>(size, seed);
}
std::unique_ptr<candidate> make_dlcm_engram(const model_size& size, std::uint64_t seed) {
    return make_trained<concepts_with_memory>(size, seed);
}
std::unique_ptr<candidate> make_dlcm_moe(const model_size& size, std::uint64_t seed) {
    return make_trained<concepts_of<expert_block>>(size, seed);
}

} // namespace sluice::examples
