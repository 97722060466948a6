// Which rows of a table the n-grams before a token have: Engram's addressing (Cheng et al., "Conditional
// memory via scalable lookup", 2026, section 2.2), with multipliers and primes as its published code derives
// them, down to NumPy's random numbers. Rows depend on token ids alone, so they are known before a layer
// runs.
#pragma once

#include "../core/batch.hpp"
#include "../core/executor.hpp"
#include "../core/tensor_view.hpp"
#include "../kernels/ngram_hash.hpp"

#include <array>

namespace sluice {

// NumPy's default_rng(seed): SeedSequence (O'Neill's seed_seq_fe) and PCG64 XSL-RR (O'Neill, "PCG: a family
// of simple fast space-efficient statistically good algorithms", 2014).
class numpy_random {
public:
    explicit numpy_random(std::uint64_t seed) {
        std::uint32_t pool[4] = {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32), 0,
                                 0};
        std::uint32_t hash = 0x43B0D7E5U;
        auto hashed = [&hash](std::uint32_t v) {
            v ^= hash;
            hash *= 0x931E8875U;
            v *= hash;
            return v ^ v >> 16;
        };
        for (std::uint32_t& word : pool) word = hashed(word);
        for (int from = 0; from < 4; ++from)
            for (int to = 0; to < 4; ++to)
                if (from != to) {
                    const std::uint32_t mixed = 0xCA01F9DDU * pool[to] - 0x4973F715U * hashed(pool[from]);
                    pool[to] = mixed ^ mixed >> 16;
                }
        hash = 0x8B51F9DDU;
        for (std::size_t i = 0; i < 8; ++i) {
            std::uint32_t v = pool[i % 4] ^ hash;
            hash *= 0x58F38DEDU;
            v *= hash;
            words[i / 2] |= std::uint64_t{v ^ v >> 16} << 32 * (i % 2);
        }
        state_ = 0;
        increment_ = (uint128{words[2]} << 64 | words[3]) << 1 | 1;
        step();
        state_ += uint128{words[0]} << 64 | words[1];
        step();
    }

    std::uint64_t next() {
        step();
        const auto high = static_cast<std::uint64_t>(state_ >> 64), low = static_cast<std::uint64_t>(state_);
        return std::rotr(high ^ low, static_cast<int>(high >> 58));
    }
    // integers(0, n) for n above 2^32: Lemire, "Fast random integer generation in an interval", 2019.
    std::uint64_t below(std::uint64_t n) {
        uint128 product = uint128{next()} * n;
        if (static_cast<std::uint64_t>(product) < n)
            while (static_cast<std::uint64_t>(product) < (0 - n) % n) product = uint128{next()} * n;
        return static_cast<std::uint64_t>(product >> 64);
    }

    std::uint64_t words[4] = {}; // what SeedSequence made of the seed

private:
    __extension__ using uint128 = unsigned __int128;
    void step() {
        constexpr uint128 multiplier = uint128{0x2360ED051FC65DA4ULL} << 64 | 0x4385DF649FCCF645ULL;
        state_ = state_ * multiplier + increment_;
    }
    uint128 state_, increment_;
};

inline constexpr idx most_n_gram = 8;

// What the hashes of all layers of a model follow from.
struct ngram_hash_config {
    idx vocabulary = 0; // ids after compression
    idx n_gram = 3;     // the longest; the shortest is 2
    idx n_hashes = 8;   // heads for each length
    std::array<idx, most_n_gram - 1>
        least_rows{};       // of a head, from 2-grams on; 0: as many as for those before
    idx pad = 0;            // compressed id that stands before a sequence
    std::uint64_t seed = 0; // of the published code
};

// The hash of one layer: data without memory of its own. Made by make_ngram_hash or make_ngram_hashes.
struct ngram_hash {
    idx vocabulary = 0, n_gram = 0, n_hashes = 0, pad = 0;
    std::array<std::uint64_t, most_n_gram> multipliers{}; // odd; of the token itself first
    std::array<idx, kernels::most_heads> moduli{};        // rows of each head, 2-grams' heads first
    std::array<idx, kernels::most_heads> first{};         // row of the table that each starts at

    idx heads() const { return (n_gram - 1) * n_hashes; }
    idx rows() const { // of the table
        const auto last = static_cast<std::size_t>(heads()) - 1;
        return heads() == 0 ? 0 : first[last] + moduli[last];
    }
    kernels::head_moduli constants() const {
        return {modulus_.data(), inverse_.data(), place21_.data(), place42_.data(), first_.data()};
    }
    void derive() {
        for (std::size_t j = 0; j < static_cast<std::size_t>(heads()); ++j) {
            first[j] = j == 0 ? 0 : first[j - 1] + moduli[j - 1];
            modulus_[j] = static_cast<double>(moduli[j]);
            inverse_[j] = 1 / modulus_[j];
            place21_[j] = static_cast<double>((idx{1} << 21) % moduli[j]);
            place42_[j] = static_cast<double>((idx{1} << 42) % moduli[j]);
            first_[j] = static_cast<double>(first[j]);
        }
    }

private:
    using constant = std::array<double, kernels::most_heads + kernels::most_lanes>;
    constant modulus_{}, inverse_{}, place21_{}, place42_{}, first_{};
};

