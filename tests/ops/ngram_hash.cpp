#include "support/allocations.hpp"
#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/executors.hpp"
#include "support/golden.hpp"
#include "support/message_of.hpp"

#include <sluice/core/random.hpp>
#include <sluice/ops/ngram_hash.hpp>

#include <string>
#include <vector>

using sluice::batch;
using sluice::config_error;
using sluice::idx;
using sluice::input_error;
using sluice::ngram_hash;
using sluice::ngram_hash_config;
using sluice::tensor_view;

namespace {

constexpr ngram_hash_config demo{.vocabulary = 98627, .least_rows = {646400}, .pad = 2};
constexpr ngram_hash_config toy{.vocabulary = 1000, .n_hashes = 2, .least_rows = {50, 70}, .pad = 2};

std::vector<ngram_hash> hashes_of(const ngram_hash_config& c, const std::vector<idx>& layers) {
    std::vector<ngram_hash> out(layers.size());
    make_ngram_hashes(c, layers, out);
    return out;
}

using ids = std::vector<std::int32_t>;

// Rows of one sequence from its first token, head by head from zero, as the published code counts them.
template <class Arch = sluice::simd::native>
std::vector<idx> rows_of(const ngram_hash& h, const ids& x, sluice::executor_ref ex = {}) {
    const auto n = static_cast<idx>(x.size());
    std::vector<std::int32_t> rows(x.size() * static_cast<std::size_t>(h.heads()));
    sluice::ngram_rows<Arch>(
        h, batch::one(n), x.data(), [](idx, idx) { return -1; },
        tensor_view<std::int32_t>(rows.data(), n, h.heads()), ex);
    std::vector<idx> out;
    for (std::size_t i = 0; i < rows.size(); ++i) {
        const std::size_t head = i % static_cast<std::size_t>(h.heads());
        out.push_back(rows[i] - h.first[head]);
        REQUIRE(out.back() >= 0);
        REQUIRE(out.back() < h.moduli[head]);
    }
    return out;
}

} // namespace

#if SLUICE_TEST_HAS_JSON
namespace {

using sluice::test::golden;
using sluice::test::json;
using sluice::test::message_of;

std::vector<idx> flat(const json& values) {
    std::vector<idx> out;
    for (const json& v : values)
        if (v.is_array())
            for (const idx i : flat(v)) out.push_back(i);
        else
            out.push_back(v.get<idx>());
    return out;
}

} // namespace

TEST_CASE("numpy's numbers: the words of a seed, the raw numbers") {
    const json rng = golden("engram.json")["rng"];
    for (const std::string seed : {"0", "10007", "150105"}) {
        sluice::numpy_random numbers(std::stoull(seed));
        for (std::size_t i = 0; i < 4; ++i) {
            CHECK(std::to_string(numbers.words[i]) ==
                  rng["seedsequence_generate_state_u64x4"][seed][i].get<std::string>());
            CHECK(std::to_string(numbers.next()) == rng["pcg64_raw_u64"][seed][i].get<std::string>());
        }
    }
}

TEST_CASE("multipliers of the published models") {
    const auto multipliers = golden("engram.json")["multipliers"];
    for (const auto& [name, want] : multipliers.items()) {
        INFO(name);
        idx seed = 0, layer = 0, n = 0, v = 0;
        REQUIRE(std::sscanf(name.c_str(), "seed=%td,layer=%td,N=%td,V=%td", &seed, &layer, &n, &v) == 4);
        const ngram_hash h = hashes_of({.vocabulary = v,
                                        .n_gram = n,
                                        .n_hashes = 1,
                                        .least_rows = {100},
                                        .seed = static_cast<std::uint64_t>(seed)},
                                       {layer})[0];
        for (std::size_t k = 0; k < want.size(); ++k) CHECK(h.multipliers[k] == want[k].get<std::uint64_t>());
    }
}

