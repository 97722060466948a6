// Trains the contestants, several side by side with a thread each, and keeps every one in a file of its own.
#pragma once

#include "contest.hpp"
#include "units.hpp"

#include "../../bench/support/fma_peak.hpp"

#include "support/interrupt.hpp"
#include "support/progress.hpp"

#include <sluice/train/schedule.hpp>

#include <atomic>
#include <ctime>
#include <exception>
#include <filesystem>
#include <mutex>
#include <sstream>
#include <thread>

namespace sluice::examples {

struct curve_point {
    idx step = 0;
    double bits = 0, seconds = 0;
};

struct outcome_of_run {
    contestant who;
    std::unique_ptr<candidate> model;
    idx done = 0;
    double seconds = 0; // of training alone
    std::vector<curve_point> curve;
    double bits = std::nan(""), bits_looking_ahead = std::nan(""), stream_difference = 0;
    double peak = 0; // multiplications and additions a second that the thread can do
    model_costs costs{};
    model_speeds speeds{};
    std::string sample;

    bool finished() const { return done == who.steps; }
    double tokens() const { return static_cast<double>(done * who.size.sequences * who.size.context); }
};

struct race_options {
    double rate = 6e-3;
    idx judged = 256, probed = 32; // windows of the held-out text, at the end and on the way
    idx workers = 2;
    std::string folder; // of checkpoints; empty: none
    bool resume = false;
    idx stop_after = 0;   // steps of each model in this call; 0: to the end
    std::string identity; // of text and settings
};

// What several threads say about their runs: one line each when they end, and on a terminal one that is
// redrawn meanwhile.
class scoreboard {
public:
    explicit scoreboard(std::size_t n) : lines_(n), on_terminal_(is_terminal(stderr)) {}
    void update(std::size_t i, const contestant& who, idx step, double bits) {
        const std::lock_guard lock(mutex_);
        char text[64];
        std::snprintf(text, sizeof text, "%s %2.0f%% %.2f", who.name.c_str(),
                      100.0 * static_cast<double>(step) / static_cast<double>(who.steps), bits);
        lines_[i] = text;
        if (on_terminal_) redraw();
    }
    void finish(std::size_t i, const outcome_of_run& r) {
        const std::lock_guard lock(mutex_);
        lines_[i].clear();
        if (on_terminal_) std::fprintf(stderr, "\r\033[K");
        std::printf("%-14s seed %-3llu %s after %td of %td steps, %.3f bits per byte, %.0f s\n",
                    r.who.name.c_str(), static_cast<unsigned long long>(r.who.seed),
                    r.finished() ? "done" : "stopped", r.done, r.who.steps, r.bits, r.seconds);
        std::fflush(stdout);
    }

private:
    void redraw() {
        std::string all;
        for (const auto& l : lines_)
            if (!l.empty()) all += (all.empty() ? "" : " | ") + l;
        std::fprintf(stderr, "\r\033[K%s", all.substr(0, 100).c_str());
    }
    std::mutex mutex_;
    std::vector<std::string> lines_;
    bool on_terminal_;
};

inline double now_seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
// What the calling thread has worked, where the system tells: others may run beside it.
inline double worked_seconds() {
#if defined(CLOCK_THREAD_CPUTIME_ID)
    timespec t{};
    if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t) == 0)
        return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
#endif
    return now_seconds();
}

