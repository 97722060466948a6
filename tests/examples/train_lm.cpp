// Runs the training program: what it prints, that it goes on where it stopped bit for bit, and that it
// refuses bad input with a reason and without damage. Built where the program is.
#include "support/catch.hpp"

#if defined(SLUICE_TRAIN_LM) && !defined(_WIN32)

#    include "support/process.hpp"

#    include <sluice/core/random.hpp>

#    include <algorithm>
#    include <cstdlib>
#    include <regex>

namespace fs = std::filesystem;
using namespace sluice::test;

namespace {

// A folder with some text, and the runs in it.
class workplace {
public:
    workplace() : path_(fs::temp_directory_path() / ("sluice_train_lm_" + std::to_string(::getpid()))) {
        fs::remove_all(path_);
        fs::create_directories(path_);
        std::string text;
        const sluice::random_source numbers(1);
        const std::vector<std::string> words{"keys ", "values ", "rows ", "the ", "of ", "sum\n", "a "};
        for (sluice::idx i = 0; text.size() < 12'000; ++i) text += words[numbers.bits(i) % words.size()];
        put(path_ / "text", text);
    }
    workplace(const workplace&) = delete;
    ~workplace() {
        std::error_code ignored;
        fs::remove_all(path_, ignored);
    }
    std::string operator/(const std::string& name) const { return (path_ / name).string(); }

    // A tiny run; later options replace earlier ones.
    arguments tiny(const arguments& more = {}) const {
        arguments all{"--text",       *this / "text",
                      "--steps",      "12",
                      "--d-model",    "16",
                      "--head-dim",   "8",
                      "--layers",     "1",
                      "--context",    "32",
                      "--sample",     "20",
                      "--threads",    "1",
                      "--checkpoint", *this / "checkpoint"};
        for (std::size_t i = 0; i < more.size(); ++i) {
            const auto known = std::find(all.begin(), all.end(), more[i]);
            if (known == all.end() || i + 1 == more.size())
                all.push_back(more[i]);
            else
                *(known + 1) = more[++i];
        }
        return all;
    }
    outcome run(const arguments& args) const { return process(SLUICE_TRAIN_LM, path_, args).wait(); }
    outcome run_tiny(const arguments& more = {}) const { return run(tiny(more)); }
    outcome done(const arguments& more = {}) const {
        outcome o = run_tiny(more);
        INFO(o.err);
        REQUIRE(o.status == 0);
        return o;
    }
    std::string checkpoint() const { return get(path_ / "checkpoint"); }
    // Names beside the text and what was printed.
    std::vector<std::string> files() const {
        std::vector<std::string> all;
        for (const auto& entry : fs::directory_iterator(path_)) {
            const std::string name = entry.path().filename().string();
            if (name != "text" && name != "out" && name != "err") all.push_back(name);
        }
        std::sort(all.begin(), all.end());
        return all;
    }
    const fs::path& path() const { return path_; }

private:
    fs::path path_;
};

std::string last_line(const std::string& text) {
    if (text.empty() || text.back() != '\n') return "does not end with a line: " + text;
    const auto before = text.find_last_of('\n', text.size() - 2);
    return text.substr(before + 1, text.size() - before - 2);
}

// Whether a run was refused with these words on stderr.
void check_refused(const outcome& o, const std::vector<std::string>& words) {
    CAPTURE(o.err, o.out);
    CHECK(o.status > 0); // no signal
    CHECK(o.status < 126);
    CHECK(o.out.find("held-out:") == std::string::npos);
    for (const auto& word : words) CHECK_THAT(o.err, contains_text(word));
}

void replace(std::string& text, const std::string& from, const std::string& to) {
    REQUIRE(from.size() == to.size());
    const auto at = text.find(from);
    REQUIRE(at != text.npos);
    text.replace(at, from.size(), to);
}

const std::regex& last_line_form() {
    static const std::regex form(R"(held-out: \d+\.\d\d bits per byte \(4-gram counts: \d+\.\d\d\))");
    return form;
}

} // namespace

TEST_CASE("a run prints its figures and a sample", "[examples][train_lm]") {
    const workplace here;
    const outcome o = here.done({"--prompt", "the "});
    CAPTURE(o.out);
    CHECK(std::regex_match(last_line(o.out), last_line_form()));
    CHECK_THAT(o.out, contains_text("text: 1 files, "));
    CHECK_THAT(o.out, contains_text("done after step 12 of 12: "));
    CHECK_THAT(o.err, contains_text("12/12 loss "));
    const auto sample = o.out.find("checkpoint\n\nthe ");
    REQUIRE(sample != o.out.npos);
    CHECK(o.out.compare(sample + 12 + 4 + 20, 2, "\n\n") == 0); // prompt and 20 bytes, whatever they are
    CHECK(here.files() == std::vector<std::string>{"checkpoint"});
}

TEST_CASE("training makes the text likelier", "[examples][train_lm]") {
    const workplace here;
    auto bits = [&](const char* steps) {
        const std::string line = last_line(here.done({"--steps", steps, "--rate", "0.01"}).out);
        REQUIRE(std::regex_match(line, last_line_form()));
        return std::strtod(line.c_str() + 10, nullptr);
    };
    const double before = bits("1"), after = bits("400");
    CHECK((before > 6 && before < 9));
    CHECK(after < before - 3);
}

TEST_CASE("a run that was stopped goes on bit for bit", "[examples][train_lm]") {
    const workplace here;
    const outcome whole = here.done();
    const std::string wanted = here.checkpoint();
    REQUIRE(wanted.size() > 1000);
    fs::remove(here / "checkpoint");

    const outcome first = here.done({"--stop-after", "5"});
    CHECK_THAT(first.out, contains_text("stopped after step 5 of 12: "));
    CHECK_THAT(first.out, contains_text("go on with the same options and --resume"));
    CHECK(std::regex_match(last_line(first.out), last_line_form()));
    CHECK(here.checkpoint() != wanted);
    here.done({"--stop-after", "3", "--resume"});
    CHECK(here.checkpoint() != wanted);
    const outcome last = here.done({"--resume"});
    CHECK_THAT(last.out, contains_text("done after step 12 of 12: "));
    CHECK(here.checkpoint() == wanted);
    CHECK(last_line(last.out) == last_line(whole.out));

    // at its end there is nothing to do, and nothing is changed
    CHECK(last_line(here.done({"--resume"}).out) == last_line(whole.out));
    CHECK(here.checkpoint() == wanted);
    CHECK(here.files() == std::vector<std::string>{"checkpoint"});
}

TEST_CASE("the number of threads and the sample change no weight", "[examples][train_lm]") {
    const workplace here;
    const outcome one = here.done();
    const std::string wanted = here.checkpoint();
    const outcome two = here.done({"--threads", "2"});
    CHECK(here.checkpoint() == wanted);
    CHECK(last_line(two.out) == last_line(one.out));
    here.done({"--threads", "3", "--sample", "7", "--temperature", "0", "--prompt", "x"});
    CHECK(here.checkpoint() == wanted);
    here.done({"--threads", "2", "--stop-after", "4"});
    here.done({"--threads", "1", "--resume"});
    CHECK(here.checkpoint() == wanted);
    here.done({"--seed", "2"});
    CHECK(here.checkpoint() != wanted);
}

TEST_CASE("SIGINT ends a long run in good order", "[examples][train_lm]") {
    const workplace here;
    const arguments endless = here.tiny({"--steps", "1000000"});
    process run(SLUICE_TRAIN_LM, here.path(), endless);
    run.wait_for_handler();
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    run.interrupt();
    const outcome o = run.wait();
    CAPTURE(o.out, o.err);
    REQUIRE(o.status == 0);
    CHECK(std::regex_match(last_line(o.out), last_line_form()));
    CHECK(here.files() == std::vector<std::string>{"checkpoint"});
    std::smatch found;
    REQUIRE(std::regex_search(o.out, found, std::regex(R"(stopped after step (\d+) of 1000000: )")));
    const int step = std::stoi(found[1]);

    // it is what a run stopped there on purpose leaves, and goes on as that does
    const std::string stopped = here.checkpoint();
    if (step > 0) {
        here.done({"--steps", "1000000", "--stop-after", std::to_string(step)});
        CHECK(here.checkpoint() == stopped);
    }
    const outcome next = here.done({"--steps", "1000000", "--stop-after", "3", "--resume"});
    CHECK_THAT(next.out, contains_text("stopped after step " + std::to_string(step + 3) + " of 1000000: "));
    CHECK(here.checkpoint() != stopped);
}

TEST_CASE("text that cannot be learned is refused", "[examples][train_lm]") {
    const workplace here;
    put(here / "empty", "");
    put(here / "short", "too short");
    fs::create_directory(here / "folder");
    check_refused(here.run_tiny({"--text", here / "absent"}), {"--text", "absent", "no such file"});
    check_refused(here.run_tiny({"--text", here / "empty"}), {"--text", "empty", "is empty"});
    check_refused(here.run_tiny({"--text", here / "folder"}),
                  {"--text", "folder", "is a folder, not a file"});
    check_refused(here.run_tiny({"--text", here / "short"}),
                  {"--text", "too little text", "9 training bytes"});
    check_refused(here.run_tiny({"--context", "60000"}), {"--context", "shorter than one window"});
    CHECK(here.files() == std::vector<std::string>{"empty", "folder", "short"});
}

TEST_CASE("options out of range are refused by name", "[examples][train_lm]") {
    const workplace here;
    check_refused(here.run_tiny({"--colour", "red"}), {"--colour"});
    check_refused(here.run_tiny({"stray"}), {"stray"});
    check_refused(here.run_tiny({"--steps", "0"}), {"--steps", "0"});
    check_refused(here.run_tiny({"--steps", "-5"}), {"--steps"});
    check_refused(here.run_tiny({"--steps", "many"}), {"--steps", "many"});
    check_refused(here.run_tiny({"--steps", "99999999999999999999"}), {"--steps"});
    check_refused(here.run_tiny({"--context", "1"}), {"--context"});
    check_refused(here.run_tiny({"--layers", "0"}), {"--layers"});
    check_refused(here.run_tiny({"--threads", "-1"}), {"--threads"});
    check_refused(here.run_tiny({"--rate", "0"}), {"--rate"});
    check_refused(here.run_tiny({"--temperature", "-1"}), {"--temperature"});
    check_refused(here.run_tiny({"--head-dim", "6"}),
                  {"--head-dim", "6", "does not divide", "--d-model", "16"});
    check_refused(here.run_tiny({"--head-dim", "32"}), {"--head-dim", "32", "does not divide"});
    check_refused(here.run_tiny({"--d-model", "9", "--head-dim", "3"}), {"head_dim", "even", "3"});
    check_refused(here.run_tiny({"--prompt", ""}), {"--prompt", "empty"});
    CHECK(here.files().empty());
    const outcome help = here.run({"--help"});
    CHECK(help.status == 0);
    CHECK_THAT(help.out, contains_text("--resume"));
}

TEST_CASE("only the run's own whole checkpoint is gone on from", "[examples][train_lm]") {
    const workplace here;
    const fs::path path = here / "checkpoint";
    // the file is what it was, and nothing is beside it
    auto refused = [&](const std::string& content, const arguments& more,
                       const std::vector<std::string>& words) {
        put(path, content);
        arguments args{"--resume"};
        args.insert(args.begin(), more.begin(), more.end());
        check_refused(here.run_tiny(args), words);
        CHECK(here.checkpoint() == content);
        CHECK(here.files() == std::vector<std::string>{"checkpoint"});
    };
    const std::string name = path.string();
    check_refused(here.run_tiny({"--resume"}), {name, "cannot be opened"});
    CHECK(here.files().empty());
    here.done({"--stop-after", "5"});
    const std::string whole = here.checkpoint();

    SECTION("cut off") {
        for (std::size_t size : {std::size_t{0}, std::size_t{7}, std::size_t{8}, std::size_t{9},
                                 std::size_t{100}, whole.size() / 2, whole.size() - 1})
            refused(whole.substr(0, size), {}, {name, "has", "bytes"});
        refused(whole + '\0', {}, {name, "bytes of data"});
    }
    SECTION("of another run") {
        refused(whole, {"--d-model", "32"}, {name, "another run", "d_model is 16 there and 32 here"});
        refused(whole, {"--layers", "2"}, {name, "another run", "layers is 1 there and 2 here"});
        refused(whole, {"--head-dim", "4"}, {name, "head_dim is 8 there and 4 here"});
        refused(whole, {"--steps", "13"}, {name, "steps is 12 there and 13 here"});
        refused(whole, {"--rate", "0.01"}, {name, "rate is 0.004 there and 0.01 here"});
        refused(whole, {"--seed", "2"}, {name, "seed is 1 there and 2 here"});
        refused(whole, {"--context", "16"}, {name, "context is 32 there and 16 here"});
        refused(whole, {"--sequences", "3"}, {name, "sequences is 2 there and 3 here"});
        put(here / "text", get(here / "text") + "more");
        refused(whole, {}, {name, "another run", "text is"});
    }
    SECTION("of something else") {
        std::string noise;
        const sluice::random_source numbers(3);
        for (sluice::idx i = 0; i < 3000; ++i) noise += static_cast<char>(numbers.bits(i) & 0xFF);
        refused(noise, {}, {name});
        refused("no checkpoint at all, but a line of text\n", {}, {name});
        refused(std::string("\x02\0\0\0\0\0\0\0{}", 10), {}, {name, "no checkpoint of this program"});
        std::string other = whole;
        replace(other, "adamw.mean.norm.scale", "adamw.meen.norm.scale");
        refused(other, {}, {name, "adamw.mean.norm.scale is missing"});
        other = whole;
        replace(other, R"("step":"5")", R"("step":"x")");
        refused(other, {}, {name, "\"x\" is no step"});
        other = whole;
        replace(other, R"("step":"5")", R"("stop":"5")");
        refused(other, {}, {name, "no step"});
    }
}

TEST_CASE("a checkpoint that cannot be written is told before training", "[examples][train_lm]") {
    const workplace here;
    fs::create_directory(here / "folder");
    const outcome folder = here.run_tiny({"--checkpoint", here / "folder"});
    check_refused(folder, {here / "folder", "is not a regular file"});
    CHECK(folder.err.find(" loss ") == std::string::npos);
    check_refused(here.run_tiny({"--checkpoint", here / "absent/checkpoint"}),
                  {here / "absent/checkpoint", "No such file or directory"});
    CHECK(here.files() == std::vector<std::string>{"folder"});
    CHECK(fs::is_empty(here / "folder"));
}

#endif
