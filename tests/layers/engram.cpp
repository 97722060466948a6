#include "support/golden.hpp"
#include "support/layer_suite.hpp"

#include <sluice/layers/compose.hpp>
#include <sluice/layers/engram.hpp>
#include <sluice/reference/engram.hpp>

using namespace sluice::test;
using sluice::arena;
using sluice::batch;
using sluice::config_error;
using sluice::engram_config;
using sluice::gate_form;
using sluice::idx;
using sluice::in;
using sluice::ngram_hash;
using sluice::tensor_view;

namespace {

namespace ref = sluice::reference;

ngram_hash hash_of(const sluice::ngram_hash_config& c, idx layer = 0) {
    ngram_hash h;
    make_ngram_hashes(c, {&layer, 1}, {&h, 1});
    return h;
}

// Of the sample's five ids the last is a boundary, and two are one.
constexpr std::int32_t some_map[] = {2, 0, 1, 0, -1};

struct engram_traits {
    template <class W>
    using params = sluice::engram_params<W>;
    template <class T, class W, class Arch>
    using layer = sluice::engram<T, W, tensor_view<W>, Arch>;

    static constexpr idx chain = 1024;
    static std::vector<variant<engram_config>> variants() {
        const tensor_view<const std::int32_t> map(some_map, 1, 5);
        return {
            {"two branches, two heads, convolution",
             {.d_model = 5,
              .branches = 2,
              .d_memory = 8,
              .hash = hash_of({.vocabulary = 5, .n_hashes = 2, .least_rows = {5, 9}}),
              .token_map = {}}},
            {"one branch, plain gate, 2-grams, a map, no convolution, a bias",
             {.d_model = 7,
              .d_memory = 9,
              .hash = hash_of({.vocabulary = 3, .n_gram = 2, .n_hashes = 3, .least_rows = {3}, .pad = 1}),
              .token_map = map,
              .gate = gate_form::plain,
              .eps = 1e-3,
              .convolution = {.n_taps = 0},
              .bias = true}},
            {"4-grams, a map, five near taps",
             {.d_model = 6,
              .branches = 3,
              .d_memory = 6,
              .hash = hash_of({.vocabulary = 3, .n_gram = 4, .n_hashes = 1, .least_rows = {7}}),
              .token_map = map,
              .gate = gate_form::plain, // a root bends too much for finite differences where scores are small
              .convolution = {.n_taps = 5, .dilation = 1, .eps = 1e-4}}},
            {"awkward widths",
             {.d_model = 67,
              .branches = 2,
              .d_memory = 66,
              .hash = hash_of({.vocabulary = 5, .n_hashes = 3, .least_rows = {40}}),
              .token_map = {}},
             true},
        };
    }
    static void run(const engram_config& c, const params<double>& p, const batch& b, in<double> x,
                    tensor_view<double> y, ref::engram_hash hash) {
        std::vector<std::int32_t> ids;
        for (const auto id : b.ids) ids.push_back(c.token_map.empty() ? id : c.token_map(0, id));
        ref::engram<double>(hash,
                            {.branches = c.branches,
                             .d_model = c.d_model,
                             .signed_root = c.gate == gate_form::signed_root,
                             .eps = c.eps,
                             .conv_eps = c.convolution.eps,
                             .dilation = c.dilation()},
                            {p.table, {p.w_kv, p.b_kv}, p.key_scale, p.query_scale, p.value_scale, p.taps}, b,
                            ids, x, y);
    }
    static ref::engram_hash reference_of(const ngram_hash& h) {
        ref::engram_hash out{.multipliers = {},
                             .primes = {},
                             .n_hashes = h.n_hashes,
                             .pad = static_cast<std::uint64_t>(h.pad)};
        for (idx k = 0; k < h.n_gram; ++k)
            out.multipliers.push_back(h.multipliers[static_cast<std::size_t>(k)]);
        for (idx j = 0; j < h.heads(); ++j)
            out.primes.push_back(static_cast<std::uint64_t>(h.moduli[static_cast<std::size_t>(j)]));
        return out;
    }
    static void reference(const engram_config& c, const params<double>& p, const batch& b, in<double> x,
                          tensor_view<double> y) {
        run(c, p, b, x, y, reference_of(c.hash));
    }
    // The multiplier of the token before the last is that of the last.
    static void wrong_reference(const engram_config& c, const params<double>& p, const batch& b, in<double> x,
                                tensor_view<double> y) {
        auto hash = reference_of(c.hash);
        hash.multipliers[1] = hash.multipliers[0];
        run(c, p, b, x, y, hash);
    }
};

} // namespace

