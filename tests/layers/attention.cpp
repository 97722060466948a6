#include "support/layer_suite.hpp"
#include "support/reference_of.hpp"

using namespace sluice::test;
using sluice::arena;
using sluice::attention_config;
using sluice::batch;
using sluice::idx;
using sluice::in;
using sluice::limits;
using sluice::tensor_view;

namespace {

struct attention_traits {
    template <class W>
    using params = sluice::attention_params<W>;
    template <class T, class W, class Arch>
    using layer = sluice::attention<T, W, Arch>;

    static std::vector<variant<attention_config>> variants() {
        return {
            {"one of everything",
             {.d_model = 1,
              .n_heads = 1,
              .n_kv_heads = 1,
              .head_dim = 1,
              .rotary = {.pairs = sluice::rotary_pairs::none}}},
            {"groups", {.d_model = 11, .n_heads = 6, .n_kv_heads = 2, .head_dim = 6}},
            {"window", {.d_model = 7, .n_heads = 2, .n_kv_heads = 1, .head_dim = 4, .window = 5}},
            {"window of two", {.d_model = 3, .n_heads = 1, .n_kv_heads = 1, .head_dim = 2, .window = 2}},
            {"norm, interleaved, odd window",
             {.d_model = 9,
              .n_heads = 3,
              .n_kv_heads = 3,
              .head_dim = 10,
              .window = 67,
              .rotary = {.pairs = sluice::rotary_pairs::interleaved, .base = 500},
              .norm = sluice::qk_norm::per_head,
              .eps = 1e-3}},
            {"odd head, no positions",
             {.d_model = 5,
              .n_heads = 2,
              .n_kv_heads = 2,
              .head_dim = 7,
              .rotary = {.pairs = sluice::rotary_pairs::none}}},
            {"large groups",
             {.d_model = 65,
              .n_heads = 10,
              .n_kv_heads = 2,
              .head_dim = 34,
              .norm = sluice::qk_norm::per_head},
             true},
            {"group larger than a tile",
             {.d_model = 33, .n_heads = 67, .n_kv_heads = 1, .head_dim = 2, .window = 64},
             true},
            {"head wider than a panel",
             {.d_model = 17, .n_heads = 1, .n_kv_heads = 1, .head_dim = 130},
             true},
        };
    }
    static void reference(const attention_config& c, const params<double>& p, const batch& b, in<double> x,
                          tensor_view<double> y) {
        sluice::reference::attention<double>(b, reference_of(c), reference_of(p), x, y);
    }
    // One key too many or too few at the far end of the window.
    static void wrong_reference(attention_config c, const params<double>& p, const batch& b, in<double> x,
                                tensor_view<double> y) {
        c.window = c.window == 0 ? 8 : c.window > 9 ? 8 : c.window + 1;
        reference(c, p, b, x, y);
    }
};

} // namespace

SLUICE_TEST_LAYER("", attention_traits, float_native, float_scalar, double_native, double_scalar)

// What follows holds for one scalar type as for all.
namespace {

using sluice::capacity_error;
using sluice::config_error;
using sluice::input_error;
using float_attention = sluice::attention<float, const float>;
using suite = layer_suite<attention_traits, float_native>;
using subject = suite::subject;

const attention_config plain{.d_model = 6, .n_heads = 2, .n_kv_heads = 1, .head_dim = 4};

attention_config with_window(idx window) {
    attention_config c = plain;
    c.window = window;
    return c;
}

std::string refused(const attention_config& c) {
    const sluice::attention_params<const float> none{};
    return message_of<config_error>([&] { float_attention(c, none); });
}

// A state for two sequences of at most 8 tokens, and what extends it.
struct session {
    explicit session(const attention_config& c,
                     sluice::limits most = {.max_tokens = 8, .max_rows = 4, .n_sequences = 2})
        : layer(c),
          need(layer.layer.bytes(most)),
          memory(need.state),
          workspace(4 * need.workspace),
          state(layer.layer.bind_state(memory, most)),
          x(uniform_matrix<float>(200, c.d_model, 77)),
          y(200, c.d_model) {}
    void extend(const batch& b) {
        layer.layer.extend(b, x.view().row_block(0, b.n_tokens), y.view().row_block(0, b.n_tokens), state,
                           workspace);
    }
    template <class Error>
    std::string refused(const batch& b) {
        const std::vector<idx> before(state.length.data(), state.length.data() + state.n_sequences());
        fill(y.view(), 5.0F);
        const std::string said = message_of<Error>([&] { extend(b); });
        for (idx i = 0; i < state.n_sequences(); ++i)
            CHECK(state.length(0, i) == before[static_cast<std::size_t>(i)]);
        for (idx j = 0; j < y.view().cols(); ++j) CHECK(y(0, j) == 5.0F);
        CHECK(workspace.used() == 0);
        return said;
    }

