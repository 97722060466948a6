#include "support/layer_suite.hpp"
#include "support/reference_of.hpp"

#include <sluice/layers/compose.hpp>
#include <sluice/layers/moe.hpp>
#include <sluice/reference/moe.hpp>
#include <sluice/train/balance.hpp>

#if __has_include(<nlohmann/json.hpp>)
#    include <nlohmann/json.hpp>

#    include <fstream>
#endif

using namespace sluice::test;
using sluice::arena;
using sluice::batch;
using sluice::config_error;
using sluice::group_rank;
using sluice::idx;
using sluice::in;
using sluice::moe_config;
using sluice::router_config;
using sluice::router_score;
using sluice::tensor_view;
using sluice::weight_norm;

namespace {

namespace ref = sluice::reference;

ref::router reference_router(const router_config& c) {
    return {.top_k = c.top_k,
            .score = c.score == router_score::none      ? ref::router_score::none
                     : c.score == router_score::softmax ? ref::router_score::softmax
                     : c.score == router_score::sigmoid ? ref::router_score::sigmoid
                                                        : ref::router_score::sqrt_softplus,
            .n_groups = c.groups.n_groups,
            .kept_groups = c.groups.kept,
            .pairs = c.groups.rank == group_rank::best_two,
            .post = c.weights.post == sluice::router_post::none      ? ref::router_post::none
                    : c.weights.post == sluice::router_post::softmax ? ref::router_post::softmax
                                                                     : ref::router_post::sigmoid,
            .norm = c.weights.norm == weight_norm::none          ? ref::router_norm::none
                    : c.weights.norm == weight_norm::sum         ? ref::router_norm::sum
                    : c.weights.norm == weight_norm::clamped_sum ? ref::router_norm::clamped_sum
                                                                 : ref::router_norm::power,
            .eps = c.weights.eps,
            .power = c.weights.power,
            .scale = c.weights.scale};
}

struct moe_traits {
    template <class W>
    using params = sluice::moe_params<W>;
    template <class T, class W, class Arch>
    using layer = sluice::moe<T, W, Arch>;

    static constexpr idx chain = 1024;
    static constexpr bool routed = true;
    static std::vector<variant<moe_config>> variants() {
        using kind = sluice::feed_forward_kind;
        const sluice::weight_rule shared_out{.norm = weight_norm::sum};
        return {
            {"softmax, two of five, shared out",
             {.d_model = 6,
              .router = {.n_experts = 5, .top_k = 2, .weights = shared_out},
              .expert = {.d_ff = 7}}},
            {"sigmoid, groups, bias, a gated shared expert",
             {.d_model = 5,
              .router = {.n_experts = 8,
                         .top_k = 3,
                         .score = router_score::sigmoid,
                         .selection_bias = true,
                         .groups = {4, 2, group_rank::best_two},
                         .weights = {.norm = weight_norm::sum, .eps = 1e-20, .scale = 2.5}},
              .expert = {.d_ff = 4},
              .shared_d_ff = 9,
              .gate = sluice::shared_gate::sigmoid}},
            {"weight on the input, one of three, biased GELU, a shared expert",
             {.d_model = 4,
              .router = {.n_experts = 3,
                         .top_k = 1,
                         .score = router_score::none,
                         .weights = {.post = sluice::router_post::sigmoid}},
              .expert = {.d_ff = 6, .kind = kind::gelu, .bias = true},
              .shared_d_ff = 3,
              .weight_on = sluice::router_weight_on::input,
              .router_bias = true}},
            {"identity experts, softmax of all",
             {.d_model = 3,
              .router = {.n_experts = 6, .top_k = 3, .n_identity = 2},
              .expert = {.d_ff = 5, .kind = kind::geglu, .bias = true}}},
            {"null experts behind an identity, two of five chosen",
             {.d_model = 4,
              .router = {.n_experts = 5, .top_k = 2, .weights = shared_out, .n_identity = 1, .n_null = 2},
              .expert = {.d_ff = 3}}},
            {"softmax of the chosen, clamped quick GEGLU with biases",
             {.d_model = 6,
              .router = {.n_experts = 4,
                         .top_k = 2,
                         .score = router_score::none,
                         .weights = {.post = sluice::router_post::softmax}},
              .expert = {.d_ff = 8, .kind = kind::quick_geglu, .bias = true, .glu = {0.5, 1}},
              .router_bias = true}},
            {"awkward widths",
             {.d_model = 67,
              .router = {.n_experts = 9, .top_k = 4, .weights = shared_out},
              .expert = {.d_ff = 35}},
             true},
        };
    }
    static void reference(const moe_config& c, const params<double>& p, const batch&, in<double> x,
                          tensor_view<double> y) {
        ref::moe_weights<double> w{p.router, p.router_bias,          p.selection_bias,
                                   {},       reference_of(p.shared), p.shared_gate};
        for (const auto& e : p.experts) w.experts.push_back(reference_of(e));
        ref::moe<double>({reference_router(c.router),
                          reference_of(c.expert.kind),
                          {c.expert.glu.clamp, c.expert.glu.offset},
                          c.router.n_identity,
                          c.weight_on == sluice::router_weight_on::input,
                          c.router.n_null},
                         w, x, y);
    }
    // Weights a hundredth larger.
    static void wrong_reference(moe_config c, const params<double>& p, const batch& b, in<double> x,
                                tensor_view<double> y) {
        c.router.weights.scale *= 1.01;
        reference(c, p, b, x, y);
    }
};

} // namespace

