// Panels of smaller storage types as floats, against the rows they were packed from.
#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/packed_copy.hpp"

#include <sluice/kernels/widen.hpp>

using namespace sluice;
using namespace sluice::test;

namespace {

template <class S, class Arch>
void check_panels() {
    for (const auto& [rows, cols] : {std::pair<idx, idx>{1, 1}, {32, 64}, {40, 70}, {33, 300}}) {
        const padded<float> w = uniform_matrix<float>(rows, cols, 7, -2, 3);
        const packed_copy<S> p(w.view());
        const padded<float> want = unpacked(p.view);
        for (idx k0 = 0; k0 < cols; k0 += 128)
            for (idx first = 0; first < rows; first += 32) {
                const idx n = std::min<idx>(129, cols - k0);
                page_end<float> panel(32 * n);
                simd::invoke(Arch{}, kernels::widen_panel<S>{},
                             static_cast<const typename packed_copy<S>::element*>(
                                 p.view.data() + first / 32 * p.view.panel_stride()),
                             k0, n, panel.data());
                for (idx k = 0; k < n; ++k)
                    for (idx r = first; r < std::min(rows, first + 32); ++r)
                        REQUIRE(bits_text(panel[k * 32 + r - first]) == bits_text(want.view()(r, k0 + k)));
            }
    }
}

} // namespace

TEMPLATE_TEST_CASE("widen_panel: the values that the storage stands for", "", bf16, half, in_float<int8_row>,
                   in_float<int8_block>, in_float<int4_block>, in_float<int4_block_min>, f8_block) {
    check_panels<TestType, simd::native>();
    check_panels<TestType, simd::scalar>();
}
