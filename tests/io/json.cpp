#include "support/catch.hpp"

#include <sluice/io/json.hpp>

#include <limits>
#include <string>
#include <vector>

namespace io = sluice::io;

namespace {

// Writes down what it is told.
struct recorder {
    void open(const io::json_place& at, bool array) { note(at, array ? "[" : "{"); }
    void close(const io::json_place& at) { note(at, "close"); }
    void text(const io::json_place& at, std::string& value) { note(at, "'" + value + "'"); }
    void number(const io::json_place& at, std::uint64_t value) { note(at, std::to_string(value)); }

    void note(const io::json_place& at, const std::string& what) {
        std::string line = std::to_string(at.depth) + ":";
        for (const auto& k : at.keys) line += k + "/";
        events.push_back(line + what);
    }
    std::vector<std::string> events;
};

std::vector<std::string> events(std::string_view text, const io::json_limits& limits = {}) {
    recorder r;
    io::read_json(text, "f", r, limits);
    return r.events;
}
std::string complaint(std::string_view text, const io::json_limits& limits = {}) {
    try {
        events(text, limits);
    } catch (const sluice::input_error& e) {
        return e.what();
    }
    return "";
}

struct tolerant : recorder {
    void other(const io::json_place& at) { note(at, "other"); }
};

struct thrower : recorder {
    void number(const io::json_place&, std::uint64_t) { throw 7; }
};

const std::string allowed = "; strings, unsigned integers, arrays and objects are allowed";

} // namespace

static_assert(io::json_handler<recorder>);

TEST_CASE("containers and values are told in order with their place") {
    CHECK(events(R"({"a":{"b":"x","c":[1,2]},"d":3})") ==
          std::vector<std::string>{"0:{", "1:a/{", "2:a/b/'x'", "2:a/c/[", "3:a/c/1", "3:a/c/2",
                                   "2:a/c/close", "1:a/close", "1:d/3", "0:close"});
    CHECK(events("{}") == std::vector<std::string>{"0:{", "0:close"});
    CHECK(events(" [ ] ") == std::vector<std::string>{"0:[", "0:close"});
    CHECK(events("7") == std::vector<std::string>{"0:7"});
    CHECK(events(R"([{"a":1},{"a":2}])").size() == 8);
}

TEST_CASE("escapes are resolved") {
    CHECK(events(R"({"\u0061\n":"\u20ac\"\\\/"})") ==
          std::vector<std::string>{"0:{", "1:a\n/'\xE2\x82\xAC\"\\/'", "0:close"});
}

