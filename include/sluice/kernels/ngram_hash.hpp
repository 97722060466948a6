// Table rows of n-grams (Cheng et al., "Conditional memory via scalable lookup", 2026, section 2.2): the ids
// of the last n tokens, each multiplied by an odd number of its own, are joined by exclusive or; each head
// takes the result modulo a prime of its own.
//
// The modulo is exact, in double: a number below 2^63 is three parts of 21 bits, and where p is at most 2^30,
// parts times their places modulo p add up to less than 2^53.
#pragma once

#include "../simd/pack.hpp"

namespace sluice::kernels {

// Of every head, with a register's length of zeros behind the last.
struct head_moduli {
    const double *modulus, *inverse; // p, 1 / p
    const double *place21, *place42; // 2^21 mod p, 2^42 mod p
    const double* first;             // row of the table that the head starts at
};

// Registers of T are never longer.
inline constexpr idx most_lanes = 8;
inline constexpr idx most_heads = 64;

struct ngram_rows_args {
    const std::int32_t* ids;          // of a sequence; below 0: a boundary
    const std::int32_t* history;      // n_gram - 1: ids before the sequence's first here, the nearest first
    const std::uint64_t* multipliers; // n_gram, of the token itself first
    head_moduli heads;
    idx n_gram, n_hashes;
    std::uint64_t pad;  // stands for boundaries and everything before them
    idx begin, end;     // tokens of the sequence
    std::int32_t* rows; // of token `begin`: (n_gram - 1) n_hashes for each, shorter n-grams first
};

struct ngram_rows {
    template <class Arch>
    void operator()(Arch, const ngram_rows_args& a) const;
};

using ngram_hash_calls = simd::calls<simd::call<ngram_rows, const ngram_rows_args&>>;

// x mod p of the heads from j on, for x below 2^63.
template <class Arch>
SLUICE_INLINE simd::pack<double, Arch> residues(std::uint64_t x, const head_moduli& heads, idx j) {
    using P = simd::pack<double, Arch>;
    constexpr std::uint64_t low = (std::uint64_t{1} << 21) - 1;
    const P high(static_cast<double>(x >> 42)), middle(static_cast<double>(x >> 21 & low));
    const P p = P::load(heads.modulus + j);
    const P sum = fma(high, P::load(heads.place42 + j),
                      fma(middle, P::load(heads.place21 + j), P(static_cast<double>(x & low))));
    // Adding 1.5 2^52 rounds to an integer, in whatever direction; it is at most one away.
    const P shift(6755399441055744.0);
    const P quotient = sum * P::load(heads.inverse + j) + shift - shift;
    P r = sum - quotient * p; // both exact
    r = select(r < P(0.0), r + p, r);
    return select(r < p, r, r - p);
}

template <class Arch>
void ngram_rows::operator()(Arch, const ngram_rows_args& a) const {
    using P = simd::pack<double, Arch>;
    static_assert(P::size <= most_lanes);
    double places[most_heads + most_lanes];
    const idx n_heads = (a.n_gram - 1) * a.n_hashes;
    std::int32_t* to = a.rows;
    for (idx t = a.begin; t < a.end; ++t, to += n_heads) {
        bool before = a.ids[t] < 0; // once a boundary is met, all further back is padding
        std::uint64_t mix = (before ? a.pad : static_cast<std::uint64_t>(a.ids[t])) * a.multipliers[0];
        for (idx k = 1; k < a.n_gram; ++k) {
            const std::int32_t id = t >= k ? a.ids[t - k] : a.history[k - t - 1];
            before = before || id < 0;
            mix ^= (before ? a.pad : static_cast<std::uint64_t>(id)) * a.multipliers[k];
            const idx first = (k - 1) * a.n_hashes;
            for (idx j = first; j < first + a.n_hashes; j += P::size)
                (residues<Arch>(mix, a.heads, j) + P::load(a.heads.first + j)).store(places + j);
        }
        for (idx j = 0; j < n_heads; ++j) to[j] = static_cast<std::int32_t>(places[j]);
    }
}

} // namespace sluice::kernels
