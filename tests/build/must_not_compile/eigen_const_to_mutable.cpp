// expect: sluice: a const Eigen matrix converts to tensor_view<const T> only
#include <sluice/core/eigen.hpp>

using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
void set(const sluice::tensor_view<float>& y) { y(0, 0) = 1; }

#ifdef CONTROL
void call(matrix& m) { set(m); }
#else
void call(const matrix& m) { set(m); }
#endif
