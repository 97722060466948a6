// The table that a run prints, a line as soon as a row is done, and names without what Google Benchmark
// appends for its own way of counting iterations.
#pragma once

#include <benchmark/benchmark.h>

#include <cstdio>
#include <string>
#include <utility>
#include <vector>

namespace sluice::bench {

using facts = std::vector<std::pair<std::string, std::string>>;

inline std::vector<benchmark::BenchmarkReporter::Run>
with_plain_names(std::vector<benchmark::BenchmarkReporter::Run> runs) {
    for (auto& run : runs) {
        run.run_name.iterations.clear();
        run.run_name.time_type.clear();
    }
    return runs;
}

class json : public benchmark::JSONReporter {
public:
    void ReportRuns(const std::vector<Run>& runs) override {
        benchmark::JSONReporter::ReportRuns(with_plain_names(runs));
    }
};

class table : public benchmark::BenchmarkReporter {
public:
    explicit table(facts header) : header_(std::move(header)) {}

    bool ReportContext(const Context& context) override {
        constexpr std::size_t appended = sizeof("/iterations:1/manual_time") - 1;
        name_width_ =
            static_cast<int>(context.name_field_width > appended ? context.name_field_width - appended : 1);
        std::size_t width = 0;
        for (const auto& [name, value] : header_) width = std::max(width, name.size());
        for (const auto& [name, value] : header_)
            std::printf("%-*s  %s\n", static_cast<int>(width), name.c_str(), value.c_str());
        std::printf("\ntime: median of one call; share: of what a loop of this machine reaches beside it, in "
                    "arithmetic "
                    "(Gop/s) and in loads and stores (GB/s);\nspread: distance of the quartiles of the time; "
                    "vs: above 1, "
                    "ours is faster\n\n");
        std::printf("%-*s %12s %9s %9s %6s %8s %6s %10s %6s %7s  %s\n", name_width_, "row", "time", "Gop/s",
                    "peak", "share", "GB/s", "share", "tokens/s", "rounds", "spread", "counterparts");
        std::fflush(stdout);
        return true;
    }

    void ReportRuns(const std::vector<Run>& runs) override {
        for (const Run& run : with_plain_names(runs)) line(run);
        std::fflush(stdout);
    }

private:
    void line(const Run& run) const {
        std::printf("%-*s ", name_width_, run.benchmark_name().c_str());
        time(run.GetAdjustedRealTime() / benchmark::GetTimeUnitMultiplier(run.time_unit));
        number(run, "rate", 9, 1);
        number(run, "peak", 9, 1);
        number(run, "peak_share", 6, 2);
        number(run, "bandwidth", 8, 1);
        number(run, "bandwidth_share", 6, 2);
        number(run, "tokens_per_second", 10, 0);
        number(run, "rounds", 6, 0);
        percent(run, "spread", 7);
        std::printf(" ");
        for (const auto& [name, counter] : run.counters)
            if (name.starts_with("vs_")) std::printf(" %s %.2f", name.c_str(), counter.value);
        if (run.counters.contains("ns_per_row")) number(run, "ns_per_row", 0, 0), std::printf(" ns/row");
        if (run.counters.contains("overhead")) percent(run, "overhead", 5), std::printf(" overhead");
        std::printf("\n");
    }
    static void time(double seconds) {
        if (seconds >= 1)
            std::printf("%9.3f s ", seconds);
        else if (seconds >= 1e-3)
            std::printf("%9.3f ms", 1e3 * seconds);
        else
            std::printf("%9.3f us", 1e6 * seconds);
    }
    static void number(const Run& run, const char* counter, int width, int digits) {
        const auto found = run.counters.find(counter);
        if (found == run.counters.end())
            std::printf(" %*s", width, "");
        else
            std::printf(" %*.*f", width, digits, found->second.value);
    }
    static void percent(const Run& run, const char* counter, int width) {
        const auto found = run.counters.find(counter);
        if (found == run.counters.end())
            std::printf(" %*s", width, "");
        else
            std::printf(" %*.1f%%", width - 1, 100 * found->second.value);
    }

    facts header_;
    int name_width_ = 1;
};

} // namespace sluice::bench
