#include "support/catch.hpp"
#include "support/scratch_folder.hpp"
#include "support/toy_params.hpp"

#include <sluice/io/params.hpp>
#include <sluice/io/safetensors_index.hpp>
#include <sluice/io/safetensors_writer.hpp>

#include <vector>

namespace io = sluice::io;
namespace fs = std::filesystem;
using folder = sluice::test::scratch_folder;
using sluice::idx;
using sluice::tensor_view;
using sluice::test::complaint;
using sluice::test::put;
using sluice::test::toy_config;
using sluice::test::toy_params;

namespace {

const std::string index_name = "model.safetensors.index.json";

// The message without the file's name.
std::string index_complaint(const std::string& text) {
    const std::string said = complaint([&] { (void)io::read_index(text, "i"); });
    return said.substr(0, 3) == "i: " ? said.substr(3) : said;
}

void save(const std::string& path, const std::vector<std::string>& tensors, float first) {
    std::vector<float> memory(tensors.size());
    io::safetensors_writer out;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        memory[i] = first + static_cast<float>(i);
        out.add(tensors[i], tensor_view<const float>(&memory[i], 1, 1));
    }
    out.save(path);
}

// Two files and their index.
void save_shards(const folder& here) {
    save(here / "model-00001-of-00002.safetensors", {"a", "c"}, 1);
    save(here / "model-00002-of-00002.safetensors", {"b"}, 10);
    put(here / index_name, R"({"metadata": {"total_size": 12}, "weight_map": {
        "a": "model-00001-of-00002.safetensors",
        "b": "model-00002-of-00002.safetensors",
        "c": "model-00001-of-00002.safetensors"}})");
}

} // namespace

TEST_CASE("an index is read") {
    const auto map = io::read_index(R"({"weight_map":{"x":"f","y":"g","z":"f"}})", "i");
    CHECK(map == io::weight_map{{"x", "f"}, {"y", "g"}, {"z", "f"}});
    CHECK(io::read_index(R"( {"weight_map":{}})", "i").empty());
}

TEST_CASE("metadata of an index may be anything") {
    for (const std::string metadata :
         {"5", "{}", "[]", "null", "1.5e10", "{\"total_size\":-1,\"a\":{\"b\":[true,\"c\"]}}"})
        CHECK(index_complaint(R"({"metadata":)" + metadata + R"(,"weight_map":{"x":"f"}})").empty());
}

TEST_CASE("an index is an object with a weight_map of names") {
    const std::string no_part = " is no part of an index of safetensors files, or of another type";
    CHECK(index_complaint("") == "an index of safetensors files begins with {");
    CHECK(index_complaint("   ") == "an index of safetensors files begins with {");
    CHECK(index_complaint("[]") == "an index of safetensors files begins with {");
    CHECK(index_complaint("5") == "an index of safetensors files begins with {");
    CHECK(index_complaint("{}") == "has no \"weight_map\"");
    CHECK(index_complaint(R"({"metadata":{}})") == "has no \"weight_map\"");
    CHECK(index_complaint(R"({"weight_map":[]})") == "\"weight_map\"" + no_part);
    CHECK(index_complaint(R"({"weight_map":"f"})") == "\"weight_map\"" + no_part);
    CHECK(index_complaint(R"({"weight_map":null})") == "\"weight_map\"" + no_part);
    CHECK(index_complaint(R"({"weight_map":{"x":5}})") == "\"weight_map\".\"x\"" + no_part);
    CHECK(index_complaint(R"({"weight_map":{"x":-5}})") == "\"weight_map\".\"x\"" + no_part);
    CHECK(index_complaint(R"({"weight_map":{"x":false}})") == "\"weight_map\".\"x\"" + no_part);
    CHECK(index_complaint(R"({"weight_map":{"x":["f"]}})") == "\"weight_map\".\"x\"" + no_part);
    CHECK(index_complaint(R"({"weight_map":{"x":{}}})") == "\"weight_map\".\"x\"" + no_part);
    CHECK(index_complaint(R"({"weight_map":{},"more":{}})") == "\"more\"" + no_part);
    CHECK(index_complaint(R"({"weight_map":{},"more":1.5})") == "\"more\"" + no_part);
    CHECK(index_complaint(R"({"weight_map":{"x":"f","x":"f"}})") == "duplicate key \"x\"");
    CHECK(index_complaint(R"({"weight_map":{},"weight_map":{}})") == "duplicate key \"weight_map\"");
    CHECK(index_complaint(R"({"weight_map":{"x":"f"})") == "no valid JSON at byte 24");
    CHECK(index_complaint(R"({"weight_map":{"":"f"}})") == "a tensor has an empty name");
    CHECK(index_complaint(R"({"metadata":[[[[[]]]]],"weight_map":{}})") == "nested deeper than 4");
}

TEST_CASE("files of an index lie in its own folder") {
    auto named = [](const std::string& name) {
        return index_complaint(R"({"weight_map":{"x":")" + name + "\"}}");
    };
    const std::string no_name = "\", which is no plain file name";
    CHECK(named("model-00001-of-00002.safetensors").empty());
    CHECK(named("a b~$\xC3\xA9").empty());
    CHECK(named(std::string(255, 'x')).empty());
    const std::vector<std::string> bad{
        "",        ".",    "..",        "../f", "/etc/passwd",        "a/b", "a\\\\b", "C:f",
        ".hidden", "a\\n", "a\\u0000b", "\x7F", std::string(256, 'x')};
    for (const auto& name : bad) {
        CAPTURE(name);
        CHECK_THAT(named(name), sluice::test::contains_text(no_name));
    }
}

