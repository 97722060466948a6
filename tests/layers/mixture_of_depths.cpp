#include "support/golden.hpp"
#include "support/layer_suite.hpp"
#include "support/reference_of.hpp"

#include <sluice/layers/compose.hpp>
#include <sluice/layers/mixture_of_depths.hpp>
#include <sluice/layers/moe.hpp>
#include <sluice/reference/mixture_of_depths.hpp>
#include <sluice/reference/moe.hpp>
#include <sluice/train/adamw.hpp>

using namespace sluice::test;
using sluice::arena;
using sluice::batch;
using sluice::capacity_error;
using sluice::config_error;
using sluice::depth_gate;
using sluice::depth_rule;
using sluice::executor_ref;
using sluice::idx;
using sluice::in;
using sluice::limits;
using sluice::tensor_view;

namespace {

namespace ref = sluice::reference;

template <class V>
using router_params = sluice::depth_router_params<sluice::vector_type<V>>;
using config = sluice::mixture_of_depths<sluice::transformer_block<double>>::config_type;

const sluice::transformer_block_config small{
    .attention = {.d_model = 6, .n_heads = 2, .n_kv_heads = 1, .head_dim = 4},
    .feed_forward = {.d_model = 6, .d_ff = 11},
    .norm = {.d_model = 6}};
const sluice::transformer_block_config windowed{
    .attention = {.d_model = 5, .n_heads = 1, .n_kv_heads = 1, .head_dim = 6, .window = 9},
    .feed_forward = {.d_model = 5, .d_ff = 7, .kind = sluice::feed_forward_kind::gelu, .bias = true},
    .norm = {.d_model = 5, .kind = sluice::norm_kind::layer, .eps = 1e-3}};
const sluice::transformer_block_config awkward{
    .attention = {.d_model = 67, .n_heads = 6, .n_kv_heads = 3, .head_dim = 18},
    .feed_forward = {.d_model = 67, .d_ff = 129},
    .norm = {.d_model = 67}};

ref::depth_shape depth_shape_of(const sluice::depth_router_config& c) {
    return {.capacity = c.capacity,
            .by_threshold = c.forward_by == depth_rule::router_threshold,
            .by_predictor = c.forward_by == depth_rule::predictor,
            .threshold = c.threshold,
            .sigmoid_gate = c.gate == depth_gate::sigmoid,
            .budget = c.forward_by == depth_rule::top_k ? 0 : c.budget.share,
            .slack = c.budget.slack};
}
template <class P>
ref::depth_predictor_weights<double> predictor_of(const P& p) {
    return {p.predictor_in, p.predictor_in_bias, p.predictor_out, p.predictor_out_bias};
}

struct depth_traits {
    template <class W>
    using params = sluice::mixture_of_depths_params<router_params<W>, sluice::transformer_block_params<W>>;
    template <class T, class W, class Arch>
    using layer = sluice::mixture_of_depths<sluice::transformer_block<T, W, Arch>, sluice::vector_type<W>>;

    static constexpr idx chain = 1024;
    static constexpr bool routed = true, skips = true;
    static void reference(const config& c, const params<double>& p, const batch& b, in<double> x,
                          tensor_view<double> y) {
        ref::mixture_of_depths<double>(
            b, depth_shape_of(c.router), p.router.w, predictor_of(p.router), x, y,
            [&](const std::vector<idx>& positions, in<double> some, tensor_view<double> change) {
                batch alone{.n_tokens = some.rows(), .positions = positions};
                ref::transformer_block<double>(alone, reference_of(c.block), reference_of(p.block), some,
                                               change);
                for (idx i = 0; i < some.rows(); ++i)
                    for (idx j = 0; j < some.cols(); ++j) change(i, j) -= some(i, j);
            });
    }
    // The block's norms with a larger eps.
    static void wrong_reference(config c, const params<double>& p, const batch& b, in<double> x,
                                tensor_view<double> y) {
        c.block.norm.eps += 0.01;
        reference(c, p, b, x, y);
    }
};

// Rules that look at one token: all that a streaming layer has to be.
struct causal_traits : depth_traits {
    static std::vector<variant<config>> variants() {
        const auto threshold = depth_rule::router_threshold, predictor = depth_rule::predictor;
        return {
            {"threshold",
             {.block = small, .router = {.d_model = 6, .forward_by = threshold, .extend_by = threshold}}},
            {"predictor, sigmoid",
             {.block = windowed,
              .router = {.d_model = 5,
                         .forward_by = predictor,
                         .extend_by = predictor,
                         .gate = depth_gate::sigmoid,
                         .threshold = 0.6,
                         .predictor = 3}}},
            {"budget",
             {.block = small,
              .router = {.d_model = 6,
                         .forward_by = threshold,
                         .extend_by = threshold,
                         .threshold = -0.3,
                         .budget = {0.4, 1}}}},
            {"awkward widths",
             {.block = awkward, .router = {.d_model = 67, .forward_by = threshold, .extend_by = threshold}},
             true}};
    }
};

struct top_k_traits : depth_traits {
    static std::vector<variant<config>> variants() {
        return {{"half", {.block = small, .router = {.d_model = 6, .capacity = 0.5}}},
                {"two thirds, sigmoid",
                 {.block = windowed,
                  .router = {.d_model = 5, .capacity = 0.67, .gate = depth_gate::sigmoid, .predictor = 4}}},
                {"awkward widths", {.block = awkward, .router = {.d_model = 67, .capacity = 0.2}}, true}};
    }
};

// With experts (MoDE, section 3.3). Staged: tokens pass by attention and experts; integrated: only by the
// experts, to null ones. Here both.
template <class T, class W, class Arch>
using expert_block = sluice::basic_transformer_block<sluice::attention<T, W, Arch>, sluice::moe<T, W, Arch>,
                                                     sluice::norm<T, W, Arch>>;
template <class W>
using expert_params =
    sluice::basic_transformer_block_params<sluice::norm_params<W>, sluice::attention_params<W>,
                                           sluice::moe_params<W>>;
using expert_config = sluice::mixture_of_depths_config<
    sluice::basic_transformer_block_config<sluice::attention_config, sluice::moe_config>>;

// y = x + attention(norm(x)), then the same with experts.
void reference_expert_block(const expert_config& c, const expert_params<double>& p, const batch& b,
                            in<double> x, tensor_view<double> y) {
    const auto shape = sluice::test::reference_of(c.block.norm.kind);
    sluice::tensor<double> normed(x.rows(), x.cols()), h(x.rows(), x.cols());
    ref::norm<double>(shape, c.block.norm.eps, {p.attention_norm.scale, {}}, x, normed);
    ref::attention<double>(b, sluice::test::reference_of(c.block.attention), reference_of(p.attention),
                           normed, h.view());
    for (idx i = 0; i < x.rows(); ++i)
        for (idx j = 0; j < x.cols(); ++j) h(i, j) += x(i, j);
    ref::norm<double>(shape, c.block.norm.eps, {p.feed_forward_norm.scale, {}}, h, normed);
    ref::moe_weights<double> w{p.feed_forward.router, {}, {}, {}, {}, {}};
    for (const auto& e : p.feed_forward.experts) w.experts.push_back(reference_of(e));
    ref::moe<double>({.router = {.top_k = c.block.feed_forward.router.top_k},
                      .n_null = c.block.feed_forward.router.n_null},
                     w, normed, y);
    for (idx i = 0; i < x.rows(); ++i)
        for (idx j = 0; j < x.cols(); ++j) y(i, j) += h(i, j);
}

struct expert_traits {
    template <class W>
    using params = sluice::mixture_of_depths_params<router_params<W>, expert_params<W>>;
    template <class T, class W, class Arch>
    using layer = sluice::mixture_of_depths<expert_block<T, W, Arch>, sluice::vector_type<W>>;

