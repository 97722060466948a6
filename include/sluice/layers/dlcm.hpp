// Dynamic concepts (Qu et al., "Dynamic large concept models", 2025): most of a model works on concepts, of
// which a text has fewer than tokens.
//   H = encoder(x), cut into segments;  C = W_up mean(H);  Z = smoothed backbone(C);  y = decoder(H +
//   attention of H to Z)   (section 3.1; the parts: boundary_detector, concept_pool, concept_cross_attention)
// Differs: the paper's tokens see the mean of their own segment, which looks at later tokens. Here they see
// the segments that ended before them, or one of two other rules (concept_forming).
#pragma once

#include "boundary_detector.hpp"
#include "compose.hpp"
#include "concept_cross_attention.hpp"
#include "concept_pool.hpp"

namespace sluice {

template <class Encoder, class Backbone, class Decoder>
struct dlcm_config {
    Encoder encoder{};
    boundary_config boundary{};
    concept_config concepts{};
    Backbone backbone{}; // its width is that of concepts
    concept_attention_config cross{};
    Decoder decoder{};
};

template <class W, class Encoder, class Backbone, class Decoder>
struct dlcm_params {
    Encoder encoder;
    boundary_params<W> boundary;
    concept_params<W> concepts;
    Backbone backbone;
    concept_attention_params<W> cross;
    Decoder decoder;

    static dlcm_params bind(arena& a, const auto& c) {
        dlcm_params p;
        p.encoder = Encoder::bind(a, c.encoder);
        p.boundary = boundary_params<W>::bind(a, c.boundary);
        p.concepts = concept_params<W>::bind(a, c.concepts);
        p.backbone = Backbone::bind(a, c.backbone);
        p.cross = concept_attention_params<W>::bind(a, c.cross);
        p.decoder = Decoder::bind(a, c.decoder);
        return p;
    }
    template <class F, class First, class... Sets>
    static void each(F& f, const param_name& at, First& first, Sets&... sets) {
        Encoder::each(f, param_name(at, "encoder"), first.encoder, sets.encoder...);
        boundary_params<W>::each(f, param_name(at, "boundary"), first.boundary, sets.boundary...);
        concept_params<W>::each(f, param_name(at, "concepts"), first.concepts, sets.concepts...);
        Backbone::each(f, param_name(at, "backbone"), first.backbone, sets.backbone...);
        concept_attention_params<W>::each(f, param_name(at, "cross"), first.cross, sets.cross...);
        Decoder::each(f, param_name(at, "decoder"), first.decoder, sets.decoder...);
    }
};

// Each part by its own rule.
template <class W, class E, class M, class D>
void initialise(const dlcm_params<W, E, M, D>& p, const auto& c, const random_source& numbers) {
    initialise(p.encoder, c.encoder, numbers.split(0));
    initialise(p.boundary, c.boundary, numbers.split(1));
    initialise(p.concepts, c.concepts, numbers.split(2));
    initialise(p.backbone, c.backbone, numbers.split(3));
    initialise(p.cross, c.cross, numbers.split(4));
    initialise(p.decoder, c.decoder, numbers.split(5));
}

template <class T, class Encoder, class Backbone, class Decoder>
struct dlcm_state {
    concept_state<T> own;
    Encoder encoder;
    Backbone backbone; // of concepts
    concept_attention_state<T> cross;
    Decoder decoder;

