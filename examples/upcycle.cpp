// Makes a published model of the shape of LLaMA into two other models that compute the same at the start: one
// with a mixture of experts for each feed-forward, and one with copies of each token, of which there is one.
// From there they can be trained. The weights are views of the dense model's. Ends with an error where a
// model differs.
#include "support/llama_model.hpp"
#include "support/program.hpp"

#include <sluice/core/tensor.hpp>
#include <sluice/parallel/thread_pool.hpp>

#include <cmath>
#include <cstdio>

namespace {

using namespace sluice::examples;
using sluice::arena;
using sluice::idx;
using sluice::tensor;
namespace io = sluice::io;

struct options {
    std::string model, prompt = "A sluice is a gate that routes a flow of water.";
    idx experts = 8, top_k = 2;
    std::uint64_t seed = 1;
};

template <class Model>
tensor<float> logits_of(const Model& net, const std::vector<sluice::token_id>& ids, sluice::executor_ref ex) {
    const idx n = static_cast<idx>(ids.size());
    arena workspace(net.bytes({.max_rows = n, .workers = ex.concurrency()}).workspace);
    tensor<float> logits(n, net.vocabulary());
    net.forward(sluice::batch::one(ids), logits, workspace, ex);
    return logits;
}

// The largest difference, in parts of the largest logit.
double distance(const tensor<float>& a, const tensor<float>& b) {
    float most = 0, size = 0;
    for (idx i = 0; i < a.rows(); ++i)
        for (idx j = 0; j < a.cols(); ++j) {
            most = std::max(most, std::abs(a(i, j) - b(i, j)));
            size = std::max(size, std::abs(a(i, j)));
        }
    return static_cast<double>(most) / static_cast<double>(size);
}

void run(const options& o) {
    using storage = sluice::bf16;
    with_llama<storage>(o.model, [&](const auto& dense, const io::tokenizer& words) {
        sluice::thread_pool pool;
        const auto ids = words.encode(o.prompt);
        const auto want = logits_of(dense, ids, pool);

        arena counted;
        const auto mixture = with_experts(dense.config(), o.experts, o.top_k);
        (void)upcycled<storage>(dense.params(), mixture, o.seed, counted);
        arena routers(counted.bytes());
        const llama_of_experts<storage> experts(mixture,
                                                upcycled<storage>(dense.params(), mixture, o.seed, routers));
        const double off = distance(want, logits_of(experts, ids, pool));
        std::printf("%td experts, %td a token: %.1fM parameters where %.1fM were, logits differ by %.1e\n",
                    o.experts, o.top_k, static_cast<double>(count_params(experts.params())) / 1e6,
                    static_cast<double>(count_params(dense.params())) / 1e6, off);

        arena views_counted;
        (void)copied<storage>(dense.params(), views_counted);
        arena views(views_counted.bytes());
        const auto copied_params = copied<storage>(dense.params(), views);
        // A window shorter than the text: where all keys are there twice, softmax does not notice.
        const llama_of_copies<storage> one(with_copies(dense.config(), 1, 4), copied_params);
        const llama_of_copies<storage> two(with_copies(dense.config(), 2, 4), copied_params);
        const double same = distance(want, logits_of(one, ids, pool)),
                     other = distance(want, logits_of(two, ids, pool));
        std::printf("1 copy of each token: logits differ by %.1e; untrained, 2 copies by %.1e\n", same,
                    other);
        if (off > 1e-4 || same != 0) throw std::runtime_error("a model does not start as the dense one");
    });
}

void add_options(CLI::App& app, options& o) {
    app.add_option("model", o.model,
                   "a GGUF file, or a folder of config.json, tokenizer.json and safetensors")
        ->required();
    app.add_option("--prompt", o.prompt, "what the models are compared on")->capture_default_str();
    app.add_option("--experts", o.experts, "for each feed-forward")
        ->check(CLI::Range(1, 1024))
        ->capture_default_str();
    app.add_option("--top-k", o.top_k, "experts of a token")
        ->check(CLI::Range(1, 1024))
        ->capture_default_str();
    app.add_option("--seed", o.seed, "of the routers")->check(CLI::NonNegativeNumber)->capture_default_str();
}

} // namespace

int main(int argc, char** argv) {
    return run_program<options>("upcycle",
                                "Makes a dense model into a mixture of experts and into one with copies of "
                                "tokens, and compares them.",
                                argc, argv, add_options, run);
}
