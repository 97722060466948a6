// Concepts from tokens: the mean of each segment, or its first token, mapped to the width of concepts (Qu et
// al., "Dynamic large concept models", 2025, eq. 7), and what a backbone made of them smoothed along the
// sequence (section 3.5.1). The segment that is still open is part of a state.
//   c_k = W_up mean of h over segment k;   z~_0 = z_0, z~_k = a_k z_k + (1 - a_k) z~_{k-1}
#pragma once

#include "../core/random.hpp"
#include "../core/sequence_lengths.hpp"
#include "../ops/elementwise.hpp"
#include "../ops/matmul.hpp"
#include "../ops/segment.hpp"

namespace sluice {

// The paper gives no formula. ema: a is p where the segment begins, as in H-Net (Hwang et al., "Dynamic
// chunking", 2025, eq. 5), within [1e-4, 1 - 1e-4]; constant: a is `weight`.
enum class concept_smoothing { ema, none, constant };
// Whether the model's loss reaches p through ema; the paper decouples boundaries from it (section 3.3).
enum class boundary_gradient { stopped, through_smoothing };

struct concept_config {
    idx d_model = 0, d_concept = 0;
    concept_forming forming = concept_forming::mean;
    concept_smoothing smoothing = concept_smoothing::ema;
    double weight = 0.5; // in (0, 1]
    boundary_gradient gradient = boundary_gradient::stopped;

    // The last concept that a token sees is its own.
    bool inclusive() const { return forming != concept_forming::mean; }
    bool smooths() const { return smoothing != concept_smoothing::none; }
    bool moves_boundaries() const {
        return smoothing == concept_smoothing::ema && gradient == boundary_gradient::through_smoothing;
    }
};

template <class W>
struct concept_params {
    tensor_view<W> w_up; // d_concept x d_model

    static concept_params bind(arena& a, const concept_config& c) {
        return {a.take<W>(c.d_concept, c.d_model)};
    }
    template <class F, class First, class... Sets>
    static void each(F& f, const param_name& at, First& first, Sets&... sets) {
        f(param_name(at, "w_up"), role::matrix, first.w_up, sets.w_up...);
    }
};

// Normal with deviation 1 / sqrt(d_model).
template <class T>
void initialise(const concept_params<T>& p, const concept_config& c, const random_source& numbers) {
    fill_normal(p.w_up, 1 / std::sqrt(static_cast<double>(c.d_model)), numbers);
}

// How many tokens and concepts the sequences of a state hold, and what they bring along.
template <class T>
struct concept_state {
    sequence_lengths lengths;
    idx max_concepts = 0; // of a sequence
    open_segments<T> open;

