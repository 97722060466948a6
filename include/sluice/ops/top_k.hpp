// The k largest entries of each row.
#pragma once

#include "../core/executor.hpp"
#include "../core/tensor_view.hpp"
#include "../kernels/top_k.hpp"

namespace sluice {

enum class top_k_order { by_value, by_index }; // largest first, or in the order of the columns

inline namespace SLUICE_ISA {

// indices (m, k): the columns of the k largest entries of each row of x (m, n), k <= n < 2^31. NaN counts as
// smaller than every number; among equal entries the lower column wins. Entries of a row are always distinct.
template <class Arch = simd::native, class T>
void top_k(const tensor_view<T>& x, top_k_order order, tensor_view<std::int32_t> indices, executor_ref ex) {
    require_shape(indices, x.rows(), indices.cols(), "top_k", "indices");
    if (indices.cols() > x.cols())
        SLUICE_THROW(config_error("top_k: k is " + std::to_string(indices.cols()) + ", a row has " +
                                  std::to_string(x.cols()) + " entries"));
    require(x.cols() <= std::numeric_limits<std::int32_t>::max(), "top_k", "rows must be shorter than 2^31");
    ex(x.rows(), [&](idx begin, idx end, idx) {
        for (idx i = begin; i < end; ++i)
            simd::invoke(Arch{}, kernels::top_k{}, static_cast<const std::remove_const_t<T>*>(x.row(i)),
                         x.cols(), indices.cols(), order == top_k_order::by_value, indices.row(i));
    });
}

} // namespace SLUICE_ISA
} // namespace sluice
