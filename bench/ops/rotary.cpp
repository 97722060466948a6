// Rotary positions of 64 heads of 64, in place, in the caches (2 MB loaded and stored together) and out of
// them (256 MB). The table is made once; it is a 64th of the tensor.
#include <sluice/core/eigen.hpp>
#include <sluice/ops/rotary.hpp>

#include "../support/contest.hpp"

namespace {

using namespace sluice;
using namespace sluice::bench;

constexpr idx n_heads = 64, head_dim = 64, half = head_dim / 2;

struct data {
    explicit data(idx n_tokens)
        : x(uniform(n_tokens, n_heads * head_dim, 1, 1)),
          x_peer(uniform(n_tokens, n_heads * head_dim, 1, 1)),
          cosine(n_tokens, half),
          sine(n_tokens, half),
          table{cosine.view(), sine.view()} {
        const batch b = batch::one(n_tokens);
        auto fill_table = [&](arena& workspace, executor_ref ex) {
            fill_rotary_table(b, 10000, table, workspace, ex);
        };
        arena workspace = workspace_for(1, fill_table);
        fill_table(workspace, {});
    }
    tensor<float> x, x_peer, cosine, sine;
    rotary_table<float> table;
};

// Some rows of fresh data against the formula in double.
double error_of(data& d) {
    fill_uniform(d.x, 1, 1);
    rotate(d.x.view(), d.table, rotary_pairs::half_split, false, {});
    tensor<float> before = uniform(d.x.rows(), d.x.cols(), 1, 1);
    difference apart;
    for (const idx i : {idx{0}, d.x.rows() / 2, d.x.rows() - 1})
        for (idx h = 0; h < n_heads; ++h)
            for (idx j = 0; j < half; ++j) {
                const double angle =
                    static_cast<double>(i) * std::pow(10000.0, -static_cast<double>(j) / half);
                const double a = static_cast<double>(before(i, h * head_dim + j));
                const double b = static_cast<double>(before(i, h * head_dim + half + j));
                apart.add(static_cast<double>(d.x(i, h * head_dim + j)),
                          a * std::cos(angle) - b * std::sin(angle));
                apart.add(static_cast<double>(d.x(i, h * head_dim + half + j)),
                          a * std::sin(angle) + b * std::cos(angle));
            }
    return apart.relative();
}

void rotate_by_eigen(data& d, executor_ref ex) {
    ex(d.x_peer.rows(), [&](idx begin, idx end, idx) {
        for (idx i = begin; i < end; ++i) {
            const Eigen::Map<const Eigen::Array<float, 1, half>> cosine(d.cosine.row(i)), sine(d.sine.row(i));
            for (idx h = 0; h < n_heads; ++h) {
                Eigen::Map<Eigen::Array<float, 1, half>> low(d.x_peer.row(i) + h * head_dim);
                Eigen::Map<Eigen::Array<float, 1, half>> high(d.x_peer.row(i) + h * head_dim + half);
                const Eigen::Array<float, 1, half> a = low, b = high;
                low = a * cosine - b * sine;
                high = a * sine + b * cosine;
            }
        }
    });
}

void rotary_row(const char* size, idx n_tokens) {
    row(std::string("rotary/half_split/f32/") + size, [n_tokens](contest& c) {
        auto& d = c.hold<data>(n_tokens);
        c.bytes(8.0 * static_cast<double>(d.x.size()), traffic::update);
        c.ours([&d, ex = c.executor()] { rotate(d.x.view(), d.table, rotary_pairs::half_split, false, ex); });
        c.check(
            "the formula", [&d] { return error_of(d); }, 1e-5);
        c.against("eigen", [&d, ex = c.executor()] { rotate_by_eigen(d, ex); });
    });
}

const declare rows([] {
    rotary_row("2MB", 64);
    rotary_row("256MB", 8192);
});

} // namespace
