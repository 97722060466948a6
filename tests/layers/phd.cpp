#include "support/golden.hpp"
#include "support/layer_suite.hpp"
#include "support/reference_of.hpp"

#include <sluice/layers/language_model.hpp>

using namespace sluice::test;
using sluice::arena;
using sluice::batch;
using sluice::config_error;
using sluice::copy_positions;
using sluice::idx;
using sluice::in;
using sluice::input_error;
using sluice::limits;
using sluice::no_chunks;
using sluice::outputs;
using sluice::tensor_view;
using sluice::token_id;
using sluice::window_unit;

namespace {

template <class W>
using block_params = sluice::basic_transformer_block_params<sluice::norm_params<W>, sluice::cswa_params<W>,
                                                            sluice::feed_forward_params<W>>;
using config = sluice::phd<double>::config_type;

// K, W, C around a block.
struct copies {
    idx repeat = 1, window = 0, chunk = no_chunks;
    window_unit unit = window_unit::positions;
    copy_positions positions = copy_positions::shared;
};
config phd_config(idx n_layers, const sluice::transformer_block_config& block, const copies& c) {
    return {
        .repeat = c.repeat,
        .body = {.n_layers = n_layers,
                 .layer = {.attention = {block.attention, c.repeat, c.window, c.chunk, c.unit, c.positions},
                           .feed_forward = block.feed_forward,
                           .norm = block.norm}}};
}
const sluice::transformer_block_config small{
    .attention = {.d_model = 6, .n_heads = 2, .n_kv_heads = 1, .head_dim = 4},
    .feed_forward = {.d_model = 6, .d_ff = 11},
    .norm = {.d_model = 6}};

sluice::reference::transformer_block_weights<double> reference_weights(const block_params<double>& p) {
    return {reference_of(p.attention_norm), reference_of(p.attention), reference_of(p.feed_forward_norm),
            reference_of(p.feed_forward)};
}

struct phd_traits {
    template <class W>
    using params = sluice::token_repeat_params<sluice::stack_params<block_params<W>>>;
    template <class T, class W, class Arch>
    using layer = sluice::phd<T, W, Arch>;

    static constexpr idx chain = 1024; // layers over layers
    static std::vector<variant<config>> variants() {
        return {{"chunks", phd_config(2, small, {.repeat = 3, .window = 2, .chunk = 4})},
                {"one layer", phd_config(1, small, {.repeat = 2, .window = 5})},
                {"own position only", phd_config(3, small, {.repeat = 2}), true}};
    }
    static void reference(const config& c, const params<double>& p, const batch& b, in<double> x,
                          tensor_view<double> y) {
        const auto& one = c.body.layer;
        const sluice::transformer_block_config plain{one.attention.attention, one.feed_forward, one.norm};
        sluice::reference::phd<double>(
            c.body.n_layers, c.repeat, x, y, [&](idx i, in<double> from, tensor_view<double> to) {
                sluice::reference::phd_block<double>(
                    b, reference_of(plain), reference_of(one.attention),
                    reference_weights(p.body.layers[static_cast<std::size_t>(i)]), from, to);
            });
    }
    // Windows one position longer.
    static void wrong_reference(config c, const params<double>& p, const batch& b, in<double> x,
                                tensor_view<double> y) {
        c.body.layer.attention.window += 1;
        reference(c, p, b, x, y);
    }
};

using suite = layer_suite<phd_traits, double_native>;

// What a stream says of each sequence's last token, asked for alone.
class last_stream {
public:
    last_stream(const suite::layer_type& layer, const limits& most)
        : layer_(layer),
          need_(layer.bytes(most)),
          memory_(need_.state),
          workspace_(need_.workspace),
          state_(layer.bind_state(memory_, most)) {}
    // Rows [first, first + n) of a sample's only sequence.
    padded<double> extend(const sample<double>& from, idx first, idx n) {
        padded<double> y(1, layer_.d_out());
        layer_.extend(batch::one(n, first), from.x.view().row_block(first, n), y, state_, workspace_);
        expect(memory_.touched() + workspace_.touched());
        CHECK(workspace_.arena().used() == 0);
        return y;
    }
    suite::layer_type::state_type& state() { return state_; }

private:
    suite::layer_type layer_;
    sluice::sizes need_;
    poisoned_memory memory_, workspace_;
    suite::layer_type::state_type state_;
};

const copies settings[] = {{1, 3},
                           {2},
                           {3, 2},
                           {3, 2, 4},
                           {2, 16, 32},
                           {4, 1, 3},
                           {3, 3, 1},
                           {5, 7, 6, window_unit::hidden_tokens},
                           {3, 20, 5, window_unit::positions, copy_positions::interleaved}};

} // namespace

