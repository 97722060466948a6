// A layer of one's own, complete: it composes, trains, streams, saves and loads like those of the library.
//   y_t = (W_gate x_t) * sum_j tap_j * x_(t - j)     each channel by itself; before its sequence x is zero
// A gated short convolution (Fu et al., "Hungry hungry hippos", 2022): the cheapest way to see some earlier
// tokens.
#pragma once

#include <sluice/core/random.hpp>
#include <sluice/core/sequence_lengths.hpp>
#include <sluice/ops/matmul.hpp>

namespace sluice::examples {

struct short_convolution_config {
    idx d_model = 0;
    idx n_taps = 4; // tokens that a row sees, itself included
};

// W is the storage of matrices; vectors are always kept in the type that is computed in.
template <class W>
struct short_convolution_params {
    tensor_view<W> w_gate;            // d_model x d_model
    tensor_view<vector_type<W>> taps; // n_taps x d_model, the newest token's first

    static short_convolution_params bind(arena& a, const short_convolution_config& c) {
        return {a.take<W>(c.d_model, c.d_model), a.take<vector_type<W>>(c.n_taps, c.d_model)};
    }
    template <class F, class... Sets>
    static void each(F& f, const param_name& at, Sets&... sets) {
        f(param_name(at, "w_gate"), role::matrix, sets.w_gate...);
        f(param_name(at, "taps"), role::vector, sets.taps...);
    }
};

// The gate starts closed, so that a residual block starts as the identity.
template <class T>
void initialise(const short_convolution_params<T>& p, const short_convolution_config& c,
                const random_source& numbers) {
    fill(p.w_gate, T(0));
    fill_normal(p.taps, 1 / std::sqrt(static_cast<double>(c.n_taps)), numbers);
}

// The last inputs of each sequence: what the next token sees, and what it may see after truncate.
template <class T>
struct short_convolution_state : sequence_lengths {
    tensor_view<T> rows; // (sequence, position modulo ring) x d_model
    idx ring = 0;

    static short_convolution_state bind(arena& a, const short_convolution_config& c, const limits& most) {
        const idx ring = c.n_taps - 1 + most.max_rollback;
        return {sequence_lengths::bind(a, most, "short_convolution state"),
                a.take<T>(size_product(most.n_sequences, ring), c.d_model), ring};
    }
    T* row(idx slot, idx position) const { return rows.row(slot * ring + position % ring); }
    void append(const batch& b, in<T> x) {
        for (idx s = 0; s < b.n_sequences(); ++s)
            for (idx i = std::max(b.begin(s), b.end(s) - ring); i < b.end(s); ++i)
                std::copy_n(x.row(i), x.cols(), row(b.slot(s), past(b, s) + i - b.begin(s)));
        sequence_lengths::append(b);
    }
};

template <class T, class W = T, class Arch = simd::native>
class short_convolution {
public:
    using scalar = T;
    using arch = Arch;
    static constexpr bool trainable = std::is_same_v<std::remove_const_t<W>, T>; // weights stored as T
    using config_type = short_convolution_config;
    using params_type = short_convolution_params<W>;
    using grad_type = short_convolution_params<T>;
    using state_type = short_convolution_state<T>;

    short_convolution(const config_type& config, const params_type& params)
        : config_(config), params_(params) {
        require_positive(config.d_model, "short_convolution", "d_model");
        require_positive(config.n_taps, "short_convolution", "n_taps");
        require_shape(params.w_gate, config.d_model, config.d_model, "short_convolution", "w_gate");
        require_shape(params.taps, config.n_taps, config.d_model, "short_convolution", "taps");
    }
    const config_type& config() const { return config_; }
    idx d_in() const { return config_.d_model; }
    idx d_out() const { return config_.d_model; }

    // Every sequence of the batch from its first token; with a tape, backward may follow.
    void forward(const batch& b, in<T> x, tensor_view<T> y, arena* tape, arena& workspace,
                 executor_ref ex = {}) const {
        run(b, x, y, nullptr, tape, workspace, ex);
    }

