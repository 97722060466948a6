// expect: sluice: an Eigen expression has no memory of its own; evaluate it into a row-major matrix first
#include <sluice/core/eigen.hpp>

using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
float corner(const sluice::tensor_view<const float>& x) { return x(0, 0); }

#ifdef CONTROL
float call(const matrix& a, const matrix& b) { return corner(matrix(a + b)); }
#else
float call(const matrix& a, const matrix& b) { return corner(a + b); }
#endif
