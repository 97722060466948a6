#include "support/layer_suite.hpp"
#include "support/reference_of.hpp"

#include <sluice/layers/feed_forward.hpp>

using namespace sluice::test;
using sluice::arena;
using sluice::batch;
using sluice::config_error;
using sluice::feed_forward_config;
using sluice::idx;
using sluice::in;
using sluice::tensor_view;
using kind = sluice::feed_forward_kind;

namespace {

struct feed_forward_traits {
    template <class W>
    using params = sluice::feed_forward_params<W>;
    template <class T, class W, class Arch>
    using layer = sluice::feed_forward<T, W, Arch>;

    static std::vector<variant<feed_forward_config>> variants() {
        return {
            {"swiglu of one", {.d_model = 1, .d_ff = 1}},
            {"swiglu", {.d_model = 7, .d_ff = 19}},
            {"swiglu with biases", {.d_model = 5, .d_ff = 9, .bias = true}},
            {"geglu", {.d_model = 9, .d_ff = 17, .kind = kind::geglu, .bias = true}},
            {"gelu", {.d_model = 3, .d_ff = 31, .kind = kind::gelu}},
            {"gelu with biases", {.d_model = 11, .d_ff = 5, .kind = kind::gelu, .bias = true}},
            {"relu with biases", {.d_model = 17, .d_ff = 7, .kind = kind::relu, .bias = true}},
            {"clamped swiglu", {.d_model = 8, .d_ff = 21, .glu = {.clamp = 0.4}}},
            {"clamped quick geglu with an offset and biases",
             {.d_model = 6, .d_ff = 18, .kind = kind::quick_geglu, .bias = true, .glu = {0.3, 1}}},
            {"wide relu", {.d_model = 33, .d_ff = 129, .kind = kind::relu}, true},
            {"wide swiglu", {.d_model = 65, .d_ff = 257, .bias = true}, true},
        };
    }
    static void reference(const feed_forward_config& c, const params<double>& p, const batch&, in<double> x,
                          tensor_view<double> y) {
        sluice::reference::feed_forward<double>(reference_of(c.kind), reference_of(p), x, y,
                                                {c.glu.clamp, c.glu.offset});
    }
    // Another activation.
    static void wrong_reference(feed_forward_config c, const params<double>& p, const batch& b, in<double> x,
                                tensor_view<double> y) {
        c.kind = c.kind == kind::swiglu ? kind::geglu : kind::swiglu;
        reference(c, p, b, x, y);
    }
};

template <class T>
using feed_forward_of = sluice::feed_forward<T>;

} // namespace

SLUICE_TEST_LAYER("", feed_forward_traits, float_native, float_scalar, double_native, double_scalar)

TEST_CASE("a config without a size is refused") {
    const sluice::feed_forward_params<float> none{};
    CHECK(message_of<config_error>([&] { feed_forward_of<float>({.d_model = 0, .d_ff = 2}, none); }) ==
          "feed_forward: d_model must be positive, is 0");
    CHECK(message_of<config_error>([&] { feed_forward_of<float>({.d_model = 2, .d_ff = -3}, none); }) ==
          "feed_forward: d_ff must be positive, is -3");
    auto said = [&](feed_forward_config c) {
        return message_of<config_error>([&] { feed_forward_of<float>(c, none); });
    };
    CHECK(said({.d_model = 2, .d_ff = 2, .kind = kind::relu, .glu = {.clamp = 7}}) ==
          "feed_forward: a clamp or an offset needs a gated kind");
    const std::string range = "feed_forward: glu.clamp must be positive and glu.offset finite";
    CHECK(said({.d_model = 2, .d_ff = 2, .glu = {.clamp = 0}}) == range);
    CHECK(said({.d_model = 2, .d_ff = 2, .glu = {.clamp = std::nan("")}}) == range);
    CHECK(said({.d_model = 2, .d_ff = 2, .glu = {.clamp = 1, .offset = std::nan("")}}) == range);
}

