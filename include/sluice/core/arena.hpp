// One type for all memory a layer uses: a stack of bytes the caller provides.
//
// Params and state are bound from it; as workspace it is released to a mark when a call leaves; as tape it is
// last-in first-out: backward pops what forward pushed. A dry arena has no memory, hands out null views and
// counts: running the same code on it yields the size to provide. Not for use by several threads at once.
#pragma once

#include "tensor_view.hpp"

#include <algorithm>
#include <limits>
#include <memory>
#include <new>
#include <utility>

#if defined(__linux__)
#    include <sys/mman.h>
#endif

namespace sluice {

class arena {
public:
    static constexpr std::size_t alignment = 64; // a cache line, and the widest register
    // Of a matrix: more than any memory holds, and small enough for what is computed from sizes.
    static constexpr idx most_elements = std::numeric_limits<idx>::max() >> (sizeof(idx) == 8 ? 15 : 2);

    arena() = default; // dry: counts only
    // Owns zeroed memory; much of it in huge pages where the system has them (Linux): weights that are read
    // once a step come a tenth faster.
    explicit arena(std::size_t bytes) : owned_(allocate(bytes)) { own(bytes); }
    explicit arena(std::span<std::byte> memory) : memory_(memory.data()), capacity_(memory.size()) {
        const auto address = reinterpret_cast<std::uintptr_t>(memory_);
        const std::size_t skip = std::min((alignment - address % alignment) % alignment, capacity_);
        memory_ += skip;
        capacity_ -= skip;
        dry_ = false;
    }

    // Dry but for take_views, which takes from `views`: shapes a params set without memory for its tensors.
    static arena shapes(arena& views) {
        arena a;
        a.views_ = &views;
        return a;
    }

    arena(arena&& other) noexcept { swap(other); }
    arena& operator=(arena&& other) noexcept {
        arena moved(std::move(other));
        swap(moved);
        return *this;
    }

    bool dry() const { return dry_; }
    std::size_t used() const { return used_; }
    // The most that was ever in use: what a caller has to provide, plus alignment - 1 where the memory is
    // not aligned to a cache line.
    std::size_t bytes() const { return high_; }
    std::size_t capacity() const { return dry_ ? std::numeric_limits<std::size_t>::max() : capacity_; }

    template <class T>
    T* take(idx n) {
        static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= alignment);
        const std::size_t size = slot<T>(n);
        if (size > capacity() - used_)
            SLUICE_THROW(capacity_error("arena", amount(size + used_), amount(capacity()), "bytes"));
        T* at = dry_ ? nullptr : reinterpret_cast<T*>(memory_ + used_);
        used_ += size;
        high_ = std::max(high_, used_);
        return at;
    }
    template <class T>
    tensor_view<T> take(idx rows, idx cols) {
        if (rows < 0 || cols < 0 || rows > most_elements || cols > most_elements ||
            (cols > 0 && rows > most_elements / cols))
            SLUICE_THROW(config_error("arena: " + shape_text(rows, cols) + " is no shape"));
        if constexpr (requires { tensor_view<T>::elements(rows, cols); }) // a storage type with its own order
            return {take<typename tensor_view<T>::element>(tensor_view<T>::elements(rows, cols)), rows, cols};
        else
            return {take<T>(rows * cols), rows, cols};
    }

    // For views that a params set keeps of a number of parts known at run time only.
    template <class V>
    V* take_views(idx n) {
        return views_ == nullptr ? take<V>(n) : views_->take<V>(n);
    }
    // Counts what f() takes from this dry arena n times, by calling it once: n may come from a file.
    template <class F>
    void count(idx n, F&& f) {
        if (n <= 0) return;
        const std::size_t before = used_, views_before = views_ == nullptr ? 0 : views_->used_;
        f();
        take<std::byte>(n - 1, amount(used_ - before));
        if (views_ != nullptr) views_->take<std::byte>(n - 1, amount(views_->used_ - views_before));
    }

