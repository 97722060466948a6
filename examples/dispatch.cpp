// One program for several instruction sets. It is compiled for the oldest x86-64 processor and holds the
// library's kernels three times; which of them run is decided by the machine. In CMake:
//   sluice_dispatch(dispatch ARCHS sse2 avx2 avx512)
// Says what the machine gets, then times a feed-forward as each of the three: on 64 rows, with one thread.
#include "support/tokens.hpp"

#include <sluice/layers/feed_forward.hpp>

#include <cmath>
#include <cstdio>
#include <vector>

namespace {

using sluice::idx;
namespace simd = sluice::simd;

// The Arch of every layer and function; simd::native, the default, would be x86-64 without AVX here.
using arch = simd::dynamic<simd::avx512, simd::avx2, simd::sse2>;
using layer_type = sluice::feed_forward<float, float, arch>;

constexpr idx rows = 64, d = 512, d_ff = 2048;

sluice::tensor<float> run(const layer_type& layer, const sluice::tensor<float>& x, double& seconds) {
    sluice::arena workspace(layer.bytes({.max_rows = rows}).workspace);
    sluice::tensor<float> y(rows, d);
    seconds = 1e9;
    for (int round = 0; round < 10; ++round)
        seconds = std::min(seconds, sluice::examples::seconds_of([&] {
                               layer.forward(sluice::batch::one(rows), x, y.view(), nullptr, workspace);
                           }));
    return y;
}

} // namespace

int main() {
    const sluice::feed_forward_config config{.d_model = d, .d_ff = d_ff};
    sluice::owned_params<layer_type::params_type> weights(config);
    each_param([key = 1U](const sluice::param_name&, sluice::role,
                          auto& w) mutable { sluice::fill_normal(w, 0.05, sluice::random_source(key++)); },
               weights.view);
    sluice::tensor<float> x(rows, d);
    sluice::fill_normal(x.view(), 1, sluice::random_source(9));

    const char* const names[] = {"avx512", "avx2", "sse2"};
    std::printf("this machine gets %s\n", names[simd::choose(arch{})]);
    bool right = true;
    std::vector<sluice::tensor<float>> results;
    const auto compare = [&]<class Which>(Which, const char* name) {
        if (!simd::force<Which>(arch{})) return std::printf("%-6s is not there\n", name), void();
        double seconds = 0;
        results.push_back(run(layer_type(config, weights.view), x, seconds));
        const auto &first = results.front(), &y = results.back();
        float apart = 0, most = 0;
        for (idx i = 0; i < y.size(); ++i) {
            apart = std::max(apart, std::abs(y.data()[i] - first.data()[i]));
            most = std::max(most, std::abs(first.data()[i]));
        }
        right = right && most > 0 && apart < 1e-5F * most;
        std::printf("%-6s %6.1f GFLOP/s, %.0e from the first\n", name, 1e-9 * 6 * rows * d * d_ff / seconds,
                    static_cast<double>(apart / most));
    };
    compare(simd::avx512{}, names[0]);
    compare(simd::avx2{}, names[1]);
    compare(simd::sse2{}, names[2]);
    return right ? 0 : 1;
}