TEST_CASE("only unsigned integers are numbers") {
    CHECK(events("18446744073709551615") == std::vector<std::string>{"0:18446744073709551615"});
    CHECK(complaint(R"({"a":{"b":-1}})") == "f: \"a\".\"b\" holds the negative number -1" + allowed);
    CHECK(complaint("[-0]") == "f: text holds the negative number 0" + allowed);
    CHECK(complaint(R"({"a":18446744073709551616})") ==
          "f: \"a\" holds the number 18446744073709551616" + allowed);
    CHECK(complaint(R"({"a":1.0})") == "f: \"a\" holds the number 1.0" + allowed);
    CHECK(complaint(R"({"a":1e2})") == "f: \"a\" holds the number 1e2" + allowed);
    CHECK(complaint(R"({"a":[1e400]})") != "");
    CHECK(complaint("{\"a\":" + std::string(10'000, '9') + "}") != "");
    CHECK(complaint("{\"a\":0." + std::string(10'000, '9') + "}").size() < 200);
    CHECK(complaint("01") != "");
    CHECK(complaint("+1") != "");
    CHECK(complaint("0x10") != "");
    CHECK(complaint("NaN") != "");
}

TEST_CASE("other types are refused") {
    CHECK(complaint(R"({"a":null})") == "f: \"a\" holds null" + allowed);
    CHECK(complaint(R"({"a":true})") == "f: \"a\" holds a boolean" + allowed);
    CHECK(complaint("[false]") == "f: text holds a boolean" + allowed);
}

TEST_CASE("duplicate keys are refused at every level") {
    CHECK(complaint(R"({"a":1,"a":2})") == "f: duplicate key \"a\"");
    CHECK(complaint(R"({"x":{"a":1,"b":2,"a":1}})") == "f: duplicate key \"a\"");
    CHECK(complaint(R"({"a":1,"\u0061":2})") == "f: duplicate key \"a\"");
    CHECK(complaint(R"({"a":{"a":{"a":1}},"b":{"a":1}})").empty());
    CHECK(complaint(R"({"":1,"":2})") == "f: duplicate key \"\"");
}

TEST_CASE("depth is limited") {
    CHECK(complaint(R"({"a":{"b":{"c":{}}}})").empty());
    CHECK(complaint(R"({"a":{"b":{"c":{"d":1}}}})").empty());
    CHECK(complaint(R"({"a":{"b":{"c":{"d":{}}}}})") == "f: nested deeper than 4");
    CHECK(complaint("[[[[[") == "f: nested deeper than 4");
    CHECK(complaint(std::string(1'000'000, '[')) == "f: nested deeper than 4");
    CHECK(complaint("[[]]", {.depth = 1}) == "f: nested deeper than 1");
}

TEST_CASE("keys of one object are limited") {
    CHECK(complaint(R"({"a":1,"b":2})", {.keys = 2}).empty());
    CHECK(complaint(R"({"a":1,"b":2,"c":3})", {.keys = 2}) == "f: more than 2 keys in one object");
    CHECK(complaint(R"({"a":{"x":1,"y":2},"b":{"x":1,"y":2}})", {.keys = 2}).empty());
}

TEST_CASE("broken text is told by its byte") {
    CHECK(complaint("") == "f: no valid JSON at byte 1");
    CHECK(complaint(R"({"a":1)") == "f: no valid JSON at byte 7");
    CHECK(complaint(R"({"a":1}x)") == "f: no valid JSON at byte 8");
    CHECK(complaint(R"({"a":1}{})") == "f: no valid JSON at byte 8");
    CHECK(complaint(R"({"a":1,})") == "f: no valid JSON at byte 8");
    CHECK(complaint(R"({'a':1})") == "f: no valid JSON at byte 2");
    CHECK(complaint("{/* */}") != "");
    CHECK(complaint("{\"a\n\":1}") != "");
}

TEST_CASE("a zero byte is no end of the text") {
    using namespace std::string_view_literals;
    CHECK(complaint("{}\0"sv) == "f: no valid JSON at byte 3");
    CHECK(complaint("{}\0garbage"sv) == "f: no valid JSON at byte 3");
    CHECK(complaint("{\"a\0\":1}"sv) == "f: no valid JSON at byte 4");
}

TEST_CASE("text that is not UTF-8 is refused") {
    for (const std::string bad :
         {"\x80", "\xC0\xAF", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xE2\x82", "\xFF"}) {
        CHECK(complaint("{\"" + bad + "\":1}") != "");
        CHECK(complaint("{\"a\":\"" + bad + "\"}") != "");
        CHECK(complaint(bad) != "");
    }
    CHECK(complaint(R"({"\ud800":1})") != "");
    CHECK(complaint("{\"\xF0\x9F\x98\x80\":1}").empty());
}

TEST_CASE("exceptions of the handler pass") {
    thrower t;
    CHECK_THROWS_AS(io::read_json("[1]", "f", t), int);
}

TEST_CASE("quoted text reads back as it was") {
    std::string all;
    for (int c = 1; c < 128; ++c) all += static_cast<char>(c);
    all += "\xE2\x82\xAC\xF0\x9F\x98\x80";
    const std::string quoted = io::json_quote(all, "f");
    CHECK(events(quoted) == std::vector<std::string>{"0:'" + all + "'"});
    CHECK(io::json_quote("", "f") == "\"\"");
    CHECK(io::json_quote("a\"b\\c\x01\x1F", "f") == R"("a\"b\\c\u0001\u001f")");
    CHECK(io::json_quote(std::string_view("\0", 1), "f") == R"("\u0000")");
}

TEST_CASE("quoting refuses what is not UTF-8") {
    CHECK_THROWS_AS(io::json_quote("a\xFF", "writer"), sluice::input_error);
    CHECK_THROWS_WITH(io::json_quote("a\xFF", "writer"), "writer: \"a\xFF\" is not UTF-8");
}

TEST_CASE("a handler may take the other values") {
    const std::string text = R"({"a":[null,true,-1,2.5,1e3],"b":7})";
    tolerant r;
    io::read_json(text, "f", r);
    CHECK(r.events == std::vector<std::string>{"0:{", "1:a/[", "2:a/other", "2:a/other", "2:a/other",
                                               "2:a/other", "2:a/other", "1:a/close", "1:b/7", "0:close"});
    CHECK_THROWS_AS(io::read_json("[1e400]", "f", r), sluice::input_error);
    CHECK_THROWS_AS(io::read_json("[nan]", "f", r), sluice::input_error);
}
