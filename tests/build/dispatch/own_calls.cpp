// Compiled once for each architecture.
#include "own_kernel.hpp"

#include <sluice/simd/instantiate.hpp>

template struct sluice::simd::compile<
    sluice::simd::native, add_scaled_calls,
    sluice::kernels::attention_calls<float, chunked_attention, sluice::packed_keys<float>>,
    sluice::kernels::attention_backward_calls<float, chunked_attention>>;