SLUICE_TEST_LAYER("", moe_traits, float_native, float_scalar, double_native)

#if __has_include(<nlohmann/json.hpp>)
namespace {

// g(i) = ((i a + b) mod m) / (m / 2) - 1, times scale, as the golden values were made.
void fill_golden(const tensor_view<double>& t, idx a, idx b, idx m, double scale, idx first = 0) {
    for (idx i = 0; i < t.size(); ++i)
        t(i / t.cols(), i % t.cols()) =
            scale * (static_cast<double>(((first + i) * a + b) % m) / (static_cast<double>(m) / 2) - 1);
}

double difference(const nlohmann::json& want, const tensor_view<double>& got) {
    double most = 0;
    for (idx i = 0; i < got.rows(); ++i)
        for (idx j = 0; j < got.cols(); ++j) {
            const auto& row = want[static_cast<std::size_t>(i)];
            most = std::max(most, std::abs(row[static_cast<std::size_t>(j)].get<double>() - got(i, j)));
        }
    return most;
}

double sum(const tensor_view<double>& t) {
    double total = 0;
    for (idx i = 0; i < t.size(); ++i) total += t(i / t.cols(), i % t.cols());
    return total;
}

} // namespace

TEST_CASE("golden values of whole layers") {
    const auto golden = nlohmann::json::parse(std::ifstream(SLUICE_TEST_DIR "/data/moe.json"))["layers"];
    constexpr idx n = 6, d = 8, experts = 8, f = 5;
    for (const std::string name : {"softmax_norm", "softmax_norm_shared_gated", "sigmoid_group"}) {
        INFO(name);
        const auto& want = golden[name];
        moe_config c{.d_model = d, .router = {.n_experts = experts, .top_k = 2}, .expert = {.d_ff = f}};
        c.router.weights.norm = weight_norm::sum;
        if (name == "sigmoid_group") {
            c.router.score = router_score::sigmoid;
            c.router.selection_bias = true;
            c.router.groups = {4, 2, group_rank::best_two};
            c.router.weights = {.norm = weight_norm::sum, .eps = 1e-20, .scale = 2.5};
        }
        const bool shared = name == "softmax_norm_shared_gated";
        if (shared) c.shared_d_ff = 4;
        if (shared) c.gate = sluice::shared_gate::sigmoid;
        sluice::owned_params<sluice::moe_params<double>> p(c), grad(c);
        fill_golden(p.view.router, 53, 7, 97, 1);
        fill_golden(p.view.selection_bias, 29, 3, 31, 0.2);
        for (idx e = 0; e < experts; ++e) {
            const auto& w = p.view.experts[static_cast<std::size_t>(e)];
            fill_golden(w.w_gate, 17, 3, 83, 0.5, e * f * d);
            fill_golden(w.w_up, 19, 8, 79, 0.5, e * f * d);
            fill_golden(w.w_down, 23, 6, 73, 0.5, e * f * d);
        }
        fill_golden(p.view.shared.w_gate, 31, 2, 71, 0.5);
        fill_golden(p.view.shared.w_up, 43, 9, 67, 0.5);
        fill_golden(p.view.shared.w_down, 47, 4, 61, 0.5);
        fill_golden(p.view.shared_gate, 59, 1, 53, 0.5);
        sluice::tensor<double> x(n, d), dy(n, d), y(n, d), dx(n, d);
        fill_golden(x.view(), 37, 11, 101, 1);
        fill_golden(dy.view(), 61, 13, 103, 1);
        const sluice::moe<double> layer(c, p.view);
        const auto need = layer.bytes({.max_rows = n});
        arena workspace(need.workspace), tape(need.tape);
        layer.forward(batch::one(n), x, y.view(), &tape, workspace);
        CHECK(difference(want["Y"], y.view()) < 1e-14);
        layer.backward(batch::one(n), x, dy, dx.view(), tape, grad.view, workspace);
        CHECK(difference(want["dX"], dx.view()) < 1e-13);
        CHECK(difference(want["dWr"], grad.view.router) < 1e-14);
        double gate = 0, up = 0, down = 0;
        for (const auto& g : grad.view.experts)
            gate += sum(g.w_gate), up += sum(g.w_up), down += sum(g.w_down);
        CHECK(std::abs(gate - want["dW1_sum"].get<double>()) < 1e-13);
        CHECK(std::abs(up - want["dW3_sum"].get<double>()) < 1e-13);
        CHECK(std::abs(down - want["dW2_sum"].get<double>()) < 1e-13);
        if (shared) CHECK(difference(want["dsg"], grad.view.shared_gate) < 1e-14);
    }
}
#endif

