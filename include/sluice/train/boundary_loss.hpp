// The loss that keeps the number of boundaries near one for every R tokens (Qu et al., "Dynamic large concept
// models", 2025, eqs. 8-10), over all tokens of a step:
//   L = R / (R - 1) ((R - 1) F G + (1 - F)(1 - G)) - 1;   F: share of boundaries, G: mean of p
// F has no gradient. It is a saddle: zero where F or G is 1 / R, below zero where they lie on either side of
// it. Backward of a layer adds its gradient: boundary_loss_config.
#pragma once

#include "../ops/segment.hpp"

namespace sluice {

// Throws config_error unless ratio is above 1. Of no tokens 0.
inline double boundary_loss(const boundary_counts& c, double ratio) {
    require(ratio > 1, "boundary_loss", "ratio must be above 1, is " + std::to_string(ratio));
    if (c.tokens == 0) return 0;
    const double f = c.share(), g = c.mean();
    return ratio / (ratio - 1) * ((ratio - 1) * f * g + (1 - f) * (1 - g)) - 1;
}

// The same as a product: (R F - 1)(R G - 1) / (R - 1).
inline double boundary_loss_as_product(const boundary_counts& c, double ratio) {
    require(ratio > 1, "boundary_loss", "ratio must be above 1, is " + std::to_string(ratio));
    if (c.tokens == 0) return 0;
    return (ratio * c.share() - 1) * (ratio * c.mean() - 1) / (ratio - 1);
}

} // namespace sluice
