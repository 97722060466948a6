// expect: sluice: tensors are row-major; use Eigen::Matrix<T, Dynamic, Dynamic, Eigen::RowMajor>
#include <sluice/core/eigen.hpp>

float corner(const sluice::tensor_view<const float>& x) { return x(0, 0); }

#ifdef CONTROL
float call(const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>& m) {
    return corner(m);
}
#else
float call(const Eigen::MatrixXf& m) { return corner(m); }
#endif
