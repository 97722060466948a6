// y = silu(gate) * up, in the caches (2 MB of all three together) and out of them (256 MB); y = gelu(x) in
// them.
#include <sluice/core/eigen.hpp>
#include <sluice/ops/activation.hpp>

#include "../support/contest.hpp"

#include <cmath>
#include <numbers>

namespace {

using namespace sluice;
using namespace sluice::bench;

constexpr idx cols = 4096;

struct data {
    explicit data(idx n_rows)
        : gate(uniform(n_rows, cols, 4, 1)),
          up(uniform(n_rows, cols, 1, 2)),
          y(n_rows, cols),
          y_peer(n_rows, cols) {}
    tensor<float> gate, up, y, y_peer;
};

void silu_mul_row(const char* size, idx n_rows) {
    row(std::string("silu_mul/forward/f32/") + size, [n_rows](contest& c) {
        auto& d = c.hold<data>(n_rows);
        c.bytes(12.0 * static_cast<double>(d.y.size()), traffic::combine);
        c.ours([&d, ex = c.executor()] { activate(activation::silu, d.gate, d.up, d.y.view(), ex); }, d.y);
        c.against(
            "eigen",
            [&d, ex = c.executor()] {
                ex(d.y.rows(), [&](idx begin, idx end, idx) {
                    const auto gate =
                        std::as_const(d.gate).view().row_block(begin, end - begin).eigen().array();
                    const auto up = std::as_const(d.up).view().row_block(begin, end - begin).eigen().array();
                    d.y_peer.view().row_block(begin, end - begin).eigen().array() =
                        gate / (1 + (-gate).exp()) * up;
                });
            },
            d.y_peer);
    });
}

void gelu_row(const char* size, idx n_rows) {
    row(std::string("gelu/forward/f32/") + size, [n_rows](contest& c) {
        auto& d = c.hold<data>(n_rows);
        c.bytes(8.0 * static_cast<double>(d.y.size()), traffic::copy);
        c.ours([&d, ex = c.executor()] { activate(activation::gelu, d.gate, {}, d.y.view(), ex); }, d.y);
        c.against(
            "std_erf",
            [&d, ex = c.executor()] {
                ex(d.y.rows(), [&](idx begin, idx end, idx) {
                    for (idx i = begin; i < end; ++i)
                        for (idx j = 0; j < cols; ++j) {
                            const float x = d.gate(i, j);
                            d.y_peer(i, j) = 0.5F * x * (1 + std::erf(x * std::numbers::sqrt2_v<float> / 2));
                        }
                });
            },
            d.y_peer);
    });
}

const declare rows([] {
    gelu_row("2MB", 64);
    silu_mul_row("2MB", 42);
    silu_mul_row("256MB", 5461);
});

} // namespace