TEST_CASE("gate and biases are there when the config says so, and only then") {
    const feed_forward_config gated{.d_model = 3, .d_ff = 2},
        plain{.d_model = 3, .d_ff = 2, .kind = kind::gelu};
    feed_forward_config biased = gated;
    biased.bias = true;
    using params = sluice::owned_params<sluice::feed_forward_params<float>>;
    const params of_gated(gated), of_plain(plain), of_biased(biased);
    auto said = [](const feed_forward_config& c, const params& p) {
        return message_of<config_error>([&] { feed_forward_of<float>(c, p.view); });
    };
    CHECK(said(gated, of_plain) == "feed_forward: w_gate must be 2 x 3, is 0 x 0");
    CHECK(said(plain, of_gated) == "feed_forward: w_gate must be 0 x 0, is 2 x 3");
    CHECK(said(biased, of_gated) == "feed_forward: b_gate must be 1 x 2, is 0 x 0");
    CHECK(said(gated, of_biased) == "feed_forward: b_gate must be 0 x 0, is 1 x 2");
    feed_forward_config plain_biased = plain;
    plain_biased.bias = true;
    const params of_plain_biased(plain_biased);
    CHECK(said(plain_biased, of_plain) == "feed_forward: b_up must be 1 x 2, is 0 x 0");
    CHECK(said(plain, of_plain_biased) == "feed_forward: b_up must be 0 x 0, is 1 x 2");
    params without_down(plain_biased);
    without_down.view.b_down = {};
    CHECK(said(plain_biased, without_down) == "feed_forward: b_down must be 1 x 3, is 0 x 0");
}

TEST_CASE("a new layer adds nothing") {
    const feed_forward_config c{.d_model = 6, .d_ff = 8, .bias = true};
    sluice::owned_params<sluice::feed_forward_params<float>> p(c);
    each_param([](const sluice::param_name&, sluice::role, const auto& t) { fill(t, 3.0F); }, p.view);
    initialise(p.view, c, sluice::random_source(5));
    const feed_forward_of<float> layer(c, p.view);
    sluice::arena workspace(layer.bytes({.max_tokens = 2, .max_rows = 2}).workspace);
    auto x = uniform_matrix<float>(2, 6, 1), y = uniform_matrix<float>(2, 6, 2);
    layer.forward(batch::one(2), x, y, nullptr, workspace);
    for (idx j = 0; j < 12; ++j) CHECK(y(j / 6, j % 6) == 0);
    CHECK(layer.flops(2) == 2.0 * 2 * 3 * 48);
    CHECK(p.view.w_up(0, 0) != 0);
    CHECK(p.view.w_up(0, 0) != p.view.w_gate(0, 0)); // drawn apart
}

TEST_CASE("large values saturate and do not turn into NaN") {
    for (const kind k : {kind::swiglu, kind::geglu, kind::gelu, kind::relu, kind::quick_geglu}) {
        const feed_forward_config c{.d_model = 2, .d_ff = 2, .kind = k};
        sluice::owned_params<sluice::feed_forward_params<float>> p(c), grad(c);
        each_param([](const sluice::param_name&, sluice::role, const auto& t) { t(0, 0) = t(1, 1) = 1; },
                   p.view);
        const feed_forward_of<float> layer(c, p.view);
        const auto need = layer.bytes({.max_tokens = 2, .max_rows = 1});
        sluice::arena workspace(need.workspace), tape(need.tape);
        padded<float> x(1, 2), y(1, 2), dx(1, 2);
        x(0, 0) = 1e15F;
        x(0, 1) = -1e15F;
        layer.forward(batch::one(1), x, y, &tape, workspace);
        CHECK(y(0, 0) == approx(static_cast<double>(c.gated() ? 1e30F : 1e15F)));
        CHECK(y(0, 1) == 0);
        layer.backward(batch::one(1), x, x, dx, tape, grad.view, workspace);
        CHECK(std::isfinite(dx(0, 0)));
        CHECK(dx(0, 1) == 0);
    }
}

