#include "support/layer_suite.hpp"
#include "support/reference_of.hpp"

using namespace sluice::test;
using sluice::arena;
using sluice::batch;
using sluice::config_error;
using sluice::copy_positions;
using sluice::cswa_config;
using sluice::cswa_params;
using sluice::idx;
using sluice::in;
using sluice::input_error;
using sluice::no_chunks;
using sluice::tensor;
using sluice::tensor_view;
using sluice::token_repeat_config;
using sluice::token_repeat_params;
using sluice::window_unit;

namespace {

using config = token_repeat_config<cswa_config>;

// The attention behind repetition: the last copy of every token.
struct cswa_traits {
    template <class W>
    using params = token_repeat_params<cswa_params<W>>;
    template <class T, class W, class Arch>
    using layer = sluice::token_repeat<sluice::cswa<T, W, Arch>>;

    static constexpr idx chain = 4096; // interleaved positions are large angles
    static config repeated(const cswa_config& c) { return {c.repeat, c}; }
    static std::vector<variant<config>> variants() {
        const sluice::attention_config small{.d_model = 6, .n_heads = 2, .n_kv_heads = 1, .head_dim = 4};
        return {
            {"windows within chunks", repeated({.attention = small, .repeat = 3, .window = 3, .chunk = 4})},
            {"own position only", repeated({.attention = small, .repeat = 2})},
            {"windows of hidden tokens", repeated({.attention = {.d_model = 5,
                                                                 .n_heads = 1,
                                                                 .n_kv_heads = 1,
                                                                 .head_dim = 6,
                                                                 .window = 5,
                                                                 .norm = sluice::qk_norm::per_head},
                                                   .repeat = 4,
                                                   .window = 7,
                                                   .unit = window_unit::hidden_tokens,
                                                   .positions = copy_positions::interleaved})},
            {"awkward widths",
             repeated({.attention = {.d_model = 67,
                                     .n_heads = 6,
                                     .n_kv_heads = 2,
                                     .head_dim = 18,
                                     .norm = sluice::qk_norm::per_head},
                       .repeat = 3,
                       .window = 16,
                       .chunk = 32}),
             true},
            {"many copies",
             repeated({.attention = {.d_model = 8, .n_heads = 1, .n_kv_heads = 1, .head_dim = 8},
                       .repeat = 24,
                       .window = 5,
                       .chunk = 7}),
             true},
        };
    }
    static void reference(const config& c, const params<double>& p, const batch& b, in<double> x,
                          tensor_view<double> y) {
        const auto& body = c.body;
        sluice::reference::phd<double>(1, c.repeat, x, y, [&](idx, in<double> from, tensor_view<double> to) {
            sluice::reference::cswa<double>(b, reference_of(body.attention), reference_of(body),
                                            reference_of(p.body), from, to);
        });
    }
    // A window one too long, or where that shows nothing a copy too few.
    static void wrong_reference(config c, const params<double>& p, const batch& b, in<double> x,
                                tensor_view<double> y) {
        c.body.window += 1;
        c.body.chunk = no_chunks;
        reference(c, p, b, x, y);
    }
};

} // namespace

SLUICE_TEST_LAYER("", cswa_traits, float_native, float_scalar, double_native)

namespace {

// cswa with weights, over all copies.
struct bare_cswa {
    explicit bare_cswa(const cswa_config& c, double spread = 1)
        : config(c), weights(c), layer(c, weights.view) {
        std::uint64_t key = 0;
        each_param([&](const sluice::param_name&, sluice::role,
                       auto& t) { fill_uniform(t, ++key, -spread, spread); },
                   weights.view);
    }
    padded<double> forward(idx n_tokens, in<double> x, bool alike = false) const {
        batch b = batch::one(n_tokens);
        b.copies = config.repeat;
        b.alike = alike;
        arena workspace(layer.bytes({.max_rows = n_tokens}).workspace);
        padded<double> y(x.rows(), x.cols());
        layer.forward(b, x, y, nullptr, workspace);
        return y;
    }
    cswa_config config;
    sluice::owned_params<cswa_params<double>> weights;
    sluice::cswa<double> layer;
};

sluice::attention_config small(idx heads = 2, idx kv_heads = 1, idx head_dim = 4) {
    return {.d_model = 6, .n_heads = heads, .n_kv_heads = kv_heads, .head_dim = head_dim};
}

} // namespace

