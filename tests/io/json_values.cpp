#include "support/catch.hpp"
#include "support/scratch_folder.hpp"

#if __has_include(<nlohmann/json.hpp>)
#    include <sluice/io/json_values.hpp>

namespace io = sluice::io;
using namespace sluice::test;

namespace {

io::json_values read(const std::string& text) {
    return io::json_values(io::from_memory(bytes_of(text), "f"));
}
std::string said(const std::string& text) {
    return complaint([&] { (void)read(text); });
}

} // namespace

TEST_CASE("values by their paths") {
    const auto v = read(R"({"name": "x", "n": 7, "eps": 1e-05, "minus": -3, "yes": true, "none": null,
                            "rope": {"theta": 10000.5, "kind": {"type": "y"}}, "list": [{"n": 8}, 9], "after": 1})");
    CHECK(v.path() == "f");
    CHECK(v.text("name") == "x");
    CHECK(v.integer("n") == 7);
    CHECK(v.real("n") == 7);
    CHECK(v.real("eps") == 1e-5);
    CHECK(v.real("minus") == -3);
    CHECK(v.boolean("yes", false));
    CHECK(v.real("rope.theta") == 10000.5);
    CHECK(v.text("rope.kind.type") == "y");
    CHECK(v.integer("after") == 1);
    for (const char* key : {"none", "list", "list.n", "rope", "other"}) CHECK_FALSE(v.has_value(key));
    CHECK(v.integer("none", 5) == 5);
    CHECK(v.real("none", 0.5) == 0.5);
    CHECK(v.text("none", "z") == "z");
    CHECK(v.boolean("none", true));
}

TEST_CASE("what is asked for in vain is named") {
    const auto v = read(R"({"text": "x", "large": 18446744073709551615, "eps": 0.5, "yes": true})");
    CHECK(complaint([&] { (void)v.integer("n"); }) == "f: has no \"n\"");
    CHECK(complaint([&] { (void)v.integer("text"); }) == "f: \"text\" must be an integer");
    CHECK(complaint([&] { (void)v.integer("eps"); }) == "f: \"eps\" must be an integer");
    CHECK(complaint([&] { (void)v.integer("eps", 1); }) == "f: \"eps\" must be an integer");
    CHECK(complaint([&] { (void)v.integer("large"); }) == "f: \"large\" is 18446744073709551615");
    CHECK(complaint([&] { (void)v.real("yes"); }) == "f: \"yes\" must be a number");
    CHECK(complaint([&] { (void)v.boolean("text", true); }) == "f: \"text\" must be true or false");
    CHECK(complaint([&] { (void)v.text("yes"); }) == "f: \"yes\" must be a string");
}

TEST_CASE("what is no object is refused") {
    CHECK(said("[]") == "f: is no object");
    for (const char* text : {"", "{", "{\"a\": 1, \"a\": 2}", "{\"a\": 1e400}", "{\"a\": NaN}"})
        CHECK(said(text) != "");
    CHECK_THAT(said("{\"a\":" + std::string(40, '[') + std::string(40, ']') + "}"),
               contains_text("nested deeper than 32"));
    CHECK(said("{}") == "");
    for (const char* text : {"1", "\"a\"", "true", "null", "-1", "0.5"}) CHECK(said(text) != "");
}
#endif
