// The scalar types and instruction sets that every numeric test runs for:
//   TEMPLATE_TEST_CASE("...", "", float_native, float_scalar, double_native, double_scalar)
#pragma once

#include <sluice/simd/arch.hpp>

namespace sluice::test {

template <class T, class Arch>
struct numeric_type {
    using scalar = T;
    using arch = Arch;
};
struct float_native : numeric_type<float, simd::native> {};
struct float_scalar : numeric_type<float, simd::scalar> {};
struct double_native : numeric_type<double, simd::native> {};
struct double_scalar : numeric_type<double, simd::scalar> {};

} // namespace sluice::test