// Throws config_error unless the sizes make sense: they may come from a file.
inline void check_ngram_sizes(idx vocabulary, idx n_gram, idx n_hashes, idx pad) {
    auto check = [](idx value, idx least, idx most, std::string_view name) {
        if (value < least || value > most)
            SLUICE_THROW(config_error("ngram_hash: " + std::string(name) + " must be " +
                                      std::to_string(least) + " to " + std::to_string(most) + ", is " +
                                      std::to_string(value)));
    };
    check(vocabulary, 1, idx{1} << 30, "vocabulary");
    check(n_gram, 2, most_n_gram, "n_gram");
    check(n_hashes, 1, kernels::most_heads / (n_gram - 1), "n_hashes");
    check(pad, 0, vocabulary - 1, "pad");
}

// The hash with given multipliers (n_gram) and rows of each head ((n_gram - 1) n_hashes), as a checkpoint may
// have them. Throws config_error for numbers that no published code derives: then products of ids would pass
// 2^63 and other programs would find other rows.
inline ngram_hash make_ngram_hash(const ngram_hash_config& c, std::span<const std::uint64_t> multipliers,
                                  std::span<const idx> moduli) {
    check_ngram_sizes(c.vocabulary, c.n_gram, c.n_hashes, c.pad);
    ngram_hash h;
    h.vocabulary = c.vocabulary;
    h.n_gram = c.n_gram;
    h.n_hashes = c.n_hashes;
    h.pad = c.pad;
    auto fail = [](const std::string& what) { SLUICE_THROW(config_error("ngram_hash: " + what)); };
    if (static_cast<idx>(multipliers.size()) != c.n_gram || static_cast<idx>(moduli.size()) != h.heads())
        fail(std::to_string(multipliers.size()) + " multipliers and " + std::to_string(moduli.size()) +
             " sizes of heads for " + std::to_string(c.n_gram) + " tokens and " + std::to_string(h.heads()) +
             " heads");
    const std::uint64_t most = (~std::uint64_t{0} >> 1) / static_cast<std::uint64_t>(c.vocabulary);
    for (std::size_t k = 0; k < multipliers.size(); ++k) {
        if (multipliers[k] % 2 == 0) fail("multiplier " + std::to_string(multipliers[k]) + " is even");
        if (multipliers[k] > most)
            fail("multiplier " + std::to_string(multipliers[k]) + " belongs to fewer ids than " +
                 std::to_string(c.vocabulary));
        h.multipliers[k] = multipliers[k];
    }
    idx total = 0;
    for (std::size_t j = 0; j < moduli.size(); ++j) {
        if (moduli[j] < 1 || moduli[j] > idx{1} << 30)
            fail("a head of " + std::to_string(moduli[j]) + " rows; 1 to 2^30 are possible");
        total += h.moduli[j] = moduli[j];
    }
    if (total > std::numeric_limits<std::int32_t>::max())
        fail("a table of " + std::to_string(total) + " rows; at most 2^31 - 1 are possible");
    h.derive();
    return h;
}

namespace detail {

inline bool is_prime(idx n) {
    if (n < 4) return n > 1;
    if (n % 2 == 0 || n % 3 == 0) return false;
    for (idx d = 5; d * d <= n; d += 6)
        if (n % d == 0 || n % (d + 2) == 0) return false;
    return true;
}

} // namespace detail

// The hashes of a model's layers. `layer_ids` seed the multipliers: the numbers that the published model
// counts its layers by. No two heads of any layer have the same number of rows, so all are made at once.
inline void make_ngram_hashes(const ngram_hash_config& c, std::span<const idx> layer_ids,
                              std::span<ngram_hash> out) {
    check_ngram_sizes(c.vocabulary, c.n_gram, c.n_hashes, c.pad);
    require(layer_ids.size() == out.size(), "ngram_hash", "as many hashes as layers are wanted");
    const std::uint64_t most = (~std::uint64_t{0} >> 1) / static_cast<std::uint64_t>(c.vocabulary);
    for (std::size_t layer = 0; layer < out.size(); ++layer) {
        require(layer_ids[layer] >= 0, "ngram_hash", "a layer id is negative");
        numpy_random numbers(c.seed + 10007 * static_cast<std::uint64_t>(layer_ids[layer]));
        std::array<std::uint64_t, most_n_gram> multipliers{};
        const auto n = static_cast<std::size_t>(c.n_gram), heads = static_cast<std::size_t>(c.n_hashes);
        for (std::size_t k = 0; k < n; ++k)
            multipliers[k] = 2 * numbers.below(std::max<std::uint64_t>(1, most / 2)) + 1;
        std::array<idx, kernels::most_heads> moduli{};
        auto used = [&](idx p) {
            auto among = [p](const auto& all, std::size_t m) {
                return std::find(all.begin(), all.begin() + static_cast<idx>(m), p) !=
                       all.begin() + static_cast<idx>(m);
            };
            bool found = among(moduli, moduli.size());
            for (const ngram_hash& other : out.first(layer))
                found = found || among(other.moduli, moduli.size());
            return found;
        };
        idx least = 0;
        for (std::size_t order = 0; order + 1 < n; ++order) {
            if (c.least_rows[order] != 0) least = c.least_rows[order];
            require(least >= 1 && least < idx{1} << 30, "ngram_hash", "least_rows must be 1 to 2^30 - 1");
            idx p = least - 1;
            for (std::size_t j = 0; j < heads; ++j) {
                do ++p;
                while (!detail::is_prime(p) || used(p));
                moduli[order * heads + j] = p;
            }
        }
        out[layer] =
            make_ngram_hash(c, std::span(multipliers).first(n), std::span(moduli).first((n - 1) * heads));
    }
}