SLUICE_TEST_LAYER("", engram_traits, float_native, float_scalar, double_native)

#if SLUICE_TEST_HAS_JSON
namespace {

// tensor[i] = (((i a + b) mod 97) - 48) / s + start, row by row, as the golden values were made.
void fill_golden(const tensor_view<double>& t, idx a, idx b, double s, double start = 0) {
    for (idx i = 0; i < t.size(); ++i)
        t(i / t.cols(), i % t.cols()) = start + static_cast<double>((i * a + b) % 97 - 48) / s;
}

double difference(const json& want, const tensor_view<const double>& got) {
    double most = 0;
    REQUIRE(static_cast<idx>(want.size()) == got.size());
    for (idx i = 0; i < got.size(); ++i)
        most = std::max(most, std::abs(want[static_cast<std::size_t>(i)].get<double>() -
                                       got(i / got.cols(), i % got.cols())));
    return most;
}

} // namespace

TEST_CASE("golden values of the whole layer, forward and backward") {
    const json all = golden("engram.json"), &want = all["toy_forward"];
    const idx n = 12, branches = 2, d = 4, taps = 4;
    const auto ids = all["toy"]["compressed_ids"].get<std::vector<sluice::token_id>>();
    const auto rows = batch::one(ids);
    for (const gate_form form : {gate_form::signed_root, gate_form::plain}) {
        const json& right = want[form == gate_form::plain ? "plain" : "signed_sqrt"];
        const engram_config c{
            .d_model = d,
            .branches = branches,
            .d_memory = 8,
            .hash = hash_of({.vocabulary = 1000, .n_hashes = 2, .least_rows = {50, 70}, .pad = 2}),
            .token_map = {},
            .gate = form};
        sluice::owned_params<sluice::engram_params<double>> p(c);
        REQUIRE(p.view.table.rows() == 256);
        fill_golden(p.view.table, 31, 5, 40);
        fill_golden(p.view.w_kv.row_block(0, branches * d), 13, 29, 50);
        fill_golden(p.view.w_kv.row_block(branches * d, d), 17, 3, 60);
        fill_golden(p.view.query_scale, 7, 1, 200, 1);
        fill_golden(p.view.key_scale, 5, 2, 200, 1);
        fill_golden(p.view.value_scale, 3, 4, 200, 1);
        sluice::tensor<double> torch_taps(branches * d, taps); // the token itself last
        fill_golden(torch_taps.view(), 11, 7, 80);
        for (idx j = 0; j < taps; ++j)
            for (idx k = 0; k < branches * d; ++k) p.view.taps(j, k) = torch_taps(k, taps - 1 - j);
        padded<double> h(n, branches * d), dy(n, branches * d), y(n, branches * d), dh(n, branches * d);
        fill_golden(h.view(), 19, 23, 30);
        fill_golden(dy.view(), 23, 11, 50);

        const sluice::engram<double> layer(c, p.view);
        const auto need = layer.bytes({.max_rows = n});
        arena workspace(need.workspace), tape(need.tape);
        layer.forward(rows, h, y, &tape, workspace);
        CHECK(difference(right["Y"], y.view()) < 1e-13);

        sluice::owned_params<decltype(layer)::grad_type> sparse(c);
        layer.backward(rows, h, dy, dh, tape, sparse.view, workspace);
        const json& grad = right["grad"];
        CHECK(difference(grad["h"], dh.view()) < 1e-13);
        CHECK(difference(grad["WK"], sparse.view.w_kv.row_block(0, branches * d)) < 1e-12);
        CHECK(difference(grad["WV"], sparse.view.w_kv.row_block(branches * d, d)) < 1e-12);
        CHECK(difference(grad["wq"], sparse.view.query_scale) < 1e-13);
        CHECK(difference(grad["wk"], sparse.view.key_scale) < 1e-13);
        CHECK(difference(grad["wc"], sparse.view.value_scale) < 1e-13);
        for (idx j = 0; j < taps; ++j)
            for (idx k = 0; k < branches * d; ++k) torch_taps(k, taps - 1 - j) = sparse.view.taps(j, k);
        CHECK(difference(grad["conv"], torch_taps.view()) < 1e-13);
        // 48 lookups, 29 rows: what several tokens look up adds up, and no other row is there
        const auto& table = sparse.view.table;
        CHECK(table.rows() == right["distinct_rows_touched"].get<idx>());
        for (idx slot = 0; slot < table.rows(); ++slot) {
            const auto row = std::to_string(table.touched()[static_cast<std::size_t>(slot)]);
            REQUIRE(grad["table_nonzero_rows"].contains(row));
            CHECK(difference(grad["table_nonzero_rows"][row], {table.row(slot), 1, 2}) < 1e-13);
        }
    }
}
#endif

