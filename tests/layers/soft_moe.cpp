#include "support/layer_suite.hpp"
#include "support/reference_of.hpp"

#include <sluice/layers/soft_moe.hpp>
#include <sluice/parallel/thread_pool.hpp>
#include <sluice/reference/soft_moe.hpp>

#if __has_include(<nlohmann/json.hpp>)
#    include <nlohmann/json.hpp>

#    include <fstream>
#endif

using namespace sluice::test;
using sluice::arena;
using sluice::batch;
using sluice::config_error;
using sluice::idx;
using sluice::in;
using sluice::soft_moe_config;
using sluice::tensor_view;

namespace {

namespace ref = sluice::reference;

struct soft_moe_traits {
    template <class W>
    using params = sluice::soft_moe_params<W>;
    template <class T, class W, class Arch>
    using layer = sluice::soft_moe<T, W, Arch>;

    static constexpr idx chain = 1024;
    static constexpr bool streams = false; // it is not causal
    static std::vector<variant<soft_moe_config>> variants() {
        using kind = sluice::feed_forward_kind;
        return {
            {"a slot for each of three experts", {.d_model = 5, .n_experts = 3, .expert = {.d_ff = 4}}},
            {"one expert, a slot", {.d_model = 3, .n_experts = 1, .expert = {.d_ff = 6, .bias = true}}},
            {"biased GELU, three slots each",
             {.d_model = 4,
              .n_experts = 2,
              .slots = 3,
              .expert = {.d_ff = 5, .kind = kind::gelu, .bias = true}}},
            {"nine experts of two slots, clamped quick GEGLU",
             {.d_model = 6,
              .n_experts = 9,
              .slots = 2,
              .expert = {.d_ff = 3, .kind = kind::quick_geglu, .glu = {0.5, 1}}}},
            {"awkward widths", {.d_model = 67, .n_experts = 5, .slots = 7, .expert = {.d_ff = 35}}, true},
        };
    }
    static void reference(const soft_moe_config& c, const params<double>& p, const batch& b, in<double> x,
                          tensor_view<double> y) {
        ref::soft_moe_weights<double> w{p.phi, p.scale(0, 0), {}};
        for (const auto& e : p.experts) w.experts.push_back(reference_of(e));
        ref::soft_moe<double>(b, reference_of(c.expert.kind), w, x, y,
                              {c.expert.glu.clamp, c.expert.glu.offset});
    }
    // A scale a hundredth larger.
    static void wrong_reference(const soft_moe_config& c, const params<double>& p, const batch& b,
                                in<double> x, tensor_view<double> y) {
        double scale = 1.01 * p.scale(0, 0);
        params<double> other = p;
        other.scale = {&scale, 1, 1};
        reference(c, other, b, x, y);
    }
};

// A layer of one type of numbers with weights that are not small, and memory for its calls.
template <class T>
struct whole {
    explicit whole(const soft_moe_config& config, idx rows, idx n_sequences = 1)
        : c(config), p(c), grad(c), layer(c, p.view) {
        std::uint64_t key = 40;
        each_param([&](const sluice::param_name&, sluice::role, auto& t) { fill_uniform(t, ++key); }, p.view);
        p.view.scale(0, 0) = T(3);
        const auto need = layer.bytes({.max_rows = rows, .n_sequences = n_sequences});
        workspace = arena(need.workspace);
        tape = arena(need.tape);
    }
    padded<T> forward(const batch& b, in<T> x) {
        padded<T> y(x.rows(), x.cols());
        layer.forward(b, x, y, nullptr, workspace);
        return y;
    }

    soft_moe_config c;
    sluice::owned_params<sluice::soft_moe_params<T>> p, grad;
    sluice::soft_moe<T> layer;
    arena workspace, tape;
};

soft_moe_config small_config() { return {.d_model = 8, .n_experts = 3, .slots = 2, .expert = {.d_ff = 7}}; }

// Experts that return their input: relu(x) - relu(-x).
template <class T>
void return_the_input(const sluice::soft_moe_params<T>& p) {
    for (const auto& e : p.experts) {
        const idx d = e.w_down.rows();
        for (idx i = 0; i < d; ++i)
            for (idx j = 0; j < d; ++j) {
                e.w_up(i, j) = e.w_down(i, j) = T(i == j);
                e.w_up(d + i, j) = e.w_down(i, d + j) = -T(i == j);
            }
    }
}

static_assert(sluice::layer<sluice::soft_moe<float>> && sluice::trainable_layer<sluice::soft_moe<float>>);
static_assert(!sluice::streaming_layer<sluice::soft_moe<float>>);
static_assert(!sluice::trainable_layer<sluice::soft_moe<float, sluice::bf16>>);

} // namespace

