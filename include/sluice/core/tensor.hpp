// A matrix that owns its memory: zeroed, aligned to a cache line, converts to tensor_view. For users' own
// buffers, tests and examples; layers never allocate.
#pragma once

#include "arena.hpp"

namespace sluice {

template <class T>
class tensor {
public:
    tensor() = default;
    tensor(idx rows, idx cols) : memory_(bytes(rows, cols)), view_(memory_.take<T>(rows, cols)) {}
    tensor(tensor&& other) noexcept
        : memory_(std::move(other.memory_)), view_(std::exchange(other.view_, {})) {}
    tensor& operator=(tensor&& other) noexcept {
        memory_ = std::move(other.memory_);
        view_ = std::exchange(other.view_, {});
        return *this;
    }

    idx rows() const { return view_.rows(); }
    idx cols() const { return view_.cols(); }
    idx size() const { return view_.size(); }
    T* data() { return view_.data(); }
    const T* data() const { return view_.data(); }
    T* row(idx i) { return view_.row(i); }
    const T* row(idx i) const { return view_.row(i); }
    T& operator()(idx i, idx j) { return view_(i, j); }
    const T& operator()(idx i, idx j) const { return view_(i, j); }

    tensor_view<T> view() { return view_; }
    tensor_view<const T> view() const { return view_; }
    operator tensor_view<T>() { return view_; }
    operator tensor_view<const T>() const { return view_; }

private:
    static std::size_t bytes(idx rows, idx cols) {
        arena dry;
        dry.take<T>(rows, cols);
        return dry.bytes();
    }

    arena memory_;
    tensor_view<T> view_;
};

} // namespace sluice
