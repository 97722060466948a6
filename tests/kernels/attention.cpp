#include "support/archs.hpp"
#include "support/attention_block.hpp"
#include "support/catch.hpp"

using namespace sluice::test;
using sluice::idx;
using sluice::kernels::attention_block;
using sluice::kernels::attention_block_args;
using sluice::kernels::attention_scratch;

TEMPLATE_TEST_CASE("attention kernels: a block forward, at the end of a page", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    for (const block_shape& s : block_shapes) {
        CAPTURE(s.tokens, s.group, s.d, s.past, s.window);
        block<T> b(s.tokens, s.group, s.d, s.past, s.window);
        const plain_block<T> want(b);
        b.template forward<Arch>();
        const bool dull = s.tokens == 1 || s.window < 4;
        const tolerance sums{.chain = s.d + b.n_keys, .may_be_dull = dull};
        const idx rows = s.tokens * s.group;
        REQUIRE(compare(b.y.matrix(rows, s.d), want.y, sums) == "");
        REQUIRE(compare(b.lse.row(), want.lse, {.chain = sums.chain, .may_be_dull = true}) == "");
    }
}

TEMPLATE_TEST_CASE("attention kernels: a block's first row, key head, strides and missing lse", "",
                   float_native, float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    constexpr idx d = 10, n = 50, group = 2;
    const last_keys policy{0, 30};
    // two key heads side by side, of which the second is asked for; rows apart from each other
    const padded<T> q = uniform_matrix<T>(n, group * d, 1), k = uniform_matrix<T>(n, 2 * d, 2),
                    v = uniform_matrix<T>(n, 2 * d, 3);
    const one_source<T> sources{
        {k.view().data(), v.view().data(), k.view().row_stride(), v.view().row_stride(), 0}};
    std::vector<T> scratch(static_cast<std::size_t>(attention_scratch<T, Arch>(n * group, d)));
    auto run = [&](padded<T>& y, T* lse, idx first, idx tokens, idx kv_head) {
        attention_block{}(Arch{},
                          attention_block_args<T, last_keys, one_source<T>>{.q = q.view().row(first),
                                                                            .q_row = q.view().row_stride(),
                                                                            .y = y.row(first),
                                                                            .y_row = y.view().row_stride(),
                                                                            .lse = lse,
                                                                            .lse_row = group + 3,
                                                                            .tokens = tokens,
                                                                            .group = group,
                                                                            .head_dim = d,
                                                                            .kv_head = kv_head,
                                                                            .sequence = 3,
                                                                            .first_row = first,
                                                                            .scale = T(1),
                                                                            .policy = &policy,
                                                                            .sources = &sources,
                                                                            .scratch = scratch.data()});
    };
    padded<T> whole(n, group * d), pieces(n, group * d), lse(n, group, 3);
    run(whole, lse.data(), 0, n, 1);
    for (idx first = 0; first < n; first += 7) run(pieces, nullptr, first, std::min<idx>(7, n - first), 1);
    CHECK(different_bits(pieces.view(), whole.view()) == "");
    CHECK(whole.touched() + pieces.touched() + lse.touched() == "");
    for (idx j = 0; j < group * d; ++j) CHECK(whole(0, j) == v.view()(0, d + j % d)); // sees itself alone
    run(pieces, nullptr, 0, n, 0);
    CHECK(pieces(0, 3) == v.view()(0, 3));
    CHECK(different_bits(pieces.view(), whole.view()) != "");
}
