// The benchmark program. Options of its own, before those of Google Benchmark (--benchmark_filter, ...):
//   --full            the rows that take long, too
//   --threads=1,2     how many threads each row runs with
//   --rounds=3        how often each row is measured at least, however long it takes
#include "support/contest.hpp"
#include "support/peers.hpp"
#include "support/report.hpp"

#include <sluice/version.hpp>

#include <charconv>
#include <fstream>
#include <iostream>
#include <string_view>
#include <thread>

namespace {

using namespace sluice::bench;
using sluice::idx;

#define SLUICE_BENCH_TEXT_OF(x) #x
#define SLUICE_BENCH_TEXT(x) SLUICE_BENCH_TEXT_OF(x)

std::string processor() {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);)
        if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
    return "unknown";
}

std::string compiler() {
#if defined(__clang__)
    return "clang " __clang_version__;
#else
    return "g++ " __VERSION__;
#endif
}

// Takes about two seconds for each number of threads.
facts describe() {
    facts all{
        {"sluice", std::to_string(SLUICE_VERSION_MAJOR) + "." + std::to_string(SLUICE_VERSION_MINOR) + "." +
                       std::to_string(SLUICE_VERSION_PATCH) + ", " + SLUICE_BENCH_TEXT(SLUICE_ISA)},
        {"compiler", compiler()},
        {"processor", processor() + ", " + std::to_string(std::thread::hardware_concurrency()) + " threads"}};
    for (const peer& p : peers()) all.emplace_back(p.name, p.version);
    for (const idx threads : selected().threads) {
        sluice::thread_pool pool(threads);
        std::string arithmetic;
        for (const unit u : {unit::f32_fma, unit::f64_fma, unit::int8_dot}) {
            const double peak = measured_peak(u, pool);
            arithmetic += (arithmetic.empty() ? "" : ", ") + name_of(u) + " " +
                          (peak > 0 ? std::to_string(std::lround(peak)) : "absent");
        }
        all.emplace_back("best peak, threads:" + std::to_string(threads), arithmetic + " Gop/s");
        char text[256];
        std::string memory;
        for (const double megabytes : {0.5, 8.0, 256.0}) {
            const double bytes = megabytes * 1e6;
            std::snprintf(text, sizeof(text), "%s%g MB: %.0f / %.0f / %.0f", memory.empty() ? "" : ", ",
                          megabytes, measured_bandwidth(traffic::read, bytes, pool),
                          measured_bandwidth(traffic::write, bytes, pool),
                          measured_bandwidth(traffic::copy, bytes, pool));
            memory += text;
        }
        all.emplace_back("best memory, threads:" + std::to_string(threads),
                         memory + " GB/s read / write / copy");
    }
    return all;
}

// Numbers from 1 to 1024, separated by commas; empty where it is anything else.
std::vector<idx> numbers_in(std::string_view list) {
    std::vector<idx> numbers;
    while (!list.empty()) {
        const std::string_view part = list.substr(0, list.find(','));
        idx n = 0;
        const auto [end, problem] = std::from_chars(part.data(), part.data() + part.size(), n);
        if (problem != std::errc{} || end != part.data() + part.size() || n < 1 || n > 1024) return {};
        numbers.push_back(n);
        list.remove_prefix(std::min(part.size() + 1, list.size()));
    }
    return numbers;
}

} // namespace

int main(int argc, char** argv) {
    enter_peer_environment(argv);
    selected().threads = {1};
    if (std::thread::hardware_concurrency() >= 2) selected().threads.push_back(2);
    bool lists = false, writes = false;
    std::vector<char*> others;
    for (int i = 0; i < argc; ++i) {
        const std::string_view argument = argv[i];
        constexpr std::string_view threads = "--threads=", rounds = "--rounds=";
        if (argument == "--full") {
            selected().full = true;
        } else if (argument.starts_with(threads)) {
            selected().threads = numbers_in(argument.substr(threads.size()));
            if (!selected().threads.empty()) continue;
            std::cerr << argument << ": expected numbers from 1 to 1024, separated by commas\n";
            return EXIT_FAILURE;
        } else if (argument.starts_with(rounds)) {
            const std::vector<idx> number = numbers_in(argument.substr(rounds.size()));
            if (number.size() == 1) {
                selected().rounds = static_cast<std::size_t>(number[0]);
                continue;
            }
            std::cerr << argument << ": expected a number from 1 to 1024\n";
            return EXIT_FAILURE;
        } else {
            lists = lists || argument.starts_with("--benchmark_list_tests");
            writes = writes || argument.starts_with("--benchmark_out=");
            others.push_back(argv[i]);
        }
    }
    others.push_back(nullptr);
    int n_others = static_cast<int>(others.size()) - 1;
    benchmark::Initialize(&n_others, others.data());
    if (benchmark::ReportUnrecognizedArguments(n_others, others.data())) return EXIT_FAILURE;

    for (const declaration declare_rows : declarations()) declare_rows();
    facts header;
    if (!lists) header = describe();
    for (const auto& [name, value] : header) benchmark::AddCustomContext(name, value);
    table shown(header);
    json written;
    benchmark::RunSpecifiedBenchmarks(&shown, writes ? &written : nullptr);
    benchmark::Shutdown();
    return EXIT_SUCCESS;
}
