#include "support/catch.hpp"
#include "support/toy_params.hpp"

#include <sluice/core/params.hpp>

#include <string>
#include <vector>

using sluice::arena;
using sluice::bf16;
using sluice::idx;
using sluice::param_name;
using sluice::role;
using sluice::tensor_view;
using sluice::test::toy_config;
using sluice::test::toy_params;

namespace {

// A composite of two.
template <class W>
struct pair_params {
    std::array<toy_params<W>, 2> layers;
    tensor_view<W> table;

    static pair_params bind(arena& memory, const toy_config& c) {
        pair_params p;
        for (auto& layer : p.layers) layer = toy_params<W>::bind(memory, c);
        p.table = memory.take<W>(7, c.cols);
        return p;
    }
    template <class F, class First, class... Sets>
    static void each(F& f, const param_name& at, First& first, Sets&... sets) {
        const param_name list(at, "layers");
        for (std::size_t i = 0; i < 2; ++i)
            toy_params<W>::each(f, param_name(list, static_cast<idx>(i)), first.layers[i], sets.layers[i]...);
        f(param_name(at, "table"), role::table, first.table, sets.table...);
    }
};

} // namespace

TEST_CASE("names are dotted and empty parts leave no dot") {
    CHECK(param_name().str().empty());
    CHECK(param_name("w_up").str() == "w_up");
    CHECK(param_name(std::string_view("w_up")).str() == "w_up");
    const param_name root;
    CHECK(param_name(root, "w").str() == "w");
    const param_name model("model"), layers(model, "layers"), second(layers, idx{2}), block(second, "block");
    CHECK(param_name(block, "w_up").str() == "model.layers.2.block.w_up");
    CHECK(param_name(block, "").str() == "model.layers.2.block");
    CHECK(param_name(root, idx{0}).str() == "0");
}

TEST_CASE("names know their parts") {
    const sluice::param_name body("body"), layer(body, sluice::idx{3}), w(layer, "w");
    CHECK((w.within("body") && w.within("w") && body.within("body")));
    CHECK((!w.within("bo") && !body.within("w") && !layer.within("3")));
}

TEST_CASE("each_param visits every tensor with name and role") {
    arena dry;
    auto p = pair_params<float>::bind(dry, {});
    std::vector<std::string> seen;
    sluice::each_param(
        [&](const param_name& name, role r, const auto& t) {
            seen.push_back(name.str() + " " + std::to_string(static_cast<int>(r)) + " " +
                           sluice::shape_text(t.rows(), t.cols()));
        },
        p);
    CHECK(seen == std::vector<std::string>{"layers.0.w_up 0 3 x 5", "layers.0.bias 1 1 x 3",
                                           "layers.0.running 4 1 x 2", "layers.1.w_up 0 3 x 5",
                                           "layers.1.bias 1 1 x 3", "layers.1.running 4 1 x 2",
                                           "table 3 7 x 5"});
}

TEST_CASE("each_param walks several sets in step") {
    sluice::owned_params<toy_params<float>> w(toy_config{}), g(toy_config{}), m(toy_config{});
    sluice::each_param([](const param_name&, role, const auto& t) { fill(t, 2); }, w.view);
    sluice::each_param([](const param_name&, role, const auto& t) { fill(t, 3); }, g.view);
    int calls = 0;
    const auto& weights = w.view; // const sets are walked, too
    sluice::each_param(
        [&](const param_name&, role, const auto& a, auto& b, auto& c) {
            ++calls;
            for (idx i = 0; i < a.rows(); ++i)
                for (idx j = 0; j < a.cols(); ++j) c(i, j) = a(i, j) * b(i, j);
        },
        weights, g.view, m.view);
    CHECK(calls == 3);
    CHECK((m.view.w_up(2, 4) == 6 && m.view.bias(0, 2) == 6 && m.view.running(0, 1) == 6));
}

TEST_CASE("count_params leaves buffers out") {
    arena dry;
    CHECK(sluice::count_params(toy_params<float>::bind(dry, {})) == 15 + 3);
    CHECK(sluice::count_params(pair_params<float>::bind(dry, {.rows = 2, .cols = 4})) == 2 * (8 + 2) + 28);
}

TEST_CASE("params_bytes is exactly what bind takes") {
    const toy_config config{.rows = 33, .cols = 17};
    const std::size_t bytes = sluice::params_bytes<pair_params<bf16>>(config);
    CHECK(bytes == 2 * (1152 + 192 + 64) + 256);
    arena exact(bytes);
    CHECK_NOTHROW(pair_params<bf16>::bind(exact, config));
    CHECK(exact.used() == bytes);
    arena small(bytes - 1);
    CHECK_THROWS_AS(pair_params<bf16>::bind(small, config), sluice::capacity_error);
}

TEST_CASE("owned params are zeroed and can be zeroed again") {
    sluice::owned_params<toy_params<bf16>> p(toy_config{});
    CHECK(p.view.w_up(2, 4) == bf16{});
    CHECK(p.view.bias(0, 2) == 0.0F);
    p.view.w_up(2, 4) = bf16{5};
    p.view.bias(0, 2) = 1;
    p.view.running(0, 1) = 1;
    sluice::zero(p.view);
    CHECK((p.view.w_up(2, 4) == bf16{} && p.view.bias(0, 2) == 0 && p.view.running(0, 1) == 0));
}

TEST_CASE("zero writes only the elements of strided tensors") {
    std::vector<float> memory(40, 1.0F);
    toy_params<float> p;
    p.w_up = {memory.data(), 3, 5, 8};
    sluice::zero(p);
    float sum = 0;
    for (float v : memory) sum += v;
    CHECK(sum == 25);
}

TEST_CASE("owned params keep their views when moved") {
    sluice::owned_params<toy_params<float>> a(toy_config{});
    a.view.w_up(1, 1) = 4;
    const sluice::owned_params<toy_params<float>> b(std::move(a));
    CHECK(b.view.w_up(1, 1) == 4);
}

TEST_CASE("a set over const storage is shaped on a dry arena") {
    arena dry;
    const auto p = toy_params<const bf16>::bind(dry, {});
    static_assert(std::is_same_v<decltype(p.bias), tensor_view<const float>>);
    CHECK((p.w_up.rows() == 3 && p.w_up.data() == nullptr));
}