namespace detail {

inline std::string file_of(const race_options& o, const contestant& who) {
    std::string name = who.name + "." + std::to_string(who.seed) + ".safetensors";
    std::replace_if(
        name.begin(), name.end(), [](char c) { return c == '/' || c == ':'; }, '-');
    return (std::filesystem::path(o.folder) / name).string();
}

inline void keep(const race_options& o, const outcome_of_run& r) {
    if (o.folder.empty()) return;
    io::safetensors_writer out;
    std::ostringstream curve;
    curve.imbue(std::locale::classic());
    curve.precision(17);
    curve << r.done << ' ' << r.seconds << ' ' << r.curve.size();
    for (const auto& p : r.curve) curve << ' ' << p.step << ' ' << p.bits << ' ' << p.seconds;
    out.metadata("identity", o.identity);
    out.metadata("steps", std::to_string(r.who.steps));
    out.metadata("curve", curve.str());
    r.model->save(out, "");
    out.save(file_of(o, r.who));
}

// Whether there was something to go on from.
inline bool take_up(const race_options& o, outcome_of_run& r) {
    if (!o.resume || o.folder.empty() || !std::filesystem::exists(file_of(o, r.who))) return false;
    const io::safetensors in(io::read(file_of(o, r.who)));
    auto value = [&](const std::string& key) {
        const auto found = in.metadata().find(key);
        return found == in.metadata().end() ? std::string() : found->second;
    };
    if (value("identity") != o.identity)
        throw std::runtime_error("--resume: " + in.path() + " is of another run:\n  there " +
                                 value("identity") + "\n  here  " + o.identity);
    std::istringstream curve(value("curve"));
    curve.imbue(std::locale::classic());
    std::size_t n = 0;
    idx steps = 0;
    curve >> r.done >> r.seconds >> n;
    std::istringstream(value("steps")) >> steps;
    for (curve_point p; r.curve.size() < n && curve >> p.step >> p.bits >> p.seconds;) r.curve.push_back(p);
    if (!curve || r.done < 0 || r.done > steps || steps < 1)
        throw std::runtime_error("--resume: " + in.path() + " is damaged: its curve cannot be read");
    r.who.steps = steps; // what a budget of time came to
    r.model->load(in, "");
    return true;
}

inline void train(const race_options& o, const unit_text& text, outcome_of_run& r, std::size_t i,
                  scoreboard& board) {
    const idx steps = r.who.steps;
    const cosine_schedule rate{
        .steps = steps, .warm_up = std::max<idx>(steps / 25, 1), .peak = o.rate, .last = 0.03 * o.rate};
    windows w(r.who.size.sequences, r.who.size.context);
    const idx probe_every = std::max<idx>(steps / 20, 1);
    double bits = r.curve.empty() ? 8 : r.curve.back().bits, saved = now_seconds();
    const idx last = o.stop_after > 0 ? std::min(steps, r.done + o.stop_after) : steps;
    while (r.done < last && !interrupted()) {
        const double start = worked_seconds();
        w.draw(text.training, r.who.seed, ++r.done);
        (void)r.model->step(w, r.who.seed, r.done, rate(r.done));
        r.seconds += worked_seconds() - start;
        if (r.done % probe_every == 0) {
            bits = r.model->bits(text.judged(), o.probed);
            r.curve.push_back({r.done, bits, r.seconds});
        }
        if (r.done % 16 == 0) board.update(i, r.who, r.done, bits);
        if (now_seconds() - saved > 60) {
            keep(o, r);
            saved = now_seconds();
        }
    }
    keep(o, r);
}

// What is known of a model once it is trained: by rules that see no later byte, at once and from the state.
inline void judge(const race_options& o, const unit_text& text, outcome_of_run& r) {
    r.bits = r.model->bits(text.judged(), o.judged);
    r.bits_looking_ahead = r.model->bits_looking_ahead(text.judged(), o.judged);
    const std::size_t n = std::min(static_cast<std::size_t>(r.who.size.context), text.held_out.size());
    for (std::size_t k = 0; k < 4; ++k) {
        const std::size_t at = k * (text.held_out.size() - n) / 4;
        const auto ids = std::span(text.held_out).subspan(at, n);
        const auto whole = r.model->log_likelihoods(ids, 0);
        const auto streamed = r.model->log_likelihoods(ids, k == 0 ? 1 : static_cast<idx>(3 * k));
        for (std::size_t j = 0; j < whole.size(); ++j)
            r.stream_difference = std::max(r.stream_difference, std::abs(whole[j] - streamed[j]));
    }
    r.costs = r.model->costs();
    r.peak = bench::thread_peak(worked_seconds);
}

} // namespace detail

// All runs, o.workers at a time. Stops in good order once interrupted() is true: runs that were not begun
// are left out of the result.
inline std::vector<outcome_of_run> race(const std::vector<contestant>& all, const race_options& o,
                                        const unit_text& text) {
    std::vector<outcome_of_run> results(all.size());
    scoreboard board(all.size());
    std::atomic<std::size_t> next{0};
    std::mutex failing;
    std::exception_ptr failure;
    auto work = [&] {
        for (std::size_t i = next++; i < all.size() && !interrupted(); i = next++) try {
                outcome_of_run& r = results[i];
                r.who = all[i];
                r.model = r.who.make(r.who.size, r.who.seed);
                (void)detail::take_up(o, r);
                detail::train(o, text, r, i, board);
                detail::judge(o, text, r);
                board.finish(i, r);
            } catch (...) {
                const std::lock_guard lock(failing);
                if (!failure) failure = std::current_exception();
                next = all.size();
            }
    };
    std::vector<std::thread> others;
    for (idx i = 1; i < std::min(o.workers, static_cast<idx>(all.size())); ++i) others.emplace_back(work);
    work();
    for (auto& t : others) t.join();
    if (failure) std::rethrow_exception(failure);
    std::erase_if(results, [](const outcome_of_run& r) { return !r.model; });
    return results;
}

} // namespace sluice::examples