    subject layer;
    sluice::sizes need;
    sluice::arena memory, workspace;
    float_attention::state_type state;
    padded<float> x, y;
};

} // namespace

TEST_CASE("a config that makes no sense is refused") {
    auto with = [](auto&& change) {
        attention_config c = plain;
        change(c);
        return refused(c);
    };
    CHECK(with([](auto& c) { c.d_model = 0; }) == "attention: d_model must be positive, is 0");
    CHECK(with([](auto& c) { c.n_heads = -2; }) == "attention: n_heads must be positive, is -2");
    CHECK(with([](auto& c) { c.n_kv_heads = 0; }) == "attention: n_kv_heads must be positive, is 0");
    CHECK(with([](auto& c) { c.head_dim = 0; }) == "attention: head_dim must be positive, is 0");
    CHECK(with([](auto& c) { c.n_heads = 3, c.n_kv_heads = 2; }) ==
          "attention: n_heads (3) must be a multiple of n_kv_heads (2)");
    CHECK(with([](auto& c) { c.window = -1; }) == "attention: window must not be negative");
    CHECK(with([](auto& c) { c.head_dim = 5; }) == "attention: rotary positions need an even head_dim, is 5");
    CHECK(with([](auto& c) { c.rotary.base = 0; }) == "attention: rotary base must be positive");
}

TEST_CASE("norms are there when the config says so, and only then") {
    attention_config normed = plain;
    normed.norm = sluice::qk_norm::per_head;
    const sluice::owned_params<sluice::attention_params<const float>> with(normed), without(plain);
    CHECK(message_of<config_error>([&] { float_attention(normed, without.view); }) ==
          "attention: q_norm must be 1 x 4, is 0 x 0");
    CHECK(message_of<config_error>([&] { float_attention(plain, with.view); }) ==
          "attention: q_norm must be 0 x 0, is 1 x 4");
}

TEST_CASE("a state that makes no sense is refused") {
    const subject s(plain);
    auto said = [&](const sluice::limits& most) {
        sluice::arena dry;
        return message_of<config_error>([&] { s.layer.bind_state(dry, most); });
    };
    CHECK(said({.max_tokens = 0}) == "attention state: max_tokens must be positive, is 0");
    CHECK(said({.max_tokens = 1, .n_sequences = 0}) == "attention state: n_sequences must be positive, is 0");
    CHECK(said({.max_tokens = 1, .max_rows = 0}) == "attention state: max_rows must be positive, is 0");
    CHECK(said({.max_tokens = 1, .max_rollback = -1}) ==
          "attention state: max_rollback must not be negative");
}

TEST_CASE("a full cache says what it needs and has, and stays as it was") {
    session s(plain);
    s.extend(batch::one(4));
    s.extend(batch::one(3, 4));
    try {
        s.extend(batch::one(2, 7));
        FAIL("nine tokens went into a cache of eight");
    } catch (const capacity_error& e) {
        CHECK(e.needed == 9);
        CHECK(e.have == 8);
    }
    CHECK(s.refused<capacity_error>(batch::one(2, 7)) ==
          "attention state: sequence 0: needs 9 tokens (max_tokens), has 8");
    // the other sequence of the batch is not appended to either
    const idx offsets[] = {0, 1, 3}, slots[] = {1, 0};
    CHECK(s.refused<capacity_error>({.n_tokens = 3, .offsets = offsets, .slots = slots}) ==
          "attention state: sequence 0: needs 9 tokens (max_tokens), has 8");
    CHECK_NOTHROW(s.extend(batch::one(1, 7)));
}

