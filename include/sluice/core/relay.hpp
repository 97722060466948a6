// The walk of a composite over its layers, forwards and backwards: layer i reads the output of layer i - 1.
// The outputs between layers are on the tape, or two buffers in turn; their addresses are the last thing on
// the tape.
#pragma once

#include "arena.hpp"

namespace sluice {

// `layer` names the composite in errors; x is rows x width, y the same or of `out_rows`.
template <class T>
class relay {
public:
    relay(std::string_view layer, idx n_layers, idx rows, idx width, in<T> x, tensor_view<T> y, arena* tape,
          arena& workspace, idx out_rows = -1)
        : n_layers_(n_layers), rows_(rows), width_(width), from_(x), y_(y), tape_(tape) {
        require_shape(x, rows, width, layer, "x");
        // the last layer would find a wrong y only when the others' states are written
        require_shape(y, out_rows < 0 ? rows : out_rows, width, layer, "y");
        if (tape == nullptr) {
            for (auto& buffer : buffers_)
                if (n_layers > 1) buffer = workspace.take<T>(rows, width);
        } else {
            inputs_ = workspace.take<const T*>(n_layers);
        }
    }
    // Calls f(input, output) for layer i; the output is the input of the next.
    template <class F>
    void step(idx i, F&& f) {
        const bool last = i + 1 == n_layers_;
        const auto to = last ? y_ : tape_ != nullptr ? tape_->take<T>(rows_, width_) : buffers_[i % 2];
        if (inputs_ != nullptr) inputs_[i] = from_.data();
        f(from_, to);
        from_ = to;
    }
    // After the last step.
    void finish() {
        const T** addresses = tape_ == nullptr ? nullptr : tape_->take<const T*>(n_layers_);
        if (addresses != nullptr) std::copy_n(inputs_, n_layers_, addresses);
    }

private:
    idx n_layers_, rows_, width_;
    tensor_view<const T> from_;
    tensor_view<T> y_, buffers_[2];
    arena* tape_;
    const T** inputs_ = nullptr;
};

// The same walk backwards: f(input, dout, din) for each layer from the last to the first. din of a layer is
// dout of the one before; the first input is x itself.
template <class T>
class relay_back {
public:
    relay_back(idx n_layers, idx rows, idx width, in<T> x, in<T> dy, tensor_view<T> dx, arena& tape,
               arena& workspace)
        : n_layers_(n_layers),
          rows_(rows),
          width_(width),
          x_(x),
          d_(dy),
          dx_(dx),
          tape_(tape),
          inputs_(tape.pop<const T*>(n_layers)) {
        for (auto& buffer : buffers_)
            if (n_layers > 1) buffer = workspace.take<T>(rows, width);
    }
    template <class F>
    void step(idx i, F&& f) {
        const auto to = i == 0 ? dx_ : buffers_[i % 2];
        const tensor_view<const T> input =
            i == 0 ? x_ : tensor_view<const T>(inputs_ == nullptr ? nullptr : inputs_[i], rows_, width_);
        f(input, d_, to);
        if (i + 1 < n_layers_) (void)tape_.pop<T>(rows_, width_); // this layer's output
        d_ = to;
    }

private:
    idx n_layers_, rows_, width_;
    tensor_view<const T> x_, d_;
    tensor_view<T> dx_, buffers_[2];
    arena& tape_;
    const T* const* inputs_;
};

} // namespace sluice