    static constexpr idx chain = 1024;
    static constexpr bool routed = true, skips = true;
    static std::vector<variant<expert_config>> variants() {
        const auto threshold = depth_rule::router_threshold;
        return {{"MoDE",
                 {.block = {.attention = small.attention,
                            .feed_forward = {.d_model = 6,
                                             .router = {.n_experts = 5, .top_k = 2, .n_null = 2},
                                             .expert = {.d_ff = 7}},
                            .norm = {.d_model = 6}},
                  .router = {.d_model = 6, .forward_by = threshold, .extend_by = threshold}}}};
    }
    static void reference(const expert_config& c, const params<double>& p, const batch& b, in<double> x,
                          tensor_view<double> y) {
        ref::mixture_of_depths<double>(
            b, depth_shape_of(c.router), p.router.w, {}, x, y,
            [&](const std::vector<idx>& positions, in<double> some, tensor_view<double> change) {
                const batch alone{.n_tokens = some.rows(), .positions = positions};
                reference_expert_block(c, p.block, alone, some, change);
                for (idx i = 0; i < some.rows(); ++i)
                    for (idx j = 0; j < some.cols(); ++j) change(i, j) -= some(i, j);
            });
    }
    // Norms with a larger eps.
    static void wrong_reference(expert_config c, const params<double>& p, const batch& b, in<double> x,
                                tensor_view<double> y) {
        c.block.norm.eps += 0.01;
        reference(c, p, b, x, y);
    }
};

} // namespace

// The rest of the suite says nothing new about them.
#define EXPERTS_PROPERTY(text, property)                                                                     \
    SLUICE_TEST_PROPERTY("MoDE ", expert_traits, text, property, double_native)
EXPERTS_PROPERTY("agrees with its reference", agrees_with_its_reference)
EXPERTS_PROPERTY("a wrong reference is noticed", a_wrong_reference_is_noticed)
EXPERTS_PROPERTY("streams to the same bits at every split", streams_to_the_same_bits_at_every_split)
EXPERTS_PROPERTY("takes tokens back", takes_tokens_back)
EXPERTS_PROPERTY("takes the memory it says", takes_the_memory_it_says)
EXPERTS_PROPERTY("gradients are slopes", gradients_are_slopes)

SLUICE_TEST_LAYER("causal ", causal_traits, float_native, double_scalar)

// What is not causal streams by another rule; the rest of the suite holds.
#define TOP_K_PROPERTY(text, property)                                                                       \
    SLUICE_TEST_PROPERTY("top-k ", top_k_traits, text, property, float_native, double_scalar)
TOP_K_PROPERTY("agrees with its reference", agrees_with_its_reference)
TOP_K_PROPERTY("a wrong reference is noticed", a_wrong_reference_is_noticed)
TOP_K_PROPERTY("takes any view", takes_any_view)
TOP_K_PROPERTY("sequences of a batch do not meet", sequences_do_not_meet)
TOP_K_PROPERTY("no tokens are legal", no_tokens_are_legal)
TOP_K_PROPERTY("allocates nothing", allocates_nothing)
TOP_K_PROPERTY("takes the memory it says", takes_the_memory_it_says)
TOP_K_PROPERTY("too little memory is refused before output is written",
               too_little_memory_is_refused_before_output)
TOP_K_PROPERTY("wrong shapes are named", wrong_shapes_are_named)
TOP_K_PROPERTY("two threads may call one layer", two_threads_may_call_one_layer)
TOP_K_PROPERTY("gradients are slopes", gradients_are_slopes)
TOP_K_PROPERTY("gradients accumulate", gradients_accumulate)
TOP_K_PROPERTY("wrong gradient arguments are named", wrong_gradient_arguments_are_named)

namespace {

// The block of the golden values: f_i = tanh(W mean + 0.05 p_i) with the mean over the rows up to i of its
// sequence and their own positions p. Says how many rows it was given.
struct toy_config {
    idx d = 0;
    idx* rows_seen = nullptr;
};
template <class W>
struct toy_params {
    tensor_view<W> w; // d x d
    static toy_params bind(arena& a, const toy_config& c) { return {a.take<W>(c.d, c.d)}; }
    template <class F, class First, class... Sets>
    static void each(F& f, const sluice::param_name& at, First& first, Sets&... sets) {
        f(sluice::param_name(at, "w"), sluice::role::matrix, first.w, sets.w...);
    }
};
struct toy_state {
    tensor_view<double> sums; // n_sequences x d + 1: the last is their number
    std::vector<idx> lengths() const {
        std::vector<idx> n;
        for (idx s = 0; s < sums.rows(); ++s) n.push_back(static_cast<idx>(sums(s, sums.cols() - 1)));
        return n;
    }
    void truncate(idx slot, idx tokens) { // of nothing but all
        if (tokens == 0) fill(sums.row_block(slot, 1), 0.0);
    }
};

class toy {
public:
    using scalar = double;
    using T = double;
    using arch = sluice::simd::native;
    using config_type = toy_config;
    using params_type = toy_params<double>;
    using grad_type = toy_params<double>;
    using state_type = toy_state;

    toy(const toy_config& c, const params_type& p) : config_(c), params_(p) {}
    const toy_config& config() const { return config_; }
    const params_type& params() const { return params_; }
    idx d_in() const { return config_.d; }
    idx d_out() const { return config_.d; }
    double flops(idx n, idx = 0) const { return static_cast<double>(2 * n * config_.d * config_.d); }

