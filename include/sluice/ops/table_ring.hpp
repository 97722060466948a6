// A table whose rows are read when they are asked for, such as those of io::row_file, and kept for as long as
// there is room: sets of eight places, of which the row that was not asked for longest is given up, unless it
// was asked for more often than the new one (Einziger et al., "TinyLFU: a highly efficient cache admission
// policy", 2017). N-grams of text repeat by Zipf's law: those seen once leave the frequent ones where they
// are.
#pragma once

#include "table.hpp"

#include <atomic>
#include <utility>

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
        const idx n = round_up(capacity, ways), all = n + guests;
        r.kept_ = a.take<S>(all, source.cols());
        r.scale_ = a.take<Scale>(all, source.scales());
        r.row_ = a.take<std::int32_t>(all);
        r.used_ = a.take<idx>(n);
        r.n_sets_ = n / ways;
        while (r.n_counters_ < 8 * n) r.n_counters_ *= 2;
        r.counters_ = a.take<std::uint8_t>(r.n_counters_);
        r.slots_ = a.take<std::int32_t>(chunk);
        r.missing_ = a.take<std::int32_t>(chunk);
        r.counts_ = a.take<counts>(1);
        if (a.dry()) return r;
        std::fill_n(r.row_, all, -1);
        std::fill_n(r.used_, n, idx{0});
        std::fill_n(r.counters_, r.n_counters_, std::uint8_t{0});
        *r.counts_ = {};
        return r;
    }

    idx rows() const { return source_ == nullptr ? 0 : source_->rows(); }
    idx cols() const { return source_ == nullptr ? 0 : source_->cols(); }
    // Rows asked for and rows read since bind: their ratio is the share of misses.
    idx asked() const { return counts_->asked; }
    idx reads() const { return counts_->reads; }

    // Starts reads of rows that are not here, each once, without waiting for them; workers share out the
    // asking, which takes some microseconds for each.
    void prefetch(std::span<const std::int32_t> rows, executor_ref ex = {}) const {
        check_rows(rows, this->rows(), "table_ring");
        constexpr std::size_t some = 512, cells = 4 * some; // of more, a row may be asked for again
        for (std::size_t begin = 0; begin < rows.size(); begin += some) {
            std::int32_t seen[cells], wanted[some];
            std::fill_n(seen, cells, -1);
            idx n = 0;
            for (const std::int32_t row : rows.subspan(begin, std::min(some, rows.size() - begin))) {
                std::size_t cell = mixed(row) % cells;
                while (seen[cell] >= 0 && seen[cell] != row) cell = (cell + 1) % cells;
                if (std::exchange(seen[cell], row) != row && find(row) < 0) wanted[n++] = row;
            }
            ex(n, [&](idx first, idx last, idx) {
                for (idx i = first; i < last; ++i) source_->advise(wanted[i]);
            });
        }
    }

    // y(i) = row rows[i]. Throws what the source throws where a row cannot be read; nothing wrong is kept.
    template <class Arch, class T>
    void look_up(std::span<const std::int32_t> rows, tensor_view<T> y, executor_ref ex) const {
        const auto n = static_cast<idx>(rows.size());
        for (idx begin = 0; begin < n;) {
            const idx clock = ++counts_->clock;
            idx m = 0, n_missing = 0, n_guests = 0;
            for (; m < chunk && begin + m < n && n_guests < guests; ++m) {
                const std::int32_t row = rows[static_cast<std::size_t>(begin + m)];
                const std::uint8_t times = count(row);
                idx slot = find(row);
                for (idx g = 0; g < n_guests && slot < 0; ++g)
                    if (row_[n_kept() + g] == row) slot = n_kept() + g;
                if (slot < 0) {
                    slot = place_for(row, times, clock);
                    if (slot < 0) slot = n_kept() + n_guests++;
                    row_[slot] = row;
                    missing_[n_missing++] = static_cast<std::int32_t>(slot);
                }
                if (slot < n_kept()) used_[slot] = clock;
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
    // Rows looked up between two rounds of reads, and places behind the others for those that are not kept.
    static constexpr idx ways = 8, chunk = 1024, guests = 64;
    struct counts {
        idx clock = 0, asked = 0, reads = 0, counted = 0;
    };

    static std::uint32_t mixed(std::int32_t row) {
        const std::uint32_t x = static_cast<std::uint32_t>(row) * 0x9E3779B1U;
        return (x ^ x >> 15) * 0x85EBCA77U;
    }
    idx n_kept() const { return n_sets_ * ways; }
    idx set_of(std::int32_t row) const {
        return static_cast<idx>(std::uint64_t{mixed(row)} * static_cast<std::uint64_t>(n_sets_) >> 32) * ways;
    }
    // How often a row was asked for lately: the less of two counters, each of which it shares with few
    // others.
    std::uint8_t frequency(std::int32_t row, bool again) const {
        const std::uint64_t wide = std::uint64_t{mixed(row)} * 0x9E3779B97F4A7C15U;
        const auto last = static_cast<std::uint64_t>(n_counters_) - 1;
        std::uint8_t &a = counters_[wide >> 8 & last], &b = counters_[wide >> 36 & last];
        const std::uint8_t least = std::min(a, b);
        if (!again || least == 15) return least;
        if (a == least) ++a;
        if (b == least) ++b; // twice where they are one, which does no harm
        return least;
    }
    // Counts the row; now and then all that was counted is halved.
    std::uint8_t count(std::int32_t row) const {
        if (++counts_->counted == 8 * n_kept()) {
            counts_->counted = 0;
            for (idx i = 0; i < n_counters_; ++i) counters_[i] = static_cast<std::uint8_t>(counters_[i] / 2);
        }
        frequency(row, true);
        return frequency(row, false);
    }
    // Where a new row is kept, or -1: its set holds more frequent rows, or those of this call alone.
    idx place_for(std::int32_t row, std::uint8_t times, idx clock) const {
        const idx first = set_of(row);
        idx slot = first;
        for (idx other = first + 1; other < first + ways; ++other)
            if (used_[other] < used_[slot]) slot = other;
        if (row_[slot] < 0) return slot;
        return used_[slot] < clock && frequency(row_[slot], false) < times ? slot : -1;
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
    std::uint8_t* counters_ = nullptr;
    idx n_sets_ = 0, n_counters_ = 8;
    std::int32_t *slots_ = nullptr, *missing_ = nullptr;
    counts* counts_ = nullptr;
};

} // namespace sluice
