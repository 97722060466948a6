// Layers whose matrices are quantised, against the same layers with the floats that those stand for.
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/packed_copy.hpp"

#include <sluice/layers/compose.hpp>
#include <sluice/layers/cswa.hpp>
#include <sluice/layers/dlcm.hpp>
#include <sluice/layers/engram.hpp>
#include <sluice/layers/language_model.hpp>
#include <sluice/layers/linear.hpp>
#include <sluice/layers/mixture_of_depths.hpp>
#include <sluice/layers/moe.hpp>
#include <sluice/layers/phd.hpp>
#include <sluice/layers/soft_moe.hpp>
#include <sluice/layers/transformer_block.hpp>

using namespace sluice;
using namespace sluice::test;

namespace {

// The same parameters with each packed matrix as floats.
template <class P, class Packed, class Config>
void unpack_params(const Packed& from, const P& to) {
    each_param(
        []<class From, class To>(const param_name&, role, const tensor_view<From>& f,
                                 const tensor_view<To>& t) {
            if constexpr (is_packed<From>)
                for (idx r = 0; r < f.rows(); ++r) unpack_row(f, r, t.row(r));
            else
                copy(f, t);
        },
        from, to);
}

// Not as initialise() has it, where output maps are zero. Tables may be of any storage.
template <class P>
void fill_params(const P& params) {
    each_param(
        [key = std::uint64_t{1}]<class W>(const param_name& name, role r, const tensor_view<W>& t) mutable {
            const bool scale = name.last() == "scale";
            if constexpr (real<W>)
                if (r != role::table) fill_uniform(t, key++, scale ? 0.8 : -0.3, scale ? 1.2 : 0.3);
        },
        params);
    if constexpr (requires { params.table; })
        store_rows(uniform_matrix<float>(params.table.rows(), params.table.cols(), 30).view(), params.table,
                   0);
}

// Largest difference of two results over the largest element.
double distance(const padded<float>& a, const padded<float>& b) {
    double most = 0, error = 0;
    for (idx i = 0; i < a.view().rows(); ++i)
        for (idx j = 0; j < a.view().cols(); ++j) {
            most = std::max(most, static_cast<double>(std::abs(a.view()(i, j))));
            error = std::max(error, static_cast<double>(std::abs(a.view()(i, j) - b.view()(i, j))));
        }
    REQUIRE(most > 0.01);
    return error / most;
}

// Tokens of the tests, from number `first` on; ids repeat.
batch tokens_of(idx n, idx first, idx copies) {
    static const auto ids = [] {
        std::array<token_id, 64> all{};
        for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<token_id>(i * i % 23);
        return all;
    }();
    batch b = batch::one(n, first);
    b.ids = std::span(ids).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(n));
    b.copies = copies;
    return b;
}

// Layer<W> keeps its matrices in W; d is the width of x, bound what bytes of x may change.
template <class S, template <class> class Layer, class Config>
void check_layer(const Config& config, idx d, double bound, idx copies = 1) {
    using plain = Layer<float>;
    using bytes = Layer<packed<S>>;
    using floats = Layer<packed<in_float<S>>>;
    owned_params<typename plain::params_type> weights(config), same(config);
    fill_params(weights.view);
    arena quantised_memory(params_bytes<typename bytes::params_type>(config)),
        float_memory(params_bytes<typename floats::params_type>(config));
    const auto p = pack_params<typename bytes::params_type>(weights.view, config, quantised_memory);
    const auto f = pack_params<typename floats::params_type>(weights.view, config, float_memory);
    unpack_params<typename plain::params_type, typename bytes::params_type, Config>(p, same.view);

    const idx n = 37, rows = n * copies;
    const padded<float> x = uniform_matrix<float>(rows, d, 20);
    padded<float> y(rows, d), want(rows, d), exact(rows, d), alone(rows, d);
    arena workspace(1 << 24);
    const batch b = tokens_of(n, 0, copies);
    plain(config, same.view).forward(b, x, want.view(), nullptr, workspace);
    floats(config, f).forward(b, x, exact.view(), nullptr, workspace);
    bytes(config, p).forward(b, x, y.view(), nullptr, workspace);
    CHECK(different_bits(want.view(), exact.view()) == "");
    const double error = distance(want, y);
    CHECK(error < bound);
    CHECK(error > 1e-5); // or x was not quantised, and this test would prove little
    if constexpr (streaming_layer<bytes>) {
        arena state_memory(bytes(config, p).bytes({.max_tokens = n}).state);
        auto state = bytes(config, p).bind_state(state_memory, {.max_tokens = n});
        for (idx i = 0; i < n; ++i)
            bytes(config, p).extend(tokens_of(1, i, copies), x.view().row_block(i * copies, copies),
                                    alone.view().row_block(i * copies, copies), state, workspace);
        CHECK(different_bits(y.view(), alone.view()) == "");
    }
}

