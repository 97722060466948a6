#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/float_modes.hpp"

#include <sluice/core/random.hpp>
#include <sluice/kernels/top_k.hpp>

#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

using namespace sluice::test;
using sluice::idx;

namespace {

// The rule in plain words: larger first, NaN last, lower index first.
template <class T>
std::vector<std::int32_t> sorted_indices(const std::vector<T>& x) {
    std::vector<std::int32_t> order(x.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
        const T u = x[static_cast<std::size_t>(a)], v = x[static_cast<std::size_t>(b)];
        if (std::isnan(v)) return !std::isnan(u);
        return !std::isnan(u) && u > v;
    });
    return order;
}

enum class kind { normal, ties, with_nan, mostly_nan, special, rising, falling };

template <class T>
std::vector<T> make_row(idx n, kind k, const sluice::random_source& numbers) {
    constexpr T infinity = std::numeric_limits<T>::infinity();
    const T odd[] = {infinity,
                     -infinity,
                     -T(0),
                     T(0),
                     std::numeric_limits<T>::lowest(),
                     std::numeric_limits<T>::denorm_min(),
                     std::numeric_limits<T>::quiet_NaN()};
    std::vector<T> x;
    for (idx i = 0; i < n; ++i) {
        T v = static_cast<T>(numbers.normal(i));
        if (k == kind::ties) v = static_cast<T>(static_cast<int>(2 * v));
        if (k == kind::with_nan && numbers.split(7).bits(i) % 3 == 0) v = odd[6];
        if (k == kind::mostly_nan && numbers.split(7).bits(i) % 50 != 0) v = odd[6];
        if (k == kind::rising) v = static_cast<T>(i / 2);
        if (k == kind::falling) v = static_cast<T>(-i / 2);
        if (k == kind::special) v = odd[numbers.split(8).bits(i) % 7];
        x.push_back(v);
    }
    return x;
}

} // namespace

TEMPLATE_TEST_CASE("top_k: picks what a stable sort would", "", float_native, float_scalar, double_native,
                   double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    std::uint64_t seed = 0;
    for (kind k : {kind::normal, kind::ties, kind::with_nan, kind::mostly_nan, kind::special, kind::rising,
                   kind::falling})
        for (idx n : {1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 100, 257, 600, 1000})
            for (idx count : {idx{0}, idx{1}, idx{2}, idx{8}, idx{9}, idx{31}, idx{32}, n / 2, n - 1, n}) {
                if (count > n) continue;
                const std::vector<T> x = make_row<T>(n, k, sluice::random_source(++seed));
                std::vector<std::int32_t> want = sorted_indices(x),
                                          got(static_cast<std::size_t>(count) + 1, -7);
                want.resize(static_cast<std::size_t>(count));
                sluice::kernels::top_k{}(Arch{}, x.data(), n, count, true, got.data());
                CAPTURE(n, count, static_cast<int>(k));
                REQUIRE(got.back() == -7);
                got.pop_back();
                REQUIRE(got == want);
                sluice::kernels::top_k{}(Arch{}, x.data(), n, count, false, got.data());
                std::sort(want.begin(), want.end());
                REQUIRE(got == want);
            }
}

// Where subnormal numbers are taken for zero they are equal to it.
TEMPLATE_TEST_CASE("top_k: picks the same in other floating-point modes", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    std::uint64_t seed = 0;
    for (kind k : {kind::normal, kind::ties, kind::with_nan, kind::special})
        for (idx n : {1, 8, 17, 64, 257, 600})
            for (idx count : {idx{1}, idx{8}, idx{32}, n / 2, n})
                for (const auto& mode : float_modes) {
                    if (count > n) continue;
                    const std::vector<T> x = make_row<T>(n, k, sluice::random_source(++seed));
                    std::vector<T> seen = x;
                    for (T& v : seen)
                        if (mode.flush && std::fpclassify(v) == FP_SUBNORMAL) v = 0;
                    std::vector<std::int32_t> want = sorted_indices(seen),
                                              got(static_cast<std::size_t>(count));
                    want.resize(got.size());
                    in_float_mode(mode, [&] {
                        sluice::kernels::top_k{}(Arch{}, x.data(), n, count, true, got.data());
                    });
                    CAPTURE(n, count, static_cast<int>(k), mode.name);
                    REQUIRE(got == want);
                }
}

TEST_CASE("top_k: rows of nothing but NaN, or of one value, give the first k") {
    for (float v : {std::nanf(""), -std::numeric_limits<float>::infinity(), 3.0F}) {
        const std::vector<float> x(40, v);
        std::int32_t got[5];
        sluice::kernels::top_k{}(sluice::simd::native{}, x.data(), idx{40}, idx{5}, true, got);
        for (std::int32_t i = 0; i < 5; ++i) CHECK(got[i] == i);
    }
}
