#include "support/golden.hpp"
#include "support/layer_suite.hpp"
#include "support/reference_of.hpp"

#include <sluice/layers/language_model.hpp>
#include <sluice/reference/language_model.hpp>

using namespace sluice::test;
using sluice::arena;
using sluice::batch;
using sluice::config_error;
using sluice::executor_ref;
using sluice::head_kind;
using sluice::idx;
using sluice::in;
using sluice::input_error;
using sluice::limits;
using sluice::tensor_view;
using sluice::token_id;

namespace {

template <class T, class W, class Arch = sluice::simd::native>
using model = sluice::language_model<sluice::stack<sluice::transformer_block<T, W, Arch>>, W>;
using config = model<double, double>::config_type;
template <class W>
using model_params = sluice::language_model_params<sluice::embedding_params<W>,
                                                   sluice::stack_params<sluice::transformer_block_params<W>>,
                                                   sluice::norm_params<W>>;

config make_config(idx n_layers, const sluice::transformer_block_config& block, idx vocabulary,
                   head_kind head) {
    const idx d = block.norm.d_model;
    return {.embedding = {.vocabulary = vocabulary, .d_model = d, .head = head},
            .body = {.n_layers = n_layers, .layer = block},
            .norm = block.norm};
}

// Two layers, grouped heads: the one the golden values are of.
const config small_config =
    make_config(2,
                {.attention = {.d_model = 4, .n_heads = 2, .n_kv_heads = 1, .head_dim = 2},
                 .feed_forward = {.d_model = 4, .d_ff = 6},
                 .norm = {.d_model = 4}},
                5, head_kind::untied);
const config windowed =
    make_config(3,
                {.attention = {.d_model = 5, .n_heads = 2, .n_kv_heads = 2, .head_dim = 4, .window = 6},
                 .feed_forward = {.d_model = 5, .d_ff = 7, .kind = sluice::feed_forward_kind::geglu},
                 .norm = {.d_model = 5, .kind = sluice::norm_kind::layer}},
                11, head_kind::tied);

double reference_loss(const config& c, const model_params<double>& p, const batch& b,
                      const std::vector<token_id>& targets, tensor_view<double> logits) {
    namespace ref = sluice::reference;
    std::vector<ref::transformer_block_weights<double>> blocks;
    for (const auto& layer : p.body.layers) blocks.push_back(reference_of(layer));
    const ref::language_model_weights<double> weights{p.embedding.table, p.embedding.head, blocks,
                                                      reference_of(p.norm)};
    if (!logits.empty()) ref::language_model<double>(b, reference_of(c.body.layer), weights, logits);
    return targets.empty()
               ? 0
               : ref::language_model_loss<double>(b, reference_of(c.body.layer), weights, targets);
}

// A model as a layer without input: everything it reads are token ids.
template <class Model>
class from_ids {
public:
    using scalar = typename Model::scalar;
    using T = scalar;
    using config_type = typename Model::config_type;
    using params_type = typename Model::params_type;
    using grad_type = typename Model::grad_type;
    using state_type = typename Model::state_type;

    from_ids(const config_type& c, const params_type& p) : model_(c, p) {}
    const config_type& config() const { return model_.config(); }
    const Model& inner() const { return model_; }
    idx d_in() const { return 0; }
    idx d_out() const { return model_.vocabulary(); }
    void forward(const batch& b, in<T>, tensor_view<T> y, arena*, arena& workspace,
                 executor_ref ex = {}) const {
        model_.forward(b, y, workspace, ex);
    }
    state_type bind_state(arena& memory, const limits& most) const { return model_.bind_state(memory, most); }
    void extend(const batch& b, in<T>, tensor_view<T> y, state_type& state, arena& workspace,
                executor_ref ex = {}) const {
        model_.extend(b, y, state, workspace, ex);
    }
    sluice::sizes bytes(const limits& most) const { return model_.bytes(most); }

private:
    Model model_;
};

struct model_traits {
    template <class W>
    using params = model_params<W>;
    template <class T, class W, class Arch>
    using layer = from_ids<model<T, W, Arch>>;
    static constexpr idx chain = 4096;

