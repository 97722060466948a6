// Data for tests, the same in every run: seeded numbers, small integers whose sums are exact, matrices with
// guards around and between their rows, and memory that ends where the next page cannot be touched.
#pragma once

#include <sluice/core/random.hpp>

#include <sys/mman.h>
#include <unistd.h>

#include <bit>
#include <cstring>
#include <limits>
#include <new>
#include <string>
#include <vector>

namespace sluice::test {

template <class T>
void fill_uniform(const tensor_view<T>& t, std::uint64_t key, double low = -1, double high = 1) {
    const random_source numbers(key);
    for (idx i = 0; i < t.rows(); ++i)
        for (idx j = 0; j < t.cols(); ++j) {
            const idx n = 2 * (i * t.cols() + j);
            const double drawn = numbers.uniform(n) + 0x1p-24 * numbers.uniform(n + 1); // 48 bits
            t(i, j) = static_cast<T>(low + (high - low) * drawn);
        }
}

// Integers in [-most, most]: with most = 8, sums of 2^17 products are exact in float.
template <class T>
void fill_integers(const tensor_view<T>& t, std::uint64_t key, std::uint32_t most = 8) {
    const random_source numbers(key);
    for (idx i = 0; i < t.rows(); ++i)
        for (idx j = 0; j < t.cols(); ++j) {
            const auto drawn = static_cast<int>(numbers.bits(i * t.cols() + j) % (2 * most + 1));
            t(i, j) = static_cast<T>(drawn - static_cast<int>(most));
        }
}

template <class To, class From>
void copy(const tensor_view<From>& from, const tensor_view<To>& to) {
    for (idx i = 0; i < to.rows(); ++i)
        for (idx j = 0; j < to.cols(); ++j) to(i, j) = from(i, j);
}

// A matrix whose rows stand `pad` elements apart and start `lead` elements into its memory, which is not
// aligned to a register for the odd leads used here. All else is a NaN of known bits: reading it spoils the
// result, and touched() tells whether it was written.
template <class T>
class padded {
public:
    padded(idx rows, idx cols, idx pad = 5, idx lead = 19)
        : rows_(rows),
          cols_(cols),
          stride_(cols + pad),
          lead_(lead),
          memory_(static_cast<std::size_t>(lead + rows * stride_ + 37), guard()) {
        fill(view(), T(0));
    }

    tensor_view<T> view() { return {memory_.data() + lead_, rows_, cols_, stride_}; }
    tensor_view<const T> view() const { return {memory_.data() + lead_, rows_, cols_, stride_}; }
    operator tensor_view<T>() { return view(); }
    operator tensor_view<const T>() const { return view(); }
    T* data() { return view().data(); }
    T* row(idx i) { return view().row(i); }
    T& operator()(idx i, idx j) { return view()(i, j); }

    std::string touched() const {
        const T untouched = guard();
        for (std::size_t at = 0; at < memory_.size(); ++at) {
            const idx from_start = static_cast<idx>(at) - lead_;
            const bool inside =
                from_start >= 0 && from_start < rows_ * stride_ && from_start % stride_ < cols_;
            if (!inside && std::memcmp(&memory_[at], &untouched, sizeof(T)) != 0)
                return "an element outside was written, " + std::to_string(from_start) + " from the first";
        }
        return "";
    }

private:
    static T guard() {
        if constexpr (sizeof(T) == 4)
            return std::bit_cast<T>(std::uint32_t{0x7FC5A5A5});
        else
            return std::bit_cast<T>(std::uint64_t{0x7FF85A5A5A5A5A5A});
    }

    idx rows_, cols_, stride_, lead_;
    std::vector<T> memory_;
};

template <class T>
padded<T> uniform_matrix(idx rows, idx cols, std::uint64_t key, double low = -1, double high = 1) {
    padded<T> m(rows, cols);
    fill_uniform(m.view(), key, low, high);
    return m;
}

// n elements that end with their page; the page after it, and the one before the first, cannot be touched.
// Reading or writing there ends the program, so no test can overlook it.
template <class T>
class page_end {
public:
    explicit page_end(idx n) : n_(n) {
        const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
        const std::size_t inner = (static_cast<std::size_t>(n) * sizeof(T) + page - 1) / page * page;
        size_ = inner + 2 * page;
        memory_ = mmap(nullptr, size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory_ == MAP_FAILED) throw std::bad_alloc();
        auto* first = static_cast<std::byte*>(memory_) + page;
        if (inner > 0 && mprotect(first, inner, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
        data_ = reinterpret_cast<T*>(first + inner) - n;
    }
    page_end(const page_end&) = delete;
    ~page_end() { munmap(memory_, size_); }

    T* data() { return data_; }
    T& operator[](idx i) { return data_[i]; }
    tensor_view<T> row() { return {data_, 1, n_}; }
    tensor_view<T> matrix(idx rows, idx cols) { return {data_, rows, cols}; }

private:
    idx n_;
    std::size_t size_ = 0;
    void* memory_ = nullptr;
    T* data_ = nullptr;
};

} // namespace sluice::test
