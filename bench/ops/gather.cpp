// Rows of a table of 512 MB, far larger than any cache. Each call takes other rows, so none is still in a
// cache. vs_memcpy: a plain loop of copies. vs_row_reads: the limit, the same rows read ahead and not stored.
#include <sluice/ops/gather.hpp>

#include "../support/contest.hpp"

#include <cstring>
#include <numeric>

namespace {

using namespace sluice;
using namespace sluice::bench;

constexpr idx table_floats = 128 << 20, gathered_floats = 2 << 20;

struct data {
    explicit data(idx width)
        : table(uniform(table_floats / width, width, 1, 1)),
          y(gathered_floats / width, width),
          y_peer(y.rows(), width),
          order(static_cast<std::size_t>(table.rows())) {
        std::iota(order.begin(), order.end(), 0);
        std::uint64_t state = 1;
        for (std::size_t i = order.size(); i > 1; --i) {
            state = state * 6364136223846793005ULL + 1442695040888963407ULL;
            std::swap(order[i - 1], order[(state >> 33) % i]);
        }
    }
    // The rows of a caller's n-th call.
    std::span<const std::int32_t> rows(idx& n) const {
        const auto count = static_cast<std::size_t>(y.rows());
        const std::size_t first = static_cast<std::size_t>(n++) * count % order.size();
        return std::span(order).subspan(first, count);
    }

    tensor<float> table, y, y_peer;
    std::vector<std::int32_t> order;
    idx calls = 0, peer_calls = 0, reader_calls = 0;
};

void copy_rows(const data& d, std::span<const std::int32_t> rows, idx begin, idx end, float* y) {
    const auto bytes = static_cast<std::size_t>(d.y.cols()) * sizeof(float);
    for (idx i = begin; i < end; ++i)
        std::memcpy(y + i * d.y.cols(), d.table.row(rows[static_cast<std::size_t>(i)]), bytes);
}

void read_rows(const data& d, std::span<const std::int32_t> rows, idx begin, idx end) {
    using P = simd::pack<float, simd::native>;
    const idx width = d.y.cols(), ahead = std::max<idx>(1, 4096 / width);
    P sum[4] = {};
    for (idx i = begin; i < end; ++i) {
        const float* row = d.table.row(rows[static_cast<std::size_t>(i)]);
        const float* later = d.table.row(rows[static_cast<std::size_t>(std::min(i + ahead, end - 1))]);
        for (idx j = 0; j < width; j += P::size) {
            __builtin_prefetch(later + j);
            sum[j / P::size % 4] = sum[j / P::size % 4] + P::load(row + j);
        }
    }
    benchmark::DoNotOptimize((sum[0] + sum[1] + sum[2] + sum[3]).sum());
}

void gather_row(const char* name, idx width) {
    row(std::string("gather/f32/") + name, [width](contest& c) {
        auto& d = c.hold<data>(width);
        c.bytes(8.0 * static_cast<double>(d.y.size()), traffic::copy);
        c.rows(static_cast<double>(d.y.rows()));
        c.ours([&d, ex = c.executor()] { gather<simd::native, float>(d.table, d.rows(d.calls), d.y, ex); },
               d.y);
        c.against(
            "memcpy",
            [&d, ex = c.executor()] {
                const auto rows = d.rows(d.peer_calls);
                ex(d.y.rows(),
                   [&](idx begin, idx end, idx) { copy_rows(d, rows, begin, end, d.y_peer.data()); });
            },
            d.y_peer, 0);
        c.against("row_reads", [&d, ex = c.executor()] {
            const auto rows = d.rows(d.reader_calls);
            ex(d.y.rows(), [&](idx begin, idx end, idx) { read_rows(d, rows, begin, end); });
        });
    });
}

// Sums of 8 rows.
void gather_sum_row(const char* name, idx width) {
    row(std::string("gather_sum/f32/") + name, [width](contest& c) {
        auto& d = c.hold<data>(width);
        const idx n = d.y.rows() / 8;
        const auto y = d.y.view().row_block(0, n), y_peer = d.y_peer.view().row_block(0, n);
        c.bytes(4.0 * static_cast<double>(d.y.size()), traffic::read);
        c.rows(static_cast<double>(d.y.rows()));
        c.ours(
            [&d, y, ex = c.executor()] { gather_sum<simd::native, float>(d.table, d.rows(d.calls), y, ex); },
            y);
        c.against(
            "loop",
            [&d, n, y_peer, ex = c.executor()] {
                const auto rows = d.rows(d.peer_calls);
                ex(n, [&](idx begin, idx end, idx) {
                    for (idx i = begin; i < end; ++i) {
                        std::fill_n(y_peer.row(i), d.y.cols(), 0.0F);
                        for (idx r = 8 * i; r < 8 * (i + 1); ++r)
                            for (idx j = 0; j < d.y.cols(); ++j)
                                y_peer(i, j) += d.table(rows[static_cast<std::size_t>(r)], j);
                    }
                });
            },
            y_peer, 0);
    });
}

const declare rows([] {
    gather_sum_row("8_rows_1KB", 256);
    gather_sum_row("8_rows_8KB", 2048);
    gather_row("row_256B", 64);
    gather_row("row_2KB", 512);
    gather_row("row_8KB", 2048);
});

} // namespace
