// Products with quantised matrices in integers: rows of x become bytes once, for all products that read them;
// then the loops around the micro-kernel, as in product.hpp.
#pragma once

#include "../kernels/gemm_bytes.hpp"
#include "product.hpp"

namespace sluice {
inline namespace SLUICE_ISA {
namespace detail {

// Rows of x as bytes, in memory of the caller's.
struct byte_rows {
    const std::byte* data = nullptr;
    idx n = 0, stride = 0;
    kernels::byte_row_layout layout{};

    idx rows() const { return n; }
    idx cols() const { return layout.cols; }
    bool empty() const { return n == 0; }
    byte_rows row_block(idx i, idx count) const { return {data + i * stride, count, stride, layout}; }
};

template <class Arch, class S>
byte_rows make_byte_rows(const tensor_view<const float>& x, arena& workspace, executor_ref ex) {
    using format = panel_format<S>;
    const kernels::byte_row_layout layout{x.cols(), format::group};
    const idx stride = round_up(layout.bytes(), 64) + 64; // rows a power of two apart would share cache sets
    auto* const memory = workspace.take<std::byte>(x.rows() * stride);
    if (ex.dry()) return {nullptr, x.rows(), stride, layout};
    auto some = [&](idx begin, idx end, idx) {
        for (idx i = begin; i < end; ++i)
            simd::invoke(Arch{}, kernels::quantise_row{}, x.row(i), layout, int{format::zero},
                         memory + i * stride);
    };
    if (x.size() < (idx{1} << 15)) // done before another worker would have begun
        some(0, x.rows(), 0);
    else
        ex(x.rows(), some);
    return {memory, x.rows(), stride, layout};
}

template <class S>
struct byte_operand {
    const std::byte* data;
    idx stride; // from panel to panel

    template <class W>
    byte_operand(const tensor_view<W>& w) : data(w.data()), stride(w.panel_stride()) {}
};

// C = act(start + A B), as product is.
template <class Arch, class S>
struct byte_product {
    byte_rows a;
    byte_operand<S> b;
    tensor_view<float> c;
    idx k;
    const float* start = nullptr;
    idx start_row = 0;
    std::optional<activation> act{};
    bool grouped = false;

    using format = panel_format<S>;
    using block = product_block;
    struct tools {
        byte_rows a;
        float *a_scratch, *b_scratch; // none
    };
    static constexpr idx cols = panel_cols<float>;
    // Steps of k at a time, of many rows: 32 KiB of codes stay in L1.
    static constexpr idx deep = 1024;

    static idx tile_rows() {
        return simd::lanes<float>(Arch{}) == 16 ? kernels::byte_most_rows<S>(simd::avx512{})
                                                : kernels::byte_most_rows<S>(simd::sse2{});
    }
    bool few_rows() const { return c.rows() <= tile_rows(); }
    idx scratch_size() const { return 0; }
    tools tools_of(const byte_rows& rows, float*) const { return {rows, nullptr, nullptr}; }

    product_tasks tasks(idx wanted) const {
        const idx m = c.rows(), panels = ceil_div(c.cols(), cols);
        // codes of 512 rows and a block of C stay in L2
        const idx task_panels = std::clamp<idx>(ceil_div(panels, wanted), 1, few_rows() && !grouped ? 1 : 8);
        const idx n_tasks = ceil_div(panels, task_panels);
        const idx rows = round_up(std::clamp<idx>(ceil_div(m, ceil_div(wanted, n_tasks)), 96, 480), 12);
        return {m, c.cols(), task_panels * cols, n_tasks, rows, ceil_div(m, rows)};
    }

    void run(arena&, executor_ref ex) const {
        run_tasks(ex, [](const block&, const tools&) {});
    }
    template <class F>
    void run(arena&, executor_ref ex, const F& then) const {
        run_tasks(ex, then);
    }

    void multiply(const block& t, const tools& with) const {
        // few rows: one panel after another from end to end
        const idx width = t.rows * k <= idx{1} << 18 ? cols : t.cols;
        for (idx j = 0; j < t.cols; j += width)
            columns({t.i, t.rows, t.j + j, std::min(width, t.cols - j)}, with.a);
        if (act) activate_block<Arch, float>(t, *act, c, {}, c);
    }

private:
    void columns(const block& t, const byte_rows& all) const {
        const byte_rows rows = all.row_block(t.i, t.rows);
        const std::byte* head = b.data + t.j / cols * b.stride;
        const idx n_blocks = ceil_div(k, format::block), step = few_rows() ? n_blocks : deep / format::block;
        idx at = 0;
        do { // once even for k = 0, which leaves the start
            const idx group = at * format::block / format::group;
            kernels::gemm_bytes_args<S> g{.codes = rows.data + at * format::block,
                                          .scales = rows.data + rows.layout.scales() + 4 * group,
                                          .starts = rows.data + rows.layout.starts() + 4 * group,
                                          .a_row = rows.stride,
                                          .panels =
                                              head + format::head + at * (format::block_head + format::codes),
                                          .heads = head,
                                          .panel_stride = b.stride,
                                          .start = nullptr,
                                          .start_row = 0,
                                          .c = c.row(t.i) + t.j,
                                          .c_row = c.row_stride(),
                                          .m = t.rows,
                                          .n = t.cols,
                                          .n_blocks = std::min(step, n_blocks - at)};
            if (at > 0) { // sums of earlier steps wait in C
                g.start = g.c;
                g.start_row = g.c_row;
            } else if (start != nullptr) {
                g.start = start + t.i * start_row + t.j;
                g.start_row = start_row;
            }
            simd::invoke(Arch{}, kernels::gemm_bytes{}, g);
            at += step;
        } while (at < n_blocks);
    }

    template <class F>
    void run_tasks(executor_ref ex, const F& then) const {
        const idx workers = ex.concurrency();
        const product_tasks grid = tasks(workers == 1 ? 1 : 4 * workers); // so that workers end together
        const tools with = tools_of(a, nullptr);
        ex(grid.count(), [&](idx begin, idx end, idx) {
            for (idx task = begin; task < end; ++task) {
                const block t = grid.at(task);
                multiply(t, with);
                then(t, with);
            }
        });
    }
};

} // namespace detail
} // namespace SLUICE_ISA
} // namespace sluice