namespace {

const engram_config& small_config() {
    static const engram_config c{.d_model = 5,
                                 .branches = 2,
                                 .d_memory = 8,
                                 .hash = hash_of({.vocabulary = 50, .n_hashes = 2, .least_rows = {30}}),
                                 .token_map = {}};
    return c;
}

template <class P>
void fill_all(P& params) {
    std::uint64_t key = 0;
    each_param([&](const sluice::param_name&, sluice::role, auto& t) { fill_uniform(t, ++key); }, params);
}

} // namespace

TEST_CASE("a gradient of touched rows is the dense one, bit for bit, and adds up over calls") {
    const engram_config& c = small_config();
    sluice::owned_params<sluice::engram_params<float>> p(c), dense(c);
    fill_all(p.view);
    const sluice::engram<float> layer(c, p.view);
    sluice::owned_params<decltype(layer)::grad_type> sparse(c);
    const idx n = 20;
    const auto need = layer.bytes({.max_rows = n});
    arena workspace(need.workspace), tape(need.tape);
    padded<float> y(n, 10), dx(n, 10), other(n, 10);
    for (std::int32_t call = 0; call < 3; ++call) {
        std::vector<sluice::token_id> ids;
        for (std::int32_t i = 0; i < n; ++i) ids.push_back((i * i + call) % 7);
        const auto x = uniform_matrix<float>(n, 10, 3), dy = uniform_matrix<float>(n, 10, 4);
        for (const bool dense_one : {true, false}) {
            layer.forward(batch::one(ids), x.view(), y, &tape, workspace);
            if (dense_one)
                layer.backward(batch::one(ids), x.view(), dy.view(), dx, tape, dense.view, workspace);
            else
                layer.backward(batch::one(ids), x.view(), dy.view(), other, tape, sparse.view, workspace);
        }
        CHECK(different_bits(other.view(), dx.view()) == "");
    }
    const auto& g = sparse.view.table;
    CHECK(g.rows() < dense.view.table.rows());
    padded<float> scattered(dense.view.table.rows(), dense.view.table.cols());
    for (idx slot = 0; slot < g.rows(); ++slot)
        std::copy_n(g.row(slot), g.cols(), scattered.view().row(g.touched()[static_cast<std::size_t>(slot)]));
    CHECK(different_bits(scattered.view(), tensor_view<const float>(dense.view.table)) == "");
    CHECK(different_bits(tensor_view<const float>(sparse.view.w_kv),
                         tensor_view<const float>(dense.view.w_kv)) == "");
    zero(sparse.view);
    CHECK(g.rows() == 0);
}

TEST_CASE("a gradient with room for too few rows is refused before anything is added") {
    engram_config c = small_config();
    c.max_touched = 9;
    sluice::owned_params<sluice::engram_params<float>> p(c);
    fill_all(p.view);
    const sluice::engram<float> layer(c, p.view);
    sluice::owned_params<decltype(layer)::grad_type> grad(c);
    CHECK(grad.view.table.capacity() == 9);
    const std::vector<sluice::token_id> ids{1, 2, 3};
    const auto need = layer.bytes({.max_rows = 3});
    arena workspace(need.workspace), tape(need.tape);
    const auto x = uniform_matrix<float>(3, 10, 3);
    padded<float> y(3, 10), dx(3, 10);
    layer.forward(batch::one(ids), x.view(), y, &tape, workspace);
    CHECK_THROWS_AS(layer.backward(batch::one(ids), x.view(), x.view(), dx, tape, grad.view, workspace),
                    sluice::capacity_error); // 12 rows
    CHECK(grad.view.table.rows() == 0);
    for (idx i = 0; i < grad.view.w_kv.size(); ++i) CHECK(grad.view.w_kv.data()[i] == 0);
}