    void change(const batch& b, in<T> x, tensor_view<T> y, arena* tape, arena& workspace,
                executor_ref ex = {}) const {
        const sluice::arena::scope scope(workspace);
        arena& keep = tape == nullptr ? workspace : *tape;
        const auto means = keep.take<T>(x.rows(), config_.d), f = keep.take<T>(x.rows(), config_.d);
        const auto sums = workspace.take<T>(1, config_.d + 1);
        for (idx s = 0; s < b.n_sequences() && !ex.dry(); ++s) {
            fill(sums, 0.0);
            run(b, s, x, sums.row(0), means, f);
        }
        if (!ex.dry()) copy(f, y);
    }
    void change_backward(const batch& b, in<T> x, in<T> dy, tensor_view<T> dx, arena& tape,
                         const grad_type& grad, arena&, executor_ref ex = {}) const {
        const idx d = config_.d;
        const auto f = tape.pop<T>(x.rows(), d), means = tape.pop<T>(x.rows(), d);
        if (ex.dry()) return;
        fill(dx, 0.0);
        for (idx s = 0; s < b.n_sequences(); ++s)
            for (idx i = b.begin(s); i < b.end(s); ++i)
                for (idx e = 0; e < d; ++e) {
                    const double dz = dy(i, e) * (1 - f(i, e) * f(i, e));
                    for (idx k = 0; k < d; ++k) {
                        grad.w(e, k) += dz * means(i, k);
                        for (idx j = b.begin(s); j <= i; ++j)
                            dx(j, k) += dz * params_.w(e, k) / static_cast<double>(i - b.begin(s) + 1);
                    }
                }
    }
    void forward(const batch& b, in<T> x, tensor_view<T> y, arena* tape, arena& workspace,
                 executor_ref ex = {}) const {
        change(b, x, y, tape, workspace, ex);
    }
    void backward(const batch& b, in<T> x, in<T> dy, tensor_view<T> dx, arena& tape, const grad_type& grad,
                  arena& workspace, executor_ref ex = {}) const {
        change_backward(b, x, dy, dx, tape, grad, workspace, ex);
    }
    toy_state bind_state(arena& memory, const limits& most) const {
        const toy_state s{memory.take<double>(most.n_sequences, config_.d + 1)};
        if (!memory.dry()) fill(s.sums, 0.0);
        return s;
    }
    void extend_change(const batch& b, in<T> x, tensor_view<T> y, toy_state& state, arena& workspace,
                       executor_ref ex = {}) const {
        const sluice::arena::scope scope(workspace);
        const auto means = workspace.take<T>(x.rows(), config_.d);
        for (idx s = 0; s < b.n_sequences() && !ex.dry(); ++s)
            run(b, s, x, state.sums.row(b.slot(s)), means, y);
    }
    void extend(const batch& b, in<T> x, tensor_view<T> y, toy_state& state, arena& workspace,
                executor_ref ex = {}) const {
        extend_change(b, x, y, state, workspace, ex);
    }

private:
    static void copy(in<T> from, tensor_view<T> to) {
        for (idx i = 0; i < from.rows(); ++i) std::copy_n(from.row(i), from.cols(), to.row(i));
    }
    void run(const batch& b, idx s, in<T> x, double* sums, tensor_view<T> means, tensor_view<T> f) const {
        const idx d = config_.d;
        if (config_.rows_seen != nullptr) *config_.rows_seen += b.end(s) - b.begin(s);
        for (idx i = b.begin(s); i < b.end(s); ++i) {
            sums[d] += 1;
            for (idx k = 0; k < d; ++k) means(i, k) = (sums[k] += x(i, k)) / sums[d];
            for (idx e = 0; e < d; ++e) {
                double z = 0.05 * static_cast<double>(b.position(s, i));
                for (idx k = 0; k < d; ++k) z += params_.w(e, k) * means(i, k);
                f(i, e) = std::tanh(z);
            }
        }
    }
    toy_config config_;
    params_type params_;
};
using toy_depths = sluice::mixture_of_depths<toy>;
static_assert(sluice::trainable_layer<toy_depths> && sluice::streaming_layer<toy_depths>);

// The layer of the golden values, with any router.
struct toy_layer {
    explicit toy_layer(const sluice::depth_router_config& router, idx d = 4)
        : config{.block = {d, &rows_seen}, .router = router}, weights(config), grad(config) {
        config.router.d_model = d;
        fill_golden(weights.view.router.w, 29, 5, 30);
        fill_golden(weights.view.block.w, 17, 9, 60);
    }
    toy_layer(const toy_layer&) = delete;
    // ((i a + b) mod 97 - 48) / scale
    static void fill_golden(const tensor_view<double>& t, idx a, idx b, double scale) {
        for (idx i = 0; i < t.size(); ++i)
            t(i / t.cols(), i % t.cols()) = static_cast<double>((i * a + b) % 97 - 48) / scale;
    }
    padded<double> forward(const batch& b, in<double> x) {
        const toy_depths layer(config, weights.view);
        arena workspace(layer
                            .bytes({.max_rows = std::max<idx>(b.n_tokens, 1),
                                    .n_sequences = std::max<idx>(b.n_sequences(), 1)})
                            .workspace);
        padded<double> y(b.n_tokens, config.block.d);
        layer.forward(b, x, y, nullptr, workspace);
        return y;
    }
    // Rows of y that are not x's, bit for bit.
    static std::vector<idx> changed(in<double> x, in<double> y) {
        std::vector<idx> rows;
        for (idx i = 0; i < x.rows(); ++i)
            if (different_bits(x.row_block(i, 1), y.row_block(i, 1)) != "") rows.push_back(i);
        return rows;
    }
    std::vector<idx> routed(const batch& b, in<double> x) { return changed(x, forward(b, x).view()); }

    idx rows_seen = 0;
    toy_depths::config_type config;
    sluice::owned_params<toy_depths::params_type> weights, grad;
};

const sluice::depth_router_config quarter{.d_model = 4, .capacity = 0.25};
const sluice::depth_router_config above_zero{
    .d_model = 4, .forward_by = depth_rule::router_threshold, .extend_by = depth_rule::router_threshold};

} // namespace

#if SLUICE_TEST_HAS_JSON
namespace {

std::string difference(const json& want, in<double> got) {
    for (idx i = 0; i < got.size(); ++i) {
        const double w = want[static_cast<std::size_t>(i)].get<double>(),
                     g = got(i / got.cols(), i % got.cols());
        if (!(std::abs(w - g) < 3e-14)) return "at " + std::to_string(i) + ": " + number_text(g);
    }
    return static_cast<std::size_t>(got.size()) == want.size() ? "" : "sizes differ";
}

} // namespace