    // The tape's other end: gives back the newest record, whose type and size must be those it was taken
    // with. What it returns stays valid until the next take.
    template <class T>
    T* pop(idx n) {
        const std::size_t size = slot<T>(n);
        if (size > used_) SLUICE_THROW(error("arena: tape popped below its start"));
        used_ -= size;
        return dry_ ? nullptr : reinterpret_cast<T*>(memory_ + used_);
    }
    template <class T>
    tensor_view<T> pop(idx rows, idx cols) {
        return {pop<T>(rows * cols), rows, cols};
    }

    // One small record of plain data at the tape's end, and back.
    template <class R>
    void push_record(const R& record) {
        if (R* at = take<R>(1)) *at = record;
    }
    template <class R>
    R pop_record() {
        const R* at = pop<R>(1);
        return at == nullptr ? R{} : *at;
    }

    // Releases everything taken since used() was `mark`.
    void release(std::size_t mark) {
        SLUICE_ASSERT(mark <= used_);
        used_ = mark;
    }

    // Releases what take(arena) took last, by calling it on one that counts.
    template <class F>
    void give_back(F&& take) {
        arena counting;
        take(counting);
        release(used_ - counting.used_);
    }

    // Restores the mark when it goes out of scope: the first line of a function that uses workspace.
    class scope {
    public:
        explicit scope(arena& a) : arena_(a), mark_(a.used()) {}
        scope(const scope&) = delete;
        scope& operator=(const scope&) = delete;
        ~scope() {
            if (!kept_) arena_.used_ = mark_;
        }
        // Nothing is given back: what was taken has become a record that backward will pop.
        void keep() { kept_ = true; }

    private:
        arena& arena_;
        std::size_t mark_;
        bool kept_ = false;
    };

private:
    static constexpr std::size_t huge_page = std::size_t{2} << 20;
    struct aligned_delete {
        std::align_val_t aligned;
        aligned_delete() : aligned(std::align_val_t{alignment}) {}
        explicit aligned_delete(std::align_val_t a) : aligned(a) {}
        void operator()(std::byte* p) const { ::operator delete[](p, aligned); }
    };
    using storage = std::unique_ptr<std::byte[], aligned_delete>;

    void swap(arena& other) noexcept {
        std::swap(owned_, other.owned_);
        std::swap(memory_, other.memory_);
        std::swap(capacity_, other.capacity_);
        std::swap(used_, other.used_);
        std::swap(high_, other.high_);
        std::swap(dry_, other.dry_);
        std::swap(views_, other.views_);
    }
    static storage allocate(std::size_t bytes) {
        const std::align_val_t aligned{bytes < 2 * huge_page ? alignment : huge_page};
        auto* p = static_cast<std::byte*>(::operator new[](bytes, aligned));
#if defined(__linux__)
        if (bytes >=
            2 * huge_page) // before the first touch; a system without them refuses, and nothing is lost
            (void)::madvise(p, bytes / huge_page * huge_page, MADV_HUGEPAGE);
#endif
        std::fill_n(p, bytes, std::byte{0});
        return storage(p, aligned_delete{aligned});
    }
    void own(std::size_t bytes) {
        memory_ = owned_.get();
        capacity_ = bytes;
        dry_ = false;
    }
    template <class T>
    static std::size_t slot(idx n) {
        constexpr auto limit = (std::numeric_limits<std::size_t>::max() / 4) / sizeof(T);
        if (n < 0 || static_cast<std::size_t>(n) > limit)
            SLUICE_THROW(config_error("arena: cannot hold " + std::to_string(n) + " elements"));
        const std::size_t bytes = static_cast<std::size_t>(n) * sizeof(T);
        return (bytes + alignment - 1) / alignment * alignment;
    }
    static idx amount(std::size_t n) {
        return static_cast<idx>(std::min(n, static_cast<std::size_t>(std::numeric_limits<idx>::max())));
    }

    storage owned_;
    std::byte* memory_ = nullptr;
    std::size_t capacity_ = 0;
    std::size_t used_ = 0;
    std::size_t high_ = 0;
    bool dry_ = true;
    arena* views_ = nullptr;
};

} // namespace sluice
