// The layer suite as a class: what all its checks share, and the list of them. Their bodies are in the files
// beside this one.
#pragma once

#include "layer_suite/fixtures.hpp"
#include "support/archs.hpp"

namespace sluice::test {

template <class Traits, class Type>
class layer_suite {
public:
    using T = typename Type::scalar;
    using arch = typename Type::arch;
    template <class W>
    using params = typename Traits::template params<W>;
    using layer_type = typename Traits::template layer<T, const T, arch>;
    using config_type = typename layer_type::config_type;
    static constexpr bool trains = trainable_layer<layer_type>;
    // Layers that send rows to some of their weights say so: the others have no gradient, and take no memory.
    static constexpr bool routed = requires { requires Traits::routed; };
    // Layers that send some tokens past their weights as well: the tape is as long as there are others.
    static constexpr bool skips = requires { requires Traits::skips; };
    // Layers whose rows depend on later ones, too, say that they do not stream: they have no state.
    static constexpr bool streams = !requires { requires !Traits::streams; };
    static constexpr bool row_by_row = requires {
        requires std::is_same_v<typename layer_type::state_type, no_state>;
    };

    static_assert(layer<layer_type> && streaming_layer<layer_type> == streams);

    // A layer with weights that T can hold, and the same weights for the reference.
    struct subject {
        explicit subject(const config_type& config)
            : wide(config), narrow(config), layer(config, narrow.view()) {
            std::uint64_t key = 100;
            std::size_t i = 0;
            each_param(
                [&](const param_name&, role r, auto& t) {
                    const double most =
                        r == role::matrix ? std::sqrt(3.0 / static_cast<double>(t.cols())) : 1;
                    fill_uniform(t, ++key, r == role::vector ? 0.5 : -most, r == role::vector ? 1.5 : most);
                    copy(t, narrow.tensors[i].view(), [](double v) { return static_cast<T>(v); });
                    copy(narrow.tensors[i++].view(), t, [](T v) { return static_cast<double>(v); });
                },
                wide.view);
        }
        owned_params<params<double>> wide;
        spread_params<params<const T>, T> narrow;
        layer_type layer;

    private:
        template <class A, class B, class F>
        static void copy(const tensor_view<A>& a, const tensor_view<B>& b, F f) {
            for (idx i = 0; i < a.rows(); ++i)
                for (idx j = 0; j < a.cols(); ++j) b(i, j) = f(a(i, j));
        }
    };

    // Gradients of sum(y dy) for a given dy.
    struct gradients {
        gradients(const subject& s, idx rows) : grad(s.layer.config()), dx(rows, s.layer.d_in()) {}
        spread_params<params<T>, T> grad;
        padded<T> dx;
    };

    static limits limits_of(idx rows, idx n_sequences = 1, idx workers = 1) {
        rows = std::max<idx>(rows, 1); // limits are positive
        return {.max_tokens = rows, .max_rows = rows, .n_sequences = n_sequences, .workers = workers};
    }

    static padded<T> forward(const layer_type& layer, const batch& b, in<T> x, executor_ref ex = {}) {
        poisoned_memory workspace(
            layer.bytes(limits_of(b.n_tokens, b.n_sequences(), ex.concurrency())).workspace);
        padded<T> y(b.n_tokens, layer.d_out());
        layer.forward(b, x, y, nullptr, workspace.arena(), ex);
        expect(workspace.touched());
        CHECK(workspace.arena().used() == 0);
        expect(y.touched());
        return y;
    }
    static padded<T> forward(const layer_type& layer, const sample<T>& s) {
        return forward(layer, s.rows(), s.x.view());
    }

    static void backward(const layer_type& layer, const batch& b, in<T> x, in<T> dy, gradients& g,
                         executor_ref ex = {}) {
        const sizes need = layer.bytes(limits_of(b.n_tokens, b.n_sequences(), ex.concurrency()));
        poisoned_memory workspace(need.workspace), tape(need.tape);
        padded<T> y(b.n_tokens, layer.d_out());
        layer.forward(b, x, y, &tape.arena(), workspace.arena(), ex);
        CHECK((tape.arena().used() == need.tape || (skips && tape.arena().used() < need.tape)));
        layer.backward(b, x, dy, g.dx, tape.arena(), g.grad.view(), workspace.arena(), ex);
        CHECK(tape.arena().used() == 0);
        CHECK(workspace.arena().used() == 0);
        expect(workspace.touched() + tape.touched() + g.dx.touched() + g.grad.touched());
    }

