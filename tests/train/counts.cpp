#include "support/catch.hpp"

#include <sluice/layers/dlcm.hpp>
#include <sluice/layers/language_model.hpp>
#include <sluice/layers/transformer_block.hpp>
#include <sluice/train/counts.hpp>

using namespace sluice;

namespace {

using model = language_model<stack<transformer_block<float>>>;

// Width 8, 4 query heads and 2 key heads of width 2, inner width 12, 3 layers, 11 tokens in the vocabulary.
model::config_type config_of(head_kind head, idx window, qk_norm norm = qk_norm::none) {
    return {.embedding = {.vocabulary = 11, .d_model = 8, .head = head},
            .body = {.n_layers = 3,
                     .layer = {.attention = {.d_model = 8,
                                             .n_heads = 4,
                                             .n_kv_heads = 2,
                                             .head_dim = 2,
                                             .window = window,
                                             .norm = norm},
                               .feed_forward = {.d_model = 8, .d_ff = 12},
                               .norm = {.d_model = 8}}},
            .norm = {.d_model = 8}};
}

struct built_model {
    explicit built_model(const model::config_type& config) : weights(config), net(config, weights.view) {}
    owned_params<model::params_type> weights;
    model net;
};

// w_q and w_o are 8 x 8, w_k and w_v 4 x 8, the three of the feed-forward layer 12 x 8.
constexpr idx attention_weights = 2 * 64 + 2 * 32, feed_forward_weights = 3 * 96;
static_assert(attention_weights == 192 && feed_forward_weights == 288);

template <class T>
struct all_roles {
    tensor_view<T> a, b, c, d, e;
    template <class F, class First, class... Sets>
    static void each(F& f, const param_name& at, First& first, Sets&... sets) {
        f(param_name(at, "a"), role::matrix, first.a, sets.a...);
        f(param_name(at, "b"), role::vector, first.b, sets.b...);
        f(param_name(at, "c"), role::embedding, first.c, sets.c...);
        f(param_name(at, "d"), role::table, first.d, sets.d...);
        f(param_name(at, "e"), role::buffer, first.e, sets.e...);
    }
};

} // namespace

TEST_CASE("counts_by_role: every tensor under its role") {
    const all_roles<float> p{
        {nullptr, 2, 3}, {nullptr, 1, 5}, {nullptr, 7, 2}, {nullptr, 100, 3}, {nullptr, 1, 11}};
    const param_counts n = counts_by_role(p);
    CHECK((n.matrices == 6 && n.vectors == 5 && n.embeddings == 14 && n.tables == 300 && n.buffers == 11));
    CHECK(n.trained() == 325);
    CHECK(count_params(p) == 325);
    CHECK(counts_by_role(all_roles<float>{}).trained() == 0);
}

TEST_CASE("counts_by_role: a transformer counted by hand") {
    const param_counts untied = counts_by_role(built_model(config_of(head_kind::untied, 0)).weights.view);
    CHECK(untied.matrices == 3 * (192 + 288) + 88);
    CHECK(untied.vectors == 3 * 2 * 8 + 8);
    CHECK((untied.embeddings == 88 && untied.tables == 0 && untied.buffers == 0));
    CHECK(untied.trained() == 1528 + 56 + 88);

    const param_counts tied = counts_by_role(built_model(config_of(head_kind::tied, 0)).weights.view);
    CHECK((tied.matrices == untied.matrices - 88 && tied.embeddings == 88)); // the tied tensor once
    CHECK(tied.trained() == untied.trained() - 88);

    const param_counts normed =
        counts_by_role(built_model(config_of(head_kind::tied, 0, qk_norm::per_head)).weights.view);
    CHECK(normed.vectors == tied.vectors + 3 * 2 * 2);
}

