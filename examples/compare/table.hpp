// What a comparison found, as lines of text.
#pragma once

#include "race.hpp"
#include "support/seed_noise.hpp"

namespace sluice::examples {

// Spread of a model over seeds at this scale, in bits per byte; 64x4 on the headers of Eigen, three seeds.
// Measured again where a comparison has several seeds.
inline constexpr double usual_noise = 0.03;

// Mean and spread of a model over its seeds.
struct seed_summary {
    const outcome_of_run* first = nullptr;
    double mean = 0, deviation = 0;
    double looking_ahead = 0; // how far from the mean by the rule of training; NaN: there is no other rule
    idx seeds = 0;
    bool finished = true; // all of them
};

inline std::vector<seed_summary> by_model(const std::vector<outcome_of_run>& runs) {
    std::vector<seed_summary> all;
    for (const auto& r : runs) {
        auto at = std::find_if(all.begin(), all.end(),
                               [&](const seed_summary& s) { return s.first->who.name == r.who.name; });
        if (at == all.end()) at = all.insert(all.end(), {.first = &r});
        at->mean += r.bits;
        at->looking_ahead += r.bits_looking_ahead - r.bits;
        at->seeds += 1;
        at->finished = at->finished && r.finished();
    }
    for (seed_summary& s : all) {
        s.mean /= static_cast<double>(s.seeds);
        s.looking_ahead /= static_cast<double>(s.seeds);
        for (const auto& r : runs)
            if (r.who.name == s.first->who.name) s.deviation += (r.bits - s.mean) * (r.bits - s.mean);
        s.deviation = s.seeds > 1 ? std::sqrt(s.deviation / static_cast<double>(s.seeds - 1)) : 0;
    }
    return all;
}

inline seed_noise noise_of(const std::vector<outcome_of_run>& runs) {
    std::vector<seeded_result> results;
    for (const auto& r : runs)
        if (r.finished()) results.push_back({r.who.name, r.who.seed, r.bits});
    return noise_of(results, usual_noise);
}

inline std::string short_number(double x) {
    char text[32];
    const char* const units[] = {"", "k", "M", "G", "T", "P"};
    std::size_t u = 0;
    while (x >= 999.5 && u + 1 < std::size(units)) x /= 1000, ++u;
    std::snprintf(text, sizeof text,
                  x < 10 && u > 0    ? "%.2f%s"
                  : x < 100 && u > 0 ? "%.1f%s"
                                     : "%.0f%s",
                  x, units[u]);
    return text;
}

inline const std::vector<std::string>& column_names() {
    static const std::vector<std::string> names{"model",       "bits/byte",     "+-",           "parameters",
                                                "active",      "share",         "tokens",       "train FLOPs",
                                                "FLOPs/token", "KV bytes",      "weights B",    "of peak",
                                                "train tok/s", "prefill tok/s", "decode tok/s", "streamed"};
    return names;
}

inline std::vector<std::vector<std::string>> cells(const std::vector<outcome_of_run>& runs) {
    std::vector<std::vector<std::string>> rows;
    for (const seed_summary& s : by_model(runs)) {
        const outcome_of_run& r = *s.first;
        char bits[32], spread[32], apart[32];
        std::snprintf(bits, sizeof bits, "%.3f", s.mean);
        std::snprintf(spread, sizeof spread, s.seeds > 1 ? "%.3f" : "-", s.deviation);
        double difference = 0;
        for (const auto& other : runs)
            if (other.who.name == r.who.name) difference = std::max(difference, other.stream_difference);
        std::snprintf(apart, sizeof apart, difference == 0 ? "same" : "%.0e off", difference);
        const double flops = r.costs.step_flops * static_cast<double>(r.done);
        const double seconds = std::max(r.seconds, 1e-9);
        char share[32], of_peak[32];
        std::snprintf(of_peak, sizeof of_peak, "%.2f", flops / seconds / r.peak);
        std::snprintf(share, sizeof share, "%.3f", r.costs.share);
        rows.push_back({r.who.name + (r.finished() ? "" : "*"), bits, spread,
                        short_number(r.costs.parameters), short_number(r.costs.active),
                        r.costs.share == 1 ? "-" : share, short_number(r.tokens()), short_number(flops),
                        short_number(r.costs.token_flops), short_number(r.costs.state_bytes),
                        short_number(4 * r.costs.active), of_peak, short_number(r.tokens() / seconds),
                        short_number(r.speeds.prefill), short_number(r.speeds.decode), apart});
    }
    return rows;
}

inline void print_table(const std::vector<outcome_of_run>& runs) {
    auto rows = cells(runs);
    rows.insert(rows.begin(), column_names());
    std::vector<std::size_t> widths(column_names().size());
    for (const auto& row : rows)
        for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
    for (const auto& row : rows) {
        for (std::size_t i = 0; i < row.size(); ++i)
            std::printf(i == 0 ? "%-*s" : "  %*s", static_cast<int>(widths[i]), row[i].c_str());
        std::putchar('\n');
    }
    if (std::any_of(runs.begin(), runs.end(), [](const auto& r) { return !r.finished(); }))
        std::printf("* stopped before its end, where the learning rate is still high: no result\n");
}

// One sentence for each model about how it did against the dense one, and against the control made for it;
// what the noise of seeds could do is no difference.
inline std::vector<std::string> findings(const std::vector<outcome_of_run>& runs) {
    const auto all = by_model(runs);
    const seed_noise noise = noise_of(runs);
    std::vector<std::string> result;
    auto find = [&](const std::string& name) -> const seed_summary* {
        for (const auto& s : all)
            if (s.first->who.name == name) return &s;
        return nullptr;
    };
    auto compare = [&](const seed_summary& a, const seed_summary& b) {
        if (!a.finished || !b.finished) return; // says nothing yet
        const double unsure = noise.least_difference(a.seeds, b.seeds), gap = a.mean - b.mean;
        char text[256];
        std::snprintf(text, sizeof text, "%s against %s: %+.3f bits per byte, %s (noise of seeds +-%.3f)",
                      a.first->who.name.c_str(), b.first->who.name.c_str(), gap,
                      std::abs(gap) < unsure ? "which these seeds cannot tell from nothing"
                      : gap < 0              ? "better"
                                             : "worse",
                      unsure);
        result.push_back(text);
    };
    const seed_summary* const dense = find("dense");
    for (const auto& s : all) {
        if (dense != nullptr && &s != dense) compare(s, *dense);
        if (!s.first->who.control_of.empty())
            if (const auto* const of = find(s.first->who.control_of)) compare(*of, s);
        const std::string& name = s.first->who.name;
        if (!std::isnan(s.looking_ahead)) {
            char text[160];
            std::snprintf(text, sizeof text,
                          "%s by its top-k, which sees later text: %+.4f bits per byte from its predictor, "
                          "which does not",
                          name.c_str(), s.looking_ahead);
            result.push_back(text);
        }
        if (const auto plus = name.find('+'); plus != name.npos)
            for (const auto& part : {name.substr(0, plus), name.substr(plus + 1)})
                if (const auto* const alone = find(part)) compare(s, *alone);
        const auto* const experts = find("experts:16");
        if (experts != nullptr && &s != experts && name.starts_with("experts:")) compare(s, *experts);
    }
    return result;
}

} // namespace sluice::examples
