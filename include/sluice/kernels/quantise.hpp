// Rows of x as signed bytes: for each group of columns the scale that takes its largest element to 127, and
// codes x / scale, rounded, halves to even. What is not finite makes all scales of its row NaN, and so
// everything that is computed from it.
#pragma once

#include "../core/quantised.hpp"
#include "../simd/dot.hpp"

namespace sluice::kernels {

// A row: codes, zero up to a multiple of 32; a scale for each group; and for each what the product with it
// starts from: the sum of the codes times -zero, as the bits of simd::to_floats, or, where W has minima, the
// sum of the elements they stand for, as float.
struct byte_row_layout {
    idx cols, group;

    idx groups() const { return ceil_div(cols, group); }
    idx scales() const { return round_up(cols, 32); } // in bytes, from the row's start
    idx starts() const { return scales() + 4 * groups(); }
    idx bytes() const { return starts() + 4 * groups(); }
};

struct quantise_row {
    template <class Arch>
    void operator()(Arch, const float* x, byte_row_layout at, int zero, std::byte* out) const;
};
using quantise_calls =
    simd::calls<simd::call<quantise_row, const float*, const byte_row_layout&, int, std::byte*>>;

template <class Arch>
void quantise_row::operator()(Arch, const float* x, byte_row_layout at, int zero, std::byte* out) const {
    using P = simd::pack<float, Arch>;
    auto* const codes = reinterpret_cast<std::int8_t*>(out);
    std::fill(codes + at.cols, codes + at.scales(), std::int8_t{0});
    P finite{}; // stays zero unless something is not
    for (idx g = 0, first = 0; first < at.cols; ++g, first += at.group) {
        const idx n = std::min(at.group, at.cols - first);
        P largest{}, sums{};
        simd::for_each_pack<P>(
            n, [&](idx i, idx inside) __attribute__((always_inline)) {
                const P v = P::load_partial(x + first + i, inside);
                largest = max(max(v, -v), largest);
                finite = fma(v, P(0), finite);
            });
        const float most = largest.largest();
        const bool any = most > 0x1p-119F; // else their inverse overflows: zero, or next to it
        const float scale = any ? most / 127 : 0;
        const P times(any ? 127 / most : 0);
        simd::for_each_pack<P>(
            n, [&](idx i, idx inside) __attribute__((always_inline)) {
                const auto q = to_integers(P::load_partial(x + first + i, inside) * times);
                sums = sums + to_floats(q);
                simd::store_bytes(q, codes + first + i);
            });
        const float sum = sums.sum(); // of integers: exact
        std::memcpy(out + at.scales() + 4 * g, &scale, 4);
        const std::int32_t start = simd::integer_bits - zero * static_cast<std::int32_t>(sum);
        const float total = scale * sum;
        std::memcpy(out + at.starts() + 4 * g, zero != 0 ? static_cast<const void*>(&start) : &total, 4);
    }
    if (finite.sum() == 0) return;
    const float none = std::numeric_limits<float>::quiet_NaN();
    for (idx g = 0; g < at.groups(); ++g) std::memcpy(out + at.scales() + 4 * g, &none, 4);
}

} // namespace sluice::kernels