    static std::vector<variant<config>> variants() {
        return {{"two layers", small_config}, {"window, tied head", windowed}};
    }
    static void reference(const config& c, const params<double>& p, const batch& b, in<double>,
                          tensor_view<double> y) {
        reference_loss(c, p, b, {}, y);
    }
    // Without the last layer.
    static void wrong_reference(config c, params<double> p, const batch& b, in<double> x,
                                tensor_view<double> y) {
        p.body.layers = p.body.layers.first(p.body.layers.size() - 1);
        reference(c, p, b, x, y);
    }
};

using suite = layer_suite<model_traits, double_native>;

// Rows with a next token each, the last of a sequence without one.
std::vector<token_id> next_tokens(const sample<double>& rows) {
    std::vector<token_id> targets(rows.ids.begin(), rows.ids.end());
    for (idx s = 0; s < rows.n_sequences(); ++s)
        for (idx i = rows.rows().begin(s); i < rows.rows().end(s); ++i)
            targets[static_cast<std::size_t>(i)] = i + 1 == rows.rows().end(s)
                                                       ? sluice::ignored_target
                                                       : rows.ids[static_cast<std::size_t>(i + 1)];
    return targets;
}

} // namespace

SLUICE_TEST_LAYER_FORWARD("", model_traits, float_native, double_native)

TEST_CASE("golden values") {
    sluice::owned_params<model_params<double>> p(small_config);
    fill_golden(p.view);

    const double seventh[] = {0.072469299033, 0.888798833459, 0.743735921988, -0.603635837087,
                              -0.666519288689};
    const double fourth[] = {-0.014038578567, 0.706727891573, 0.761447741918, -0.610992431778,
                             -0.334358280086};
    const std::vector<token_id> ids{0, 1, 2, 3, 4, 0, 1, 2};
    const model<double, double> m(small_config, p.view);
    arena workspace(m.bytes({.max_tokens = 8, .max_rows = 8}).workspace);
    padded<double> logits(8, 5), plain(8, 5);
    m.forward(batch::one(ids), logits, workspace);
    reference_loss(small_config, p.view, batch::one(ids), {}, plain.view());
    for (idx j = 0; j < 5; ++j) {
        CHECK(std::abs(logits(7, j) - seventh[j]) <= 1e-11);
        CHECK(std::abs(logits(4, j) - fourth[j]) <= 1e-11);
        CHECK(std::abs(plain(7, j) - seventh[j]) <= 1e-11);
        CHECK(std::abs(plain(4, j) - fourth[j]) <= 1e-11);
    }
}

TEST_CASE("loss in blocks of rows is the plain mean") {
    suite::for_each_variant(true, [](const suite::subject& s) {
        for (const auto& lengths : {std::vector<idx>{1}, {5, 0, 1}, {255, 2}, {256}, {100, 0, 501}}) {
            const sample<double> rows(lengths, 0, 71);
            const idx n = rows.offsets.back();
            INFO("rows: " << n);
            const auto targets = next_tokens(rows);
            poisoned_memory workspace(s.layer.bytes({.max_tokens = n, .max_rows = n}).workspace);
            const double loss = s.layer.inner().loss(rows.rows(), targets, workspace.arena());
            const double plain = reference_loss(s.layer.config(), s.wide.view, rows.rows(), targets, {});
            CHECK(std::abs(loss - plain) <= 1e-12);
            CHECK(workspace.touched() == "");
            CHECK((n == 1 ? loss == 0 : loss > 0.5)); // one row has no next token
        }
    });
}

