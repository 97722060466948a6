// Layers made of layers.
//   residual<Layer>:   y = x + layer(x); the layer alone is its `change`
//   chain<Layers...>:  different layers of one width, one after another
//   stack<Layer>:      n layers of one kind and config, n known at run time
// Each is a layer itself: it streams and trains as its parts do.
#pragma once

#include "../core/layer.hpp"
#include "../core/parts.hpp"
#include "../core/random.hpp"
#include "../core/relay.hpp"
#include "../ops/elementwise.hpp"

namespace sluice {

template <class... P>
struct chain_params {
    parts<P...> layers;

    template <class... Config>
    static chain_params bind(arena& a, const parts<Config...>& c) {
        chain_params p;
        [&]<std::size_t... I>(std::index_sequence<I...>) {
            ((get<I>(p.layers) = P::bind(a, get<I>(c))), ...);
        }
        (std::index_sequence_for<P...>{});
        return p;
    }
    template <class F, class... Sets>
    static void each(F& f, const param_name& at, Sets&... sets) {
        [&]<std::size_t... I>(std::index_sequence<I...>) { (each_of<I, P>(f, at, sets...), ...); }
        (std::index_sequence_for<P...>{});
    }

private:
    template <std::size_t I, class Layer, class F, class... Sets>
    static void each_of(F& f, const param_name& at, Sets&... sets) {
        Layer::each(f, param_name(at, static_cast<idx>(I)), get<I>(sets.layers)...);
    }
};

template <class... P>
void initialise(const chain_params<P...>& p, const auto& config, const random_source& numbers) {
    [&]<std::size_t... I>(std::index_sequence<I...>) {
        (initialise(get<I>(p.layers), get<I>(config), numbers.split(I)), ...);
    }
    (std::index_sequence_for<P...>{});
}

template <class S>
void check_room_of(const S& state, const batch& b) {
    if constexpr (requires { state.check_room(b); }) state.check_room(b);
}

template <class... S>
struct chain_state {
    parts<S...> layers;
    void truncate(idx slot, idx tokens) {
        [&]<std::size_t... I>(std::index_sequence<I...>) { (get<I>(layers).truncate(slot, tokens), ...); }
        (std::index_sequence_for<S...>{});
    }
    // Throws unless every part has room, so that none is written where another would refuse.
    void check_room(const batch& b) const {
        [&]<std::size_t... I>(std::index_sequence<I...>) { (check_room_of(get<I>(layers), b), ...); }
        (std::index_sequence_for<S...>{});
    }
};

template <class Config>
struct stack_config {
    idx n_layers = 0;
    Config layer{}; // of every layer
};

template <class P>
struct stack_params {
    std::span<P> layers; // the views themselves live in the arena they were bound from