TEST_CASE("an expert alone is the feed-forward, bit for bit") {
    const moe_config c{.d_model = 7,
                       .router = {.n_experts = 1, .top_k = 1, .weights = {.norm = weight_norm::sum}},
                       .expert = {.d_ff = 9}};
    sluice::owned_params<sluice::moe_params<float>> p(c);
    std::uint64_t key = 0;
    each_param([&](const sluice::param_name&, sluice::role, auto& t) { fill_uniform(t, ++key); }, p.view);
    const sluice::moe<float> layer(c, p.view);
    const sluice::feed_forward<float> plain(c.expert_config(), p.view.experts[0]);
    const auto x = uniform_matrix<float>(20, 7, 3);
    padded<float> y(20, 7), want(20, 7);
    arena workspace(layer.bytes({.max_rows = 20}).workspace);
    layer.forward(batch::one(20), x.view(), y, nullptr, workspace);
    arena room(plain.bytes({.max_rows = 20}).workspace);
    plain.forward(batch::one(20), x.view(), want, nullptr, room);
    CHECK(different_bits(y.view(), want.view()) == "");
}

TEST_CASE("a token's bits are the same alone and in a batch") {
    const moe_config c{.d_model = 33,
                       .router = {.n_experts = 6, .top_k = 2, .weights = {.norm = weight_norm::sum}},
                       .expert = {.d_ff = 40}};
    sluice::owned_params<sluice::moe_params<float>> p(c);
    std::uint64_t key = 0;
    each_param([&](const sluice::param_name&, sluice::role, auto& t) { fill_uniform(t, ++key, -0.3, 0.3); },
               p.view);
    const sluice::moe<float> layer(c, p.view);
    const auto x = uniform_matrix<float>(200, 33, 3);
    padded<float> all(200, 33), one(1, 33);
    arena workspace(layer.bytes({.max_rows = 200}).workspace);
    layer.forward(batch::one(200), x.view(), all, nullptr, workspace);
    for (idx i = 0; i < 200; ++i) {
        layer.forward(batch::one(1), x.view().row_block(i, 1), one, nullptr, workspace);
        CHECK(different_bits(one.view(), all.view().row_block(i, 1)) == "");
    }
}

TEST_CASE("packed experts of more rows and inputs than one pass over their weights give the same bits") {
    const moe_config c{.d_model = 600, .router = {.n_experts = 2, .top_k = 2}, .expert = {.d_ff = 40}};
    sluice::owned_params<sluice::moe_params<float>> p(c);
    std::uint64_t key = 0;
    each_param([&](const sluice::param_name&, sluice::role, auto& t) { fill_uniform(t, ++key, -0.1, 0.1); },
               p.view);
    arena memory(std::size_t{4} << 20);
    const auto packs = sluice::pack_params<sluice::moe_params<sluice::packed<float>>>(p.view, c, memory);
    const sluice::moe<float> plain(c, p.view);
    const sluice::moe<float, sluice::packed<float>> layer(c, packs);
    constexpr idx n = 300; // all of them go to both
    const auto x = uniform_matrix<float>(n, 600, 3);
    padded<float> y(n, 600), want(n, 600);
    arena workspace(layer.bytes({.max_rows = n}).workspace), room(plain.bytes({.max_rows = n}).workspace);
    layer.forward(batch::one(n), x.view(), y, nullptr, workspace);
    plain.forward(batch::one(n), x.view(), want, nullptr, room);
    CHECK(different_bits(y.view(), want.view()) == "");
}

TEST_CASE("what does not fit is named") {
    const moe_config good{.d_model = 4,
                          .router = {.n_experts = 4, .top_k = 2, .weights = {.norm = weight_norm::sum}},
                          .expert = {.d_ff = 5}};
    const sluice::owned_params<sluice::moe_params<float>> p(good);
    auto complaint = [&](auto change) {
        moe_config c = good;
        change(c);
        return message_of<config_error>([&] { sluice::moe<float>(c, p.view); });
    };
    CHECK(complaint([](moe_config&) {}) == "no error");
    CHECK(complaint([](moe_config& c) { c.router.top_k = 5; }) == "moe: top_k must be 1 to 4, is 5");
    CHECK(complaint([](moe_config& c) {
              c.router.groups = {3, 1};
          }) == "moe: 4 experts do not make 3 groups");
    CHECK(complaint([](moe_config& c) { c.d_model = 3; }) == "moe: router must be 4 x 3, is 4 x 4");
    CHECK(complaint([](moe_config& c) { c.expert.d_ff = 6; }) ==
          "feed_forward: w_gate must be 6 x 4, is 5 x 4");
    CHECK(complaint([](moe_config& c) { c.expert.d_model = 3; }) ==
          "moe: expert.d_model must be d_model, or left out");
    CHECK(complaint([](moe_config& c) { c.router.n_identity = 1; }) ==
          "moe: params hold 4 experts, the config says 3");
    CHECK(complaint([](moe_config& c) { c.gate = sluice::shared_gate::sigmoid; }) ==
          "moe: a shared gate needs a shared expert");
    moe_config one = good;
    one.router.top_k = 1;
    const sluice::moe<float> layer(one, p.view);
    const auto need = layer.bytes({.max_rows = 2});
    arena workspace(need.workspace), tape(need.tape);
    const auto x = uniform_matrix<float>(2, 4, 1);
    padded<float> y(2, 4);
    layer.forward(batch::one(2), x.view(), y, nullptr, workspace); // inference is well defined
    CHECK(message_of<config_error>([&] { layer.forward(batch::one(2), x.view(), y, &tape, workspace); }) ==
          "moe: top_k 1 with normalised weights cannot be trained: the weight is constant, so the router has "
          "no "
          "gradient");
}