TEST_CASE("golden values") {
    const auto golden = sluice::test::golden("mixture_of_depths.json");
    const batch b = batch::one(16);
    sluice::tensor<double> x(16, 4), dy(16, 4), dx(16, 4), y(16, 4);
    toy_layer::fill_golden(x.view(), 37, 11, 24);
    toy_layer::fill_golden(dy.view(), 41, 3, 30);

    toy_layer top(quarter);
    const toy_depths layer(top.config, top.weights.view);
    const auto need = layer.bytes({.max_rows = 16});
    arena workspace(need.workspace), tape(need.tape);
    layer.forward(b, x, y.view(), &tape, workspace);
    CHECK(difference(golden["y"], y) == "");
    CHECK(toy_layer::changed(x, y) == golden["selected"].get<std::vector<idx>>());
    CHECK(top.rows_seen == 4);
    layer.backward(b, x, dy, dx.view(), tape, top.grad.view, workspace);
    CHECK(difference(golden["grad"]["x"], dx) == "");
    CHECK(difference(golden["grad"]["w"], top.grad.view.router.w) == "");
    CHECK(difference(golden["grad"]["W"], top.grad.view.block.w) == "");

    // the auxiliary loss alone
    sluice::depth_report report;
    toy_layer aux(quarter);
    aux.config.router.losses = {.router = 1, .report = &report};
    const toy_depths with_loss(aux.config, aux.weights.view);
    arena more(with_loss.bytes({.max_rows = 16}).workspace);
    with_loss.forward(b, x, y.view(), &tape, more);
    fill(dy.view(), 0.0);
    with_loss.backward(b, x, dy, dx.view(), tape, aux.grad.view, more);
    CHECK(report.router_loss / 16 == approx(golden["aux_bce_mean"].get<double>()).epsilon(1e-14));
    CHECK((report.tokens == 16 && report.routed == 4));
    sluice::tensor<double> dr(1, 16), dw(1, 4);
    for (idx i = 0; i < 16; ++i)
        for (idx j = 0; j < 4; ++j) {
            dr(0, i) = dx(i, j) / aux.weights.view.router.w(0, j);
            dw(0, j) += dr(0, i) * x(i, j);
        }
    CHECK(difference(golden["aux_bce_dr"], dr) == "");
    for (idx j = 0; j < 4; ++j) CHECK(std::abs(aux.grad.view.router.w(0, j) - dw(0, j)) < 1e-13);
    CHECK(aux.grad.view.block.w(1, 1) == 0);

    // by a threshold, at once and a token at a time
    const auto& threshold = golden["threshold_mode"];
    toy_layer causal(above_zero);
    const auto once = causal.forward(b, x);
    CHECK(difference(threshold["y"], once.view()) == "");
    CHECK(toy_layer::changed(x, once.view()) == threshold["selected"].get<std::vector<idx>>());
    const toy_depths streamed(causal.config, causal.weights.view);
    const auto sizes = streamed.bytes({.max_tokens = 16});
    arena memory(sizes.state), room(sizes.workspace);
    auto state = streamed.bind_state(memory, {.max_tokens = 16});
    for (idx i = 0; i < 16; ++i)
        streamed.decode(batch::one(1, i), x.view().row_block(i, 1), y.view().row_block(i, 1), state, room);
    CHECK(different_bits(y.view(), once.view()) == "");
    CHECK((state.tokens(0) == 16 && state.routed(0) == 9 && state.block.lengths()[0] == 9));

    // a later token moves earlier ones out by top-k, and none by a threshold
    sluice::tensor<double> other(16, 4);
    toy_layer::fill_golden(other.view(), 37, 11, 24);
    for (idx j = 0; j < 4; ++j) other(15, j) *= 3;
    const auto leak = golden["leak_case"];
    const auto before = top.forward(b, x), after = top.forward(b, other);
    CHECK(difference(leak["y_topk"], after.view()) == "");
    CHECK(toy_layer::changed(other, after.view()) == leak["selected_topk"].get<std::vector<idx>>());
    CHECK(toy_layer::changed(before.view().row_block(0, 15), after.view().row_block(0, 15)) ==
          leak["earlier_rows_changed_topk"].get<std::vector<idx>>());
    CHECK(toy_layer::changed(once.view().row_block(0, 15),
                             causal.forward(b, other).view().row_block(0, 15)) == std::vector<idx>{});

    const auto ties = golden["tie_case"];
    toy_layer narrow({.d_model = 1, .capacity = 0.5}, 1);
    narrow.weights.view.router.w(0, 0) = narrow.weights.view.block.w(0, 0) = 1;
    sluice::tensor<double> r(6, 1);
    for (idx i = 0; i < 6; ++i) r(i, 0) = ties["r"][static_cast<std::size_t>(i)].get<double>();
    CHECK(narrow.routed(batch::one(6), r) == ties["selected_lower_index_wins"].get<std::vector<idx>>());
}
#endif

namespace {

using suite = layer_suite<causal_traits, double_native>;
using block_type = sluice::transformer_block<double, const double>;

const sluice::depth_router_config threshold_rule{
    .d_model = 6, .forward_by = depth_rule::router_threshold, .extend_by = depth_rule::router_threshold};

// A layer whose router is the first column of x, over a block of random weights.
struct chosen_by_column {
    explicit chosen_by_column(sluice::depth_router_config router = threshold_rule)
        : subject({.block = small, .router = router}) {
        auto& w = subject.narrow.view().router.w;
        for (idx j = 0; j < 6; ++j) const_cast<double&>(w(0, j)) = j == 0 ? 1 : 0;
    }
    const suite::layer_type& layer() const { return subject.layer; }
    block_type block() const { return block_type(small, layer().params().block); }
    suite::subject subject;
};

// Random rows with 1 in the first column where `routed`, -1 elsewhere.
sample<double> with_marks(idx n, const std::vector<idx>& routed, std::uint64_t key = 17) {
    sample<double> rows({n}, 6, key);
    for (idx i = 0; i < n; ++i) rows.x(i, 0) = -1;
    for (idx i : routed) rows.x(i, 0) = 1;
    return rows;
}

padded<double> change_of(const block_type& block, const batch& b, in<double> x) {
    padded<double> y(x.rows(), x.cols());
    arena workspace(block.bytes({.max_rows = std::max<idx>(x.rows(), 1)}).workspace);
    block.change(b, x, y, nullptr, workspace);
    return y;
}

} // namespace

TEST_CASE("with all tokens and a gate of one it is the block") {
    chosen_by_column all({.d_model = 6, .capacity = 1});
    const sample<double> rows =
        with_marks(20, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19});
    const auto y = suite::forward(all.layer(), rows);
    const auto change = change_of(all.block(), batch::one(20), rows.x.view());
    for (idx i = 0; i < 20; ++i)
        for (idx j = 0; j < 6; ++j)
            CHECK(y.view()(i, j) ==
                  approx(rows.x.view()(i, j) + change.view()(i, j)).epsilon(1e-14).margin(1e-14));
}

// No renumbering of positions, no key of a token that was passed by: the same as attention over all tokens
// with those masked out.
TEST_CASE("it is the dense block with a mask of the routed tokens") {
    const std::vector<idx> routed{1, 4, 5, 9, 13, 14, 19};
    for (const auto rule : {depth_rule::top_k, depth_rule::router_threshold}) {
        chosen_by_column some({.d_model = 6, .capacity = 0.35, .forward_by = rule});
        const sample<double> rows = with_marks(20, routed);
        const auto y = suite::forward(some.layer(), rows);
        const auto& p = some.subject.layer.params().block;
        const auto shape = sluice::test::reference_of(small);
        const idx n = 20, d = shape.attention.head_dim;
        sluice::tensor<double> normed(n, 6), q(n, 8), k(n, 4), v(n, 4), heads(n, 8), h(n, 6), out(n, 6);
        ref::norm<double>(shape.norm, shape.eps, {p.attention_norm.scale, {}}, rows.x.view(), normed.view());
        const batch b = batch::one(n);
        ref::project_heads<double>(b, shape.attention, p.attention.w_q, {}, normed, q.view());
        ref::project_heads<double>(b, shape.attention, p.attention.w_k, {}, normed, k.view());
        ref::linear<double>({p.attention.w_v, {}}, normed, v.view());
        for (idx i = 0; i < n; ++i)
            for (idx head = 0; head < 2; ++head) {
                double total = 0;
                for (idx j : routed) {
                    if (j > i) continue;
                    double score = 0;
                    for (idx e = 0; e < d; ++e) score += q(i, head * d + e) * k(j, e);
                    const double weight = std::exp(score / std::sqrt(static_cast<double>(d)));
                    total += weight;
                    for (idx e = 0; e < d; ++e) heads(i, head * d + e) += weight * v(j, e);
                }
                for (idx e = 0; e < d && total > 0; ++e) heads(i, head * d + e) /= total;
            }
        ref::linear<double>({p.attention.w_o, {}}, heads, h.view());
        for (idx i = 0; i < n; ++i)
            for (idx j = 0; j < 6; ++j) h(i, j) += rows.x.view()(i, j);
        ref::norm<double>(shape.norm, shape.eps, {p.feed_forward_norm.scale, {}}, h, normed.view());
        ref::feed_forward<double>(
            shape.act, {p.feed_forward.w_gate, p.feed_forward.w_up, p.feed_forward.w_down, {}, {}, {}},
            normed, out.view());
        for (idx i = 0; i < n; ++i) {
            const bool goes = std::find(routed.begin(), routed.end(), i) != routed.end();
            for (idx j = 0; j < 6; ++j)
                CHECK(y.view()(i, j) ==
                      approx(goes ? h(i, j) + out(i, j) : rows.x.view()(i, j)).epsilon(1e-13).margin(1e-13));
        }
    }
}

