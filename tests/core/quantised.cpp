// What a packed matrix of each storage type takes.
#include "support/catch.hpp"

#include <sluice/core/quantised.hpp>

using namespace sluice;

static_assert(quantised<int8_row> && quantised<in_float<int4_block>> && !quantised<float> &&
              !quantised<bf16>);
static_assert(multiplies_bytes<packed<int8_block>> && multiplies_bytes<const packed<int4_block_min>>);
static_assert(!multiplies_bytes<packed<in_float<int8_block>>> && !multiplies_bytes<packed<bf16>>);
static_assert(std::is_same_v<compute_type<packed<int4_block>>, float>);
static_assert(std::is_same_v<tensor_view<packed<int4_block>>::element, std::byte>);
static_assert(std::is_same_v<tensor_view<const packed<int4_block>>::element, const std::byte>);
static_assert(std::is_same_v<tensor_view<packed<half>>::element, half>);

TEMPLATE_TEST_CASE("quantised: the values as floats lie in the same memory", "", int8_row, int8_block,
                   int4_block, int4_block_min) {
    using bytes = tensor_view<packed<TestType>>;
    using floats = tensor_view<packed<in_float<TestType>>>;
    for (const idx rows : {0, 1, 32, 33, 100})
        for (const idx cols : {0, 1, 32, 40, 576})
            CHECK(bytes::elements(rows, cols) == floats::elements(rows, cols));
}

TEST_CASE("quantised: bytes of a matrix") {
    // 32 rows of 64 columns: codes, and a scale for each row or for each 32 columns of one
    CHECK(tensor_view<packed<int8_row>>::elements(32, 64) == 32 * 64 + 32 * 4);
    CHECK(tensor_view<packed<int8_block>>::elements(32, 64) == 32 * 64 + 32 * 2 * 2);
    CHECK(tensor_view<packed<int4_block>>::elements(32, 64) == 32 * 64 / 2 + 32 * 2 * 2);
    CHECK(tensor_view<packed<int4_block_min>>::elements(32, 64) == 32 * 64 / 2 + 32 * 2 * 4);
    // rows and columns are filled up
    CHECK(tensor_view<packed<int8_block>>::elements(33, 33) == 2 * (32 * 64 + 32 * 2 * 2));
    CHECK(tensor_view<packed<int8_block>>::elements(0, 64) == 0);
    const tensor_view<packed<int4_block>> w(nullptr, 40, 70);
    CHECK(w.panel_stride() == 3 * (512 + 64));
    CHECK(w.rows() == 40);
    CHECK(w.cols() == 70);
}
