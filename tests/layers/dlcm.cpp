#include "support/golden.hpp"
#include "support/layer_suite.hpp"
#include "support/reference_of.hpp"

#include <sluice/layers/dlcm.hpp>
#include <sluice/layers/language_model.hpp>
#include <sluice/layers/transformer_block.hpp>
#include <sluice/reference/dlcm.hpp>

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

// The generator of the golden values: splitmix64, uniform in [-1, 1).
struct golden_numbers {
    std::uint64_t state = 42;
    double next() {
        std::uint64_t z = state += 0x9E3779B97F4A7C15ULL;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ULL;
        z = (z ^ z >> 27) * 0x94D049BB133111EBULL;
        return static_cast<double>((z ^ z >> 31) >> 11) * 0x1p-53 * 2 - 1;
    }
    void fill(const tensor_view<double>& t, double scale) {
        for (idx i = 0; i < t.size(); ++i) t(i / t.cols(), i % t.cols()) = next() * scale;
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
void fill_golden(const golden_model::params_type& p) {
    golden_numbers numbers;
    numbers.fill(p.embedding.table, 1);
    each_param(
        [&](const sluice::param_name&, sluice::role r, const auto& t) {
            if (r == sluice::role::vector)
                fill(t, 1.0);
            else
                numbers.fill(t, 1 / std::sqrt(static_cast<double>(t.cols())));
        },
        p.body);
    numbers.fill(p.embedding.head, 0.5);
    fill(p.norm.scale, 1.0);
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
