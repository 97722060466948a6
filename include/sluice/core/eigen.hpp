// The one door to Eigen: turns a tensor_view into an Eigen::Map on the same memory.
#pragma once

#include "tensor_view.hpp"

// g++ 12 warns of uninitialised values inside its own AVX-512 headers, which Eigen may be the first to
// include.
#if defined(__GNUC__) && !defined(__clang__)
#    pragma GCC diagnostic push
#    pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#    pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <Eigen/Core>
#if defined(__GNUC__) && !defined(__clang__)
#    pragma GCC diagnostic pop
#endif

namespace sluice {

template <class T>
using eigen_matrix = Eigen::Matrix<std::remove_const_t<T>, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

template <class T>
using eigen_map = Eigen::Map<std::conditional_t<std::is_const_v<T>, const eigen_matrix<T>, eigen_matrix<T>>,
                             Eigen::Unaligned, Eigen::OuterStride<>>;

template <class T>
template <class>
auto tensor_view<T>::eigen() const {
    return eigen_map<T>(data_, rows_, cols_, Eigen::OuterStride<>(row_stride_));
}

} // namespace sluice
