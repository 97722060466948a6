// expect: sluice: stack takes a streaming_layer; see core/layer.hpp
// expect: d_out
#include <sluice/layers/compose.hpp>
#include <sluice/layers/linear.hpp>

struct forgetful : sluice::linear<float> {
    using sluice::linear<float>::linear;
#ifndef CONTROL
    void d_out() const = delete;
#endif
};

template class sluice::stack<forgetful>;
