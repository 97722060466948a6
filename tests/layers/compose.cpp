#include "support/layer_suite.hpp"
#include "support/reference_of.hpp"

#include <sluice/layers/compose.hpp>
#include <sluice/layers/linear.hpp>
#include <sluice/reference/compose.hpp>

using namespace sluice::test;
using sluice::arena;
using sluice::attention_config;
using sluice::batch;
using sluice::config_error;
using sluice::executor_ref;
using sluice::feed_forward_config;
using sluice::idx;
using sluice::in;
using sluice::norm_config;
using sluice::tensor_view;

namespace {

// Different layers, with a state and without, alone and with a residual.
struct chain_traits {
    template <class W>
    using params = sluice::chain_params<sluice::norm_params<W>, sluice::feed_forward_params<W>,
                                        sluice::attention_params<W>>;
    template <class T, class W, class Arch>
    using layer = sluice::chain<sluice::norm<T, W, Arch>, sluice::residual<sluice::feed_forward<T, W, Arch>>,
                                sluice::attention<T, W, Arch>>;
    using config = sluice::parts<norm_config, feed_forward_config, attention_config>;
    static constexpr idx chain = 4096;

    static std::vector<variant<config>> variants() {
        return {{"norm, feed-forward, attention",
                 config({.d_model = 6}, {.d_model = 6, .d_ff = 5, .bias = true},
                        {.d_model = 6, .n_heads = 2, .n_kv_heads = 1, .head_dim = 2, .window = 7})}};
    }
    static void run(const config& c, const params<double>& p, const batch& b, in<double> x,
                    tensor_view<double> y, bool residual) {
        namespace ref = sluice::reference;
        auto feed_forward = [&](in<double> from, tensor_view<double> to) {
            ref::feed_forward<double>(ref::activation::silu, reference_of(get<1>(p.layers)), from, to);
        };
        ref::chain<double>(
            x, y,
            [&](in<double> from, tensor_view<double> to) {
                ref::norm<double>(ref::norm_kind::rms, get<0>(c).eps, reference_of(get<0>(p.layers)), from,
                                  to);
            },
            [&](in<double> from, tensor_view<double> to) {
                if (residual)
                    ref::residual<double>(from, to, feed_forward);
                else
                    feed_forward(from, to);
            },
            [&](in<double> from, tensor_view<double> to) {
                ref::attention<double>(b, reference_of(get<2>(c)), reference_of(get<2>(p.layers)), from, to);
            });
    }
    static void reference(const config& c, const params<double>& p, const batch& b, in<double> x,
                          tensor_view<double> y) {
        run(c, p, b, x, y, true);
    }
    // Without the residual.
    static void wrong_reference(const config& c, const params<double>& p, const batch& b, in<double> x,
                                tensor_view<double> y) {
        run(c, p, b, x, y, false);
    }
};

struct stack_traits {
    template <class W>
    using params =
        sluice::stack_params<sluice::chain_params<sluice::attention_params<W>, sluice::linear_params<W>>>;
    template <class T, class W, class Arch>
    using layer = sluice::stack<
        sluice::chain<sluice::residual<sluice::attention<T, W, Arch>>, sluice::linear<T, W, Arch>>>;
    using config = sluice::stack_config<sluice::parts<attention_config, sluice::linear_config>>;

    static std::vector<variant<config>> variants() {
        const sluice::parts<attention_config, sluice::linear_config> one(
            {.d_model = 3, .n_heads = 1, .n_kv_heads = 1, .head_dim = 4},
            {.d_in = 3, .d_out = 3, .bias = true});
        return {{"one", {.n_layers = 1, .layer = one}},
                {"two", {.n_layers = 2, .layer = one}},
                {"three", {.n_layers = 3, .layer = one}},
                {"four", {.n_layers = 4, .layer = one}}};
    }
    static void reference(const config& c, const params<double>& p, const batch& b, in<double> x,
                          tensor_view<double> y) {
        run(c.n_layers, c, p, b, x, y);
    }
    // One layer fewer.
    static void wrong_reference(const config& c, const params<double>& p, const batch& b, in<double> x,
                                tensor_view<double> y) {
        run(c.n_layers - 1, c, p, b, x, y);
    }
    static void run(idx n_layers, const config& c, const params<double>& p, const batch& b, in<double> x,
                    tensor_view<double> y) {
        namespace ref = sluice::reference;
        ref::stack<double>(n_layers, x, y, [&](idx i, in<double> from, tensor_view<double> to) {
            const auto& layer = p.layers[static_cast<std::size_t>(i)];
            sluice::tensor<double> h(from.rows(), from.cols());
            ref::residual<double>(from, h.view(), [&](in<double> a, tensor_view<double> z) {
                ref::attention<double>(b, reference_of(get<0>(c.layer)), reference_of(get<0>(layer.layers)),
                                       a, z);
            });
            const auto& linear = get<1>(layer.layers);
            ref::linear<double>({linear.w, linear.bias}, h, to);
        });
    }
};

struct residual_traits {
    template <class W>
    using params = sluice::linear_params<W>;
    template <class T, class W, class Arch>
    using layer = sluice::residual<sluice::linear<T, W, Arch>>;