template <class W>
using feed_forward_of = feed_forward<float, W>;
template <class W>
using block_of = transformer_block<float, W>;
template <class W>
using moe_of = moe<float, W>;
template <class W>
using soft_moe_of = soft_moe<float, W>;
template <class W>
using cswa_of = cswa<float, W>;
template <class W>
using phd_of = phd<float, W>;
template <class W>
using mixture_of_depths_of = mixture_of_depths<block_of<W>>;
template <class W>
using dlcm_of = dlcm<block_of<W>, block_of<W>, block_of<W>, W>;
template <class Table>
struct with_table {
    template <class W>
    using engram_of = engram<float, W, Table>;
};

const feed_forward_config ffn{.d_model = 48, .d_ff = 100};
const attention_config heads{.d_model = 48, .n_heads = 4, .n_kv_heads = 2, .head_dim = 12};

} // namespace

TEMPLATE_TEST_CASE("quantised layers: as their floats, to within what bytes of x lose", "", int8_row,
                   int8_block, int4_block, int4_block_min) {
    const transformer_block_config block{.attention = heads, .feed_forward = ffn, .norm = {.d_model = 48}};
    check_layer<TestType, feed_forward_of>(ffn, 48, 0.03);
    check_layer<TestType, block_of>(block, 48, 0.03);
    check_layer<TestType, moe_of>(
        moe_config{.d_model = 48, .router = {.n_experts = 8, .top_k = 2}, .expert = {.d_ff = 40}}, 48, 0.05);
    check_layer<TestType, soft_moe_of>(
        soft_moe_config{.d_model = 48, .n_experts = 3, .slots = 2, .expert = {.d_ff = 40}}, 48, 0.03);
    const cswa_config window{.attention = heads, .repeat = 3, .window = 5, .chunk = 16};
    check_layer<TestType, cswa_of>(window, 48, 0.03, 3);
    check_layer<TestType, phd_of>(
        token_repeat_config<stack_config<phd_block_config>>{
            .repeat = 3,
            .body = {.n_layers = 2,
                     .layer = {.attention = window, .feed_forward = ffn, .norm = {.d_model = 48}}}},
        48, 0.03);
}

// The router reads x, which all three have alike: so are the tokens that it chooses.
TEMPLATE_TEST_CASE("quantised layers: Mixture-of-Depths and concepts", "", int8_row, int8_block, int4_block,
                   int4_block_min) {
    const transformer_block_config block{.attention = heads, .feed_forward = ffn, .norm = {.d_model = 48}};
    check_layer<TestType, mixture_of_depths_of>(
        mixture_of_depths_config<transformer_block_config>{
            .block = block,
            .router = {.d_model = 48, .capacity = 0.5, .forward_by = depth_rule::router_threshold}},
        48, 0.03);
    typename dlcm_of<float>::config_type concepts{
        .encoder = block,
        .boundary = {.d_model = 48, .rule = boundary_rule::every, .interval = 5},
        .concepts = {.d_model = 48, .d_concept = 48},
        .backbone = block,
        .cross = {.d_model = 48, .d_concept = 48, .n_heads = 4, .n_kv_heads = 2, .head_dim = 12},
        .decoder = block};
    check_layer<TestType, dlcm_of>(concepts, 48, 0.05);
}

