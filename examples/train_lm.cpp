// Trains a small byte-level transformer on text and writes some. By default the text is the C++ headers of
// the Eigen installation this program was configured with. Stop it with Ctrl-C and go on with --resume.
#include "support/byte_model.hpp"
#include "support/bytes.hpp"
#include "support/corpus.hpp"
#include "support/interrupt.hpp"
#include "support/ngram.hpp"
#include "support/progress.hpp"

#include <sluice/sluice.hpp>

#include <CLI/CLI.hpp>

#include <charconv>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <iostream>

namespace {

using namespace sluice::examples;
using sluice::idx;
using model = byte_model<float>;

struct options {
    std::vector<std::filesystem::path> text;
    idx steps = 6000;
    idx sequences = 2, context = 256;
    idx d_model = 96, layers = 4, head_dim = 32;
    double rate = 4e-3;
    std::uint64_t seed = 1;
    idx threads = 0; // 0: all processors
    std::string checkpoint = "train_lm.safetensors";
    bool resume = false;
    idx stop_after = 0; // steps of this call; 0: to the end
    std::string prompt = "template <";
    idx sample = 400;
    double temperature = 0.7;
};

// Weights, gradient and both moments, and all memory that training takes, made once.
struct trainer {
    using params = sluice::owned_params<model::params_type>;

    trainer(const options& o, const model::config_type& config)
        : weights(config),
          gradient(config),
          means(config),
          squares(config),
          net(config, weights.view),
          pool(o.threads > 0 ? o.threads
                             : static_cast<idx>(std::max(1U, std::thread::hardware_concurrency()))),
          need(net.bytes(
              {.max_rows = std::max(o.sequences, idx{8}) * o.context, .workers = pool.concurrency()})),
          workspace(need.workspace),
          tape(need.tape),
          train(o.sequences, o.context),
          test(8, o.context) {
        sluice::initialise(weights.view, config, sluice::random_source(o.seed));
    }

    // One step; returns the loss in nats.
    double step(text_bytes text, std::uint64_t seed, idx number, const sluice::adamw_config& config) {
        train.draw(text, seed, number);
        sluice::zero(gradient.view);
        const double loss =
            net.loss_and_gradient(train.rows(), train.targets(), gradient.view, tape, workspace, pool);
        sluice::adamw(weights.view, gradient.view, means.view, squares.view, config, number, workspace, pool);
        return loss;
    }