TEST_CASE("sizes of heads of the published models: primes, different in all layers") {
    const json primes = golden("engram.json")["primes"];
    struct model {
        std::string name, sums;
        ngram_hash_config config;
        std::vector<idx> layers;
    };
    const model models[] = {
        {"demo (engram_vocab_size 646400 x2, layers [1,15], N=3, heads=8)", "demo_row_sums", demo, {1, 15}},
        {"engram27b (2262400, layers [2,15])",
         "engram27b_row_sums",
         {.vocabulary = 98627, .least_rows = {2262400}},
         {2, 15}},
        {"",
         "engram40b (7239680, layers [2,15])_row_sums",
         {.vocabulary = 98627, .least_rows = {7239680}},
         {2, 15}},
        {"v4.1 (16000000, layers [1,14], N=4, heads=8)",
         "v41_row_sums",
         {.vocabulary = 99092, .n_gram = 4, .least_rows = {16000000}},
         {1, 14}}};
    for (const model& m : models) {
        INFO(m.sums);
        const auto hashes = hashes_of(m.config, m.layers);
        for (std::size_t l = 0; l < hashes.size(); ++l) {
            const std::string layer = std::to_string(m.layers[l]);
            CHECK(hashes[l].rows() == primes[m.sums][layer].get<idx>());
            if (m.name.empty()) continue;
            const std::vector<idx> want = flat(primes[m.name][layer]);
            REQUIRE(static_cast<idx>(want.size()) == hashes[l].heads());
            idx first = 0;
            for (std::size_t j = 0; j < want.size(); ++j) {
                CHECK(hashes[l].moduli[j] == want[j]);
                CHECK(hashes[l].first[j] == first); // ranges of rows lie one behind another
                first += want[j];
            }
        }
    }
}

TEMPLATE_TEST_CASE("rows of the published code", "", sluice::test::double_native,
                   sluice::test::double_scalar) {
    using Arch = typename TestType::arch;
    const json all = golden("engram.json");
    const auto small = hashes_of(toy, {0, 1});
    const auto x = all["toy"]["compressed_ids"].get<ids>();
    CHECK(rows_of<Arch>(small[0], x) == flat(all["toy"]["hash"]["0"]));
    CHECK(rows_of<Arch>(small[1], x) == flat(all["toy"]["hash"]["1"]));
    const auto large = hashes_of(demo, {1});
    for (const json& one : all["demo_config"]["cases"]) {
        INFO(one["text"]);
        CHECK(rows_of<Arch>(large[0], one["compressed_ids"].get<ids>()) == flat(one["hash"]["1"]));
    }
    // nothing is seen across a boundary
    const json& sticky = all["toy_sticky"];
    const ngram_hash four = hashes_of(
        {.vocabulary = 1000, .n_gram = 4, .n_hashes = 2, .least_rows = {50, 70, 90}, .pad = 2}, {0})[0];
    auto with = sticky["compressed_ids"].get<ids>();
    CHECK(rows_of<Arch>(four, with) == flat(sticky["hash_no_dead"]));
    for (std::size_t i = 0; i < with.size(); ++i)
        if (sticky["dead"][i].get<int>() != 0) with[i] = -1;
    CHECK(rows_of<Arch>(four, with) == flat(sticky["hash_sticky"]));
}
#endif

TEST_CASE("a token's rows depend on the ids of its longest n-gram alone") {
    const auto hashes = hashes_of(demo, {1, 15});
    for (const ngram_hash& h : hashes) {
        ids x;
        const sluice::random_source numbers(3);
        for (idx i = 0; i < 40; ++i) x.push_back(static_cast<std::int32_t>(numbers.bits(i) % 98627));
        const auto before = rows_of(h, x);
        for (const std::size_t t : {std::size_t{0}, std::size_t{7}, std::size_t{39}}) {
            ids other = x;
            other[t] = (other[t] + 1) % 98627;
            const auto after = rows_of(h, other);
            const auto n = static_cast<std::size_t>(h.n_hashes), all = static_cast<std::size_t>(h.heads());
            for (std::size_t i = 0; i < 40; ++i)
                for (std::size_t c = 0; c < all; ++c) {
                    const bool sees = i >= t && i - t < 2 + c / n;
                    CHECK((after[i * all + c] != before[i * all + c]) == sees);
                }
        }
    }
}