TEST_CASE("tokens passed by are untouched, and the block never sees them") {
    toy_layer top({.d_model = 4, .capacity = 0.3});
    const sample<double> rows({21, 0, 5, 1, 70}, 4, 3);
    const auto y = top.forward(rows.rows(), rows.x.view());
    CHECK(top.rows_seen == 6 + 1 + 1 + 21);
    CHECK(toy_layer::changed(rows.x.view(), y.view()).size() == 29);
    // and again: nothing is remembered between calls
    CHECK(different_bits(top.forward(rows.rows(), rows.x.view()).view(), y.view()) == "");
}

TEST_CASE("the gate is of the token's own logit") {
    // one routed token: no share of a softmax, which would be 1
    for (const auto gate : {depth_gate::identity, depth_gate::sigmoid}) {
        chosen_by_column one({.d_model = 6, .capacity = 0.1, .gate = gate});
        sample<double> rows = with_marks(10, {3});
        rows.x(3, 0) = 1.75;
        const double g = gate == depth_gate::identity ? 1.75 : 1 / (1 + std::exp(-1.75));
        const auto y = suite::forward(one.layer(), rows);
        const auto change = change_of(one.block(), batch::one(1, 3), rows.x.view().row_block(3, 1));
        for (idx j = 0; j < 6; ++j)
            CHECK(y.view()(3, j) == approx(rows.x.view()(3, j) + g * change.view()(0, j)).epsilon(1e-14));
    }
}

TEST_CASE("nothing runs where no token is routed") {
    toy_layer causal(above_zero);
    causal.config.router.threshold = 100;
    const toy_depths layer(causal.config, causal.weights.view);
    const sample<double> rows({6}, 4, 3);
    const auto need = layer.bytes({.max_tokens = 6, .max_rows = 6});
    arena memory(need.state), workspace(need.workspace);
    auto state = layer.bind_state(memory, {.max_tokens = 6, .max_rows = 6});
    padded<double> y(6, 4);
    layer.prefill(batch::one(6), rows.x.view(), y, state, workspace);
    CHECK(causal.rows_seen == 0);
    CHECK((state.routed(0) == 0 && state.block.lengths()[0] == 0 && state.tokens(0) == 6));
    CHECK(different_bits(y.view(), rows.x.view()) == "");
    CHECK(different_bits(causal.forward(batch::one(6), rows.x.view()).view(), rows.x.view()) == "");
}

TEST_CASE("with all tokens routed the cache is that of the block") {
    const chosen_by_column all;
    const sample<double> rows = with_marks(12, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11});
    const limits most{.max_tokens = 12, .max_rows = 12};
    const auto need = all.layer().bytes(most);
    arena memory(need.state), plain_memory(need.state), workspace(need.workspace);
    auto state = all.layer().bind_state(memory, most);
    auto plain = all.block().bind_state(plain_memory, most);
    padded<double> y(12, 6);
    for (idx i = 0; i < 12; i += 4) {
        const auto x = rows.x.view().row_block(i, 4);
        all.layer().extend(batch::one(4, i), x, y.view().row_block(0, 4), state, workspace);
        all.block().extend(batch::one(4, i), x, y.view().row_block(0, 4), plain, workspace);
    }
    const auto &a = state.block.attention.keys, &b = plain.attention.keys;
    CHECK(different_bits(a.v.row_block(0, 12), b.v.row_block(0, 12)) == "");
    CHECK(different_bits(a.k.col_block(0, 12), b.k.col_block(0, 12)) == "");
    CHECK((state.routed(0) == 12 && state.block.tokens(0) == 12));
}

TEST_CASE("each sequence caches what was routed of it, whoever is beside it") {
    toy_layer causal(above_zero);
    const toy_depths layer(causal.config, causal.weights.view);
    const limits most{.max_tokens = 40, .max_rows = 12, .n_sequences = 3};
    const auto need = layer.bytes(most);
    arena memory(need.state), workspace(need.workspace);
    auto state = layer.bind_state(memory, most);
    const sample<double> rows({40, 40, 40}, 4, 5);
    const auto want = causal.forward(rows.rows(), rows.x.view());
    const auto routed = toy_layer::changed(rows.x.view(), want.view());
    const std::vector<idx> slots{2, 0, 1};
    idx done[3] = {0, 0, 0}, cached[3] = {0, 0, 0};
    for (idx round = 0; done[0] + done[1] + done[2] < 120; ++round) {
        // a token of one, several of another, none of a third
        std::vector<idx> offsets{0}, positions;
        padded<double> x(12, 4), y(12, 4);
        for (idx s = 0; s < 3; ++s) {
            const idx n = std::min((round + 2 * s) % 5, 40 - done[s]);
            for (idx i = 0; i < n; ++i) {
                const idx row = 40 * s + done[s] + i, to = offsets.back() + i;
                for (idx j = 0; j < 4; ++j) x(to, j) = rows.x.view()(row, j);
                positions.push_back(done[s] + i);
                cached[s] += std::binary_search(routed.begin(), routed.end(), row) ? 1 : 0;
            }
            offsets.push_back(offsets.back() + n);
        }
        const idx n = offsets.back();
        causal.rows_seen = 0;
        const idx before = state.routed(0) + state.routed(1) + state.routed(2);
        layer.extend({.n_tokens = n, .offsets = offsets, .positions = positions, .slots = slots},
                     x.view().row_block(0, n), y.view().row_block(0, n), state, workspace);
        for (idx s = 0; s < 3; ++s) {
            const idx m = offsets[static_cast<std::size_t>(s) + 1] - offsets[static_cast<std::size_t>(s)];
            CHECK(different_bits(y.view().row_block(offsets[static_cast<std::size_t>(s)], m),
                                 want.view().row_block(40 * s + done[s], m)) == "");
            done[s] += m;
            const idx slot = slots[static_cast<std::size_t>(s)];
            CHECK((state.routed(slot) == cached[s] && state.tokens(slot) == done[s]));
            CHECK(state.block.lengths()[static_cast<std::size_t>(slot)] == cached[s]);
        }
        CHECK(causal.rows_seen == state.routed(0) + state.routed(1) + state.routed(2) - before);
    }
}