    static concept_state bind(arena& a, const limits& most, const concept_config& c, idx d_scan) {
        concept_state s;
        s.lengths = sequence_lengths::bind(a, most, "dlcm state");
        s.max_concepts =
            most.max_concepts == 0 ? most.max_tokens : std::min(most.max_concepts, most.max_tokens);
        s.open = open_segments<T>::bind(a, most.n_sequences, most.max_rollback + 1,
                                        c.inclusive() ? 0 : c.d_model, d_scan, c.smooths() ? c.d_concept : 0);
        return s;
    }
    idx tokens(idx slot) const {
        lengths.check_slot(slot);
        return lengths.length(0, slot);
    }
    idx concepts(idx slot) const { return open.past(slot, tokens(slot)).concepts; }
    segment_past<T> past(idx slot) const { return open.past(slot, lengths.length(0, slot)); }
    // Fewer concepts than tokens may be held.
    bool bounded() const { return max_concepts < lengths.most.max_tokens; }
    idx truncate(idx slot, idx tokens) { // returns the concepts that are left
        lengths.truncate(slot, tokens);
        return past(slot).concepts;
    }
    void check_room(const batch& b) const {
        lengths.check_room(b);
        for (idx s = 0; s < b.n_sequences() && bounded(); ++s)
            if (b.tokens(s) > lengths.most.max_rows) // no more can be taken back
                SLUICE_THROW(capacity_error("dlcm state: sequence " + std::to_string(b.slot(s)), b.tokens(s),
                                            lengths.most.max_rows, "rows in one call (max_rows)"));
    }
};

inline namespace SLUICE_ISA {

template <class T, class W = T, class Arch = simd::native>
class concept_pool {
public:
    using scalar = T;
    using arch = Arch;
    using config_type = concept_config;
    using params_type = concept_params<W>;
    using grad_type = concept_params<T>;

    // What backward needs, of the concepts of a call.
    struct tensors {
        tensor_view<T> mean;   // x d_model
        tensor_view<T> c;      // x d_concept
        tensor_view<T> smooth; // the same, or empty
        tensor_view<T> a;      // 1 x concepts, or empty
    };

    concept_pool(const config_type& config, const params_type& params,
                 std::string_view layer = "concept_pool")
        : config_(config), params_(params) {
        require_positive(config.d_model, layer, "concepts.d_model");
        require_positive(config.d_concept, layer, "concepts.d_concept");
        require(config.weight > 0 && config.weight <= 1, layer,
                "concepts.weight must be in (0, 1], is " + std::to_string(config.weight));
        require_shape(params.w_up, config.d_concept, config.d_model, layer, "w_up");
    }
    const config_type& config() const { return config_; }
    const params_type& params() const { return params_; }

    tensors take(arena& keep, idx n_concepts) const {
        tensors t;
        t.mean = keep.take<T>(n_concepts, config_.d_model);
        t.c = keep.take<T>(n_concepts, config_.d_concept);
        if (!config_.smooths()) return t;
        t.smooth = keep.take<T>(n_concepts, config_.d_concept);
        t.a = keep.take<T>(1, n_concepts);
        return t;
    }

    // t.c of h (n_tokens, d_model), cut. `past` (n_sequences) of sequences that go on, else null.
    void form(in<T> h, const segments<T>& cut, const segment_past<T>* past, const tensors& t,
              arena& workspace, executor_ref ex) const {
        segment_rows<Arch, T>(h, cut, config_.forming, past, t.mean, ex);
        matmul<Arch>(t.mean, params_.w_up, t.c, {}, workspace, ex);
    }
    // Of z (concepts, d_concept) what tokens look at: t.smooth, or z itself.
    in<T> smooth(in<T> z, const segments<T>& cut, const segment_past<T>* past, const tensors& t,
                 executor_ref ex) const {
        if (!config_.smooths()) return z;
        const bool constant = config_.smoothing == concept_smoothing::constant;
        for (idx k = 0; k < cut.to.n_tokens && !ex.dry(); ++k)
            t.a(0, k) = constant             ? static_cast<T>(config_.weight)
                        : cut.p[k] < least() ? least()
                        : cut.p[k] > most()  ? most()
                                             : cut.p[k]; // NaN stays
        smooth_rows<Arch, T>(cut.to, z, t.a.data(), past, t.smooth, ex);
        return t.smooth;
    }

    // From the gradient of what smooth() returned to dz, overwritten, and where ema is not stopped to dp
    // (1, n_tokens), added to.
    void smooth_backward(in<T> z, const segments<T>& cut, const tensors& t, in<T> dsmooth, tensor_view<T> dz,
                         tensor_view<T> dp, arena& workspace, executor_ref ex) const {
        if (!config_.smooths()) return copy<T>(dsmooth, dz, ex);
        const arena::scope scope(workspace);
        const bool moves = config_.moves_boundaries();
        T* const da = moves ? workspace.take<T>(z.rows()) : nullptr;
        smooth_rows_backward<Arch, T>(cut.to, z, t.a.data(), t.smooth, dsmooth, dz, da, ex);
        for (idx k = 0; k < z.rows() && moves && !ex.dry(); ++k)
            if (cut.p[k] > least() && cut.p[k] < most()) dp(0, cut.begin[k]) += da[k];
    }
    // From dc to dh (n_tokens, d_model), added to.
    void form_backward(in<T> dc, const segments<T>& cut, const tensors& t, tensor_view<T> dh,
                       const grad_type& grad, arena& workspace, executor_ref ex) const {
        const arena::scope scope(workspace);
        const auto dmean = workspace.take<T>(dc.rows(), config_.d_model);
        matmul_dw<Arch>(dc, t.mean, grad.w_up, workspace, ex);
        matmul_dx<Arch>(dc, params_.w_up, dmean, false, workspace, ex);
        segment_rows_backward<Arch, T>(dmean, cut, config_.forming, dh, ex);
    }

    // Counts the tokens and leaves in the state what each of the last ones does. scan(row) is what the token
    // behind a row is compared with, p (1, n_tokens) and smooth as above.
    template <class Scan>
    void keep(const batch& b, in<T> h, const segments<T>& cut, const segment_past<T>* past, in<T> p,
              in<T> smooth, Scan&& scan, concept_state<T>& of, arena& workspace, executor_ref ex) const {
        const open_segments<T>& state = of.open;
        const arena::scope scope(workspace);
        // copies: a row of the state may take the place of the one that it is made from
        T* const sum = workspace.take<T>(state.sum.cols());
        T* const last = workspace.take<T>(state.smooth.cols());
        for (idx s = 0; s < b.n_sequences() && !ex.dry(); ++s) {
            const segment_past<T>& from = past[s];
            const idx first = b.first_token(s), n = b.tokens(s);
            if (from.open > 0) std::copy_n(from.sum, state.sum.cols(), sum);
            if (from.concepts > 0) std::copy_n(from.smooth, state.smooth.cols(), last);
            for (idx i = first + std::max<idx>(0, n - state.ring); i < first + n; ++i) {
                const idx to = state.row(b.slot(s), from.tokens + i - first + 1);
                const idx start = i + 1 - cut.age[i], made = cut.seen[i] - from.concepts;
                const bool old = start < first; // the segment began in an earlier call
                state.open(to, 0) = cut.age[i];
                state.concepts(to, 0) = cut.seen[i];
                state.p(to, 0) = old ? from.p : p(0, start);
                if (!config_.inclusive())
                    sum_rows<Arch, T>(h, old ? sum : nullptr, old ? first : start, i + 1, state.sum.row(to));
                if (state.scan.cols() > 0) std::copy_n(scan(i), state.scan.cols(), state.scan.row(to));
                if (!config_.smooths() || cut.seen[i] == 0) continue;
                std::copy_n(made > 0 ? smooth.row(cut.to.first_token(s) + made - 1) : last,
                            state.smooth.cols(), state.smooth.row(to));
            }
        }
        if (!ex.dry()) of.lengths.append(b);
    }
    double flops(double n_concepts) const {
        return 2 * n_concepts * static_cast<double>(params_.w_up.size());
    }

private:
    static constexpr T least() { return T(1e-4); }
    static constexpr T most() { return T(1) - T(1e-4); }

    config_type config_;
    params_type params_;
};

} // namespace SLUICE_ISA
} // namespace sluice
