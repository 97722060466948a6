// Trains a small byte-level transformer on text and writes some. By default the text is the C++ headers of
// the Eigen installation this program was configured with. Stop it with Ctrl-C and go on with --resume.
#include "support/byte_trainer.hpp"
#include "support/interrupt.hpp"
#include "support/ngram.hpp"
#include "support/program.hpp"
#include "support/progress.hpp"
#include "support/tokens.hpp"

#include <sluice/sluice.hpp>

#include <cstdio>

namespace {

using namespace sluice::examples;
using sluice::idx;

struct options {
    std::vector<std::filesystem::path> text;
    byte_run run{};
    idx threads = 0; // 0: all processors
    std::string checkpoint = "train_lm.safetensors";
    bool resume = false;
    idx stop_after = 0; // steps of this call; 0: to the end
    std::string prompt = "template <";
    idx sample = 400;
    double temperature = 0.7;
};

// Trains from `done` to the end or to an interruption; returns the step reached.
idx train(const options& o, const corpus& text, byte_trainer& t, idx done) {
    const byte_run& r = o.run;
    const sluice::cosine_schedule rate{
        .steps = r.steps, .warm_up = std::max<idx>(r.steps / 25, 1), .peak = r.rate, .last = 0.03 * r.rate};
    const idx probe_every = std::max<idx>(r.steps / 20, 1);
    const interrupt_guard guard;
    progress bar(static_cast<std::size_t>(r.steps));
    double loss = std::nan(""), bits = std::nan(""), busy = 0, unsaved = 0;
    const idx first = done, last = o.stop_after > 0 ? std::min(r.steps, done + o.stop_after) : r.steps;
    while (done < last && !interrupted()) {
        ++done;
        double now = 0;
        const double took = seconds_of([&] { now = t.step(text.training, done, rate(done)); });
        busy += took;
        loss = std::isnan(loss) ? now : 0.98 * loss + 0.02 * now;
        if (done % probe_every == 0) bits = t.bits(text.held_out, 32);
        if ((unsaved += took) > 60) {
            t.save(o.checkpoint, text, done);
            unsaved = 0;
        }
        bar.update(static_cast<std::size_t>(done), loss, bits,
                   static_cast<double>((done - first) * r.sequences * r.context) / busy);
    }
    bar.finish();
    t.save(o.checkpoint, text, done);
    return done;
}

void run(const options& o) {
    if (o.prompt.empty()) throw std::runtime_error("--prompt: must not be empty");
    const byte_run& r = o.run;
    const corpus text = o.text.empty() ? load_folder(SLUICE_DEFAULT_TEXT_DIR) : load_corpus(o.text);
    std::printf("text: %zu files, %zu bytes to learn, %zu held out (%zu files whole)\n", text.n_files,
                text.training.size(), text.held_out.size(), text.n_held_out_files);
    if (text.training.size() <= static_cast<std::size_t>(r.context))
        throw std::runtime_error("--context: the text is shorter than one window");
    const double counted = ngram_model(text.training).bits_per_byte(text.held_out);

    byte_trainer t(r, o.threads);
    std::printf("model: %td parameters in %td layers of width %td; a step of %td bytes is %.2f GFLOP; "
                "%td threads\n\n",
                sluice::counts_by_role(t.weights()).trained(), r.layers, r.d_model, r.sequences * r.context,
                1e-9 * t.step_flops(), t.executor().concurrency());
    const idx start = o.resume ? t.load(o.checkpoint, text) : 0;
    (void)sluice::io::output(o.checkpoint); // throws now, not after hours, where nothing can be written
    idx done = start;
    const double took = seconds_of([&] { done = train(o, text, t, start); });
    const double flops = t.step_flops() * static_cast<double>(done - start);
    std::printf("%s after step %td of %td: %.0f s, %.0f GFLOP/s; checkpoint: %s\n",
                done < r.steps ? "stopped" : "done", done, r.steps, took,
                took > 0 ? 1e-9 * flops / took : 0.0, o.checkpoint.c_str());
    if (done < r.steps) std::printf("go on with the same options and --resume\n");

    std::printf("\n%s", o.prompt.c_str());
    write_text(t.net(), o.prompt, o.sample, {.temperature = o.temperature}, r.seed, t.executor(),
               [](std::uint8_t byte) { return std::putchar(byte) != EOF; }); // may be any
    std::printf("\n\n");
    const double bits = t.bits(text.held_out, 0);
    if (bits > counted)
        std::printf(
            "A count of 5-byte runs still predicts this text better; more steps (--steps) change that.\n");
    std::printf("held-out: %.2f bits per byte (4-gram counts: %.2f)\n", bits, counted);
}

void add_options(CLI::App& app, options& o) {
    byte_run& r = o.run;
    auto whole = [&](const char* name, idx& value, idx least, idx most, const char* what) {
        app.add_option(name, value, what)->check(CLI::Range(least, most))->capture_default_str();
    };
    app.add_option("--text", o.text, "files to learn (default: the headers of Eigen)");
    whole("--steps", r.steps, 1, 100'000'000, "training steps");
    whole("--sequences", r.sequences, 1, 4096, "windows in a step");
    whole("--context", r.context, 2, 65536, "bytes in a window");
    whole("--d-model", r.d_model, 2, 65536, "width");
    whole("--layers", r.layers, 1, 1024, "transformer blocks");
    whole("--head-dim", r.head_dim, 2, 1024, "width of a head; divides --d-model");
    app.add_option("--rate", r.rate, "peak learning rate")->check(CLI::PositiveNumber)->capture_default_str();
    app.add_option("--seed", r.seed, "of weights, windows and sample")->capture_default_str();
    whole("--threads", o.threads, 0, 1024, "0: all processors; the numbers do not depend on it");
    app.add_option("--checkpoint", o.checkpoint, "where the run is kept")->capture_default_str()->take_last();
    app.add_flag("--resume", o.resume, "go on from the checkpoint, bit for bit as if never stopped");
    whole("--stop-after", o.stop_after, 0, 100'000'000, "steps to do now, of --steps in all; 0: all");
    app.add_option("--prompt", o.prompt, "start of the sample")->capture_default_str();
    whole("--sample", o.sample, 1, 1'000'000, "bytes to write at the end");
    app.add_option("--temperature", o.temperature, "of the sample; 0: the likeliest byte")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
}

} // namespace

int main(int argc, char** argv) {
    return run_program<options>("train_lm", "Trains a small byte-level transformer on text and writes some.",
                                argc, argv, add_options, run);
}
