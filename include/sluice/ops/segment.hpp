// Sequences cut into segments, each of which becomes one row: which token sees which of them, the mean of a
// segment in the order of its tokens, a running average over segments, the gradients of both, and policies of
// attention to a prefix of them. A sequence that goes on in a later call gives the same bits as at once.
#pragma once

#include "../core/arena.hpp"
#include "../core/batch.hpp"
#include "../core/executor.hpp"
#include "../kernels/attention_tile.hpp"
#include "../kernels/elementwise.hpp"

#include <cmath>

namespace sluice {

// What a segment becomes, and who sees it.
//   mean             the mean of its tokens; seen by the tokens behind it
//   boundary_token   its first token; seen from that token on
//   leaking_mean     the mean of its tokens; seen from the first of them, which so see later ones
enum class concept_forming { mean, boundary_token, leaking_mean };

// Of all tokens of a step, on all processes and in all its batches: sums, to be added up.
struct boundary_counts {
    idx tokens = 0, boundaries = 0;
    double probability = 0; // sum of p

    boundary_counts& operator+=(const boundary_counts& other) {
        tokens += other.tokens, boundaries += other.boundaries, probability += other.probability;
        return *this;
    }
    double share() const { return per_token(static_cast<double>(boundaries)); } // F
    double mean() const { return per_token(probability); }                      // G
    // Of train/boundary_loss.hpp by the p of any one token.
    double loss_slope(double ratio) const {
        return tokens == 0 ? 0 : per_token(ratio * (ratio * share() - 1) / (ratio - 1));
    }

private:
    double per_token(double sum) const { return tokens == 0 ? 0 : sum / static_cast<double>(tokens); }
};

// What a sequence brings along from earlier calls.
template <class T>
struct segment_past {
    idx tokens = 0;            // that it has
    idx open = 0;              // of them those of the segment that is still open
    idx concepts = 0;          // that it has made
    T p = 0;                   // of the open segment's first token
    const T* sum = nullptr;    // of the open segment's rows
    const T* scan = nullptr;   // what the next token is compared with
    const T* smooth = nullptr; // the last row of the running average
};

// What the sequences of a state bring along, after each of the last `ring` of their tokens, so that these can
// be taken back.
template <class T>
struct open_segments {
    tensor_view<T> sum, scan, smooth, p; // (sequence, tokens % ring) each
    tensor_view<idx> open, concepts;
    idx ring = 1;

    static open_segments bind(arena& a, idx n_sequences, idx ring, idx d_sum, idx d_scan, idx d_smooth) {
        open_segments o;
        o.ring = ring;
        const idx rows = size_product(n_sequences, ring);
        o.sum = a.take<T>(rows, d_sum);
        o.scan = a.take<T>(rows, d_scan);
        o.smooth = a.take<T>(rows, d_smooth);
        o.p = a.take<T>(rows, 1);
        o.open = a.take<idx>(rows, 1);
        o.concepts = a.take<idx>(rows, 1);
        return o;
    }
    idx row(idx slot, idx tokens) const { return slot * ring + tokens % ring; }
    segment_past<T> past(idx slot, idx tokens) const {
        if (tokens == 0) return {};
        const idx i = row(slot, tokens);
        return {tokens, open(i, 0), concepts(i, 0), p(i, 0), sum.row(i), scan.row(i), smooth.row(i)};
    }
};

// The tokens of a call, cut. Segments are numbered from the beginning of their sequence, rows from that of
// the call; of concept_forming::mean a segment counts when the next one has begun.
template <class T>
struct segments {
    std::int32_t* seen = nullptr;   // n_tokens: segments of its sequence that a token sees
    std::int32_t* age = nullptr;    // n_tokens: tokens of its own segment up to it
    std::int32_t* begin = nullptr;  // to.n_tokens each: the first row of a segment in this call,
    std::int32_t* end = nullptr;    //   the row behind its last one,
    std::int32_t* before = nullptr; //   its tokens of earlier calls,
    T* p = nullptr;                 //   and p of its first token
    idx *offsets = nullptr, *positions = nullptr;
    batch to{}; // the segments of this call, with these two

