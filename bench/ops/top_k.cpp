// The k largest of each row: a router's choice of experts, and the rows of a long sequence.
#include <sluice/ops/top_k.hpp>

#include "../support/contest.hpp"

#include <numeric>

namespace {

using namespace sluice;
using namespace sluice::bench;

struct data {
    data(idx n_rows, idx n, idx k)
        : x(uniform(n_rows, n, 1, 1)), indices(n_rows, k), indices_peer(n_rows, k), all(n_rows, n) {}
    tensor<float> x;
    tensor<std::int32_t> indices, indices_peer, all;
};

// Larger first, of equal ones the lower index.
auto order_of(const float* x) {
    return [x](std::int32_t a, std::int32_t b) { return x[a] > x[b] || (x[a] == x[b] && a < b); };
}

void sort_partially(data& d, idx begin, idx end) {
    const idx k = d.indices.cols();
    for (idx i = begin; i < end; ++i) {
        std::int32_t* row = d.all.row(i);
        std::iota(row, row + d.x.cols(), 0);
        std::partial_sort(row, row + k, row + d.x.cols(), order_of(d.x.row(i)));
        std::copy_n(row, k, d.indices_peer.row(i));
    }
}
void select(data& d, idx begin, idx end) {
    const idx k = d.indices.cols();
    for (idx i = begin; i < end; ++i) {
        std::int32_t* row = d.all.row(i);
        std::iota(row, row + d.x.cols(), 0);
        std::nth_element(row, row + k - 1, row + d.x.cols(), order_of(d.x.row(i)));
        std::sort(row, row + k);
        std::copy_n(row, k, d.indices_peer.row(i));
    }
}

template <class Peer>
void top_k_row(const char* name, idx n_rows, idx n, idx k, top_k_order order, const char* peer, Peer f) {
    row(std::string("top_k/") + name, [=](contest& c) {
        auto& d = c.hold<data>(n_rows, n, k);
        c.rows(static_cast<double>(n_rows));
        c.ours([&d, order, ex = c.executor()] { top_k(d.x.view(), order, d.indices, ex); });
        auto other = [&d, f, ex = c.executor()] {
            ex(d.x.rows(), [&](idx begin, idx end, idx) { f(d, begin, end); });
        };
        c.against(peer, other);
        c.check(
            peer,
            [&d, other] {
                other();
                double wrong = 0;
                for (idx i = 0; i < d.indices.rows(); ++i)
                    wrong += std::equal(d.indices.row(i), d.indices.row(i) + d.indices.cols(),
                                        d.indices_peer.row(i))
                                 ? 0
                                 : 1;
                return wrong;
            },
            0);
    });
}

const declare rows([] {
    top_k_row("8of256", 512, 256, 8, top_k_order::by_value, "partial_sort", sort_partially);
    top_k_row("64of4096", 32, 4096, 64, top_k_order::by_value, "partial_sort", sort_partially);
    top_k_row("2048of16384", 4, 16384, 2048, top_k_order::by_index, "nth_element", select);
    top_k_row("2048of16384/sorted", 4, 16384, 2048, top_k_order::by_value, "partial_sort", sort_partially);
});

} // namespace