    // The calls of a layer that streams; of another, no state and forward.
    static auto bind_state(const layer_type& layer, arena& memory, const limits& most) {
        if constexpr (streams)
            return layer.bind_state(memory, most);
        else
            return no_state();
    }
    static void extend(const layer_type& layer, const batch& b, in<T> x, tensor_view<T> y, auto& state,
                       arena& workspace, executor_ref ex = {}) {
        if constexpr (streams)
            layer.extend(b, x, y, state, workspace, ex);
        else
            layer.forward(b, x, y, nullptr, workspace, ex);
    }

    template <class F>
    static void for_each_variant(bool large, F&& f) {
        for (const auto& v : Traits::variants()) {
            if (v.large && !large) continue;
            INFO("config: " << v.name);
            const subject s(v.config);
            f(s);
        }
    }

    // What the reference says of a sample, and how far from it the layer may be.
    template <class Reference>
    static oracle ask(Reference&& reference, const subject& s, const sample<T>& rows) {
        tensor<double> x(rows.x.view().rows(), rows.x.view().cols()), y(x.rows(), s.layer.d_out());
        for (idx i = 0; i < x.rows(); ++i)
            for (idx j = 0; j < x.cols(); ++j) x(i, j) = static_cast<double>(rows.x.view()(i, j));
        reference(s.layer.config(), s.wide.view, rows.rows(), x, y);
        oracle want(y.rows(), y.cols());
        double largest = 0;
        for (idx i = 0; i < y.rows(); ++i)
            for (idx j = 0; j < y.cols(); ++j) largest = std::max(largest, std::abs(y(i, j)));
        for (idx i = 0; i < y.rows(); ++i)
            for (idx j = 0; j < y.cols(); ++j) want(i, j) = {y(i, j), largest};
        return want;
    }
    // Layers over layers carry the rounding of one through the next, and may ask for more.
    static constexpr idx chain() {
        if constexpr (requires { Traits::chain; })
            return Traits::chain;
        else
            return 256;
    }
    static constexpr tolerance close{.chain = chain()};

    // The checks: each makes one test case.
    // agreement.hpp
    static void agrees_with_its_reference();
    static void a_wrong_reference_is_noticed();
    static void takes_any_view();
    static void sequences_do_not_meet();
    static void no_tokens_are_legal();
    static void is_causal();
    static void any_executor_gives_the_same_bits();
    static void two_threads_may_call_one_layer();
    static void other_float_modes_change_little();

    // streaming.hpp
    static void streams_to_the_same_bits_at_every_split();
    static void streams_several_sequences_unevenly();
    static void takes_tokens_back();
    static void states_refuse_what_they_cannot_hold();

    // gradients.hpp
    static void gradients_are_slopes();
    static void gradients_accumulate();

    // memory.hpp
    static void allocates_nothing();
    static void takes_the_memory_it_says();
    static void too_little_memory_is_refused_before_output();
    static void touches_nothing_beyond_its_memory();
    static void rows_may_be_gigabytes_apart();

    // bad_input.hpp
    static void wrong_shapes_are_named();
    static void wrong_arguments_are_named();
    static void overlapping_outputs_are_noticed_or_harmless();
    static void wrong_gradient_arguments_are_named();
    static void absurd_limits_are_refused();
    static void bad_batches_are_refused();
    static void no_value_leaves_its_sequence();

private:
    static void gradients_agree_with_double(const subject& s, const sample<T>& rows, const padded<T>& dy,
                                            gradients& g);
    static void gradients_run_backwards_only(const subject& s);
    static void backward_is_refused_as_a_whole(const subject& s, const sample<T>& rows, const sizes& need);
    template <class F>
    static idx check_too_small(std::size_t bytes, padded<T>& y, F&& f);
    template <class F>
    static std::string wrong_or_refused(F&& f, tensor_view<const T> got, const padded<T>& want);
    static std::string far_from(const padded<T>& got, const padded<T>& usual);
    // By any error of the library: which one depends on what is looked at first.
    template <class F>
    static bool is_refused(F&& f) {
        try {
            f();
        } catch (const error&) {
            return true;
        }
        return false;
    }
    static bool all_zero(tensor_view<const T> t) {
        for (idx i = 0; i < t.rows(); ++i)
            for (idx j = 0; j < t.cols(); ++j)
                if (t(i, j) != T(0)) return false;
        return true;
    }
    template <class A, class B>
    static void copy(const tensor_view<A>& from, const tensor_view<B>& to) {
        for (idx i = 0; i < from.rows(); ++i)
            for (idx j = 0; j < from.cols(); ++j) to(i, j) = static_cast<B>(from(i, j));
    }
    template <class F>
    static void for_each_weight(const subject& s, F&& f) {
        std::size_t i = 0;
        auto& narrow = const_cast<subject&>(s).narrow;
        each_param(
            [&](const param_name& name, role, auto&) {
                f(name.str(), i, narrow.tensors[i].view());
                ++i;
            },
            narrow.view());
    }
};

} // namespace sluice::test
