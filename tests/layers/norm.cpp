#include "support/layer_suite.hpp"
#include "support/reference_of.hpp"

#include <sluice/layers/norm.hpp>

using namespace sluice::test;
using sluice::batch;
using sluice::config_error;
using sluice::idx;
using sluice::in;
using sluice::norm_config;
using sluice::norm_kind;
using sluice::tensor_view;

namespace {

struct norm_traits {
    template <class W>
    using params = sluice::norm_params<W>;
    template <class T, class W, class Arch>
    using layer = sluice::norm<T, W, Arch>;

    static std::vector<variant<norm_config>> variants() {
        return {
            {"rms of two", {.d_model = 2, .eps = 1e-2}},
            {"rms of a prime", {.d_model = 17}},
            {"layer of three", {.d_model = 3, .kind = norm_kind::layer, .eps = 1e-3}},
            {"layer of a prime", {.d_model = 31, .kind = norm_kind::layer}},
            {"rms, more than a strip", {.d_model = 65, .eps = 1e-5}, true},
            {"layer, many strips", {.d_model = 1023, .kind = norm_kind::layer}, true},
        };
    }
    static void reference(const norm_config& c, const params<double>& p, const batch&, in<double> x,
                          tensor_view<double> y) {
        sluice::reference::norm<double>(reference_of(c.kind), c.eps, {p.scale, p.bias}, x, y);
    }
    // The other kind.
    static void wrong_reference(const norm_config& c, const params<double>& p, const batch&, in<double> x,
                                tensor_view<double> y) {
        const auto kind = c.kind == norm_kind::rms ? sluice::reference::norm_kind::layer
                                                   : sluice::reference::norm_kind::rms;
        sluice::reference::norm<double>(kind, c.eps, {p.scale, p.bias}, x, y);
    }
};

template <class T>
using norm_of = sluice::norm<T>;

} // namespace

SLUICE_TEST_LAYER("", norm_traits, float_native, float_scalar, double_native, double_scalar)

TEST_CASE("a config that makes no sense is refused") {
    const sluice::norm_params<float> none{};
    CHECK(message_of<config_error>([&] { norm_of<float>({.d_model = 0}, none); }) ==
          "norm: d_model must be positive, is 0");
    CHECK(message_of<config_error>([&] { norm_of<float>({.d_model = 3, .eps = -1e-9}, none); }) ==
          "norm: eps must not be negative");
}

TEST_CASE("only a LayerNorm has a bias") {
    const norm_config layer{.d_model = 3, .kind = norm_kind::layer}, rms{.d_model = 3};
    const sluice::owned_params<sluice::norm_params<float>> with(layer), without(rms);
    CHECK(message_of<config_error>([&] { norm_of<float>(layer, without.view); }) ==
          "norm: bias must be 1 x 3, is 0 x 0");
    CHECK(message_of<config_error>([&] { norm_of<float>(rms, with.view); }) ==
          "norm: bias must be 0 x 0, is 1 x 3");
}

TEST_CASE("y may be x, and dx may be dy") {
    for (const norm_kind kind : {norm_kind::rms, norm_kind::layer}) {
        const norm_config c{.d_model = 21, .kind = kind};
        sluice::owned_params<sluice::norm_params<double>> p(c), grad(c), same_grad(c);
        initialise(p.view, c, sluice::random_source(1));
        const norm_of<double> layer(c, p.view);
        const auto need = layer.bytes({.max_tokens = 4, .max_rows = 4});
        sluice::arena workspace(need.workspace), tape(need.tape);
        auto x = uniform_matrix<double>(4, 21, 1), dy = uniform_matrix<double>(4, 21, 2);
        padded<double> y(4, 21), dx(4, 21);
        const batch b = batch::one(4);
        layer.forward(b, x, y, &tape, workspace);
        layer.backward(b, x, dy, dx, tape, grad.view, workspace);
        layer.forward(b, x, y, &tape, workspace);
        layer.backward(b, x, dy, dy, tape, same_grad.view, workspace);
        CHECK(different_bits(dx.view(), dy.view()) == "");
        CHECK(different_bits(grad.view.scale, same_grad.view.scale) == "");
        layer.forward(b, x, x, nullptr, workspace);
        CHECK(different_bits(x.view(), y.view()) == "");
    }
}

TEST_CASE("a row of zeros stays zero and finite") {
    const norm_config c{.d_model = 5};
    sluice::owned_params<sluice::norm_params<float>> p(c);
    initialise(p.view, c, sluice::random_source(1));
    const norm_of<float> layer(c, p.view);
    sluice::arena workspace(64);
    padded<float> x(1, 5), y(1, 5);
    fill(y.view(), 1.0F);
    layer.forward(batch::one(1), x, y, nullptr, workspace);
    for (idx j = 0; j < 5; ++j) CHECK(y(0, j) == 0);
}

TEST_CASE("initial weights change nothing but the length") {
    const norm_config c{.d_model = 4, .kind = norm_kind::layer};
    sluice::owned_params<sluice::norm_params<float>> p(c);
    fill(p.view.bias, 3.0F);
    initialise(p.view, c, sluice::random_source(1));
    for (idx j = 0; j < 4; ++j) {
        CHECK(p.view.scale(0, j) == 1);
        CHECK(p.view.bias(0, j) == 0);
    }
    CHECK(norm_of<float>(c, p.view).flops(2) == 32);
}
