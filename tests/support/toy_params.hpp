// A layer's params as headers write them: a matrix, a vector and a buffer.
#pragma once

#include <sluice/core/params.hpp>

namespace sluice::test {

struct toy_config {
    idx rows = 3, cols = 5;
};

template <class W>
struct toy_params {
    tensor_view<W> w_up;
    tensor_view<vector_type<W>> bias;
    tensor_view<vector_type<W>> running;

    static toy_params bind(arena& memory, const toy_config& c) {
        toy_params p;
        p.w_up = memory.take<W>(c.rows, c.cols);
        p.bias = memory.take<vector_type<W>>(1, c.rows);
        p.running = memory.take<vector_type<W>>(1, 2);
        return p;
    }
    template <class F, class First, class... Sets>
    static void each(F& f, const param_name& at, First& first, Sets&... sets) {
        f(param_name(at, "w_up"), role::matrix, first.w_up, sets.w_up...);
        f(param_name(at, "bias"), role::vector, first.bias, sets.bias...);
        f(param_name(at, "running"), role::buffer, first.running, sets.running...);
    }
};

} // namespace sluice::test
