// Inputs of benchmarks, the workspace an op asks for, and the comparison of results.
#pragma once

#include <sluice/core/arena.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/core/tensor.hpp>

#include <bit>
#include <cmath>

namespace sluice::bench {

// Uniform in [-scale, scale). A generator of one multiplication, since some inputs are 128 MB.
inline void fill_uniform(tensor_view<float> t, float scale, std::uint64_t seed) {
    std::uint64_t state = seed * 0x9E3779B97F4A7C15ULL + 1;
    for (idx i = 0; i < t.rows(); ++i)
        for (idx j = 0; j < t.cols(); ++j) {
            state = state * 6364136223846793005ULL + 1442695040888963407ULL;
            const auto bits = static_cast<std::int32_t>(state >> 32);
            t(i, j) = scale * static_cast<float>(bits) * 0x1p-31F;
        }
}

inline tensor<float> uniform(idx rows, idx cols, float scale, std::uint64_t seed) {
    tensor<float> t(rows, cols);
    fill_uniform(t, scale, seed);
    return t;
}

// Memory for `f(workspace, executor)`, found by running it on an arena and an executor that only count.
template <class F>
arena workspace_for(idx workers, F&& f) {
    arena counting;
    dry_run nobody{workers};
    f(counting, executor_ref(nobody));
    return arena(counting.bytes());
}

// The largest difference, as a fraction of the largest expected magnitude; infinite where one is not finite.
class difference {
public:
    void add(double got, double expected) {
        if (!std::isfinite(got) || !std::isfinite(expected)) finite_ = false;
        largest_ = std::max(largest_, std::abs(expected));
        apart_ = std::max(apart_, std::abs(got - expected));
    }
    double relative() const {
        if (!finite_) return std::numeric_limits<double>::infinity();
        return apart_ == 0 ? 0 : apart_ / largest_;
    }

private:
    double largest_ = 0, apart_ = 0;
    bool finite_ = true;
};

inline double relative_difference(tensor_view<const float> got, tensor_view<const float> expected) {
    difference d;
    for (idx i = 0; i < got.rows(); ++i)
        for (idx j = 0; j < got.cols(); ++j)
            d.add(static_cast<double>(got(i, j)), static_cast<double>(expected(i, j)));
    return d.relative();
}

} // namespace sluice::bench