// Its projections as packed matrices, beside tables of every storage: those are read alike by all three.
TEMPLATE_TEST_CASE("quantised layers: Engram with its table in any storage", "", int8_row, int8_block,
                   int4_block, int4_block_min) {
    engram_config config{.d_model = 24, .branches = 2, .d_memory = 64, .bias = true};
    const idx layer = 0;
    make_ngram_hashes({.vocabulary = 23, .n_hashes = 2, .least_rows = {30, 40}}, {&layer, 1},
                      {&config.hash, 1});
    auto check = [&]<class Table>(Table) {
        check_layer<TestType, with_table<Table>::template engram_of>(config, 48, 0.03);
    };
    check(tensor_view<float>{});
    if constexpr (std::is_same_v<TestType, int8_row>) {
        check(tensor_view<bf16>{});
        check(scaled_table<std::int8_t, float>{});
        check(scaled_table<f8_e4m3, f8_e8m0>{});
    }
}

TEST_CASE("quantised layers: a language model with its embedding and head in 8 bits, its blocks in 4") {
    using plain = language_model<stack<transformer_block<float>>>;
    using mixed = language_model<stack<transformer_block<float, packed<int4_block>>>, packed<int8_block>>;
    using config_type = plain::config_type;
    for (const head_kind head : {head_kind::tied, head_kind::untied}) {
        const config_type config{
            .embedding = {.vocabulary = 70, .d_model = 48, .head = head},
            .body = {.n_layers = 2,
                     .layer = {.attention = heads, .feed_forward = ffn, .norm = {.d_model = 48}}},
            .norm = {.d_model = 48}};
        owned_params<plain::params_type> weights(config), same(config);
        fill_params(weights.view);
        arena memory(params_bytes<mixed::params_type>(config));
        const auto packed_weights = pack_params<mixed::params_type>(weights.view, config, memory);
        unpack_params<plain::params_type, mixed::params_type, config_type>(packed_weights, same.view);
        batch b = batch::one(9);
        const std::vector<token_id> ids{1, 69, 3, 3, 0, 40, 33, 31, 32};
        b.ids = ids;
        padded<float> y(9, 70), want(9, 70);
        arena workspace(1 << 24);
        plain(config, same.view).forward(b, want.view(), workspace);
        mixed(config, packed_weights).forward(b, y.view(), workspace);
        const double error = distance(want, y);
        CHECK(error < 0.03);
        CHECK(error > 1e-5);
    }
}

TEST_CASE("quantised layers: attention and copies of tokens with a smaller cache") {
    auto check = [](auto make, idx copies) {
        const idx n = 70;
        const padded<float> x = uniform_matrix<float>(n * copies, 48, 20);
        padded<float> y(n * copies, 48), parts(n * copies, 48);
        std::vector<padded<float>> results;
        for (const auto storage : {key_storage::plain, key_storage::bf16, key_storage::int8}) {
            make(storage, [&](const auto& layer) {
                arena workspace(1 << 24), memory(layer.bytes({.max_tokens = n}).state);
                auto run = [&](const tensor_view<float>& to, idx step) {
                    auto state = layer.bind_state(memory, {.max_tokens = n, .max_rows = n});
                    for (idx i = 0; i < n; i += step) {
                        batch b = batch::one(std::min(step, n - i), i);
                        b.copies = copies;
                        layer.extend(b, x.view().row_block(i * copies, b.rows()),
                                     to.row_block(i * copies, b.rows()), state, workspace);
                    }
                    memory.release(0);
                };
                run(y.view(), n);
                run(parts.view(), 9);
                CHECK(different_bits(y.view(), parts.view()) == "");
            });
            results.push_back(y);
        }
        CHECK(distance(results[0], results[1]) < 0.01);
        CHECK(distance(results[0], results[2]) < 0.02);
        CHECK(distance(results[0], results[1]) > 1e-5);
        CHECK(distance(results[0], results[2]) > 1e-5);
    };
    check(
        [](key_storage storage, auto use) {
            attention_config c = heads;
            c.cache = storage;
            owned_params<attention_params<float>> weights(c);
            fill_params(weights.view);
            use(attention<float>(c, weights.view));
        },
        1);
    check(
        [](key_storage storage, auto use) {
            cswa_config c{.attention = heads, .repeat = 3, .window = 5, .chunk = 16};
            c.attention.cache = storage;
            owned_params<cswa_params<float>> weights(c);
            fill_params(weights.view);
            use(cswa<float>(c, weights.view));
        },
        3);
}
