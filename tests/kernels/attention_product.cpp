#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/random_data.hpp"

#include <sluice/kernels/attention_product.hpp>

#include <cmath>
#include <limits>
#include <vector>

using namespace sluice::test;
using sluice::idx;
using sluice::key_range;
using sluice::kernels::all_finite;
using sluice::kernels::product_rows;
using sluice::kernels::row_product;
using sluice::kernels::row_product_args;
using sluice::kernels::scales_of;
using sluice::kernels::transpose_rows;

namespace {

// One chain of fma, as the kernels promise.
template <class Arch, class T>
T chain(const T* a, const T* b, idx b_row, idx k, T start) {
    using P = sluice::simd::pack<T, Arch>;
    P sum(start);
    for (idx i = 0; i < k; ++i) sum = fma(P(a[i]), P(b[i * b_row]), sum);
    T lanes[static_cast<std::size_t>(P::size)];
    sum.store(lanes);
    return lanes[0];
}

} // namespace

TEMPLATE_TEST_CASE("attention kernels: a product of rows is chains of fma, at the end of a page", "",
                   float_native, float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    constexpr idx lanes = sluice::simd::pack<T, Arch>::size;
    for (idx m = 1; m <= product_rows<T, Arch>; ++m)
        for (idx registers = 1; registers <= 7; ++registers)
            for (idx k : {0, 1, 2, 19})
                for (bool add : {false, true}) {
                    const idx n = registers * lanes, gap = m % 3;
                    const idx a_row = k + gap, b_row = n + gap, c_row = n + gap;
                    page_end<T> a((m - 1) * a_row + k), b(k == 0 ? 0 : (k - 1) * b_row + n),
                        c((m - 1) * c_row + n);
                    fill_uniform(a.row(), 1);
                    fill_uniform(b.row(), 2);
                    fill_uniform(c.row(), 3);
                    std::vector<T> before(c.data(), c.data() + (m - 1) * c_row + n);
                    row_product<Arch>(
                        row_product_args<T>{a.data(), a_row, b.data(), b_row, c.data(), c_row, m, n, k, add});
                    idx wrong = 0;
                    for (idx i = 0; i < m; ++i)
                        for (idx j = 0; j < std::min(c_row, (i + 1 < m ? c_row : n)); ++j) {
                            const T old = before[static_cast<std::size_t>(i * c_row + j)];
                            const T want = j >= n ? old
                                                  : chain<Arch>(a.data() + i * a_row, b.data() + j, b_row, k,
                                                                add ? old : T(0));
                            wrong += c[i * c_row + j] != want;
                        }
                    CAPTURE(m, registers, k, add);
                    REQUIRE(wrong == 0);
                }
}

namespace {

// A product with B in S, and with the floats that it stands for, side by side.
template <class Arch, class S, scales_of Scales>
idx differences(idx m, idx registers, idx k, bool add) {
    constexpr idx lanes = sluice::simd::pack<float, Arch>::size;
    const idx n = registers * lanes;
    page_end<float> a(m * k), c(m * n), want(m * n), scales(Scales == scales_of::rows ? k : n), wide(k * n);
    page_end<S> b(k * n);
    fill_uniform(a.row(), 1);
    fill_uniform(scales.row(), 2);
    fill_uniform(c.row(), 3);
    std::copy_n(c.data(), m * n, want.data());
    constexpr bool scaled = std::is_same_v<S, std::int8_t>;
    for (idx i = 0; i < k; ++i)
        for (idx j = 0; j < n; ++j) {
            const float x = static_cast<float>((i * 31 + j * 17) % 255) - 127;
            if constexpr (scaled)
                b[i * n + j] = static_cast<S>(x);
            else
                b[i * n + j] = sluice::to_bf16(x / 3);
            const float scale = !scaled ? 1 : scales[Scales == scales_of::rows ? i : j];
            wide[i * n + j] = sluice::to_float(b[i * n + j]) * scale;
        }
    row_product<Arch>(row_product_args<float, S, Scales>{.a = a.data(),
                                                         .a_row = k,
                                                         .b = b.data(),
                                                         .b_row = n,
                                                         .c = c.data(),
                                                         .c_row = n,
                                                         .m = m,
                                                         .n = n,
                                                         .k = k,
                                                         .add = add,
                                                         .scales = scales.data()});
    row_product<Arch>(row_product_args<float>{a.data(), k, wide.data(), n, want.data(), n, m, n, k, add});
    idx wrong = 0;
    for (idx i = 0; i < m * n; ++i) wrong += c[i] != want[i];
    return wrong;
}

} // namespace