SLUICE_TEST_LAYER_OF_WHOLES("", soft_moe_traits, float_native, float_scalar, double_native)

#if __has_include(<nlohmann/json.hpp>)
// They are of plain products x . phi. Two more columns, of which either tokens or slots have zeros, bring all
// rows to one length, |x|^2 + 1e-6 = 9; then the normalised products times 9 are those.
TEST_CASE("golden values of the mixing weights and of the slots") {
    const auto golden =
        nlohmann::json::parse(std::ifstream(SLUICE_TEST_DIR "/data/moe.json"))["router"]["soft_moe"];
    constexpr idx n = 6, d = 10, n_slots = 4;
    // g(i) = ((i a + b) mod m) / (m / 2) - 1, as the golden values were made
    auto g = [](idx i, idx a, idx b, idx m) {
        return static_cast<double>((i * a + b) % m) / (static_cast<double>(m) / 2) - 1;
    };
    auto number = [](const nlohmann::json& rows, idx i, idx j) {
        return rows[static_cast<std::size_t>(i)][static_cast<std::size_t>(j)].get<double>();
    };
    auto lengthen = [](const tensor_view<double>& rows, idx column) {
        for (idx i = 0; i < rows.rows(); ++i) {
            double rest = 9 - 1e-6;
            for (idx j = 0; j < 8; ++j) rest -= rows(i, j) * rows(i, j);
            rows(i, 8) = rows(i, 9) = 0;
            rows(i, column) = std::sqrt(rest);
        }
    };
    padded<double> x(n, d), dispatch(n, n_slots), combine(n, n_slots);
    for (idx i = 0; i < n * 8; ++i) x(i / 8, i % 8) = g(i, 37, 11, 101);
    lengthen(x.view(), 8);
    for (const idx slots : {1, 2, 4}) { // whoever has them
        whole<double> w({.d_model = d,
                         .n_experts = n_slots / slots,
                         .slots = slots,
                         .expert = {.d_ff = 2 * d, .kind = sluice::feed_forward_kind::relu}},
                        n);
        for (idx i = 0; i < 8 * n_slots; ++i) w.p.view.phi(i % n_slots, i / n_slots) = g(i, 41, 5, 89);
        lengthen(w.p.view.phi, 9);
        w.p.view.scale(0, 0) = 9;
        w.layer.mixing_weights(batch::one(n), x, dispatch, combine, w.workspace);
        double apart = 0;
        for (idx i = 0; i < n; ++i)
            for (idx j = 0; j < n_slots; ++j) {
                apart = std::max(apart, std::abs(dispatch(i, j) - number(golden["dispatch"], i, j)));
                apart = std::max(apart, std::abs(combine(i, j) - number(golden["combine"], i, j)));
            }
        CHECK(apart < 1e-14);
        return_the_input(w.p.view);
        const auto y = w.forward(batch::one(n), x);
        apart = 0;
        for (idx i = 0; i < n; ++i)
            for (idx k = 0; k < 8; ++k) {
                double want = 0;
                for (idx j = 0; j < n_slots; ++j)
                    want += number(golden["combine"], i, j) * number(golden["slot_inputs"], j, k);
                apart = std::max(apart, std::abs(y.view()(i, k) - want));
            }
        CHECK(apart < 1e-14);
    }
}
#endif

TEST_CASE("shares sum to one: of a sequence's tokens in a slot, of all slots in a token") {
    whole<double> w(small_config(), 12, 4);
    const sample<double> rows({4, 0, 1, 7}, 8, 1);
    padded<double> dispatch(12, 6), combine(12, 6);
    w.layer.mixing_weights(rows.rows(), rows.x.view(), dispatch, combine, w.workspace);
    auto close_to_one = [](double sum) { return std::abs(sum - 1) < 1e-14; };
    double least = 1, most = 0;
    for (idx t = 0; t < 12; ++t) {
        double sum = 0;
        for (idx s = 0; s < 6; ++s) {
            sum += combine(t, s);
            least = std::min({least, dispatch(t, s), combine(t, s)});
            most = std::max(most, combine(t, s));
        }
        CHECK(close_to_one(sum));
    }
    CHECK(least > 0);
    CHECK(most > 0.3);
    for (idx s = 0; s < 6; ++s)
        for (const idx sequence : {0, 2, 3}) {
            double sum = 0;
            for (idx t = rows.rows().begin(sequence); t < rows.rows().end(sequence); ++t)
                sum += dispatch(t, s);
            CHECK(close_to_one(sum));
        }
}

