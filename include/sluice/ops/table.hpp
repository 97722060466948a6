// Large memories looked up by row: tables of floats or of smaller numbers with scales, whole or in parts, and
// the gradient of a table, which holds the rows that were touched and no others.
//
// A table is a view: a tensor_view, scaled_table, sharded_table, or a class with the members rows(), cols(),
// prefetch(rows, ex) and look_up<Arch>(rows, y, ex), such as table_ring.
#pragma once

#include "../core/params.hpp"
#include "../kernels/table.hpp"
#include "gather.hpp"

namespace sluice {

// Elements of S (int8, fp8) with scales: one for each of scale.cols() equal parts of a row. Views with longer
// row strides let rows and their scales lie side by side.
template <class S, class Scale = float>
struct scaled_table {
    tensor_view<S> elements;                                                       // rows x cols
    tensor_view<std::conditional_t<std::is_const_v<S>, const Scale, Scale>> scale; // rows x parts

    idx rows() const { return elements.rows(); }
    idx cols() const { return elements.cols(); }
};

// Parts of a table one behind another: the first has rows [0, n), the second those from n on. Cut where heads
// begin, each head is in one part; cut anywhere, rows are spread.
template <class Table>
struct sharded_table {
    std::span<const Table> parts;

    idx rows() const {
        idx n = 0;
        for (const Table& t : parts) n += t.rows();
        return n;
    }
    idx cols() const { return parts.empty() ? 0 : parts.front().cols(); }
};

// Sums for rows that were touched, in the order in which they first were. `capacity` rows are possible.
template <class T>
class row_gradient {
public:
    using value_type = T;

    static row_gradient bind(arena& a, idx capacity, idx cols) {
        row_gradient g;
        idx n_cells = 2;
        while (n_cells < 2 * capacity) n_cells *= 2;
        g.values_ = a.take<T>(capacity, cols);
        g.rows_ = a.take<std::int32_t>(1, capacity);
        g.cells_ = a.take<std::int32_t>(1, n_cells);
        g.count_ = a.take<idx>(1, 1);
        if (!a.dry()) {
            fill(g.cells_, 0);
            *g.count_.data() = 0;
        }
        return g;
    }

    idx capacity() const { return values_.rows(); }
    idx rows() const { return count_.data() == nullptr ? capacity() : count_(0, 0); }
    idx cols() const { return values_.cols(); }
    idx size() const { return rows() * cols(); }
    bool empty() const { return capacity() == 0; }
    std::span<const std::int32_t> touched() const { return {rows_.data(), static_cast<std::size_t>(rows())}; }
    T* row(idx slot) const { return values_.row(slot); }
    // The sums of the touched rows, as a matrix.
    operator tensor_view<T>() const { return values_.row_block(0, rows()); }
    operator tensor_view<const T>() const { return values_.row_block(0, rows()); }

    void clear() const {
        for (idx slot = rows() - 1; slot >= 0; --slot) forget(slot);
        *count_.data() = 0;
    }

    // slots[i] = where the sums of rows[i] are; new rows start at zero. Throws capacity_error, and changes
    // nothing, where there are too many.
    void find(std::span<const std::int32_t> rows, std::int32_t* slots) const {
        const idx before = this->rows();
        for (std::size_t i = 0; i < rows.size(); ++i) {
            idx cell = first_cell(rows[i]);
            while (cells_(0, cell) != 0 && rows_(0, cells_(0, cell) - 1) != rows[i])
                cell = (cell + 1) & (cells_.cols() - 1);
            if (cells_(0, cell) == 0) {
                idx& count = *count_.data();
                if (count == capacity()) {
                    for (; count > before; --count) forget(count - 1);
                    SLUICE_THROW(capacity_error("row_gradient", capacity() + 1, capacity(), "rows"));
                }
                std::fill_n(values_.row(count), cols(), T(0));
                rows_(0, count) = rows[i];
                cells_(0, cell) = static_cast<std::int32_t>(++count);
            }
            slots[i] = cells_(0, cell) - 1;
        }
    }

private:
    idx first_cell(std::int32_t row) const {
        const auto mixed = static_cast<std::uint32_t>(row) * 0x9E3779B1U; // Fibonacci hashing
        return static_cast<idx>((mixed ^ mixed >> 15) & static_cast<std::uint32_t>(cells_.cols() - 1));
    }
    // Of the newest first: then no later row is looked for across its cell.
    void forget(idx slot) const {
        idx cell = first_cell(rows_(0, slot));
        while (cells_(0, cell) != slot + 1) cell = (cell + 1) & (cells_.cols() - 1);
        cells_(0, cell) = 0;
    }