TEST_CASE("slots that are not there, or named twice, are refused") {
    session s(plain);
    const idx one[] = {0, 1}, two[] = {0, 1, 2};
    const idx beyond[] = {2}, negative[] = {-1}, twice[] = {1, 1};
    CHECK(s.refused<input_error>({.n_tokens = 1, .offsets = one, .slots = beyond}) ==
          "attention state: no sequence 2, there are 2");
    CHECK(s.refused<input_error>({.n_tokens = 1, .offsets = one, .slots = negative}) ==
          "attention: batch: a slot is -1");
    CHECK(s.refused<input_error>({.n_tokens = 2, .offsets = two, .slots = twice}) ==
          "attention: batch: slot 1 is given twice");
    const idx three[] = {0, 1, 1, 1};
    CHECK(s.refused<input_error>({.n_tokens = 1, .offsets = three}) ==
          "attention state: no sequence 2, there are 2");
    CHECK(message_of<input_error>([&] { s.state.truncate(2, 0); }) ==
          "attention state: no sequence 2, there are 2");
    CHECK(message_of<input_error>([&] { s.state.truncate(-1, 0); }) ==
          "attention state: no sequence -1, there are 2");
}

TEST_CASE("offsets and positions that do not fit the rows are refused") {
    session s(plain);
    const idx too_few[] = {0, 1}, backwards[] = {0, 2, 1, 3}, late[] = {1, 3}, positions[] = {0, 1},
              below[] = {0, -1, 2};
    auto said = [&](const batch& b) {
        const std::string message = s.refused<input_error>(b);
        sluice::arena workspace(1 << 16);
        CHECK(message_of<input_error>([&] {
                  s.layer.layer.forward(b, s.x.view().row_block(0, 3), s.y.view().row_block(0, 3), nullptr,
                                        workspace);
              }) == message);
        return message;
    };
    CHECK(said({.n_tokens = 3, .offsets = too_few}) ==
          "attention: batch: offsets must run from 0 to 3, run from 0 to 1");
    CHECK(said({.n_tokens = 3, .offsets = late}) ==
          "attention: batch: offsets must run from 0 to 3, run from 1 to 3");
    CHECK(said({.n_tokens = 3, .offsets = backwards}) ==
          "attention: batch: offsets must not decrease, do so at entry 2");
    CHECK(said({.n_tokens = 3, .positions = positions}) ==
          "attention: batch: positions has 2 entries for 3 tokens");
    CHECK(said({.n_tokens = 3, .positions = below}) == "attention: batch: a position is -1");
    CHECK(said({.n_tokens = 3, .copies = 2}) ==
          "attention: batch: copies is 2; cswa is the attention of repeated tokens");
}

TEST_CASE("more rows than a ring was bound for are refused") {
    session s(with_window(3), {.max_tokens = 200, .max_rows = 4});
    REQUIRE(s.state.keys.ring == 64);
    CHECK(s.refused<capacity_error>(batch::one(5)) ==
          "attention state: ring of a window: needs 5 rows in one call (max_rows), has 4");
    CHECK_NOTHROW(s.extend(batch::one(4)));
    session whole(with_window(3),
                  {.max_tokens = 60, .max_rows = 4}); // holds everything, so no row is overwritten
    CHECK_NOTHROW(whole.extend(batch::one(60)));
    session full(plain, {.max_tokens = 200, .max_rows = 4});
    CHECK_NOTHROW(full.extend(batch::one(9)));
}

TEST_CASE("a window keeps only what can be seen") {
    const sluice::limits most{.max_tokens = 4096, .max_rows = 8};
    const auto ring = subject(with_window(57)).layer.bytes(most).state,
               all = subject(plain).layer.bytes(most).state;
    CHECK(ring == 2 * 64 * 4 * sizeof(float) + 128);
    CHECK(all == 2 * 4096 * 4 * sizeof(float) + 128);
    // one more for the rows of a call, or for rollback, needs another tile
    CHECK(subject(with_window(58)).layer.bytes(most).state == 2 * 128 * 4 * sizeof(float) + 128);
    sluice::limits back = most;
    back.max_rollback = 1;
    CHECK(subject(with_window(57)).layer.bytes(back).state == 2 * 128 * 4 * sizeof(float) + 128);
}

