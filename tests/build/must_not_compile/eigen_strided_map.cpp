// expect: sluice: tensors need inner stride 1; a column or a strided Map has to be copied
#include <sluice/core/eigen.hpp>

using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
float corner(const sluice::tensor_view<const float>& x) { return x(0, 0); }

#ifdef CONTROL
using stride = Eigen::OuterStride<>;
#else
using stride = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;
#endif
float call(const Eigen::Map<const matrix, Eigen::Unaligned, stride>& m) { return corner(m); }
