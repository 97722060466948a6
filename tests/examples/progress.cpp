// Checks what the progress line shows and when, with a clock the test turns by hand.
#include "../../examples/support/progress.hpp"

#include "support/catch.hpp"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

using sluice::examples::progress;

namespace {

constexpr double unknown = std::numeric_limits<double>::quiet_NaN();

std::vector<std::string> split(const std::string& text, char at) {
    std::vector<std::string> parts;
    std::istringstream in(text);
    for (std::string part; std::getline(in, part, at);) {
        parts.push_back(part);
    }
    return parts;
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

struct screen {
    double now = 0.0;
    std::ostringstream out{};

    progress show(std::size_t total, bool is_terminal) {
        return progress(total, out, is_terminal, [this] { return now; });
    }
};

} // namespace

TEST_CASE("a log gets one plain line for every tenth", "[examples][progress]") {
    screen log;
    auto shown = log.show(1000, false);
    for (std::size_t step = 1; step <= 1000; ++step) {
        log.now += 0.01;
        shown.update(step, 2.5, 3.25, 12345.0);
    }
    shown.finish();
    shown.finish();
    CHECK_FALSE(has(log.out.str(), "\r"));
    const auto lines = split(log.out.str(), '\n');
    REQUIRE(lines.size() == 10);
    CHECK(lines[0] ==
          "[##..................] 100/1000 loss 2.5000 held-out 3.250 bits/byte 12.3k tok/s left 0:09");
    CHECK(lines[4] ==
          "[##########..........] 500/1000 loss 2.5000 held-out 3.250 bits/byte 12.3k tok/s left 0:05");
    CHECK(has(lines[9], "[####################] 1000/1000"));
    CHECK(has(lines[9], "left 0:00"));
}

TEST_CASE("a slow run still gets a log line every fifteen seconds", "[examples][progress]") {
    screen log;
    auto shown = log.show(1000, false);
    for (std::size_t step = 1; step <= 50; ++step) {
        log.now += 1.0;
        shown.update(step, 2.5, unknown, 100.0);
    }
    const auto lines = split(log.out.str(), '\n');
    REQUIRE(lines.size() == 3);
    CHECK(has(lines[0], "15/1000"));
    CHECK(has(lines[1], "30/1000"));
    CHECK(has(lines[2], "45/1000"));
    CHECK(has(lines[0], "held-out - bits/byte"));
}

TEST_CASE("a run that stops early leaves its last state", "[examples][progress]") {
    screen log;
    {
        auto shown = log.show(1000, false);
        shown.update(7, 2.5, 3.0, 100.0);
        CHECK(log.out.str().empty());
    }
    CHECK(split(log.out.str(), '\n').size() == 1);
    CHECK(has(log.out.str(), "7/1000"));
}

TEST_CASE("a run without any step shows nothing", "[examples][progress]") {
    for (const bool is_terminal : {false, true}) {
        screen log;
        auto shown = log.show(10, is_terminal);
        shown.finish();
        CHECK(log.out.str().empty());
    }
}

TEST_CASE("a terminal is redrawn in place, at most ten times a second", "[examples][progress]") {
    screen terminal;
    auto shown = terminal.show(1000, true);
    for (std::size_t step = 1; step <= 999; ++step) {
        terminal.now += 0.001;
        shown.update(step, 2.5, 3.25, 12345.0);
    }
    const auto before = terminal.out.str();
    const auto n_drawn = std::count(before.begin(), before.end(), '\r');
    CHECK(n_drawn >= 9);
    CHECK(n_drawn <= 11);
    CHECK_FALSE(has(before, "\n"));
    CHECK_FALSE(has(before, "999/1000"));
    shown.finish();
    shown.finish();
    const auto after = terminal.out.str();
    CHECK(has(after, "999/1000"));
    CHECK(std::count(after.begin(), after.end(), '\n') == 1);
    CHECK(after.back() == '\n');
}

TEST_CASE("a shorter line wipes out the longer one before it", "[examples][progress]") {
    screen terminal;
    auto shown = terminal.show(10'000'000, true);
    shown.update(9'000'000, 123.4567, 3.25, 123456.0);
    terminal.now = 1.0;
    shown.update(9'000'001, 1e-9, unknown, 1.0);
    const auto drawn = split(terminal.out.str(), '\r');
    REQUIRE(drawn.size() == 3);
    CHECK(drawn[2].size() >= drawn[1].size());
}

TEST_CASE("no line is too long, whatever the figures", "[examples][progress]") {
    const double largest = std::numeric_limits<double>::max();
    const double infinite = std::numeric_limits<double>::infinity();
    const auto huge = std::numeric_limits<std::size_t>::max();
    for (const bool is_terminal : {false, true}) {
        for (const double figure : {largest, -largest, infinite, -infinite, unknown, 0.0, 999.99999}) {
            screen any;
            auto shown = any.show(huge, is_terminal);
            shown.update(1, figure, figure, figure);
            any.now = 100.0;
            shown.update(huge / 2, figure, figure, figure);
            any.now = 1e9;
            shown.update(huge - 1, figure, figure, figure);
            shown.finish();
            for (const auto& line : split(any.out.str(), is_terminal ? '\r' : '\n')) {
                CHECK(line.size() <= (is_terminal ? 80 : 100));
            }
        }
    }
}

TEST_CASE("the time left ignores slow first steps", "[examples][progress]") {
    screen log;
    auto shown = log.show(100, false);
    log.now = 10.0;
    shown.update(1, 2.5, 3.0, 100.0);
    log.now = 20.0;
    shown.update(2, 2.5, 3.0, 100.0);
    log.now = 30.0;
    shown.update(3, 2.5, 3.0, 100.0);
    CHECK(has(log.out.str(), "left -:--"));
    for (std::size_t step = 4; step <= 10; ++step) {
        log.now += 1.0;
        shown.update(step, 2.5, 3.0, 100.0);
    }
    CHECK(has(split(log.out.str(), '\n').back(), "left 1:30"));
}

TEST_CASE("a resumed run is timed from where it resumed", "[examples][progress]") {
    screen log;
    auto shown = log.show(10000, false);
    for (std::size_t step = 5001; step <= 6000; ++step) {
        log.now += 1.0;
        shown.update(step, 2.5, 3.0, 100.0);
    }
    const auto last = split(log.out.str(), '\n').back();
    CHECK(has(last, "6000/10000"));
    CHECK(has(last, "left 1:06:40"));
}

TEST_CASE("figures are shown short", "[examples][progress]") {
    const auto shown_as = [](double loss, double rate) {
        screen log;
        log.show(1, false).update(1, loss, unknown, rate);
        return log.out.str();
    };
    CHECK(has(shown_as(unknown, 0.5), "loss nan"));
    CHECK(has(shown_as(-unknown, 0.5), "loss nan"));
    CHECK(has(shown_as(12345678.0, 0.5), "loss 1.23e+07"));
    CHECK(has(shown_as(1.0, 0.54), " 0.5 tok/s"));
    CHECK(has(shown_as(1.0, 999.0), " 999 tok/s"));
    CHECK(has(shown_as(1.0, 2'500'000.0), " 2.5M tok/s"));
    CHECK(has(shown_as(1.0, unknown), " - tok/s"));
    CHECK(has(shown_as(1.0, -1.0), " - tok/s"));
}

TEST_CASE("steps past the end and an empty run do no harm", "[examples][progress]") {
    screen log;
    auto shown = log.show(0, false);
    shown.update(5, 1.0, 1.0, 1.0);
    CHECK(has(log.out.str(), " 1/1 "));
}
