// Runs the program that writes text: what it prints, that its text depends on the seed alone, and that it
// refuses bad arguments and checkpoints in one line. Built where the program and the one that trains are.
#include "support/catch.hpp"

#if defined(SLUICE_TRAIN_LM) && defined(SLUICE_GENERATE) && !defined(_WIN32)

#    include "support/process.hpp"

#    include <sluice/io/safetensors_writer.hpp>

#    include <regex>

namespace fs = std::filesystem;
namespace io = sluice::io;
using namespace sluice::test;

namespace {

// A folder with a tiny checkpoint.
class workplace {
public:
    workplace() : folder_("generate") {
        std::string text;
        for (int i = 0; text.size() < 12'000; ++i) text += std::to_string(i * i) + " the\n";
        put(folder_ / "text", text);
        const outcome o = process(SLUICE_TRAIN_LM, folder_ / "",
                                  {"--text", folder_ / "text", "--steps", "12", "--d-model", "16",
                                   "--head-dim", "8", "--layers", "2", "--context", "32", "--sample", "1",
                                   "--threads", "1", "--checkpoint", checkpoint()})
                              .wait();
        INFO(o.err);
        REQUIRE(o.status == 0);
    }
    std::string checkpoint() const { return folder_ / "checkpoint"; }
    std::string operator/(const std::string& name) const { return folder_ / name; }

    outcome run(const arguments& args) const { return process(SLUICE_GENERATE, folder_ / "", args).wait(); }
    // With the checkpoint and one thread.
    outcome write(const arguments& more = {}) const {
        arguments all{checkpoint(), "--threads", "1"};
        all.insert(all.end(), more.begin(), more.end());
        return run(all);
    }
    std::string text(const arguments& more = {}) const {
        const outcome o = write(more);
        INFO(o.err);
        REQUIRE(o.status == 0);
        return o.out;
    }

private:
    scratch_folder folder_;
};

// Status 2, nothing written, and one line with these words.
void check_refused(const outcome& o, const std::vector<std::string>& words) {
    CAPTURE(o.err, o.out);
    CHECK(o.status == 2);
    CHECK(o.out.empty());
    CHECK(o.err.substr(0, 10) == "generate: ");
    CHECK(o.err.find('\n') == o.err.size() - 1);
    for (const auto& word : words) CHECK_THAT(o.err, contains_text(word));
}

void replace(std::string& text, const std::string& from, const std::string& to) {
    REQUIRE(from.size() == to.size());
    const auto at = text.find(from);
    REQUIRE(at != text.npos);
    text.replace(at, from.size(), to);
}

} // namespace

TEST_CASE("a text begins with the prompt and has the length asked for", "[examples][generate]") {
    const workplace here;
    const outcome o = here.write({"--prompt", "the ", "--bytes", "50"});
    CAPTURE(o.out, o.err);
    REQUIRE(o.status == 0);
    CHECK(o.out.substr(0, 4) == "the ");
    CHECK(o.out.size() == 4 + 50 + 1);
    CHECK(o.out.back() == '\n');
    CHECK(std::regex_match(
        o.err, std::regex("prefill: 4 tokens, [0-9.]+ tokens/s\ndecode: 49 tokens, [0-9.]+ tokens/s\n")));
    CHECK(here.text({"--bytes", "1"}).size() == 10 + 1 + 1);
}

TEST_CASE("the same seed writes the same text whatever threads and file", "[examples][generate]") {
    const workplace here;
    const std::string text = here.text();
    CHECK(here.text() == text);
    CHECK(here.text({"--map"}) == text);
    CHECK(here.text({"--seed", "2"}) != text);
    CHECK(here.text({"--bytes", "20"}) == text.substr(0, 30) + "\n");
    CHECK(here.run({here.checkpoint(), "--threads", "3"}).out == text);

    // in two files with an index
    const io::safetensors whole = io::read(here.checkpoint());
    io::safetensors_writer first, second;
    std::string map;
    for (const auto& [key, value] : whole.metadata()) second.metadata(key, value);
    for (const auto& [name, t] : whole.tensors()) {
        const bool odd = map.size() % 2 == 1;
        (odd ? first : second).add_bytes(name, t.type, t.shape, t.bytes);
        map += (map.empty() ? "\"" : ",\"") + name + "\":\"" + (odd ? "first" : "second") + "\"";
    }
    first.save(here / "first");
    second.save(here / "second");
    REQUIRE(io::safetensors(io::read(here / "first")).tensors().size() > 3);
    put(here / "index.json", R"({"weight_map":{)" + map + "}}");
    for (const std::string flag : {"--threads", "--map"}) {
        arguments args{here / "index.json", flag};
        if (flag == "--threads") args.push_back("1");
        CHECK(here.run(args).out == text);
    }
}

TEST_CASE("settings of the draws change the text", "[examples][generate]") {
    const workplace here;
    const std::string greedy = here.text({"--temperature", "0"});
    CHECK(here.text({"--temperature", "0", "--seed", "9"}) == greedy);
    CHECK(here.text({"--top-k", "1", "--seed", "5"}) == greedy);
    CHECK(here.text({"--top-p", "1e-9", "--seed", "6"}) == greedy);
    const std::string usual = here.text();
    CHECK(usual != greedy);
    CHECK(here.text({"--top-k", "256"}) == usual);
    CHECK(here.text({"--top-p", "1"}) == usual);
    CHECK(here.text({"--top-k", "3"}) != usual);
    CHECK(here.text({"--top-p", "0.3"}) != usual);
    CHECK(here.text({"--temperature", "5"}) != usual);
}

TEST_CASE("an interrupted text ends with a line and its figures", "[examples][generate]") {
    const workplace here;
    process run(SLUICE_GENERATE, here / "", {here.checkpoint(), "--threads", "1", "--bytes", "100000"});
    run.wait_for_handler();
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    run.interrupt();
    const outcome o = run.wait();
    CAPTURE(o.err);
    CHECK(o.status == 0);
    CHECK(o.out.size() >= 10);
    CHECK(o.out.size() < 100'000);
    CHECK(o.out.back() == '\n');
    CHECK_THAT(o.err, contains_text("decode: "));
}

TEST_CASE("bad arguments are refused in one line", "[examples][generate]") {
    const workplace here;
    check_refused(here.write({"--colour", "red"}), {"--colour"});
    check_refused(here.write({"stray"}), {"stray"});
    check_refused(here.write({"--bytes", "0"}), {"--bytes"});
    check_refused(here.write({"--bytes", "-5"}), {"--bytes"});
    check_refused(here.write({"--bytes", "many"}), {"--bytes", "many"});
    check_refused(here.write({"--bytes", "99999999999999999999"}), {"--bytes"});
    check_refused(here.write({"--prompt", ""}), {"--prompt", "empty"});
    check_refused(here.write({"--temperature", "-1"}), {"temperature must not be negative"});
    check_refused(here.write({"--temperature", "nan"}), {"temperature"});
    check_refused(here.write({"--top-k", "-1"}), {"top_k must not be negative"});
    check_refused(here.write({"--top-p", "0"}), {"top_p must be above 0 and at most 1"});
    check_refused(here.write({"--top-p", "1.01"}), {"top_p must be above 0 and at most 1"});
    check_refused(here.write({"--seed", "-1"}), {"--seed"});
    check_refused(here.run({here.checkpoint(), "--threads", "-1"}), {"--threads"});
    const outcome help = here.run({"--help"});
    CHECK(help.status == 0);
    CHECK_THAT(help.out, contains_text("--top-p"));
}

TEST_CASE("bad checkpoints are refused in one line", "[examples][generate]") {
    const workplace here;
    const std::string whole = get(here.checkpoint());
    auto refused = [&](const std::string& content, const std::vector<std::string>& words) {
        put(here / "bad", content);
        for (const bool map : {false, true}) {
            arguments args{here / "bad"};
            if (map) args.push_back("--map");
            const outcome o = here.run(args);
            check_refused(o, words);
            CHECK_THAT(o.err, contains_text(here / "bad"));
        }
    };
    check_refused(here.run({here / "absent"}), {here / "absent", "No such file"});
    check_refused(here.run({here / ""}), {"is not a regular file"});
    for (std::size_t size :
         {std::size_t{0}, std::size_t{7}, std::size_t{100}, whole.size() / 2, whole.size() - 1})
        refused(whole.substr(0, size), {"bytes"});
    refused("no checkpoint at all, but a line of text\n", {"header"});
    refused(std::string("\x02\0\0\0\0\0\0\0{}", 10), {"no checkpoint of train_lm", "d_model"});
    auto changed = [&](const std::string& from, const std::string& to,
                       const std::vector<std::string>& words) {
        std::string other = whole;
        replace(other, from, to);
        refused(other, words);
    };
    changed("\"embedding.head\"", "\"embedding.hood\"", {"embedding.head is missing"});
    changed(R"("d_model":"16")", R"("d_model":"32")",
            {"parameters do not fit", "must be F32 256 x 32, is F32 [256, 16]"});
    changed(R"("d_model":"16")", R"("d_model":"-6")", {"d_model must be 2 to 65536"});
    changed(R"("d_model":"16")", R"("d_model":"1x")", {"d_model must be 2 to 65536"});
    changed(R"("head_dim":"8")", R"("head_dim":"3")", {"head_dim does not divide d_model"});
    changed(R"("layers":"2")", R"("layers":"9")", {"parameters do not fit", "is missing"});
    changed(R"("layers":"2")", R"("layers":"0")", {"layers must be 1 to 1024"});
    changed(R"("layers":"2")", R"("mayers":"2")", {"no layers"});
    put(here / "index.json", R"({"weight_map":{"x":"../checkpoint"}})");
    check_refused(here.run({here / "index.json"}), {"which is no plain file name"});
}

TEST_CASE("weights that are no numbers are an error, not a text", "[examples][generate]") {
    const workplace here;
    const io::safetensors whole = io::read(here.checkpoint());
    io::safetensors_writer out;
    for (const auto& [key, value] : whole.metadata()) out.metadata(key, value);
    std::vector<std::byte> spoilt;
    for (const auto& [name, t] : whole.tensors())
        if (name == "norm.scale") {
            spoilt.assign(t.bytes.size(), std::byte{0xFF});
            out.add_bytes(name, t.type, t.shape, spoilt);
        } else {
            out.add_bytes(name, t.type, t.shape, t.bytes);
        }
    out.save(here / "nan");
    const outcome o = here.run({here / "nan"});
    CHECK(o.status == 2);
    CHECK_THAT(o.err, contains_text("row 0 of the logits is NaN"));
}

TEST_CASE("text that cannot be written is an error", "[examples][generate]") {
    const workplace here;
    if (!fs::exists("/dev/full")) return;
    const std::string command = std::string("'") + SLUICE_GENERATE + "' '" + here.checkpoint() +
                                "' > /dev/full 2> '" + here / "said" + "'";
    const int status = std::system(command.c_str());
    CHECK(WEXITSTATUS(status) == 2);
    CHECK_THAT(get(here / "said"), contains_text("the text cannot be written"));
}

#endif
