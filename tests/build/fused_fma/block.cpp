// What must come out as fused instructions: chains of simd::fma, and the micro-kernel behind every product.
// With SPLIT defined the chains are made of products and sums, which the test must notice.
#include <sluice/kernels/gemm.hpp>

using sluice::idx;
using sluice::simd::native;
using sluice::simd::pack;

#ifdef SPLIT
template <class P>
P step(P a, P b, P c) {
    return a * b + c;
}
#else
template <class P>
P step(P a, P b, P c) {
    return fma(a, b, c);
}
#endif

template <class P, class T>
void chain(const T* a, const T* b, T* c, idx n) {
    P sum = P::load(c);
    for (idx i = 0; i < n; i += P::size) sum = step(P::load(a + i), P::load(b + i), sum);
    sum.store(c);
}
template void chain<pack<float, native>>(const float*, const float*, float*, idx);
template void chain<pack<double, native>>(const double*, const double*, double*, idx);
template void chain<pack<float, sluice::simd::scalar>>(const float*, const float*, float*, idx);
template void chain<pack<double, sluice::simd::scalar>>(const double*, const double*, double*, idx);

template void sluice::kernels::gemm_block::operator()(native,
                                                      const sluice::kernels::gemm_block_args<float>&) const;
template void sluice::kernels::gemm_block::operator()(native,
                                                      const sluice::kernels::gemm_block_args<double>&) const;
