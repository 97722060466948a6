#include "support/archs.hpp"
#include "support/attention_block.hpp"
#include "support/catch.hpp"

using namespace sluice::test;
using sluice::idx;

TEMPLATE_TEST_CASE("attention kernels: a block backward, at the end of a page", "", float_native,
                   float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    for (const block_shape& s : block_shapes) {
        CAPTURE(s.tokens, s.group, s.d, s.past, s.window);
        block<T> b(s.tokens, s.group, s.d, s.past, s.window);
        const plain_block<T> want(b);
        b.template forward<Arch>();
        b.template backward<Arch>();
        const bool dull = s.tokens == 1 || s.window < 4;
        const tolerance sums{.chain = s.d + b.n_keys, .may_be_dull = dull};
        // where one key is seen, the slopes of q and k are rounding errors around zero
        const tolerance slopes{.chain = 2 * sums.chain,
                               .nmse = s.window == 1 || b.n_keys == 1 ? 1e300 : 0,
                               .may_be_dull = dull || s.past > 0};
        const idx rows = s.tokens * s.group;
        REQUIRE(compare(b.dv.matrix(b.n_keys, s.d), want.dv,
                        {.chain = sums.chain, .may_be_dull = slopes.may_be_dull}) == "");
        REQUIRE(compare(b.dq.matrix(rows, s.d), want.dq, slopes) == "");
        REQUIRE(compare(b.dk.matrix(b.n_keys, s.d), want.dk, slopes) == "");
    }
}

TEMPLATE_TEST_CASE("attention kernels: gradients are added to what was there", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    block<T> from_zero(40, 2, 12, 30, 50), from_ones(40, 2, 12, 30, 50);
    for (auto* m : {&from_ones.dq, &from_ones.dk, &from_ones.dv}) fill(m->row(), T(1));
    for (auto* b : {&from_zero, &from_ones}) {
        b->template forward<Arch>();
        b->template backward<Arch>();
    }
    const double near = sizeof(T) == 4 ? 1e-5 : 1e-13;
    for (idx i = 0; i < 40 * 2 * 12; ++i)
        REQUIRE(compare_number(from_ones.dq[i], 1 + number(from_zero.dq[i]), near) == "");
    for (idx i = 0; i < 70 * 12; ++i) {
        REQUIRE(compare_number(from_ones.dk[i], 1 + number(from_zero.dk[i]), near) == "");
        REQUIRE(compare_number(from_ones.dv[i], 1 + number(from_zero.dv[i]), near) == "");
    }
}

TEST_CASE("attention kernels: first_row finds where a condition begins to hold") {
    for (idx rows = 0; rows < 20; ++rows)
        for (idx from = 0; from <= rows; ++from)
            CHECK(sluice::kernels::first_row(rows, [&](idx row) { return row >= from; }) == from);
}