// The history of a stream, and what happens without: 3 columns of 8 change for a 3-gram at every cut.
TEST_CASE("rows of pieces are those of the whole, and of packed sequences those of each alone") {
    const ngram_hash h = hashes_of(demo, {1})[0];
    ids x;
    for (std::int32_t i = 0; i < 50; ++i) x.push_back(i * 7919 % 98627);
    const auto whole = rows_of(h, x);
    const idx heads = h.heads();
    for (idx cut = 2; cut <= 48; ++cut)
        for (const bool with_history : {true, false}) {
            std::vector<std::int32_t> rows(static_cast<std::size_t>((50 - cut) * heads));
            sluice::ngram_rows(
                h, batch::one(50 - cut), x.data() + cut,
                [&](idx, idx k) { return with_history ? x[static_cast<std::size_t>(cut - k - 1)] : -1; },
                tensor_view<std::int32_t>(rows.data(), 50 - cut, heads), {});
            idx changed = 0;
            for (idx i = 0; i < (50 - cut) * heads; ++i)
                changed +=
                    rows[static_cast<std::size_t>(i)] != whole[static_cast<std::size_t>(cut * heads + i)] +
                                                             h.first[static_cast<std::size_t>(i % heads)];
            CHECK(changed == (with_history ? 0 : 24));
        }
    const std::vector<idx> offsets{0, 3, 3, 20, 21, 50};
    sluice::test::for_each_executor([&](sluice::executor_ref ex, const std::string& name) {
        INFO(name);
        std::vector<std::int32_t> rows(static_cast<std::size_t>(50 * heads));
        sluice::ngram_rows(
            h, {.n_tokens = 50, .offsets = offsets}, x.data(), [](idx, idx) { return -1; },
            tensor_view<std::int32_t>(rows.data(), 50, heads), ex);
        for (std::size_t s = 0; s + 1 < offsets.size(); ++s) {
            const auto alone = rows_of(h, ids(x.begin() + offsets[s], x.begin() + offsets[s + 1]));
            for (std::size_t i = 0; i < alone.size(); ++i)
                CHECK(rows[static_cast<std::size_t>(offsets[s] * heads) + i] ==
                      alone[i] + h.first[i % static_cast<std::size_t>(heads)]);
        }
    });
}

TEST_CASE("what no hash can be is refused") {
    auto made = [](const ngram_hash_config& c) {
        return message_of<config_error>([&] { hashes_of(c, {0}); });
    };
    CHECK(made({}) == "ngram_hash: vocabulary must be 1 to 1073741824, is 0");
    CHECK(made({.vocabulary = 9, .n_gram = 1}) == "ngram_hash: n_gram must be 2 to 8, is 1");
    CHECK(made({.vocabulary = 9, .n_gram = 9}) == "ngram_hash: n_gram must be 2 to 8, is 9");
    CHECK(made({.vocabulary = 9, .n_hashes = 33}) == "ngram_hash: n_hashes must be 1 to 32, is 33");
    CHECK(made({.vocabulary = 9, .n_hashes = idx{1} << 62}).starts_with("ngram_hash: n_hashes must be"));
    CHECK(made({.vocabulary = 9, .pad = 9}) == "ngram_hash: pad must be 0 to 8, is 9");
    CHECK(made({.vocabulary = 9, .pad = -1}) == "ngram_hash: pad must be 0 to 8, is -1");
    CHECK(made({.vocabulary = 9}) == "ngram_hash: least_rows must be 1 to 2^30 - 1");
    CHECK(made({.vocabulary = 9, .least_rows = {1 << 28}}) ==
          "ngram_hash: a table of 4294969508 rows; at most 2^31 - 1 are possible");
    CHECK(message_of<config_error>([] { hashes_of(demo, {-1}); }) == "ngram_hash: a layer id is negative");

    const ngram_hash_config two{.vocabulary = 98627, .n_gram = 2, .n_hashes = 1};
    auto given = [&](std::vector<std::uint64_t> multipliers, std::vector<idx> moduli) {
        return message_of<config_error>([&] { make_ngram_hash(two, multipliers, moduli); });
    };
    CHECK(given({3, 5}, {7}) == "no error");
    CHECK(given({3, 4}, {7}) == "ngram_hash: multiplier 4 is even");
    CHECK(given({3, 93517718645553}, {7}) ==
          "ngram_hash: multiplier 93517718645553 belongs to fewer ids than 98627");
    CHECK(given({3}, {7}) == "ngram_hash: 1 multipliers and 1 sizes of heads for 2 tokens and 1 heads");
    CHECK(given({3, 5}, {0}) == "ngram_hash: a head of 0 rows; 1 to 2^30 are possible");
    CHECK(given({3, 5}, {(1 << 30) + 1}) == "ngram_hash: a head of 1073741825 rows; 1 to 2^30 are possible");
}