    // dx is overwritten, the parameters' gradients are added to. The tape's values make room for their own.
    void backward(const batch& b, in<T> x, in<T> dy, tensor_view<T> dx, arena& tape, const grad_type& grad,
                  arena& workspace, executor_ref ex = {}) const {
        check_backward<T>(b, x, dy, dx, d_in(), d_out(), "short_convolution");
        rehearse(ex, &tape, [&](auto dry) { backward(b, x, dy, dx, tape, grad, workspace, dry); });
        const auto sum = tape.pop<T>(b.n_tokens, d_in()), gate = tape.pop<T>(b.n_tokens, d_in());
        ex(d_in(), [&](idx first, idx last, idx) {
            for (idx i = 0; i < b.n_tokens; ++i)
                for (idx c = first; c < last; ++c) {
                    const T dgate = dy(i, c) * sum(i, c);
                    sum(i, c) = dy(i, c) * gate(i, c);
                    gate(i, c) = dgate;
                }
        });
        matmul_dx<Arch>(gate, params_.w_gate, dx, false, workspace, ex);
        matmul_dw<Arch>(gate, x, grad.w_gate, workspace, ex);
        ex(d_in(), [&](idx first, idx last, idx) {
            for (idx s = 0; s < b.n_sequences(); ++s)
                for (idx i = b.begin(s); i < b.end(s); ++i)
                    for (idx j = 0; j < std::min(config_.n_taps, i - b.begin(s) + 1); ++j)
                        for (idx c = first; c < last; ++c) {
                            dx(i - j, c) += params_.taps(j, c) * sum(i, c);
                            grad.taps(j, c) += x(i - j, c) * sum(i, c);
                        }
        });
    }

    state_type bind_state(arena& memory, const limits& most) const {
        return state_type::bind(memory, config_, most);
    }
    // Appends the batch's tokens to their sequences, or throws before anything is written.
    void extend(const batch& b, in<T> x, tensor_view<T> y, state_type& state, arena& workspace,
                executor_ref ex = {}) const {
        run(b, x, y, &state, nullptr, workspace, ex);
    }
    sizes bytes(const limits& most) const { return layer_bytes(*this, most); }

private:
    void run(const batch& b, in<T> x, tensor_view<T> y, state_type* state, arena* tape, arena& workspace,
             executor_ref ex) const {
        check_batch(b, "short_convolution");
        require_shape(x, b.n_tokens, d_in(), "short_convolution", "x");
        require_shape(y, b.n_tokens, d_out(), "short_convolution", "y");
        SLUICE_ASSERT(apart(y, x)); // later rows read earlier ones
        if (state != nullptr && !ex.dry()) state->check_room(b);
        const arena::scope scope(workspace);
        arena& keep = tape == nullptr ? workspace : *tape;
        const auto gate = keep.take<T>(b.n_tokens, d_in()), sum = keep.take<T>(b.n_tokens, d_in());
        matmul<Arch>(x, params_.w_gate, gate, {}, workspace, ex); // nothing after it can fail
        ex(d_in(), [&](idx first, idx last, idx) {
            for (idx s = 0; s < b.n_sequences(); ++s) {
                const idx begin = b.begin(s), past = state == nullptr ? 0 : state->past(b, s);
                for (idx i = begin; i < b.end(s); ++i) {
                    std::fill(sum.row(i) + first, sum.row(i) + last, T(0));
                    for (idx j = 0; j < std::min(config_.n_taps, past + i - begin + 1); ++j) {
                        const T* from =
                            i - j >= begin ? x.row(i - j) : state->row(b.slot(s), past + i - j - begin);
                        for (idx c = first; c < last; ++c) sum(i, c) += params_.taps(j, c) * from[c];
                    }
                    for (idx c = first; c < last; ++c) y(i, c) = gate(i, c) * sum(i, c);
                }
            }
        });
        if (state != nullptr && !ex.dry()) state->append(b, x);
    }

    config_type config_;
    params_type params_;
};

} // namespace sluice::examples