// Both softmaxes are means: what all tokens share comes through experts that return their input.
TEST_CASE("what all tokens of a sequence share comes through") {
    soft_moe_config c = small_config();
    c.expert = {.d_ff = 16, .kind = sluice::feed_forward_kind::relu};
    whole<double> w(c, 9, 2);
    return_the_input(w.p.view);
    sample<double> rows({5, 4}, 8, 2);
    for (idx t = 0; t < 9; ++t) rows.x(t, 3) = t < 5 ? 0.7 : -0.2;
    const auto y = w.forward(rows.rows(), rows.x.view());
    for (idx t = 0; t < 9; ++t) {
        CHECK(y.view()(t, 3) == approx(rows.x(t, 3)));
        CHECK(std::abs(y.view()(t, 2) - rows.x(t, 2)) > 1e-3);
    }
}

TEST_CASE("permuting the tokens of a sequence permutes its outputs, and no other's") {
    whole<double> w(small_config(), 20, 3);
    const sample<double> rows({6, 9, 5}, 8, 3);
    const auto y = w.forward(rows.rows(), rows.x.view());
    auto moved = [](idx t) { return t < 6 || t >= 15 ? t : 6 + (t - 6) * 4 % 9; };
    sample<double> other = rows;
    for (idx t = 0; t < 20; ++t) copy(rows.x.view().row_block(t, 1), other.x.view().row_block(moved(t), 1));
    const auto permuted = w.forward(other.rows(), other.x.view());
    double apart = 0, changed = 0;
    for (idx t = 0; t < 20; ++t)
        for (idx j = 0; j < 8; ++j) {
            apart = std::max(apart, std::abs(permuted.view()(moved(t), j) - y.view()(t, j)));
            changed = std::max(changed, std::abs(permuted.view()(t, j) - y.view()(t, j)));
        }
    CHECK(apart < 1e-13);
    CHECK(changed > 1e-2);
    for (const idx first : {0, 15})
        CHECK(different_bits(permuted.view().row_block(first, 5), y.view().row_block(first, 5)) == "");
}

TEST_CASE("every token of a sequence is seen by all, the first one too") {
    whole<float> w(small_config(), 9);
    auto x = uniform_matrix<float>(9, 8, 4);
    const auto y = w.forward(batch::one(9), x);
    x(8, 0) += 1;
    const auto other = w.forward(batch::one(9), x);
    for (idx t = 0; t < 9; ++t)
        CHECK(different_bits(other.view().row_block(t, 1), y.view().row_block(t, 1)) != "");
}

TEST_CASE("permuting experts, with their slots, changes nothing") {
    whole<double> w(small_config(), 7), other(small_config(), 7);
    for (idx e = 0; e < 3; ++e) {
        const idx to = (e + 1) % 3;
        copy(w.p.view.phi.row_block(2 * e, 2), other.p.view.phi.row_block(2 * to, 2));
        other.p.view.experts[static_cast<std::size_t>(to)] = w.p.view.experts[static_cast<std::size_t>(e)];
    }
    const auto x = uniform_matrix<double>(7, 8, 5);
    const auto y = w.forward(batch::one(7), x), permuted = other.forward(batch::one(7), x);
    double apart = 0;
    for (idx i = 0; i < 56; ++i)
        apart = std::max(apart, std::abs(y.view()(i / 8, i % 8) - permuted.view()(i / 8, i % 8)));
    CHECK(apart < 1e-13);
}

// Slots of one token hold that token, whatever phi says.
TEST_CASE("a token alone, one expert: the feed-forward") {
    soft_moe_config c = small_config();
    c.n_experts = 1;
    whole<double> w(c, 1);
    const auto x = uniform_matrix<double>(1, 8, 6);
    const auto y = w.forward(batch::one(1), x);
    const sluice::feed_forward<double> plain(c.expert_config(), w.p.view.experts[0]);
    arena room(plain.bytes({}).workspace);
    padded<double> want(1, 8);
    plain.forward(batch::one(1), x.view(), want, nullptr, room);
    for (idx j = 0; j < 8; ++j) CHECK(y.view()(0, j) == approx(want(0, j)));
}

