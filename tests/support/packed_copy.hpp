// A packed copy of a matrix in memory of its own, which ends where the next page cannot be touched.
#pragma once

#include "random_data.hpp"

#include <sluice/ops/quantise.hpp>

namespace sluice::test {

template <class S>
class packed_copy {
public:
    using element = typename tensor_view<packed<S>>::element;

    template <class W>
    explicit packed_copy(const tensor_view<W>& w)
        : memory_(tensor_view<packed<S>>::elements(w.rows(), w.cols())),
          view(memory_.data(), w.rows(), w.cols()) {
        pack_matrix(w, view);
    }

private:
    page_end<element> memory_;

public:
    tensor_view<packed<S>> view;
};

// What it stands for.
template <class W>
padded<float> unpacked(const W& w) {
    padded<float> out(w.rows(), w.cols());
    for (idx r = 0; r < w.rows(); ++r) unpack_row(w, r, out.row(r));
    return out;
}

} // namespace sluice::test
