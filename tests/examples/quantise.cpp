// Runs the program that keeps a model in fewer bits, and the program that runs such models. Built where both
// are.
#include "support/catch.hpp"

#if defined(SLUICE_QUANTISE) && defined(SLUICE_LLAMA) && !defined(_WIN32)

#    include "support/process.hpp"

#    include <sstream>

using namespace sluice::test;

namespace {

const std::string model = SLUICE_TEST_DIR "/data/llama.gguf";

outcome run(const std::string& program, const scratch_folder& folder, const arguments& args) {
    return process(program, folder / "", args).wait();
}
std::string text(const scratch_folder& folder, const arguments& args) {
    const outcome o = run(SLUICE_LLAMA, folder, args);
    INFO(o.err);
    REQUIRE(o.status == 0);
    return o.out;
}
// The largest of the errors told of matrices: those of the blocks, or of the embedding and head.
double told(const std::string& out, bool of_blocks) {
    std::istringstream lines(out);
    double most = -1;
    for (std::string line; std::getline(lines, line);) {
        std::istringstream words(line);
        std::string kind;
        double weights = 0, bytes = 0, largest = 0, mean = 0;
        if (!(words >> kind >> weights >> bytes >> largest >> mean)) continue;
        CHECK(mean <= 2 * largest);
        if (kind.ends_with("scale"))
            CHECK(largest == 0);
        else if ((kind.find("w_") != kind.npos) == of_blocks)
            most = std::max(most, largest);
    }
    return most;
}

} // namespace

TEST_CASE("a model kept in fewer bits writes what it would from its file", "[examples][quantise]") {
    const scratch_folder folder("quantise");
    const std::string file = folder / "small.safetensors";
    // Half a step of the largest weight (int4: a whole one), and what halves as scales add
    // (ops/quantise.hpp).
    for (const auto& [storage, least, most] :
         {std::tuple{"float", 0.0, 0.0}, std::tuple{"bf16", 1e-4, 1.0 / 256},
          std::tuple{"half", 1e-5, 1.0 / 2048}, std::tuple{"int8row", 1e-3, 0.51 / 127},
          std::tuple{"int8", 1e-3, 0.57 / 127}, std::tuple{"int4", 1e-2, 1.0 / 8},
          std::tuple{"int4min", 1e-2, 1.01 / 15}, std::tuple{"f8", 1e-3, 1.0 / 16}}) {
        CAPTURE(storage);
        const outcome o = run(SLUICE_QUANTISE, folder, {model, file, "--weights", storage});
        CAPTURE(o.out, o.err);
        REQUIRE(o.status == 0);
        CHECK_THAT(o.out, contains_text(file + ": 0."));
        CHECK((told(o.out, true) >= least && told(o.out, true) <= most));
        CHECK(told(o.out, false) <= 0.57 / 127); // in 8 bits, or as they were
        const arguments settings{"--tokens", "20", "--threads", "1"};
        arguments ours{file}, theirs{model, "--weights", storage};
        for (const auto& s : settings) ours.push_back(s), theirs.push_back(s);
        CHECK(text(folder, ours) == text(folder, theirs));
        arguments said{file, "--weights", std::string(storage) == "bf16" ? "int8row" : "bf16"};
        const outcome other = run(SLUICE_LLAMA, folder, said);
        CHECK(other.status == 2);
        CHECK_THAT(other.err, contains_text("parameters do not fit"));
    }
}

TEST_CASE("models that cannot be kept in fewer bits are refused in one line", "[examples][quantise]") {
    const scratch_folder folder("quantise");
    const std::string file = folder / "small.safetensors";
    const auto said = [&](const arguments& args) {
        const outcome o = run(SLUICE_QUANTISE, folder, args);
        CHECK(o.status == 2);
        CHECK(o.err.find('\n') == o.err.size() - 1);
        return o.err;
    };
    CHECK_THAT(said({model, folder / "small"}), contains_text("must end in .safetensors"));
    CHECK_THAT(said({model}), contains_text("out is required"));
    CHECK_THAT(said({folder / "none.gguf", file}), contains_text("none.gguf: cannot be opened"));
    CHECK_THAT(said({model, file, "--weights", "int3"}), contains_text("int3"));
    CHECK(run(SLUICE_QUANTISE, folder, {model, file}).status == 0);
    CHECK_THAT(said({file, file}), contains_text("was rounded once already"));
    const outcome none = run(SLUICE_LLAMA, folder, {folder / "none.safetensors"});
    CHECK(none.status == 2);
    CHECK_THAT(none.err, contains_text("none.safetensors"));
}
#endif
