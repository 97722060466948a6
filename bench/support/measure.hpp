// Timing of several calls against each other: in turn, A B C A B C ..., so that whatever else the machine
// does hits all of them alike. A sample is at least a millisecond; ratios are medians of the ratios within a
// round.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <functional>
#include <vector>

namespace sluice::bench {

using call = std::function<void()>;

inline double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline double quantile(std::vector<double> values, double at) {
    if (values.empty()) return std::nan("");
    std::sort(values.begin(), values.end());
    const double position = at * static_cast<double>(values.size() - 1);
    const auto below = static_cast<std::size_t>(position);
    const auto above = std::min(below + 1, values.size() - 1);
    return values[below] + (position - static_cast<double>(below)) * (values[above] - values[below]);
}

// Seconds of one call, an entry for every round.
struct series {
    std::vector<double> seconds;

    double median() const { return quantile(seconds, 0.5); }
    double best() const { return quantile(seconds, 0); }
    // Distance of the quartiles, as a fraction of the median: how noisy the row was.
    double spread() const { return (quantile(seconds, 0.75) - quantile(seconds, 0.25)) / median(); }
};

// How many times longer `a` took than `b`.
inline double ratio(const series& a, const series& b) {
    std::vector<double> of_round(std::min(a.seconds.size(), b.seconds.size()));
    for (std::size_t i = 0; i < of_round.size(); ++i) of_round[i] = a.seconds[i] / b.seconds[i];
    return quantile(of_round, 0.5);
}

// Threads of the contender before spin for a while before they sleep, and would take processor time from the
// next one.
inline void let_others_sleep() {
    for (const double until = now() + 100e-6; now() < until;) {
    }
}

inline double seconds_of(const call& f, std::size_t calls) {
    const double start = now();
    for (std::size_t i = 0; i < calls; ++i) f();
    return (now() - start) / static_cast<double>(calls);
}

// One call's duration, roughly; the first call warms up.
inline double estimate(const call& f) {
    constexpr double enough = 2e-3;
    double seconds = seconds_of(f, 1);
    for (std::size_t calls = 1; seconds * static_cast<double>(calls) < enough && calls < 4096; calls *= 4)
        seconds = seconds_of(f, calls);
    return seconds;
}

struct time_budget {
    double target = 1.5; // seconds to spend where a round is short
    double most = 6;     // after the fewest rounds, start none that would end later
    std::size_t fewest = 3, rounds = 201;
};

struct contender {
    call f;
    double roughly = 0; // seconds of a call, where they are known
};

inline std::vector<series> interleave(const std::vector<contender>& contenders,
                                      const time_budget& budget = {}) {
    constexpr double sample = 1e-3, too_long_to_warm = 20e-3;
    struct plan {
        std::size_t calls;
        bool warm; // bring its data back into the caches first
    };
    std::vector<plan> plans;
    double round = 0;
    for (const contender& c : contenders) {
        // What is known of short calls is known of cold ones.
        const double once = c.roughly > too_long_to_warm ? c.roughly : estimate(c.f);
        const auto calls = static_cast<std::size_t>(std::max(1.0, std::ceil(sample / once)));
        plans.push_back({calls, once < too_long_to_warm});
        round += once * static_cast<double>(calls + (plans.back().warm ? 1 : 0));
    }
    const double wanted = std::ceil(budget.target / round);
    const auto rounds =
        std::max(budget.fewest, std::min(static_cast<std::size_t>(std::min(wanted, 1e6)), budget.rounds));

    std::vector<series> result(contenders.size());
    const double start = now();
    for (std::size_t r = 0; r < rounds && (r < budget.fewest || now() - start + round < budget.most); ++r)
        for (std::size_t i = 0; i < contenders.size(); ++i) {
            let_others_sleep();
            if (plans[i].warm) contenders[i].f();
            result[i].seconds.push_back(seconds_of(contenders[i].f, plans[i].calls));
        }
    return result;
}

} // namespace sluice::bench