    idx length(idx k) const { return before[k] + end[k] - begin[k]; }

    // Memory for the tokens; `number` says how many segments each sequence makes, or all of them where there
    // is no memory; then memory for those, and their places behind those of earlier calls.
    static segments take(arena& keep, const batch& b) {
        segments s;
        s.seen = keep.take<std::int32_t>(b.n_tokens);
        s.age = keep.take<std::int32_t>(b.n_tokens);
        const idx n = std::max(b.n_sequences(), b.counted_sequences) + 1;
        s.offsets = keep.take<idx>(n);
        s.to = {.slots = b.slots, .random_key = b.random_key, .counted_sequences = b.counted_sequences};
        if (s.offsets != nullptr) s.to.offsets = {s.offsets, static_cast<std::size_t>(b.n_sequences() + 1)};
        return s;
    }
    template <class F>
    void number(idx all, F&& made) {
        to.n_tokens = all;
        if (offsets == nullptr) return;
        offsets[0] = 0;
        for (idx s = 0; s < to.n_sequences(); ++s) offsets[s + 1] = offsets[s] + made(s);
        to.n_tokens = offsets[to.n_sequences()];
    }
    void take_made(arena& keep) {
        positions = keep.take<idx>(to.n_tokens);
        for (auto* t : {&begin, &end, &before}) *t = keep.take<std::int32_t>(to.n_tokens);
        p = keep.take<T>(to.n_tokens);
    }
    void place(const segment_past<T>* past) {
        if (offsets == nullptr) return;
        for (idx s = 0; s < to.n_sequences(); ++s)
            for (idx k = offsets[s]; k < offsets[s + 1]; ++k)
                positions[k] = k - offsets[s] + (past == nullptr ? 0 : past[s].concepts);
        to.positions = {positions, static_cast<std::size_t>(to.n_tokens)};
    }

    // How many segments sequence s makes, whose tokens `starts` marks.
    static idx made(const batch& b, idx s, const std::uint8_t* starts, concept_forming form,
                    const segment_past<T>* past) {
        const idx first = b.first_token(s), n = b.tokens(s);
        idx found = 0;
        for (idx i = first; i < first + n; ++i) found += starts[i];
        const bool opens = n > 0 && (past == nullptr || past[s].tokens == 0);
        return found - (form == concept_forming::mean && opens ? 1 : 0);
    }
    // Fills the rest. prob (n_tokens): p.
    void fill(const batch& b, const std::uint8_t* starts, const T* prob, concept_forming form,
              const segment_past<T>* past) const {
        for (idx s = 0; s < b.n_sequences(); ++s) {
            const segment_past<T> from = past == nullptr ? segment_past<T>{} : past[s];
            const idx first = b.first_token(s), last = first + b.tokens(s);
            const bool mean = form == concept_forming::mean;
            idx k = to.first_token(s), open = from.open, start = first, old = from.open;
            idx seen_now = from.concepts;
            T start_p = from.p;
            auto close = [&](idx at, idx row) {
                begin[at] = static_cast<std::int32_t>(start);
                end[at] = static_cast<std::int32_t>(row);
                before[at] = static_cast<std::int32_t>(old);
                p[at] = start_p;
            };
            for (idx i = first; i < last; ++i) {
                if (starts[i] != 0) {
                    const bool closes = from.tokens + i - first > 0;
                    if (mean && closes) close(k++, i), ++seen_now;
                    if (!mean && k > to.first_token(s)) close(k - 1, i);
                    if (!mean) ++k, ++seen_now;
                    start = i, start_p = prob[i], old = open = 0;
                }
                age[i] = static_cast<std::int32_t>(++open);
                seen[i] = static_cast<std::int32_t>(seen_now);
            }
            if (!mean && k > to.first_token(s)) close(k - 1, last);
        }
    }
};

// Row t of a sequence sees its first seen[t] keys.
struct ragged_prefix {
    static constexpr idx n_sources = 1;
    const batch* tokens;
    const std::int32_t* seen; // of each row

