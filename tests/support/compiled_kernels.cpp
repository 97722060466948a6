// The kernels that compiled_kernels.hpp says are compiled elsewhere; in parts, by the build.
#include "../../cmake/kernels.hpp"

#include <sluice/simd/instantiate.hpp>

using namespace sluice;

#if defined(SLUICE_KERNELS_OF_FLOAT)
template struct simd::compile<simd::native, kernels::calls_of<float>, kernels::ngram_hash_calls>;
#elif defined(SLUICE_KERNELS_OF_DOUBLE)
template struct simd::compile<simd::native, kernels::calls_of<double>>;
#elif defined(SLUICE_KERNELS_OF_NARROW)
template struct simd::compile<simd::native, kernels::narrow_calls>;
#else
template struct simd::compile<simd::scalar, kernels::all_calls, kernels::calls_of<double>>;
#endif