TEST_CASE("memory for fewer tokens than there are, and what does not fit is refused as a whole") {
    const chosen_by_column some;
    const limits all{.max_tokens = 1024, .max_rows = 8},
        few{.max_tokens = 1024, .max_rows = 8, .max_routed = 128};
    const auto need = some.layer().bytes(few);
    CHECK(need.state * 7 < some.layer().bytes(all).state);
    const limits most{.max_tokens = 16, .max_rows = 8, .max_rollback = 4, .max_routed = 3};
    arena memory(some.layer().bytes(most).state), workspace(some.layer().bytes(most).workspace);
    auto state = some.layer().bind_state(memory, most);
    const sample<double> rows = with_marks(16, {0, 2, 6, 7, 9});
    const auto want = suite::forward(some.layer(), with_marks(16, {0, 2, 6}));
    padded<double> y(16, 6);
    auto extend = [&](idx first, idx n) {
        some.layer().extend(batch::one(n, first), rows.x.view().row_block(first, n),
                            y.view().row_block(first, n), state, workspace);
    };
    extend(0, 4);
    fill(y.view().row_block(4, 12), 7.0);
    CHECK(message_of<capacity_error>([&] { extend(4, 4); }) ==
          "mixture_of_depths: sequence 0: needs 4 routed tokens (max_routed), has 3");
    for (idx i = 4; i < 16; ++i) CHECK(y(i, 0) == 7);
    CHECK((state.tokens(0) == 4 && state.routed(0) == 2 && state.block.tokens(0) == 2));
    extend(4, 3);
    CHECK(different_bits(y.view().row_block(0, 7), want.view().row_block(0, 7)) == "");
    CHECK_THROWS_AS(extend(7, 1), capacity_error);
    state.truncate(0, 6); // takes the third back
    CHECK((state.routed(0) == 2 && state.block.tokens(0) == 2));
    extend(6, 1);
    CHECK(different_bits(y.view().row_block(6, 1), want.view().row_block(6, 1)) == "");
}

// Against a list of what is held, over many steps forwards and back.
TEST_CASE("truncate takes back what was routed behind it") {
    const chosen_by_column some;
    const idx rollback = 5;
    const limits most{.max_tokens = 400, .max_rows = 4, .max_rollback = rollback};
    const auto need = some.layer().bytes(most);
    poisoned_memory memory(need.state), workspace(need.workspace);
    auto state = some.layer().bind_state(memory, most);
    const sluice::random_source numbers(3);
    std::vector<bool> held;
    idx newest = 0;
    padded<double> y(4, 6);
    for (idx step = 0; step < 600; ++step) {
        const auto size = static_cast<idx>(held.size());
        if (numbers.bits(2 * step) % 3 == 0) {
            const idx least = std::max<idx>(newest - rollback, 0);
            const idx to = least + static_cast<idx>(numbers.bits(2 * step + 1)) % (size - least + 1);
            state.truncate(0, to);
            held.resize(static_cast<std::size_t>(to));
            if (to == 0) newest = 0;
        } else {
            const idx n = std::min<idx>(1 + static_cast<idx>(numbers.bits(2 * step + 1) % 4), 400 - size);
            std::vector<idx> routed;
            for (idx i = 0; i < n; ++i) {
                held.push_back(numbers.bits(5000 + 7 * step + i) % 2 == 0);
                if (held.back()) routed.push_back(i);
            }
            const sample<double> rows = with_marks(n, routed, static_cast<std::uint64_t>(step));
            some.layer().extend(batch::one(n, size), rows.x.view(), y.view().row_block(0, n), state,
                                workspace);
            newest = std::max(newest, static_cast<idx>(held.size()));
        }
        const auto count = std::count(held.begin(), held.end(), true);
        REQUIRE((state.tokens(0) == static_cast<idx>(held.size()) && state.routed(0) == count));
        REQUIRE(state.block.tokens(0) == count);
    }
    expect(memory.touched() + workspace.touched());
}

TEST_CASE("a prompt by top-k says that it looks ahead, and decoding goes on") {
    chosen_by_column some({.d_model = 6, .capacity = 0.25});
    sample<double> rows = with_marks(12, {1, 2, 4, 5, 8});
    rows.x(4, 0) = 3;
    const limits most{.max_tokens = 12, .max_rows = 8};
    const auto need = some.layer().bytes(most);
    arena memory(need.state), workspace(need.workspace);
    auto state = some.layer().bind_state(memory, most);
    padded<double> y(12, 6);
    some.layer().prefill_not_causal(batch::one(8), rows.x.view().row_block(0, 8), y.view().row_block(0, 8),
                                    state, workspace);
    CHECK(state.routed(0) == 2); // tokens 1 and 4
    const auto whole = suite::forward(some.layer(), batch::one(8), rows.x.view().row_block(0, 8));
    CHECK(different_bits(y.view().row_block(0, 8), whole.view()) == "");
    some.layer().decode(batch::one(1, 8), rows.x.view().row_block(8, 1), y.view().row_block(8, 1), state,
                        workspace);
    CHECK(state.routed(0) == 3);
    // the same as the block over the three
    const std::vector<idx> positions{1, 4, 8};
    padded<double> three(3, 6);
    for (idx i = 0; i < 3; ++i)
        copy(rows.x.view().row_block(positions[static_cast<std::size_t>(i)], 1),
             three.view().row_block(i, 1));
    const auto change = change_of(some.block(), {.n_tokens = 3, .positions = positions}, three.view());
    for (idx j = 0; j < 6; ++j)
        CHECK(y(8, j) == approx(rows.x.view()(8, j) + change.view()(2, j)).epsilon(1e-13));
}

namespace {

// dx and all gradients of sum(y dy) plus the layer's own losses are slopes.
void check_gradients(toy_layer& toy, const batch& b, tensor_view<double> x) {
    sluice::depth_report report;
    toy.config.router.losses.report = &report;
    const toy_depths layer(toy.config, toy.weights.view);
    const auto need =
        layer.bytes({.max_rows = b.n_tokens, .n_sequences = b.n_sequences(), .copies = b.copies});
    const idx n = b.rows(), d = toy.config.block.d;
    arena workspace(need.workspace), tape(need.tape);
    const auto dy = uniform_matrix<double>(n, d, 9);
    padded<double> y(n, d), dx(n, d);
    auto backward = [&] {
        layer.forward(b, x, y, &tape, workspace);
        layer.backward(b, x, dy.view(), dx, tape, toy.grad.view, workspace);
    };
    sluice::owned_params<toy_depths::params_type> kept(toy.config);
    auto value = [&] {
        report = {};
        backward(); // says the losses
        double sum = 0;
        for (idx i = 0; i < n; ++i)
            for (idx j = 0; j < d; ++j) sum += y(i, j) * dy.view()(i, j);
        return sum + toy.config.router.losses.router * report.router_loss / static_cast<double>(b.n_tokens);
    };
    zero(toy.grad.view);
    backward();
    each_param(
        [](const sluice::param_name&, sluice::role, const auto& from, const auto& to) {
            for (idx i = 0; i < from.rows(); ++i) std::copy_n(from.row(i), from.cols(), to.row(i));
        },
        toy.grad.view, kept.view);
    padded<double> first(n, d);
    copy(std::as_const(dx).view(), first.view());
    CHECK(wrong_gradient(value, x, first.view()) == "");
    CHECK(wrong_gradient(value, toy.weights.view.router.w, kept.view.router.w) == "");
    CHECK(wrong_gradient(value, toy.weights.view.block.w, kept.view.block.w) == "");
    toy.config.router.losses.report = nullptr;
}

} // namespace

TEST_CASE("gradients with an auxiliary loss reach tokens that are passed by") {
    for (const double weight : {0.0, 0.8})
        for (const auto gate : {depth_gate::identity, depth_gate::sigmoid}) {
            toy_layer toy({.d_model = 4, .capacity = 0.4, .gate = gate, .losses = {.router = weight}});
            sample<double> rows({7, 0, 3}, 4, 6);
            check_gradients(toy, rows.rows(), rows.x.view());
        }
}

