// What llama_cpp.py compares, of a GGUF file whose matrices are Q4_1, multiplied as whole numbers:
//   llama_cpp speed <model> <threads>              tokens/s of a prompt of 512 tokens, and of 64 decoded ones
//   llama_cpp perplexity <model> <file> <window>   of the second half of each window, as llama-perplexity
#include "../../examples/support/llama_model.hpp"
#include "../../examples/support/tokens.hpp"

#include <sluice/parallel/thread_pool.hpp>

#include <cstdio>

namespace {

using namespace sluice::examples;
using sluice::idx;
using sluice::token_id;
namespace io = sluice::io;

template <class Model>
void speed(const Model& net, idx threads) {
    sluice::thread_pool pool(threads);
    std::vector<token_id> ids(512);
    for (std::size_t i = 0; i < ids.size(); ++i)
        ids[i] = static_cast<token_id>((i * 7919 + 13) % static_cast<std::size_t>(net.vocabulary()));
    const auto go_on = [](token_id, const auto&) { return true; };
    const std::span<const token_id> one(ids.data(), 1);
    (void)write_tokens(net, one, 8, {.temperature = 0}, 1, pool, go_on); // to be warm
    const writing read = write_tokens(net, ids, 1, {.temperature = 0}, 1, pool, go_on);
    const writing written = write_tokens(net, one, 65, {.temperature = 0}, 1, pool, go_on);
    std::printf("%.9g %.9g\n", static_cast<double>(read.read) / read.read_seconds,
                static_cast<double>(written.decoded) / written.decode_seconds);
}

// Whole windows only; of each, tokens from number window / 2 + 1 on are predicted.
template <class Model>
void perplexity_of_halves(const Model& net, const std::vector<token_id>& ids, idx window) {
    sluice::thread_pool pool(2);
    sluice::arena workspace(net.bytes({.max_rows = window, .workers = 2}).workspace);
    const auto length = static_cast<std::size_t>(window);
    double nats = 0;
    idx windows = 0;
    for (std::size_t at = 0; at + length <= ids.size(); at += length, ++windows) {
        const std::span<const token_id> part(ids.data() + at, length);
        std::vector<token_id> targets(length, sluice::ignored_target);
        std::copy(part.begin() + window / 2 + 1, part.end(), targets.begin() + window / 2);
        nats += net.loss(sluice::batch::one(part), targets, workspace, pool);
    }
    std::printf("%zu %td %.9g\n", ids.size(), windows, std::exp(nats / static_cast<double>(windows)));
}

} // namespace

int main(int argc, char** argv) {
    try {
        const std::string mode = argc > 3 ? argv[1] : "";
        if (mode != "speed" && mode != "perplexity")
            throw std::runtime_error(
                "llama_cpp speed <model> <threads>, or perplexity <model> <file> <window>");
        with_llama<sluice::int4_block_min>(argv[2], [&](const auto& net, const io::tokenizer& words) {
            if (mode == "speed") return speed(net, std::stol(argv[3]));
            const io::file text = io::read(argv[3]);
            perplexity_of_halves(
                net, words.encode({reinterpret_cast<const char*>(text.bytes().data()), text.bytes().size()}),
                argc > 4 ? std::stol(argv[4]) : 512);
        });
    } catch (const std::exception& e) {
        std::fprintf(stderr, "llama_cpp: %s\n", e.what());
        return 2;
    }
    return 0;
}
