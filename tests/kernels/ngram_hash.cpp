#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/float_modes.hpp"

#include <sluice/core/random.hpp>
#include <sluice/kernels/ngram_hash.hpp>

#include <string>
#include <vector>

using sluice::idx;

namespace {

// Constants of a head for each p, as ngram_hash derives them.
struct heads_of {
    explicit heads_of(const std::vector<idx>& moduli) {
        for (auto* c : {&modulus, &inverse, &place21, &place42, &first})
            c->resize(moduli.size() + std::size_t{sluice::kernels::most_lanes});
        for (std::size_t j = 0; j < moduli.size(); ++j) {
            modulus[j] = static_cast<double>(moduli[j]);
            inverse[j] = 1 / modulus[j];
            place21[j] = static_cast<double>((idx{1} << 21) % moduli[j]);
            place42[j] = static_cast<double>((idx{1} << 42) % moduli[j]);
        }
    }
    sluice::kernels::head_moduli view() const {
        return {modulus.data(), inverse.data(), place21.data(), place42.data(), first.data()};
    }
    std::vector<double> modulus, inverse, place21, place42, first;
};

template <class Arch>
idx residue(std::uint64_t x, const heads_of& heads, idx j) {
    double out[sluice::kernels::most_lanes];
    sluice::kernels::residues<Arch>(x, heads.view(), j).store(out);
    return static_cast<idx>(out[0]);
}

} // namespace

TEMPLATE_TEST_CASE("residues: the remainder of a division by integers, in every rounding mode", "",
                   sluice::test::double_native, sluice::test::double_scalar) {
    using Arch = typename TestType::arch;
    constexpr idx most = idx{1} << 30;
    const std::vector<idx> moduli{1,       2,        3,       5,       53,       1021,      646403, 2262409,
                                  7239689, 16000889, 1 << 20, 1 << 26, 67108859, most - 35, most};
    const heads_of heads(moduli);
    constexpr std::uint64_t top = ~std::uint64_t{0} >> 1;
    const sluice::random_source numbers(7);
    auto check = [&] {
        std::string wrong;
        for (std::size_t j = 0; j < moduli.size(); ++j) {
            const auto p = static_cast<std::uint64_t>(moduli[j]);
            std::vector<std::uint64_t> values{0,       1,           p - 1,          p, p + 1, top,
                                              top - 1, top / p * p, top / p * p - 1};
            for (std::uint64_t k = 1; k < 62; ++k)
                for (const std::uint64_t d : {0U, 1U, 2U}) values.push_back((std::uint64_t{1} << k) - 1 + d);
            for (idx i = 0; i < 70000; ++i) { // a million in all
                const std::uint64_t x =
                    (std::uint64_t{numbers.bits(2 * i)} << 32 | numbers.bits(2 * i + 1)) & top;
                values.push_back(x);
                if (i % 7 == 0) values.push_back(x / p * p);
                if (i % 7 == 1 && x >= p) values.push_back(x / p * p - 1);
            }
            for (const std::uint64_t x : values)
                if (x <= top && residue<Arch>(x, heads, static_cast<idx>(j)) != static_cast<idx>(x % p) &&
                    wrong.empty())
                    wrong = std::to_string(x) + " mod " + std::to_string(p);
        }
        CHECK(wrong == "");
    };
    check();
    for (const auto& mode : sluice::test::float_modes) {
        INFO(mode.name);
        sluice::test::in_float_mode(mode, check);
    }
}

TEMPLATE_TEST_CASE("ngram_rows: every token's rows, whatever the number of heads", "",
                   sluice::test::double_native, sluice::test::double_scalar) {
    using Arch = typename TestType::arch;
    for (const idx n_hashes : {1, 2, 3, 8, 9}) {
        std::vector<idx> moduli;
        for (idx j = 0; j < 3 * n_hashes; ++j) moduli.push_back(101 + 6 * j);
        heads_of heads(moduli);
        for (std::size_t j = 0; j < moduli.size(); ++j) heads.first[j] = 1000.0 * static_cast<double>(j);
        const std::uint64_t multipliers[] = {76632096046245, 4839876093313, 35959672319349, 73987337458391};
        const std::vector<std::int32_t> ids{5, 99091, 0, -1, 7, 8, 9, 10};
        const std::int32_t history[] = {3, -1, 4};
        const idx n = static_cast<idx>(ids.size()), width = 3 * n_hashes;
        std::vector<std::int32_t> rows(static_cast<std::size_t>(n * width + 3), -5);
        for (idx cut : {0, 3, 8}) { // in two parts
            for (const auto& [begin, end] : {std::pair<idx, idx>{0, cut}, {cut, n}})
                sluice::kernels::ngram_rows{}(Arch{}, {.ids = ids.data(),
                                                       .history = history,
                                                       .multipliers = multipliers,
                                                       .heads = heads.view(),
                                                       .n_gram = 4,
                                                       .n_hashes = n_hashes,
                                                       .pad = 2,
                                                       .begin = begin,
                                                       .end = end,
                                                       .rows = rows.data() + begin * width});
            for (idx t = 0; t < n; ++t) {
                std::uint64_t mix = 0;
                bool before = false;
                for (idx k = 0; k < 4; ++k) {
                    const auto id = t >= k ? ids[static_cast<std::size_t>(t - k)] : history[k - t - 1];
                    before = before || id < 0;
                    mix ^= (before ? 2 : static_cast<std::uint64_t>(id)) * multipliers[k];
                    for (idx j = 0; j < n_hashes && k > 0; ++j) {
                        const idx head = (k - 1) * n_hashes + j;
                        const auto p = static_cast<std::uint64_t>(moduli[static_cast<std::size_t>(head)]);
                        REQUIRE(rows[static_cast<std::size_t>(t * width + head)] ==
                                static_cast<idx>(mix % p) + 1000 * head);
                    }
                }
            }
            for (std::size_t i = 0; i < 3; ++i) CHECK(rows[static_cast<std::size_t>(n * width) + i] == -5);
        }
    }
}