    static std::vector<variant<sluice::linear_config>> variants() {
        return {{"linear", {.d_in = 5, .d_out = 5, .bias = true}}};
    }
    static void reference(const sluice::linear_config&, const params<double>& p, const batch&, in<double> x,
                          tensor_view<double> y) {
        sluice::reference::residual<double>(x, y, [&](in<double> from, tensor_view<double> to) {
            sluice::reference::linear<double>({p.w, p.bias}, from, to);
        });
    }
    static void wrong_reference(const sluice::linear_config&, const params<double>& p, const batch&,
                                in<double> x, tensor_view<double> y) {
        sluice::reference::linear<double>({p.w, p.bias}, x, y);
    }
};

} // namespace

SLUICE_TEST_LAYER("chain ", chain_traits, float_native, double_scalar)
SLUICE_TEST_LAYER("stack ", stack_traits, double_native)
SLUICE_TEST_LAYER("residual ", residual_traits, double_native)

TEST_CASE("a stack of no layers is refused") {
    using stack = sluice::stack<sluice::linear<float>>;
    const stack::params_type none{};
    CHECK(message_of<config_error>([&] { stack({.n_layers = 0, .layer = {.d_in = 2, .d_out = 2}}, none); }) ==
          "stack: n_layers must be positive, is 0");
    arena dry;
    CHECK(message_of<config_error>([&] {
              stack::params_type::bind(dry, stack::config_type{.n_layers = -1});
          }) == "stack: n_layers must not be negative");
}

TEST_CASE("layers that do not fit each other are refused") {
    using sluice::linear_config;
    using linear = sluice::linear<float>;
    using params = sluice::linear_params<float>;
    {
        const sluice::stack_config<linear_config> two{.n_layers = 2, .layer = {.d_in = 3, .d_out = 3}};
        const sluice::stack_config<linear_config> three{.n_layers = 3, .layer = {.d_in = 3, .d_out = 3}};
        const sluice::stack_config<linear_config> narrowing{.n_layers = 2, .layer = {.d_in = 3, .d_out = 2}};
        const sluice::owned_params<sluice::stack_params<params>> p(two), q(narrowing);
        CHECK(message_of<config_error>([&] { sluice::stack<linear>(three, p.view); }) ==
              "stack: params hold 2 layers, the config says 3");
        CHECK(message_of<config_error>([&] { sluice::stack<linear>(narrowing, q.view); }) ==
              "stack: the layer maps width 3 to 2");
    }
    {
        const sluice::parts<linear_config, linear_config> c({.d_in = 3, .d_out = 3}, {.d_in = 3, .d_out = 2});
        const sluice::owned_params<sluice::chain_params<params, params>> p(c);
        CHECK(message_of<config_error>([&] { sluice::chain<linear, linear>(c, p.view); }) ==
              "chain: layer 1 maps width 3 to 2, layer 0 has width 3");
    }
    {
        const linear_config c{.d_in = 3, .d_out = 2};
        const sluice::owned_params<params> p(c);
        CHECK(message_of<config_error>([&] { sluice::residual<linear>(c, p.view); }) ==
              "residual: the layer maps width 3 to 2");
    }
}

TEST_CASE("the change of a residual is its layer") {
    const sluice::linear_config c{.d_in = 4, .d_out = 4};
    sluice::owned_params<sluice::linear_params<double>> p(c), grad(c), same(c);
    initialise(p.view, c, sluice::random_source(1));
    const sluice::linear<double> inner(c, p.view);
    const sluice::residual<sluice::linear<double>> layer(c, p.view);
    const auto need = layer.bytes({.max_tokens = 3, .max_rows = 3});
    arena workspace(need.workspace), tape(need.tape);
    const auto x = uniform_matrix<double>(3, 4, 1), dy = uniform_matrix<double>(3, 4, 2);
    padded<double> y(3, 4), change(3, 4), dx(3, 4), dchange(3, 4);
    const batch b = batch::one(3);
    inner.forward(b, x.view(), y, nullptr, workspace);
    layer.change(b, x.view(), change, &tape, workspace);
    CHECK(different_bits(change.view(), y.view()) == "");
    inner.backward(b, x.view(), dy.view(), dx, tape, grad.view, workspace);
    layer.change_backward(b, x.view(), dy.view(), dchange, tape, same.view, workspace);
    CHECK(different_bits(dchange.view(), dx.view()) == "");
    CHECK(different_bits(grad.view.w, same.view.w) == "");
}