TEST_CASE("planned and prefetched ahead, the same bits, forward and streaming") {
    const engram_config& c = small_config();
    sluice::owned_params<sluice::engram_params<float>> p(c);
    fill_all(p.view);
    const sluice::engram<float> layer(c, p.view);
    const idx n = 30;
    std::vector<sluice::token_id> ids;
    for (std::int32_t i = 0; i < n; ++i) ids.push_back(i * 31 % 50);
    const std::vector<idx> offsets{0, 11, 30};
    const batch rows{.n_tokens = n, .offsets = offsets, .ids = ids};
    const auto x = uniform_matrix<float>(n, 10, 3);
    const auto need = layer.bytes({.max_tokens = n, .max_rows = n, .n_sequences = 2});
    arena workspace(need.workspace), memory(need.state);
    padded<float> want(n, 10), y(n, 10);
    layer.forward(rows, x.view(), want, nullptr, workspace);
    std::vector<std::int32_t> plan_memory(static_cast<std::size_t>(n * c.hash.heads()));
    const tensor_view<std::int32_t> plan(plan_memory.data(), n, c.hash.heads());
    layer.hash(rows, nullptr, plan, workspace);
    layer.prefetch(plan);
    layer.forward_planned(rows, plan, x.view(), y, nullptr, workspace);
    CHECK(different_bits(y.view(), want.view()) == "");

    auto state = layer.bind_state(memory, {.max_tokens = n, .max_rows = n, .n_sequences = 2});
    fill(y.view(), 0.0F);
    for (idx i = 0; i < 19; ++i) {
        const std::vector<idx> ends{0, i < 11 ? 1 : 0, i < 11 ? 2 : 1};
        const std::vector<sluice::token_id> next =
            i < 11 ? std::vector{ids[static_cast<std::size_t>(i)], ids[static_cast<std::size_t>(11 + i)]}
                   : std::vector{ids[static_cast<std::size_t>(11 + i)]};
        const idx m = ends.back();
        const batch step{.n_tokens = m, .offsets = ends, .ids = next};
        padded<float> xs(m, 10), ys(m, 10);
        if (m == 2) std::copy_n(x.view().row(i), 10, xs.view().row(0));
        std::copy_n(x.view().row(11 + i), 10, xs.view().row(m - 1));
        const auto part = plan.row_block(0, m);
        layer.hash(step, &state, part, workspace);
        layer.prefetch(part);
        layer.extend_planned(step, part, xs.view(), ys, state, workspace);
        if (m == 2) std::copy_n(ys.view().row(0), 10, y.view().row(i));
        std::copy_n(ys.view().row(m - 1), 10, y.view().row(11 + i));
    }
    CHECK(different_bits(y.view(), want.view()) == "");
    CHECK(message_of<config_error>([&] {
              layer.forward_planned(rows, plan.row_block(0, 3), x.view(), y, nullptr, workspace);
          }) == "engram: plan must be 30 x 4, is 3 x 4");
}

// Perturbed at t, the stream reaches tokens t, t + 3, t + 6, t + 9 through the taps, and no others.
TEST_CASE("the convolution reaches as far as its taps and dilation") {
    const engram_config& c = small_config();
    sluice::owned_params<sluice::engram_params<double>> p(c);
    fill_all(p.view);
    const sluice::engram<double> layer(c, p.view);
    const idx n = 16, t = 2;
    const std::vector<sluice::token_id> ids(16, 3);
    auto x = uniform_matrix<double>(n, 10, 3);
    arena workspace(layer.bytes({.max_rows = n}).workspace);
    padded<double> before(n, 10), after(n, 10);
    layer.forward(batch::one(ids), x.view(), before, nullptr, workspace);
    x(t, 4) += 0.5;
    layer.forward(batch::one(ids), x.view(), after, nullptr, workspace);
    for (idx i = 0; i < n; ++i) {
        const bool reached = i >= t && (i - t) % 3 == 0 && (i - t) / 3 < 4;
        CHECK((different_bits(after.view().row_block(i, 1), before.view().row_block(i, 1)) != "") == reached);
    }
}

