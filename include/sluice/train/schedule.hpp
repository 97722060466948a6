// What changes over the steps of a run, and over the layers of a model: learning rates, and for
// Mixture-of-Depths which layers route and how many tokens.
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

// Which layers of a model route tokens past them: every other one, and not the first (Raposo et al.,
// "Mixture-of-Depths", 2024, section 3.1). Layers count from 0.
struct routed_layers {
    idx every = 2; // the last of so many; 1: all

    bool operator()(idx layer) const { return layer % every == every - 1; }
    idx count(idx n_layers) const { return n_layers / every; }
};

// For depth_router_config::capacity: `first` falling in a line to `last` over `steps`, for runs that start
// dense. The paper's capacity is `last` from the start. Steps count from 1.
struct capacity_schedule {
    idx steps = 0;
    double first = 1, last = 0.125;

    double operator()(idx step) const {
        if (step >= steps) return last;
        return first + (last - first) * static_cast<double>(step - 1) / static_cast<double>(steps - 1);
    }
};

} // namespace sluice