namespace {

// A small layer in double with weights that are not small, and one training call of it.
struct trained {
    using params = sluice::moe_params<double>;

    explicit trained(const moe_config& config, idx n_ = 9)
        : c(config),
          n(n_),
          p(c),
          grad(c),
          x(uniform_matrix<double>(n, c.d_model, 3)),
          dy(uniform_matrix<double>(n, c.d_model, 4)),
          y(n, c.d_model),
          dx(n, c.d_model) {
        std::uint64_t seed = 20;
        each_param([&](const sluice::param_name&, sluice::role, auto& t) { fill_uniform(t, ++seed); },
                   p.view);
        fill_uniform(p.view.selection_bias, 5, -0.1, 0.1);
    }
    batch b() const { return {.n_tokens = n, .offsets = offsets, .ids = ids, .random_key = key}; }
    void forward(bool training) {
        const sluice::moe<double> layer(c, p.view);
        const auto need = layer.bytes({.max_rows = n});
        arena workspace(need.workspace), tape(need.tape);
        layer.forward(b(), x, y, training ? &tape : nullptr, workspace);
    }
    // What backward is the gradient of, the hook's losses apart.
    double value() {
        forward(true);
        double sum = 0;
        for (idx i = 0; i < n; ++i)
            for (idx j = 0; j < c.d_model; ++j) sum += y(i, j) * dy(i, j);
        return sum;
    }
    void backward() {
        const sluice::moe<double> layer(c, p.view);
        const auto need = layer.bytes({.max_rows = n});
        arena workspace(need.workspace), tape(need.tape);
        zero(grad.view);
        layer.forward(b(), x, y, &tape, workspace);
        layer.backward(b(), x, dy, dx, tape, grad.view, workspace);
        CHECK(tape.used() == 0);
        CHECK(workspace.used() == 0);
    }
    // Every gradient against differences of `loss`.
    template <class F>
    void check_gradients(F&& loss) {
        backward();
        double most = 0;
        auto check = [&](const std::string& name, auto value_at, auto gradient_at, idx rows, idx cols) {
            for (idx i = 0; i < rows; ++i)
                for (idx j = 0; j < cols; ++j) {
                    const double want = slope(loss, value_at(i, j)), got = gradient_at(i, j);
                    most = std::max(most, std::abs(want));
                    if (std::abs(want - got) > 1e-7 * (1 + std::abs(want)))
                        FAIL_CHECK(name << "(" << i << ", " << j << ") is " << got << ", by differences "
                                        << want);
                }
        };
        check(
            "dx", [&](idx i, idx j) -> double& { return x(i, j); }, [&](idx i, idx j) { return dx(i, j); }, n,
            c.d_model);
        each_param(
            [&](const sluice::param_name& name, sluice::role r, auto& t, auto& g) {
                if (r == sluice::role::buffer) return;
                check(
                    name.str(), [&](idx i, idx j) -> double& { return t(i, j); },
                    [&](idx i, idx j) { return g(i, j); }, t.rows(), t.cols());
            },
            p.view, grad.view);
        CHECK(most > 0.1);
    }

    moe_config c;
    idx n;
    std::vector<idx> offsets{};
    std::vector<sluice::token_id> ids{};
    std::uint64_t key = 7;
    sluice::owned_params<params> p, grad;
    padded<double> x, dy, y, dx;
};

moe_config small_config() {
    return {.d_model = 4,
            .router = {.n_experts = 5, .top_k = 2, .weights = {.norm = weight_norm::sum}},
            .expert = {.d_ff = 3}};
}

} // namespace

