// Rows of a table by token id, and the gradient of the table.
#pragma once

#include "../core/executor.hpp"
#include "../core/tensor_view.hpp"
#include "../kernels/elementwise.hpp"

namespace sluice {

// Throws input_error unless every id is a row of the table.
inline void check_ids(std::span<const token_id> ids, idx n_rows, std::string_view layer) {
    for (std::size_t i = 0; i < ids.size(); ++i)
        if (ids[i] < 0 || ids[i] >= n_rows)
            SLUICE_THROW(input_error(std::string(layer) + ": token id " + std::to_string(ids[i]) +
                                     " at row " + std::to_string(i) + " is outside the vocabulary of " +
                                     std::to_string(n_rows)));
}

inline namespace SLUICE_ISA {

// y (m, d) = table[ids]; ids are checked always.
template <class Arch = simd::native, class T>
void embed(std::span<const token_id> ids, in<T> table, tensor_view<T> y, executor_ref ex) {
    if (ex.dry()) return;
    check_ids(ids, table.rows(), "embedding");
    require_shape(y, static_cast<idx>(ids.size()), table.cols(), "embedding", "y");
    SLUICE_ASSERT(apart(y, table));
    ex(y.rows(), [&](idx begin, idx end, idx) {
        for (idx i = begin; i < end; ++i)
            std::copy_n(table.row(ids[static_cast<std::size_t>(i)]), y.cols(), y.row(i));
    });
}

// dtable[ids[i]] += dy(i) for rows in order. Workers share out columns, so the order of the sum never
// changes.
template <class Arch = simd::native, class T>
void embed_backward(std::span<const token_id> ids, in<T> dy, tensor_view<T> dtable, executor_ref ex) {
    if (ex.dry()) return;
    check_ids(ids, dtable.rows(), "embedding");
    require_shape(dy, static_cast<idx>(ids.size()), dtable.cols(), "embedding", "dy");
    SLUICE_ASSERT(apart(dtable, dy));
    constexpr idx strip = 64;
    ex(ceil_div(dy.cols(), strip), [&](idx begin, idx end, idx) {
        const idx col = begin * strip, cols = std::min(end * strip, dy.cols()) - col;
        for (idx i = 0; i < dy.rows(); ++i) {
            T* row = dtable.row(ids[static_cast<std::size_t>(i)]) + col;
            simd::invoke(Arch{}, kernels::add_elements{}, static_cast<const T*>(row), dy.row(i) + col, row,
                         cols);
        }
    });
}

} // namespace SLUICE_ISA
} // namespace sluice