    params weights, gradient, means, squares;
    model net;
    sluice::thread_pool pool;
    sluice::sizes need;
    sluice::arena workspace, tape;
    windows train, test;
};

// What a run has to agree on with the checkpoint it goes on from.
std::vector<std::pair<std::string, std::string>> identity(const options& o, const corpus& text) {
    return {{"steps", std::to_string(o.steps)},
            {"sequences", std::to_string(o.sequences)},
            {"context", std::to_string(o.context)},
            {"d_model", std::to_string(o.d_model)},
            {"layers", std::to_string(o.layers)},
            {"head_dim", std::to_string(o.head_dim)},
            {"rate", CLI::detail::to_string(o.rate)},
            {"seed", std::to_string(o.seed)},
            {"text", std::to_string(fingerprint(text))}};
}

void save(const options& o, const corpus& text, const trainer& t, idx step) {
    sluice::io::safetensors_writer out;
    for (const auto& [key, value] : identity(o, text)) out.metadata(key, value);
    out.metadata("step", std::to_string(step));
    sluice::io::save_params(out, "", t.weights.view);
    sluice::io::save_params(out, "adamw.mean.", t.means.view);
    sluice::io::save_params(out, "adamw.square.", t.squares.view);
    out.save(o.checkpoint);
}

// Reads everything back and returns the step that was done last.
idx load(const options& o, const corpus& text, trainer& t) {
    const sluice::io::safetensors in(sluice::io::read(o.checkpoint));
    auto value = [&](const std::string& key) {
        const auto found = in.metadata().find(key);
        if (found == in.metadata().end())
            throw std::runtime_error("--resume: " + o.checkpoint + " is no checkpoint of this program: no " +
                                     key);
        return found->second;
    };
    for (const auto& [key, wanted] : identity(o, text))
        if (value(key) != wanted)
            throw std::runtime_error("--resume: " + o.checkpoint + " is of another run: " + key + " is " +
                                     value(key) + " there and " + wanted + " here");
    const std::string number = value("step");
    idx step = -1;
    const auto read = std::from_chars(number.data(), number.data() + number.size(), step);
    if (read.ec != std::errc() || read.ptr != number.data() + number.size() || step < 0 || step > o.steps)
        throw std::runtime_error("--resume: " + o.checkpoint + ": \"" + number + "\" is no step of this run");
    sluice::io::load_params(in, "", t.weights.view);
    sluice::io::load_params(in, "adamw.mean.", t.means.view);
    sluice::io::load_params(in, "adamw.square.", t.squares.view);
    return step;
}

double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Trains from `done` to the end or to an interruption; returns the step reached.
idx train(const options& o, const corpus& text, trainer& t, idx done) {
    const sluice::cosine_schedule rate{
        .steps = o.steps, .warm_up = std::max<idx>(o.steps / 25, 1), .peak = o.rate, .last = 0.03 * o.rate};
    constexpr idx probe_windows = 32;
    const idx probe_every = std::max<idx>(o.steps / 20, 1);
    const double bytes_a_step = static_cast<double>(o.sequences * o.context);
    const interrupt_guard guard;
    progress bar(static_cast<std::size_t>(o.steps));
    double loss = std::nan(""), bits = std::nan(""), started = seconds(), probing = 0, saved = started;
    const idx first = done, last = o.stop_after > 0 ? std::min(o.steps, done + o.stop_after) : o.steps;
    while (done < last && !interrupted()) {
        ++done;
        const double now = t.step(text.training, o.seed, done, {.rate = rate(done), .clip = 1});
        loss = std::isnan(loss) ? now : 0.98 * loss + 0.02 * now;
        if (done % probe_every == 0) {
            const double before = seconds();
            bits = held_out_bits(t.net, text.held_out, t.test, probe_windows, t.workspace, t.pool);
            probing += seconds() - before;
        }
        if (seconds() - saved > 60) {
            save(o, text, t, done);
            saved = seconds();
        }
        const double busy = seconds() - started - probing;
        bar.update(static_cast<std::size_t>(done), loss, bits,
                   static_cast<double>(done - first) * bytes_a_step / busy);
    }
    bar.finish();
    save(o, text, t, done);
    return done;
}

void run(const options& o) {
    const corpus text = o.text.empty() ? load_folder(SLUICE_DEFAULT_TEXT_DIR) : load_corpus(o.text);
    std::printf("text: %zu files, %zu bytes to learn, %zu held out (%zu files whole)\n", text.n_files,
                text.training.size(), text.held_out.size(), text.n_held_out_files);
    if (text.training.size() <= static_cast<std::size_t>(o.context))
        throw std::runtime_error("--context: the text is shorter than one window");
    const double counted = ngram_model(text.training).bits_per_byte(text.held_out);

    trainer t(o, make_config(o.d_model, o.layers, o.head_dim));
    std::printf("model: %td parameters in %td layers of width %td; a step of %td bytes is %.2f GFLOP; "
                "%td threads\n\n",
                sluice::counts_by_role(t.weights.view).trained(), o.layers, o.d_model,
                o.sequences * o.context, 1e-9 * sluice::training_flops(t.net, o.sequences, o.context),
                t.pool.concurrency());
    const idx start = o.resume ? load(o, text, t) : 0;
    (void)sluice::io::output(o.checkpoint); // throws now, not after hours, where nothing can be written
    const double begun = seconds();
    const idx done = train(o, text, t, start);
    const double took = seconds() - begun;
    const double flops =
        sluice::training_flops(t.net, o.sequences, o.context) * static_cast<double>(done - start);
    std::printf("%s after step %td of %td: %.0f s, %.0f GFLOP/s; checkpoint: %s\n",
                done < o.steps ? "stopped" : "done", done, o.steps, took,
                took > 0 ? 1e-9 * flops / took : 0.0, o.checkpoint.c_str());
    if (done < o.steps) std::printf("go on with the same options and --resume\n");

    std::string sample = o.prompt;
    write_text(t.net, o.prompt, o.sample, {.temperature = o.temperature}, o.seed, t.pool,
               [&](std::uint8_t byte) {
                   sample += static_cast<char>(byte);
                   return true;
               });
    std::putchar('\n');
    std::fwrite(sample.data(), 1, sample.size(), stdout); // may hold any byte
    std::printf("\n\n");
    const double bits = held_out_bits(t.net, text.held_out, t.test, 0, t.workspace, t.pool);
    if (bits > counted)
        std::printf(
            "A count of 5-byte runs still predicts this text better; more steps (--steps) change that.\n");
    std::printf("held-out: %.2f bits per byte (4-gram counts: %.2f)\n", bits, counted);
}

} // namespace