TEST_CASE("jitter and noise of training: gradients, keys, and none of it in inference") {
    using sluice::jitter_on;
    using sluice::router_noise;
    for (const sluice::router_perturbation& noise :
         {sluice::router_perturbation{.jitter = 0.3},
          {.jitter = 0.3, .on = jitter_on::layer},
          {.kind = router_noise::gumbel},
          {.kind = router_noise::fixed, .sigma = 0.5},
          {.kind = router_noise::learnt, .sigma = 0.1, .jitter = 0.1}}) {
        moe_config c = small_config();
        c.shared_d_ff = 2;
        c.router.noise = noise;
        CAPTURE(static_cast<int>(noise.kind), static_cast<int>(noise.on));
        trained t(c);
        t.check_gradients([&] { return t.value(); });
        const double with_7 = t.value();
        CHECK(t.value() == with_7);
        t.key = 8;
        CHECK(t.value() != with_7);
        // inference knows neither
        t.forward(false);
        const padded<double> plain = t.y;
        c.router.noise = {};
        trained same(c);
        same.p.view.router = t.p.view.router;
        for (std::size_t e = 0; e < 5; ++e) same.p.view.experts[e] = t.p.view.experts[e];
        same.p.view.shared = t.p.view.shared;
        same.forward(false);
        CHECK(different_bits(plain.view(), same.y.view()) == "");
    }
}

TEST_CASE("layers of a stack draw numbers of their own") {
    using block = sluice::residual<sluice::moe<double>>;
    moe_config c = small_config();
    c.router.noise = {.kind = sluice::router_noise::gumbel};
    std::vector<std::vector<double>> seen;
    auto look = [&](const sluice::routing_record<double>& r, arena&, sluice::executor_ref ex) {
        if (ex.dry()) return;
        seen.emplace_back();
        for (idx e = 0; e < 5; ++e) seen.back().push_back(r.noisy(0, e) - r.logits(0, e));
    };
    c.router_hook = look;
    const sluice::stack_config<moe_config> many{.n_layers = 3, .layer = c};
    sluice::owned_params<sluice::stack_params<sluice::moe_params<double>>> p(many), grad(many);
    initialise(p.view, many, sluice::random_source(1));
    const sluice::stack<block> net(many, p.view);
    const auto need = net.bytes({.max_rows = 3});
    arena workspace(need.workspace), tape(need.tape);
    const auto x = uniform_matrix<double>(3, 4, 1);
    padded<double> y(3, 4), dx(3, 4);
    net.forward(batch::one(3), x, y, &tape, workspace);
    net.backward(batch::one(3), x, x, dx, tape, grad.view, workspace);
    REQUIRE(seen.size() == 3);
    CHECK(seen[0] != seen[1]);
    CHECK(seen[1] != seen[2]);
    CHECK(seen[0] != seen[2]);
}

TEST_CASE("losses on the router add to its gradients and keep their values") {
    moe_config c = small_config();
    c.router.score = router_score::sigmoid;
    sluice::router_losses losses({.balance = 0.7, .z = 0.3, .importance = 0.2});
    c.router_hook = losses;
    trained t(c);
    t.check_gradients([&] {
        // the same call again, for the values: gradients of before are not read
        const double out = t.value();
        losses.reset();
        padded<double> keep = t.dx;
        sluice::owned_params<sluice::moe_params<double>> unused(c);
        const sluice::moe<double> layer(t.c, t.p.view);
        const auto need = layer.bytes({.max_rows = t.n});
        arena workspace(need.workspace), tape(need.tape);
        layer.forward(t.b(), t.x, t.y, &tape, workspace);
        layer.backward(t.b(), t.x, t.dy, keep, tape, unused.view, workspace);
        return out + losses.total();
    });
    losses.reset();
    t.offsets = {0, 2, 9};
    t.backward();
    const double whole = losses.balance();
    CHECK(losses.z() > 0);
    CHECK(losses.importance() > 0);
    CHECK(losses.total() == approx(0.7 * whole + 0.3 * losses.z() + 0.2 * losses.importance()));
    t.backward();
    CHECK(losses.balance() == approx(whole)); // a mean over calls
    sluice::router_losses each({.balance = 0.7, .over = sluice::balance_over::sequences});
    t.c.router_hook = each;
    t.backward();
    CHECK(each.balance() > 0);
    CHECK(each.balance() != approx(whole));
    CHECK(each.z() == 0);
    CHECK(message_of<config_error>([] { sluice::router_losses({.balance = -1}); }) ==
          "router_losses: a weight must be finite and not negative");
    auto of_float = [](const sluice::routing_record<float>&, arena&, sluice::executor_ref) {};
    t.c.router_hook = of_float;
    CHECK(message_of<config_error>([&] { t.backward(); }) ==
          "router_hook: the callable does not take this type of numbers");
}

TEST_CASE("backward counts choices for the selection bias, which then evens them out") {
    moe_config c = small_config();
    c.router.selection_bias = true;
    trained t(c, 40);
    t.backward();
    double chosen = 0, uneven = 0;
    for (idx e = 0; e < 5; ++e) {
        chosen += t.grad.view.selection_bias(0, e);
        uneven = std::max(uneven, t.grad.view.selection_bias(0, e));
    }
    CHECK(chosen == 80);
    for (int step = 0; step < 300; ++step) {
        t.backward();
        update_selection_biases(t.grad.view, 1e-3, t.p.view);
    }
    double later = 0;
    for (idx e = 0; e < 5; ++e) later = std::max(later, t.grad.view.selection_bias(0, e));
    CHECK(later < uneven);
    CHECK(later <= 18);
}

