// What llama_models.py compares: encodes texts, writes the likeliest tokens, tells logits and perplexity, of
// a GGUF file or a folder of safetensors. Ids come as lines of numbers on stdin.
//   llama_models encode|greedy|perplexity|logits <model> [<n>]
#include "../../examples/support/llama_model.hpp"
#include "../../examples/support/tokens.hpp"

#include <sluice/parallel/thread_pool.hpp>

#include <cstdio>
#include <iostream>
#include <iterator>
#include <sstream>

namespace {

using namespace sluice::examples;
using sluice::idx;
using sluice::token_id;

std::vector<token_id> ids_of(const std::string& text) {
    std::istringstream in(text);
    return {std::istream_iterator<token_id>(in), {}};
}

template <class Words>
void encode(const Words& words, const std::string& text) {
    const auto ids =
        words.encode(text, {sluice::io::control_tokens::found, sluice::io::unknown_bytes::skipped});
    for (const token_id id : ids) std::printf("%d ", id);
    if (words.decode(ids).size() > text.size()) throw std::runtime_error("decoded to more than was encoded");
}

void run(const std::string& mode, const std::string& path, idx n) {
    const std::string input{std::istreambuf_iterator<char>(std::cin), {}};
    with_llama<float>(path, [&](const auto& net, const auto& words) {
        if (mode == "encode") return encode(words, input);
        sluice::thread_pool pool(2);
        const auto ids = ids_of(input);
        if (mode == "perplexity") {
            std::printf("%.9g\n", perplexity(net, ids, n, pool));
        } else if (mode == "greedy") {
            write_tokens(net, ids, n, {.temperature = 0}, 1, pool, [&](token_id next, const auto&) {
                std::printf("%d ", next);
                return true;
            });
        } else if (mode == "logits") {
            sluice::arena workspace(net.bytes({.max_rows = static_cast<idx>(ids.size())}).workspace);
            sluice::tensor<float> logits(static_cast<idx>(ids.size()), net.vocabulary());
            net.forward(sluice::batch::one(ids), logits, workspace);
            for (idx i = 0; i < logits.rows() * logits.cols(); ++i)
                std::printf("%.9g ", static_cast<double>(logits.data()[i]));
        } else {
            throw std::runtime_error("no mode " + mode);
        }
    });
}

} // namespace

int main(int argc, char** argv) {
    try {
        if (argc < 3) throw std::runtime_error("llama_models encode|greedy|perplexity|logits <model> [<n>]");
        run(argv[1], argv[2], argc > 3 ? std::stol(argv[3]) : 0);
    } catch (const std::exception& e) {
        std::fprintf(stderr, "llama_models: %s\n", e.what());
        return 2;
    }
    return 0;
}