TEST_CASE("the copies of a token go where its original goes") {
    const std::vector<idx> offsets{0, 5, 8}, row_offsets{0, 11, 18}; // of five tokens, two are bare
    for (const bool bare : {false, true})
        for (const double weight : {0.0, 0.8}) {
            toy_layer toy({.d_model = 4, .capacity = 0.4, .losses = {.router = weight}});
            batch b{.n_tokens = 8, .offsets = offsets, .copies = 3};
            if (bare) b.row_offsets = row_offsets;
            auto x = uniform_matrix<double>(b.rows(), 4, 12);
            toy.rows_seen = 0;
            const toy_depths layer(toy.config, toy.weights.view);
            arena workspace(layer.bytes({.max_rows = 8, .n_sequences = 2, .copies = 3}).workspace);
            padded<double> y(b.rows(), 4);
            layer.forward(b, x.view(), y, nullptr, workspace);
            const auto changed = toy_layer::changed(std::as_const(x).view(), std::as_const(y).view());
            std::vector<idx> wanted;
            for (idx s = 0; s < 2; ++s) {
                std::vector<double> logits;
                for (idx i = 0; i < b.tokens(s); ++i)
                    logits.push_back(
                        ref::depth_logit<double>(toy.weights.view.router.w, x.view(), b.original(s, i)));
                for (idx i : ref::routed_tokens<double>({.capacity = 0.4}, logits))
                    for (idx row = b.begin(s); row < b.end(s); ++row)
                        if (b.token(s, row) == i) wanted.push_back(row);
            }
            CHECK(changed == wanted);
            CHECK(toy.rows_seen == static_cast<idx>(wanted.size()));
            check_gradients(toy, b, x.view());
        }
}

TEST_CASE("parallel hidden decoding in the depths") {
    using depths = sluice::mixture_of_depths<sluice::phd_block<double>>;
    using body = sluice::stack<sluice::chain<sluice::phd_block<double>, depths>>;
    using model = sluice::token_repeat<body>;
    const sluice::phd_block_config block{
        .attention = {small.attention, 3, 2, 4}, .feed_forward = small.feed_forward, .norm = small.norm};
    const model::config_type c{
        .repeat = 3, .body = {.n_layers = 2, .layer = {block, {.block = block, .router = threshold_rule}}}};
    sluice::owned_params<model::params_type> p(c);
    std::uint64_t key = 1;
    each_param(
        [&](const sluice::param_name&, sluice::role r, auto& t) {
            fill_uniform(t, ++key, r == sluice::role::vector ? 0.5 : -0.6,
                         r == sluice::role::vector ? 1.5 : 0.6);
        },
        p.view);
    const model layer(c, p.view);
    const sample<double> rows({17}, 6, 8);
    const limits most{.max_tokens = 17, .max_rows = 17};
    const auto need = layer.bytes(most);
    arena workspace(need.workspace);
    padded<double> want(17, 6), y(17, 6);
    layer.forward(rows.rows(), rows.x.view(), want, nullptr, workspace);
    for (idx cut : {1, 4, 9, 16}) {
        arena memory(need.state);
        auto state = layer.bind_state(memory, most);
        for (const auto& [first, n] : {std::pair<idx, idx>{0, cut}, {cut, 17 - cut}})
            layer.extend(batch::one(n, first), rows.x.view().row_block(first, n),
                         y.view().row_block(first, n), state, workspace);
        CHECK(different_bits(y.view(), want.view()) == "");
        const auto& depths_state = get<1>(state.body.layers[0].layers);
        CHECK((depths_state.routed(0) > 0 && depths_state.routed(0) < 17));
        CHECK(depths_state.block.tokens(0) == depths_state.routed(0));
    }
}