// 64 keys: what the first row of a call sees, the call's rows and what may be taken back.
TEST_CASE("a ring that is exactly full holds all that is needed") {
    for (const sluice::limits& most : {sluice::limits{.max_tokens = 400, .max_rows = 8},
                                       {.max_tokens = 400, .max_rows = 60},
                                       {.max_tokens = 400, .max_rows = 8, .max_rollback = 7},
                                       {.max_tokens = 400, .max_rows = 1, .max_rollback = 40}}) {
        const subject s(with_window(65 - most.max_rows - most.max_rollback));
        const sample<float> rows({400}, plain.d_model, 14), wrong({400}, plain.d_model, 15);
        const auto want = suite::forward(s.layer, rows);
        stream<float_attention> full(s.layer, most);
        REQUIRE(full.state().keys.ring == 64);
        padded<float> y(400, plain.d_model), dropped(400, plain.d_model);
        for (idx i = 0, n = 0; i < 400; i += n) {
            n = std::min(most.max_rows, 400 - i);
            full.extend(rows, {{0, i, n, i}}, y);
            const idx held = i + n, draft = std::min(most.max_rollback, 400 - held);
            for (idx at = held, m = 0; at < held + draft; at += m) {
                m = std::min(most.max_rows, held + draft - at);
                full.extend(wrong, {{0, at, m, at}}, dropped);
            }
            full.state().truncate(0, held);
        }
        CHECK(different_bits(y.view(), want.view()) == "");
    }
}

TEST_CASE("taking back too much is refused") {
    session s(plain, {.max_tokens = 8, .max_rows = 4, .n_sequences = 2, .max_rollback = 2});
    s.extend(batch::one(4));
    s.extend(batch::one(2, 4));
    auto said = [&](idx tokens) { return message_of<input_error>([&] { s.state.truncate(0, tokens); }); };
    CHECK(said(7) == "attention state: truncate sequence 0 to 7: it holds 6 tokens");
    CHECK(said(-1) == "attention state: truncate sequence 0 to -1: it holds 6 tokens");
    CHECK(said(3) ==
          "attention state: truncate sequence 0 to 3: only 2 tokens can be taken back (max_rollback)");
    CHECK(said(5) == "no error");
    CHECK(said(3) ==
          "attention state: truncate sequence 0 to 3: only 2 tokens can be taken back (max_rollback)");
    CHECK(said(4) == "no error");
    s.extend(batch::one(1, 4)); // the newest token was the sixth, whatever is held now
    CHECK(said(3) ==
          "attention state: truncate sequence 0 to 3: only 2 tokens can be taken back (max_rollback)");
    CHECK(said(4) == "no error");
    CHECK(said(0) == "no error");
    s.extend(batch::one(3));
    CHECK(said(1) == "no error");
    CHECK(s.state.length(0, 0) == 1);
    CHECK(s.state.length(0, 1) == 0);
}

TEST_CASE("prefill and decode are extend") {
    session s(plain), other(plain);
    const auto x = s.x.view();
    s.layer.layer.prefill(batch::one(3), x.row_block(0, 3), s.y.view().row_block(0, 3), s.state, s.workspace);
    s.layer.layer.decode(batch::one(1, 3), x.row_block(3, 1), s.y.view().row_block(3, 1), s.state,
                         s.workspace);
    other.extend(batch::one(4));
    CHECK(different_bits(s.y.view(), other.y.view()) == "");
}

TEST_CASE("a window as long as the sequence is no window, and a window of one sees one value") {
    const sample<float> rows({67}, plain.d_model, 3);
    const subject all(plain), wide(with_window(67)), one(with_window(1));
    const auto y = suite::forward(all.layer, rows);
    CHECK(different_bits(suite::forward(wide.layer, rows).view(), y.view()) == "");
    CHECK(different_bits(suite::forward(subject(with_window(66)).layer, rows).view(), y.view()) != "");
    const auto alone = suite::forward(one.layer, rows);
    for (idx i = 0; i < 67; ++i) {
        const auto row = suite::forward(all.layer, batch::one(1), rows.x.view().row_block(i, 1));
        CHECK(different_bits(row.view(), alone.view().row_block(i, 1)) == "");
    }
}

