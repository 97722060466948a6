// A table whose rows are read when they are asked for, such as those of io::row_file, and kept for as long as
// there is room: sets of eight places, of which the row that was not asked for longest is given up. N-grams
// of text repeat much, so a ring much smaller than the table meets most of them again.
#pragma once

#include "table.hpp"

#include <atomic>

namespace sluice {

// A view of the caller's memory and of the source, which must outlive it: rows(), cols(), scales(),
// read(row, elements, scales), which says whether it could, advise(row) and fail(row), which throws. For one
// caller at a time; workers share out the reads of a call.
template <class Source, class S, class Scale = float>
class table_ring {
public:
    table_ring() = default;

    // Holds at least `capacity` rows.
    static table_ring bind(arena& a, const Source& source, idx capacity) {
        require_positive(capacity, "table_ring", "capacity");
        table_ring r;
        r.source_ = &source;
        const idx n = round_up(capacity, ways);
        r.kept_ = a.take<S>(n, source.cols());
        r.scale_ = a.take<Scale>(n, source.scales());
        r.row_ = a.take<std::int32_t>(n);
        r.used_ = a.take<idx>(n);
        r.n_sets_ = n / ways;
        r.slots_ = a.take<std::int32_t>(chunk);
        r.missing_ = a.take<std::int32_t>(chunk);
        r.counts_ = a.take<counts>(1);
        if (a.dry()) return r;
        std::fill_n(r.row_, n, -1);
        std::fill_n(r.used_, n, idx{0});
        *r.counts_ = {};
        return r;
    }

    idx rows() const { return source_ == nullptr ? 0 : source_->rows(); }
    idx cols() const { return source_ == nullptr ? 0 : source_->cols(); }
    // Rows asked for and rows read since bind: their ratio is the share of misses.
    idx asked() const { return counts_->asked; }
    idx reads() const { return counts_->reads; }

    // Starts reads of rows that are not here, without waiting for them.
    void prefetch(std::span<const std::int32_t> rows) const {
        for (const std::int32_t row : rows)
            if (find(row) < 0) source_->advise(row);
    }

    // y(i) = row rows[i]. Throws what the source throws where a row cannot be read; nothing wrong is kept.
    template <class Arch, class T>
    void look_up(std::span<const std::int32_t> rows, tensor_view<T> y, executor_ref ex) const {
        const auto n = static_cast<idx>(rows.size());
        for (idx begin = 0; begin < n;) {
            const idx clock = ++counts_->clock;
            idx m = 0, n_missing = 0;
            for (; m < chunk && begin + m < n; ++m) {
                const std::int32_t row = rows[static_cast<std::size_t>(begin + m)];
                idx slot = find(row);
                if (slot < 0) {
                    slot = set_of(row);
                    for (idx other = slot + 1; other < set_of(row) + ways; ++other)
                        if (used_[other] < used_[slot]) slot = other;
                    if (used_[slot] == clock) break; // all of the set are wanted now
                    row_[slot] = row;
                    missing_[n_missing++] = static_cast<std::int32_t>(slot);
                }
                used_[slot] = clock;
                slots_[m] = static_cast<std::int32_t>(slot);
            }
            read_missing(n_missing, ex);
            counts_->asked += m;
            counts_->reads += n_missing;
            const std::span<const std::int32_t> slots(slots_, static_cast<std::size_t>(m));
            if (scale_.cols() > 0)
                sluice::look_up<Arch>(scaled_table<S, Scale>{kept_, scale_}, slots, y.row_block(begin, m),
                                      ex);
            else
                sluice::look_up<Arch>(kept_, slots, y.row_block(begin, m), ex);
            begin += m;
        }
    }

private:
    static constexpr idx ways = 8, chunk = 1024; // rows looked up between two rounds of reads
    struct counts {
        idx clock = 0, asked = 0, reads = 0;
    };

    idx set_of(std::int32_t row) const {
        const auto mixed = static_cast<std::uint64_t>(static_cast<std::uint32_t>(row) * 0x9E3779B1U);
        return static_cast<idx>(mixed * static_cast<std::uint64_t>(n_sets_) >> 32) * ways;
    }
    idx find(std::int32_t row) const {
        const idx first = set_of(row);
        for (idx slot = first; slot < first + ways; ++slot)
            if (row_[slot] == row) return slot;
        return -1;
    }
    void read_missing(idx n, executor_ref ex) const {
        std::atomic<std::int32_t> failed{-1};
        ex(n, [&](idx begin, idx end, idx) {
            for (idx i = begin; i < end; ++i) {
                const idx slot = missing_[i];
                void* const scales = scale_.cols() > 0 ? scale_.row(slot) : nullptr;
                if (!source_->read(row_[slot], kept_.row(slot), scales)) failed = row_[slot];
            }
        });
        const std::int32_t row = failed;
        if (row < 0) return;
        for (idx i = 0; i < n; ++i) row_[missing_[i]] = -1;
        source_->fail(row);
    }

    const Source* source_ = nullptr;
    tensor_view<S> kept_;         // place x cols
    tensor_view<Scale> scale_;    // place x scales of a row
    std::int32_t* row_ = nullptr; // of each place; -1: none
    idx* used_ = nullptr;         // when it was last asked for
    idx n_sets_ = 0;
    std::int32_t *slots_ = nullptr, *missing_ = nullptr;
    counts* counts_ = nullptr;
};

} // namespace sluice
