#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/random_data.hpp"

#include <sluice/kernels/attention_keys.hpp>

#include <vector>

using namespace sluice::test;
using sluice::attention_source;
using sluice::idx;
using sluice::key_range;
using sluice::key_tile;
using sluice::kernels::attention_keys;
using sluice::kernels::take_tile;
using sluice::kernels::tile_scratch;

namespace {

// Where a tile is brought to, filled with NaN.
template <class Arch, class T>
struct place {
    idx d, width = sluice::round_up(d, sluice::simd::lanes<T>(Arch{}));
    bool many_rows = false;
    std::vector<T> k =
        std::vector<T>(static_cast<std::size_t>(d * key_tile), std::numeric_limits<T>::quiet_NaN());
    std::vector<T> v =
        std::vector<T>(static_cast<std::size_t>(key_tile * width), std::numeric_limits<T>::quiet_NaN());

    tile_scratch<T> scratch() { return {k.data(), v.data(), d, width, many_rows}; }
};

// Numbers of `keys` that are not want_k(key, e) and want_v(key, e).
template <class T, class K, class V>
idx differences(const attention_keys<T>& tile, key_range keys, idx d, const K& want_k, const V& want_v) {
    idx wrong = 0;
    for (idx j = keys.lo; j < keys.hi; ++j)
        for (idx e = 0; e < d; ++e) {
            wrong += tile.k[e * key_tile + j] != want_k(j, e);
            wrong += tile.v[j * tile.v_row + e] != want_v(j, e);
        }
    return wrong;
}

// Head sizes of whole registers and others; whole tiles and parts of them.
constexpr idx head_dims[] = {1, 16, 20, 64, 71};
constexpr key_range ranges[] = {{0, key_tile}, {0, 1}, {5, 38}, {63, 64}};

} // namespace

TEMPLATE_TEST_CASE("attention kernels: a tile is taken from rows of several heads", "", float_native,
                   float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    for (const idx d : head_dims)
        for (const bool many_rows : {false, true})
            for (const key_range keys : ranges) {
                const idx first = 3, head = 2 * d;
                padded<T> k = uniform_matrix<T>(first + key_tile, 3 * d, 1),
                          v = uniform_matrix<T>(first + key_tile, 3 * d, 2);
                attention_source<T> source;
                source.k = k.data(), source.v = v.data();
                source.k_row = k.view().row_stride(), source.v_row = v.view().row_stride();
                place<Arch, T> here{.d = d, .many_rows = many_rows};
                const auto tile = take_tile<Arch>(here.scratch(), source, head, first, keys);
                const auto of_k = [&](idx j, idx e) { return k.view()(first + j, head + e); };
                const auto of_v = [&](idx j, idx e) { return v.view()(first + j, head + e); };
                CAPTURE(d, many_rows, keys.lo, keys.hi);
                CHECK(differences(tile, keys, d, of_k, of_v) == 0);
                CHECK((tile.k == here.k.data() && !tile.near));
                // values stay where they are unless rows of part registers or many rows are to be read
                CHECK((tile.v == here.v.data()) == (d != here.width || many_rows));
            }
}

TEMPLATE_TEST_CASE("attention kernels: smaller keys and values are widened, with their scales", "",
                   float_native, float_scalar) {
    using Arch = typename TestType::arch;
    for (const idx d : head_dims)
        for (const key_range keys : ranges) {
            const idx heads = 2, tiles = 3, at = key_tile; // the second tile
            const auto n = static_cast<std::size_t>(heads * tiles * key_tile * d);
            std::vector<sluice::bf16> k(n), v(n);
            std::vector<std::int8_t> k8(n), v8(n);
            std::vector<float> k_scales(n / static_cast<std::size_t>(d)), v_scales(k_scales.size());
            for (std::size_t i = 0; i < n; ++i) {
                k[i] = sluice::to_bf16(0.25F * static_cast<float>(i % 97) - 9);
                v[i] = sluice::to_bf16(0.5F * static_cast<float>(i % 89) - 11);
                k8[i] = static_cast<std::int8_t>(static_cast<int>(i * 7 % 255) - 127);
                v8[i] = static_cast<std::int8_t>(static_cast<int>(i * 11 % 255) - 127);
            }
            for (std::size_t i = 0; i < k_scales.size(); ++i) {
                k_scales[i] = 0.5F + static_cast<float>(i % 13);
                v_scales[i] = 0.25F + static_cast<float>(i % 17);
            }
            const idx head = tiles * key_tile * d, scale = tiles * key_tile + at; // of the second head
            // keys lie transposed, tile after tile; values a row each
            const auto of_k = [&](idx j, idx e) {
                return static_cast<std::size_t>(head + at * d + e * key_tile + j);
            };
            const auto of_v = [&](idx j, idx e) { return static_cast<std::size_t>(head + (at + j) * d + e); };
            const auto of_scale = [&](idx j) { return static_cast<std::size_t>(scale + j); };
            attention_source<float> source;
            source.layout = sluice::key_layout::tiles;
            CAPTURE(d, keys.lo, keys.hi);

            place<Arch, float> here{.d = d};
            source.small = {sluice::key_storage::bf16, k.data(), v.data(), nullptr, nullptr};
            auto tile = take_tile<Arch>(here.scratch(), source, head, at, keys);
            CHECK(tile.near);
            CHECK(differences(
                      tile, keys, d, [&](idx j, idx e) { return sluice::to_float(k[of_k(j, e)]); },
                      [&](idx j, idx e) { return sluice::to_float(v[of_v(j, e)]); }) == 0);

            // where one pass of a product reads the tile, only rows of part registers are brought
            place<Arch, float> left{.d = d};
            tile_scratch<float> once = left.scratch();
            once.once = true;
            tile = take_tile<Arch>(once, source, head, at, keys);
            if (d == left.width) {
                CHECK((tile.small.storage == sluice::key_storage::bf16 && !tile.near && tile.v_row == d));
                CHECK((tile.small.k == k.data() + of_k(0, 0) && tile.small.v == v.data() + of_v(0, 0)));
                CHECK(std::isnan(left.k[0]));
            } else {
                CHECK((tile.small.storage == sluice::key_storage::plain && tile.k == left.k.data()));
            }

            source.small = {sluice::key_storage::int8, k8.data(), v8.data(), k_scales.data(),
                            v_scales.data()};
            tile = take_tile<Arch>(here.scratch(), source, head, at, keys);
            CHECK(
                differences(
                    tile, keys, d,
                    [&](idx j, idx e) { return static_cast<float>(k8[of_k(j, e)]) * k_scales[of_scale(j)]; },
                    [&](idx j, idx e) {
                        return static_cast<float>(v8[of_v(j, e)]) * v_scales[of_scale(j)];
                    }) == 0);
            tile = take_tile<Arch>(once, source, head, at, keys);
            if (d == left.width)
                CHECK((tile.small.k_scales == &k_scales[of_scale(0)] &&
                       tile.small.v_scales == &v_scales[of_scale(0)]));
        }
}