TEST_CASE("a capacity drops what comes late, and gradients know it") {
    moe_config c = small_config();
    c.router.capacity = {.rule = sluice::capacity_rule::share, .factor = 0, .minimum = 2};
    for (const auto after : {sluice::weights_after_drop::kept, sluice::weights_after_drop::renormalised}) {
        c.router.capacity.weights = after;
        trained t(c, 12);
        idx rows = 0;
        auto look = [&](const sluice::routing_record<double>& r, arena&, sluice::executor_ref ex) {
            if (ex.dry()) return;
            std::vector<idx> load(5);
            rows = 0;
            for (idx i = 0; i < 12; ++i)
                for (idx j = 0; j < 2; ++j)
                    if (r.indices(i, j) >= 0) ++load[static_cast<std::size_t>(r.indices(i, j))], ++rows;
            CHECK(*std::max_element(load.begin(), load.end()) <= 2);
        };
        t.c.router_hook = look;
        t.backward();
        CHECK(rows <= 10);
        t.check_gradients([&] { return t.value(); });
    }
}

TEST_CASE("experts that choose their tokens") {
    moe_config c = small_config();
    c.router.choice = sluice::router_choice::experts;
    c.router.weights = {};
    c.router.capacity = {.rule = sluice::capacity_rule::share, .factor = 1}; // n k / E tokens each
    trained t(c, 10);
    t.check_gradients([&] { return t.value(); });
    // y(i) = sum over experts that took i of p(i, e) F_e(x(i))
    ref::moe_weights<double> w{t.p.view.router, {}, {}, {}, {}, {}};
    for (const auto& e : t.p.view.experts) w.experts.push_back(reference_of(e));
    sluice::tensor<double> logits(10, 5), want(10, 4), out(10, 4);
    ref::linear<double>({t.p.view.router, {}}, t.x, logits);
    std::vector<std::vector<double>> probs;
    for (idx i = 0; i < 10; ++i) {
        std::vector<double> p(5);
        double sum = 0;
        for (idx e = 0; e < 5; ++e) sum += p[static_cast<std::size_t>(e)] = std::exp(logits(i, e));
        for (double& v : p) v /= sum;
        probs.push_back(p);
    }
    for (std::size_t e = 0; e < 5; ++e) {
        std::vector<idx> order(10);
        std::iota(order.begin(), order.end(), idx{0});
        std::stable_sort(order.begin(), order.end(), [&](idx a, idx b) {
            return probs[static_cast<std::size_t>(a)][e] > probs[static_cast<std::size_t>(b)][e];
        });
        ref::feed_forward<double>(ref::activation::silu, w.experts[e], t.x, out.view());
        for (std::size_t i = 0; i < 4; ++i)
            for (idx j = 0; j < 4; ++j)
                want(order[i], j) += probs[static_cast<std::size_t>(order[i])][e] * out(order[i], j);
    }
    t.forward(false);
    double apart = 0;
    for (idx i = 0; i < 10; ++i)
        for (idx j = 0; j < 4; ++j) apart = std::max(apart, std::abs(want(i, j) - t.y(i, j)));
    CHECK(apart < 1e-12);
}

TEST_CASE("experts by a table of token ids") {
    moe_config c = small_config();
    c.router.choice = sluice::router_choice::hash_table;
    const std::vector<std::int32_t> table{0, 1, 2, 3, 4, 0};
    c.hash_table = {table.data(), 3, 2};
    trained t(c, 6);
    t.ids = {2, 0, 1, 1, 0, 2};
    t.check_gradients([&] { return t.value(); });
    std::vector<std::int32_t> seen;
    auto look = [&](const sluice::routing_record<double>& r, arena&, sluice::executor_ref ex) {
        for (idx i = 0; i < 6 && !ex.dry(); ++i) seen.insert(seen.end(), {r.indices(i, 0), r.indices(i, 1)});
    };
    t.c.router_hook = look;
    t.backward();
    CHECK(seen == std::vector<std::int32_t>{4, 0, 0, 1, 2, 3, 2, 3, 0, 1, 4, 0});
    t.ids = {2, 0, 1, 1, 0, 3};
    CHECK(message_of<sluice::input_error>([&] { t.forward(false); }) ==
          "router: hash table: token id 3 at row 5 is outside the 3");
    t.ids = {};
    CHECK(message_of<sluice::input_error>([&] { t.forward(false); }) ==
          "router: hash table: 0 ids for 6 rows");
}

