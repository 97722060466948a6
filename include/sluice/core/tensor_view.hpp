// A matrix somebody else owns: pointer, rows, columns, and the distance between rows. Row-major, last stride
// one; the one layout of the library. Tensors of higher rank are kept as rows: heads stand consecutively in a
// row, experts in consecutive blocks of rows.
//
// Any row-major Eigen matrix, Map, Ref or block with inner stride one converts to it implicitly; this header
// does not need Eigen for that. `.eigen()` (include core/eigen.hpp) gives an Eigen::Map back.
#pragma once

#include "error.hpp"

#include <algorithm>
#include <concepts>
#include <span>

namespace sluice {

// What an Eigen dense expression with direct access looks like from outside.
template <class M>
concept eigen_like = requires(M& m) {
    typename std::remove_cvref_t<M>::Scalar;
    { std::remove_cvref_t<M>::IsRowMajor } -> std::convertible_to<int>;
    { std::remove_cvref_t<M>::IsVectorAtCompileTime } -> std::convertible_to<int>;
    { m.rows() } -> std::convertible_to<idx>;
    { m.cols() } -> std::convertible_to<idx>;
};

template <class T>
class tensor_view {
public:
    using value_type = std::remove_const_t<T>;

    constexpr tensor_view() = default;
    constexpr tensor_view(T* data, idx rows, idx cols) : tensor_view(data, rows, cols, cols) {}
    constexpr tensor_view(T* data, idx rows, idx cols, idx row_stride)
        : data_(data), rows_(rows), cols_(cols), row_stride_(row_stride) {
        if (rows < 0 || cols < 0 || (rows > 1 && row_stride < cols)) bad_shape();
    }
    // A span is one row.
    constexpr tensor_view(std::span<T> row)
        : data_(row.data()), rows_(1), cols_(static_cast<idx>(row.size())), row_stride_(cols_) {}

    template <eigen_like M>
    tensor_view(M&& m) : data_(nullptr), rows_(m.rows()), cols_(m.cols()), row_stride_(m.cols()) {
        using matrix = std::remove_cvref_t<M>;
        static_assert(std::is_same_v<typename matrix::Scalar, value_type>,
                      "sluice: this tensor has another scalar type than the Eigen matrix");
        static_assert(
            requires {
                m.data();
                m.outerStride();
                m.innerStride();
            },
            "sluice: an Eigen expression has no memory of its own; evaluate it into a row-major matrix "
            "first");
        static_assert(
            bool(matrix::IsRowMajor) || bool(matrix::IsVectorAtCompileTime),
            "sluice: tensors are row-major; use Eigen::Matrix<T, Dynamic, Dynamic, Eigen::RowMajor>");
        static_assert(matrix::InnerStrideAtCompileTime == 1,
                      "sluice: tensors need inner stride 1; a column or a strided Map has to be copied");
        static_assert(std::is_const_v<T> || !std::is_const_v<std::remove_pointer_t<decltype(m.data())>>,
                      "sluice: a const Eigen matrix converts to tensor_view<const T> only");
        data_ = m.data();
        if constexpr (bool(matrix::IsRowMajor)) row_stride_ = m.outerStride();
        if (rows_ > 1 && row_stride_ < cols_) bad_shape();
    }

    constexpr T* data() const { return data_; }
    constexpr idx rows() const { return rows_; }
    constexpr idx cols() const { return cols_; }
    constexpr idx row_stride() const { return row_stride_; }
    constexpr idx size() const { return rows_ * cols_; }
    constexpr bool empty() const { return rows_ == 0 || cols_ == 0; }
    constexpr bool contiguous() const { return rows_ <= 1 || row_stride_ == cols_; }

    constexpr T* row(idx i) const { return data_ + i * row_stride_; }
    constexpr T& operator()(idx i, idx j) const { return data_[i * row_stride_ + j]; }

