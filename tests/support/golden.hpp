// Golden values: those kept as JSON in tests/data, and the numbers that went into some of them. Without nlohmann::json,
// SLUICE_TEST_HAS_JSON is 0.
#pragma once

#include <sluice/core/params.hpp>

#include <cmath>
#include <cstdint>

namespace sluice::test {

// Weights of a language model for which outputs were computed elsewhere: splitmix64 from 42, uniform in [-1, 1), divided
// by the root of a matrix's columns, halved for the head; norms are 1.
template <class Params>
void fill_golden(const Params& p) {
    std::uint64_t state = 42;
    auto fill_next = [&](const tensor_view<double>& t, double scale) {
        for (idx i = 0; i < t.rows(); ++i)
            for (idx j = 0; j < t.cols(); ++j) {
                std::uint64_t z = state += 0x9E3779B97F4A7C15ULL;
                z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ULL;
                z = (z ^ z >> 27) * 0x94D049BB133111EBULL;
                t(i, j) = (static_cast<double>((z ^ z >> 31) >> 11) * 0x1p-53 * 2 - 1) * scale;
            }
    };
    fill_next(p.embedding.table, 1);
    each_param(
        [&](const param_name&, role r, const tensor_view<double>& t) {
            if (r == role::vector)
                fill(t, 1.0);
            else
                fill_next(t, 1 / std::sqrt(static_cast<double>(t.cols())));
        },
        p.body);
    fill_next(p.embedding.head, 0.5);
    fill(p.norm.scale, 1.0);
}

} // namespace sluice::test

#if __has_include(<nlohmann/json.hpp>)
#    define SLUICE_TEST_HAS_JSON 1
#    include <nlohmann/json.hpp>

#    include <fstream>
#    include <string>

namespace sluice::test {

using json = nlohmann::json;
inline json golden(const std::string& name) {
    return json::parse(std::ifstream(SLUICE_TEST_DIR "/data/" + name));
}

} // namespace sluice::test
#else
#    define SLUICE_TEST_HAS_JSON 0
#endif
