// Memory that ends where a page begins that nobody may touch: reading one element too many ends the test. A
// vector read beyond the end that stays within a page is seen by nothing else.
#pragma once

#include <sluice/core/params.hpp>
#include <sluice/core/tensor_view.hpp>

#include <deque>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#    include <sys/mman.h>
#    include <unistd.h>
#endif

namespace sluice::test {

class guarded_bytes {
public:
#if defined(__unix__) || defined(__APPLE__)
    explicit guarded_bytes(std::size_t bytes) {
        const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
        const std::size_t room = (bytes + page - 1) / page * page;
        size_ = room + page;
        void* at = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED) throw std::bad_alloc();
        memory_ = static_cast<std::byte*>(at);
        ::mprotect(memory_ + room, page, PROT_NONE);
        data_ = memory_ + room - bytes;
    }
    ~guarded_bytes() { ::munmap(memory_, size_); }
#else
    explicit guarded_bytes(std::size_t bytes) : memory_(new std::byte[bytes]()), data_(memory_) {}
    ~guarded_bytes() { delete[] memory_; }
#endif
    guarded_bytes(const guarded_bytes&) = delete;
    std::byte* data() const { return data_; }

private:
    std::size_t size_ = 0;
    std::byte* memory_ = nullptr;
    std::byte* data_ = nullptr;
};

// A zeroed matrix whose last row ends at the page.
template <class T>
class guarded {
public:
    guarded(idx rows, idx cols)
        : memory_(static_cast<std::size_t>(rows * cols) * sizeof(T)),
          view_(reinterpret_cast<T*>(memory_.data()), rows, cols) {}
    template <class From>
    explicit guarded(const tensor_view<From>& from) : guarded(from.rows(), from.cols()) {
        for (idx i = 0; i < from.rows(); ++i)
            for (idx j = 0; j < from.cols(); ++j) view_(i, j) = static_cast<T>(from(i, j));
    }
    tensor_view<T> view() const { return view_; }
    operator tensor_view<T>() const { return view_; }
    operator tensor_view<const T>() const { return view_; }

private:
    guarded_bytes memory_;
    tensor_view<T> view_;
};

// Room for an arena, of a multiple of its alignment.
class guarded_arena {
public:
    explicit guarded_arena(std::size_t bytes)
        : memory_(bytes), arena_(std::span<std::byte>(memory_.data(), bytes)) {}
    operator sluice::arena&() { return arena_; }
    sluice::arena& arena() { return arena_; }

private:
    guarded_bytes memory_;
    sluice::arena arena_;
};

// A parameter set P of T or const T whose tensors end at pages, with the values of `from`, a set as large.
template <class P, class T>
struct guarded_params {
    template <class Config, class From>
    guarded_params(const Config& config, From& from) : skeleton(config) {
        each_param([&](const param_name&, role, auto& t,
                       const auto& source) { t = tensors.emplace_back(source).view(); },
                   skeleton.view, from);
    }
    P& view() { return skeleton.view; }

    owned_params<P> skeleton;
    std::deque<guarded<T>> tensors;
};

// Address space that takes memory only where it is touched, for matrices whose rows lie so far apart that the
// last is more than 2^32 elements behind the first.
class far_rows {
public:
    explicit far_rows(idx n_matrices) {
#if defined(MAP_NORESERVE)
        if (sizeof(void*) < 8) return;
        size_ = static_cast<std::size_t>(n_matrices) * stretch;
        void* at = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                          -1, 0);
        if (at != MAP_FAILED) memory_ = static_cast<std::byte*>(at);
#endif
    }
    far_rows(const far_rows&) = delete;
    ~far_rows() {
#if defined(MAP_NORESERVE)
        if (memory_ != nullptr) ::munmap(memory_, size_);
#endif
    }
    bool available() const { return memory_ != nullptr; } // a system may refuse

    // The next matrix, zeroed or a copy.
    template <class T>
    tensor_view<T> take(idx rows, idx cols) {
        T* at = reinterpret_cast<T*>(memory_ + stretch * taken_++);
        const auto stride = static_cast<idx>(stretch / sizeof(T)) / std::max<idx>(rows, 1);
        return {at, rows, cols, std::max(stride - 3, cols)};
    }
    template <class T>
    tensor_view<std::remove_const_t<T>> copy_of(const tensor_view<T>& from) {
        const auto to = take<std::remove_const_t<T>>(from.rows(), from.cols());
        for (idx i = 0; i < from.rows(); ++i) std::copy_n(from.row(i), from.cols(), to.row(i));
        return to;
    }

private:
    static constexpr auto stretch = static_cast<std::size_t>(std::uint64_t{36} << 30); // on 64 bits
    std::byte* memory_ = nullptr;
    std::size_t size_ = 0, taken_ = 0;
};

} // namespace sluice::test