    template <class Config>
    static stack_params bind(arena& a, const stack_config<Config>& c) {
        require(c.n_layers >= 0, "stack", "n_layers must not be negative");
        P* at = a.take_views<P>(c.n_layers);
        if (at == nullptr) a.count(c.n_layers, [&] { (void)P::bind(a, c.layer); });
        for (idx i = 0; at != nullptr && i < c.n_layers; ++i) at[i] = P::bind(a, c.layer);
        return {{at, at == nullptr ? 0 : static_cast<std::size_t>(c.n_layers)}};
    }
    template <class F, class First, class... Sets>
    static void each(F& f, const param_name& at, First& first, Sets&... sets) {
        for (std::size_t i = 0; i < first.layers.size(); ++i)
            P::each(f, param_name(at, static_cast<idx>(i)), first.layers[i], sets.layers[i]...);
    }
};

template <class P>
void initialise(const stack_params<P>& p, const auto& config, const random_source& numbers) {
    for (std::size_t i = 0; i < p.layers.size(); ++i) initialise(p.layers[i], config.layer, numbers.split(i));
}

template <class S>
struct stack_state {
    std::span<S> layers;
    limits most{}; // what it was bound for
    void truncate(idx slot, idx tokens) {
        for (S& s : layers) s.truncate(slot, tokens);
    }
    void check_room(const batch& b) const {
        for (const S& s : layers) check_room_of(s, b);
    }
};

inline namespace SLUICE_ISA {

namespace detail {

// Layer i of several draws numbers of its own, the same ones in backward.
inline batch for_layer(batch b, idx i) {
    b.random_key = random_source(b.random_key).split(static_cast<std::uint64_t>(i)).key();
    return b;
}

} // namespace detail

template <class Layer>
class residual {
    static_assert(streaming_layer<Layer>, "sluice: residual takes a streaming_layer; see core/layer.hpp");

public:
    using scalar = typename Layer::scalar;
    using arch = typename Layer::arch;
    static constexpr bool trainable = is_trainable<Layer>;
    using T = scalar;
    using config_type = typename Layer::config_type;
    using params_type = typename Layer::params_type;
    using grad_type = typename Layer::grad_type;
    using state_type = typename Layer::state_type;

    residual(const config_type& config, const params_type& params) : layer_(config, params) {
        if (layer_.d_in() != layer_.d_out())
            SLUICE_THROW(config_error("residual: the layer maps width " + std::to_string(layer_.d_in()) +
                                      " to " + std::to_string(layer_.d_out())));
    }
    const config_type& config() const { return layer_.config(); }
    const params_type& params() const { return layer_.params(); }
    idx d_in() const { return layer_.d_in(); }
    idx d_out() const { return layer_.d_out(); }

    void change(const batch& b, in<T> x, tensor_view<T> y, arena* tape, arena& workspace,
                executor_ref ex = {}) const {
        layer_.forward(b, x, y, tape, workspace, ex);
    }
    void change_backward(const batch& b, in<T> x, in<T> dy, tensor_view<T> dx, arena& tape,
                         const grad_type& grad, arena& workspace, executor_ref ex = {}) const {
        layer_.backward(b, x, dy, dx, tape, grad, workspace, ex);
    }
    void forward(const batch& b, in<T> x, tensor_view<T> y, arena* tape, arena& workspace,
                 executor_ref ex = {}) const {
        SLUICE_ASSERT(apart(y, x));
        change(b, x, y, tape, workspace, ex);
        add<arch>(x, y, y, ex);
    }
    void backward(const batch& b, in<T> x, in<T> dy, tensor_view<T> dx, arena& tape, const grad_type& grad,
                  arena& workspace, executor_ref ex = {}) const {
        SLUICE_ASSERT(apart(dx, dy));
        change_backward(b, x, dy, dx, tape, grad, workspace, ex);
        add<arch>(dx, dy, dx, ex);
    }
    state_type bind_state(arena& memory, const limits& most) const { return layer_.bind_state(memory, most); }
    void extend(const batch& b, in<T> x, tensor_view<T> y, state_type& state, arena& workspace,
                executor_ref ex = {}) const {
        SLUICE_ASSERT(apart(y, x));
        layer_.extend(b, x, y, state, workspace, ex);
        add<arch>(x, y, y, ex);
    }
    void extend_change(const batch& b, in<T> x, tensor_view<T> y, state_type& state, arena& workspace,
                       executor_ref ex = {}) const {
        layer_.extend(b, x, y, state, workspace, ex);
    }
    sizes bytes(const limits& most) const { return layer_bytes(*this, most); }
    double flops(idx n_tokens, idx past = 0) const { return layer_.flops(n_tokens, past); }

private:
    Layer layer_;
};

template <class... Layers>
class chain {
    static constexpr idx n_layers = sizeof...(Layers);
    static_assert(n_layers > 0, "sluice: a chain needs at least one layer");
    static_assert((streaming_layer<Layers> && ...),
                  "sluice: chain takes streaming_layers; see core/layer.hpp");
    using layers_type = parts<Layers...>;
    using first_layer = std::remove_reference_t<decltype(get<0>(std::declval<layers_type&>()))>;

public:
    using scalar = typename first_layer::scalar;
    using arch = typename first_layer::arch;
    static constexpr bool trainable = (is_trainable<Layers> && ...);
    using T = scalar;
    using config_type = parts<typename Layers::config_type...>;
    using params_type = chain_params<typename Layers::params_type...>;
    using grad_type = chain_params<typename Layers::grad_type...>;
    using state_type = chain_state<typename Layers::state_type...>;

    chain(const config_type& config, const params_type& params)
        : config_(config),
          params_(params),
          layers_(make(config, params, std::index_sequence_for<Layers...>{})) {
        for_each_layer([&](auto i, const auto& layer) {
            if (layer.d_in() != d_in() || layer.d_out() != d_in())
                SLUICE_THROW(config_error("chain: layer " + std::to_string(i()) + " maps width " +
                                          std::to_string(layer.d_in()) + " to " +
                                          std::to_string(layer.d_out()) + ", layer 0 has width " +
                                          std::to_string(d_in())));
        });
    }
    const config_type& config() const { return config_; }
    const params_type& params() const { return params_; }
    idx d_in() const { return get<0>(layers_).d_in(); }
    idx d_out() const { return d_in(); }

    void forward(const batch& b, in<T> x, tensor_view<T> y, arena* tape, arena& workspace,
                 executor_ref ex = {}) const {
        rehearse(ex, tape, [&](executor_ref dry) { forward(b, x, y, tape, workspace, dry); });
        const arena::scope scope(workspace);
        relay<T> walk("chain", n_layers, b.rows(), d_in(), x, y, tape, workspace);
        for_each_layer([&](auto i, const auto& layer) {
            walk.step(i(), [&](in<T> from, tensor_view<T> to) {
                layer.forward(detail::for_layer(b, i()), from, to, tape, workspace, ex);
            });
        });
        walk.finish();
    }
    void backward(const batch& b, in<T> x, in<T> dy, tensor_view<T> dx, arena& tape, const grad_type& grad,
                  arena& workspace, executor_ref ex = {}) const {
        check_backward<T>(b, x, dy, dx, d_in(), d_in(), "chain");
        rehearse(ex, &tape, [&](executor_ref dry) { backward(b, x, dy, dx, tape, grad, workspace, dry); });
        const arena::scope scope(workspace);
        relay_back<T> walk(n_layers, b.rows(), d_in(), x, dy, dx, tape, workspace);
        [&]<std::size_t... I>(std::index_sequence<I...>) {
            (walk.step(n_layers - 1 - static_cast<idx>(I),
                       [&](in<T> from, in<T> d, tensor_view<T> to) {
                           constexpr std::size_t J = sizeof...(Layers) - 1 - I;
                           get<J>(layers_).backward(detail::for_layer(b, J), from, d, to, tape,
                                                    get<J>(grad.layers), workspace, ex);
                       }),
             ...);
        }
        (std::index_sequence_for<Layers...>{});
    }
    state_type bind_state(arena& memory, const limits& most) const {
        state_type state;
        for_each_layer([&](auto i, const auto& layer) {
            get<static_cast<std::size_t>(i())>(state.layers) = layer.bind_state(memory, most);
        });
        return state;
    }
    void extend(const batch& b, in<T> x, tensor_view<T> y, state_type& state, arena& workspace,
                executor_ref ex = {}) const {
        check_batch(b, "chain");
        if (!ex.dry()) state.check_room(b);
        rehearse(ex, [&](executor_ref dry) { extend(b, x, y, state, workspace, dry); });
        const arena::scope scope(workspace);
        relay<T> walk("chain", n_layers, b.rows(), d_in(), x, y, nullptr, workspace);
        for_each_layer([&](auto i, const auto& layer) {
            walk.step(i(), [&](in<T> from, tensor_view<T> to) {
                layer.extend(detail::for_layer(b, i()), from, to,
                             get<static_cast<std::size_t>(i())>(state.layers), workspace, ex);
            });
        });
    }
    sizes bytes(const limits& most) const { return layer_bytes(*this, most); }
    double flops(idx n_tokens, idx past = 0) const {
        double total = 0;
        for_each_layer([&](auto, const auto& layer) { total += layer.flops(n_tokens, past); });
        return total;
    }

private:
    template <std::size_t... I>
    static layers_type make(const config_type& c, const params_type& p, std::index_sequence<I...>) {
        return layers_type{Layers(get<I>(c), get<I>(p.layers))...};
    }
    template <class F>
    void for_each_layer(F&& f) const {
        [&]<std::size_t... I>(std::index_sequence<I...>) {
            (f(std::integral_constant<idx, static_cast<idx>(I)>{}, get<I>(layers_)), ...);
        }
        (std::index_sequence_for<Layers...>{});
    }

    config_type config_;
    params_type params_;
    layers_type layers_;
};

template <class Layer>
class stack {
    static_assert(streaming_layer<Layer>, "sluice: stack takes a streaming_layer; see core/layer.hpp");

public:
    using scalar = typename Layer::scalar;
    using arch = typename Layer::arch;
    static constexpr bool trainable = is_trainable<Layer>;
    using T = scalar;
    using config_type = stack_config<typename Layer::config_type>;
    using params_type = stack_params<typename Layer::params_type>;
    using grad_type = stack_params<typename Layer::grad_type>;
    using state_type = stack_state<typename Layer::state_type>;

    stack(const config_type& config, const params_type& params) : config_(config), params_(params) {
        require_positive(config.n_layers, "stack", "n_layers");
        if (static_cast<idx>(params.layers.size()) != config.n_layers)
            SLUICE_THROW(config_error("stack: params hold " + std::to_string(params.layers.size()) +
                                      " layers, the config says " + std::to_string(config.n_layers)));
        for (idx i = 0; i < config.n_layers; ++i) {
            const Layer one = at(i);
            if (one.d_in() != one.d_out())
                SLUICE_THROW(config_error("stack: the layer maps width " + std::to_string(one.d_in()) +
                                          " to " + std::to_string(one.d_out())));
        }
    }
    const config_type& config() const { return config_; }
    const params_type& params() const { return params_; }
    idx n_layers() const { return config_.n_layers; }
    idx d_in() const { return at(0).d_in(); }
    idx d_out() const { return d_in(); }
    // Layer i: its config with its weights.
    Layer at(idx i) const { return Layer(config_.layer, params_.layers[static_cast<std::size_t>(i)]); }

    void forward(const batch& b, in<T> x, tensor_view<T> y, arena* tape, arena& workspace,
                 executor_ref ex = {}) const {
        rehearse(ex, tape, [&](executor_ref dry) { forward(b, x, y, tape, workspace, dry); });
        const arena::scope scope(workspace);
        relay<T> walk("stack", n_layers(), b.rows(), d_in(), x, y, tape, workspace);
        for (idx i = 0; i < n_layers(); ++i)
            walk.step(i, [&](in<T> from, tensor_view<T> to) {
                at(i).forward(detail::for_layer(b, i), from, to, tape, workspace, ex);
            });
        walk.finish();
    }
    void backward(const batch& b, in<T> x, in<T> dy, tensor_view<T> dx, arena& tape, const grad_type& grad,
                  arena& workspace, executor_ref ex = {}) const {
        check_backward<T>(b, x, dy, dx, d_in(), d_in(), "stack");
        rehearse(ex, &tape, [&](executor_ref dry) { backward(b, x, dy, dx, tape, grad, workspace, dry); });
        const arena::scope scope(workspace);
        relay_back<T> walk(n_layers(), b.rows(), d_in(), x, dy, dx, tape, workspace);
        for (idx i = n_layers() - 1; i >= 0; --i)
            walk.step(i, [&](in<T> from, in<T> d, tensor_view<T> to) {
                at(i).backward(detail::for_layer(b, i), from, d, to, tape, part_of(grad, i), workspace, ex);
            });
    }
    state_type bind_state(arena& memory, const limits& most) const {
        using layer_state = typename Layer::state_type;
        layer_state* first = memory.take<layer_state>(n_layers());
        for (idx i = 0; i < n_layers(); ++i) {
            layer_state one = at(i).bind_state(memory, most);
            if (first != nullptr) first[i] = one;
        }
        return {{first, first == nullptr ? 0 : static_cast<std::size_t>(n_layers())}, most};
    }
    void extend(const batch& b, in<T> x, tensor_view<T> y, state_type& state, arena& workspace,
                executor_ref ex = {}) const {
        rehearse(ex, [&](executor_ref dry) { extend(b, x, y, state, workspace, dry); });
        const arena::scope scope(workspace);
        relay<T> walk("stack", n_layers(), b.rows(), d_in(), x, y, nullptr, workspace);
        for (idx i = 0; i < n_layers(); ++i)
            walk.step(i, [&](in<T> from, tensor_view<T> to) {
                with_state(state, i, [&](auto& mine) {
                    at(i).extend(detail::for_layer(b, i), from, to, mine, workspace, ex);
                });
            });
    }
    sizes bytes(const limits& most) const { return layer_bytes(*this, most); }
    double flops(idx n_tokens, idx past = 0) const {
        return static_cast<double>(n_layers()) * at(0).flops(n_tokens, past);
    }

    // Calls f(state of layer i). A dry run's state has no memory for its parts.
    template <class F>
    void with_state(state_type& state, idx i, F&& f) const {
        if (!state.layers.empty()) return f(state.layers[static_cast<std::size_t>(i)]);
        arena dry;
        auto none = at(i).bind_state(dry, state.most);
        f(none);
    }
    // Gradients of layer i. A dry run's gradients have no memory for their parts.
    typename Layer::grad_type part_of(const grad_type& grad, idx i) const {
        if (!grad.layers.empty()) return grad.layers[static_cast<std::size_t>(i)];
        arena dry;
        return Layer::grad_type::bind(dry, config_.layer);
    }

private:
    config_type config_;
    params_type params_;
};

} // namespace SLUICE_ISA
} // namespace sluice
