#include "support/golden.hpp"
#include "support/layer_suite.hpp"
#include "support/reference_of.hpp"

#include <sluice/layers/dlcm.hpp>
#include <sluice/layers/language_model.hpp>
#include <sluice/layers/mixture_of_depths.hpp>
#include <sluice/layers/transformer_block.hpp>
#include <sluice/reference/dlcm.hpp>
#include <sluice/train/boundary_loss.hpp>

using namespace sluice::test;
using sluice::arena;
using sluice::batch;
using sluice::boundary_rule;
using sluice::capacity_error;
using sluice::concept_forming;
using sluice::concept_smoothing;
using sluice::concept_weight;
using sluice::config_error;
using sluice::idx;
using sluice::in;
using sluice::tensor_view;

namespace {

template <class T, class W = T, class Arch = sluice::simd::native>
using blocks = sluice::transformer_block<T, W, Arch>;
template <class T, class W = T, class Arch = sluice::simd::native>
using dlcm = sluice::dlcm<blocks<T, W, Arch>, blocks<T, W, Arch>, blocks<T, W, Arch>, W>;
using config = dlcm<double>::config_type;

sluice::transformer_block_config block_of(idx d, idx n_heads, idx head_dim, idx d_ff) {
    return {.attention = {.d_model = d, .n_heads = n_heads, .n_kv_heads = n_heads, .head_dim = head_dim},
            .feed_forward = {.d_model = d, .d_ff = d_ff},
            .norm = {.d_model = d}};
}

namespace ref = sluice::reference;

ref::dlcm_shape shape_of(const config& c) {
    const auto& x = c.cross;
    return {.rules = {.threshold = c.boundary.threshold,
                      .interval = c.boundary.rule == boundary_rule::every ? c.boundary.interval : 0,
                      .longest = c.boundary.max_segment},
            .cross = {.n_heads = x.n_heads, .n_kv_heads = x.n_kv_heads, .head_dim = x.head_dim, .eps = x.eps},
            .kind = c.concepts.forming == concept_forming::mean ? ref::concept_kind::completed_mean
                    : c.concepts.forming == concept_forming::boundary_token
                        ? ref::concept_kind::boundary_token
                        : ref::concept_kind::leaking_mean,
            .smoothed = c.concepts.smoothing != concept_smoothing::none,
            .weight = c.concepts.smoothing == concept_smoothing::constant ? c.concepts.weight : 0,
            .replicated = x.weight == concept_weight::segment_length};
}

struct dlcm_traits {
    template <class W>
    using params =
        sluice::dlcm_params<W, sluice::transformer_block_params<W>, sluice::transformer_block_params<W>,
                            sluice::transformer_block_params<W>>;
    template <class T, class W, class Arch>
    using layer = ::dlcm<T, W, Arch>;