TEST_CASE("blocks in turn, each with a router of its own") {
    using depths = sluice::mixture_of_depths<sluice::transformer_block<double>>;
    using body = sluice::stack<sluice::chain<sluice::transformer_block<double>, depths>>;
    const body::config_type c{
        .n_layers = 2, .layer = {small, {.block = small, .router = {.d_model = 6, .capacity = 0.125}}}};
    sluice::owned_params<body::params_type> p(c), grad(c);
    std::string names;
    std::uint64_t key = 1;
    each_param(
        [&](const sluice::param_name& name, sluice::role, auto& t) {
            fill_uniform(t, ++key);
            if (t.rows() == 1 && name.str().find("router") != std::string::npos) names += name.str() + " ";
        },
        p.view);
    CHECK(names == "0.1.router.w 1.1.router.w ");
    const body layer(c, p.view);
    // memory for sequences of one token, of which each routes one
    const std::vector<idx> offsets{0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
    const batch b{.n_tokens = 9, .offsets = offsets};
    const auto need = layer.bytes({.max_rows = 9, .n_sequences = 9});
    CHECK(need.tape > layer.bytes({.max_rows = 9}).tape);
    poisoned_memory workspace(need.workspace), tape(need.tape);
    auto x = uniform_matrix<double>(9, 6, 4);
    padded<double> y(9, 6), dx(9, 6);
    layer.forward(b, x.view(), y, &tape.arena(), workspace);
    layer.backward(b, x.view(), x.view(), dx, tape, grad.view, workspace);
    CHECK(tape.arena().used() == 0);
    expect(workspace.touched() + tape.touched());
}

TEST_CASE("what does not fit together is named") {
    const config good{.block = small, .router = {.d_model = 6}};
    const sluice::owned_params<depth_traits::params<double>> weights(good);
    auto complaint = [&](auto change) {
        config c = good;
        change(c);
        return message_of<config_error>(
            [&] { sluice::mixture_of_depths<sluice::transformer_block<double>>(c, weights.view); });
    };
    CHECK(complaint([](config&) {}) == "no error");
    CHECK(complaint([](config& c) { c.router.d_model = 5; }) ==
          "mixture_of_depths: w must be 1 x 5, is 1 x 6");
    CHECK(complaint([](config& c) { c.router.d_model = 0; }) ==
          "mixture_of_depths: d_model must be positive, is 0");
    CHECK(complaint([](config& c) { c.router.capacity = 0; }) ==
          "mixture_of_depths: capacity must be in (0, 1], is 0.000000");
    CHECK(complaint([](config& c) { c.router.extend_by = depth_rule::predictor; }) ==
          "mixture_of_depths: to route by a predictor there must be one: predictor is 0");
    CHECK(complaint([](config& c) { c.router.predictor = 2; }) ==
          "mixture_of_depths: predictor_in must be 2 x 6, is 0 x 0");
    config other{.block = small, .router = {.d_model = 5}};
    const sluice::owned_params<depth_traits::params<double>> narrow(other);
    CHECK(message_of<config_error>([&] {
              sluice::mixture_of_depths<sluice::transformer_block<double>>(other, narrow.view);
          }) == "mixture_of_depths: d_in of the block is 6, router.d_model is 5");
    const sluice::mixture_of_depths<sluice::transformer_block<double>> layer(good, weights.view);
    CHECK_THROWS_AS(layer.bytes({.max_rows = 1, .max_routed = -1}), config_error);
}

TEST_CASE("a null expert leaves a token to attention") {
    // two experts of which the second is null: whoever prefers it gets nothing
    const sluice::moe_config c{
        .d_model = 6, .router = {.n_experts = 2, .top_k = 1, .n_null = 1}, .expert = {.d_ff = 5}};
    sluice::owned_params<sluice::moe_params<double>> p(c);
    CHECK(p.view.experts.size() == 1);
    std::uint64_t key = 4;
    each_param([&](const sluice::param_name&, sluice::role, auto& t) { fill_uniform(t, ++key); }, p.view);
    const sluice::moe<double> experts(c, p.view);
    const auto x = uniform_matrix<double>(40, 6, 2);
    padded<double> y(40, 6);
    arena workspace(experts.bytes({.max_rows = 40}).workspace);
    experts.forward(batch::one(40), x.view(), y, nullptr, workspace);
    idx nothing = 0;
    for (idx i = 0; i < 40; ++i) {
        double prefers = 0, most = 0;
        for (idx j = 0; j < 6; ++j) {
            prefers += (p.view.router(1, j) - p.view.router(0, j)) * x.view()(i, j);
            most = std::max(most, std::abs(y(i, j)));
        }
        CHECK((prefers > 0) == (most == 0));
        nothing += most == 0 ? 1 : 0;
    }
    CHECK((nothing > 5 && nothing < 35));
}

// A quarter of the tokens have something to learn: top-k finds them, chance does not (section 3.1).
TEST_CASE("learned routing beats random routing at the same capacity") {
    auto loss_after_training = [](depth_rule rule) {
        using layer_type = sluice::mixture_of_depths<sluice::transformer_block<double>>;
        const layer_type::config_type c{.block = small,
                                        .router = {.d_model = 6, .capacity = 0.25, .forward_by = rule}};
        sluice::owned_params<layer_type::params_type> p(c), grad(c), means(c), squares(c);
        initialise(p.view, c, sluice::random_source(1));
        sluice::fill_normal(p.view.block.attention.w_o, 0.1, sluice::random_source(2));
        sluice::fill_normal(p.view.block.feed_forward.w_down, 0.1, sluice::random_source(3));
        const layer_type layer(c, p.view);
        const idx n = 64;
        const auto need = layer.bytes({.max_rows = n});
        arena workspace(need.workspace + (1 << 16)), tape(need.tape);
        padded<double> x(n, 6), y(n, 6), dy(n, 6), dx(n, 6);
        double last = 0;
        for (idx step = 1; step <= 300; ++step) {
            const sluice::random_source numbers(static_cast<std::uint64_t>(step));
            std::vector<idx> order(static_cast<std::size_t>(n));
            std::iota(order.begin(), order.end(), idx{0});
            std::sort(order.begin(), order.end(),
                      [&](idx a, idx b) { return numbers.bits(a) < numbers.bits(b); });
            for (idx i = 0; i < n; ++i) {
                for (idx j = 1; j < 6; ++j) x(i, j) = numbers.normal(1000 + 6 * i + j);
                x(i, 0) = order[static_cast<std::size_t>(i)] < n / 4 ? 1 : -1;
            }
            batch b = batch::one(n);
            b.random_key = static_cast<std::uint64_t>(step);
            layer.forward(b, x.view(), y, &tape, workspace);
            double loss = 0;
            for (idx i = 0; i < n; ++i)
                for (idx j = 0; j < 6; ++j) {
                    const double wanted = x(i, j) + (x(i, 0) > 0 ? std::tanh(x(i, (j + 1) % 6)) : 0);
                    dy(i, j) = (y(i, j) - wanted) / static_cast<double>(n);
                    loss += (y(i, j) - wanted) * (y(i, j) - wanted) / static_cast<double>(n);
                }
            zero(grad.view);
            layer.backward(b, x.view(), dy.view(), dx, tape, grad.view, workspace);
            adamw(p.view, grad.view, means.view, squares.view, {.rate = 1e-2, .decay = 0}, step, workspace);
            if (step > 280) last += loss / 20;
        }
        return last;
    };
    const double learned = loss_after_training(depth_rule::top_k),
                 random = loss_after_training(depth_rule::random);
    INFO("learned " << learned << ", random " << random);
    CHECK(learned < 0.5 * random);
}

TEST_CASE("any layer with a residual is a block") {
    using depths = sluice::mixture_of_depths<sluice::residual<sluice::feed_forward<double>>>;
    const depths::config_type c{.block = {.d_model = 6, .d_ff = 9}, .router = threshold_rule};
    sluice::owned_params<depths::params_type> p(c);
    std::uint64_t key = 5;
    each_param([&](const sluice::param_name&, sluice::role, auto& t) { fill_uniform(t, ++key); }, p.view);
    const depths layer(c, p.view);
    const sample<double> rows({30}, 6, 6);
    const limits most{.max_tokens = 30, .max_rows = 30};
    const auto need = layer.bytes(most);
    arena memory(need.state), workspace(need.workspace);
    auto state = layer.bind_state(memory, most);
    padded<double> y(30, 6), want(30, 6);
    layer.forward(rows.rows(), rows.x.view(), want, nullptr, workspace);
    for (idx i = 0; i < 30; i += 5)
        layer.extend(batch::one(5, i), rows.x.view().row_block(i, 5), y.view().row_block(i, 5), state,
                     workspace);
    CHECK(different_bits(y.view(), want.view()) == "");
    const sluice::feed_forward<double> plain(c.block, p.view.block);
    padded<double> change(30, 6);
    plain.forward(batch::one(30), rows.x.view(), change, nullptr, workspace);
    for (idx i = 0; i < 30; ++i) {
        const double r = ref::depth_logit<double>(p.view.router.w, rows.x.view(), i);
        for (idx j = 0; j < 6; ++j)
            CHECK(y(i, j) == approx(rows.x.view()(i, j) + std::max(r, 0.0) * (r > 0 ? change(i, j) : 0))
                                 .epsilon(1e-13)
                                 .margin(1e-13));
    }
}

TEST_CASE("layers in front of one that has no room are put right by truncate") {
    using depths = sluice::mixture_of_depths<sluice::transformer_block<double>>;
    using body = sluice::stack<sluice::chain<sluice::transformer_block<double>, depths>>;
    auto rule = threshold_rule;
    rule.threshold = -1e9; // all
    const body::config_type c{.n_layers = 2, .layer = {small, {.block = small, .router = rule}}};
    sluice::owned_params<body::params_type> p(c);
    std::uint64_t key = 5;
    each_param([&](const sluice::param_name&, sluice::role, auto& t) { fill_uniform(t, ++key, -0.4, 0.4); },
               p.view);
    const body layer(c, p.view);
    const sample<double> rows({10}, 6, 6);
    const limits most{.max_tokens = 10, .max_rows = 6, .max_rollback = 6, .max_routed = 7};
    const auto need = layer.bytes(most);
    arena memory(need.state), workspace(need.workspace), room(layer.bytes({.max_rows = 7}).workspace);
    auto state = layer.bind_state(memory, most);
    padded<double> y(10, 6), want(7, 6);
    layer.forward(batch::one(7), rows.x.view().row_block(0, 7), want, nullptr, room);
    auto extend = [&](idx first, idx n) {
        layer.extend(batch::one(n, first), rows.x.view().row_block(first, n), y.view().row_block(first, n),
                     state, workspace);
    };
    extend(0, 4);
    CHECK_THROWS_AS(extend(4, 6), capacity_error);
    state.truncate(0, 4);
    extend(4, 3);
    CHECK(different_bits(y.view().row_block(0, 7), want.view()) == "");
}
