// What a user adds: a pattern of attention and a kernel. Compiled for each architecture by own_calls.cpp.
#pragma once

#include <sluice/ops/attention.hpp>

// A row sees the chunk it stands in, up to itself.
struct chunked_attention {
    static constexpr sluice::idx n_sources = 1;
    sluice::idx chunk;
    SLUICE_INLINE sluice::key_range range(sluice::idx, sluice::idx row, sluice::idx) const {
        return {row / chunk * chunk, row + 1};
    }
};

// y = factor x + y
struct add_scaled {
    template <class Arch, class T>
    void operator()(Arch, T factor, const T* x, T* y, sluice::idx n) const;
};
using add_scaled_calls =
    sluice::simd::calls<sluice::simd::call<add_scaled, float, const float*, float*, sluice::idx>>;

template <class Arch, class T>
void add_scaled::operator()(Arch, T factor, const T* x, T* y, sluice::idx n) const {
    using P = sluice::simd::pack<T, Arch>;
    sluice::simd::for_each_pack<P>(n, [&](sluice::idx i, sluice::idx k) {
        fma(P(factor), P::load_partial(x + i, k), P::load_partial(y + i, k)).store_partial(y + i, k);
    });
}