    static constexpr idx chain = 4096;
    static constexpr bool routed = true, skips = true;
    static std::vector<variant<config>> variants() {
        const auto small = block_of(6, 2, 4, 7);
        config c{.encoder = small,
                 .boundary = {.d_model = 6, .d_scan = 5},
                 .concepts = {.d_model = 6,
                              .d_concept = 10,
                              .gradient = sluice::boundary_gradient::through_smoothing},
                 .backbone = block_of(10, 1, 6, 11),
                 .cross = {.d_model = 6, .d_concept = 10, .n_heads = 4, .n_kv_heads = 2, .head_dim = 3},
                 .decoder = block_of(6, 1, 2, 5)};
        std::vector<variant<config>> all{{"completed means", c}};
        c.cross.weight = concept_weight::segment_length;
        c.boundary.max_segment = 3;
        c.concepts.smoothing = concept_smoothing::none;
        all.push_back({"weighed by length, short segments", c});
        c.concepts.forming = concept_forming::boundary_token;
        c.boundary.threshold = 0.4;
        all.push_back({"boundary tokens, weighed", c});
        c.cross.weight = concept_weight::one;
        c.boundary = {.d_model = 6, .rule = boundary_rule::similarity};
        c.concepts.smoothing = concept_smoothing::constant;
        all.push_back({"boundary tokens by similarity", c});
        const auto awkward = block_of(67, 3, 18, 71);
        all.push_back(
            {"awkward widths",
             {.encoder = awkward,
              .boundary = {.d_model = 67, .rule = boundary_rule::every, .interval = 5},
              .concepts = {.d_model = 67, .d_concept = 129},
              .backbone = block_of(129, 2, 34, 33),
              .cross = {.d_model = 67, .d_concept = 129, .n_heads = 6, .n_kv_heads = 2, .head_dim = 17},
              .decoder = awkward},
             true});
        return all;
    }
    static void reference(const config& c, const params<double>& p, const batch& b, in<double> x,
                          tensor_view<double> y) {
        auto run = [](const sluice::transformer_block_config& block,
                      const sluice::transformer_block_params<double>& weights) {
            return [&](const std::vector<idx>& positions, in<double> from, tensor_view<double> to) {
                const batch alone{.n_tokens = from.rows(), .positions = positions};
                ref::transformer_block<double>(alone, reference_of(block), reference_of(weights), from, to);
            };
        };
        const auto& w = p.cross;
        ref::dlcm<double>(b, shape_of(c),
                          {.boundary = {p.boundary.w_q, p.boundary.w_k},
                           .w_up = p.concepts.w_up,
                           .cross = {w.w_q, w.w_k, w.w_v, w.w_o, w.q_norm, w.k_norm}},
                          x, y, run(c.encoder, p.encoder), run(c.backbone, p.backbone),
                          run(c.decoder, p.decoder));
    }
    // The decoder's norms with a larger eps.
    static void wrong_reference(config c, const params<double>& p, const batch& b, in<double> x,
                                tensor_view<double> y) {
        c.decoder.norm.eps += 0.01;
        reference(c, p, b, x, y);
    }
};

using golden_model = sluice::language_model<dlcm<double>>;
golden_model::config_type golden_config() {
    const auto small = block_of(4, 2, 2, 8);
    return {.embedding = {.vocabulary = 5, .d_model = 4},
            .body = {.encoder = small,
                     .boundary = {.d_model = 4, .d_scan = 3},
                     .concepts = {.d_model = 4, .d_concept = 8},
                     .backbone = block_of(8, 2, 4, 16),
                     .cross = {.d_model = 4, .d_concept = 8, .n_heads = 2, .n_kv_heads = 2, .head_dim = 2},
                     .decoder = small},
            .norm = {.d_model = 4}};
}
const std::vector<sluice::token_id> golden_tokens{0, 1, 2, 3, 4, 0, 1, 2, 3, 1};

sluice::tensor<double> golden_logits(const golden_model::config_type& c) {
    sluice::owned_params<golden_model::params_type> p(c);
    fill_golden(p.view);
    const golden_model model(c, p.view);
    arena workspace(model.bytes({.max_rows = 10}).workspace);
    sluice::tensor<double> logits(10, 5);
    model.forward(batch::one(golden_tokens), logits.view(), workspace);
    return logits;
}

} // namespace

SLUICE_TEST_LAYER("", dlcm_traits, float_native, double_scalar)

TEST_CASE("golden values") {
    auto check = [](const sluice::tensor<double>& logits, idx row, const std::vector<double>& want) {
        for (idx j = 0; j < 5; ++j)
            CHECK(std::abs(logits(row, j) - want[static_cast<std::size_t>(j)]) < 2e-12);
    };
    auto c = golden_config();
    const auto completed = golden_logits(c);
    check(completed, 0, {0.313750586735, 0.407492929805, 1.128059601487, 0.623738227744, 0.907814847527});
    check(completed, 3, {-0.244286503187, 0.254621639491, 0.026811691389, 0.225676884342, 0.848915608252});
    check(completed, 9, {-0.618366875149, 0.255124790382, 0.207305220024, -0.25740251896, 0.237658264669});
    c.body.cross.weight = concept_weight::segment_length;
    check(golden_logits(c), 9,
          {-0.614593943314, 0.251913803626, 0.206083912256, -0.259054514167, 0.22979784098});
    c = golden_config();
    c.body.concepts.smoothing = concept_smoothing::none;
    check(golden_logits(c), 9,
          {-0.619981441119, 0.254097103072, 0.204128749906, -0.259682797648, 0.235433666279});
    c = golden_config();
    c.body.concepts.forming = concept_forming::boundary_token;
    check(golden_logits(c), 9,
          {-0.578199152839, 0.281141002397, 0.295042537027, -0.203118544624, 0.29979716081});
    c.body.concepts.forming = concept_forming::leaking_mean;
    check(golden_logits(c), 9,
          {-0.615511798975, 0.255790719035, 0.208294904473, -0.253702007081, 0.237577583833});
}