TEST_CASE("experts of equal weights are one feed-forward, as weights sum to one") {
    trained t(small_config());
    for (auto& e : t.p.view.experts) e = t.p.view.experts[0];
    t.forward(false);
    padded<double> want(t.n, 4);
    ref::feed_forward<double>(ref::activation::silu, reference_of(t.p.view.experts[0]), t.x, want.view());
    for (idx i = 0; i < t.n; ++i)
        for (idx j = 0; j < 4; ++j) CHECK(t.y(i, j) == approx(want(i, j)).margin(1e-13));
}

TEST_CASE("every expert chosen: the mixture of all, by the softmax") {
    moe_config c = small_config();
    c.router.top_k = 5;
    c.router.weights = {};
    trained t(c);
    t.forward(false);
    padded<double> out(t.n, 4), want(t.n, 4);
    sluice::tensor<double> logits(t.n, 5);
    ref::linear<double>({t.p.view.router, {}}, t.x, logits);
    fill(want.view(), 0.0);
    for (idx e = 0; e < 5; ++e) {
        ref::feed_forward<double>(ref::activation::silu,
                                  reference_of(t.p.view.experts[static_cast<std::size_t>(e)]), t.x,
                                  out.view());
        for (idx i = 0; i < t.n; ++i) {
            double sum = 0;
            for (idx o = 0; o < 5; ++o) sum += std::exp(logits(i, o));
            for (idx j = 0; j < 4; ++j) want(i, j) += std::exp(logits(i, e)) / sum * out(i, j);
        }
    }
    for (idx i = 0; i < t.n; ++i)
        for (idx j = 0; j < 4; ++j) CHECK(t.y(i, j) == approx(want(i, j)).margin(1e-13));
}

TEST_CASE("the order of experts and of tokens does not matter") {
    trained t(small_config()), other(small_config());
    t.forward(false);
    const idx order[] = {3, 0, 4, 1, 2}; // where expert e goes
    for (idx e = 0; e < 5; ++e) {
        other.p.view.experts[static_cast<std::size_t>(order[e])] =
            t.p.view.experts[static_cast<std::size_t>(e)];
        for (idx j = 0; j < 4; ++j) other.p.view.router(order[e], j) = t.p.view.router(e, j);
    }
    for (idx i = 0; i < t.n; ++i)
        for (idx j = 0; j < 4; ++j) other.x(i, j) = t.x(t.n - 1 - i, j);
    other.forward(false);
    for (idx i = 0; i < t.n; ++i)
        for (idx j = 0; j < 4; ++j) CHECK(other.y(t.n - 1 - i, j) == approx(t.y(i, j)).margin(1e-14));
}

TEST_CASE("a weight on the input is another layer than one on the output") {
    moe_config c = small_config();
    trained on_output(c);
    c.weight_on = sluice::router_weight_on::input;
    trained on_input(c);
    on_output.forward(false);
    on_input.forward(false);
    double apart = 0;
    for (idx i = 0; i < on_input.n; ++i)
        for (idx j = 0; j < 4; ++j) apart = std::max(apart, std::abs(on_input.y(i, j) - on_output.y(i, j)));
    CHECK(apart > 0.05);
}

TEST_CASE("NaN in a token stays in that token") {
    trained t(small_config());
    t.forward(false);
    padded<double> clean = t.y;
    t.x(4, 1) = std::numeric_limits<double>::quiet_NaN();
    t.forward(false);
    for (idx j = 0; j < 4; ++j) CHECK(std::isnan(t.y(4, j)));
    for (idx i = 0; i < t.n; ++i)
        for (idx j = 0; j < 4 && i != 4; ++j) CHECK(t.y(i, j) == clean(i, j));
    t.backward(); // chooses somebody; nothing is read out of range
}

TEST_CASE("weights stored as bf16, plain and packed, are near those of f32") {
    const moe_config c{.d_model = 48,
                       .router = {.n_experts = 6, .top_k = 2, .weights = {.norm = weight_norm::sum}},
                       .expert = {.d_ff = 40}};
    sluice::owned_params<sluice::moe_params<float>> p(c);
    sluice::owned_params<sluice::moe_params<sluice::bf16>> narrow(c);
    std::uint64_t seed = 0;
    each_param(
        [&]<class A, class B>(const sluice::param_name&, sluice::role, const tensor_view<A>& from,
                              const tensor_view<B>& to) {
            fill_uniform(from, ++seed, -0.3, 0.3);
            for (idx i = 0; i < from.rows(); ++i)
                for (idx j = 0; j < from.cols(); ++j)
                    if constexpr (std::is_same_v<B, sluice::bf16>)
                        to(i, j) = sluice::to_bf16(from(i, j));
                    else
                        to(i, j) = from(i, j); // routers are never narrow
        },
        p.view, narrow.view);
    using packed_params = sluice::moe_params<sluice::packed<sluice::bf16>>;
    arena memory(sluice::params_bytes<packed_params>(c));
    const auto panels = sluice::pack_params<packed_params>(p.view, c, memory);
    const auto x = uniform_matrix<float>(30, 48, 3);
    padded<float> want(30, 48), plain(30, 48), packed(30, 48);
    auto run = [&](const auto& layer, padded<float>& y) {
        arena workspace(layer.bytes({.max_rows = 30}).workspace);
        layer.forward(batch::one(30), x.view(), y, nullptr, workspace);
    };
    run(sluice::moe<float>(c, p.view), want);
    run(sluice::moe<float, sluice::bf16>(c, narrow.view), plain);
    run(sluice::moe<float, sluice::packed<sluice::bf16>>(c, panels), packed);
    CHECK(different_bits(plain.view(), packed.view()) == "");
    float most = 0, apart = 0;
    for (idx i = 0; i < 30; ++i)
        for (idx j = 0; j < 48; ++j) {
            most = std::max(most, std::abs(want(i, j)));
            apart = std::max(apart, std::abs(want(i, j) - packed(i, j)));
        }
    CHECK(apart > 0);
    CHECK(apart < 1e-2F * most);
}

