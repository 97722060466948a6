// Softmax of rows, in the caches (2 MB in and out together) and out of them (256 MB).
#include <sluice/core/eigen.hpp>
#include <sluice/ops/softmax.hpp>

#include "../support/contest.hpp"

namespace {

using namespace sluice;
using namespace sluice::bench;

constexpr idx cols = 4096;

struct data {
    explicit data(idx n_rows) : x(uniform(n_rows, cols, 5, 1)), y(n_rows, cols), y_peer(n_rows, cols) {}
    tensor<float> x, y, y_peer;
};

void softmax_row(const char* size, idx n_rows) {
    row(std::string("softmax/forward/f32/") + size, [n_rows](contest& c) {
        auto& d = c.hold<data>(n_rows);
        c.bytes(8.0 * static_cast<double>(d.x.size()), traffic::copy);
        c.ours([&d, ex = c.executor()] { softmax(d.x, d.y.view(), ex); }, d.y);
        c.against(
            "eigen",
            [&d, ex = c.executor()] {
                ex(d.x.rows(), [&](idx begin, idx end, idx) {
                    for (idx i = begin; i < end; ++i) {
                        const auto x = std::as_const(d.x).view().row_block(i, 1).eigen();
                        auto y = d.y_peer.view().row_block(i, 1).eigen();
                        y = (x.array() - x.maxCoeff()).exp();
                        y *= 1 / y.sum();
                    }
                });
            },
            d.y_peer);
    });
}

const declare rows([] {
    softmax_row("2MB", 64);
    softmax_row("256MB", 8192);
});

} // namespace
