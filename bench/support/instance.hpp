// Layers with weights, input, output and memory of their own, for benchmarks of whole layers.
#pragma once

#include <sluice/core/layer.hpp>
#include <sluice/core/packed.hpp>

#include "data.hpp"

namespace sluice::bench {

// Filled where they lie: the order of packed ones is of no interest here.
template <class P>
struct filled {
    template <class Config>
    explicit filled(const Config& config) : memory(bytes_of(config)), view(P::bind(memory, config)) {
        std::uint64_t seed = 1;
        each_param(
            [&]<class To>(const param_name&, role r, const tensor_view<To>& w) {
                const float scale = 1 / std::sqrt(static_cast<float>(w.cols()));
                if constexpr (is_packed<To>) {
                    const idx n = tensor_view<To>::elements(w.rows(), w.cols());
                    tensor<float> some(1, 4096);
                    fill_uniform(some, scale, seed++);
                    for (idx i = 0; i < n; ++i) w.data()[i] = some(0, (i * 2654435761) % 4093);
                } else if (r == role::vector) {
                    fill(w, 1.0F);
                } else {
                    fill_uniform(w, scale, seed++);
                }
            },
            view);
    }
    filled(const filled&) = delete;
    template <class Config>
    static std::size_t bytes_of(const Config& config) {
        arena dry;
        (void)P::bind(dry, config);
        return dry.bytes();
    }
    arena memory;
    P view;
};

// A layer with its weights and memory, over n tokens.
template <class Layer>
struct instance {
    instance(const typename Layer::config_type& config, idx n, idx workers)
        : weights(config),
          net(config, weights.view),
          need(net.bytes({.max_rows = n, .workers = workers})),
          workspace(need.workspace),
          x(uniform(n, net.d_in(), 1.7F, 3)),
          y(n, net.d_in()) {}
    instance(const instance&) = delete;
    void forward(executor_ref ex) { net.forward(batch::one(x.rows()), x, y.view(), nullptr, workspace, ex); }

    filled<typename Layer::params_type> weights;
    Layer net;
    sizes need;
    arena workspace;
    tensor<float> x, y;
};

} // namespace sluice::bench