TEST_CASE("initial weights give the gated value alone, whatever the taps would see") {
    const engram_config& c = small_config();
    engram_config without = c;
    without.convolution.n_taps = 0;
    sluice::owned_params<sluice::engram_params<float>> p(c), q(without);
    initialise(p.view, c, sluice::random_source(1));
    initialise(q.view, without, sluice::random_source(1));
    const std::vector<sluice::token_id> ids{1, 2, 3, 4, 5};
    const auto x = uniform_matrix<float>(5, 10, 3);
    const sluice::engram<float> one(c, p.view), other(without, q.view);
    arena workspace(one.bytes({.max_rows = 5}).workspace);
    padded<float> y(5, 10), want(5, 10);
    one.forward(batch::one(ids), x.view(), y, nullptr, workspace);
    other.forward(batch::one(ids), x.view(), want, nullptr, workspace);
    CHECK(different_bits(y.view(), want.view()) == "");
    CHECK(one.flops(1) == 2.0 * (15 * 8 + 4 * 10));
}

// A score of zero: copysign, as published models are trained; the published demo has exactly one half.
TEST_CASE("a score of zero opens the gate by the sign of zero") {
    const engram_config& c = small_config();
    sluice::owned_params<sluice::engram_params<double>> p(c);
    fill_all(p.view);
    fill(p.view.taps, 0.0);
    fill(p.view.w_kv.row_block(10, 5), 0.0);
    fill(p.view.w_kv.row_block(10, 1), 1.0); // the value is the sum of the memory and zeros
    const sluice::engram<double> layer(c, p.view);
    const std::vector<sluice::token_id> ids{7};
    padded<double> x(1, 10), y(1, 10);
    arena workspace(layer.bytes({.max_rows = 1}).workspace);
    layer.forward(batch::one(ids), x.view(), y, nullptr, workspace);
    double sum = 0;
    std::vector<std::int32_t> rows(4);
    layer.hash(batch::one(ids), nullptr, {rows.data(), 1, 4}, workspace);
    for (const std::int32_t r : rows) sum += p.view.table(r, 0) + p.view.table(r, 1);
    CHECK(std::abs(y(0, 0) / sum - 1 / (1 + std::exp(-1e-3))) < 1e-12);
}

TEST_CASE("in a residual, in a chain") {
    using block = sluice::residual<sluice::engram<float>>;
    const engram_config& c = small_config();
    sluice::owned_params<block::params_type> p(c);
    fill_all(p.view);
    const block whole(c, p.view);
    const sluice::engram<float> alone(c, p.view);
    const std::vector<sluice::token_id> ids{1, 2, 3};
    const auto x = uniform_matrix<float>(3, 10, 3);
    padded<float> y(3, 10), change(3, 10);
    arena workspace(whole.bytes({.max_rows = 3}).workspace);
    whole.forward(batch::one(ids), x.view(), y, nullptr, workspace);
    alone.forward(batch::one(ids), x.view(), change, nullptr, workspace);
    for (idx j = 0; j < 10; ++j) CHECK(y(2, j) == x.view()(2, j) + change(2, j));
    static_assert(sluice::trainable_layer<sluice::chain<block, block>>);
}

TEST_CASE("what does not fit is named") {
    const sluice::engram_params<float> none{};
    auto said = [&](auto change) {
        engram_config c = small_config();
        change(c);
        return message_of<config_error>([&] { sluice::engram<float>(c, none); });
    };
    CHECK(said([](auto& c) { c.d_model = 0; }) == "engram: d_model must be positive, is 0");
    CHECK(said([](auto& c) { c.branches = -1; }) == "engram: branches must be positive, is -1");
    CHECK(said([](auto& c) { c.hash = {}; }) == "engram: hash is empty; see make_ngram_hashes");
    CHECK(said([](auto& c) { c.d_memory = 0; }) == "engram: d_memory must be positive, is 0");
    CHECK(said([](auto& c) { c.d_memory = 9; }) == "engram: d_memory is 9, which the 4 heads do not divide");
    CHECK(said([](auto& c) { c.eps = -1; }) == "engram: eps must not be negative");
    CHECK(said([](auto& c) { c.max_touched = -1; }) == "engram: max_touched must not be negative");
    CHECK(said([](auto& c) { c.convolution.n_taps = 17; }) ==
          "engram: convolution must have 0 to 16 taps and a dilation of 0 to 2^20");
    CHECK(said([](auto& c) {
              c.token_map = {some_map, 1, 5};
          }) == "engram: token_map has 3 different ids, the multipliers are those of 50");
    static constexpr std::int32_t bad_map[] = {49, -3};
    CHECK(said([](auto& c) { c.token_map = {bad_map, 1, 2}; }) == "engram: token_map has -3 for token 1");
    CHECK(said([](auto&) {}).starts_with("engram: table must be"));
}