TEMPLATE_TEST_CASE("attention kernels: a product with smaller numbers has the bits of what they stand for",
                   "", float_native, float_scalar) {
    using Arch = typename TestType::arch;
    for (idx m = 1; m <= product_rows<float, Arch>; ++m)
        for (idx registers = 1; registers <= 7; ++registers)
            for (idx k : {0, 1, 2, 19})
                for (bool add : {false, true}) {
                    CAPTURE(m, registers, k, add);
                    REQUIRE(differences<Arch, sluice::bf16, scales_of::rows>(m, registers, k, add) == 0);
                    REQUIRE(differences<Arch, std::int8_t, scales_of::rows>(m, registers, k, add) == 0);
                    REQUIRE(differences<Arch, std::int8_t, scales_of::columns>(m, registers, k, add) == 0);
                }
}

TEMPLATE_TEST_CASE("attention kernels: keys are transposed, and none beside them read", "", float_native,
                   float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    constexpr idx lanes = sluice::simd::pack<T, Arch>::size, tile = sluice::key_tile;
    for (idx elements : {1, 2, 15, 16, 17, 40, 64})
        for (key_range keys :
             {key_range{0, 1}, {0, 64}, {63, 64}, {0, 17}, {5, 9}, {15, 16}, {16, 33}, {31, 64}})
            for (idx gap : {0, 3}) {
                const idx row = elements + gap, n = keys.hi - keys.lo;
                page_end<T> from((n - 1) * row + elements), to(elements * tile);
                fill_uniform(from.row(), 1);
                fill(to.row(), T(7));
                transpose_rows<Arch>(from.data() - keys.lo * row, row, keys, elements, to.data(), tile);
                const idx first = keys.lo / lanes * lanes, end = sluice::round_up(keys.hi, lanes);
                idx wrong = 0;
                for (idx e = 0; e < elements; ++e)
                    for (idx j = 0; j < tile; ++j) {
                        const T got = to[e * tile + j];
                        if (j >= keys.lo && j < keys.hi)
                            wrong += got != from[(j - keys.lo) * row + e];
                        else if (j < first || j >= end)
                            wrong += got != T(7);
                    }
                CAPTURE(elements, keys.lo, keys.hi, gap);
                REQUIRE(wrong == 0);
            }
}

TEMPLATE_TEST_CASE("attention kernels: one NaN or infinity anywhere is found", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    constexpr T inf = std::numeric_limits<T>::infinity();
    for (idx n : {1, 2, 3})
        for (idx elements : {1, 15, 16, 17, 33}) {
            const idx row = elements + 2;
            page_end<T> x((n - 1) * row + elements);
            fill(x.row(), std::numeric_limits<T>::quiet_NaN()); // beside the rows
            for (idx i = 0; i < n; ++i)
                for (idx j = 0; j < elements; ++j)
                    x[i * row + j] = (i + j) % 2 == 0 ? std::numeric_limits<T>::max()
                                                      : -std::numeric_limits<T>::denorm_min();
            REQUIRE(all_finite<Arch>(x.data(), row, n, elements));
            for (T bad : {std::numeric_limits<T>::quiet_NaN(), inf, -inf})
                for (idx i = 0; i < n; ++i)
                    for (idx j = 0; j < elements; ++j) {
                        const T good = std::exchange(x[i * row + j], bad);
                        REQUIRE(!all_finite<Arch>(x.data(), row, n, elements));
                        x[i * row + j] = good;
                    }
        }
    CHECK(all_finite<Arch>(static_cast<const T*>(nullptr), 0, 0, 5));
}
