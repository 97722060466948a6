// Runs the program that compares models: every model judged alike at once and from its state, the budgets,
// that it goes on where it stopped, and bad input. Built where the program is.
#include "support/catch.hpp"

#if defined(SLUICE_COMPARE) && !defined(_WIN32)

#    include "support/process.hpp"

#    include <sluice/core/random.hpp>

#    include <algorithm>
#    include <map>
#    include <sstream>

using namespace sluice::test;

namespace {

// A folder with some text, and the runs in it.
class workplace {
public:
    workplace() : folder_("compare") {
        std::string text;
        const sluice::random_source numbers(1);
        const std::vector<std::string> words{"keys ", "values ", "rows ", "the ", "of ", "sum\n", "a "};
        for (sluice::idx i = 0; text.size() < 12'000; ++i) text += words[numbers.bits(i) % words.size()];
        put(folder_ / "text", text);
    }
    std::string operator/(const std::string& name) const { return folder_ / name; }

    // Options that follow replace earlier ones.
    outcome run(const arguments& more = {}) const {
        arguments all{"--text",    *this / "text",
                      "--size",    "16x2",
                      "--context", "32",
                      "--steps",   "6",
                      "--judged",  "4",
                      "--sample",  "0",
                      "--decoded", "4",
                      "--jobs",    "2"};
        for (std::size_t i = 0; i < more.size(); ++i) {
            const auto known = std::find(all.begin(), all.end(), more[i]);
            if (more[i].rfind("--", 0) != 0 || known == all.end() || i + 1 == more.size())
                all.push_back(more[i]);
            else
                *(known + 1) = more[++i];
        }
        return process(SLUICE_COMPARE, folder_ / "", all).wait();
    }
    outcome done(const arguments& more = {}) const {
        outcome o = run(more);
        INFO(o.err);
        REQUIRE(o.status == 0);
        return o;
    }

private:
    scratch_folder folder_;
};

// The table at the end: model, column, cell.
using table = std::map<std::string, std::map<std::string, std::string>>;

table table_of(const std::string& out) {
    const auto start = out.find("\nmodel ");
    REQUIRE(start != out.npos);
    std::istringstream lines(out.substr(start + 1));
    auto split = [](std::string line) { // cells are two blanks apart, names of columns have one
        std::vector<std::string> cells;
        for (std::size_t at = 0; (at = line.find_first_not_of(' ', at)) != line.npos;) {
            const auto end = std::min(line.find("  ", at), line.size());
            cells.push_back(line.substr(at, end - at));
            at = end;
        }
        return cells;
    };
    std::string line;
    std::getline(lines, line);
    const auto names = split(line);
    table result;
    while (std::getline(lines, line) && !line.empty()) {
        const auto cells = split(line);
        REQUIRE(cells.size() == names.size());
        for (std::size_t i = 1; i < cells.size(); ++i) result[cells[0]][names[i]] = cells[i];
    }
    return result;
}

} // namespace

TEST_CASE("all models are judged by what they would say byte by byte", "[examples][compare]") {
    const workplace here;
    const outcome o = here.done({"--models", "dense,phd,phd3,moe,mod,engram,dlcm", "--controls"});
    CAPTURE(o.out);
    const table found = table_of(o.out);
    CHECK(found.size() == 15);
    for (const auto& [model, cells] : found) {
        INFO(model);
        CHECK(cells.at("streamed") == "same");
        const double bits = std::stod(cells.at("bits/byte"));
        CHECK((bits > 1 && bits < 9));
        CHECK(o.out.find(model + " ") < o.out.find("\nmodel "));
    }
    CHECK_THAT(o.out, contains_text("\nmod by its top-k, which sees later text: "));
    CHECK(o.out.find("random by its top-k") == o.out.npos);
    CHECK(found.at("phd").at("parameters") == found.at("dense").at("parameters"));
    CHECK(found.at("phd").at("KV bytes") == found.at("dense").at("KV bytes"));
    for (const char* name : {"phd", "mod", "dlcm"})
        CHECK(found.at(std::string(name) + ":tokens").at("tokens") == found.at("dense").at("tokens"));
}

TEST_CASE("parts are put together", "[examples][compare]") {
    const workplace here;
    for (const char* parts :
         {"moe,engram", "engram,phd", "mod,engram", "dlcm,engram", "moe,phd", "mod,moe", "dlcm,moe"}) {
        const outcome o = here.done({"--models", "dense", "--with", parts});
        CAPTURE(o.out);
        const table found = table_of(o.out);
        REQUIRE(found.size() == 2);
        for (const auto& [model, cells] : found) CHECK(cells.at("streamed") == "same");
    }
    const outcome refused = here.run({"--with", "phd,dlcm"});
    CHECK(refused.status == 2);
    CHECK_THAT(refused.err, contains_text("do not go together"));
}

TEST_CASE("a budget is what models have alike", "[examples][compare]") {
    const workplace here;
    auto run = [&](const char* by) {
        return table_of(here.done({"--models", "dense,phd,moe", "--budget", by, "--steps", "40"}).out);
    };
    const table tokens = run("tokens");
    CHECK(tokens.at("phd").at("tokens") == tokens.at("dense").at("tokens"));
    const table flops = run("flops");
    CHECK(flops.at("phd").at("tokens") != flops.at("dense").at("tokens"));
    auto million = [](const std::string& cell) { return std::stod(cell) * (cell.back() == 'M' ? 1 : 1000); };
    CHECK(std::abs(million(flops.at("phd").at("train FLOPs")) / million(flops.at("dense").at("train FLOPs")) -
                   1) < 0.05);
    const table params = run("params");
    auto thousand = [](const std::string& cell) { return std::stod(cell); };
    const double grown =
        thousand(params.at("moe").at("parameters")) / thousand(params.at("dense").at("parameters"));
    CHECK(grown < 1.05);            // of 8 experts and a router
    CHECK(run("time").size() == 3); // of as many steps as this machine takes
}

TEST_CASE("runs that were kept are taken up, and give the same", "[examples][compare]") {
    const workplace here;
    auto bits = [](const outcome& o) { return table_of(o.out).at("engram").at("bits/byte"); };
    const arguments some{"--models", "engram", "--folder", here / "runs"};
    const std::string whole = bits(here.done(some));
    auto weights = [&](const std::string& folder) { // without the header, which holds seconds
        const std::string file = get(here / (folder + "/engram.1.safetensors"));
        std::size_t header = 0;
        for (std::size_t i = 8; i-- > 0;) header = 256 * header + static_cast<unsigned char>(file.at(i));
        return file.substr(8 + header);
    };
    arguments again = some;
    again.push_back("--resume");
    CHECK(bits(here.done(again)) == whole);

    // stopped half-way, a run ends with the weights of one that never was
    const arguments parts{"--models", "engram", "--folder", here / "parts", "--stop-after", "4"};
    CHECK_THAT(here.done(parts).out, contains_text("stopped after 4 of "));
    auto rest = parts;
    rest.push_back("--resume");
    CHECK(bits(here.done(rest)) == whole);
    const bool same = weights("parts") == weights("runs");
    CHECK(same);

    again.insert(again.end(), {"--steps", "7"});
    const outcome other = here.run(again);
    CHECK(other.status == 2);
    CHECK_THAT(other.err, contains_text("is of another run"));
}

TEST_CASE("SIGINT ends a comparison in good order, and it goes on from there", "[examples][compare]") {
    const workplace here;
    const arguments endless{"--text",   here / "text", "--size",   "16x2",    "--context", "32",
                            "--models", "dense,moe",   "--steps",  "1000000", "--sample",  "0",
                            "--folder", here / "runs", "--judged", "4"};
    process run(SLUICE_COMPARE, here / "", endless);
    run.wait_for_handler();
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    run.interrupt();
    const outcome o = run.wait();
    CAPTURE(o.out, o.err);
    REQUIRE(o.status == 0);
    CHECK_THAT(o.out, contains_text("stopped after "));
    CHECK_THAT(o.out, contains_text("--resume"));
}

TEST_CASE("the page holds every model and nothing from elsewhere", "[examples][compare]") {
    const workplace here;
    here.done({"--models", "dense,engram", "--report", here / "page.html", "--picture", here / "picture.svg",
               "--sample", "20"});
    const std::string page = get(here / "page.html");
    CHECK_THAT(page, contains_text("<!DOCTYPE html>"));
    CHECK_THAT(page, contains_text("engram against dense"));
    std::size_t names = 0; // beside points
    for (auto at = page.find("font-size=\"10\""); at != page.npos; at = page.find("font-size=\"10\"", at + 1))
        ++names;
    CHECK(names == 2);
    std::size_t charts = 0;
    for (auto at = page.find("<svg"); at != page.npos; at = page.find("<svg", at + 1)) ++charts;
    CHECK(charts == 4);
    const std::string picture = get(here / "picture.svg");
    CHECK_THAT(picture, contains_text("Loss against computation"));
    CHECK_THAT(picture, contains_text("Quality against decoding"));
    for (const char* outside : {"http:", "https:", "src=", "url("}) CHECK(page.find(outside) == page.npos);
}

TEST_CASE("models read the tokens of a tokenizer", "[examples][compare]") {
    const workplace here;
    put(here / "tokenizer.json",
        R"({"model": {"type": "BPE", "vocab": {"e": 0, "k": 1, "y": 2, "s": 3, "ke": 4, "ys": 5, "keys": 6},
            "merges": ["k e", "y s", "ke ys"]},
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true}})");
    const outcome refused = here.run({"--tokenizer", here / "tokenizer.json"});
    CHECK(refused.status == 2); // no token for a blank
    std::string text;
    while (text.size() < 12'000) text += text.size() % 3 == 0 ? "keys" : "skye";
    put(here / "words", text);
    const outcome o = here.run(
        {"--text", here / "words", "--tokenizer", here / "tokenizer.json", "--models", "dense,engram"});
    CAPTURE(o.out, o.err);
    if (o.err.find("without ICU") != o.err.npos) return;
    REQUIRE(o.status == 0);
    CHECK_THAT(o.out, contains_text("units of "));
    const table found = table_of(o.out);
    REQUIRE(found.size() == 2);
    for (const auto& [model, cells] : found) CHECK(cells.at("streamed") == "same");
    CHECK(std::stod(found.at("dense").at("bits/byte")) < 8); // of text of which a unit is several bytes
}

TEST_CASE("settings that cannot be compared are refused", "[examples][compare]") {
    const workplace here;
    auto refused = [&](const arguments& more, const char* words) {
        const outcome o = here.run(more);
        CAPTURE(o.err);
        CHECK(o.status > 0);
        CHECK_THAT(o.err, contains_text(words));
    };
    refused({"--size", "64x3"}, "even number of layers");
    refused({"--size", "60"}, "WIDTHxLAYERS");
    refused({"--models", "dense,sparse"}, "there is no model \"sparse\"");
    refused({"--with", "mod,phd"}, "is not built");
    refused({"--resume"}, "--folder");
    refused({"--text", here / "absent"}, "no such file");
}

#endif