TEST_CASE("ids outside the map and maps of another vocabulary are refused") {
    const ngram_hash h = hashes_of({.vocabulary = 3, .n_gram = 2, .n_hashes = 1, .least_rows = {5}}, {0})[0];
    const std::vector<std::int32_t> right{0, 1, 0, -1, 2}, small{0, 1, 1}, large{0, 1, 2, 3};
    auto map = [](const std::vector<std::int32_t>& m) {
        return tensor_view<const std::int32_t>(m.data(), 1, static_cast<idx>(m.size()));
    };
    CHECK_NOTHROW(check_token_map(map(right), h, "engram"));
    CHECK_NOTHROW(check_token_map({}, h, "engram"));
    CHECK(message_of<config_error>([&] { check_token_map(map(small), h, "engram"); }) ==
          "engram: token_map has 2 different ids, the multipliers are those of 3");
    CHECK(message_of<config_error>([&] { check_token_map(map(large), h, "engram"); }) ==
          "engram: token_map has 4 different ids, the multipliers are those of 3");
    for (const sluice::token_id bad : {5, -1, std::numeric_limits<sluice::token_id>::min()}) {
        const std::vector<sluice::token_id> some{0, 4, bad};
        std::vector<std::int32_t> out(3, 77);
        const tensor_view<std::int32_t> to(out.data(), 1, 3);
        CHECK(message_of<input_error>([&] { compress_ids(map(right), h, some, to, "engram"); }) ==
              "engram: token id " + std::to_string(bad) + " at token 2 is outside the vocabulary of 5");
        CHECK(out[0] == 77);
        CHECK_THROWS_AS(compress_ids({}, h, some, to, "engram"), input_error);
    }
    const std::vector<sluice::token_id> some{4, 3, 2};
    std::vector<std::int32_t> out(3);
    compress_ids(map(right), h, some, {out.data(), 1, 3}, "engram");
    CHECK(out == std::vector<std::int32_t>{2, -1, 0});
}

TEST_CASE("hashing allocates nothing") {
    REQUIRE(sluice::test::allocations_are_noticed());
    const ngram_hash h = hashes_of(demo, {1})[0];
    const ids x{1, 2, 3};
    std::vector<std::int32_t> rows(static_cast<std::size_t>(3 * h.heads()));
    std::vector<ngram_hash> out(2);
    const std::vector<idx> layers{1, 2};
    CHECK(sluice::test::allocations_of([&] {
              sluice::ngram_rows(h, batch::one(3), x.data(), [](idx, idx) { return -1; },
                                 tensor_view<std::int32_t>(rows.data(), 3, h.heads()), {});
              make_ngram_hashes(demo, layers, out);
          }) == 0);
}