TEST_CASE("a part without room is found before another part is written") {
    using attention = sluice::attention<float>;
    attention_config full{.d_model = 4, .n_heads = 1, .n_kv_heads = 1, .head_dim = 4}, ring = full;
    ring.window = 2;
    const sluice::parts<attention_config, attention_config> c(full, ring);
    const sluice::owned_params<
        sluice::chain_params<sluice::attention_params<float>, sluice::attention_params<float>>>
        p(c);
    const sluice::chain<attention, attention> layer(c, p.view);
    const sluice::limits most{.max_tokens = 100, .max_rows = 3};
    arena memory(layer.bytes(most).state), workspace(1 << 20);
    auto state = layer.bind_state(memory, most);
    auto x = uniform_matrix<float>(5, 4, 1), y = uniform_matrix<float>(5, 4, 2);
    CHECK(message_of<sluice::capacity_error>([&] { layer.extend(batch::one(5), x, y, state, workspace); }) ==
          "attention state: ring of a window: needs 5 rows in one call (max_rows), has 3");
    CHECK(get<0>(state.layers).length(0, 0) == 0);
    layer.extend(batch::one(3), x.view().row_block(0, 3), y.view().row_block(0, 3), state, workspace);
    CHECK(get<0>(state.layers).length(0, 0) == 3);
    CHECK(get<1>(state.layers).length(0, 0) == 3);
}

TEST_CASE("names, initial weights and work of the parts") {
    const auto c = stack_traits::variants()[1].config;
    sluice::owned_params<stack_traits::params<double>> p(c);
    std::string names;
    each_param([&](const sluice::param_name& name, sluice::role, const auto&) { names += name.str() + " "; },
               p.view);
    CHECK(names ==
          "0.0.w_q 0.0.w_k 0.0.w_v 0.0.w_o 0.1.w 0.1.bias 1.0.w_q 1.0.w_k 1.0.w_v 1.0.w_o 1.1.w 1.1.bias ");
    initialise(p.view, c, sluice::random_source(1));
    const auto &first = p.view.layers[0].layers, &second = p.view.layers[1].layers;
    CHECK(get<0>(first).w_q(0, 0) != get<0>(second).w_q(0, 0)); // layers and parts draw apart
    CHECK(get<0>(first).w_q(0, 0) != get<1>(first).w(0, 0));
    const stack_traits::layer<double, double, sluice::simd::native> layer(c, p.view);
    CHECK(layer.n_layers() == 2);
    CHECK(layer.flops(5, 2) == 2 * layer.at(0).flops(5, 2));
    CHECK(layer.at(0).flops(5, 2) == 2.0 * 5 * (4 * 12 + 9) + 4.0 * (3 + 4 + 5 + 6 + 7) * 4);
}

namespace {

// The least that composes: no backward, and nothing said about training.
struct plain_layer {
    using scalar = float;
    using arch = sluice::simd::native;
    using config_type = sluice::linear_config;
    using params_type = sluice::linear_params<const float>;
    using grad_type = sluice::linear_params<float>;
    using state_type = sluice::no_state;
    plain_layer(const config_type& c, const params_type&) : config_(c) {}
    config_type config() const { return config_; }
    idx d_in() const { return config_.d_in; }
    idx d_out() const { return config_.d_in; }
    void forward(const batch&, in<float> x, tensor_view<float> y, arena*, arena&, executor_ref ex) const {
        sluice::copy<float>(x, y, ex);
    }
    sluice::no_state bind_state(arena&, const sluice::limits&) const { return {}; }
    void extend(const batch& b, in<float> x, tensor_view<float> y, sluice::no_state&, arena& workspace,
                executor_ref ex) const {
        forward(b, x, y, nullptr, workspace, ex);
    }

private:
    config_type config_;
};

} // namespace

TEST_CASE("a layer without backward composes to what is not trained") {
    using model = sluice::stack<sluice::chain<sluice::residual<plain_layer>, plain_layer>>;
    static_assert(sluice::layer<model> && !sluice::trainable_layer<model>);
    const model::config_type config{.n_layers = 2,
                                    .layer = {{.d_in = 1, .d_out = 1}, {.d_in = 1, .d_out = 1}}};
    const sluice::owned_params<model::params_type> none(config);
    const model m(config, none.view);
    const float x = 1;
    float y = 0;
    arena workspace(m.bytes({}).workspace);
    CHECK(m.bytes({}).tape == 0);
    m.forward(batch::one(1), {&x, 1, 1}, {&y, 1, 1}, nullptr, workspace);
    CHECK(y == 4);
}
