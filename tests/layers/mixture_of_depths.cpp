#include "support/layer_suite.hpp"
#include "support/reference_of.hpp"

#include <sluice/layers/mixture_of_depths.hpp>
#include <sluice/reference/mixture_of_depths.hpp>

#if __has_include(<nlohmann/json.hpp>)
#    include <nlohmann/json.hpp>

#    include <fstream>
#endif

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

} // namespace

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

#if __has_include(<nlohmann/json.hpp>)
namespace {

std::string difference(const nlohmann::json& want, in<double> got) {
    for (idx i = 0; i < got.size(); ++i) {
        const double w = want[static_cast<std::size_t>(i)].get<double>(),
                     g = got(i / got.cols(), i % got.cols());
        if (!(std::abs(w - g) < 3e-14)) return "at " + std::to_string(i) + ": " + number_text(g);
    }
    return static_cast<std::size_t>(got.size()) == want.size() ? "" : "sizes differ";
}

} // namespace

TEST_CASE("golden values") {
    const auto golden = nlohmann::json::parse(std::ifstream(SLUICE_TEST_DIR "/data/mixture_of_depths.json"));
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
