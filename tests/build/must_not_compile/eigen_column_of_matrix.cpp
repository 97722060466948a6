// expect: sluice: tensors need inner stride 1; a column or a strided Map has to be copied
#include <sluice/core/eigen.hpp>

using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
float corner(const sluice::tensor_view<const float>& x) { return x(0, 0); }

#ifdef CONTROL
float call(const matrix& m) { return corner(m.row(2)); }
#else
float call(const matrix& m) { return corner(m.col(2)); }
#endif
