// expect: sluice: safetensors holds float, double, bf16, half, f8_e4m3, f8_e8m0, int8, int32, int64
#include <sluice/io/safetensors.hpp>

#ifdef CONTROL
using scalar = float;
#else
using scalar = short;
#endif
sluice::idx call(const sluice::io::safetensors& file) { return file.view<scalar>("w").rows(); }
