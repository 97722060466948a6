// Transposes a square of registers in place.
#pragma once

#include "pack.hpp"

#include <bit>

namespace sluice::simd {

// Swaps, between a and b, the second half of each block of 2 D lanes of a with the first half of b's.
template <idx D, class P, std::size_t... I>
SLUICE_INLINE void swap_blocks(P& a, P& b, std::index_sequence<I...>) {
    constexpr std::size_t d = D, n = sizeof...(I);
    const auto x = a.v.data, y = b.v.data;
    a = P(typename P::batch(__builtin_shufflevector(x, y, (I / d % 2 == 0 ? I : n + I - d)...)));
    b = P(typename P::batch(__builtin_shufflevector(x, y, (I / d % 2 == 0 ? I + d : n + I)...)));
}

template <idx D, class P, class F>
SLUICE_INLINE void transpose_blocks(P (&rows)[static_cast<std::size_t>(P::size)], const F& between) {
    if constexpr (D > 0) {
        unrolled<P::size>([&](auto i) __attribute__((always_inline)) {
            if constexpr (i / D % 2 == 0)
                swap_blocks<D>(rows[i], rows[i + D],
                               std::make_index_sequence<static_cast<std::size_t>(P::size)>{});
        });
        between();
        transpose_blocks<D / 2>(rows, between);
    }
}

// Times that transpose calls `between`, after each of its stages.
template <class P>
constexpr int transpose_stages = std::bit_width(static_cast<unsigned>(P::size)) - 1;

// Afterwards lane j of rows[i] is what was lane i of rows[j]. Shuffles keep one port of a processor busy: what
// has nothing to do with the rows may be done between stages.
template <class T, class Arch, class F>
SLUICE_INLINE void transpose(pack<T, Arch> (&rows)[static_cast<std::size_t>(pack<T, Arch>::size)],
                             const F& between) {
    if constexpr (!std::is_same_v<Arch, scalar>) transpose_blocks<pack<T, Arch>::size / 2>(rows, between);
}
template <class T, class Arch>
SLUICE_INLINE void transpose(pack<T, Arch> (&rows)[static_cast<std::size_t>(pack<T, Arch>::size)]) {
    transpose(rows, [] {});
}

} // namespace sluice::simd