// Entries of a map that are no ids. No n-gram reaches across a boundary; to a masked token, such as a part of
// an image, which is a boundary too, memory adds nothing.
inline constexpr std::int32_t boundary_id = -1, masked_id = -2;

// One compressed id for each token id, or one of the above. Empty: token ids are taken as they are. Throws
// config_error unless the largest entry is that of the hash, and none is below masked_id.
inline void check_token_map(const tensor_view<const std::int32_t>& map, const ngram_hash& h,
                            std::string_view layer) {
    if (map.empty()) return;
    require_shape(map, 1, map.cols(), layer, "token_map");
    std::int32_t most = -1;
    for (idx i = 0; i < map.cols(); ++i) {
        most = std::max(most, map(0, i));
        if (map(0, i) < masked_id)
            SLUICE_THROW(config_error(std::string(layer) + ": token_map has " + std::to_string(map(0, i)) +
                                      " for token " + std::to_string(i)));
    }
    if (idx{most} + 1 != h.vocabulary)
        SLUICE_THROW(config_error(std::string(layer) + ": token_map has " + std::to_string(idx{most} + 1) +
                                  " different ids, the multipliers are those of " +
                                  std::to_string(h.vocabulary)));
}

// out (1 x n) = map[ids]; ids are checked always, before anything is written.
inline void compress_ids(const tensor_view<const std::int32_t>& map, const ngram_hash& h,
                         std::span<const token_id> ids, tensor_view<std::int32_t> out,
                         std::string_view layer) {
    const idx most = map.empty() ? h.vocabulary : map.cols();
    for (std::size_t i = 0; i < ids.size(); ++i)
        if (ids[i] < 0 || ids[i] >= most)
            SLUICE_THROW(input_error(std::string(layer) + ": token id " + std::to_string(ids[i]) +
                                     " at token " + std::to_string(i) + " is outside the vocabulary of " +
                                     std::to_string(most)));
    for (std::size_t i = 0; i < ids.size(); ++i) out.data()[i] = map.empty() ? ids[i] : map(0, ids[i]);
}

inline namespace SLUICE_ISA {

// rows (n_tokens x heads) of the batch's compressed ids (n_tokens; see compress_ids). `before(s, k)` is the
// compressed id k + 1 tokens before the first that sequence s has here, or below 0 where there is none.
template <class Arch = simd::native, class F>
void ngram_rows(const ngram_hash& h, const batch& b, const std::int32_t* ids, const F& before,
                tensor_view<std::int32_t> rows, executor_ref ex) {
    require_shape(rows, b.n_tokens, h.heads(), "ngram_rows", "rows");
    require(rows.contiguous(), "ngram_rows", "rows must be contiguous");
    ex(b.n_tokens, [&](idx begin, idx end, idx) {
        for (idx s = b.sequence_of(begin); begin < end; ++s) {
            const idx start = b.first_token(s), last = std::min(end, start + b.tokens(s));
            if (last <= begin) continue;
            std::int32_t history[most_n_gram];
            for (idx k = 0; k + 1 < h.n_gram; ++k) history[k] = before(s, k);
            simd::invoke(Arch{}, kernels::ngram_rows{},
                         kernels::ngram_rows_args{.ids = ids + start,
                                                  .history = history,
                                                  .multipliers = h.multipliers.data(),
                                                  .heads = h.constants(),
                                                  .n_gram = h.n_gram,
                                                  .n_hashes = h.n_hashes,
                                                  .pad = static_cast<std::uint64_t>(h.pad),
                                                  .begin = begin - start,
                                                  .end = last - start,
                                                  .rows = rows.row(begin)});
            begin = last;
        }
    });
}

} // namespace SLUICE_ISA
} // namespace sluice
