// A row of the benchmarks: an op of ours, its counterparts and the machine's limits, timed in turn in one
// run.
//
//     const declare rows([] {
//         row("matmul/unpacked/f32/512x2048x2048", [](contest& c) {
//             auto& d = c.hold<data>(...);                    // lives as long as the row
//             c.flops(2.0 * 512 * 2048 * 2048);               // gives peak and peak_share
//             c.ours([&d, ex = c.executor()] { ... }, d.y);   // what is timed, and its result
//             c.against("openblas", openblas(...), d.y_peer); // vs_openblas; an empty call is left out
//         });
//     });
//
// Every row runs with each number of threads. Before the clock starts each result is compared once; a wrong
// one ends the program.
#pragma once

#include "data.hpp"
#include "machine.hpp"

#include <sluice/parallel/thread_pool.hpp>

#include <benchmark/benchmark.h>

#include <cstdio>
#include <memory>
#include <optional>

namespace sluice::bench {
inline namespace SLUICE_ISA {

// What the command line chose.
struct selection {
    bool full = false;
    std::vector<idx> threads;
    std::size_t rounds = time_budget{}.fewest; // at least
};
inline selection& selected() {
    static selection s;
    return s;
}

class contest {
public:
    contest(std::string name, idx threads) : name_(std::move(name)), pool_(threads) {}
    contest(const contest&) = delete;

    idx threads() const { return pool_.concurrency(); }
    executor_ref executor() { return pool_; }

    template <class T, class... Args>
    T& hold(Args&&... args) {
        auto made = std::make_shared<T>(std::forward<Args>(args)...);
        held_.push_back(made);
        return *made;
    }

    // Work of one call. Useful work only: no masked pair, nothing computed twice.
    void flops(double n, unit peak = unit::f32_fma) {
        flops_ = n;
        unit_ = peak;
    }
    // `windows`: of so many parts of its memory that large each call needs another one.
    void bytes(double n, traffic kind, idx windows = 1) {
        bytes_ = n;
        traffic_ = kind;
        windows_ = windows;
    }
    void tokens(double n) { tokens_ = n; }
    void rows(double n) { rows_ = n; }

    void ours(call f, tensor_view<float> result = {}) { ours_ = {"", {std::move(f)}, result, 0}; }
    // `name` as in the counter vs_<name>. The results are compared where both are given.
    void against(std::string name, call f, tensor_view<float> result = {}, double tolerance = 1e-4) {
        if (f) others_.push_back({std::move(name), {std::move(f)}, result, tolerance});
    }
    // The same work without what is measured: overhead = ours / base - 1.
    void overhead_over(call f) { base_ = std::move(f); }
    // A number beside the times.
    void note(std::string name, double value) { notes_.emplace_back(std::move(name), value); }
    // `error` is called after ours has run once on a zeroed result, and returns a relative difference.
    void check(std::string what, std::function<double()> error, double tolerance) {
        checks_.push_back({std::move(what), std::move(error), tolerance});
    }

    void run(benchmark::State& state) {
        compare();
        // The arithmetic loop is made as long as ours, so ours is timed first.
        if (ours_.timed.roughly < 20e-3) ours_.timed.roughly = estimate(ours_.timed.f);
        std::vector<contender> contenders{ours_.timed};
        for (const entry& other : others_) contenders.push_back(other.timed);
        const std::size_t base = contenders.size();
        if (base_) contenders.push_back({base_});

        const std::size_t peak = contenders.size();
        const double peak_ops = flops_ > 0 ? add_peak(contenders) : 0;
        const std::size_t stream = contenders.size();
        const double stream_bytes = bytes_ > 0 ? add_stream(contenders) : 0;

        const double spent = now() - started_;
        const std::vector<series> took =
            interleave(contenders, {.most = std::max(1.0, row_seconds - spent), .fewest = selected().rounds});
        const series& mine = took.front();
        const double median = mine.median();
        for ([[maybe_unused]] auto _ : state) state.SetIterationTime(median);
        auto& counters = state.counters;
        for (std::size_t i = 0; i < others_.size(); ++i)
            counters["vs_" + others_[i].name] = ratio(took[i + 1], mine);
        if (base_) counters["overhead"] = ratio(mine, took[base]) - 1;
        if (peak_ops > 0) {
            counters["peak"] = 1e-9 * peak_ops / took[peak].median();
            counters["peak_share"] = flops_ / peak_ops * ratio(took[peak], mine);
        }
        if (flops_ > 0) counters["rate"] = 1e-9 * flops_ / median;
        if (stream_bytes > 0) {
            counters["bandwidth"] = 1e-9 * bytes_ / median;
            counters["bandwidth_share"] = bytes_ / stream_bytes * ratio(took[stream], mine);
        }
        if (tokens_ > 0) counters["tokens_per_second"] = tokens_ / median;
        if (rows_ > 0) counters["ns_per_row"] = 1e9 * median / rows_;
        for (const auto& [name, value] : notes_) counters[name] = value;
        counters["rounds"] = static_cast<double>(mine.seconds.size());
        if (mine.seconds.size() >= 3) counters["spread"] = mine.spread();
    }

private:
    static constexpr double row_seconds = 9; // with preparation and comparison

    struct entry {
        std::string name;
        contender timed;
        tensor_view<float> result;
        double tolerance = 0;
    };
    struct condition {
        std::string what;
        std::function<double()> error;
        double tolerance;
    };

    void require_near(const std::string& what, double error, double tolerance) const {
        if (error <= tolerance) return; // false for NaN as well
        std::fprintf(stderr, "%s/threads:%td: wrong result: differs by %.2g from %s, allowed is %.2g\n",
                     name_.c_str(), threads(), error, what.c_str(), tolerance);
        std::exit(EXIT_FAILURE);
    }
    static void run_once(entry& e) {
        fill(e.result, 0.0F);
        e.timed.roughly = seconds_of(e.timed.f, 1);
    }
    void compare() {
        run_once(ours_);
        bool compared = false;
        for (const condition& c : checks_) {
            require_near(c.what, c.error(), c.tolerance);
            compared = true;
        }
        for (entry& other : others_) {
            if (other.result.empty() || ours_.result.empty()) continue;
            run_once(other);
            require_near(other.name, relative_difference(ours_.result, other.result), other.tolerance);
            compared = true;
        }
        if (compared) return;
        std::fprintf(stderr, "%s: nothing to compare the result with\n", name_.c_str());
        std::exit(EXIT_FAILURE);
    }
    double add_peak(std::vector<contender>& contenders) {
        const auto& loop = hold<peak_loop>(unit_, ours_.timed.roughly, executor());
        contenders.push_back({[&loop] { loop(); }, ours_.timed.roughly});
        return loop.ops();
    }
    double add_stream(std::vector<contender>& contenders) {
        auto& loop = hold<stream_loop>(traffic_, bytes_, executor(), windows_);
        contenders.push_back({[&loop] { loop(); }});
        return loop.bytes();
    }

    std::string name_;
    double started_ = now();
    thread_pool pool_;
    std::vector<std::shared_ptr<void>> held_;
    double flops_ = 0, bytes_ = 0, tokens_ = 0, rows_ = 0;
    unit unit_ = unit::f32_fma;
    traffic traffic_ = traffic::read;
    idx windows_ = 1;
    entry ours_;
    std::vector<entry> others_;
    call base_;
    std::vector<condition> checks_;
    std::vector<std::pair<std::string, double>> notes_;
};

using declaration = void (*)();
inline std::vector<declaration>& declarations() {
    static std::vector<declaration> all;
    return all;
}
// A static object of it in every benchmark file; the function is called once the command line is known.
struct declare {
    explicit declare(declaration f) { declarations().push_back(f); }
};

enum class when { always, full }; // full: only with --full

// `prepare` describes the contest; it is called when the row's turn comes.
inline void row(const std::string& name, std::function<void(contest&)> prepare, when w = when::always) {
    if (w == when::full && !selected().full) return;
    for (const idx threads : selected().threads) {
        auto body = [name, prepare, threads](benchmark::State& state) {
            contest c(name, threads);
            prepare(c);
            c.run(state);
        };
        benchmark::RegisterBenchmark((name + "/threads:" + std::to_string(threads)).c_str(), body)
            ->Iterations(1)
            ->UseManualTime()
            ->Unit(benchmark::kMicrosecond);
    }
}

} // namespace SLUICE_ISA
} // namespace sluice::bench
