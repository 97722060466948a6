#include "support/archs.hpp"
#include "support/catch.hpp"

#include <sluice/simd/transpose.hpp>

using namespace sluice::test;
using sluice::idx;

TEMPLATE_TEST_CASE("transpose: lane j of row i becomes lane i of row j", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using P = sluice::simd::pack<T, typename TestType::arch>;
    P rows[static_cast<std::size_t>(P::size)];
    T lanes[static_cast<std::size_t>(P::size)];
    for (idx i = 0; i < P::size; ++i) {
        for (idx j = 0; j < P::size; ++j) lanes[j] = static_cast<T>(100 * i + j);
        rows[i] = P::load(lanes);
    }
    sluice::simd::transpose(rows);
    for (idx i = 0; i < P::size; ++i) {
        rows[i].store(lanes);
        for (idx j = 0; j < P::size; ++j) CHECK(lanes[j] == static_cast<T>(100 * j + i));
    }
}