TEST_CASE("widths that multiply out of range are refused before anything is bound") {
    constexpr idx big = idx{1} << 32, most = std::numeric_limits<idx>::max();
    for (const auto& [d, f] : {std::pair<idx, idx>{big, big}, {most, 2}, {2, most}, {most, most}, {-1, 4}}) {
        arena dry;
        CHECK_THROWS_AS(sluice::feed_forward_params<float>::bind(dry, {.d_model = d, .d_ff = f}),
                        config_error);
    }
}

TEST_CASE("many over rows of their own: each gives its own bits, in exactly the memory that was counted") {
    using params = sluice::feed_forward_params<float>;
    const feed_forward_config c{.d_model = 5, .d_ff = 7, .bias = true};
    constexpr idx n = 100;
    std::vector<sluice::owned_params<params>> owned, gradients;
    std::vector<params> experts, grad;
    std::vector<std::int32_t> offsets{0};
    for (idx e = 0; e < n; ++e) {
        owned.emplace_back(c);
        gradients.emplace_back(c);
        experts.push_back(owned.back().view);
        grad.push_back(gradients.back().view);
        std::uint64_t seed = static_cast<std::uint64_t>(9 * e);
        each_param([&](const sluice::param_name&, sluice::role, auto& t) { fill_uniform(t, ++seed); },
                   experts.back());
        offsets.push_back(offsets.back() + static_cast<std::int32_t>(e * e % 5));
    }
    const idx rows = offsets.back();
    auto x = uniform_matrix<float>(rows, 5, 1), dy = uniform_matrix<float>(rows, 5, 2);
    padded<float> y(rows, 5), dx(rows, 5), want(rows, 5), want_dx(rows, 5);
    const sluice::grouped_feed_forward<float> many(c, experts);
    for_each_executor([&](sluice::executor_ref ex, const std::string& name) {
        INFO(name);
        // the whole of a training call, and how much of it inference takes
        auto call = [&](const std::int32_t* at, bool training, arena& tape, arena& workspace,
                        sluice::executor_ref on) {
            const arena::scope scope(workspace);
            const auto kept = many.take(training ? tape : workspace, rows, rows);
            many.forward(at, x, y, kept, training, workspace, on);
            if (training) many.backward(at, x, dy, dx, kept, grad, workspace, on);
            if (training) many.pop(tape, rows);
        };
        for (const bool training : {false, true}) {
            arena tape_bytes, workspace_bytes;
            sluice::dry_run nobody{ex.concurrency()};
            call(nullptr, training, tape_bytes, workspace_bytes, nobody);
            arena tape(tape_bytes.bytes()), workspace(workspace_bytes.bytes());
            for (auto& g : grad) zero(g);
            call(offsets.data(), training, tape, workspace, ex);
            CHECK(tape.used() == 0);
        }
    });
    for (std::size_t e = 0; e < n; ++e) {
        const idx first = offsets[e], m = offsets[e + 1] - first;
        const feed_forward_of<float> one(c, experts[e]);
        const auto need = one.bytes({.max_rows = std::max<idx>(m, 1)});
        arena tape(need.tape), workspace(need.workspace);
        const sluice::owned_params<params> alone(c);
        const auto xs = x.view().row_block(first, m), dys = dy.view().row_block(first, m);
        one.forward(batch::one(m), xs, want.view().row_block(first, m), &tape, workspace);
        one.backward(batch::one(m), xs, dys, want_dx.view().row_block(first, m), tape, alone.view, workspace);
        CHECK(different_bits(grad[e].w_up, alone.view.w_up) == "");
        CHECK(different_bits(grad[e].w_down, alone.view.w_down) == "");
        CHECK(different_bits(grad[e].b_gate, alone.view.b_gate) == "");
    }
    CHECK(different_bits(y.view(), want.view()) == "");
    CHECK(different_bits(dx.view(), want_dx.view()) == "");
}
