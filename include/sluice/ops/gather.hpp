// Rows of a tensor by index: copied, summed, added to.
#pragma once

#include "../core/executor.hpp"
#include "../core/tensor_view.hpp"
#include "../kernels/elementwise.hpp"
#include "../kernels/gather.hpp"

namespace sluice {

// Throws input_error unless every index is a row.
inline void check_rows(std::span<const std::int32_t> rows, idx n_rows, std::string_view where) {
    for (std::size_t i = 0; i < rows.size(); ++i)
        if (rows[i] < 0 || rows[i] >= n_rows)
            SLUICE_THROW(input_error(std::string(where) + ": row " + std::to_string(rows[i]) + " at " +
                                     std::to_string(i) + " is outside the " + std::to_string(n_rows)));
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
        for (idx i = begin; i < end; ++i)
            simd::invoke(Arch{}, kernels::gather_sum{}, x.data(), x.row_stride(), rows.data() + i * n, n,
                         x.cols(), y.row(i));
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

} // namespace SLUICE_ISA
} // namespace sluice