TEST_CASE("all copies agree with the dense mask") {
    for (idx repeat : {1, 2, 3, 6})
        for (idx window : {0, 2, 5})
            for (idx chunk : {idx{4}, idx{7}, no_chunks}) {
                const bare_cswa s(
                    {.attention = small(6, 2, 10), .repeat = repeat, .window = window, .chunk = chunk});
                const idx n = 23;
                const auto x = uniform_matrix<double>(n * repeat, 6, 3);
                auto y = s.forward(n, x.view());
                padded<double> want(n * repeat, 6);
                sluice::reference::cswa<double>(batch::one(n), reference_of(s.config.attention),
                                                reference_of(s.config), reference_of(s.weights.view),
                                                x.view(), want.view());
                double difference = 0;
                for (idx i = 0; i < y.view().rows(); ++i)
                    for (idx j = 0; j < 6; ++j)
                        difference = std::max(difference, std::abs(y(i, j) - want(i, j)));
                INFO("K " << repeat << ", W " << window << ", C " << chunk);
                CHECK(difference < 1e-12);
            }
}

TEST_CASE("another row moves exactly the rows that see it") {
    const cswa_config c{.attention = small(), .repeat = 3, .window = 2, .chunk = 4};
    const bare_cswa s(c);
    const idx n = 10, rows = n * 3;
    auto x = uniform_matrix<double>(rows, 6, 5);
    const auto before = s.forward(n, x.view());
    for (idx poked = 0; poked < rows; ++poked) {
        const auto kept = x;
        for (idx j = 0; j < 6; ++j) x(poked, j) += 100;
        const auto after = s.forward(n, x.view());
        x = kept;
        for (idx i = 0; i < rows; ++i) {
            const bool moved =
                different_bits(before.view().row_block(i, 1), after.view().row_block(i, 1)) != "";
            const bool sees =
                sluice::reference::visible(reference_of(c), poked / 3, poked % 3 + 1, i / 3, i % 3 + 1);
            CHECK(moved == (sees || i == poked));
        }
    }
}

// Wu et al.: copies start alike, and differ by how often a key is counted.
TEST_CASE("in the first layer copies weigh keys by their number") {
    for (idx window : {0, 3}) {
        const idx n = 11, repeat = 4, chunk = 5, d = 4;
        const bare_cswa s({.attention = small(1, 1, d), .repeat = repeat, .window = window, .chunk = chunk});
        const auto x = uniform_matrix<double>(n, 6, 6);
        padded<double> copies(n * repeat, 6);
        sluice::reference::repeat<double>(repeat, x.view(), copies.view());
        auto y = s.forward(n, copies.view());
        const auto& w = s.weights.view;
        const auto shape = reference_of(s.config.attention);
        tensor<double> q(n, d), k(n, d), v(n, d), heads(1, d), out(1, 6);
        sluice::reference::project_heads<double>(batch::one(n), shape, w.w_q, {}, x.view(), q);
        sluice::reference::project_heads<double>(batch::one(n), shape, w.w_k, {}, x.view(), k);
        sluice::reference::linear<double>({w.w_v, {}}, x.view(), v);
        for (idx i = 0; i < n; ++i)
            for (idx copy = 1; copy <= repeat; ++copy) {
                double total = 0;
                fill(heads.view(), 0.0);
                for (idx j = 0; j <= i; ++j) {
                    const bool near = copy > 1 && i - j <= window && i / chunk == j / chunk;
                    double score = j == i ? std::log(copy) : near ? std::log(repeat) : 0;
                    for (idx e = 0; e < d; ++e) score += q(i, e) * k(j, e) / 2;
                    total += std::exp(score);
                    for (idx e = 0; e < d; ++e) heads(0, e) += std::exp(score) * v(j, e);
                }
                for (idx e = 0; e < d; ++e) heads(0, e) /= total;
                sluice::reference::linear<double>({w.w_o, {}}, heads, out);
                for (idx j = 0; j < 6; ++j) CHECK(std::abs(y(i * repeat + copy - 1, j) - out(0, j)) < 1e-13);
            }
    }
}

TEST_CASE("what copies that are alike share has the bits of what is computed for each") {
    const idx n = 150; // several tiles of keys, several blocks of rows
    const auto x = uniform_matrix<double>(n, 6, 9);
    for (const auto positions : {copy_positions::shared, copy_positions::interleaved})
        for (const idx repeat : {1, 2, 16})
            for (const idx heads : {1, 3}) {
                INFO("K " << repeat << ", heads " << heads);
                const bare_cswa s({.attention = small(heads, 1, 6),
                                   .repeat = repeat,
                                   .window = 3,
                                   .chunk = 8,
                                   .positions = positions});
                padded<double> copies(n * repeat, 6);
                sluice::reference::repeat<double>(repeat, x.view(), copies.view());
                const auto each = s.forward(n, copies.view()), shared = s.forward(n, copies.view(), true);
                CHECK(different_bits(shared.view(), each.view()) == "");
            }
}