TEST_CASE("golden boundaries") {
    const auto c = golden_config();
    sluice::owned_params<golden_model::params_type> p(c);
    fill_golden(p.view);
    const dlcm<double> layer(c.body, p.view.body);
    sluice::tensor<double> x(10, 4), prob(1, 10);
    sluice::embedding<double>(c.embedding, p.view.embedding).forward(batch::one(golden_tokens), x.view());
    arena workspace(layer.bytes({.max_rows = 10}).workspace);
    std::vector<std::uint8_t> starts(10);
    const auto n = layer.boundaries(batch::one(golden_tokens), x, prob.view(), starts, workspace);
    const double want[] = {1,
                           0.336862502324,
                           0.774099068354,
                           0.688082065723,
                           0.46135890424,
                           0.689783698781,
                           0.237122889013,
                           0.72134262839,
                           0.799836929083,
                           0.196480734268};
    for (idx i = 0; i < 10; ++i) CHECK(std::abs(prob(0, i) - want[i]) < 2e-12);
    CHECK(starts == std::vector<std::uint8_t>{1, 0, 1, 1, 0, 1, 0, 1, 1, 0});
    CHECK(n.share() == 0.6);
    CHECK(std::abs(n.mean() - 0.590496942018) < 1e-12);
    CHECK(std::abs(sluice::boundary_loss(n, 4) - 0.635594291766) < 1e-11);
}

namespace {

config small_config() { return dlcm_traits::variants()[0].config; }

// A layer with weights, and what it makes of n random tokens.
struct small_layer {
    explicit small_layer(const config& c) : config(c), weights(c), layer(c, weights.view) {
        std::uint64_t key = 40;
        each_param(
            [&](const auto&, auto r, const auto& t) {
                const double most =
                    r == sluice::role::vector ? 1 : 1.7 / std::sqrt(static_cast<double>(t.cols()));
                fill_uniform(t, ++key, r == sluice::role::vector ? 0.5 : -most, most);
            },
            weights.view);
    }
    small_layer(const small_layer&) = delete;
    sluice::tensor<double> forward(in<double> x, batch b = {}) const {
        b.n_tokens = x.rows();
        arena workspace(layer.bytes({.max_rows = std::max<idx>(x.rows(), 1)}).workspace);
        sluice::tensor<double> y(x.rows(), x.cols());
        layer.forward(b, x, y.view(), nullptr, workspace);
        return y;
    }
    // Where segments begin.
    std::vector<std::uint8_t> starts(in<double> x) const {
        std::vector<std::uint8_t> found(static_cast<std::size_t>(x.rows()));
        arena workspace(layer.bytes({.max_rows = x.rows()}).workspace);
        sluice::tensor<double> p(1, x.rows());
        (void)layer.boundaries(batch::one(x.rows()), x, p.view(), found, workspace);
        return found;
    }
    ::config config;
    sluice::owned_params<dlcm<double>::params_type> weights;
    dlcm<double> layer;
};

sluice::tensor<double> random_tokens(idx n, idx d, std::uint64_t key) {
    sluice::tensor<double> x(n, d);
    fill_uniform(x.view(), key);
    return x;
}

} // namespace

TEST_CASE("the mean of an open segment looks ahead, and does not stream") {
    auto c = small_config();
    c.concepts.forming = concept_forming::leaking_mean;
    c.boundary = {.d_model = 6, .rule = boundary_rule::every, .interval = 5};
    const small_layer leaking(c);
    auto x = random_tokens(15, 6, 1);
    const auto before = leaking.forward(x);
    x(14, 0) += 1;
    const auto after = leaking.forward(x);
    CHECK(different_bits(in<double>(before).row_block(0, 10), in<double>(after).row_block(0, 10)) == "");
    CHECK(different_bits(in<double>(before).row_block(10, 1), in<double>(after).row_block(10, 1)) != "");
    arena memory(std::size_t{1} << 16);
    CHECK(message_of<config_error>([&] { (void)leaking.layer.bind_state(memory, {.max_tokens = 4}); }) ==
          "dlcm: concepts.forming is leaking_mean, which looks at later tokens and cannot stream");
    CHECK_THROWS_AS(leaking.layer.bytes({.max_tokens = 4}), config_error);
}

