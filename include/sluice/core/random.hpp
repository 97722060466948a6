// Counter-based random numbers: the i-th number of a key is a pure function of both, so every order and every
// number of threads draws the same. Generator: Philox4x32-10 (Salmon et al., "Parallel random numbers: as
// easy as 1, 2, 3", 2011).
#pragma once

#include "tensor_view.hpp"

#include <array>
#include <cmath>
#include <numbers>

namespace sluice {

class random_source {
public:
    explicit random_source(std::uint64_t key) : key_(key) {}

    // An independent generator: for a layer, a step, a tensor.
    random_source split(std::uint64_t stream) const {
        const auto block =
            philox(stream, 0x53504C4954ULL, key_); // "SPLIT": apart from the counters of bits()
        return random_source(std::uint64_t{block[0]} << 32 | block[1]);
    }

    std::uint64_t key() const { return key_; }

    std::uint32_t bits(idx i) const {
        const auto counter = static_cast<std::uint64_t>(i);
        return philox(counter / 4, 0, key_)[counter % 4];
    }
    // In [0, 1), 24 bits.
    double uniform(idx i) const { return (bits(i) >> 8) * 0x1p-24; }
    // Standard normal (Box and Muller).
    double normal(idx i) const {
        const double radius = std::sqrt(-2 * std::log((bits(2 * i) + 1.0) * 0x1p-32));
        return radius * std::cos(2 * std::numbers::pi * (bits(2 * i + 1) * 0x1p-32));
    }

    static std::array<std::uint32_t, 4> philox(std::uint64_t low, std::uint64_t high, std::uint64_t key) {
        auto lower = [](std::uint64_t v) { return static_cast<std::uint32_t>(v); };
        auto upper = [](std::uint64_t v) { return static_cast<std::uint32_t>(v >> 32); };
        std::array<std::uint32_t, 4> c{lower(low), upper(low), lower(high), upper(high)};
        std::uint32_t k0 = lower(key), k1 = upper(key);
        for (int round = 0; round < 10; ++round) {
            const std::uint64_t p0 = std::uint64_t{0xD2511F53U} * c[0];
            const std::uint64_t p1 = std::uint64_t{0xCD9E8D57U} * c[2];
            c = {upper(p1) ^ c[1] ^ k0, lower(p1), upper(p0) ^ c[3] ^ k1, lower(p0)};
            k0 += 0x9E3779B9U;
            k1 += 0xBB67AE85U;
        }
        return c;
    }

private:
    std::uint64_t key_;
};

template <class T>
void fill_normal(const tensor_view<T>& t, double deviation, const random_source& numbers) {
    for (idx i = 0; i < t.rows(); ++i)
        for (idx j = 0; j < t.cols(); ++j)
            t(i, j) = static_cast<T>(deviation * numbers.normal(i * t.cols() + j));
}

} // namespace sluice