    // Rows [first, first + n), columns [first, first + n). A null view (see arena) stays null.
    constexpr tensor_view row_block(idx first, idx n) const {
        SLUICE_ASSERT(first >= 0 && n >= 0 && first + n <= rows_);
        return {shifted(first * row_stride_), n, cols_, row_stride_};
    }
    constexpr tensor_view col_block(idx first, idx n) const {
        SLUICE_ASSERT(first >= 0 && n >= 0 && first + n <= cols_);
        return {shifted(first), rows_, n, row_stride_};
    }

    constexpr operator tensor_view<const T>() const requires(!std::is_const_v<T>) {
        return {data_, rows_, cols_, row_stride_};
    }

    // An Eigen::Map on the same memory; defined in core/eigen.hpp.
    template <class = void>
    auto eigen() const;

private:
    constexpr T* shifted(idx n) const { return data_ == nullptr ? nullptr : data_ + n; }
    [[noreturn]] void bad_shape() const {
        SLUICE_THROW(config_error("tensor_view: " + std::to_string(rows_) + " x " + std::to_string(cols_) +
                                  " with row stride " + std::to_string(row_stride_) + " is no shape"));
    }

    T* data_ = nullptr;
    idx rows_ = 0;
    idx cols_ = 0;
    idx row_stride_ = 0;
};

// Deduces T from any view argument, so that an op written for tensor_view<const T> accepts tensor_view<T>
// and Eigen matrices.
template <class T>
using in = std::type_identity_t<tensor_view<const T>>;

inline std::string shape_text(idx rows, idx cols) {
    return std::to_string(rows) + " x " + std::to_string(cols);
}

// Throws unless `given` has the expected shape; names the layer, the tensor and both shapes.
template <class T>
void require_shape(const tensor_view<T>& given, idx rows, idx cols, std::string_view layer,
                   std::string_view tensor) {
    if (given.rows() != rows || given.cols() != cols)
        SLUICE_THROW(config_error(std::string(layer) + ": " + std::string(tensor) + " must be " +
                                  shape_text(rows, cols) + ", is " + shape_text(given.rows(), given.cols())));
}

// Sets every element.
template <class T>
void fill(const tensor_view<T>& t, std::type_identity_t<T> value) {
    for (idx i = 0; i < t.rows(); ++i) std::fill_n(t.row(i), t.cols(), value);
}

// True when the two views share an element. Columns side by side in one matrix share none.
template <class A, class B>
bool overlap(const tensor_view<A>& a, const tensor_view<B>& b) {
    if (a.rows() > b.rows()) return overlap(b, a); // the walk below is over a's rows
    if (a.empty() || b.empty() || a.data() == nullptr || b.data() == nullptr) return false;
    auto address = [](const auto* p) { return reinterpret_cast<std::uintptr_t>(p); };
    const std::uintptr_t first = address(b.data()), last = address(b.row(b.rows() - 1) + b.cols());
    const auto width = static_cast<std::uintptr_t>(b.cols()) * sizeof(B);
    const auto stride = std::max(width, static_cast<std::uintptr_t>(b.row_stride()) * sizeof(B));
    if (address(a.row(a.rows() - 1) + a.cols()) <= first || last <= address(a.data())) return false;
    for (idx i = 0; i < a.rows(); ++i) {
        const std::uintptr_t from = address(a.row(i)), to = address(a.row(i) + a.cols());
        if (to <= first || last <= from) continue;
        // the first of b's rows that ends behind `from`
        const std::uintptr_t row =
            from < first + width ? first : first + ((from - first - width) / stride + 1) * stride;
        if (row < to) return true;
    }
    return false;
}

// Conditions of assertions: an output that may not overlap the inputs, and one that may also be an input.
template <class A, class... B>
bool apart(const tensor_view<A>& out, const tensor_view<B>&... ins) {
    return (!overlap(out, ins) && ...);
}
template <class A, class... B>
bool apart_or_same(const tensor_view<A>& out, const tensor_view<B>&... ins) {
    auto same = [&](const auto& t) {
        return t.data() == out.data() && (out.rows() <= 1 || t.row_stride() == out.row_stride());
    };
    return ((same(ins) || !overlap(out, ins)) && ...);
}

} // namespace sluice
