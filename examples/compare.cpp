// Which of these techniques pays off on a text, at a budget? Trains small models of bytes on the same text in
// the same order, and prints what each of them cost and reached. Stop it with Ctrl-C; go on with --resume.
#include "compare/budget.hpp"
#include "compare/page.hpp"
#include "compare/table.hpp"
#include "support/program.hpp"

namespace {

using namespace sluice::examples;
using sluice::idx;

struct options {
    std::vector<std::filesystem::path> text;
    std::string tokenizer; // empty: bytes
    idx vocabulary = 4096; // units of a tokenizer
    contest who{};
    budget_options budget{};
    race_options race{};
    std::string size = "64x4", report, picture;
    idx sample = 200, decoded = 128;
    std::string prompt;
    bool study = false;
};

// What --study sets, where an option of its own does not.
void widen(const CLI::App& app, options& o) {
    auto open = [&](const char* name) { return app.count(name) == 0; };
    if (open("--seeds")) o.who.seeds = 3;
    if (open("--steps")) o.budget.steps = 4000;
    if (open("--with")) o.who.with = {"engram", "moe"};
    if (open("--models")) o.who.models = {"dense", "phd", "phd3", "moe", "mod", "engram", "dlcm"};
    o.who.controls = o.who.sweep = true;
}

std::string identity(const options& o, const corpus& text) {
    const auto& s = o.who.size;
    const std::string units = o.tokenizer.empty() ? "bytes" : std::to_string(s.vocabulary) + " tokens";
    return "text " + std::to_string(fingerprint(text)) + " in " + units + ", size " + o.size + ", context " +
           std::to_string(s.context) + ", sequences " + std::to_string(s.sequences) + ", steps " +
           std::to_string(o.budget.steps) + " by " + o.budget.by + ", rate " +
           CLI::detail::to_string(o.race.rate);
}

void run(options& o) {
    const corpus bytes = o.text.empty() ? load_folder(SLUICE_DEFAULT_TEXT_DIR) : load_corpus(o.text);
    std::printf("text: %zu files, %zu bytes to learn, %zu held out\n", bytes.n_files, bytes.training.size(),
                bytes.held_out.size());
    const unit_text text(bytes,
                         o.tokenizer.empty() ? units() : units(o.tokenizer, o.vocabulary, bytes.training));
    auto& size = o.who.size;
    size.vocabulary = text.unit.size();
    size.compressed = text.unit.compressed();
    size.compressed_size = text.unit.compressed_size();
    if (!o.tokenizer.empty()) {
        size.n_gram = 3; // of tokens as long as these
        std::printf("%td units of %.2f bytes, %td for the memory\n", size.vocabulary, text.bytes_a_unit,
                    size.compressed_size);
    }
    const auto window = static_cast<std::size_t>(size.context);
    if (text.training.size() <= window || text.held_out.size() < 2)
        throw std::runtime_error("--context: the text is shorter than one window");
    o.race.identity = identity(o, bytes);
    if (!o.race.folder.empty()) std::filesystem::create_directories(o.race.folder);
    const interrupt_guard guard;
    auto all = contestants(o.who);
    set_steps(all, o.budget, size, text);
    auto results = race(all, o.race, text);

    const auto start = std::span(text.held_out).first(std::min(window, text.held_out.size()));
    const auto given = text.unit.encode(o.prompt);
    const auto prompt = given.empty() ? start.first(start.size() / 4 + 1) : std::span(given);
    for (auto& r : results) {
        if (o.decoded > 0) r.speeds = r.model->speeds(start, o.decoded);
        if (o.sample > 0)
            r.sample = text.unit.decode(prompt) + text.unit.decode(r.model->text(prompt, o.sample, 1));
    }
    for (const auto& r : results)
        if (!r.sample.empty() && r.who.seed == o.who.first_seed)
            std::printf("\n--- %s ---\n%s\n", r.who.name.c_str(), r.sample.c_str());
    std::printf("\n");
    print_table(results);
    std::printf("\n");
    for (const auto& line : findings(results)) std::printf("%s\n", line.c_str());
    if (!o.report.empty()) {
        write_page(o.report, results, o.race.identity);
        std::printf("page: %s\n", o.report.c_str());
    }
    if (!o.picture.empty()) write_picture(o.picture, results);
    const auto finished =
        std::count_if(results.begin(), results.end(), [](const auto& r) { return r.finished(); });
    if (static_cast<std::size_t>(finished) < all.size() && !o.race.folder.empty())
        std::printf("stopped; go on with the same options and --resume\n");
}

void add_options(CLI::App& app, options& o) {
    app.add_option("--text", o.text, "files to learn (default: the headers of Eigen)");
    app.add_option("--tokenizer", o.tokenizer,
                   "a tokenizer.json or GGUF file: models read its tokens, not bytes")
        ->check(CLI::ExistingFile);
    app.add_option("--vocabulary", o.vocabulary,
                   "the tokenizer's most frequent tokens that are kept, and bytes")
        ->check(CLI::Range(257, 1'000'000))
        ->capture_default_str();
    app.add_option("--size", o.size, "width and layers of the dense model")->capture_default_str();
    app.add_option("--context", o.who.size.context, "bytes or tokens in a window")
        ->check(CLI::Range(8, 65536))
        ->capture_default_str();
    app.add_option("--sequences", o.who.size.sequences, "windows in a step")
        ->check(CLI::Range(1, 4096))
        ->capture_default_str();
    app.add_option("--steps", o.budget.steps,
                   "training steps of the dense model, from which the others follow")
        ->check(CLI::Range(1, 100'000'000))
        ->capture_default_str();
    app.add_option("--budget", o.budget.by, "what all models have alike")
        ->check(CLI::IsMember({"flops", "time", "tokens", "params"}))
        ->capture_default_str();
    app.add_option("--models", o.who.models, "those to train")->delimiter(',')->capture_default_str();
    app.add_option("--with", o.who.with, "parts to put together in one more model")->delimiter(',');
    app.add_flag("--controls", o.who.controls,
                 "also models without what a technique is about, and some at equal text");
    app.add_flag("--study", o.study,
                 "three seeds, more steps, controls, and a sweep from experts to a table; up to an hour");
    app.add_option("--seeds", o.who.seeds, "runs of each model")
        ->check(CLI::Range(1, 1000))
        ->capture_default_str();
    app.add_option("--seed", o.who.first_seed, "of the first run")->capture_default_str();
    app.add_option("--rate", o.race.rate, "peak learning rate")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    app.add_option("--judged", o.race.judged, "held-out windows at the end; 0: all")
        ->check(CLI::Range(0, 100'000'000))
        ->capture_default_str();
    app.add_option("--decoded", o.decoded, "bytes or tokens to decode for a speed; 0: none")
        ->check(CLI::Range(0, 1'000'000))
        ->capture_default_str();
    app.add_option("--sample", o.sample, "bytes or tokens that each model writes")
        ->check(CLI::Range(0, 1'000'000))
        ->capture_default_str();
    app.add_option("--prompt", o.prompt, "start of the samples (default: of the held-out text)");
    app.add_option("--jobs", o.race.workers, "models trained side by side")
        ->check(CLI::Range(1, 1024))
        ->capture_default_str();
    app.add_option("--folder", o.race.folder, "where runs are kept (default: nowhere)")->take_last();
    app.add_flag("--resume", o.race.resume, "go on from what the folder holds");
    app.add_option("--stop-after", o.race.stop_after, "steps of each model to do now; 0: all")
        ->check(CLI::Range(0, 100'000'000));
    app.add_option("--report", o.report, "a page of the results (HTML)")->take_last();
    app.add_option("--picture", o.picture, "its two main charts (SVG)")->take_last();
    app.callback([&] {
        if (o.study) widen(app, o);
        const auto given = o.who.size;
        o.who.size = size_from(o.size);
        o.who.size.context = given.context, o.who.size.sequences = given.sequences;
        if (o.race.resume && o.race.folder.empty())
            throw std::runtime_error("--resume: needs the --folder where the runs are kept");
    });
}

} // namespace

int main(int argc, char** argv) {
    return run_program<options>("compare",
                                "Compares techniques for efficient transformers on a text, at a budget.",
                                argc, argv, add_options, run);
}