TEST_CASE("tokens outside the map, and none at all, are refused before a state is written") {
    const engram_config& c = small_config();
    sluice::owned_params<sluice::engram_params<float>> p(c);
    fill_all(p.view);
    const sluice::engram<float> layer(c, p.view);
    const auto need = layer.bytes({.max_tokens = 4, .max_rows = 2});
    arena workspace(need.workspace), memory(need.state);
    auto state = layer.bind_state(memory, {.max_tokens = 4, .max_rows = 2});
    padded<float> x(2, 10), y(2, 10);
    for (const sluice::token_id bad : {50, -1, std::numeric_limits<sluice::token_id>::min()}) {
        const std::vector<sluice::token_id> ids{3, bad};
        CHECK(message_of<sluice::input_error>(
                  [&] { layer.extend(batch::one(ids), x.view(), y, state, workspace); }) ==
              "engram: token id " + std::to_string(bad) + " at token 1 is outside the vocabulary of 50");
    }
    CHECK(message_of<sluice::input_error>([&] {
              layer.extend(batch::one(2), x.view(), y, state, workspace);
          }) == "engram: the batch has no ids");
    CHECK(state.past(batch::one(2), 0) == 0);
}

TEST_CASE("gates are what the value is multiplied by") {
    engram_config c = small_config();
    c.convolution.n_taps = 0;
    sluice::owned_params<sluice::engram_params<double>> p(c);
    fill_all(p.view);
    const sluice::engram<double> layer(c, p.view);
    const idx n = 6;
    const std::vector<sluice::token_id> ids{1, 2, 3, 1, 2, 49};
    const auto x = uniform_matrix<double>(n, 10, 3);
    arena workspace(layer.bytes({.max_rows = n}).workspace);
    padded<double> y(n, 10), open(n, 2);
    layer.forward(batch::one(ids), x.view(), y, nullptr, workspace);
    layer.gates(batch::one(ids), x.view(), open, workspace);
    CHECK(workspace.used() == 0);
    for (idx i = 0; i < n; ++i) {
        CHECK((open(i, 0) > 0 && open(i, 0) < 1 && open(i, 0) != open(i, 1)));
        for (idx j = 0; j < 5; ++j)
            CHECK(std::abs(y(i, j) * open(i, 1) - y(i, 5 + j) * open(i, 0)) < 1e-12); // one value for both
    }
}

TEST_CASE("copies of a token get what its original does, in a batch, in streams and backward") {
    const engram_config& c = small_config();
    sluice::owned_params<sluice::engram_params<double>> p(c);
    fill_all(p.view);
    const sluice::engram<double> layer(c, p.view);
    const idx n = 9;
    std::vector<sluice::token_id> ids;
    for (std::int32_t i = 0; i < n; ++i) ids.push_back(i * 7 % 50);
    // the first four tokens of the second sequence have no hidden copies
    const std::vector<idx> offsets{0, 3, 9}, row_offsets{0, 9, 19};
    const batch alone{.n_tokens = n, .offsets = offsets, .ids = ids};
    batch three = alone;
    three.copies = 3;
    three.row_offsets = row_offsets;
    const auto x = uniform_matrix<double>(three.rows(), 10, 3),
               dy = uniform_matrix<double>(three.rows(), 10, 4);
    const sluice::limits most{.max_tokens = n, .max_rows = n, .n_sequences = 2, .copies = 3};
    const auto need = layer.bytes(most);
    arena workspace(need.workspace), tape(need.tape), other_tape(need.tape), memory(need.state),
        keep(1 << 16);
    const auto originals = sluice::originals_of<double>(three, x.view(), keep, {});
    padded<double> want(n, 10), y(three.rows(), 10), expected(three.rows(), 10);
    layer.forward(alone, originals, want, &tape, workspace);
    layer.forward(three, x.view(), y, &other_tape, workspace);
    sluice::rows_from_tokens<double>(three, want.view(), expected, true, {});
    CHECK(different_bits(y.view(), expected.view()) == "");

    sluice::owned_params<decltype(layer)::grad_type> grad(c), other_grad(c);
    padded<double> dx(n, 10), other_dx(three.rows(), 10);
    layer.backward(alone, originals, sluice::sums_of_copies<double>(three, dy.view(), keep, {}), dx, tape,
                   grad.view, workspace);
    layer.backward(three, x.view(), dy.view(), other_dx, other_tape, other_grad.view, workspace);
    sluice::rows_from_tokens<double>(three, dx.view(), expected, false, {});
    CHECK(different_bits(other_dx.view(), expected.view()) == "");
    CHECK(different_bits(tensor_view<const double>(grad.view.w_kv),
                         tensor_view<const double>(other_grad.view.w_kv)) == "");
    CHECK(other_tape.used() == 0);

    auto state = layer.bind_state(memory, most);
    for (idx i = 0; i < 3; ++i) {
        batch step =
            batch::one(std::span<const sluice::token_id>(ids).subspan(static_cast<std::size_t>(i), 1));
        step.copies = 3;
        padded<double> part(3, 10);
        layer.decode(step, x.view().row_block(3 * i, 3), part, state, workspace);
        CHECK(different_bits(part.view(), y.view().row_block(3 * i, 3)) == "");
    }
    padded<double> open(n, 2), same(n, 2);
    layer.gates(alone, originals, open, workspace);
    layer.gates(three, x.view(), same, workspace);
    CHECK(different_bits(open.view(), same.view()) == "");
}