TEST_CASE("without a boundary inside it is encoder and decoder") {
    auto c = small_config();
    c.boundary = {.d_model = 6, .rule = boundary_rule::every, .interval = 100};
    const small_layer one(c);
    const auto x = random_tokens(20, 6, 1);
    sluice::tensor<double> h(20, 6), want(20, 6);
    arena workspace(std::size_t{1} << 16);
    blocks<double>(c.encoder, one.weights.view.encoder)
        .forward(batch::one(20), x, h.view(), nullptr, workspace);
    blocks<double>(c.decoder, one.weights.view.decoder)
        .forward(batch::one(20), h, want.view(), nullptr, workspace);
    CHECK(different_bits(in<double>(one.forward(x)), in<double>(want)) == "");
    c.boundary.interval = 7; // and the first segment of any sequence
    CHECK(different_bits(in<double>(small_layer(c).forward(x)).row_block(0, 7),
                         in<double>(want).row_block(0, 7)) == "");
}

TEST_CASE("where every token is a boundary, means are tokens") {
    auto c = small_config();
    c.boundary = {.d_model = 6, .rule = boundary_rule::every, .interval = 1};
    c.concepts.forming = concept_forming::leaking_mean;
    const auto x = random_tokens(20, 6, 1);
    const auto means = small_layer(c).forward(x);
    c.concepts.forming = concept_forming::boundary_token;
    CHECK(different_bits(in<double>(small_layer(c).forward(x)), in<double>(means)) == "");
}

TEST_CASE("sampled boundaries come from the key") {
    auto c = small_config();
    c.boundary.forward_by = sluice::boundary_choice::sampled;
    c.boundary.sharpness = 1;
    const small_layer drawn(c);
    const auto x = random_tokens(40, 6, 1);
    const auto one = drawn.forward(x, {.random_key = 1});
    CHECK(different_bits(in<double>(drawn.forward(x, {.random_key = 1})), in<double>(one)) == "");
    CHECK(different_bits(in<double>(drawn.forward(x, {.random_key = 2})), in<double>(one)) != "");
}

TEST_CASE("states hold what was closed") {
    const small_layer s(small_config());
    const idx n = 60;
    const auto x = random_tokens(n, 6, 1);
    const auto starts = s.starts(x);
    const sluice::limits most{.max_tokens = n, .max_rollback = 5};
    arena memory(s.layer.bytes(most).state), workspace(s.layer.bytes(most).workspace);
    auto state = s.layer.bind_state(memory, most);
    sluice::tensor<double> y(1, 6);
    std::vector<idx> closed{0};
    for (idx i = 0; i < n; ++i) {
        s.layer.decode(batch::one(1, i), x.view().row_block(i, 1), y.view(), state, workspace);
        closed.push_back(closed.back() + (i > 0 ? starts[static_cast<std::size_t>(i)] : 0));
        CHECK(state.concepts(0) == closed.back());
        CHECK(state.backbone.tokens(0) == closed.back());
        CHECK(state.cross.keys.tokens(0) == closed.back());
    }
    CHECK(closed.back() > 10);
    for (idx i = 1; i <= 5; ++i) {
        state.truncate(0, n - i);
        CHECK(state.concepts(0) == closed[static_cast<std::size_t>(n - i)]);
    }
    CHECK_THROWS_AS(state.truncate(0, n - 6), sluice::input_error);
    CHECK_THROWS_AS(state.concepts(1), sluice::input_error);
}