TEST_CASE("rows of zeros stay finite, forward and backward") {
    whole<float> w(small_config(), 5);
    padded<float> x(5, 8), y(5, 8), dx(5, 8);
    const auto dy = uniform_matrix<float>(5, 8, 7);
    w.layer.forward(batch::one(5), x, y, &w.tape, w.workspace);
    w.layer.backward(batch::one(5), x, dy, dx, w.tape, w.grad.view, w.workspace);
    for (idx i = 0; i < 40; ++i) {
        CHECK(y(i / 8, i % 8) == 0);
        CHECK(std::isfinite(dx(i / 8, i % 8)));
    }
}

TEST_CASE("dx may be dy") {
    whole<double> w(small_config(), 8, 2), same(small_config(), 8, 2);
    const sample<double> rows({5, 3}, 8, 8);
    auto dy = uniform_matrix<double>(8, 8, 9);
    padded<double> y(8, 8), dx(8, 8);
    w.layer.forward(rows.rows(), rows.x.view(), y, &w.tape, w.workspace);
    w.layer.backward(rows.rows(), rows.x.view(), dy, dx, w.tape, w.grad.view, w.workspace);
    same.layer.forward(rows.rows(), rows.x.view(), y, &same.tape, same.workspace);
    same.layer.backward(rows.rows(), rows.x.view(), dy, dy, same.tape, same.grad.view, same.workspace);
    CHECK(different_bits(dx.view(), dy.view()) == "");
    CHECK(different_bits(w.grad.view.phi, same.grad.view.phi) == "");
    CHECK(different_bits(w.grad.view.experts[2].w_up, same.grad.view.experts[2].w_up) == "");
}

TEST_CASE("experts of packed bf16 give the bits of bf16") {
    const soft_moe_config c{.d_model = 40, .n_experts = 12, .slots = 3, .expert = {.d_ff = 50}};
    using narrow = sluice::soft_moe_params<sluice::bf16>;
    using panels = sluice::soft_moe_params<sluice::packed<sluice::bf16>>;
    const sluice::owned_params<sluice::soft_moe_params<float>> wide(c);
    std::uint64_t key = 1;
    each_param([&](const sluice::param_name&, sluice::role, auto& t) { fill_uniform(t, ++key); }, wide.view);
    arena dry;
    (void)sluice::pack_params<panels>(wide.view, c, dry);
    arena memory(dry.bytes());
    const auto packed_params = sluice::pack_params<panels>(wide.view, c, memory);
    sluice::owned_params<narrow> p(c);
    each_param(
        []<class To>(const sluice::param_name&, sluice::role, const tensor_view<To>& to, const auto& from) {
            for (idx i = 0; i < to.rows(); ++i)
                for (idx j = 0; j < to.cols(); ++j)
                    if constexpr (std::is_same_v<To, float>)
                        to(i, j) = from(i, j);
                    else
                        to(i, j) = sluice::to_bf16(from(i, j));
        },
        p.view, wide.view);
    const sluice::soft_moe<float, sluice::bf16> plain(c, p.view);
    const sluice::soft_moe<float, sluice::packed<sluice::bf16>> packed(c, packed_params);
    const sample<float> rows({20, 3}, 40, 1);
    const sluice::limits most{.max_rows = 23, .n_sequences = 2};
    padded<float> y(23, 40), want(23, 40);
    poisoned_memory room(plain.bytes(most).workspace), packed_room(packed.bytes(most).workspace);
    plain.forward(rows.rows(), rows.x.view(), want, nullptr, room);
    packed.forward(rows.rows(), rows.x.view(), y, nullptr, packed_room);
    CHECK(different_bits(y.view(), want.view()) == "");
    CHECK(plain.bytes(most).tape == 0);
}

TEST_CASE("more sequences than memory was asked for are refused before output") {
    whole<float> w(small_config(), 9, 2);
    const auto x = uniform_matrix<float>(9, 8, 1);
    padded<float> y(9, 8);
    const std::vector<idx> three{0, 3, 6, 9}, two{0, 3, 9};
    CHECK_THROWS_AS(w.layer.forward({.n_tokens = 9, .offsets = three}, x, y, nullptr, w.workspace),
                    sluice::capacity_error);
    CHECK(y(0, 0) == 0);
    CHECK_NOTHROW(w.layer.forward({.n_tokens = 9, .offsets = two}, x, y, nullptr, w.workspace));
}