TEST_CASE("training_flops: a transformer counted by hand") {
    // Of 10 tokens in one layer: products, two norms, and 4 * 8 for every pair of a row and a key it sees.
    const double products = 2.0 * 10 * (192 + 288), norms = 2 * 4.0 * 10 * 8;
    const double head = 2.0 * 10 * 88, last_norm = 4.0 * 10 * 8;
    const double pairs = 1 + 2 + 3 + 4 + 5 + 6 + 7 + 8 + 9 + 10;
    const double forward = 3 * (products + norms + 4 * 8 * pairs) + last_norm + head;
    CHECK(forward == 38'080);
    for (head_kind kind : {head_kind::tied, head_kind::untied}) {
        const built_model m(config_of(kind, 0));
        CHECK(m.net.flops(10) == forward);
        CHECK(training_flops(m.net, 1, 10) == 3 * forward);
        CHECK(training_flops(m.net, 7, 10) == 21 * forward);
        CHECK(training_flops(m.net, 0, 10) == 0);
    }

    const double seen = 1 + 2 + 3 + 4 * 7; // of a window of 4
    const built_model windowed(config_of(head_kind::tied, 4));
    CHECK(training_flops(windowed.net, 2, 10) == 6 * (forward - 3 * 4 * 8 * (pairs - seen)));
    const built_model wide(config_of(head_kind::tied, 10));
    CHECK(training_flops(wide.net, 2, 10) == 6 * forward);
}

TEST_CASE("flops: a prompt and its continuation add up to the whole") {
    for (idx window : {0, 4}) {
        const built_model m(config_of(head_kind::untied, window));
        double parts = m.net.flops(3);
        for (idx past = 3; past < 10; ++past) parts += m.net.flops(1, past);
        CHECK(parts == m.net.flops(10));
    }
}

TEST_CASE("counts_by_concept: the paper's table 3") {
    using body = dlcm<stack<transformer_block<float>>>;
    using concepts = language_model<body>;
    auto block = [](idx d, idx n_kv_heads, idx d_ff) {
        return transformer_block_config{
            .attention = {.d_model = d, .n_heads = d / 64, .n_kv_heads = n_kv_heads, .head_dim = 64},
            .feed_forward = {.d_model = d, .d_ff = d_ff},
            .norm = {.d_model = d}};
    };
    constexpr idx d = 1536, c = 3072, vocabulary = 128815;
    const auto token = block(d, 12, 6144);
    concepts::config_type config{
        .embedding = {.vocabulary = vocabulary, .d_model = d},
        .body = {.encoder = {10, token},
                 .boundary = {.d_model = d, .rule = boundary_rule::similarity},
                 .concepts = {.d_model = d, .d_concept = c},
                 .backbone = {16, block(c, 24, 6144)},
                 .cross = {.d_model = d, .d_concept = c, .n_heads = 24, .n_kv_heads = 12, .head_dim = 64},
                 .decoder = {6, token}},
        .norm = {.d_model = d}};
    const model::config_type dense_config{
        .embedding = config.embedding, .body = {32, block(d, 24, 4096)}, .norm = {.d_model = d}};
    arena views(std::size_t{1} << 20), a = arena::shapes(views), b = arena::shapes(views),
                                       e = arena::shapes(views);
    const auto dense = model::params_type::bind(a, dense_config);
    const auto table = concepts::params_type::bind(b, config);
    config.body.boundary = {.d_model = d, .d_scan = d};
    const auto learned = concepts::params_type::bind(e, config);

    auto is = [](double value, double want, double within) { CHECK(std::abs(value - want) < within); };
    is(counts_by_concept(dense).token_products, 906e6 + vocabulary * d, 1e5); // with the head
    is(static_cast<double>(count_params(dense)), 1.302e9, 5e5);
    is(static_cast<double>(count_params(table)), 2.335e9, 5e5);
    const concept_counts of_dense = counts_by_concept(dense.body), n = counts_by_concept(learned.body);
    CHECK(of_dense.concept_products == 0);
    is(of_dense.token_products, 906e6, 1e5);
    CHECK(of_dense.keys(4) == 98304);
    is(n.products(2), 1259.9e6, 1e5);
    is(n.products(4), 917.8e6, 1e5);
    is(n.products(8), 746.7e6, 1e5);
    is(n.products(4) / of_dense.products(4), 1.013, 5e-4);
    is(n.products(2) / of_dense.products(2), 1.39, 5e-3);
    is(n.products(8) / of_dense.products(8), 0.82, 5e-3);
    is(n.backbone / static_cast<double>(count_params(learned)), 0.58, 5e-3);
    is(n.backbone / 4 / (n.products(4) + vocabulary * d), 0.305, 2e-3); // of all products with the head
    CHECK(n.keys(4) == 37248);
    is(n.keys(2) / of_dense.keys(2), 0.51, 5e-3);
    is(n.keys(8) / of_dense.keys(8), 0.31, 7e-3);
}