    idx tokens(idx slot) const { return own.tokens(slot); }
    idx concepts(idx slot) const { return own.concepts(slot); }
    void truncate(idx slot, idx tokens) {
        const idx made = own.truncate(slot, tokens);
        encoder.truncate(slot, tokens);
        backbone.truncate(slot, made);
        cross.keys.truncate(slot, made);
        decoder.truncate(slot, tokens);
    }
    // Throws unless there is room for the tokens; for their concepts, extend does, which knows how many.
    void check_room(const batch& b) const {
        own.check_room(b);
        check_room_of(encoder, b);
        check_room_of(decoder, b);
        if (!own.bounded()) check_room_of(backbone, b); // as many concepts at a time as there may be
    }
};

inline namespace SLUICE_ISA {

// Encoder, Decoder: streaming_layers over tokens; Backbone: one over concepts, of its own width. All of them
// with their residuals inside, such as stacks of transformer_block. W: how the other weights are stored.
template <class Encoder, class Backbone = Encoder, class Decoder = Encoder,
          class W = typename Encoder::scalar>
class dlcm {
    static_assert(streaming_layer<Encoder> && streaming_layer<Backbone> && streaming_layer<Decoder>,
                  "sluice: dlcm takes streaming_layers; see core/layer.hpp");

public:
    using scalar = typename Encoder::scalar;
    using arch = typename Encoder::arch;
    using T = scalar;
    static constexpr bool trainable = is_trainable<Encoder> && is_trainable<Backbone> &&
                                      is_trainable<Decoder> && std::is_same_v<std::remove_const_t<W>, T>;
    using config_type = dlcm_config<typename Encoder::config_type, typename Backbone::config_type,
                                    typename Decoder::config_type>;
    using params_type = dlcm_params<W, typename Encoder::params_type, typename Backbone::params_type,
                                    typename Decoder::params_type>;
    using grad_type = dlcm_params<T, typename Encoder::grad_type, typename Backbone::grad_type,
                                  typename Decoder::grad_type>;
    using state_type = dlcm_state<T, typename Encoder::state_type, typename Backbone::state_type,
                                  typename Decoder::state_type>;

    dlcm(const config_type& config, const params_type& params)
        : config_(config),
          params_(params),
          encoder_(config.encoder, params.encoder),
          detector_(config.boundary, params.boundary, "dlcm"),
          pool_(config.concepts, params.concepts, "dlcm"),
          backbone_(config.backbone, params.backbone),
          cross_(config.cross, params.cross, "dlcm"),
          decoder_(config.decoder, params.decoder) {
        const idx d = config.concepts.d_model, c = config.concepts.d_concept;
        auto same = [](idx width, idx right, std::string_view what) {
            if (width != right)
                SLUICE_THROW(config_error("dlcm: the width of " + std::string(what) + " must be " +
                                          std::to_string(right) + ", is " + std::to_string(width)));
        };
        same(encoder_.d_in(), d, "the encoder"), same(encoder_.d_out(), d, "the encoder");
        same(decoder_.d_in(), d, "the decoder"), same(decoder_.d_out(), d, "the decoder");
        same(backbone_.d_in(), c, "the backbone"), same(backbone_.d_out(), c, "the backbone");
        same(config.boundary.d_model, d, "boundary"), same(config.cross.d_model, d, "cross");
        same(config.cross.d_concept, c, "cross.d_concept");
    }
    const config_type& config() const { return config_; }
    const params_type& params() const { return params_; }
    idx d_in() const { return config_.concepts.d_model; }
    idx d_out() const { return d_in(); }

    // Every sequence of the batch from its first token; y (n_tokens, d_model) from x of the same shape. Makes
    // at most b.max_concepts of a sequence: more is a capacity_error, before y is written.
    void forward(const batch& b, in<T> x, tensor_view<T> y, arena* tape, arena& workspace,
                 executor_ref ex = {}) const {
        check_call(b, x, y);
        const arena::scope scope(workspace);
        arena& keep = tape == nullptr ? workspace : *tape;
        arena::scope record(keep); // a call that fails leaves none
        kept k = take_tokens(keep, b);
        encoder_.forward(part(b, 0), x, k.h, tape, workspace, ex);
        detector_.detect(part(b, 3), k.h, config_.boundary.forward_by, nullptr, k.found, workspace, ex);
        const bool known = !ex.dry();
        if (known) check_made(b, k.found.starts, nullptr, b.max_concepts);
        rehearse(ex, tape, [&](executor_ref dry) { finish(b, k, known, y, tape, workspace, dry); });
        finish(b, k, known, y, tape, workspace, ex);
        const auto& loss = config_.boundary.loss;
        if (known && tape != nullptr && loss.counts != nullptr && !loss.counted)
            *loss.counts += detector_.count(k.found, b.n_tokens);
        record.keep();
    }

    // b as in forward. Boundaries are constants; their loss (boundary_loss_config) is added here.
    void backward(const batch& b, in<T> x, in<T> dy, tensor_view<T> dx, arena& tape, const grad_type& grad,
                  arena& workspace, executor_ref ex = {}) const {
        check_backward<T>(b, x, dy, dx, d_in(), d_in(), "dlcm");
        rehearse(ex, &tape, [&](executor_ref dry) { backward(b, x, dy, dx, tape, grad, workspace, dry); });
        const arena::scope scope(workspace);
        kept k = tape.pop_record<kept>();
        if (tape.dry()) k = counted(b);
        const idx n = b.n_tokens, m = k.cut.to.n_tokens, c = config_.concepts.d_concept;
        const auto dh = workspace.take<T>(n, d_in()), dp = workspace.take<T>(1, n);
        if (!ex.dry()) fill(dp, static_cast<T>(loss_slope(k.found, n)));
        {
            const arena::scope inner(workspace);
            const auto dl = workspace.take<T>(n, d_in());
            const auto dlook = workspace.take<T>(m, c), dz = workspace.take<T>(m, c);
            const in<T> look = config_.concepts.smooths() ? k.concepts.smooth : k.z;
            decoder_.backward(part(b, 2), k.y, dy, dl, tape, grad.decoder, workspace, ex);
            cross_.backward(b, k.cut, config_.concepts.inclusive(), k.h, look, k.heads, dl, dh, dlook,
                            grad.cross, workspace, ex);
            pool_.smooth_backward(k.z, k.cut, k.concepts, dlook, dz, dp, workspace, ex);
            if (m > 0)
                backbone_.backward(part(k.cut.to, 1), k.concepts.c, dz, dlook, tape, grad.backbone, workspace,
                                   ex);
            tape.give_back([&](arena& a) { (void)take_concepts(a, b, k); });
            pool_.form_backward(dlook, k.cut, k.concepts, dh, grad.concepts, workspace, ex);
        }
        if (config_.concepts.moves_boundaries() || config_.boundary.loss.weight > 0)
            detector_.backward(b, k.h, k.found, dp, dh, grad.boundary, workspace, ex);
        encoder_.backward(part(b, 0), x, dh, dx, tape, grad.encoder, workspace, ex);
        tape.give_back([&](arena& a) { (void)take_tokens(a, b); });
    }

    state_type bind_state(arena& memory, const limits& most) const {
        check_streams();
        state_type s;
        s.own = concept_state<T>::bind(memory, most, config_.concepts, config_.boundary.scan_width());
        limits tokens = most, concepts = most;
        if (s.own.bounded()) tokens.max_rollback += most.max_rows; // where concepts find no room
        concepts.max_tokens = s.own.max_concepts;
        concepts.max_rows = std::min(most.max_rows, s.own.max_concepts);
        s.encoder = encoder_.bind_state(memory, tokens);
        s.backbone = backbone_.bind_state(memory, concepts);
        s.cross = cross_.bind_state(memory, concepts);
        s.decoder = decoder_.bind_state(memory, most);
        return s;
    }
    // Appends the batch's tokens. The segment that they leave open is part of the state. Throws
    // capacity_error, and leaves the state as it was, where they make more than max_concepts.
    void extend(const batch& given, in<T> x, tensor_view<T> y, state_type& state, arena& workspace,
                executor_ref ex = {}) const {
        check_call(given, x, y);
        check_streams();
        if (!ex.dry()) state.check_room(given);
        rehearse(ex, [&](executor_ref dry) { extend(given, x, y, state, workspace, dry); });
        const arena::scope scope(workspace);
        batch b = given;
        b.counted_sequences = state.own.lengths.n_sequences(); // as many as a batch can name
        auto* const past = workspace.take<segment_past<T>>(b.counted_sequences);
        for (idx s = 0; s < b.n_sequences() && past != nullptr; ++s) past[s] = state.own.past(b.slot(s));
        const kept k = take_tokens(workspace, b);
        encoder_.extend(part(b, 0), x, k.h, state.encoder, workspace, ex);
        detector_.detect(b, k.h, boundary_choice::threshold, past, k.found, workspace, ex);
        if (!ex.dry()) check_made(b, k.found.starts, past, state.own.max_concepts, &state);
        finish_extend(b, k, past, y, state, workspace, ex);
    }
    void prefill(const batch& b, in<T> x, tensor_view<T> y, state_type& state, arena& workspace,
                 executor_ref ex = {}) const {
        extend(b, x, y, state, workspace, ex);
    }
    void decode(const batch& b, in<T> x, tensor_view<T> y, state_type& state, arena& workspace,
                executor_ref ex = {}) const {
        extend(b, x, y, state, workspace, ex);
    }

    // p (1, n_tokens), and 1 where a segment begins: what forward would do, for texts to be looked at and
    // for counts of a step's batches before their gradients (boundary_loss_config::counted).
    boundary_counts boundaries(const batch& b, in<T> x, tensor_view<T> p, std::span<std::uint8_t> starts,
                               arena& workspace, executor_ref ex = {}) const {
        check_call(b, x, x);
        require_shape(p, 1, b.n_tokens, "dlcm", "p");
        require_shape(tensor_view<std::uint8_t>(starts), 1, b.n_tokens, "dlcm", "starts");
        const arena::scope scope(workspace);
        const kept k = take_tokens(workspace, b);
        encoder_.forward(part(b, 0), x, k.h, nullptr, workspace, ex);
        detector_.detect(part(b, 3), k.h, config_.boundary.forward_by, nullptr, k.found, workspace, ex);
        if (ex.dry()) return {};
        copy<T>(k.found.p, p, ex);
        std::copy_n(k.found.starts, b.n_tokens, starts.begin());
        return detector_.count(k.found, b.n_tokens);
    }

    sizes bytes(const limits& most) const { return layer_bytes(*this, most); }
    // With as many tokens to a segment as `boundary` aims at.
    double flops(idx n_tokens, idx past = 0) const {
        const double ratio = config_.boundary.expected_ratio(), n = static_cast<double>(n_tokens);
        auto made = [&](idx of) { return static_cast<idx>(std::llround(static_cast<double>(of) / ratio)); };
        const double pairs = n / ratio * (static_cast<double>(past) + (n - 1) / 2);
        return encoder_.flops(n_tokens, past) + decoder_.flops(n_tokens, past) + detector_.flops(n_tokens) +
               pool_.flops(n / ratio) + backbone_.flops(made(n_tokens), made(past)) +
               cross_.flops(n_tokens, n / ratio, pairs);
    }

private:
    using detector = boundary_detector<T, W, arch>;
    using pool = concept_pool<T, W, arch>;
    using cross = concept_cross_attention<T, W, arch>;
    struct kept { // what a call makes, and backward needs
        tensor_view<T> h;
        typename detector::found found;
        segments<T> cut;
        typename pool::tensors concepts;
        tensor_view<T> z; // concepts x d_concept: the backbone's output
        typename cross::tensors heads;
        tensor_view<T> y; // n_tokens x d_model: what enters the decoder
    };
    kept take_tokens(arena& keep, const batch& b) const {
        kept k;
        k.h = keep.take<T>(b.n_tokens, d_in());
        k.found = detector_.take(keep, b.n_tokens);
        k.cut = segments<T>::take(keep, b);
        return k;
    }
    // When k.cut.to says how many concepts there are.
    kept take_concepts(arena& keep, const batch& b, kept k) const {
        const idx m = k.cut.to.n_tokens;
        k.cut.take_made(keep);
        k.concepts = pool_.take(keep, m);
        k.z = keep.take<T>(m, config_.concepts.d_concept);
        k.heads = cross_.take(keep, b.n_tokens, m);
        k.y = keep.take<T>(b.n_tokens, d_in());
        return k;
    }
    // What a batch that only counts leaves.
    kept counted(const batch& b) const {
        arena none;
        kept k = take_tokens(none, b);
        k.cut.to.n_tokens = most_made(b, b.max_concepts);
        return take_concepts(none, b, k);
    }
    // Of a batch that only counts; each: of a sequence, 0 for any number.
    static idx most_made(const batch& b, idx each) {
        const idx n_sequences = std::max(b.n_sequences(), b.counted_sequences);
        return each == 0 || each > b.n_tokens / n_sequences ? b.n_tokens : each * n_sequences;
    }
    double loss_slope(const typename detector::found& f, idx n) const {
        const auto& loss = config_.boundary.loss;
        if (loss.weight == 0) return 0;
        const boundary_counts c = loss.counts == nullptr ? detector_.count(f, n) : *loss.counts;
        return loss.weight * c.loss_slope(loss.ratio);
    }

    // What comes behind the boundaries. Where they are not known yet, memory for the most there can be.
    void finish(const batch& b, kept k, bool known, tensor_view<T> y, arena* tape, arena& workspace,
                executor_ref ex) const {
        const arena::scope scope(workspace);
        arena& keep = tape == nullptr ? workspace : *tape;
        const concept_forming form = config_.concepts.forming;
        k.cut.number(most_made(b, b.max_concepts), [&](idx s) {
            if (known) return segments<T>::made(b, s, k.found.starts, form, nullptr);
            return b.max_concepts == 0 ? b.tokens(s) : std::min(b.tokens(s), b.max_concepts);
        });
        k = take_concepts(keep, b, k);
        k.cut.place(nullptr);
        if (!ex.dry()) k.cut.fill(b, k.found.starts, k.found.p.data(), form, nullptr);
        pool_.form(k.h, k.cut, nullptr, k.concepts, workspace, ex);
        if (k.cut.to.n_tokens > 0)
            backbone_.forward(part(k.cut.to, 1), k.concepts.c, k.z, tape, workspace, ex);
        const in<T> look = pool_.smooth(k.z, k.cut, nullptr, k.concepts, ex);
        cross_.forward(b, k.cut, config_.concepts.inclusive(), k.h, look, k.heads, k.y, workspace, ex);
        decoder_.forward(part(b, 2), k.y, y, tape, workspace, ex);
        if (tape != nullptr) tape->push_record(k);
    }
    void finish_extend(const batch& b, kept k, const segment_past<T>* past, tensor_view<T> y,
                       state_type& state, arena& workspace, executor_ref ex) const {
        const concept_forming form = config_.concepts.forming;
        k.cut.number(most_made(b, state.own.max_concepts), [&](idx s) {
            if (!ex.dry()) return segments<T>::made(b, s, k.found.starts, form, past);
            return std::min(b.tokens(s), state.own.max_concepts - past[s].concepts);
        });
        k = take_concepts(workspace, b, k);
        k.cut.place(past);
        if (!ex.dry()) k.cut.fill(b, k.found.starts, k.found.p.data(), form, past);
        pool_.form(k.h, k.cut, past, k.concepts, workspace, ex);
        if (k.cut.to.n_tokens > 0)
            backbone_.extend(part(k.cut.to, 1), k.concepts.c, k.z, state.backbone, workspace, ex);
        const in<T> look = pool_.smooth(k.z, k.cut, past, k.concepts, ex);
        cross_.extend(b, k.cut, past, config_.concepts.inclusive(), k.h, look, k.heads, k.y, state.cross,
                      workspace, ex);
        decoder_.extend(part(b, 2), k.y, y, state.decoder, workspace, ex);
        pool_.keep(
            b, k.h, k.cut, past, k.found.p, look, [&](idx i) { return detector_.scan_of(k.h, k.found, i); },
            state.own, workspace, ex);
    }

    static batch part(const batch& b, idx i) { return detail::for_layer(b, i); }
    void check_call(const batch& b, in<T> x, in<T> y) const {
        check_batch(b, "dlcm");
        if (b.copies != 1)
            SLUICE_THROW(input_error("dlcm: batch: copies is " + std::to_string(b.copies) +
                                     "; concepts are made of tokens without copies"));
        require_shape(x, b.n_tokens, d_in(), "dlcm", "x");
        require_shape(y, b.n_tokens, d_in(), "dlcm", "y");
        if (b.n_tokens > std::numeric_limits<std::int32_t>::max())
            SLUICE_THROW(input_error("dlcm: " + std::to_string(b.n_tokens) +
                                     " tokens in a call, there may be 2^31 - 1"));
    }
    void check_streams() const {
        require(config_.concepts.forming != concept_forming::leaking_mean, "dlcm",
                "concepts.forming is leaking_mean, which looks at later tokens and cannot stream");
    }
    // Throws where a sequence comes to more than `most` concepts; the encoder of a state has its tokens.
    void check_made(const batch& b, const std::uint8_t* starts, const segment_past<T>* past, idx most,
                    state_type* state = nullptr) const {
        for (idx s = 0; s < b.n_sequences() && most > 0; ++s) {
            idx made = segments<T>::made(b, s, starts, config_.concepts.forming, past);
            if (past != nullptr) made += past[s].concepts;
            if (made <= most) continue;
            for (idx i = 0; i < b.n_sequences() && state != nullptr; ++i)
                state->encoder.truncate(b.slot(i), past[i].tokens);
            SLUICE_THROW(capacity_error("dlcm: sequence " + std::to_string(b.slot(s)), made, most,
                                        "concepts (max_concepts)"));
        }
    }

    config_type config_;
    params_type params_;
    Encoder encoder_;
    detector detector_;
    pool pool_;
    Backbone backbone_;
    cross cross_;
    Decoder decoder_;
};

} // namespace SLUICE_ISA
} // namespace sluice
