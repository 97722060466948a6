// A kernel that calls a function which says nothing of the architecture: two files may define it.
#include "own_kernel.hpp"

#include <sluice/simd/instantiate.hpp>

struct careless {
    template <class Arch>
    void operator()(Arch, const float* x, float* y, sluice::idx n) const;
};

template <class T>
__attribute__((noinline)) T twice(T x) {
    return x + x;
}

template <class Arch>
void careless::operator()(Arch, const float* x, float* y, sluice::idx n) const {
    for (sluice::idx i = 0; i < n; ++i) y[i] = twice(x[i]);
}

template struct sluice::simd::compile<
    sluice::simd::native,
    sluice::simd::calls<sluice::simd::call<careless, const float*, float*, sluice::idx>>>;