int main(int argc, char** argv) {
    options o;
    CLI::App app("Trains a small byte-level transformer on text and writes some.");
    app.add_option("--text", o.text, "files to learn (default: the headers of Eigen)");
    app.add_option("--steps", o.steps, "training steps")
        ->check(CLI::Range(1, 100'000'000))
        ->capture_default_str();
    app.add_option("--sequences", o.sequences, "windows in a step")
        ->check(CLI::Range(1, 4096))
        ->capture_default_str();
    app.add_option("--context", o.context, "bytes in a window")
        ->check(CLI::Range(2, 65536))
        ->capture_default_str();
    app.add_option("--d-model", o.d_model, "width")->check(CLI::Range(2, 65536))->capture_default_str();
    app.add_option("--layers", o.layers, "transformer blocks")
        ->check(CLI::Range(1, 1024))
        ->capture_default_str();
    app.add_option("--head-dim", o.head_dim, "width of a head; divides --d-model")
        ->check(CLI::Range(2, 1024))
        ->capture_default_str();
    app.add_option("--rate", o.rate, "peak learning rate")->check(CLI::PositiveNumber)->capture_default_str();
    app.add_option("--seed", o.seed, "of weights, windows and sample")->capture_default_str();
    app.add_option("--threads", o.threads, "0: all processors; the numbers do not depend on it")
        ->check(CLI::Range(0, 1024))
        ->capture_default_str();
    app.add_option("--checkpoint", o.checkpoint, "where the run is kept")->capture_default_str()->take_last();
    app.add_flag("--resume", o.resume, "go on from the checkpoint, bit for bit as if never stopped");
    app.add_option("--stop-after", o.stop_after, "steps to do now, of --steps in all; 0: all")
        ->check(CLI::Range(0, 100'000'000));
    app.add_option("--prompt", o.prompt, "start of the sample")->capture_default_str();
    app.add_option("--sample", o.sample, "bytes to write at the end")
        ->check(CLI::Range(1, 1'000'000))
        ->capture_default_str();
    app.add_option("--temperature", o.temperature, "of the sample; 0: the likeliest byte")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    CLI11_PARSE(app, argc, argv);
    try {
        if (o.d_model % o.head_dim != 0)
            throw std::runtime_error("--head-dim: " + std::to_string(o.head_dim) +
                                     " does not divide --d-model " + std::to_string(o.d_model));
        if (o.prompt.empty()) throw std::runtime_error("--prompt: must not be empty");
        run(o);
    } catch (const std::exception& e) {
        std::fprintf(stderr, "train_lm: %s\n", e.what());
        return 1;
    }
    return 0;
}