TEST_CASE("more concepts than the limit are refused before anything is written") {
    auto c = small_config();
    c.boundary = {.d_model = 6, .rule = boundary_rule::every, .interval = 3};
    const small_layer s(c);
    const idx n = 12; // three closed segments
    const auto x = random_tokens(n, 6, 1);
    const auto want = s.forward(x);
    const auto all = s.layer.bytes({.max_tokens = n, .max_rows = n}),
               few = s.layer.bytes({.max_tokens = n, .max_rows = n, .max_concepts = 2});
    CHECK(few.workspace < all.workspace);
    CHECK(few.tape < all.tape);
    sluice::tensor<double> y(n, 6);
    auto untouched = [&] {
        for (idx i = 0; i < n; ++i)
            for (idx j = 0; j < 6; ++j)
                if (y(i, j) != 7) return false;
        return true;
    };
    fill(y.view(), 7.0);
    batch b = batch::one(n);
    b.max_concepts = 2;
    arena tape(all.tape), workspace(all.workspace);
    CHECK(message_of<capacity_error>([&] { s.layer.forward(b, x, y.view(), &tape, workspace); }) ==
          "dlcm: sequence 0: needs 3 concepts (max_concepts), has 2");
    CHECK((untouched() && tape.used() == 0 && workspace.used() == 0));
    b.max_concepts = 3;
    const auto enough = s.layer.bytes({.max_rows = n, .max_concepts = 3});
    arena small_tape(enough.tape), small_workspace(enough.workspace);
    s.layer.forward(b, x, y.view(), &small_tape, small_workspace);
    CHECK(different_bits(in<double>(y), in<double>(want)) == "");

    // a state that holds two: the third is refused, and what was there goes on
    const sluice::limits most{.max_tokens = n, .max_rows = 8, .max_rollback = 1, .max_concepts = 2};
    arena memory(s.layer.bytes(most).state), room(s.layer.bytes(most).workspace);
    auto state = s.layer.bind_state(memory, most);
    auto extend = [&](idx first, idx m) {
        s.layer.extend(batch::one(m, first), x.view().row_block(first, m), y.view().row_block(first, m),
                       state, room);
    };
    extend(0, 4);
    fill(y.view(), 7.0);
    CHECK(message_of<capacity_error>([&] { extend(4, 6); }) ==
          "dlcm: sequence 0: needs 3 concepts (max_concepts), has 2");
    CHECK((untouched() && state.tokens(0) == 4 && state.concepts(0) == 1 && state.encoder.tokens(0) == 4));
    extend(4, 5);
    CHECK(different_bits(in<double>(y.view().row_block(4, 5)), in<double>(want.view().row_block(4, 5))) ==
          "");
    state.truncate(0, 8);
    extend(8, 1);
    CHECK(different_bits(in<double>(y.view().row_block(8, 1)), in<double>(want.view().row_block(8, 1))) ==
          "");
    state.truncate(0, 0);
    CHECK(message_of<capacity_error>([&] { extend(0, 9); }) ==
          "dlcm state: sequence 0: needs 9 rows in one call (max_rows), has 8");
}

TEST_CASE("a backbone that cannot take a call's concepts is noticed before the encoder is called") {
    auto c = small_config();
    c.backbone.attention.window = 2;
    const small_layer s(c);
    const sluice::limits most{.max_tokens = 200, .max_rows = 4};
    arena memory(s.layer.bytes(most).state), workspace(std::size_t{1} << 20);
    auto state = s.layer.bind_state(memory, most);
    const auto x = random_tokens(100, 6, 1);
    sluice::tensor<double> y(100, 6);
    CHECK_THROWS_AS(s.layer.extend(batch::one(100), x, y.view(), state, workspace), capacity_error);
    CHECK((state.tokens(0) == 0 && state.encoder.tokens(0) == 0 && workspace.used() == 0));
}

