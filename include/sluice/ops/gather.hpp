// Rows of a tensor by index: copied, summed, added to; and of a table by token id, with the gradient of the
// table.
#pragma once

#include "../core/executor.hpp"
#include "../core/tensor_view.hpp"
#include "../kernels/elementwise.hpp"
#include "../kernels/gather.hpp"
#include "quantise.hpp"

namespace sluice {

// Throws input_error unless every index is a row.
inline void check_rows(std::span<const std::int32_t> rows, idx n_rows, std::string_view where) {
    std::uint32_t most = 0; // one comparison, that registers hold many of; a negative row is large
    for (const std::int32_t r : rows) most = std::max(most, static_cast<std::uint32_t>(r));
    if (rows.empty() || static_cast<idx>(most) < n_rows) return;
    for (std::size_t i = 0; i < rows.size(); ++i)
        if (rows[i] < 0 || rows[i] >= n_rows)
            SLUICE_THROW(input_error(std::string(where) + ": row " + std::to_string(rows[i]) + " at " +
                                     std::to_string(i) + " is outside the " + std::to_string(n_rows)));
}

// Throws input_error unless every id is a row of the table.
inline void check_ids(std::span<const token_id> ids, idx n_rows, std::string_view layer) {
    for (std::size_t i = 0; i < ids.size(); ++i)
        if (ids[i] < 0 || ids[i] >= n_rows)
            SLUICE_THROW(input_error(std::string(layer) + ": token id " + std::to_string(ids[i]) +
                                     " at row " + std::to_string(i) + " is outside the vocabulary of " +
                                     std::to_string(n_rows)));
}

inline namespace SLUICE_ISA {

// y(i) = x(rows[i]); rows are checked always.
template <class Arch = simd::native, class T>
void gather(in<T> x, std::span<const std::int32_t> rows, tensor_view<T> y, executor_ref ex) {
    if (ex.dry()) return;
    check_rows(rows, x.rows(), "gather");
    require_shape(y, static_cast<idx>(rows.size()), x.cols(), "gather", "y");
    SLUICE_ASSERT(apart(y, x));
    ex(y.rows(), [&](idx begin, idx end, idx) {
        simd::invoke(Arch{}, kernels::gather_rows{}, x.data(), x.row_stride(), rows.data() + begin,
                     end - begin, x.cols(), y.row(begin), y.row_stride());
    });
}

// y(i) = sum over j of x(rows[i * n + j]), in order, with n = rows.size() / y.rows(); rows are checked
// always.
template <class Arch = simd::native, class T>
void gather_sum(in<T> x, std::span<const std::int32_t> rows, tensor_view<T> y, executor_ref ex) {
    if (ex.dry()) return;
    check_rows(rows, x.rows(), "gather_sum");
    require_shape(y, y.rows(), x.cols(), "gather_sum", "y");
    SLUICE_ASSERT(apart(y, x));
    const idx n = y.rows() == 0 ? 0 : static_cast<idx>(rows.size()) / y.rows();
    require(n * y.rows() == static_cast<idx>(rows.size()), "gather_sum",
            "rows must be the same number for every output");
    ex(y.rows(), [&](idx begin, idx end, idx) {
        simd::invoke(Arch{}, kernels::gather_sum{}, x.data(), x.row_stride(), rows.data() + begin * n, n,
                     x.cols(), y.row(begin), y.row_stride(), end - begin);
    });
}

// y(rows[i]) += x(i); rows rise and are checked always.
template <class Arch = simd::native, class T>
void add_to_rows(in<T> x, std::span<const std::int32_t> rows, tensor_view<T> y, executor_ref ex) {
    if (ex.dry()) return;
    check_rows(rows, y.rows(), "add_to_rows");
    require_shape(x, static_cast<idx>(rows.size()), y.cols(), "add_to_rows", "x");
    for (std::size_t i = 1; i < rows.size(); ++i)
        require(rows[i] > rows[i - 1], "add_to_rows", "rows must rise"); // or workers would meet
    ex(x.rows(), [&](idx begin, idx end, idx) {
        for (idx i = begin; i < end; ++i) {
            T* const to = y.row(rows[static_cast<std::size_t>(i)]);
            simd::invoke(Arch{}, kernels::add_elements{}, static_cast<const T*>(to), x.row(i), to, y.cols());
        }
    });
}

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

// The same of a table stored smaller, or packed.
template <class Arch = simd::native, class T, class W>
requires(!std::is_same_v<std::remove_const_t<W>, T>) void embed(std::span<const token_id> ids,
                                                                const tensor_view<W>& table, tensor_view<T> y,
                                                                executor_ref ex) {
    if (ex.dry()) return;
    check_ids(ids, table.rows(), "embedding");
    require_shape(y, static_cast<idx>(ids.size()), table.cols(), "embedding", "y");
    ex(y.rows(), [&](idx begin, idx end, idx) {
        for (idx i = begin; i < end; ++i) {
            const idx row = ids[static_cast<std::size_t>(i)];
            if constexpr (is_packed<W>)
                unpack_row(table, row, y.row(i));
            else
                for (idx k = 0; k < y.cols(); ++k) y(i, k) = to_float(table(row, k));
        }
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
