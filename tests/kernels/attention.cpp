#include "support/archs.hpp"
#include "support/attention_block.hpp"
#include "support/catch.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

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

namespace {

// A head of keys as the cache stores them; what lies beyond the last key is NaN.
template <class T>
std::vector<T> tiles_of(const T* k, idx k_row, idx n_keys, idx d) {
    std::vector<T> tiles(static_cast<std::size_t>(sluice::round_up(n_keys, sluice::key_tile) * d),
                         std::numeric_limits<T>::quiet_NaN());
    for (idx j = 0; j < n_keys; ++j)
        for (idx e = 0; e < d; ++e)
            tiles[static_cast<std::size_t>((j / 64 * d + e) * 64 + j % 64)] = k[j * k_row + e];
    return tiles;
}

// Rows [first, first + tokens) of a sequence against one head of keys, wherever these lie.
template <class T, class Arch>
struct small_call {
    idx d, group, window;
    const T* q;
    sluice::attention_source<T> keys;

    std::vector<T> operator()(idx first, idx tokens) const {
        const last_keys policy{0, window};
        const one_source<T> sources{keys};
        std::vector<T> scratch(static_cast<std::size_t>(attention_scratch<T, Arch>(tokens * group, d)) + 1,
                               std::numeric_limits<T>::quiet_NaN());
        std::vector<T> y(static_cast<std::size_t>(tokens * group * d));
        attention_block{}(Arch{}, attention_block_args<T, last_keys, one_source<T>>{
                                      .q = q + first * group * d,
                                      .q_row = group * d,
                                      .y = y.data(),
                                      .y_row = group * d,
                                      .lse = nullptr,
                                      .lse_row = 0,
                                      .tokens = tokens,
                                      .group = group,
                                      .head_dim = d,
                                      .kv_head = 0,
                                      .sequence = 3,
                                      .first_row = first,
                                      .scale = T(0.3),
                                      .policy = &policy,
                                      .sources = &sources,
                                      .scratch = scratch.data() + first % 2}); // any alignment
        return y;
    }
};

template <class T>
bool same_bits(const std::vector<T>& a, const T* b) {
    return std::memcmp(a.data(), b, a.size() * sizeof(T)) == 0;
}

} // namespace

// Every number of rows against one call of all of them, from rows and from tiles of keys.
TEMPLATE_TEST_CASE("attention kernels: 1 to 17 rows of any window have the bits of one call", "",
                   float_native, float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    constexpr idx n = 150;
    struct shape {
        idx d, group;
    };
    for (shape s : {shape{16, 4}, {21, 1}, {64, 3}})
        for (idx window : {1, 2, 5, 15, 16, 17, 63, 64, 65, 128, 1000}) {
            padded<T> q = uniform_matrix<T>(1, n * s.group * s.d, 1), k = uniform_matrix<T>(n, s.d, 2),
                      v = uniform_matrix<T>(n, s.d, 3);
            // of these nothing may be left but a sign
            for (idx j = 0; j < n; ++j)
                v(j, 0) = j < 64 ? -std::numeric_limits<T>::denorm_min() : j % 8 == 3 ? T(1) : T(-0.0);
            v(90, s.d - 1) = std::numeric_limits<T>::infinity(); // rows beside it must not notice
            const auto tiles = tiles_of<T>(k.data(), k.view().row_stride(), n, s.d);
            using call = small_call<T, Arch>;
            const call rows{s.d,
                            s.group,
                            window,
                            q.data(),
                            {k.data(), v.data(), k.view().row_stride(), v.view().row_stride()}};
            call from_tiles = rows;
            from_tiles.keys.k = tiles.data();
            from_tiles.keys.k_row = s.d;
            from_tiles.keys.layout = sluice::key_layout::tiles;
            const std::vector<T> whole = rows(0, n);
            CAPTURE(s.d, s.group, window);
            REQUIRE(same_bits(from_tiles(0, n), whole.data()));
            for (idx tokens = 1; tokens <= 17; ++tokens)
                for (idx first = tokens % 5; first + tokens <= n; first += 19) {
                    const T* const want = whole.data() + first * s.group * s.d;
                    REQUIRE(same_bits(rows(first, tokens), want));
                    REQUIRE(same_bits(from_tiles(first, tokens), want));
                }
        }
}

TEMPLATE_TEST_CASE("attention kernels: no key or value before the first or behind the last is read", "",
                   float_native, float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    for (idx d : {5, 16, 64})
        for (idx n : {1, 2, 15, 17, 63, 64, 65, 129}) {
            const idx past = 70,
                      window = n < 60 ? n : 1000; // of a short window the first key is number 71 - n
            const idx first_key = window == n ? past + 1 - n : 0, n_keys = past + 1 - first_key;
            page_end<T> k(n_keys * d), v(n_keys * d), q(2 * d);
            fill_uniform(k.row(), 1);
            fill_uniform(v.row(), 2);
            fill_uniform(q.row(), 3);
            const small_call<T, Arch> call{d,
                                           2,
                                           window,
                                           q.data() - past * 2 * d,
                                           {k.data() - first_key * d, v.data() - first_key * d, d, d}};
            const auto y = call(past, 1);
            for (T x : y) REQUIRE(std::isfinite(x));
        }
}