TEST_CASE("gradients are slopes, accumulate, and come with the loss") {
    suite::for_each_variant(true, [](const suite::subject& s) {
        const auto& m = s.layer.inner();
        const sample<double> rows({6, 0, 1, 4}, 0, 72);
        const auto targets = next_tokens(rows);
        const limits most{.max_tokens = 11, .max_rows = 11, .n_sequences = 4};
        const auto need = m.bytes(most);
        poisoned_memory workspace(need.workspace), tape(need.tape);
        spread_params<model_params<double>, double> grad(s.layer.config()), twice(s.layer.config());
        const double loss =
            m.loss_and_gradient(rows.rows(), targets, grad.view(), tape.arena(), workspace.arena());
        CHECK(loss == m.loss(rows.rows(), targets, workspace.arena()));
        CHECK(tape.arena().used() == 0);
        CHECK(tape.arena().bytes() == need.tape);
        CHECK(workspace.arena().used() == 0);
        CHECK(workspace.arena().bytes() == need.workspace);
        auto value = [&] { return m.loss(rows.rows(), targets, workspace.arena()); };
        std::size_t i = 0;
        each_param(
            [&](const sluice::param_name& name, sluice::role, auto&) {
                INFO("gradient of " << name.str());
                CHECK(wrong_layer_gradient(value, const_cast<suite::subject&>(s).narrow.tensors[i].view(),
                                           grad.tensors[i].view()) == "");
                ++i;
            },
            grad.view());
        for (int k = 0; k < 2; ++k)
            m.loss_and_gradient(rows.rows(), targets, twice.view(), tape.arena(), workspace.arena());
        for (i = 0; i < grad.tensors.size(); ++i)
            for (idx k = 0; k < grad.tensors[i].view().size(); ++k) {
                const auto one = grad.tensors[i].view(), two = twice.tensors[i].view();
                CHECK(two(k / two.cols(), k % two.cols()) ==
                      approx(2 * one(k / one.cols(), k % one.cols())).margin(1e-13));
            }
        CHECK(workspace.touched() + tape.touched() + grad.touched() + twice.touched() == "");
    });
}

TEST_CASE("loss and gradient are the same bits for any executor, without allocation") {
    REQUIRE(allocations_are_noticed());
    const suite::subject s(windowed);
    const auto& m = s.layer.inner();
    const sample<double> rows({290, 0, 11}, 0, 73);
    const auto targets = next_tokens(rows);
    spread_params<model_params<double>, double> want(windowed);
    double loss = 0;
    for_each_executor([&](executor_ref ex, const std::string& name) {
        INFO(name);
        const auto need = m.bytes({.max_tokens = 301, .max_rows = 301, .workers = ex.concurrency()});
        poisoned_memory workspace(need.workspace), tape(need.tape);
        spread_params<model_params<double>, double> grad(windowed);
        double value = 0, alone = 0;
        const idx allocated = allocations_of([&] {
            value =
                m.loss_and_gradient(rows.rows(), targets, grad.view(), tape.arena(), workspace.arena(), ex);
            alone = m.loss(rows.rows(), targets, workspace.arena(), ex);
        });
        if (ex.concurrency() == 1) CHECK(allocated == 0); // a pool's threads may still be starting
        CHECK(alone == value);
        if (loss == 0) {
            loss = value;
            for (std::size_t i = 0; i < grad.tensors.size(); ++i)
                copy(grad.tensors[i].view(), want.tensors[i].view());
        }
        CHECK(value == loss);
        for (std::size_t i = 0; i < grad.tensors.size(); ++i)
            CHECK(different_bits(grad.tensors[i].view(), want.tensors[i].view()) == "");
        CHECK(workspace.touched() + tape.touched() + grad.touched() == "");
    });
}

TEST_CASE("the last token's logits alone are those of all") {
    const suite::subject s(small_config);
    const auto& m = s.layer.inner();
    const sample<double> rows({3, 1, 5}, 0, 74);
    const limits most{.max_tokens = 9, .max_rows = 9, .n_sequences = 3};
    const auto need = m.bytes(most);
    poisoned_memory first(need.state), second(need.state), workspace(need.workspace);
    auto all_state = m.bind_state(first, most), last_state = m.bind_state(second, most);
    padded<double> all(9, 5), last(3, 5);
    m.prefill(rows.rows(), all, all_state, workspace.arena());
    m.prefill(rows.rows(), last, last_state, workspace.arena());
    for (idx i = 0; i < 3; ++i)
        CHECK(different_bits(last.view().row_block(i, 1), all.view().row_block(rows.rows().end(i) - 1, 1)) ==
              "");
    const std::vector<token_id> next{4};
    padded<double> a(1, 5), b(1, 5);
    m.decode(batch::one(next, 3), a, all_state, workspace.arena());
    m.decode(batch::one(next, 3), b, last_state, workspace.arena());
    CHECK(different_bits(a.view(), b.view()) == "");

    const idx offsets[] = {0, 2, 2};
    const std::vector<token_id> two{1, 2, 3};
    const idx three[] = {0, 3, 3};
    CHECK(message_of<input_error>([&] {
              m.extend({.n_tokens = 3, .offsets = three, .ids = two}, last.view().row_block(0, 2), last_state,
                       workspace.arena());
          }) == "language_model: sequence 1 of the batch is empty, so it has no last token");
    CHECK(message_of<config_error>([&] {
              m.extend({.n_tokens = 2, .offsets = offsets, .ids = std::span(two).first(2)}, last, last_state,
                       workspace.arena());
          }) == "language_model: logits must be 2 x 5, is 3 x 5");
    CHECK(last_state.layers[0].attention.length(0, 0) == 4);
}

