// Continues a text with a published model of the shape of LLaMA, or tells the model's perplexity on a file.
// The model is a GGUF file, a folder of config.json, tokenizer.json and safetensors, or a file of quantise.
// Speed is told on stderr.
#include "support/llama_model.hpp"
#include "support/program.hpp"
#include "support/stream.hpp"

#include <sluice/sluice.hpp>

namespace {

using namespace sluice::examples;
using sluice::idx;
namespace io = sluice::io;

struct options {
    std::string model, prompt = "The water of a sluice", text, weights;
    idx tokens = 200, window = 512;
    sluice::sampling_config sampling{.temperature = 0};
    std::uint64_t seed = 1;
    idx threads = 0; // 0: all processors
    bool control = false;
};

void add_options(CLI::App& app, options& o) {
    app.add_option("model", o.model,
                   "a GGUF file, a folder of config.json, tokenizer.json and safetensors, or a file of "
                   "quantise")
        ->required();
    app.add_option("--prompt", o.prompt, "what the text begins with")->capture_default_str();
    app.add_flag("--control", o.control, "find control tokens such as <|im_start|> in the prompt");
    app.add_option("--tokens", o.tokens, "tokens to write")
        ->check(CLI::Range(1, 10'000'000))
        ->capture_default_str();
    app.add_option("--perplexity", o.text, "tell the perplexity on this file instead")
        ->check(CLI::ExistingFile);
    app.add_option("--window", o.window, "tokens of the file that are seen together")
        ->check(CLI::Range(2, 1'000'000))
        ->capture_default_str();
    app.add_option("--weights", o.weights,
                   "what the blocks' matrices are kept in; bf16, or what the file has")
        ->check(CLI::IsMember(llama_storages));
    app.add_option("--temperature", o.sampling.temperature, "0: always the likeliest token")
        ->capture_default_str();
    app.add_option("--top-p", o.sampling.top_p, "draw from the likeliest tokens that together reach p")
        ->capture_default_str();
    app.add_option("--seed", o.seed, "of the draws")->check(CLI::NonNegativeNumber)->capture_default_str();
    app.add_option("--threads", o.threads, "0: all processors; the text does not depend on it")
        ->check(CLI::Range(0, 1024))
        ->capture_default_str();
}

template <class Model>
void run_model(const options& o, const Model& net, const io::tokenizer& words) {
    sluice::thread_pool pool(o.threads > 0 ? o.threads : sluice::thread_pool::default_workers());
    const auto tokens_of = [&](std::string_view text) {
        auto ids = words.encode(text, {o.control ? io::control_tokens::found : io::control_tokens::as_text});
        if (words.adds_bos() && words.bos()) ids.insert(ids.begin(), *words.bos());
        return ids;
    };
    if (!o.text.empty()) {
        const io::file text = io::read(o.text);
        const auto ids = tokens_of({reinterpret_cast<const char*>(text.bytes().data()), text.bytes().size()});
        double result = 0;
        const double seconds = seconds_of([&] { result = perplexity(net, ids, o.window, pool); });
        std::printf("perplexity %.4f over %zu tokens, %td together\n", result, ids.size(), o.window);
        return report_speed("prefill", static_cast<idx>(ids.size()), seconds);
    }
    stream_text(o.prompt, [&](const auto& put) {
        return write_tokens(net, tokens_of(o.prompt), o.tokens, o.sampling, o.seed, pool,
                            [&](sluice::token_id next, const auto&) {
                                return next != words.eos() && put(words.bytes(next));
                            });
    });
}

void run(options& o) {
    sluice::check_sampling(o.sampling);
    if (o.weights.empty()) o.weights = is_saved_llama(o.model) ? saved_storage(o.model) : "bf16";
    with_storage(o.weights, [&]<class S>(S) {
        with_llama<S>(o.model,
                      [&](const auto& net, const io::tokenizer& words) { run_model(o, net, words); });
    });
}

} // namespace

int main(int argc, char** argv) {
    return run_program<options>("llama",
                                "Continues a text with a published model, or tells the model's perplexity.",
                                argc, argv, add_options, run);
}
