#include "support/catch.hpp"
#include "support/golden.hpp"
#include "support/scratch_folder.hpp"

#if SLUICE_TEST_HAS_JSON
#    include "../../examples/support/llama_model.hpp"

#    include <sluice/core/tensor.hpp>

#    include <cmath>

using namespace sluice::examples;
using namespace sluice::test;
using sluice::arena;
using sluice::idx;
using sluice::tensor;
namespace io = sluice::io;

namespace {

const std::string path = SLUICE_TEST_DIR "/data/llama.gguf";

template <class Model>
tensor<float> logits_of(const Model& net) {
    const auto ids = golden("llama.json")["ids"].get<std::vector<sluice::token_id>>();
    const idx n = static_cast<idx>(ids.size());
    arena workspace(net.bytes({.max_rows = n}).workspace);
    tensor<float> logits(n, net.vocabulary());
    net.forward(sluice::batch::one(ids), logits, workspace);
    return logits;
}
double distance(const tensor<float>& a, const tensor<float>& b) {
    double most = 0;
    for (idx i = 0; i < a.rows(); ++i)
        for (idx j = 0; j < a.cols(); ++j)
            most = std::max(most, static_cast<double>(std::abs(a(i, j) - b(i, j))));
    return most;
}

} // namespace

TEST_CASE("a dense model becomes a mixture of experts that computes the same") {
    with_llama<float>(path, [](const auto& dense, const auto&) {
        const auto want = logits_of(dense);
        for (const idx k : {1, 3}) {
            const auto config = with_experts(dense.config(), 4, k);
            arena dry;
            (void)upcycled<float>(dense.params(), config, 1, dry);
            arena memory(dry.bytes());
            const auto params = upcycled<float>(dense.params(), config, 1, memory);
            const double off = distance(want, logits_of(llama_of_experts<float>(config, params)));
            CHECK(off <= (k == 1 ? 0 : 1e-4));
            // another router would choose other experts; other weights of an expert would be noticed
            CHECK(params.body.layers[0].feed_forward.experts.size() == 4);
            auto changed = params.body.layers[0].feed_forward.experts[0];
            params.body.layers[0].feed_forward.experts[0].w_up = changed.w_gate;
            CHECK(distance(want, logits_of(llama_of_experts<float>(config, params))) > 1e-2);
        }
    });
}

TEST_CASE("one copy of each token is the dense model, bit for bit; two are not") {
    with_llama<float>(path, [](const auto& dense, const auto&) {
        const auto want = logits_of(dense);
        arena dry;
        (void)copied<float>(dense.params(), dry);
        arena memory(dry.bytes());
        const auto params = copied<float>(dense.params(), memory);
        const auto off = [&](idx repeat, idx window) {
            return distance(
                want, logits_of(llama_of_copies<float>(with_copies(dense.config(), repeat, window), params)));
        };
        CHECK(off(1, 16) == 0);
        CHECK(off(1, 0) == 0);
        CHECK(off(2, 2) > 1e-2);
        // Where the window holds the whole text every key is there twice, which no softmax notices.
        CHECK((off(2, 16) > 0 && off(2, 16) < 1e-4));
    });
}

TEST_CASE("a model whose tokens have no rows, and one that is not there") {
    const scratch_folder folder("llama_model");
    const auto open = [](const std::string& at) {
        return complaint([&] { with_llama<float>(at, [](const auto&, const auto&) {}); });
    };
    CHECK_THAT(open(folder / "none.gguf"), contains_text("none.gguf: cannot be opened"));
    CHECK_THAT(open(folder / ""), contains_text("model.safetensors"));
}
#endif
