// Matrices in the order a product reads them: panels of `panel_cols` rows of W, element k of all of them side
// by side. A storage type like float or bf16: tensor_view<packed<bf16>> is a view of a whole packed matrix,
// so a params set of packed matrices is `linear_params<packed<bf16>>`. The order does not depend on the
// instruction set. Rows beyond the last are zero.
//
// In a bf16 panel, columns i and i + 16 share a 32-bit word, which makes widening a shift and a mask.
#pragma once

#include "arena.hpp"

namespace sluice {

template <class S>
struct packed {};

template <class S>
struct compute<packed<S>> {
    using type = compute_type<S>;
};

template <class W>
constexpr bool is_packed = false;
template <class S>
inline constexpr bool is_packed<packed<S>> = true;
template <class S>
inline constexpr bool is_packed<const packed<S>> = true;

// Columns of a panel: 128 bytes of what is computed with, two registers of the widest kind.
template <class T>
constexpr idx panel_cols = 128 / static_cast<idx>(sizeof(T));

// The element that memory of W holds: S or const S for packed<S>, W itself otherwise.
template <class W>
struct element_of {
    using type = W;
};
template <class S>
struct element_of<packed<S>> {
    using type = S;
};
template <class S>
struct element_of<const packed<S>> {
    using type = const S;
};

// Elements of a panel.
template <class S>
struct panel_size {
    static constexpr idx of(idx cols) { return panel_cols<compute_type<S>> * cols; }
};
template <class W>
struct stored {};
template <class S>
struct stored<packed<S>> {
    using type = S;
};

template <class W>
requires is_packed<W>
class tensor_view<W> {
public:
    using element = typename element_of<W>::type;
    using value_type = std::remove_const_t<W>;
    using storage = typename stored<value_type>::type;
    static constexpr idx panel = panel_cols<compute_type<W>>;

    constexpr tensor_view() = default;
    constexpr tensor_view(element* data, idx rows, idx cols) : data_(data), rows_(rows), cols_(cols) {}

    constexpr element* data() const { return data_; }
    constexpr idx rows() const { return rows_; }
    constexpr idx cols() const { return cols_; }
    constexpr idx size() const { return rows_ * cols_; }
    constexpr bool empty() const { return rows_ == 0 || cols_ == 0; }
    // Elements in memory, padding included.
    static constexpr idx elements(idx rows, idx cols) {
        return ceil_div(rows, panel) * panel_size<storage>::of(cols);
    }
    // From panel to panel.
    constexpr idx panel_stride() const { return panel_size<storage>::of(cols_); }

    constexpr operator tensor_view<const W>() const requires(!std::is_const_v<W>) {
        return {data_, rows_, cols_};
    }

private:
    element* data_ = nullptr;
    idx rows_ = 0, cols_ = 0;
};

} // namespace sluice