SLUICE_TEST_LAYER("", phd_traits, float_native, double_scalar)

TEST_CASE("golden values") {
    struct golden {
        copies c;
        double seventh[5], fourth[5];
    };
    const golden table[] = {
        {{1},
         {0.072469299033, 0.888798833459, 0.743735921988, -0.603635837087, -0.666519288689},
         {-0.014038578567, 0.706727891573, 0.761447741918, -0.610992431778, -0.334358280086}},
        {{3},
         {0.052998419076, 0.877579623212, 0.74569899956, -0.613288084581, -0.645122989748},
         {-0.005575751525, 0.690613462219, 0.746096169612, -0.618018628768, -0.304256939798}},
        {{3, 2},
         {0.092205842643, 0.8980868998, 0.741457859051, -0.594534398567, -0.683788475141},
         {-0.026413045101, 0.705604852989, 0.725349665776, -0.649809913473, -0.33392159456}},
        {{3, 2, 4},
         {0.091714252512, 0.897104219951, 0.742032919292, -0.595195645915, -0.681151681396},
         {-0.005575751525, 0.690613462219, 0.746096169612, -0.618018628768, -0.304256939798}}};
    const sluice::transformer_block_config block{
        .attention = {.d_model = 4, .n_heads = 2, .n_kv_heads = 1, .head_dim = 2},
        .feed_forward = {.d_model = 4, .d_ff = 6},
        .norm = {.d_model = 4}};
    for (const golden& want : table) {
        using model = sluice::language_model<sluice::phd<double>>;
        const model::config_type c{.embedding = {.vocabulary = 5, .d_model = 4},
                                   .body = phd_config(2, block, want.c),
                                   .norm = {.d_model = 4}};
        sluice::owned_params<model::params_type> p(c);
        fill_golden(p.view);
        const model m(c, p.view);
        const std::vector<token_id> ids{0, 1, 2, 3, 4, 0, 1, 2};
        arena workspace(m.bytes({.max_tokens = 8, .max_rows = 8}).workspace);
        padded<double> logits(8, 5);
        m.forward(batch::one(ids), logits, workspace);
        for (idx j = 0; j < 5; ++j) {
            CHECK(std::abs(logits(7, j) - want.seventh[j]) <= 1e-11);
            CHECK(std::abs(logits(4, j) - want.fourth[j]) <= 1e-11);
        }
        // the last token's alone, with less memory
        const limits most{.max_tokens = 8, .max_rows = 8, .wanted = outputs::last};
        const auto need = m.bytes(most);
        CHECK(need.workspace <= m.bytes({.max_tokens = 8, .max_rows = 8}).workspace);
        arena memory(need.state), less(need.workspace);
        auto s = m.bind_state(memory, most);
        padded<double> last(1, 5);
        m.prefill(batch::one(ids), last, s, less);
        CHECK(different_bits(last.view(), logits.view().row_block(7, 1)) == "");
    }
}