TEST_CASE("wrong ids, offsets and targets change nothing") {
    const suite::subject s(small_config);
    const auto& m = s.layer.inner();
    const limits most{.max_tokens = 4, .max_rows = 4};
    const auto need = m.bytes(most);
    arena memory(need.state), workspace(need.workspace), tape(need.tape);
    auto state = m.bind_state(memory, most);
    padded<double> logits(3, 5);
    spread_params<model_params<double>, double> grad(small_config);
    auto refused = [&](const batch& b, const std::vector<token_id>& targets = {0, 1, 2}) {
        const std::string said =
            message_of<input_error>([&] { m.loss_and_gradient(b, targets, grad.view(), tape, workspace); });
        CHECK(tape.used() == 0);
        CHECK(workspace.used() == 0);
        for (const auto& t : grad.tensors)
            for (idx i = 0; i < t.view().size(); ++i)
                REQUIRE(t.view()(i / t.view().cols(), i % t.view().cols()) == 0);
        if (targets == std::vector<token_id>{0, 1, 2}) {
            CHECK(message_of<input_error>([&] { m.extend(b, logits, state, workspace); }) == said);
            CHECK(message_of<input_error>([&] { m.forward(b, logits, workspace); }) == said);
            CHECK(message_of<input_error>([&] { m.loss(b, targets, workspace); }) == said);
        } else {
            CHECK(message_of<input_error>([&] { m.loss(b, targets, workspace); }) == said);
        }
        for (const auto& layer : state.layers) CHECK(layer.attention.length(0, 0) == 0);
        for (idx j = 0; j < 5; ++j) CHECK(logits(0, j) == 0);
        return said;
    };
    const std::vector<token_id> bad{1, 5, 2}, good{1, 2, 3};
    CHECK(refused(batch::one(bad)) == "embedding: token id 5 at row 1 is outside the vocabulary of 5");
    const idx offsets[] = {0, 2};
    CHECK(refused({.n_tokens = 3, .offsets = offsets, .ids = good}) ==
          "language_model: batch: offsets must run from 0 to 3, run from 0 to 2");
    CHECK(refused({.n_tokens = 3, .ids = std::span(good).first(2)}) ==
          "language_model: batch: ids has 2 entries for 3 tokens");
    CHECK(refused(batch::one(good), {0, 5, 1}) ==
          "embedding: target 5 at row 1 is outside the vocabulary of 5");
    CHECK(refused(batch::one(good), {0, 1, -2}) ==
          "embedding: target -2 at row 2 is outside the vocabulary of 5");
    CHECK(refused(batch::one(good), {0, 1}) == "embedding: 2 targets for 3 rows");

    m.extend(batch::one(good), logits, state, workspace);
    CHECK(message_of<sluice::capacity_error>([&] {
              m.extend(batch::one(std::span(good).first(2), 3), logits.view().row_block(0, 2), state,
                       workspace);
          }) == "attention state: sequence 0: needs 5 tokens (max_tokens), has 4");
    for (const auto& layer : state.layers) CHECK(layer.attention.length(0, 0) == 3);
}

TEST_CASE("parts of another width are refused") {
    auto said = [](const config& c) {
        const sluice::owned_params<model_params<double>> p(c);
        return message_of<config_error>([&] { model<double, double>(c, p.view); });
    };
    CHECK(said(small_config) == "no error");
    config c = small_config;
    c.embedding.d_model = 6;
    CHECK(said(c) == "language_model: d_model of the embedding is 6, of the body 4 to 4, of the norm 4");
    c = small_config;
    c.norm.d_model = 3;
    CHECK(said(c) == "language_model: d_model of the embedding is 4, of the body 4 to 4, of the norm 3");
    c = small_config;
    c.body.n_layers = 0;
    CHECK(said(c) == "stack: n_layers must be positive, is 0");
}

