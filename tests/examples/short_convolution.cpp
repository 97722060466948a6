// The layer that the example shows how to write goes through what the library's own layers do.
#include "../../examples/support/short_convolution.hpp"

#include "support/layer_suite.hpp"

using namespace sluice::test;
using sluice::batch;
using sluice::config_error;
using sluice::idx;
using sluice::in;
using sluice::tensor_view;
using sluice::examples::short_convolution_config;

namespace {

struct short_convolution_traits {
    template <class W>
    using params = sluice::examples::short_convolution_params<W>;
    template <class T, class W, class Arch>
    using layer = sluice::examples::short_convolution<T, W, Arch>;

    static std::vector<variant<short_convolution_config>> variants() {
        return {{"four taps", {.d_model = 5}},
                {"one tap", {.d_model = 3, .n_taps = 1}},
                {"many taps", {.d_model = 67, .n_taps = 9}, true}};
    }
    static void run(idx n_taps, const params<double>& p, const batch& b, in<double> x,
                    tensor_view<double> y) {
        for (idx s = 0; s < b.n_sequences(); ++s)
            for (idx i = b.begin(s); i < b.end(s); ++i)
                for (idx c = 0; c < x.cols(); ++c) {
                    double gate = 0, sum = 0;
                    for (idx k = 0; k < x.cols(); ++k) gate += p.w_gate(c, k) * x(i, k);
                    for (idx j = 0; j < n_taps && i - j >= b.begin(s); ++j) sum += p.taps(j, c) * x(i - j, c);
                    y(i, c) = gate * sum;
                }
    }
    static void reference(const short_convolution_config& c, const params<double>& p, const batch& b,
                          in<double> x, tensor_view<double> y) {
        run(c.n_taps, p, b, x, y);
    }
    // One tap fewer.
    static void wrong_reference(const short_convolution_config& c, const params<double>& p, const batch& b,
                                in<double> x, tensor_view<double> y) {
        run(c.n_taps - 1, p, b, x, y);
    }
};

} // namespace

SLUICE_TEST_LAYER("", short_convolution_traits, float_native, double_native)

TEST_CASE("a config that cannot be is refused") {
    const sluice::examples::short_convolution_params<const float> none{};
    auto message = [&](const short_convolution_config& c) {
        return message_of<config_error>(
            [&] { sluice::examples::short_convolution<float, const float>(c, none); });
    };
    CHECK(message({}) == "short_convolution: d_model must be positive, is 0");
    CHECK(message({.d_model = 2, .n_taps = 0}) == "short_convolution: n_taps must be positive, is 0");
}
