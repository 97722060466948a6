// Rotary position embedding of whole tensors: one table of cosines and sines for the rows of a call, then any
// number of tensors turned by it. Angles are computed in double from the absolute position.
#pragma once

#include "../core/arena.hpp"
#include "../core/batch.hpp"
#include "../core/executor.hpp"
#include "../kernels/rotary.hpp"

namespace sluice {

template <class T>
struct rotary_table {
    tensor_view<T> cosine, sine; // n_tokens x head_dim / 2

    static rotary_table bind(arena& a, idx n_tokens, idx head_dim) {
        auto cosine = a.take<T>(n_tokens, head_dim / 2);
        return {cosine, a.take<T>(n_tokens, head_dim / 2)};
    }
};

inline namespace SLUICE_ISA {

// Fills the table for the positions of a batch; base is the theta of published configs (10000, 500000, ...).
template <class Arch = simd::native, class T>
void fill_rotary_table(const batch& b, double base, rotary_table<T> table, arena& workspace,
                       executor_ref ex) {
    const idx half = table.cosine.cols();
    require_shape(table.cosine, b.rows(), half, "rotary", "cosine");
    require_shape(table.sine, b.rows(), half, "rotary", "sine");
    const arena::scope scope(workspace);
    double* frequency = workspace.take<double>(half); // turns per position
    double* turns = workspace.take<double>(ex.concurrency(), half).data();
    if (!ex.dry())
        for (idx i = 0; i < half; ++i)
            frequency[i] =
                std::pow(base, -static_cast<double>(i) / static_cast<double>(half)) / (2 * std::numbers::pi);
    for (idx s = 0; s < b.n_sequences(); ++s)
        ex(b.end(s) - b.begin(s), [&](idx begin, idx end, idx worker) {
            double* mine = turns + worker * half;
            for (idx i = b.begin(s) + begin; i < b.begin(s) + end; ++i) {
                const auto position = static_cast<double>(b.position(s, i));
                for (idx j = 0; j < half; ++j) mine[j] = position * frequency[j];
                simd::invoke(Arch{}, kernels::cos_sin_turns{}, static_cast<const double*>(mine),
                             table.cosine.row(i), table.sine.row(i), half);
            }
        });
}

// Turns every head of every row of x (n_tokens, n_heads * head_dim) in place. `backwards` is the transpose:
// what the gradient needs. Throws config_error for rotary_pairs::none: whoever has a config decides before.
template <class Arch = simd::native, class T>
void rotate(tensor_view<T> x, const rotary_table<T>& table, rotary_pairs pairs, bool backwards,
            executor_ref ex) {
    require(pairs == rotary_pairs::half_split || pairs == rotary_pairs::interleaved, "rotary",
            "pairs must be half_split or interleaved");
    const idx head_dim = 2 * table.cosine.cols();
    require_shape(x, table.cosine.rows(), x.cols(), "rotary", "x");
    require(head_dim > 0 && x.cols() % head_dim == 0, "rotary", "x must hold whole heads");
    require_shape(table.sine, table.cosine.rows(), table.cosine.cols(), "rotary", "sine");
    ex(x.rows(), [&](idx begin, idx end, idx) {
        for (idx i = begin; i < end; ++i)
            simd::invoke(Arch{}, kernels::rotate_row{}, x.row(i), x.cols() / head_dim, head_dim,
                         static_cast<const T*>(table.cosine.row(i)), static_cast<const T*>(table.sine.row(i)),
                         pairs, backwards);
    });
}

} // namespace SLUICE_ISA
} // namespace sluice