TEST_CASE("only differences of positions count") {
    const subject s(plain);
    sample<float> rows({9}, plain.d_model, 3);
    const std::vector<idx> counted{0, 1, 2, 3, 4, 5, 6, 7, 8}, gaps{0, 1, 2, 5, 6, 20, 21, 22, 40};
    batch b = rows.rows();
    const auto y = suite::forward(s.layer, rows);
    b.positions = counted;
    CHECK(different_bits(suite::forward(s.layer, b, rows.x.view()).view(), y.view()) == "");
    b.positions = gaps;
    CHECK(different_bits(suite::forward(s.layer, b, rows.x.view()).view(), y.view()) != "");
    const auto far = suite::forward(s.layer, batch::one(9, 1'000'000), rows.x.view());
    oracle want(9, plain.d_model);
    for (idx i = 0; i < 9; ++i)
        for (idx j = 0; j < plain.d_model; ++j) want(i, j) = {static_cast<double>(y.view()(i, j)), 1};
    CHECK(compare(far.view(), want, {.chain = 16}) == ""); // angles are exact at a million too
}

TEST_CASE("heads that share keys are heads with equal keys") {
    const attention_config shared{.d_model = 5, .n_heads = 4, .n_kv_heads = 2, .head_dim = 2};
    attention_config apart = shared;
    apart.n_kv_heads = 4;
    const subject few(shared), many(apart);
    sluice::attention_params<const float> p = few.narrow.skeleton.view;
    padded<float> k(8, 5), v(8, 5);
    for (idx i = 0; i < 8; ++i)
        for (idx j = 0; j < 5; ++j) {
            k(i, j) = p.w_k(i / 4 * 2 + i % 2, j);
            v(i, j) = p.w_v(i / 4 * 2 + i % 2, j);
        }
    p.w_k = k;
    p.w_v = v;
    const sample<float> rows({70, 4}, 5, 3);
    CHECK(different_bits(suite::forward(float_attention(apart, p), rows).view(),
                         suite::forward(few.layer, rows).view()) == "");
}

TEST_CASE("scores far apart stay finite") {
    const subject s(plain);
    sample<float> rows({70}, plain.d_model, 3);
    for (idx i = 0; i < 70; ++i)
        for (idx j = 0; j < plain.d_model; ++j) rows.x(i, j) *= 1e6F;
    const auto y = suite::forward(s.layer, rows);
    suite::gradients g(s, 70);
    suite::backward(s.layer, rows.rows(), rows.x.view(), rows.x.view(), g);
    for (idx i = 0; i < 70; ++i)
        for (idx j = 0; j < plain.d_model; ++j)
            REQUIRE((std::isfinite(y.view()(i, j)) && std::isfinite(g.dx(i, j))));
}

TEST_CASE("a new layer adds nothing, and work is counted") {
    sluice::owned_params<sluice::attention_params<float>> p(plain);
    each_param([](const sluice::param_name&, sluice::role, const auto& t) { fill(t, 3.0F); }, p.view);
    initialise(p.view, plain, sluice::random_source(1));
    for (idx j = 0; j < p.view.w_o.size(); ++j) CHECK(p.view.w_o(j / 8, j % 8) == 0);
    CHECK(p.view.w_k(0, 0) != p.view.w_v(0, 0));
    const sluice::attention<float> layer(plain, p.view);
    CHECK(layer.flops(1, 9) == 2.0 * (48 + 24 + 24 + 48) + 4.0 * 10 * 8);
    const sluice::attention<float> windowed(with_window(3), p.view);
    CHECK(windowed.flops(4) == 2.0 * 4 * 144 + 4.0 * (1 + 2 + 3 + 3) * 8);
}