TEST_CASE("copies of a token are rows of its sequence") {
    whole<double> w(small_config(), 12, 2);
    const auto x = uniform_matrix<double>(12, 8, 1);
    const std::vector<idx> tokens{0, 2, 4}, rows{0, 6, 12};
    const auto y = w.forward({.n_tokens = 4, .offsets = tokens, .copies = 3}, x),
               want = w.forward({.n_tokens = 12, .offsets = rows}, x);
    CHECK(different_bits(y.view(), want.view()) == "");
}

TEST_CASE("initial weights: rows of phi near length one, scale one") {
    const soft_moe_config c{.d_model = 400, .n_experts = 3, .slots = 5, .expert = {.d_ff = 2}};
    sluice::owned_params<sluice::soft_moe_params<float>> p(c);
    initialise(p.view, c, sluice::random_source(1));
    CHECK(p.view.scale(0, 0) == 1);
    for (idx i = 0; i < 15; ++i) {
        double squares = 0;
        for (idx j = 0; j < 400; ++j) squares += std::pow(static_cast<double>(p.view.phi(i, j)), 2);
        CHECK(squares == approx(1).epsilon(0.2));
    }
    CHECK(p.view.experts[0].w_up(0, 0) != p.view.experts[1].w_up(0, 0));
    // products with phi, D and C, and three matrices of each of 15 slots
    const sluice::soft_moe<float> layer(c, p.view);
    CHECK(layer.flops(10) == 3 * 2 * 10 * 15 * 400 + 15 * 2 * 3 * 2 * 400);
    CHECK(layer.flops(0) == 0);
}

TEST_CASE("what does not fit is named") {
    const soft_moe_config good{.d_model = 4, .n_experts = 3, .slots = 2, .expert = {.d_ff = 5}};
    const sluice::owned_params<sluice::soft_moe_params<float>> p(good);
    auto complaint = [&](auto change) {
        soft_moe_config c = good;
        change(c);
        return message_of<config_error>([&] { sluice::soft_moe<float>(c, p.view); });
    };
    CHECK(complaint([](soft_moe_config&) {}) == "no error");
    CHECK(complaint([](soft_moe_config& c) { c.d_model = 0; }) == "soft_moe: d_model must be positive, is 0");
    CHECK(complaint([](soft_moe_config& c) { c.n_experts = 0; }) ==
          "soft_moe: n_experts must be positive, is 0");
    CHECK(complaint([](soft_moe_config& c) { c.slots = -1; }) == "soft_moe: slots must be positive, is -1");
    CHECK(complaint([](soft_moe_config& c) { c.slots = 3; }) == "soft_moe: phi must be 9 x 4, is 6 x 4");
    CHECK(complaint([](soft_moe_config& c) { c.n_experts = 2, c.slots = 3; }) ==
          "soft_moe: params hold 3 experts, the config says 2");
    CHECK(complaint([](soft_moe_config& c) { c.expert.d_model = 3; }) ==
          "soft_moe: expert.d_model must be d_model, or left out");
    CHECK(complaint([](soft_moe_config& c) { c.expert.d_ff = 6; }) ==
          "feed_forward: w_gate must be 6 x 4, is 5 x 4");
    CHECK(complaint([](soft_moe_config& c) { c.slots = std::numeric_limits<idx>::max(); }) ==
          "3 times 9223372036854775807 is no size");
    CHECK(message_of<config_error>([] {
              arena dry;
              (void)sluice::soft_moe_params<float>::bind(dry, {.d_model = 4});
          }) == "soft_moe: there must be an expert");
    const sluice::soft_moe<float> layer(good, p.view);
    CHECK(message_of<config_error>([&] {
              (void)layer.bytes({.max_rows = idx{1} << 30, .n_sequences = idx{1} << 30});
          }) == "soft_moe: more slots in a call than 32 bits count");
    arena workspace(layer.bytes({.max_rows = 2}).workspace);
    padded<float> x(2, 4), dispatch(2, 6), combine(2, 5);
    CHECK(message_of<config_error>([&] {
              layer.mixing_weights(batch::one(2), x, dispatch, combine, workspace);
          }) == "soft_moe: combine must be 2 x 6, is 2 x 5");
    CHECK(message_of<config_error>([&] { layer.mixing_weights(batch::one(2), x, x, combine, workspace); }) ==
          "soft_moe: dispatch must be 2 x 6, is 2 x 4");
}
