// expect: sluice: this tensor has another scalar type than the Eigen matrix
#include <sluice/core/eigen.hpp>

using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
float corner(const sluice::tensor_view<const float>& x) { return x(0, 0); }

#ifdef CONTROL
float call(const matrix& m) { return corner(m); }
#else
float call(const Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>& m) {
    return corner(m);
}
#endif
