// Shows how far a training run has come: a line redrawn in place on a terminal, a few plain lines in a log.
// Not here: measuring; the caller hands in the loss, the held-out figure, and the rate. A figure that is not
// known yet is passed as NaN. One thread at a time may use it.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <functional>
#include <iostream>
#include <limits>
#include <ostream>
#include <string>
#include <utility>

#if defined(_WIN32)
#    include <io.h>
#else
#    include <unistd.h>
#endif

namespace sluice::examples {

inline bool is_terminal(std::FILE* stream) {
#if defined(_WIN32)
    return _isatty(_fileno(stream)) != 0;
#else
    return ::isatty(::fileno(stream)) != 0;
#endif
}

class progress {
public:
    using clock = std::function<double()>; // seconds since any fixed time

    static constexpr double redraw_seconds = 0.1;
    static constexpr double log_seconds = 15.0;
    static constexpr std::size_t log_columns = 100;
    // One short of the usual width: a line that wraps can no longer be redrawn with a carriage return.
    static constexpr std::size_t terminal_columns = 79;

    explicit progress(std::size_t total_steps) : progress(total_steps, std::cerr, is_terminal(stderr)) {}

    progress(std::size_t total_steps, std::ostream& out, bool is_on_terminal, clock now = steady_seconds)
        : out_(&out),
          is_on_terminal_(is_on_terminal),
          now_(std::move(now)),
          total_(std::max<std::size_t>(total_steps, 1)),
          drawn_at_(now_()) {}

    progress(const progress&) = delete;
    progress& operator=(const progress&) = delete;

    ~progress() {
        try {
            finish();
        } catch (...) { // a stream that throws must not end the program from here
        }
    }

    // step counts the steps done, so that the last call passes total_steps.
    void update(std::size_t step, double loss, double held_out_bits, double tokens_per_second) {
        step_ = std::min(step, total_);
        loss_ = loss;
        held_out_bits_ = held_out_bits;
        tokens_per_second_ = tokens_per_second;
        is_drawn_ = false;
        const double now = now_();
        estimate_time_left(now);
        const double waited = now - drawn_at_;
        if (is_on_terminal_) {
            if (!has_drawn_ || waited >= redraw_seconds) {
                draw(now);
            }
        } else if (tenth() > drawn_tenth_ || waited >= log_seconds) {
            draw(now);
        }
    }

    // Shows the last state and ends the line; later calls do nothing until the next update.
    void finish() {
        if (is_drawn_ && !is_line_open_) {
            return;
        }
        if (!is_drawn_) {
            draw(now_());
        }
        if (is_line_open_) {
            *out_ << '\n' << std::flush;
            is_line_open_ = false;
            drawn_length_ = 0;
        }
    }

private:
    static double steady_seconds() {
        return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    }

    // The first steps pay for cold caches and first allocations, and a resumed run does not start at step 0;
    // so the rate is taken from the end of a short warm-up after the first step seen.
    void estimate_time_left(double now) {
        if (!has_first_step_) {
            has_first_step_ = true;
            first_step_ = step_;
        }
        const std::size_t warm_up = std::clamp<std::size_t>(total_ / 50, 1, 10);
        if (!is_warm_) {
            is_warm_ = step_ >= first_step_ + warm_up;
            warm_step_ = step_;
            warm_at_ = now;
        } else if (step_ > warm_step_) {
            const double seconds_per_step = (now - warm_at_) / static_cast<double>(step_ - warm_step_);
            seconds_left_ = seconds_per_step * static_cast<double>(total_ - step_);
        }
        if (step_ == total_) {
            seconds_left_ = 0.0;
        }
    }

    [[nodiscard]] double fraction() const { return static_cast<double>(step_) / static_cast<double>(total_); }

    [[nodiscard]] int tenth() const { return static_cast<int>(10.0 * fraction() + 1e-9); }

