// The tokens of a batch one by one, and what lies between them and their rows where a token has copies: the
// original of each, the sum over its copies, and the way back. For layers that work on tokens.
#pragma once

#include "../core/arena.hpp"
#include "../core/batch.hpp"
#include "../core/executor.hpp"

namespace sluice {

// The same tokens, one row each.
inline batch tokens_of(const batch& b) {
    batch tokens = b;
    tokens.copies = 1;
    tokens.row_offsets = {};
    return tokens;
}

inline namespace SLUICE_ISA {

// Calls f(sequence, token) for tokens [begin, end) of a batch.
template <class F>
void for_each_token(const batch& b, idx begin, idx end, F&& f) {
    for (idx s = b.sequence_of(begin); begin < end; ++begin) {
        while (begin >= b.first_token(s) + b.tokens(s)) ++s;
        f(s, begin);
    }
}

// Calls f(token, row of its original, how many rows it has) for all tokens; workers share them out.
template <class F>
void for_each_original(const batch& b, executor_ref ex, F&& f) {
    ex(b.n_tokens, [&](idx begin, idx end, idx) {
        for_each_token(b, begin, end, [&](idx s, idx i) {
            const idx at = i - b.first_token(s);
            f(i, b.original(s, at), at < b.bare(s) ? 1 : b.copies);
        });
    });
}

// The originals' rows of x (b.rows(), any width); memory from `keep`.
template <class T>
tensor_view<T> originals_of(const batch& b, tensor_view<const T> x, arena& keep, executor_ref ex) {
    const auto out = keep.take<T>(b.n_tokens, x.cols());
    for_each_original(b, ex, [&](idx i, idx row, idx) { std::copy_n(x.row(row), x.cols(), out.row(i)); });
    return out;
}

// Each token's sum over its rows of x (b.rows(), any width), in order; memory from `keep`.
template <class T>
tensor_view<T> sums_of_copies(const batch& b, tensor_view<const T> x, arena& keep, executor_ref ex) {
    const auto out = keep.take<T>(b.n_tokens, x.cols());
    for_each_original(b, ex, [&](idx i, idx row, idx copies) {
        std::copy_n(x.row(row), x.cols(), out.row(i));
        for (idx c = 1; c < copies; ++c)
            for (idx j = 0; j < x.cols(); ++j) out(i, j) += x(row + c, j);
    });
    return out;
}

// Gives the original of each token its row of x (n_tokens, any width), and the copies the same, or zeros.
template <class T>
void rows_from_tokens(const batch& b, tensor_view<const T> x, tensor_view<T> y, bool copies_too,
                      executor_ref ex) {
    for_each_original(b, ex, [&](idx i, idx row, idx copies) {
        std::copy_n(x.row(i), x.cols(), y.row(row));
        for (idx c = 1; c < copies; ++c)
            if (copies_too)
                std::copy_n(x.row(i), x.cols(), y.row(row + c));
            else
                std::fill_n(y.row(row + c), x.cols(), T(0));
    });
}

} // namespace SLUICE_ISA
} // namespace sluice
