// Which differences between models could come from their seeds.
#pragma once

#include <sluice/core/types.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace sluice::examples {

// A result of one model from one seed.
struct seeded_result {
    std::string model;
    std::uint64_t seed;
    double value;
};

// How far chance takes a result.
struct seed_noise {
    double deviation;
    double degrees; // of freedom of that estimate; infinite: it is known

    // Means of n and m results that differ by more come by chance one time in twenty (Student's t).
    double least_difference(idx n, idx m) const {
        const double of_both = 1 / static_cast<double>(n) + 1 / static_cast<double>(m);
        return student() * deviation * std::sqrt(of_both);
    }

private:
    // The quantile of 0.975; from eleven degrees on the first terms of its series in 1 / degrees.
    double student() const {
        constexpr double few[] = {12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228};
        if (degrees < 1) return few[0];
        if (degrees <= 10) return few[static_cast<std::size_t>(degrees) - 1];
        return 1.960 + 2.372 / degrees + 2.823 / (degrees * degrees);
    }
};

// From results of several seeds. A seed decides in which order all models read the text, which makes it lucky
// or unlucky for all of them: where all have the same seeds, that part is taken out (two-way analysis of
// variance), else each model's own spread counts. Without a model of several seeds it is `usual`.
inline seed_noise noise_of(const std::vector<seeded_result>& all, double usual) {
    struct group {
        std::string model;
        std::vector<std::uint64_t> seeds;
        std::vector<double> values;
        double mean = 0;
    };
    std::vector<group> groups;
    auto ordered = all;
    std::sort(ordered.begin(), ordered.end(), [](const auto& a, const auto& b) { return a.seed < b.seed; });
    for (const auto& r : ordered) {
        auto at =
            std::find_if(groups.begin(), groups.end(), [&](const group& g) { return g.model == r.model; });
        if (at == groups.end()) at = groups.insert(at, {r.model, {}, {}, 0});
        at->seeds.push_back(r.seed);
        at->values.push_back(r.value);
    }
    double squares = 0, degrees = 0;
    for (group& g : groups) {
        for (const double v : g.values) g.mean += v / static_cast<double>(g.values.size());
        for (const double v : g.values) squares += (v - g.mean) * (v - g.mean);
        degrees += static_cast<double>(g.values.size() - 1);
    }
    if (degrees == 0) return {usual, std::numeric_limits<double>::infinity()};

    const auto of_first = [&](const group& g) { return g.seeds == groups[0].seeds; };
    if (groups.size() > 1 && std::all_of(groups.begin(), groups.end(), of_first)) {
        const auto models = static_cast<double>(groups.size());
        for (std::size_t s = 0; s < groups[0].seeds.size(); ++s) {
            double luck = 0;
            for (const group& g : groups) luck += (g.values[s] - g.mean) / models;
            squares -= models * luck * luck;
        }
        degrees -= static_cast<double>(groups[0].seeds.size() - 1);
    }
    return {std::sqrt(std::max(squares, 0.0) / degrees), degrees};
}

} // namespace sluice::examples