    tensor_view<T> values_;
    tensor_view<std::int32_t> rows_, cells_;
    tensor_view<idx> count_;
};

template <class T>
void fill(const row_gradient<T>& g, std::type_identity_t<T> value) {
    require(value == T(0), "row_gradient", "only zero can stand for all rows");
    g.clear();
}

namespace detail {

template <class Table>
struct table_kind {
    static Table bind(arena&, idx, idx, idx) { return {}; } // the caller's
};
template <class W>
struct table_kind<tensor_view<W>> {
    static tensor_view<W> bind(arena& a, idx rows, idx cols, idx) { return a.take<W>(rows, cols); }
};
template <class S, class Scale>
struct table_kind<scaled_table<S, Scale>> {
    static scaled_table<S, Scale> bind(arena& a, idx rows, idx cols, idx) {
        // fp8 as DeepSeek-V4.1 has it: a scale for 32 numbers; int8: one for a row
        const idx parts = std::is_same_v<std::remove_const_t<S>, std::int8_t> ? 1 : ceil_div(cols, 32);
        scaled_table<S, Scale> t;
        t.elements = a.take<S>(rows, cols);
        t.scale = a.take<typename std::remove_reference_t<decltype(t.scale(0, 0))>>(rows, parts);
        return t;
    }
};
template <class T>
struct table_kind<row_gradient<T>> {
    static row_gradient<T> bind(arena& a, idx rows, idx cols, idx max_touched) {
        return row_gradient<T>::bind(a, max_touched > 0 ? std::min(max_touched, rows) : rows, cols);
    }
};

} // namespace detail

// Memory for a table of Table's kind. A gradient takes max_touched rows, or, where that is 0, all.
template <class Table>
Table bind_table(arena& a, idx rows, idx cols, idx max_touched) {
    return detail::table_kind<Table>::bind(a, rows, cols, max_touched);
}

// What a params set visits of its table.
template <class F, class First, class... Sets>
void each_table(F& f, const param_name& at, First& first, Sets&... sets) {
    if constexpr (requires { first.elements; }) {
        f(param_name(at, "table"), role::table, first.elements, sets.elements...);
        f(param_name(at, "table_scale"), role::table, first.scale, sets.scale...);
    } else if constexpr (requires { typename First::value_type; }) {
        f(param_name(at, "table"), role::table, first, sets...);
    }
}

// Throws config_error unless the table has this shape.
template <class Table>
void require_table(const Table& t, idx rows, idx cols, std::string_view layer) {
    if constexpr (requires { t.elements; }) {
        require_shape(t.elements, rows, cols, layer, "table");
        require_shape(t.scale, rows, t.scale.cols(), layer, "table_scale");
        const idx parts = t.scale.cols();
        if (parts < 1 || (parts - 1) * ceil_div(cols, parts) >= cols)
            SLUICE_THROW(config_error(std::string(layer) + ": table_scale: " + std::to_string(cols) +
                                      " numbers cannot have " + std::to_string(parts) + " scales"));
    } else if constexpr (requires { t.parts; }) {
        for (const auto& part : t.parts) require_table(part, part.rows(), cols, layer);
    }
    if (t.rows() != rows || t.cols() != cols)
        SLUICE_THROW(config_error(std::string(layer) + ": table must be " + shape_text(rows, cols) + ", is " +
                                  shape_text(t.rows(), t.cols())));
}

inline namespace SLUICE_ISA {

// Asks for the cache lines of rows that look_up will want soon. Not more than fit the cache.
template <class Table>
void prefetch_rows(const Table& t, std::span<const std::int32_t> rows, executor_ref ex = {}) {
    if constexpr (requires { t.prefetch(rows, ex); }) {
        t.prefetch(rows, ex);
    } else if constexpr (requires { t.elements; }) {
        prefetch_rows(t.elements, rows);
        prefetch_rows(t.scale, rows);
    } else if constexpr (requires { t.parts; }) {
        for (std::size_t i = 0; i < rows.size(); ++i) {
            auto row = rows[i];
            for (const auto& part : t.parts) {
                if (row < part.rows()) {
                    prefetch_rows(part, std::span<const std::int32_t>(&row, 1));
                    break;
                }
                row -= static_cast<std::int32_t>(part.rows());
            }
        }
    } else {
        const auto bytes = t.cols() * static_cast<idx>(sizeof(*t.data()));
        for (const std::int32_t r : rows)
            for (idx b = 0; b < bytes; b += 64)
                __builtin_prefetch(reinterpret_cast<const char*>(t.row(r)) + b);
    }
}

// y(i) = row rows[i] of the table, decoded: y (rows, cols). Rows are checked always.
template <class Arch = simd::native, class T, class Table>
void look_up(const Table& t, std::span<const std::int32_t> rows, tensor_view<T> y, executor_ref ex) {
    if (ex.dry()) return;
    require_shape(y, static_cast<idx>(rows.size()), t.cols(), "look_up", "y");
    check_rows(rows, t.rows(), "look_up");
    if constexpr (requires { t.template look_up<Arch>(rows, y, ex); }) {
        t.template look_up<Arch>(rows, y, ex);
    } else if constexpr (requires { t.parts; }) {
        ex(y.rows(), [&](idx begin, idx end, idx) {
            std::int32_t local[64];
            for (idx i = begin; i < end;) { // runs of rows of one part
                idx first = 0;
                std::size_t p = 0;
                const auto at = [&](idx k) { return rows[static_cast<std::size_t>(k)]; };
                while (at(i) >= first + t.parts[p].rows()) first += t.parts[p++].rows();
                idx n = 0;
                for (; i + n < end && n < 64 && at(i + n) >= first && at(i + n) < first + t.parts[p].rows();
                     ++n)
                    local[n] = static_cast<std::int32_t>(at(i + n) - first);
                look_up<Arch>(t.parts[p], std::span<const std::int32_t>(local, static_cast<std::size_t>(n)),
                              y.row_block(i, n), {});
                i += n;
            }
        });
    } else {
        auto run = [&](const auto& elements, const auto* scale, idx scale_row, idx parts) {
            using S = typename std::remove_cvref_t<decltype(elements)>::value_type;
            using Scale = std::remove_const_t<std::remove_pointer_t<decltype(scale)>>;
            ex(y.rows(), [&](idx begin, idx end, idx) {
                const std::int32_t* const at = rows.data() + begin;
                if constexpr (std::is_same_v<S, T>)
                    simd::invoke(Arch{}, kernels::gather_rows{}, static_cast<const T*>(elements.data()),
                                 elements.row_stride(), at, end - begin, y.cols(), y.row(begin),
                                 y.row_stride());
                else
                    simd::invoke(Arch{}, kernels::decode_rows{},
                                 kernels::decode_rows_args<S, Scale>{elements.data(), elements.row_stride(),
                                                                     scale, scale_row, parts, at, end - begin,
                                                                     y.cols()},
                                 y.row(begin), y.row_stride());
            });
        };
        if constexpr (requires { t.elements; })
            run(t.elements, t.scale.data(), t.scale.row_stride(), t.scale.cols());
        else
            run(t, static_cast<const float*>(nullptr), 0, 0);
    }
}

// Rounds x to rows [first, first + x.rows()) of a table: look_up's inverse. Each part that has a scale of its
// own is as fine as its largest magnitude allows; scales of f8_e8m0 are powers of two, so that no more is
// lost than the type loses. Throws input_error for numbers that are not finite where there are scales.
template <class S>
void store_rows(in<float> x, tensor_view<S> table, idx first, executor_ref ex = {}) {
    require_shape(x, x.rows(), table.cols(), "store_rows", "x");
    require(first >= 0 && first <= table.rows() - x.rows(), "store_rows", "rows are outside the table");
    ex(x.rows(), [&](idx begin, idx end, idx) {
        for (idx i = begin; i < end; ++i)
            for (idx j = 0; j < x.cols(); ++j) {
                if constexpr (std::is_same_v<S, bf16>)
                    table(first + i, j) = to_bf16(x(i, j));
                else if constexpr (std::is_same_v<S, half>)
                    table(first + i, j) = to_half(x(i, j));
                else
                    table(first + i, j) = static_cast<S>(x(i, j));
            }
    });
}
template <class S, class Scale>
void store_rows(in<float> x, const scaled_table<S, Scale>& table, idx first, executor_ref ex = {}) {
    constexpr bool bytes = std::is_same_v<S, std::int8_t>;
    static_assert(bytes || std::is_same_v<S, f8_e4m3>, "sluice: scales are for int8 and f8_e4m3");
    require_table(table, table.rows(), x.cols(), "store_rows");
    require(first >= 0 && first <= table.rows() - x.rows(), "store_rows", "rows are outside the table");
    for (idx i = 0; i < x.rows(); ++i)
        for (idx j = 0; j < x.cols(); ++j)
            if (!std::isfinite(x(i, j)))
                SLUICE_THROW(input_error("store_rows: row " + std::to_string(i) +
                                         " holds a number that is not finite"));
    const idx part = ceil_div(x.cols(), table.scale.cols());
    ex(x.rows(), [&](idx begin, idx end, idx) {
        for (idx i = begin; i < end; ++i)
            for (idx at = 0, k = 0; at < x.cols(); at += part, ++k) {
                const idx last = std::min(at + part, x.cols());
                float largest = 0;
                for (idx j = at; j < last; ++j) largest = std::max(largest, std::abs(x(i, j)));
                float scale = largest / (bytes ? 127.0F : 448.0F);
                if constexpr (std::is_same_v<Scale, f8_e8m0>) {
                    int exponent = -127; // the least power of two that is not less
                    if (scale > 0 && std::frexp(scale, &exponent) == 0.5F) --exponent;
                    table.scale(first + i,
                                k) = {static_cast<std::uint8_t>(std::clamp(exponent, -127, 127) + 127)};
                    scale = to_float(table.scale(first + i, k));
                } else {
                    table.scale(first + i, k) = scale;
                }
                for (idx j = at; j < last; ++j) {
                    const float scaled = scale > 0 ? x(i, j) / scale : 0;
                    if constexpr (bytes)
                        table.elements(first + i, j) =
                            static_cast<S>(std::lrint(std::clamp(scaled, -127.0F, 127.0F)));
                    else
                        table.elements(first + i, j) = to_f8_e4m3(scaled);
                }
            }
    });
}

// Where the gradient of each row of the table is to be added: `embed_backward` adds rows of dy to these rows
// of tensor_view<T>(dtable), in order whatever the workers. For a row_gradient they are new where they were
// not touched before; throws capacity_error where there are too many.
template <class T>
std::span<const std::int32_t> touch_rows(const tensor_view<T>&, std::span<const std::int32_t> rows,
                                         arena& keep, executor_ref) {
    (void)keep.take<std::int32_t>(static_cast<idx>(rows.size())); // the same for both kinds
    return rows;
}
template <class T>
std::span<const std::int32_t> touch_rows(const row_gradient<T>& dtable, std::span<const std::int32_t> rows,
                                         arena& keep, executor_ref ex) {
    auto* const slots = keep.take<std::int32_t>(static_cast<idx>(rows.size()));
    if (!ex.dry()) dtable.find(rows, slots);
    return {slots, rows.size()};
}

} // namespace SLUICE_ISA
} // namespace sluice
