// RMSNorm of rows of 4096, in the caches (2 MB in and out together) and out of them (256 MB).
#include <sluice/core/eigen.hpp>
#include <sluice/ops/norm.hpp>

#include "../support/contest.hpp"

namespace {

using namespace sluice;
using namespace sluice::bench;

constexpr idx cols = 4096;
constexpr float eps = 1e-6F;

struct data {
    explicit data(idx n_rows)
        : x(uniform(n_rows, cols, 1, 1)),
          scale(uniform(1, cols, 1, 2)),
          y(n_rows, cols),
          y_peer(n_rows, cols),
          inverse(1, n_rows) {}
    tensor<float> x, scale, y, y_peer, inverse;
};

void rms_norm_row(const char* size, idx n_rows) {
    row(std::string("rms_norm/forward/f32/") + size, [n_rows](contest& c) {
        auto& d = c.hold<data>(n_rows);
        c.bytes(8.0 * static_cast<double>(d.x.size()), traffic::copy);
        c.ours(
            [&d, ex = c.executor()] {
                normalise(d.x, d.scale, {}, d.y.view(), d.inverse.view(), {}, eps, ex);
            },
            d.y);
        c.against(
            "eigen",
            [&d, ex = c.executor()] {
                const auto scale = std::as_const(d.scale).view().eigen();
                ex(d.x.rows(), [&](idx begin, idx end, idx) {
                    for (idx i = begin; i < end; ++i) {
                        const auto x = std::as_const(d.x).view().row_block(i, 1).eigen();
                        const float inverse = 1 / std::sqrt(x.squaredNorm() / static_cast<float>(cols) + eps);
                        d.y_peer.view().row_block(i, 1).eigen() = (x * inverse).cwiseProduct(scale);
                    }
                });
            },
            d.y_peer);
    });
}

const declare rows([] {
    rms_norm_row("2MB", 64);
    rms_norm_row("256MB", 8192);
});

} // namespace
