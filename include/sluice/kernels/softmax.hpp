// Softmax of rows, and the cross-entropy of rows of logits against one class each.
#pragma once

#include "../simd/math.hpp"

namespace sluice::kernels {

// y = softmax(x) for rows of n; y may be x. A row that holds NaN or inf becomes NaN; a row of -inf does too.
struct softmax_rows {
    template <class Arch, class T>
    void operator()(Arch, const T* x, idx x_row, T* y, idx y_row, idx rows, idx n) const;
};

// dx = y (dy - sum_j y dy) for rows of n; dx may be dy.
struct softmax_dx {
    template <class Arch, class T>
    void operator()(Arch, const T* y, idx y_row, const T* dy, idx dy_row, T* dx, idx dx_row, idx rows,
                    idx n) const;
};

// y(i, j) = softmax over the rows i of x, for each of n columns; y may be x.
struct softmax_columns {
    template <class Arch, class T>
    void operator()(Arch, const T* x, idx x_row, T* y, idx y_row, idx rows, idx n) const;
};

// dx += y (dy - sum_i y dy) for each of n columns.
struct softmax_columns_dx {
    template <class Arch, class T>
    void operator()(Arch, const T* y, idx y_row, const T* dy, idx dy_row, T* dx, idx dx_row, idx rows,
                    idx n) const;
};

// lse[i] = log sum_j exp(x(i, j))
struct log_sum_exp_rows {
    template <class Arch, class T>
    void operator()(Arch, const T* x, idx x_row, T* lse, idx rows, idx n) const;
};

// dx(i, j) = weight (exp(x(i, j) - lse[i]) - [j = target[i]]); rows with a negative target become zero. dx
// may be x.
struct cross_entropy_dx {
    template <class Arch, class T>
    void operator()(Arch, const T* x, idx x_row, const T* lse, const token_id* target, T weight, T* dx,
                    idx dx_row, idx rows, idx n) const;
};

template <class T>
using softmax_calls =
    simd::calls<simd::call<softmax_rows, const T*, idx, T*, idx, idx, idx>,
                simd::call<softmax_dx, const T*, idx, const T*, idx, T*, idx, idx, idx>,
                simd::call<softmax_columns, const T*, idx, T*, idx, idx, idx>,
                simd::call<softmax_columns_dx, const T*, idx, const T*, idx, T*, idx, idx, idx>,
                simd::call<log_sum_exp_rows, const T*, idx, T*, idx, idx>,
                simd::call<cross_entropy_dx, const T*, idx, const T*, const token_id*, T, T*, idx, idx, idx>>;

// The largest of n elements; -inf for none.
template <class Arch, class T>
SLUICE_INLINE T row_largest(const T* x, idx n) {
    using P = simd::pack<T, Arch>;
    constexpr T lowest = -std::numeric_limits<T>::infinity();
    P most[4] = {lowest, lowest, lowest, lowest};
    idx j = 0;
    for (; j + 4 * P::size <= n; j += 4 * P::size)
        simd::unrolled<4>([&](auto c) { most[c] = max(most[c], P::load(x + j + c * P::size)); });
    for (; j + P::size <= n; j += P::size) most[0] = max(most[0], P::load(x + j));
    T largest = max(max(most[0], most[1]), max(most[2], most[3])).largest();
    for (; j < n; ++j) largest = std::max(largest, x[j]);
    return largest;
}

// Sum over j of exp(x[j] - shift), written to y where y is not null; then what lies `next` behind x is asked
// for.
template <class Arch, class T>
SLUICE_INLINE T row_exp(const T* x, T shift, T* y, idx n, idx next = 0) {
    using P = simd::pack<T, Arch>;
    auto step = [&](P sum, idx j, idx k) {
        P e = exp_nonpositive(P::load_partial(x + j, k) - P(shift));
        if (k < P::size) e = zero_beyond(e, k);
        return std::pair(sum + e, e);
    };
    if (y == nullptr)
        return simd::sum_of_packs<P>(n, [&](P sum, idx j, idx k) { return step(sum, j, k).first; });
    return simd::sum_of_packs<P>(n, [&](P sum, idx j, idx k) {
        if (next != 0) __builtin_prefetch(x + next + j);
        auto [s, e] = step(sum, j, k);
        e.store_partial(y + j, k);
        return s;
    });
}

template <class Arch, class T>
void softmax_rows::operator()(Arch, const T* x, idx x_row, T* y, idx y_row, idx rows, idx n) const {
    using P = simd::pack<T, Arch>;
    for (idx i = 0; i < rows; ++i) {
        const T* from = x + i * x_row;
        T* to = y + i * y_row;
        const P scale(T(1) / row_exp<Arch>(from, row_largest<Arch>(from, n), to, n, x_row));
        simd::for_each_pack<P>(
            n, [&](idx j, idx k) { (P::load_partial(to + j, k) * scale).store_partial(to + j, k); });
    }
}

template <class Arch, class T>
void softmax_dx::operator()(Arch, const T* y, idx y_row, const T* dy, idx dy_row, T* dx, idx dx_row, idx rows,
                            idx n) const {
    using P = simd::pack<T, Arch>;
    for (idx i = 0; i < rows; ++i) {
        const T* p = y + i * y_row;
        const T* d = dy + i * dy_row;
        T* to = dx + i * dx_row;
        const P shift(simd::sum_of_packs<P>(n, [&](P sum, idx j, idx k) {
            return fma(P::load_partial(p + j, k), P::load_partial(d + j, k), sum);
        }));
        simd::for_each_pack<P>(n, [&](idx j, idx k) {
            (P::load_partial(p + j, k) * (P::load_partial(d + j, k) - shift)).store_partial(to + j, k);
        });
    }
}

template <class Arch, class T>
void softmax_columns::operator()(Arch, const T* x, idx x_row, T* y, idx y_row, idx rows, idx n) const {
    using P = simd::pack<T, Arch>;
    simd::for_each_pack<P>(n, [&](idx j, idx k) {
        P most(-std::numeric_limits<T>::infinity()), sum{};
        for (idx i = 0; i < rows; ++i) most = max(most, P::load_partial(x + i * x_row + j, k));
        for (idx i = 0; i < rows; ++i) {
            const P e = exp_nonpositive(P::load_partial(x + i * x_row + j, k) - most);
            sum = sum + e;
            e.store_partial(y + i * y_row + j, k);
        }
        const P scale = P(T(1)) / sum;
        for (idx i = 0; i < rows; ++i) {
            T* const to = y + i * y_row + j;
            (P::load_partial(to, k) * scale).store_partial(to, k);
        }
    });
}

template <class Arch, class T>
void softmax_columns_dx::operator()(Arch, const T* y, idx y_row, const T* dy, idx dy_row, T* dx, idx dx_row,
                                    idx rows, idx n) const {
    using P = simd::pack<T, Arch>;
    simd::for_each_pack<P>(n, [&](idx j, idx k) {
        P shift{};
        for (idx i = 0; i < rows; ++i)
            shift =
                fma(P::load_partial(y + i * y_row + j, k), P::load_partial(dy + i * dy_row + j, k), shift);
        for (idx i = 0; i < rows; ++i) {
            T* const to = dx + i * dx_row + j;
            const P d = P::load_partial(dy + i * dy_row + j, k) - shift;
            fma(P::load_partial(y + i * y_row + j, k), d, P::load_partial(to, k)).store_partial(to, k);
        }
    });
}

template <class Arch, class T>
void log_sum_exp_rows::operator()(Arch, const T* x, idx x_row, T* lse, idx rows, idx n) const {
    for (idx i = 0; i < rows; ++i) {
        const T* from = x + i * x_row;
        const T largest = row_largest<Arch>(from, n);
        lse[i] = largest + std::log(row_exp<Arch, T>(from, largest, nullptr, n));
    }
}

template <class Arch, class T>
void cross_entropy_dx::operator()(Arch, const T* x, idx x_row, const T* lse, const token_id* target, T weight,
                                  T* dx, idx dx_row, idx rows, idx n) const {
    using P = simd::pack<T, Arch>;
    for (idx i = 0; i < rows; ++i) {
        const T* from = x + i * x_row;
        T* to = dx + i * dx_row;
        if (target[i] < 0) {
            std::fill_n(to, n, T(0));
            continue;
        }
        simd::for_each_pack<P>(n, [&](idx j, idx k) {
            (P(weight) * exp(P::load_partial(from + j, k) - P(lse[i]))).store_partial(to + j, k);
        });
        to[target[i]] -= weight;
    }
}

} // namespace sluice::kernels
