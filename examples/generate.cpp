// Loads a checkpoint of train_lm and writes text: the prompt is prefilled at once, then each byte is decoded
// from the cache and printed. Ctrl-C ends the text. Speed is told on stderr.
#include "support/byte_model.hpp"
#include "support/bytes.hpp"
#include "support/program.hpp"
#include "support/stream.hpp"

#include <sluice/sluice.hpp>

namespace {

using namespace sluice::examples;
using sluice::idx;

struct options {
    std::string checkpoint = "train_lm.safetensors", prompt = "template <";
    idx bytes = 400;
    sluice::sampling_config sampling{.temperature = 0.7};
    std::uint64_t seed = 1;
    idx threads = 0; // 0: all processors
    bool map = false;
};

void add_options(CLI::App& app, options& o) {
    app.add_option("checkpoint", o.checkpoint, "a file of train_lm, or an index of several (.json)")
        ->capture_default_str();
    app.add_option("--prompt", o.prompt, "what the text begins with")->capture_default_str();
    app.add_option("--bytes", o.bytes, "bytes to write")
        ->check(CLI::Range(1, 10'000'000))
        ->capture_default_str();
    app.add_option("--temperature", o.sampling.temperature, "0: always the likeliest byte")
        ->capture_default_str();
    app.add_option("--top-k", o.sampling.top_k, "draw from the k likeliest bytes; 0: from all")
        ->capture_default_str();
    app.add_option("--top-p", o.sampling.top_p, "draw from the likeliest bytes that together reach p")
        ->capture_default_str();
    app.add_option("--seed", o.seed, "of the draws")->check(CLI::NonNegativeNumber)->capture_default_str();
    app.add_option("--threads", o.threads, "0: all processors; the text does not depend on it")
        ->check(CLI::Range(0, 1024))
        ->capture_default_str();
    app.add_flag("--map", o.map, "map the file instead of reading it");
}

void run(const options& o) {
    namespace io = sluice::io;
    if (o.prompt.empty()) throw std::runtime_error("--prompt: must not be empty");
    sluice::check_sampling(o.sampling);
    auto file = o.map ? io::map_tensors(o.checkpoint) : io::read_tensors(o.checkpoint);
    file.prefetch();
    file.copy_misaligned();
    const byte_model_config config = config_of(file);
    const io::bound_params<byte_model<const float>::params_type> weights(file, "", config);

    // One row at a time reads every weight: in the order of the reading that takes half the time.
    using model = byte_model<sluice::packed<float>, const float>;
    using packed_body = model::params_type;
    using body_params = decltype(packed_body::body);
    sluice::arena counted;
    (void)sluice::pack_params<body_params>(weights.view.body, config.body, counted);
    sluice::arena memory(counted.bytes());
    const model::params_type packed{weights.view.embedding,
                                    sluice::pack_params<body_params>(weights.view.body, config.body, memory),
                                    weights.view.norm};
    const model net(config, packed);

    sluice::thread_pool pool(o.threads > 0 ? o.threads : sluice::thread_pool::default_workers());
    stream_text(o.prompt, [&](const auto& put) {
        return write_text(net, o.prompt, o.bytes, o.sampling, o.seed, pool, [&](std::uint8_t byte) {
            const char c = static_cast<char>(byte);
            return put({&c, 1});
        });
    });
}

} // namespace

int main(int argc, char** argv) {
    return run_program<options>("generate", "Continues a prompt with a model that train_lm trained.", argc,
                                argv, add_options, run);
}