TEST_CASE("one copy is the plain transformer, bit for bit") {
    const config c = phd_config(2, small, {.repeat = 1, .window = 3, .chunk = 5});
    const suite::subject s(c);
    using plain_stack = sluice::stack<sluice::transformer_block<double, const double>>;
    const plain_stack::config_type plain{.n_layers = 2, .layer = small};
    sluice::owned_params<plain_stack::params_type> weights(plain);
    for (std::size_t i = 0; i < 2; ++i) {
        const auto& from = const_cast<suite::subject&>(s).narrow.view().body.layers[i];
        weights.view.layers[i] = {from.attention_norm, from.attention, from.feed_forward_norm,
                                  from.feed_forward};
    }
    const plain_stack vanilla(plain, weights.view);
    const sample<double> rows({9, 0, 4}, 6, 3);
    arena workspace(vanilla.bytes({.max_rows = 13}).workspace);
    padded<double> want(13, 6);
    vanilla.forward(rows.rows(), rows.x.view(), want, nullptr, workspace);
    CHECK(different_bits(suite::forward(s.layer, rows).view(), want.view()) == "");
}

TEST_CASE("settings that say the same give the same") {
    auto output = [](const copies& c) {
        const suite::subject s(phd_config(2, small, c));
        return suite::forward(s.layer, sample<double>({14}, 6, 4));
    };
    auto same = [&](const copies& a, const copies& b, idx n = 14) {
        return different_bits(output(a).view().row_block(0, n), output(b).view().row_block(0, n)) == "";
    };
    CHECK(same({3, 0, 4}, {3}));       // no window: chunks say nothing
    CHECK(same({3, 5, 1}, {3}));       // chunks of one position: no window
    CHECK(same({3, 2, 14}, {3, 2}));   // chunks as long as the sequence
    CHECK(same({3, 3, 4}, {3, 9, 4})); // windows of the whole chunk
    CHECK(same({3, 2, 4}, {3, 2}, 4)); // the first chunk
    CHECK(!same({3, 2, 4}, {3, 2}, 5));
    CHECK(!same({3, 2}, {3, 3}));
    CHECK(!same({3, 2}, {2, 2}));
    CHECK(same({2, 3}, {2, 3, no_chunks, window_unit::hidden_tokens})); // one hidden copy: the units agree
}

TEST_CASE("the cache of originals is that of the model without repetition") {
    const sample<double> rows({13}, 6, 5);
    auto cache = [&](const copies& c, const std::vector<idx>& steps) {
        const suite::subject s(phd_config(3, small, c));
        last_stream run(s.layer, {.max_tokens = 13, .max_rows = 13});
        idx at = 0;
        for (idx n : steps) {
            (void)run.extend(rows, at, n);
            at += n;
        }
        std::vector<padded<double>> keys;
        for (auto& layer : run.state().body.layers) {
            const auto& kept = layer.attention.originals.keys;
            for (const auto& t : {kept.k, kept.v}) {
                keys.emplace_back(t.rows(), 13);
                for (idx i = 0; i < t.rows(); ++i) // of keys, tokens are columns
                    for (idx j = 0; j < std::min<idx>(13, t.cols()); ++j)
                        keys.back()(i, j) = t.cols() == 64 || i < 13 ? t(i, j) : 0;
            }
        }
        return keys;
    };
    auto want = cache({1}, {13});
    for (const copies& c : settings) {
        if (c.positions == copy_positions::interleaved) continue; // originals turn further there
        for (const auto& steps : {std::vector<idx>{13}, {6, 1, 1, 5}}) {
            auto got = cache(c, steps);
            for (std::size_t i = 0; i < want.size(); ++i)
                CHECK(different_bits(got[i].view(), want[i].view()) == "");
        }
    }
}

TEST_CASE("prompts without what is not wanted, at every split") {
    for (const copies& c : settings)
        for (idx n_layers : {1, 3}) {
            INFO("K " << c.repeat << ", W " << c.window << ", C " << c.chunk << ", layers " << n_layers);
            const suite::subject s(phd_config(n_layers, small, c));
            const sample<double> rows({13}, 6, 6);
            auto want = suite::forward(s.layer, rows);
            for (idx first = 1; first < 13; ++first)
                for (idx second : {idx{1}, (13 - first + 1) / 2, 13 - first}) {
                    last_stream run(s.layer, {.max_tokens = 13, .max_rows = 13, .wanted = outputs::last});
                    idx at = 0;
                    for (idx n : {first, second}) {
                        auto y = run.extend(rows, at, n);
                        at += n;
                        CHECK(different_bits(y.view(), want.view().row_block(at - 1, 1)) == "");
                    }
                    for (; at < 13; ++at)
                        CHECK(different_bits(run.extend(rows, at, 1).view(), want.view().row_block(at, 1)) ==
                              "");
                }
        }
}

