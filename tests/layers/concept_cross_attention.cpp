#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/executors.hpp"
#include "support/random_data.hpp"

#include <sluice/core/tensor.hpp>
#include <sluice/layers/concept_cross_attention.hpp>
#include <sluice/reference/concept_cross_attention.hpp>

#include <numeric>
#include <string>

using namespace sluice::test;
using sluice::arena;
using sluice::batch;
using sluice::concept_attention_config;
using sluice::concept_forming;
using sluice::concept_weight;
using sluice::config_error;
using sluice::executor_ref;
using sluice::idx;
using sluice::in;
using sluice::tensor;
using sluice::tensor_view;

namespace {

using cross = sluice::concept_cross_attention<double>;

const concept_attention_config plain{
    .d_model = 5, .d_concept = 9, .n_heads = 6, .n_kv_heads = 2, .head_dim = 3};
concept_attention_config weighted_config() {
    auto c = plain;
    c.weight = concept_weight::segment_length;
    return c;
}

// Sequences cut as given, a layer with weights, and tensors of both.
struct subject {
    subject(const concept_attention_config& c, const std::vector<std::vector<idx>>& lengths,
            concept_forming form)
        : config(c), weights(c), grad(c), layer(c, weights.view), inclusive(form != concept_forming::mean) {
        std::uint64_t key = 7;
        each_param([&](const auto&, auto, const auto& t) { fill_uniform(t, ++key, -0.7, 0.9); },
                   weights.view);
        for (const auto& sequence : lengths) {
            for (const idx n : sequence)
                for (idx i = 0; i < n; ++i) starts.push_back(i == 0 ? 1 : 0);
            offsets.push_back(static_cast<idx>(starts.size()));
        }
        b = {.n_tokens = offsets.back(), .offsets = offsets};
        const std::vector<double> p(starts.size(), 0.5);
        cut = sluice::segments<double>::take(memory, b);
        cut.number(0,
                   [&](idx s) { return sluice::segments<double>::made(b, s, starts.data(), form, nullptr); });
        cut.take_made(memory);
        cut.place(nullptr);
        cut.fill(b, starts.data(), p.data(), form, nullptr);
        h = tensor<double>(b.n_tokens, c.d_model);
        z = tensor<double>(cut.to.n_tokens, c.d_concept);
        y = tensor<double>(b.n_tokens, c.d_model);
        fill_uniform(h.view(), 1);
        fill_uniform(z.view(), 2);
        kept = layer.take(memory, b.n_tokens, cut.to.n_tokens);
    }
    subject(const subject&) = delete;
    void forward(executor_ref ex = {}) {
        layer.forward(b, cut, inclusive, h, z, kept, y.view(), workspace, ex);
    }
    // The keys of each concept as often as its segment has tokens, or once.
    tensor<double> reference(bool repeated) {
        tensor<double> want(b.n_tokens, config.d_model);
        const auto& w = weights.view;
        for (idx s = 0; s < b.n_sequences(); ++s) {
            const idx first = b.first_token(s), n = b.tokens(s), from = cut.to.first_token(s);
            std::vector<idx> list, seen, of_token;
            for (idx k = 0; k < cut.to.tokens(s); ++k) list.push_back(k);
            for (idx i = first, own = -1; i < first + n; ++i) {
                own += starts[static_cast<std::size_t>(i)];
                of_token.push_back(own);
                const idx begun = i - first - cut.age[i] + 1;
                seen.push_back(repeated ? (inclusive ? i - first + 1 : begun) : cut.seen[i]);
            }
            sluice::reference::concept_cross_attention<double>(
                {config.n_heads, config.n_kv_heads, config.head_dim, config.eps},
                {w.w_q, w.w_k, w.w_v, w.w_o, w.q_norm, w.k_norm}, h.view().row_block(first, n),
                z.view().row_block(from, cut.to.tokens(s)), repeated ? of_token : list, seen,
                want.view().row_block(first, n));
        }
        for (idx i = 0; i < b.n_tokens; ++i)
            for (idx j = 0; j < config.d_model; ++j) want(i, j) += h(i, j);
        return want;
    }

    concept_attention_config config;
    sluice::owned_params<cross::params_type> weights;
    sluice::owned_params<cross::grad_type> grad;
    cross layer;
    bool inclusive;
    arena memory{std::size_t{1} << 22}, workspace{std::size_t{1} << 22};
    std::vector<std::uint8_t> starts;
    std::vector<idx> offsets{0};
    batch b;
    sluice::segments<double> cut;
    tensor<double> h, z, y;
    cross::tensors kept;
};

double largest_difference(const tensor<double>& a, const tensor<double>& b) {
    double most = 0;
    for (idx i = 0; i < a.rows(); ++i)
        for (idx j = 0; j < a.cols(); ++j) most = std::max(most, std::abs(a(i, j) - b(i, j)));
    return most;
}

// More than a tile of keys, one concept, one token, none.
std::vector<std::vector<idx>> texts() {
    std::vector<idx> many, one_long{200, 3};
    for (idx i = 0; i < 150; ++i) many.push_back(1 + i * i % 5);
    return {many, {}, {1}, {2, 1}, one_long, {4, 1, 3}};
}
constexpr auto mean = concept_forming::mean, leaking = concept_forming::leaking_mean;

} // namespace

