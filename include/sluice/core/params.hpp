// Parameter sets. A layer's params struct is a handful of views with one static function
// `each(f, at, sets...)` that calls `f(name, role, tensors...)` for every tensor, over any number of sets at
// once: weights, gradients and both moments of an optimiser are the same struct. Composites nest names
// (`layers.2.block.w_up`); walking allocates nothing.
#pragma once

#include "arena.hpp"

#include <array>

namespace sluice {

// What an optimiser or a checkpoint may do with a tensor.
enum class role {
    matrix,    // a linear map, (out, in): fan-in is its number of columns; weight decay applies
    vector,    // scales and biases: no decay
    embedding, // a dense matrix looked up by row: no decay
    table,     // a large memory: saved and updated by rows, never with dense gradients
    buffer,    // saved, never trained
};

// A dotted name as a chain of parts on the stack.
class param_name {
public:
    param_name() = default;
    param_name(std::string_view part) : text_(part) {}
    param_name(const char* part) : text_(part) {}
    param_name(const param_name& parent, std::string_view part) : parent_(&parent), text_(part) {}
    param_name(const param_name& parent, idx number) : parent_(&parent), number_(number) {}

    std::string str() const {
        std::string out = parent_ == nullptr ? std::string() : parent_->str();
        std::string part = number_ >= 0 ? std::to_string(number_) : std::string(text_);
        if (!out.empty() && !part.empty()) out += '.';
        return out + part;
    }

    std::string_view last() const { return text_; } // part; empty for a number
    bool within(std::string_view part) const {      // or is itself of that name
        return text_ == part || (parent_ != nullptr && parent_->within(part));
    }

private:
    const param_name* parent_ = nullptr;
    std::string_view text_;
    idx number_ = -1;
};

// Walks sets of the same params type: each_param(f, weights, gradients, ...).
template <class F, class P, class... Sets>
void each_param(F&& f, P& first, Sets&... rest) {
    std::remove_const_t<P>::each(f, param_name{}, first, rest...);
}

// Number of trained scalars (buffers are not counted).
template <class P>
idx count_params(const P& params) {
    idx n = 0;
    each_param([&](const param_name&, role r, const auto& t) { n += r == role::buffer ? 0 : t.size(); },
               params);
    return n;
}

// Bytes that `P::bind(arena, config)` takes.
template <class P, class Config>
std::size_t params_bytes(const Config& config) {
    arena dry;
    (void)P::bind(dry, config);
    return dry.bytes();
}

template <class P>
void zero(P& params) {
    each_param([](const param_name&, role, const auto& t) { fill(t, {}); }, params);
}

// A parameter set together with the memory it lives in, zeroed: for gradients, moments, and weights that are
// trained or made up rather than read from a file.
template <class P>
struct owned_params {
    template <class Config>
    explicit owned_params(const Config& config)
        : memory(params_bytes<P>(config)), view(P::bind(memory, config)) {}

    arena memory;
    P view;
};

} // namespace sluice