// Whole blocks of attention hold originals then, which see no hidden copies, and others only copies.
TEST_CASE("a prompt of several blocks of rows") {
    const idx n = 330;
    for (const copies& c : {copies{16, 16, 32}, copies{3, 40}}) {
        const suite::subject s(phd_config(3, small, c));
        const sample<double> rows({n}, 6, 10);
        auto want = suite::forward(s.layer, rows);
        last_stream run(s.layer, {.max_tokens = n, .max_rows = n, .wanted = outputs::last});
        idx at = 0;
        for (const idx more : {280, 49, 1}) {
            auto y = run.extend(rows, at, more);
            at += more;
            CHECK(different_bits(y.view(), want.view().row_block(at - 1, 1)) == "");
        }
    }
}

TEST_CASE("tokens are taken back over chunks, prompts and steps") {
    for (const copies& c : settings)
        for (idx prompt : {idx{8}, idx{9}, idx{12}})
            for (idx back : {1, 3, 5}) {
                INFO("K " << c.repeat << ", W " << c.window << ", C " << c.chunk << ", back " << back);
                const suite::subject s(phd_config(2, small, c));
                const sample<double> rows({16}, 6, 7);
                sample<double> other = rows;
                for (idx i = prompt + 1 - back; i < 16; ++i) other.change(i);
                auto want = suite::forward(s.layer, other);
                last_stream run(s.layer, {.max_tokens = 16, .max_rows = 16, .max_rollback = 5});
                (void)run.extend(rows, 0, prompt);
                (void)run.extend(rows, prompt, 1);
                run.state().truncate(0, prompt + 1 - back);
                for (idx at = prompt + 1 - back; at < 16; at += 2) {
                    const idx n = std::min<idx>(2, 16 - at);
                    CHECK(different_bits(run.extend(other, at, n).view(),
                                         want.view().row_block(at + n - 1, 1)) == "");
                }
            }
}

TEST_CASE("several sequences, each in its own place of its chunk") {
    const suite::subject s(phd_config(3, small, {.repeat = 3, .window = 3, .chunk = 4}));
    const sample<double> rows({11, 7, 13}, 6, 8);
    auto want = suite::forward(s.layer, rows);
    const limits most{.max_tokens = 13, .max_rows = 24, .n_sequences = 3, .wanted = outputs::last};
    const auto need = s.layer.bytes(most);
    poisoned_memory memory(need.state), workspace(need.workspace);
    auto state = s.layer.bind_state(memory, most);
    const std::vector<std::vector<idx>> lengths{{7, 5, 10}, {1, 1, 1}, {3, 1, 2}};
    idx held[3] = {0, 0, 0};
    for (const auto& now : lengths) {
        padded<double> x(now[0] + now[1] + now[2], 6), y(3, 6);
        std::vector<idx> offsets{0}, positions;
        for (idx q = 0; q < 3; ++q) {
            for (idx i = 0; i < now[static_cast<std::size_t>(q)]; ++i) {
                copy(rows.x_of(q).row_block(held[q] + i, 1), x.view().row_block(offsets.back() + i, 1));
                positions.push_back(held[q] + i);
            }
            offsets.push_back(offsets.back() + now[static_cast<std::size_t>(q)]);
            held[q] += now[static_cast<std::size_t>(q)];
        }
        s.layer.extend({.n_tokens = offsets.back(), .offsets = offsets, .positions = positions}, x.view(), y,
                       state, workspace);
        for (idx q = 0; q < 3; ++q)
            CHECK(different_bits(y.view().row_block(q, 1),
                                 want.view().row_block(rows.rows().begin(q) + held[q] - 1, 1)) == "");
        expect(memory.touched() + workspace.touched());
    }
}