TEST_CASE("names of weights, their number, and work") {
    sluice::owned_params<model_params<double>> p(small_config);
    std::string names;
    each_param([&](const sluice::param_name& name, sluice::role, const auto&) { names += name.str() + " "; },
               p.view);
    CHECK_THAT(
        names,
        contains_text("embedding.table embedding.head layers.0.attention_norm.scale layers.0.attention.w_q"));
    CHECK_THAT(names, contains_text("layers.1.feed_forward.w_down norm.scale "));
    const idx block = 2 * 4 + 16 + 8 + 8 + 16 + 3 * 24;
    CHECK(count_params(p.view) == 2 * 20 + 2 * block + 4);
    const model<double, double> m(small_config, p.view);
    CHECK(m.flops(3) > 2.0 * 3 * static_cast<double>(2 * (block - 8) + 20));
}

TEST_CASE("a workspace that is too small leaves the state as it was") {
    using block = sluice::transformer_block<float>;
    using model = sluice::language_model<sluice::stack<block>>;
    const sluice::attention_config heads{.d_model = 8, .n_heads = 2, .n_kv_heads = 1, .head_dim = 4};
    // a vocabulary so large that the head takes more than all before it
    const model::config_type config{
        .embedding = {.vocabulary = 300, .d_model = 8},
        .body = {.n_layers = 3, .layer = {.attention = heads, .feed_forward = {8, 12}, .norm = {8}}},
        .norm = {8}};
    sluice::owned_params<model::params_type> weights(config);
    sluice::initialise(weights.view, config, sluice::random_source(1));
    const model net(config, weights.view);
    const sluice::limits most{.max_tokens = 40, .max_rows = 20};
    const sluice::sizes need = net.bytes(most);
    sluice::arena memory(need.state), enough(need.workspace);
    auto state = net.bind_state(memory, most);
    const std::vector<sluice::token_id> ids(20, 7);
    sluice::tensor<float> logits(20, 300);
    std::size_t refused = 0;
    for (std::size_t bytes = 0; bytes < need.workspace; bytes += 4096) {
        sluice::arena small(bytes);
        try {
            net.extend(sluice::batch::one(ids), logits, state, small);
            for (auto& layer : state.layers) CHECK(layer.attention.length(0, 0) == 20);
            state.truncate(0, 0);
        } catch (const sluice::capacity_error&) {
            ++refused;
            for (auto& layer : state.layers) CHECK(layer.attention.length(0, 0) == 0);
            for (sluice::idx i = 0; i < logits.size(); ++i) REQUIRE(logits.data()[i] == 0.0F);
        }
    }
    CHECK(refused > 3);
    CHECK_NOTHROW(net.extend(sluice::batch::one(ids), logits, state, enough));
}

TEST_CASE("too little memory for a gradient is found before it is added to") {
    const suite::subject s(windowed);
    const auto& m = s.layer.inner();
    const sample<double> rows({5, 2}, 0, 75);
    const auto targets = next_tokens(rows);
    const auto need = m.bytes({.max_rows = 7, .n_sequences = 2});
    spread_params<model_params<double>, double> grad(windowed);
    auto refused = [&](std::size_t tape_bytes, std::size_t workspace_bytes) {
        arena tape(tape_bytes), workspace(workspace_bytes);
        CHECK_THROWS_AS(m.loss_and_gradient(rows.rows(), targets, grad.view(), tape, workspace),
                        sluice::capacity_error);
        CHECK((tape.used() == 0 && workspace.used() == 0));
        for (const auto& t : grad.tensors)
            for (idx i = 0; i < t.view().rows(); ++i)
                for (idx j = 0; j < t.view().cols(); ++j) REQUIRE(t.view()(i, j) == 0);
    };
    for (std::size_t less = 64; less <= need.tape; less += 640) refused(need.tape - less, need.workspace);
    for (std::size_t less = 64; less <= need.workspace; less += 640)
        refused(need.tape, need.workspace - less);
    arena tape(need.tape), workspace(need.workspace);
    CHECK(m.loss_and_gradient(rows.rows(), targets, grad.view(), tape, workspace) > 0);
}