TEST_CASE("the loss on boundaries is of all batches of a step") {
    auto c = small_config();
    c.concepts.gradient = sluice::boundary_gradient::stopped;
    c.boundary.loss = {.weight = 0.7, .ratio = 4};
    const idx n = 24;
    auto x = random_tokens(n, 6, 1);
    const sluice::tensor<double> zero(n, 6);
    struct gradients {
        explicit gradients(const config& of) : grad(of), dx(n, 6) {}
        sluice::owned_params<dlcm<double>::grad_type> grad;
        sluice::tensor<double> dx;
    };
    auto run = [&](const config& of, const std::vector<idx>& cuts, bool both_first, gradients& g) {
        const small_layer s(of);
        const auto need = s.layer.bytes({.max_rows = n, .n_sequences = 3});
        arena workspace(need.workspace), tape(2 * need.tape);
        sluice::tensor<double> y(n, 6);
        auto part = [&](std::size_t i) { return batch::one(cuts[i + 1] - cuts[i]); };
        auto rows = [&](auto& t, std::size_t i) {
            return t.view().row_block(cuts[i], cuts[i + 1] - cuts[i]);
        };
        auto forward = [&](std::size_t i) {
            s.layer.forward(part(i), rows(x, i), rows(y, i), &tape, workspace);
        };
        auto backward = [&](std::size_t i) {
            s.layer.backward(part(i), rows(x, i), rows(zero, i), rows(g.dx, i), tape, g.grad.view, workspace);
        };
        const std::size_t parts = cuts.size() - 1;
        for (std::size_t i = 0; i < parts; ++i) {
            forward(i);
            if (!both_first) backward(i);
        }
        for (std::size_t i = parts; i-- > 0 && both_first;) backward(i);
        CHECK(tape.used() == 0);
    };
    // alone: the slope of weight times the loss with F held
    gradients alone(c);
    run(c, {0, n}, true, alone);
    {
        const small_layer s(c);
        const auto fixed = s.starts(x);
        auto value = [&] {
            std::vector<std::uint8_t> starts(n);
            sluice::tensor<double> p(1, n);
            arena workspace(s.layer.bytes({.max_rows = n}).workspace);
            auto counts = s.layer.boundaries(batch::one(n), x, p.view(), starts, workspace);
            CHECK(starts == fixed);
            return 0.7 * sluice::boundary_loss(counts, 4);
        };
        CHECK(wrong_layer_gradient(value, x.view(), alone.dx.view()) == "");
        CHECK(wrong_layer_gradient(value, s.weights.view.boundary.w_q, alone.grad.view.boundary.w_q) == "");
        for (idx j = 0; j < 6; ++j) CHECK(alone.grad.view.decoder.feed_forward.w_up(0, j) == 0);
    }
    // in two parts: by counts that both add to, or that were there before; not each for itself
    const std::vector<idx> halves{0, 9, n};
    sluice::boundary_counts counts, whole;
    auto shared = c;
    shared.boundary.loss.counts = &counts;
    gradients together(c), counted(c), apart(c);
    run(shared, halves, true, together);
    CHECK(counts.tokens == n);
    shared.boundary.loss.counted = true;
    whole = counts;
    run(shared, halves, false, counted);
    CHECK(counts.tokens == whole.tokens);
    run(c, halves, false, apart);
    auto far = [](const auto& a, const auto& b) {
        double most = 0;
        for (idx i = 0; i < a.rows(); ++i)
            for (idx j = 0; j < a.cols(); ++j) most = std::max(most, std::abs(a(i, j) - b(i, j)));
        return most;
    };
    const auto& want = together.grad.view.boundary.w_k;
    CHECK(far(counted.grad.view.boundary.w_k, want) < 1e-15);
    CHECK(far(counted.dx, together.dx) < 1e-15);
    CHECK(far(apart.grad.view.boundary.w_k, want) > 1e-4);
}