TEST_CASE("memory adds nothing to a masked token, nor does it reach beyond it; in streams and backward") {
    static constexpr std::int32_t map[] = {0, 1, 2, 3, 4, 5, 6, -1, -2};
    engram_config c = small_config();
    c.hash = hash_of({.vocabulary = 7, .n_hashes = 2, .least_rows = {30}});
    c.token_map = {map, 1, 9};
    c.gate = gate_form::plain;
    c.convolution.dilation = 1;
    sluice::owned_params<sluice::engram_params<double>> p(c);
    fill_all(p.view);
    const sluice::engram<double> layer(c, p.view);
    const std::vector<sluice::token_id> ids{1, 2, 8, 3, 4, 7, 5, 8, 8, 6};
    const auto n = static_cast<idx>(ids.size());
    auto x = uniform_matrix<double>(n, 10, 3);
    const auto dy = uniform_matrix<double>(n, 10, 4);
    const auto need = layer.bytes({.max_tokens = n, .max_rows = n});
    arena workspace(need.workspace), tape(need.tape), memory(need.state);
    padded<double> y(n, 10), want(n, 10), dx(n, 10), part(1, 10);
    engram_traits::reference(c,
                             {p.view.table, p.view.w_kv, p.view.b_kv, p.view.key_scale, p.view.query_scale,
                              p.view.value_scale, p.view.taps},
                             batch::one(ids), x.view(), want);
    layer.forward(batch::one(ids), x.view(), y, &tape, workspace);
    for (idx i = 0; i < n; ++i)
        for (idx j = 0; j < 10; ++j) {
            CHECK(std::abs(y(i, j) - want(i, j)) < 1e-12);
            CHECK((y(i, j) == 0) == (ids[static_cast<std::size_t>(i)] == 8));
        }
    auto state = layer.bind_state(memory, {.max_tokens = n});
    for (idx i = 0; i < n; ++i) {
        const auto one = std::span<const sluice::token_id>(ids).subspan(static_cast<std::size_t>(i), 1);
        layer.decode(batch::one(one), x.view().row_block(i, 1), part, state, workspace);
        CHECK(different_bits(part.view(), y.view().row_block(i, 1)) == "");
    }

    sluice::owned_params<sluice::engram_params<double>> grad(c);
    layer.backward(batch::one(ids), x.view(), dy.view(), dx, tape, grad.view, workspace);
    auto check = [&](double& parameter, double derivative) {
        auto loss = [&](double step) {
            const double before = std::exchange(parameter, parameter + step);
            layer.forward(batch::one(ids), x.view(), y, nullptr, workspace);
            parameter = before;
            double sum = 0;
            for (idx i = 0; i < n; ++i)
                for (idx j = 0; j < 10; ++j) sum += y(i, j) * dy.view()(i, j);
            return sum;
        };
        CHECK(std::abs((loss(1e-5) - loss(-1e-5)) / 2e-5 - derivative) < 1e-7);
    };
    for (idx i = 0; i < n; ++i)
        for (idx j = 0; j < 10; ++j) check(x(i, j), dx(i, j));
    each_param(
        [&](const sluice::param_name&, sluice::role, auto& t, auto& g) {
            for (idx i = 0; i < t.size(); i += 7)
                check(t(i / t.cols(), i % t.cols()), g(i / t.cols(), i % t.cols()));
        },
        p.view, grad.view);
}