TEST_CASE("without windows a copy does not depend on how many follow") {
    const idx n = 9;
    const auto x = uniform_matrix<double>(n, 6, 7);
    auto outputs = [&](idx repeat, idx window) {
        const bare_cswa s({.attention = small(), .repeat = repeat, .window = window});
        padded<double> copies(n * repeat, 6);
        sluice::reference::repeat<double>(repeat, x.view(), copies.view());
        return s.forward(n, copies.view());
    };
    auto few = outputs(3, 0), more = outputs(5, 0), windowed = outputs(5, 2), fewer = outputs(3, 2);
    bool same = true;
    for (idx i = 0; i < n; ++i) {
        for (idx copy = 0; copy < 3; ++copy)
            for (idx j = 0; j < 6; ++j)
                same = same && std::abs(few(i * 3 + copy, j) - more(i * 5 + copy, j)) < 1e-14;
        if (i > 0) CHECK(std::abs(windowed(i * 5 + 1, 0) - fewer(i * 3 + 1, 0)) > 1e-9);
    }
    CHECK(same);
}

TEST_CASE("large scores in both sources stay finite") {
    for (const double size : {20.0, 80.0, 400.0}) {
        const bare_cswa s({.attention = small(), .repeat = 3, .window = 4}, std::sqrt(size));
        const auto x = uniform_matrix<double>(30, 6, 8);
        auto y = s.forward(10, x.view());
        padded<double> want(30, 6);
        sluice::reference::cswa<double>(batch::one(10), reference_of(s.config.attention),
                                        reference_of(s.config), reference_of(s.weights.view), x.view(),
                                        want.view());
        for (idx i = 0; i < 30; ++i)
            for (idx j = 0; j < 6; ++j) CHECK(std::abs(y(i, j) - want(i, j)) < 1e-11 * size);
    }
}

TEST_CASE("what does not fit is named") {
    const cswa_config good{.attention = small(), .repeat = 3, .window = 2, .chunk = 4};
    const sluice::owned_params<cswa_params<double>> weights(good);
    auto complaint = [&](auto change) {
        cswa_config c = good;
        change(c);
        return message_of<config_error>([&] { sluice::cswa<double>(c, weights.view); });
    };
    CHECK(complaint([](cswa_config& c) { c.repeat = 0; }) == "cswa: repeat must be 1 to 1048576, is 0");
    CHECK(complaint([](cswa_config& c) { c.window = -1; }) ==
          "cswa: window must be 0 to 1099511627776, is -1");
    CHECK(complaint([](cswa_config& c) { c.chunk = 0; }) == "cswa: chunk must be 1 to 1099511627776, is 0");
    CHECK(complaint([](cswa_config& c) { c.attention.n_heads = 3; }) ==
          "attention: w_q must be 12 x 6, is 8 x 6");

    const sluice::cswa<double> layer(good, weights.view);
    arena workspace(std::size_t{1} << 20), memory(std::size_t{1} << 20);
    batch b = batch::one(2);
    padded<double> x(6, 6), y(6, 6);
    CHECK(message_of<input_error>([&] { layer.forward(b, x.view(), y, nullptr, workspace); }) ==
          "cswa: batch: copies is 1, repeat is 3");
    b.copies = 3;
    CHECK(message_of<config_error>([&] {
              layer.forward(b, x.view().row_block(0, 5), y, nullptr, workspace);
          }) == "cswa: x must be 6 x 6, is 5 x 6");
    const idx some[] = {0, 4};
    b.row_offsets = some;
    CHECK(message_of<input_error>([&] {
              layer.forward(b, x.view().row_block(0, 4), y.view().row_block(0, 4), nullptr, workspace);
          }) == "cswa: batch: only a call with a state may leave out hidden copies");
    const idx odd[] = {0, 5};
    b.row_offsets = odd;
    CHECK(message_of<input_error>([&] {
              layer.forward(b, x.view().row_block(0, 5), y.view().row_block(0, 5), nullptr, workspace);
          }) == "cswa: batch: row_offsets give sequence 0 5 rows for 2 tokens of 3 copies");

    cswa_config other = good;
    other.window = 1;
    b.row_offsets = {};
    auto state =
        sluice::cswa<double>(other, weights.view).bind_state(memory, {.max_tokens = 3, .max_rows = 2});
    CHECK(message_of<config_error>([&] { layer.extend(b, x.view(), y, state, workspace); }) ==
          "cswa state: it was bound for window 1, the layer has 2");
    auto mine = layer.bind_state(memory, {.max_tokens = 3, .max_rows = 2});
    layer.extend(b, x.view(), y, mine, workspace);
    CHECK(message_of<sluice::capacity_error>([&] { layer.extend(b, x.view(), y, mine, workspace); }) ==
          "attention state: sequence 0: needs 4 tokens (max_tokens), has 3");
    CHECK(mine.tokens(0) == 2);
}