TEST_CASE("a sharded checkpoint is what one file is") {
    const folder here("shards");
    save_shards(here);
    for (const bool mapped : {false, true}) {
        const io::safetensors f =
            mapped ? io::map_tensors(here / index_name) : io::read_tensors(here / index_name);
        CHECK(f.path() == here / index_name);
        CHECK(f.names() == std::vector<std::string>{"a", "b", "c"});
        CHECK(f.view<float>("a")(0, 0) == 1);
        CHECK(f.view<float>("b")(0, 0) == 10);
        CHECK(f.view<float>("c")(0, 0) == 2);
        CHECK_NOTHROW(f.require_finite());
        CHECK_NOTHROW(f.prefetch());
        CHECK_THROWS_WITH(f.view<double>("b"), here / index_name + ": \"b\" must be F64, is F32 [1, 1]");
    }
    const io::safetensors one = io::read_tensors(here / "model-00002-of-00002.safetensors");
    CHECK(one.names() == std::vector<std::string>{"b"});
    CHECK(io::map_tensors(here / "model-00002-of-00002.safetensors").view<float>("b")(0, 0) == 10);
}

TEST_CASE("params are bound to a sharded checkpoint") {
    const folder here("bound");
    sluice::owned_params<toy_params<float>> p(toy_config{});
    p.view.w_up(1, 2) = 7;
    p.view.bias(0, 1) = 8;
    io::safetensors_writer first, second;
    first.add("w_up", p.view.w_up);
    second.add("bias", p.view.bias);
    second.add("running", p.view.running);
    first.save(here / "first");
    second.save(here / "second");
    put(here / "index.json", R"({"weight_map":{"w_up":"first","bias":"second","running":"second"}})");
    const io::safetensors f = io::read_tensors(here / "index.json");
    const auto bound = io::bind<toy_params<const float>>(f, "", toy_config{});
    CHECK((bound.w_up(1, 2) == 7 && bound.bias(0, 1) == 8));
    CHECK(complaint([&] { io::bind<toy_params<const float>>(f, "", toy_config{.rows = 3, .cols = 4}); }) ==
          here / "index.json" + ": 1 of 3 parameters do not fit: w_up must be F32 3 x 4, is F32 [3, 5]");
}

TEST_CASE("index and files must agree") {
    const folder here("disagree");
    save_shards(here);
    auto said = [&](const std::string& map) {
        put(here / index_name, R"({"weight_map":{)" + map + "}}");
        const std::string text = complaint([&] { io::read_tensors(here / index_name); });
        const std::string name = here / index_name + ": ";
        return text.substr(0, name.size()) == name ? text.substr(name.size()) : text;
    };
    const std::string one = "model-00001-of-00002.safetensors", two = "model-00002-of-00002.safetensors";
    const std::string a = R"("a":")" + one + "\"", b = R"("b":")" + two + "\"", c = R"("c":")" + one + "\"";
    CHECK(said(a + "," + b + "," + c).empty());
    CHECK(said(a + "," + b) == "\"c\" is in " + one + ", but the index says nothing of it");
    CHECK(said(a + "," + b + R"(,"c":")" + two + "\"") ==
          "\"c\" is in " + one + ", but the index says " + two);
    CHECK(said(a + "," + b + "," + c + R"(,"d":")" + two + "\"") ==
          "\"d\" is said to be in " + two + ", but is not");
    save(here / two, {"a", "b"}, 5);
    CHECK(said(a + "," + b + "," + c) == "\"a\" is in " + two + ", but the index says " + one);
    CHECK(said(a + "," + c + R"(,"b":"absent")") ==
          here / "absent" + ": cannot be opened: No such file or directory");
    put(here / two, "no tensors");
    CHECK_THAT(said(a + "," + b + "," + c), sluice::test::contains_text(here / two + ": has a header of "));
    fs::remove(here / two);
    fs::create_directory(here / two);
    CHECK(said(a + "," + b + "," + c) == here / two + ": is not a regular file");
}

TEST_CASE("all files together must be within the limit") {
    const folder here("limit");
    save_shards(here);
    const auto first = fs::file_size(here / "model-00001-of-00002.safetensors");
    const auto all = first + fs::file_size(here / "model-00002-of-00002.safetensors");
    CHECK_NOTHROW(io::read_tensors(here / index_name, {}, all));
    CHECK(complaint([&] { io::read_tensors(here / index_name, {}, all - 1); }) ==
          here / "model-00002-of-00002.safetensors" + ": has " + std::to_string(all - first) +
              " bytes, at most " + std::to_string(all - first - 1) + " are read");
}

TEST_CASE("too many files are refused before one is opened") {
    std::string map = R"({"weight_map":{)";
    for (int i = 0; i < 10'001; ++i) map += "\"t" + std::to_string(i) + "\":\"f" + std::to_string(i) + "\",";
    map.back() = '}';
    const auto parsed = io::read_index(map + "}", "i");
    auto open = [](const std::string&) -> io::file { throw 7; };
    CHECK(complaint([&] { (void)io::open_index(parsed, "i", open); }) ==
          "i: names 10001 files, at most 10000 are opened");
}

TEST_CASE("a checkpoint is found from the current folder") {
    const folder here("relative");
    save_shards(here);
    const fs::path old = fs::current_path();
    fs::current_path(here / ".");
    const io::safetensors f = io::read_tensors(index_name);
    fs::current_path(old);
    CHECK(f.names().size() == 3);
}