    SLUICE_INLINE key_range range(idx sequence, idx row, idx) const {
        return {0, seen[tokens->begin(sequence) + row]};
    }
};

// The same with the logarithms of segment lengths added to scores. Where a token sees the segment that it is
// in, that one is a source of its own: it weighs as many tokens as there were up to the row.
template <class T>
struct weighted_prefix {
    static constexpr idx n_sources = 2;
    const batch* tokens;
    const std::int32_t* seen;
    const T* own;            // logarithm of the tokens of the row's own segment; null: it sees only others
    const T* const* lengths; // of each sequence, the logarithms of its segments' lengths

    SLUICE_INLINE key_range range(idx sequence, idx row, idx source) const {
        const idx n = seen[tokens->begin(sequence) + row], others = own == nullptr ? n : n - 1;
        return source == 0 ? key_range{0, others} : key_range{others, own == nullptr ? others : n};
    }
    SLUICE_INLINE T bias(idx sequence, idx key, idx source) const {
        return source == 0 ? lengths[sequence][key] : T(0);
    }
    SLUICE_INLINE T last_bias(idx sequence, idx row, idx source) const {
        return source == 0 || own == nullptr ? T(0) : own[tokens->begin(sequence) + row];
    }
};

// One place for all keys of a sequence, whatever the source.
template <class T>
struct concept_sources {
    const attention_source<T>* of; // each sequence
    SLUICE_INLINE attention_source<T> operator()(idx sequence, idx) const { return of[sequence]; }
};

inline namespace SLUICE_ISA {

namespace detail {

// Calls f(sequence, k) for rows [from, to) of a batch.
template <class F>
void for_each_segment(const batch& b, idx from, idx to, F&& f) {
    idx s = b.offsets.empty()
                ? 0
                : std::upper_bound(b.offsets.begin(), b.offsets.end(), from) - b.offsets.begin() - 1;
    for (; from < to; ++from) {
        while (from >= b.first_token(s) + b.tokens(s)) ++s;
        f(s, from);
    }
}

// Calls f(sequence, first column, columns) for strips of columns.
template <class F>
void for_each_strip(const batch& b, idx width, executor_ref ex, F&& f) {
    constexpr idx strip = 64;
    const idx strips = ceil_div(width, strip);
    ex(b.n_sequences() * strips, [&](idx from, idx to, idx) {
        for (idx i = from; i < to; ++i) {
            const idx col = i % strips * strip;
            f(i / strips, col, std::min(strip, width - col));
        }
    });
}

} // namespace detail

// sum = `carried`, which may be null, + h(first) + .. + h(last - 1), in this order.
template <class Arch = simd::native, class T>
void sum_rows(in<T> h, const T* carried, idx first, idx last, T* sum) {
    if (carried != nullptr)
        std::copy_n(carried, h.cols(), sum);
    else if (first < last)
        std::copy_n(h.row(first++), h.cols(), sum);
    else
        std::fill_n(sum, h.cols(), T(0));
    for (; first < last; ++first)
        simd::invoke(Arch{}, kernels::add_elements{}, static_cast<const T*>(sum), h.row(first), sum,
                     h.cols());
}

// y (segments, d) from h (n_tokens, d).
template <class Arch = simd::native, class T>
void segment_rows(in<T> h, const segments<T>& s, concept_forming form, const segment_past<T>* past,
                  tensor_view<T> y, executor_ref ex) {
    require_shape(y, s.to.n_tokens, h.cols(), "segment_rows", "y");
    ex(y.rows(), [&](idx from, idx to, idx) {
        detail::for_each_segment(s.to, from, to, [&](idx sequence, idx k) {
            if (form == concept_forming::boundary_token) {
                std::copy_n(h.row(s.begin[k]), h.cols(), y.row(k));
                return;
            }
            sum_rows<Arch, T>(h, s.before[k] > 0 ? past[sequence].sum : nullptr, s.begin[k], s.end[k],
                              y.row(k));
            simd::invoke(Arch{}, kernels::scale_elements{}, static_cast<const T*>(y.row(k)),
                         T(1) / static_cast<T>(s.length(k)), y.row(k), h.cols());
        });
    });
}

// dh (n_tokens, d) += its gradient. For batches without earlier calls.
template <class Arch = simd::native, class T>
void segment_rows_backward(in<T> dy, const segments<T>& s, concept_forming form, tensor_view<T> dh,
                           executor_ref ex) {
    require_shape(dy, s.to.n_tokens, dh.cols(), "segment_rows_backward", "dy");
    ex(dy.rows(), [&](idx from, idx to, idx) {
        for (idx k = from; k < to; ++k) {
            const bool alone = form == concept_forming::boundary_token;
            const idx last = alone ? s.begin[k] + 1 : s.end[k];
            const T share = T(1) / static_cast<T>(last - s.begin[k]);
            for (idx i = s.begin[k]; i < last; ++i)
                simd::invoke(Arch{}, kernels::add_scaled{}, dy.row(k), share, dh.row(i), dh.cols());
        }
    });
}

// y_0 = z_0, y_k = a_k z_k + (1 - a_k) y_{k-1} along the rows of each sequence of b; `a` (rows). All (rows,
// d); y may be z.
template <class Arch = simd::native, class T>
void smooth_rows(const batch& b, in<T> z, const T* a, const segment_past<T>* past, tensor_view<T> y,
                 executor_ref ex) {
    require_shape(y, z.rows(), z.cols(), "smooth_rows", "y");
    detail::for_each_strip(b, z.cols(), ex, [&](idx s, idx col, idx n) {
        const T* last = past == nullptr || past[s].concepts == 0 ? nullptr : past[s].smooth + col;
        for (idx k = b.first_token(s); k < b.first_token(s) + b.tokens(s); ++k) {
            T* const to = y.row(k) + col;
            if (last == nullptr) {
                std::copy_n(z.row(k) + col, n, to);
            } else {
                simd::invoke(Arch{}, kernels::scale_elements{}, z.row(k) + col, a[k], to, n);
                simd::invoke(Arch{}, kernels::add_scaled{}, last, T(1) - a[k], to, n);
            }
            last = to;
        }
    });
}

// From dy to dz, overwritten, and where `da` (rows) is not null to that: all of batches without earlier
// calls.
template <class Arch = simd::native, class T>
void smooth_rows_backward(const batch& b, in<T> z, const T* a, in<T> y, in<T> dy, tensor_view<T> dz, T* da,
                          executor_ref ex) {
    require_shape(dy, z.rows(), z.cols(), "smooth_rows_backward", "dy");
    require_shape(dz, z.rows(), z.cols(), "smooth_rows_backward", "dz");
    detail::for_each_strip(b, z.cols(), ex, [&](idx s, idx col, idx n) {
        const idx first = b.first_token(s), last = first + b.tokens(s);
        for (idx k = last - 1; k >= first; --k) { // what y_k does, also through later ones
            std::copy_n(dy.row(k) + col, n, dz.row(k) + col);
            if (k + 1 < last)
                simd::invoke(Arch{}, kernels::add_scaled{}, static_cast<const T*>(dz.row(k + 1) + col),
                             T(1) - a[k + 1], dz.row(k) + col, n);
        }
    });
    ex(z.rows(), [&](idx from, idx to, idx) {
        detail::for_each_segment(b, from, to, [&](idx s, idx k) {
            const bool first = k == b.first_token(s);
            if (da != nullptr) da[k] = T(0);
            if (first) return;
            if (da != nullptr) {
                T own = 0, last = 0;
                const T* const d = dz.row(k);
                simd::invoke(Arch{}, kernels::dot{}, d, z.row(k), z.cols(), &own);
                simd::invoke(Arch{}, kernels::dot{}, d, y.row(k - 1), z.cols(), &last);
                da[k] = own - last;
            }
            simd::invoke(Arch{}, kernels::scale_elements{}, static_cast<const T*>(dz.row(k)), a[k], dz.row(k),
                         z.cols());
        });
    });
}

} // namespace SLUICE_ISA
} // namespace sluice
