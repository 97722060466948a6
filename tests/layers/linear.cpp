#include "support/layer_suite.hpp"

#include <sluice/layers/linear.hpp>
#include <sluice/reference/linear.hpp>

using namespace sluice::test;
using sluice::batch;
using sluice::config_error;
using sluice::idx;
using sluice::in;
using sluice::linear_config;
using sluice::tensor_view;

namespace {

struct linear_traits {
    template <class W>
    using params = sluice::linear_params<W>;
    template <class T, class W, class Arch>
    using layer = sluice::linear<T, W, Arch>;

    static std::vector<variant<linear_config>> variants() {
        return {
            {"one by one", {.d_in = 1, .d_out = 1}},
            {"primes with bias", {.d_in = 13, .d_out = 7, .bias = true}},
            {"to one", {.d_in = 17, .d_out = 1}},
            {"from one", {.d_in = 1, .d_out = 19, .bias = true}},
            {"above blocks", {.d_in = 257, .d_out = 131, .bias = true}, true},
            {"below blocks", {.d_in = 255, .d_out = 127}, true},
        };
    }
    static void reference(const linear_config&, const params<double>& p, const batch&, in<double> x,
                          tensor_view<double> y) {
        sluice::reference::linear<double>({p.w, p.bias}, x, y);
    }
    // Forgets the bias, or the last input.
    static void wrong_reference(const linear_config& c, const params<double>& p, const batch&, in<double> x,
                                tensor_view<double> y) {
        if (c.bias) return sluice::reference::linear<double>({p.w, {}}, x, y);
        sluice::reference::linear<double>({p.w.col_block(0, c.d_in - 1), {}}, x.col_block(0, c.d_in - 1), y);
    }
};

} // namespace

SLUICE_TEST_LAYER("", linear_traits, float_native, float_scalar, double_native, double_scalar)

TEST_CASE("a config without a size is refused") {
    const sluice::linear_params<const float> none{};
    CHECK(message_of<config_error>([&] {
              sluice::linear<float, const float>({.d_in = 0, .d_out = 2}, none);
          }) == "linear: d_in must be positive, is 0");
    CHECK(message_of<config_error>([&] {
              sluice::linear<float, const float>({.d_in = 2, .d_out = -1}, none);
          }) == "linear: d_out must be positive, is -1");
}

TEST_CASE("a bias is there when the config says so, and only then") {
    const linear_config with{.d_in = 3, .d_out = 2, .bias = true}, without{.d_in = 3, .d_out = 2};
    const sluice::owned_params<sluice::linear_params<float>> biased(with), plain(without);
    CHECK(message_of<config_error>([&] { sluice::linear<float>(with, plain.view); }) ==
          "linear: bias must be 1 x 2, is 0 x 0");
    CHECK(message_of<config_error>([&] { sluice::linear<float>(without, biased.view); }) ==
          "linear: bias must be 0 x 0, is 1 x 2");
}

TEST_CASE("flops are counted") {
    const linear_config c{.d_in = 3, .d_out = 2};
    const sluice::owned_params<sluice::linear_params<float>> p(c);
    CHECK(sluice::linear<float>(c, p.view).flops(5) == 60);
}

// Inputs of unit variance leave with unit variance.
TEST_CASE("initial weights keep the variance") {
    const linear_config c{.d_in = 400, .d_out = 300, .bias = true};
    sluice::owned_params<sluice::linear_params<float>> p(c);
    fill(p.view.bias, 3.0F);
    initialise(p.view, c, sluice::random_source(1));
    double squares = 0;
    for (idx i = 0; i < 300; ++i)
        for (idx j = 0; j < 400; ++j)
            squares += static_cast<double>(p.view.w(i, j)) * static_cast<double>(p.view.w(i, j));
    CHECK(squares / 300 == approx(1).epsilon(0.02));
    for (idx i = 0; i < 300; ++i) REQUIRE(p.view.bias(0, i) == 0);
}
