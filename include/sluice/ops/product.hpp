// The loops around the micro-kernel: C = act(start + A B), cut into tasks and blocks that fit the caches.
//
// A task is a block of rows and a block of columns. For every 256 steps of k it brings B's columns into
// panels (where they are not packed already), copies the rows of A side by side, and multiplies; the sums
// wait in C, or beside the panels where there are many rows of packed ones.
#pragma once

#include "../core/arena.hpp"
#include "../core/executor.hpp"
#include "../kernels/activation.hpp"
#include "../kernels/gemm_few_rows.hpp"
#include "../kernels/widen.hpp"

#include <algorithm>
#include <optional>

namespace sluice {
inline namespace SLUICE_ISA {
namespace detail {

// What a matrix holds: the element of a plain one.
template <class W>
struct storage_type {
    using type = std::remove_const_t<W>;
};
template <class W>
requires is_packed<W>
struct storage_type<W> {
    using type = typename tensor_view<W>::storage;
};
template <class W>
using storage_of = typename storage_type<W>::type;

// B(k, n), whose columns are the rows of a matrix (y = x W^T) or which is that matrix itself (`by_rows`).
template <class T, class S>
struct product_operand {
    using element = typename element_of<const packed<S>>::type;
    element* data;
    idx stride;  // from row to row; from panel to panel where packed
    bool panels; // already packed
    bool by_rows = false;

    template <class W>
    product_operand(const tensor_view<W>& w) : data(w.data()), panels(is_packed<W>) {
        if constexpr (is_packed<W>)
            stride = w.panel_stride();
        else
            stride = w.row_stride();
    }
};

// A(i, k) = data[i * row + k * step].
template <class T>
struct product_rows {
    const T* data;
    idx row, step = 1;

    product_rows(const T* at, idx row_stride, idx k_stride = 1) : data(at), row(row_stride), step(k_stride) {}
    product_rows(in<T> x) : product_rows(x.data(), x.row_stride()) {}
};

// Part of C.
struct product_block {
    idx i, rows, j, cols;
};
// How C is cut: blocks of whole panels, and of rows where there are too few of those.
struct product_tasks {
    idx m, n;
    idx columns, n_columns, rows, n_rows; // of a task; tasks
    idx count() const { return n_columns * n_rows; }
    product_block at(idx task) const {
        const idx i = task % n_rows * rows, j = task / n_rows * columns;
        return {i, std::min(rows, m - i), j, std::min(columns, n - j)};
    }
};

// y = act(c), or act(c) * up in that form where there is one, for a block of them.
template <class Arch, class T>
void activate_block(const product_block& t, activation kind, const tensor_view<T>& c, in<T> up,
                    const tensor_view<T>& y, glu_form form = {}) {
    with_activation(kind, [&](auto which) {
        for (idx i = t.i; i < t.i + t.rows; ++i)
            simd::invoke(Arch{}, kernels::activation_forward<decltype(which)::value>{},
                         static_cast<const T*>(c.row(i) + t.j),
                         up.empty() ? static_cast<const T*>(nullptr) : up.row(i) + t.j, y.row(i) + t.j,
                         t.cols, form);
    });
}

template <class Arch, class T, class S>
struct product {
    product_rows<T> a;
    product_operand<T, S> b;
    tensor_view<T> c;
    idx k;
    const T* start = nullptr;
    idx start_row = 0;
    std::optional<activation> act{};
    bool grouped = false; // one of several in a region: nothing is prepared for all of its tasks

    // Panels that become panels of T piece by piece, but for few rows of bf16, which widens in registers.
    static constexpr bool widens = !std::is_same_v<S, T>;
    static constexpr bool in_registers = std::is_same_v<S, T> || std::is_same_v<S, bf16>;

    static constexpr idx cols = kernels::gemm_tile<T, Arch>::cols;
    static constexpr idx width = 16 * cols;                      // columns of a task: 512 KiB of B stay in L2
    static constexpr idx gap = 64 / static_cast<idx>(sizeof(T)); // keeps rows of A apart in the cache's sets
    // Rows of a tile, of A that are multiplied before the next are copied, and up to which bf16 is widened in
    // registers.
    static idx tile_rows() { return kernels::tile_rows<T>(Arch{}); }
    static idx height() { return 8 * tile_rows(); }

    using block = product_block;
    // What a worker multiplies with: A, or a copy of it, and memory.
    struct tools {
        product_rows<T> a;
        T *a_scratch, *b_scratch, *sums;
    };

    // The time goes into reading B: a task reads one panel from end to end.
    bool few_rows() const { return c.rows() <= tile_rows(); }
    // The columns of B, where they are not packed, are then read where they are.
    bool few_rows_unpacked() const { return few_rows() && !b.panels && !b.by_rows; }
    // Packed panels are read once for all rows, and what comes next is asked for meanwhile. Few tiles, whose
    // copy of A stays in L2 from the first panel to the last, take one panel after another from end to end.
    bool panel_by_panel() const { return in_registers && b.panels && !few_rows() && c.rows() <= height(); }
    bool few_tiles() const {
        return !grouped && panel_by_panel() && c.rows() <= 4 * tile_rows() &&
               c.rows() * (k + gap) <= most_copied;
    }
    static constexpr idx most_copied = idx{1} << 17;
    // Many rows of packed panels, of T: blocks of rows and columns whose sums stay in L2, side by side, until
    // the last step of k. In C, whose rows lie a power of two apart as often as not, few of its sets would
    // hold them all, and every step would read and write them from beyond.
    bool tall() const { return b.panels && !widens && c.rows() > height(); }
    static constexpr idx tall_panels = 8; // 512 KiB of B, beside 255 KiB of sums and 198 KiB of A
    static idx tall_rows() { return 20 * tile_rows(); } // 28 were no faster
    static constexpr idx sums_row = tall_panels * cols + gap;
    static constexpr idx tall_depth = 2048 / static_cast<idx>(sizeof(T)); // a tile's rows of A: 24 KiB of L1
    bool sums_wait() const { return tall() && k > tall_depth; }

    // Steps of k at a time: a panel of them is 32 KiB of floats. Few rows: packed panels in long runs, those
    // that are made in pieces that are multiplied while they are in L1.
    static constexpr idx deep = 256;
    idx depth() const {
        if (tall()) return tall_depth;
        if (!few_rows() || few_rows_unpacked()) return deep;
        return b.panels && in_registers ? 4 * deep : deep / 2;
    }
    idx most_panels() const {
        if (few_rows_unpacked()) return 4;
        // in a region of many products each changes place in memory often enough
        if (few_rows() && b.panels && grouped) return 8;
        if (few_rows() || few_tiles()) return 1;
        if (tall()) return tall_panels;
        return panel_by_panel() ? ceil_div(c.cols(), cols) : width / cols;
    }

    void run(arena& workspace, executor_ref ex) const {
        run(workspace, ex, [](const block&, const tools&) {});
    }
    // `then` follows each block of the result while it is in the caches, with what the worker had for it.
    template <class F>
    void run(arena& workspace, executor_ref ex, const F& then) const {
        const arena::scope scope(workspace);
        const idx m = c.rows(), workers = ex.concurrency();
        T* scratch = workspace.take<T>(workers, scratch_size()).data();
        T* copy =
            workspace.take<T>(b.panels ? std::min(std::min(m, 4 * tile_rows()) * (k + gap), most_copied) : 0);
        product_rows<T> rows = a;
        if (few_tiles() && !ex.dry()) {
            for (idx i = 0; i < m; ++i) std::copy_n(a.data + i * a.row, k, copy + i * (k + gap));
            rows = {copy, k + gap};
        }
        const product_tasks grid = tasks(workers == 1 ? 1 : 4 * workers); // so that workers end together
        ex(grid.count(), [&](idx begin, idx end, idx worker) {
            const tools with = tools_of(rows, scratch + worker * scratch_size());
            for (idx task = begin; task < end; ++task) {
                const block t = grid.at(task);
                multiply(t, with);
                then(t, with);
            }
        });
    }

    product_tasks tasks(idx wanted) const {
        const idx m = c.rows(), panels = ceil_div(c.cols(), cols);
        const idx even_share = ceil_div(panels, m > 4 * tile_rows() && !panel_by_panel() ? 1 : wanted);
        const idx task_panels = std::clamp<idx>(even_share, 1, most_panels());
        const idx n_tasks = ceil_div(panels, task_panels);
        const idx blocks = std::max(ceil_div(wanted, n_tasks), tall() ? ceil_div(m, tall_rows()) : 1);
        const idx rows = round_up(std::max<idx>(ceil_div(m, blocks), 96), tile_rows());
        return {m, c.cols(), task_panels * cols, n_tasks, rows, ceil_div(m, rows)};
    }
    // Elements that a worker needs; fewer rows never take more than many.
    idx scratch_size() const { return a_size() + b_size() + sums_size(); }
    tools tools_of(const product_rows<T>& rows, T* scratch) const {
        return {rows, scratch, scratch + a_size(), scratch + a_size() + b_size()};
    }
    idx a_row() const { return (tall() ? tall_depth : deep) + gap; }
    idx a_size() const { return c.cols() <= cols ? 0 : std::min(height(), c.rows()) * a_row(); }
    idx sums_size() const { return sums_wait() ? std::min(tall_rows(), c.rows()) * sums_row : 0; }
    idx b_size() const {
        const idx panels = ceil_div(c.cols(), cols);
        return needs_panels(c.rows()) ? std::min(deep, k) * std::min(width, panels * cols) : 0;
    }

    // Whether a task of so many rows reads B through panels of T made for it.
    bool needs_panels(idx rows) const {
        return b.panels ? !in_registers || (widens && rows > height()) : !few_rows_unpacked();
    }

    void multiply(const block& t, const tools& with) const {
        idx k0 = 0;
        do { // once even for k = 0, which leaves the start
            const idx n_k = std::min(depth(), k - k0);
            if (few_rows_unpacked()) {
                if constexpr (in_registers) rows_of_b(t, k0, n_k, with);
            } else if (needs_panels(t.rows)) {
                make_panels(t, k0, n_k, with.b_scratch);
                rows_of_a<T>(t, k0, n_k, with.b_scratch, n_k * cols, with);
            } else if constexpr (in_registers) {
                rows_of_a<S>(t, k0, n_k, b.data + t.j / cols * b.stride + k0 * cols, b.stride, with);
            }
            k0 += depth();
        } while (k0 < k);
        if (act) activate_block<Arch, T>(t, *act, c, {}, c);
    }

    void make_panels(const block& t, idx k0, idx n_k, T* out) const {
        if (n_k == 0) return;
        if constexpr (widens) {
            if (b.panels) {
                for (idx j = 0; j < t.cols; j += cols, out += n_k * cols)
                    simd::invoke(Arch{}, kernels::widen_panel<S>{}, b.data + (t.j + j) / cols * b.stride, k0,
                                 n_k, out);
                return;
            }
        }
        if constexpr (in_registers) {
            const S* source = b.by_rows ? b.data + k0 * b.stride + t.j : b.data + t.j * b.stride + k0;
            simd::invoke(Arch{}, kernels::gemm_pack{}, source, b.stride, !b.by_rows, n_k, t.cols, out);
        }
    }

    template <class P>
    void rows_of_a(const block& t, idx k0, idx n_k, const P* panels, idx panel_stride,
                   const tools& with) const {
        for (idx i = t.i; i < t.i + t.rows; i += height()) {
            const idx m = std::min(height(), t.i + t.rows - i);
            kernels::gemm_block_args<T, P> g{.a = with.a.data + i * with.a.row + k0 * with.a.step,
                                             .a_row = with.a.row,
                                             .a_k = with.a.step,
                                             .panels = panels,
                                             .panel_stride = panel_stride,
                                             .panel_row = cols,
                                             .start = nullptr,
                                             .start_row = 0,
                                             .c = c.row(i) + t.j,
                                             .c_row = c.row_stride(),
                                             .m = m,
                                             .n = t.cols,
                                             .k = n_k};
            set_start(g, i, t.j, k0);
            if (sums_wait()) wait_beside(g, with.sums + (i - t.i) * sums_row, k0);
            if (t.cols > cols && !few_rows()) copy_a(g, with.a_scratch);
            g.from_memory = b.panels && few_rows();
            if constexpr (std::is_same_v<P, S>)
                if (panel_by_panel()) g.next = few_tiles() || k0 + n_k < k ? panels + n_k * cols : panels;
            simd::invoke(Arch{}, kernels::gemm_block{}, g);
        }
    }

    void rows_of_b(const block& t, idx k0, idx n_k, const tools& with) const requires in_registers {
        kernels::gemm_few_rows_args<T, S> g{.a = with.a.data + t.i * with.a.row + k0,
                                            .a_row = with.a.row,
                                            .b = b.data + t.j * b.stride + k0,
                                            .b_row = b.stride,
                                            .start = nullptr,
                                            .start_row = 0,
                                            .c = c.row(t.i) + t.j,
                                            .c_row = c.row_stride(),
                                            .m = t.rows,
                                            .n = t.cols,
                                            .k = n_k};
        set_start(g, t.i, t.j, k0);
        if (t.cols > cols) {
            copy_rows(g, with.a_scratch);
            g.a = with.a_scratch;
        }
        simd::invoke(Arch{}, kernels::gemm_few_rows{}, g);
    }

    // Sums of earlier steps wait in C.
    template <class Args>
    void set_start(Args& g, idx i, idx j, idx k0) const {
        if (k0 > 0) {
            g.start = g.c;
            g.start_row = g.c_row;
        } else if (start != nullptr) {
            g.start = start + i * start_row + j;
            g.start_row = start_row;
        }
    }

    template <class P>
    void wait_beside(kernels::gemm_block_args<T, P>& g, T* sums, idx k0) const {
        if (k0 > 0) {
            g.start = sums;
            g.start_row = sums_row;
        }
        if (k0 + g.k < k) {
            g.c = sums;
            g.c_row = sums_row;
        }
    }

    template <class P>
    void copy_a(kernels::gemm_block_args<T, P>& g, T* scratch) const {
        if (g.a_k == 1) {
            copy_rows(g, scratch);
        } else {
            for (idx q = 0; q < g.k; ++q) std::copy_n(g.a + q * g.a_k, g.m, scratch + q * g.m);
            g.a_k = g.m;
        }
        g.a = scratch;
    }
    // Rows a power of two apart would share cache sets.
    template <class Args>
    void copy_rows(Args& g, T* scratch) const {
        for (idx i = 0; i < g.m; ++i) std::copy_n(g.a + i * g.a_row, g.k, scratch + i * a_row());
        g.a_row = a_row();
    }
};

// n products of one region, each with rows of its own: product_of(i), whose largest possible one is `worst`.
// `then` follows each block, with the number of its product. Workers are handed parts of equal work, not so
// many tasks: a product may have most of the rows, or none.
template <class T, class Worst, class F, class Then>
void run_products(idx n, const Worst& worst, const F& product_of, arena& workspace, executor_ref ex,
                  const Then& then) {
    const arena::scope scope(workspace);
    const idx workers = ex.concurrency();
    T* scratch = workspace.take<T>(workers, worst.scratch_size()).data();
    idx* before = workspace.take<idx>(n + 1); // work of the products before each
    if (ex.dry()) return;
    // few rows take the time that reading B takes
    auto work = [](const auto& p) { return p.c.empty() ? 0 : std::max(p.c.rows(), p.tile_rows()); };
    before[0] = 0;
    for (idx i = 0; i < n; ++i) before[i + 1] = before[i] + work(product_of(i));
    const idx all = before[n], parts = workers == 1 ? 1 : std::min(16 * workers, all);
    ex(parts, [&](idx begin, idx end, idx worker) {
        const idx from = all * begin / parts, to = all * end / parts;
        for (idx i = std::upper_bound(before, before + n + 1, from) - before - 1; i < n && before[i] < to;
             ++i) {
            const auto p = product_of(i);
            const idx mine = before[i + 1] - before[i];
            if (mine == 0) continue;
            const auto tasks = p.tasks(workers == 1 ? 1 : ceil_div(8 * workers * mine, all));
            const auto with = p.tools_of(p.a, scratch + worker * worst.scratch_size());
            for (idx task = 0; task < tasks.count(); ++task) {
                const idx at = before[i] + task * mine / tasks.count();
                if (at < from || at >= to) continue;
                const auto t = tasks.at(task);
                p.multiply(t, with);
                then(i, t, with);
            }
        }
    });
}

} // namespace detail
} // namespace SLUICE_ISA
} // namespace sluice