TEST_CASE("blocks of other techniques, in a model of several texts") {
    using depths = sluice::mixture_of_depths<blocks<double>>;
    using body = sluice::dlcm<blocks<double>, depths, blocks<double>>;
    static_assert(sluice::trainable_layer<body> && sluice::streaming_layer<body>);
    const auto c = small_config();
    const auto by = sluice::depth_rule::router_threshold;
    sluice::language_model<body>::config_type whole{
        .embedding = {.vocabulary = 9, .d_model = 6},
        .body = {.encoder = c.encoder,
                 .boundary = c.boundary,
                 .concepts = c.concepts,
                 .backbone = {.block = c.backbone,
                              .router = {.d_model = 10, .forward_by = by, .extend_by = by}},
                 .cross = c.cross,
                 .decoder = c.decoder},
        .norm = {.d_model = 6}};
    using model = sluice::language_model<body>;
    sluice::owned_params<model::params_type> p(whole), grad(whole);
    std::uint64_t key = 0;
    each_param([&](const auto&, auto, const auto& t) { fill_uniform(t, ++key); }, p.view);
    const model lm(whole, p.view);
    std::vector<sluice::token_id> ids, targets;
    for (idx i = 0; i < 40; ++i) ids.push_back(static_cast<sluice::token_id>(i * i % 9));
    targets.assign(40, 3);
    std::vector<idx> offsets{0};
    for (const idx m : {1, 0, 12, 2, 20, 5}) offsets.push_back(offsets.back() + m);
    const auto need = lm.bytes({.max_rows = 40, .n_sequences = 6});
    arena workspace(need.workspace), tape(need.tape);
    const batch b{.n_tokens = 40, .offsets = offsets, .ids = ids};
    const double loss = lm.loss_and_gradient(b, targets, grad.view, tape, workspace);
    CHECK(loss == approx(lm.loss(b, targets, workspace)).epsilon(1e-14));
    CHECK(tape.used() == 0);
    auto& w = p.view.body.concepts.w_up(3, 2); // through a router, a smoothing and a mean
    const double at = w, step = 1e-5;
    w = at + step;
    const double ahead = lm.loss(b, targets, workspace);
    w = at - step;
    CHECK((ahead - lm.loss(b, targets, workspace)) / (2 * step) ==
          approx(grad.view.body.concepts.w_up(3, 2)).epsilon(1e-4));
}

TEST_CASE("what does not fit is named") {
    auto said = [](auto change) {
        auto c = small_config();
        change(c);
        sluice::owned_params<dlcm<double>::params_type> p(c);
        return message_of<config_error>([&] { dlcm<double>(c, p.view); });
    };
    const auto wide = block_of(8, 2, 4, 7);
    CHECK(said([&](config& c) { c.encoder = wide; }) == "dlcm: the width of the encoder must be 6, is 8");
    CHECK(said([&](config& c) { c.decoder = wide; }) == "dlcm: the width of the decoder must be 6, is 8");
    CHECK(said([&](config& c) { c.backbone = wide; }) == "dlcm: the width of the backbone must be 10, is 8");
    CHECK(said([](config& c) { c.boundary.d_model = 7; }) == "dlcm: the width of boundary must be 6, is 7");
    CHECK(said([](config& c) { c.cross.d_model = 7; }) == "dlcm: the width of cross must be 6, is 7");
    CHECK(said([](config& c) { c.cross.d_concept = 7; }) ==
          "dlcm: the width of cross.d_concept must be 10, is 7");
    CHECK(said([](config& c) {
              c.boundary.loss.ratio = 1;
          }).starts_with("dlcm: boundary.loss.ratio must be above 1, is "));
    CHECK(said([](config& c) {
              c.boundary.threshold = 1;
          }).starts_with("dlcm: boundary.threshold must be in (0, 1), is "));
    CHECK(said([](config& c) {
              c.concepts.weight = 0;
          }).starts_with("dlcm: concepts.weight must be in (0, 1], is "));
    const small_layer s(small_config());
    batch two = batch::one(3);
    two.copies = 2;
    const auto x = random_tokens(6, 6, 1);
    sluice::tensor<double> y(6, 6);
    arena workspace(std::size_t{1} << 16);
    CHECK(message_of<sluice::input_error>([&] { s.layer.forward(two, x, y.view(), nullptr, workspace); }) ==
          "dlcm: batch: copies is 2; concepts are made of tokens without copies");
    constexpr idx many = idx{1} << 31;
    const sluice::tensor_view<double> all_at_one_place(y.view().data(), many, 6);
    CHECK(message_of<sluice::input_error>([&] {
              s.layer.forward(batch::one(many), all_at_one_place, all_at_one_place, nullptr, workspace);
          }) == "dlcm: 2147483648 tokens in a call, there may be 2^31 - 1");
    batch bad = batch::one(6);
    bad.max_concepts = -1;
    CHECK_THROWS_AS(s.layer.forward(bad, x, y.view(), nullptr, workspace), sluice::input_error);
}
