// Learning rates over the steps of a run.
#pragma once

#include "../core/types.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace sluice {

// Rises linearly over `warm_up` steps to `peak`, then falls along half a cosine to `last` at the final step
// (Loshchilov and Hutter, "SGDR", 2017, without restarts). Steps count from 1.
struct cosine_schedule {
    idx steps = 0;
    idx warm_up = 0;
    double peak = 1e-3;
    double last = 0;

    double operator()(idx step) const {
        if (step <= warm_up) return peak * static_cast<double>(step) / static_cast<double>(warm_up);
        const double span = static_cast<double>(std::max<idx>(steps - warm_up, 1));
        const double done = std::min(1.0, static_cast<double>(step - warm_up) / span);
        return last + (peak - last) * 0.5 * (1 + std::cos(std::numbers::pi * done));
    }
};

// Rises linearly over `warm_up` steps and stays.
struct constant_schedule {
    idx warm_up = 0;
    double peak = 1e-3;

    double operator()(idx step) const {
        return step < warm_up ? peak * static_cast<double>(step) / static_cast<double>(warm_up) : peak;
    }
};

} // namespace sluice