    void draw(double now) {
        const std::string text = line();
        if (is_on_terminal_) {
            const std::size_t n_stale = drawn_length_ > text.size() ? drawn_length_ - text.size() : 0;
            *out_ << '\r' << text << std::string(n_stale, ' ') << std::flush;
            is_line_open_ = true;
        } else {
            *out_ << text << '\n' << std::flush;
        }
        drawn_length_ = text.size();
        drawn_at_ = now;
        drawn_tenth_ = tenth();
        has_drawn_ = true;
        is_drawn_ = true;
    }

    // The bar takes what room the figures leave, because the figures matter more.
    [[nodiscard]] std::string line() const {
        const std::size_t columns = is_on_terminal_ ? terminal_columns : log_columns;
        std::string figures = std::to_string(step_) + "/" + std::to_string(total_);
        figures.append(" loss ").append(number(loss_, 4));
        figures.append(" held-out ").append(std::isnan(held_out_bits_) ? "-" : number(held_out_bits_, 3));
        figures.append(" bits/byte ").append(rate(tokens_per_second_)).append(" tok/s");
        figures.append(" left ").append(duration(seconds_left_));
        std::string text;
        constexpr std::size_t brackets = 3;
        constexpr std::size_t widest_bar = 20;
        if (figures.size() + brackets < columns) {
            const std::size_t width = std::min(widest_bar, columns - brackets - figures.size());
            const auto filled = static_cast<std::size_t>(fraction() * static_cast<double>(width) + 1e-9);
            text.append("[").append(filled, '#').append(width - filled, '.').append("] ");
        }
        return (text + figures).substr(0, columns);
    }

    static std::string with_decimals(double value, int digits) {
        char text[32] = {};
        std::snprintf(text, sizeof text, "%.*f", digits, value);
        return text;
    }

    static std::string number(double value, int digits) {
        if (std::fabs(value) < 1000.0) {
            return with_decimals(value, digits);
        }
        if (std::isnan(value)) {
            return "nan"; // printf may add a sign, which means nothing here
        }
        char text[32] = {};
        std::snprintf(text, sizeof text, "%.3g", value);
        return text;
    }

    static std::string rate(double value) {
        if (!std::isfinite(value) || value < 0.0) {
            return "-";
        }
        if (value < 1e3) {
            return with_decimals(value, value < 10.0 ? 1 : 0);
        }
        if (value < 1e6) {
            return with_decimals(value / 1e3, 1) + "k";
        }
        return number(value / 1e6, 1) + "M";
    }

    static std::string duration(double seconds) {
        constexpr double longest = 1000.0 * 3600.0;
        if (!(seconds >= 0.0 && seconds < longest)) {
            return "-:--";
        }
        const long all = std::lround(seconds);
        char text[32] = {};
        if (all < 3600) {
            std::snprintf(text, sizeof text, "%ld:%02ld", all / 60, all % 60);
        } else {
            std::snprintf(text, sizeof text, "%ld:%02ld:%02ld", all / 3600, all / 60 % 60, all % 60);
        }
        return text;
    }

    static constexpr double unknown = std::numeric_limits<double>::quiet_NaN();

    std::ostream* out_;
    bool is_on_terminal_;
    clock now_;
    std::size_t total_;
    double drawn_at_;
    std::size_t drawn_length_ = 0;
    int drawn_tenth_ = 0;
    bool has_drawn_ = false;
    bool is_drawn_ = true; // nothing to show before the first update
    bool is_line_open_ = false;

    std::size_t step_ = 0;
    double loss_ = unknown;
    double held_out_bits_ = unknown;
    double tokens_per_second_ = unknown;

    bool has_first_step_ = false;
    bool is_warm_ = false;
    std::size_t first_step_ = 0;
    std::size_t warm_step_ = 0;
    double warm_at_ = 0.0;
    double seconds_left_ = unknown;
};

} // namespace sluice::examples
