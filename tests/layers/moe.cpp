#include "support/layer_suite.hpp"
#include "support/reference_of.hpp"

#include <sluice/layers/moe.hpp>
#include <sluice/reference/moe.hpp>

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
        ref::moe<double>({reference_router(c.router), reference_of(c.expert.kind), c.router.n_identity,
                          c.weight_on == sluice::router_weight_on::input},
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