// Weights packed for inference: the same bits as plain ones, and for bf16 those of the floats they stand for.
TEMPLATE_TEST_CASE("packed weights stream with the bits of plain ones", "", float, sluice::bf16) {
    using sluice::packed;
    const attention_config config{.d_model = 40, .n_heads = 4, .n_kv_heads = 2, .head_dim = 10};
    sluice::owned_params<sluice::attention_params<float>> weights(config);
    sluice::initialise(weights.view, config, sluice::random_source(3));
    sluice::fill_normal(weights.view.w_o, 0.2, sluice::random_source(4));
    if constexpr (std::is_same_v<TestType, sluice::bf16>)
        sluice::each_param(
            [](const sluice::param_name&, sluice::role, const auto& t) {
                for (idx i = 0; i < t.rows(); ++i)
                    for (idx j = 0; j < t.cols(); ++j) t(i, j) = sluice::to_float(sluice::to_bf16(t(i, j)));
            },
            weights.view);
    using packed_params = sluice::attention_params<packed<TestType>>;
    sluice::arena count;
    (void)sluice::pack_params<packed_params>(weights.view, config, count);
    sluice::arena memory(count.bytes());
    const auto small = sluice::pack_params<packed_params>(weights.view, config, memory);
    using packed_attention = sluice::attention<float, packed<TestType>>;
    STATIC_REQUIRE(sluice::streaming_layer<packed_attention>);
    STATIC_REQUIRE(!sluice::trainable_layer<packed_attention>);
    const sluice::attention<float> unpacked(config, weights.view);
    const packed_attention layer(config, small);
    const sluice::limits most{.max_tokens = 64, .max_rows = 30};
    const sluice::sizes need = layer.bytes(most), need_plain = unpacked.bytes(most);
    CHECK(need.tape == 0);
    sluice::arena state_memory(need.state), workspace(need.workspace), plain_workspace(need_plain.workspace);
    auto state = layer.bind_state(state_memory, most);
    sluice::tensor<float> x(30, 40), y(30, 40), all(30, 40);
    sluice::fill_normal(x.view(), 1, sluice::random_source(5));
    unpacked.forward(sluice::batch::one(30), x, all, nullptr, plain_workspace);
    layer.prefill(sluice::batch::one(29), x.view().row_block(0, 29), y.view().row_block(0, 29), state,
                  workspace);
    layer.decode(sluice::batch::one(1, 29), x.view().row_block(29, 1), y.view().row_block(29, 1), state,
                 workspace);
    for (idx i = 0; i < y.size(); ++i) REQUIRE(y.data()[i] == all.data()[i]);
}

// Sizes that a file may hold: their products must not wrap round to something small.
TEST_CASE("heads that multiply out of range are refused before anything is bound") {
    constexpr idx big = idx{1} << 32, most = std::numeric_limits<idx>::max();
    auto refused = [](const attention_config& c) {
        arena dry;
        CHECK_THROWS_AS(sluice::attention_params<float>::bind(dry, c), sluice::config_error);
        CHECK_THROWS_AS(sluice::attention<float>(c, sluice::attention_params<float>{}), sluice::config_error);
    };
    refused({.d_model = 4, .n_heads = big, .n_kv_heads = 1, .head_dim = big});
    refused({.d_model = 4, .n_heads = big, .n_kv_heads = big, .head_dim = 2 * big});
    refused({.d_model = 4, .n_heads = 2, .n_kv_heads = 2, .head_dim = idx{1} << 62});
    refused({.d_model = big, .n_heads = 1, .n_kv_heads = 1, .head_dim = big});
    refused({.d_model = most, .n_heads = most, .n_kv_heads = 1, .head_dim = most});
    refused({.d_model = 4, .n_heads = -1, .n_kv_heads = -1, .head_dim = most});
}

// The largest weights that bind lets through, without their memory: no size on the way is out of range.
TEST_CASE("absurd sizes that are still a layer are refused by bytes, or counted") {
    constexpr idx wide = arena::most_elements;
    for (const attention_config& c :
         {attention_config{.d_model = 1, .n_heads = 1, .n_kv_heads = 1, .head_dim = wide},
          {.d_model = 1, .n_heads = wide, .n_kv_heads = wide, .head_dim = 1},
          {.d_model = wide, .n_heads = 1, .n_kv_heads = 1, .head_dim = 1},
          {.d_model = 1, .n_heads = 1, .n_kv_heads = 1, .head_dim = wide, .window = idx{1} << 60}}) {
        arena dry;
        attention_config config = c;
        config.rotary.pairs = sluice::rotary_pairs::none;
        const sluice::attention<float> layer(config, sluice::attention_params<float>::bind(dry, config));
        for (const limits& most : {limits{},
                                   {.max_tokens = 1},
                                   {.max_tokens = 1, .n_sequences = idx{1} << 40},
                                   {.max_rows = idx{1} << 40, .workers = 1 << 20},
                                   {.max_tokens = idx{1} << 40, .max_rows = idx{1} << 40}}) {
            try {
                const auto need = layer.bytes(most);
                const double queries = static_cast<double>(c.n_heads) * static_cast<double>(c.head_dim);
                CHECK(static_cast<double>(need.workspace) >= queries * static_cast<double>(most.max_rows));
            } catch (const sluice::error&) {
            }
        }
    }
}