TEST_CASE("agrees with its reference") {
    for (const auto form : {mean, leaking}) {
        subject s(plain, texts(), form);
        const auto want = s.reference(false);
        for_each_executor([&](executor_ref ex, const std::string& name) {
            INFO(name);
            s.forward(ex);
            CHECK(largest_difference(s.y, want) < 1e-13);
        });
        CHECK(s.workspace.used() == 0);
        if (form == mean) // a first segment sees nothing
            CHECK(different_bits(in<double>(s.y.view().row_block(s.offsets[4], 200)),
                                 in<double>(s.h.view().row_block(s.offsets[4], 200))) == "");
    }
}

TEST_CASE("the logarithm of a length is as many keys") {
    for (const auto form : {mean, leaking}) {
        subject s(weighted_config(), texts(), form);
        s.forward();
        CHECK(largest_difference(s.y, s.reference(true)) < 1e-13);
        CHECK(largest_difference(s.y, s.reference(false)) > 1e-2);
        // with segments of one length it changes nothing, of a token's own at the end of it
        subject even(weighted_config(), {std::vector<idx>(40, 3)}, form);
        even.forward();
        const auto want = even.reference(false);
        for (idx i = 2; i < 120; i += 3)
            for (idx j = 0; j < 5; ++j) CHECK(std::abs(even.y(i, j) - want(i, j)) < 1e-13);
    }
}

TEST_CASE("gradients are slopes") {
    for (const bool by_length : {false, true})
        for (const auto form : {mean, leaking}) {
            INFO(by_length << static_cast<int>(form));
            subject s(by_length ? weighted_config() : plain, {{2, 1, 3}, {}, {1}, {1, 2}}, form);
            tensor<double> dy(s.b.n_tokens, 5), dh(s.b.n_tokens, 5), dz(s.z.rows(), 9);
            fill_uniform(dy.view(), 5);
            auto value = [&] {
                s.forward();
                double sum = 0;
                for (idx i = 0; i < dy.rows(); ++i)
                    for (idx j = 0; j < 5; ++j) sum += s.y(i, j) * dy(i, j);
                return sum;
            };
            value();
            s.layer.backward(s.b, s.cut, s.inclusive, s.h, s.z, s.kept, dy, dh.view(), dz.view(), s.grad.view,
                             s.workspace, {});
            CHECK(wrong_gradient(value, s.h.view(), dh.view()) == "");
            CHECK(wrong_gradient(value, s.z.view(), dz.view()) == "");
            each_param(
                [&](const sluice::param_name& name, auto, const auto& w, const auto& g) {
                    INFO(name.str());
                    CHECK(wrong_gradient(value, w, g) == "");
                },
                s.weights.view, s.grad.view);
        }
}

TEST_CASE("one head of many widths") {
    for (const idx head_dim : {1, 4, 17}) {
        subject s({.d_model = 4, .d_concept = 4, .n_heads = 3, .n_kv_heads = 1, .head_dim = head_dim},
                  {{3, 2, 2}}, mean);
        s.forward();
        CHECK(largest_difference(s.y, s.reference(false)) < 1e-13);
    }
}

TEST_CASE("what does not fit is named") {
    auto said = [](auto change) {
        concept_attention_config c = plain;
        change(c);
        arena memory(std::size_t{1} << 16);
        try {
            (void)cross(c, cross::params_type::bind(memory, plain));
        } catch (const config_error& e) {
            return std::string(e.what());
        }
        return std::string();
    };
    CHECK(said([](auto& c) { c.d_model = 0; }) ==
          "concept_cross_attention: cross.d_model must be positive, is 0");
    CHECK(said([](auto& c) { c.d_concept = -2; }) ==
          "concept_cross_attention: cross.d_concept must be positive, is -2");
    CHECK(said([](auto& c) { c.n_kv_heads = 4; }) ==
          "concept_cross_attention: cross.n_heads (6) must be a multiple of cross.n_kv_heads (4)");
    CHECK(said([](auto& c) { c.d_concept = 8; }) == "concept_cross_attention: w_k must be 6 x 8, is 6 x 9");
    CHECK(said([](auto& c) { c.d_model = 4; }) == "concept_cross_attention: w_q must be 18 x 4, is 18 x 5");
    CHECK(said([](auto&) {}) == "");
}

TEST_CASE("a state of another shape is refused") {
    subject s(plain, {{2, 1, 3}}, mean);
    auto other = plain;
    other.head_dim = 4;
    sluice::owned_params<cross::params_type> weights(other);
    arena memory(std::size_t{1} << 16);
    auto state = cross(other, weights.view).bind_state(memory, {.max_tokens = 4});
    CHECK_THROWS_AS(
        s.layer.extend(s.b, s.cut, nullptr, false, s.h, s.z, s.kept, s.y.view(), state, s.workspace, {}),
        config_error);
}