TEST_CASE("hidden copies cost memory that does not grow with the prompt") {
    auto state = [](const copies& c, idx tokens, idx rows) {
        return suite::subject(phd_config(2, small, c))
            .layer.bytes({.max_tokens = tokens, .max_rows = rows, .wanted = outputs::last})
            .state;
    };
    auto extra = [&](const copies& c, idx tokens) {
        return state(c, tokens, tokens) - state({1}, tokens, tokens);
    };
    CHECK(extra({3}, 1024) == 0);
    // two layers, keys and values, 34 keys in whole tiles of 64
    CHECK(extra({3, 16, 32}, 1024) == 2 * 2 * 64 * 4 * sizeof(double));
    CHECK(extra({3, 16, 32}, 1024) == extra({3, 16, 32}, 4096));
    CHECK(extra({3, 16}, 4096) == extra({3, 16, 32}, 4096));

    auto workspace = [](const copies& c, outputs wanted) {
        return suite::subject(phd_config(2, small, c))
            .layer.bytes({.max_tokens = 4096, .max_rows = 4096, .wanted = wanted})
            .workspace;
    };
    CHECK(workspace({8, 16, 32}, outputs::last) < workspace({1}, outputs::last) * 12 / 10);
    CHECK(workspace({8, 16, 32}, outputs::last) * 4 < workspace({8, 16, 32}, outputs::all));
}

TEST_CASE("repetition counts its operations") {
    const suite::subject s(phd_config(2, small, {.repeat = 3, .window = 4, .chunk = 4}));
    const double heads = 8, n = 16, products = 2 * 6 * heads + 2 * 6 * 4, inner = 3 * 6 * 11;
    // 552 visible pairs for all copies; for the last ones those of originals, own hidden copies, and windows
    const double all = 552, last = 16 * 17 / 2 + 16 * 2 + 2 * 4 * (0 + 1 + 2 + 3);
    const double norms = 2 * 4 * 6;
    const double full = 2 * 3 * n * (products + inner) + 4 * all * heads + 3 * n * norms;
    const double pruned =
        2 * n * (2 * 6 * heads + 3 * 2 * 6 * 4 + inner) + 4 * last * heads + n * (3 * 24 + 24);
    CHECK(s.layer.flops(16) == full + pruned);
}

TEST_CASE("what does not fit together is named") {
    config c = phd_config(1, small, {.repeat = 3, .window = 2});
    const sluice::owned_params<phd_traits::params<double>> weights(c);
    auto complaint = [&](auto change) {
        config other = c;
        change(other);
        return message_of<config_error>([&] { sluice::phd<double>(other, weights.view); });
    };
    CHECK(complaint([](config& o) { o.repeat = 2; }) == "token_repeat: repeat is 2, of cswa 3");
    CHECK(complaint([](config& o) { o.repeat = 0; }) == "token_repeat: repeat must be 1 to 2^20, is 0");
    const sluice::phd<double> layer(c, weights.view);
    const limits most{.max_tokens = 4, .max_rows = 4};
    arena workspace(layer.bytes(most).workspace), memory(layer.bytes(most).state);
    auto state = layer.bind_state(memory, most);
    padded<double> x(4, 6), y(4, 6);
    batch b = batch::one(4);
    b.copies = 3;
    CHECK(message_of<input_error>([&] { layer.extend(b, x.view(), y, state, workspace); }) ==
          "token_repeat: batch: copies is 3; it makes the copies itself");
    CHECK(message_of<input_error>([&] {
              layer.forward(batch::one(idx{1} << 30), x.view(), y, nullptr, workspace);
          }) == "token_repeat: 1073741824 tokens of 3 copies are more than 2^31 rows");
    const idx offsets[] = {0, 4, 4};
    CHECK(message_of<input_error>([&] {
              layer.extend({.n_tokens = 4, .offsets = offsets}, x.view(), y.view().row_block(0, 2), state,
                           workspace);
          }) == "token_repeat: sequence 1 of the batch is empty, so it has no last token");
}
