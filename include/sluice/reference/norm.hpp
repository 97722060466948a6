// RMSNorm (Zhang and Sennrich, "Root mean square layer normalization", 2019, eq. 4) and LayerNorm (Ba et al.,
// "Layer normalization", 2016, eqs. 3 and 4), with the usual small constant under the root.
#pragma once

#include "../core/tensor_view.hpp"

#include <cmath>

namespace sluice::reference {

enum class norm_kind { rms, layer };

template <class T>
struct norm_weights {
    tensor_view<const T> scale; // 1 x d
    tensor_view<const T> bias;  // 1 x d, or empty
};

// y (n, d) from x (n, d).
template <class T>
void norm(norm_kind kind, double eps, const norm_weights<T>& p, in<T> x, tensor_view<T> y) {
    const idx d = x.cols();
    for (idx i = 0; i < x.rows(); ++i) {
        T mean = 0;
        for (idx j = 0; j < d && kind == norm_kind::layer; ++j) mean += x(i, j) / static_cast<T>(d);
        T square = 0;
        for (idx j = 0; j < d; ++j) square += (x(i, j) - mean) * (x(i, j) - mean) / static_cast<T>(d);
        const T deviation = std::sqrt(square + static_cast<T>(eps));
        for (idx j = 0; j < d; ++j)
            y(i, j) = (x(i, j) - mean) / deviation * p.scale(0, j) + (p.bias.empty() ? T(0) : p.bias(0, j));
    }
}

} // namespace sluice::reference