TEST_CASE("an upcycled mixture is the feed-forward at the start, and can be trained") {
    const sluice::feed_forward_config small{.d_model = 24, .d_ff = 40};
    sluice::owned_params<sluice::feed_forward_params<float>> dense(small);
    std::uint64_t seed = 0;
    each_param([&](const sluice::param_name&, sluice::role, auto& t) { fill_uniform(t, ++seed); },
               dense.view);
    const auto x = uniform_matrix<float>(50, 24, 3);
    padded<float> want(50, 24), y(50, 24);
    const sluice::feed_forward<float> plain(small, dense.view);
    arena room(plain.bytes({.max_rows = 50}).workspace);
    plain.forward(batch::one(50), x.view(), want, nullptr, room);
    for (const router_score score : {router_score::softmax, router_score::sigmoid})
        for (idx k = 1; k <= 5; ++k) {
            const moe_config c{.d_model = 24,
                               .router = {.n_experts = 5,
                                          .top_k = k,
                                          .score = score,
                                          .selection_bias = k % 2 == 0,
                                          .weights = {.norm = weight_norm::sum}},
                               .expert = {.d_ff = 40}};
            arena dry;
            (void)upcycle(dense.view, c, sluice::random_source(5), dry);
            arena memory(dry.bytes());
            const auto p = upcycle(dense.view, c, sluice::random_source(5), memory);
            CHECK(memory.used() == dry.bytes());
            const sluice::moe<float> layer(c, p);
            arena workspace(layer.bytes({.max_rows = 50}).workspace);
            layer.forward(batch::one(50), x.view(), y, nullptr, workspace);
            float most = 0, size = 0;
            for (idx i = 0; i < 50; ++i)
                for (idx j = 0; j < 24; ++j) {
                    most = std::max(most, std::abs(y(i, j) - want(i, j)));
                    size = std::max(size, std::abs(want(i, j)));
                }
            CHECK(most <= (k == 1 ? 0.0F : 5e-7F * size));
            bool chosen = false; // the router is not all alike
            for (idx j = 0; j < 24; ++j) chosen = chosen || p.router(0, j) != p.router(1, j);
            CHECK(chosen);

            sluice::owned_params<sluice::moe_params<float>> apart(c);
            each_param(
                [](const sluice::param_name&, sluice::role, const auto& from, const auto& to) {
                    for (idx i = 0; i < from.rows(); ++i) std::copy_n(from.row(i), from.cols(), to.row(i));
                },
                p, apart.view);
            apart.view.experts[0].w_up(0, 0) += 1;
            CHECK(apart.view.experts[1].w_up(0, 0) == dense.view.w_up(0, 0));
        }
    const auto refused = [&](auto change) {
        moe_config c{.d_model = 24,
                     .router = {.n_experts = 4, .top_k = 2, .weights = {.norm = weight_norm::sum}}};
        change(c);
        arena dry;
        return message_of<config_error>([&] { (void)upcycle(dense.view, c, sluice::random_source(5), dry); });
    };
    CHECK(refused([](moe_config&) {}) == "no error");
    const std::string sum =
        "upcycle: the weights of a token must sum to 1, and no expert may be dropped or without weights";
    CHECK(refused([](moe_config& c) { c.router.weights.norm = weight_norm::none; }) == sum);
    CHECK(refused([](moe_config& c) { c.router.weights.scale = 2; }) == sum);
    CHECK(refused([](moe_config& c) { c.router.weights.eps = 1e-20; }) == sum);
    CHECK(refused([](moe_config& c) { c.router.n_null = 1; }) == sum);
    CHECK(refused([](moe_config& c) { c.router.n_identity = 1; }) == sum);
    CHECK(refused([](moe_config& c) { c.router.capacity.rule = sluice::capacity_rule::share; }) == sum);
    CHECK(refused([](moe_config& c) { c.weight_on = sluice::router_weight_on::input; }) == sum);
    CHECK(refused([](moe_config& c) { c.shared_d_ff = 8; }) ==
          "upcycle: there is no shared expert, router bias or learnt noise to begin with");
}
