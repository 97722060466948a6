// The kernels of the library for one architecture of a simd::dynamic; compiled once for each by
// sluice_dispatch.
#include "kernels.hpp"

#include <sluice/simd/instantiate.hpp>

template struct sluice::simd::compile<sluice::simd::native, sluice::kernels::all_calls>;
