#include "support/allocations.hpp"
#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/executors.hpp"
#include "support/random_data.hpp"

#include <sluice/core/tensor.hpp>
#include <sluice/train/balance.hpp>

#if __has_include(<nlohmann/json.hpp>)
#    include <nlohmann/json.hpp>

#    include <fstream>
#endif

#include <cmath>
#include <limits>
#include <string>
#include <vector>

using namespace sluice::test;
using namespace sluice;

namespace {

using native = simd::native;
constexpr balance_form forms[] = {balance_form::all_choices, balance_form::first_choice,
                                  balance_form::sum_over_choices};
constexpr router_score scores[] = {router_score::softmax, router_score::sigmoid, router_score::sqrt_softplus};

template <class T>
struct balanced {
    balanced(idx n, idx n_experts, idx k, double spread = 1.5)
        : logits(n, n_experts), dlogits(n, n_experts), indices(n, k), workspace(std::size_t{1} << 20) {
        fill_normal(logits.view(), spread, random_source(11));
        for (idx t = 0; t < n; ++t)
            for (idx j = 0; j < k; ++j) // not the best ones, and some dropped
                indices(t, j) = static_cast<std::int32_t>((t * t + 3 * j) % n_experts);
        if (n > 2) indices(2, k - 1) = ~indices(2, k - 1);
    }
    template <class Arch = native>
    double loss(const balance_config& c, T weight = 0, executor_ref ex = {}) {
        return balance_loss<Arch, T>(c, logits, indices.view(), offsets, weight,
                                     weight != 0 ? dlogits.view() : tensor_view<T>(), workspace, ex);
    }
    padded<T> logits, dlogits;
    sluice::tensor<std::int32_t> indices;
    std::vector<idx> offsets;
    arena workspace;
};

// As the definitions say.
template <class T>
double plain_loss(balanced<T>& b, const balance_config& c) {
    const idx n = b.logits.view().rows(), n_experts = b.logits.view().cols(), k = b.indices.cols();
    const std::vector<idx> offsets = b.offsets.empty() ? std::vector<idx>{0, n} : b.offsets;
    double mean = 0, sequences = 0;
    for (std::size_t s = 1; s < offsets.size(); ++s) {
        const idx m = offsets[s] - offsets[s - 1];
        if (m == 0) continue;
        ++sequences;
        std::vector<double> f(static_cast<std::size_t>(n_experts)), p = f;
        for (idx t = offsets[s - 1]; t < offsets[s]; ++t) {
            std::vector<double> share;
            double sum = 0;
            for (idx e = 0; e < n_experts; ++e) {
                const auto z = static_cast<double>(b.logits(t, e));
                share.push_back(c.score == router_score::softmax   ? std::exp(z)
                                : c.score == router_score::sigmoid ? 1 / (1 + std::exp(-z))
                                                                   : std::sqrt(std::log1p(std::exp(z))));
                sum += share.back();
            }
            for (idx e = 0; e < n_experts; ++e)
                p[static_cast<std::size_t>(e)] +=
                    share[static_cast<std::size_t>(e)] / sum / static_cast<double>(m);
            for (idx j = 0; j < (c.form == balance_form::first_choice ? 1 : k); ++j) {
                idx e = b.indices(t, j) < 0 ? ~b.indices(t, j) : b.indices(t, j);
                if (c.counted == counted_choices::unbiased) { // the j-th largest
                    std::vector<idx> order(static_cast<std::size_t>(n_experts));
                    std::iota(order.begin(), order.end(), 0);
                    std::sort(order.begin(), order.end(),
                              [&](idx u, idx v) { return b.logits(t, u) > b.logits(t, v); });
                    e = order[static_cast<std::size_t>(j)];
                }
                f[static_cast<std::size_t>(e)] +=
                    1 / static_cast<double>(c.form == balance_form::all_choices ? m * k : m);
            }
        }
        for (std::size_t e = 0; e < f.size(); ++e) mean += static_cast<double>(n_experts) * f[e] * p[e];
    }
    return sequences == 0 ? 0 : mean / sequences;
}

std::vector<balance_config> all_configs() {
    std::vector<balance_config> all;
    for (auto form : forms)
        for (auto score : scores)
            for (auto counted : {counted_choices::made, counted_choices::unbiased})
                all.push_back({.form = form, .counted = counted, .score = score});
    return all;
}

std::string text_of(const balance_config& c) {
    return "form " + std::to_string(static_cast<int>(c.form)) + ", counted " +
           std::to_string(static_cast<int>(c.counted)) + ", score " +
           std::to_string(static_cast<int>(c.score));
}

} // namespace

TEMPLATE_TEST_CASE("balance_loss: as defined, for every form, score and way to count", "", float_native,
                   float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    for (auto [n, n_experts, k] :
         {std::array<idx, 3>{1, 1, 1}, {5, 2, 1}, {17, 7, 3}, {40, 60, 4}, {9, 257, 8}})
        for (const auto& c : all_configs())
            for (bool sequences : {false, true}) {
                balanced<T> b(n, n_experts, k);
                if (sequences) b.offsets = {0, 0, n / 3, n / 3, n - 1, n, n};
                const double want = plain_loss(b, c);
                INFO(text_of(c) << ", experts " << n_experts);
                CHECK(compare_number(b.template loss<typename TestType::arch>(c), want,
                                     40 * unit_roundoff<T> * want) == "");
                CHECK(b.workspace.used() == 0);
            }
}

TEST_CASE("balance_loss: gradients of every form, added to what is there") {
    for (const auto& c : all_configs())
        for (bool sequences : {false, true}) {
            balanced<double> b(11, 5, 2);
            if (sequences) b.offsets = {0, 4, 4, 11};
            fill(b.dlogits.view(), 0.5);
            b.loss(c, 3);
            padded<double> gradient(11, 5);
            for (idx t = 0; t < 11; ++t)
                for (idx e = 0; e < 5; ++e) gradient(t, e) = b.dlogits(t, e) - 0.5;
            INFO(text_of(c));
            CHECK(wrong_gradient([&] { return 3 * b.loss(c); }, b.logits.view(), gradient.view()) == "");
            CHECK(b.dlogits.touched() == "");
        }
}

TEST_CASE("balance_loss: 1, or top_k, when even") {
    for (auto form : forms) {
        balanced<double> b(24, 8, 2);
        for (idx t = 0; t < 24; ++t)
            for (idx j = 0; j < 2; ++j) b.indices(t, j) = static_cast<std::int32_t>((t + j) % 8);
        fill(b.logits.view(), 0.3);
        const double want = form == balance_form::sum_over_choices ? 2 : 1;
        CHECK(compare_number(b.loss({.form = form}), want, 1e-14) == "");
        // made for one another: all go where all want to go
        for (idx t = 0; t < 24; ++t) {
            b.logits(t, 5) = 50;
            for (idx j = 0; j < 2; ++j) b.indices(t, j) = j == 0 ? 5 : 6;
        }
        const double worst = form == balance_form::all_choices ? 4 : 8;
        CHECK(compare_number(b.loss({.form = form}), worst, 1e-12) == "");
    }
}

TEST_CASE("router_z_loss: of equal logits, and its gradient") {
    padded<double> logits(7, 12), dlogits(7, 12);
    arena workspace(std::size_t{1} << 14);
    auto loss = [&](double weight = 0) {
        return router_z_loss<native, double>(
            logits, weight, weight != 0 ? dlogits.view() : tensor_view<double>(), workspace, {});
    };
    CHECK(compare_number(loss(), std::log(12) * std::log(12), 1e-14) == "");
    fill_normal(logits.view(), 2, random_source(3));
    loss(0.5);
    CHECK(wrong_gradient([&] { return 0.5 * loss(); }, logits.view(), dlogits.view()) == "");
    CHECK(dlogits.touched() == "");
}

TEST_CASE("importance_loss: even is zero, one expert for all is n - 1, and its gradient") {
    for (auto over : {variance::population, variance::sample}) {
        padded<double> logits(7, 6), dlogits(7, 6);
        arena workspace(std::size_t{1} << 14);
        auto loss = [&](double weight = 0) {
            return importance_loss<native, double>(
                logits, over, weight, weight != 0 ? dlogits.view() : tensor_view<double>(), workspace, {});
        };
        CHECK(compare_number(loss(), 0, 1e-28) == "");
        for (idx t = 0; t < 7; ++t) logits(t, 3) = 60;
        CHECK(compare_number(loss(), over == variance::population ? 5 : 6, 1e-12) == "");
        fill_normal(logits.view(), 1, random_source(3));
        loss(2);
        CHECK(wrong_gradient([&] { return 2 * loss(); }, logits.view(), dlogits.view()) == "");
        padded<double> one(3, 1);
        if (over == variance::sample)
            CHECK_THROWS_WITH((importance_loss<native, double>(one, over, 1, {}, workspace, {})),
                              "importance_loss: one expert has no sample variance");
        else
            CHECK(importance_loss<native, double>(one, over, 1, {}, workspace, {}) == 0);
    }
}

TEST_CASE("load_loss: as defined, and all its gradients") {
    for (auto over : {variance::population, variance::sample})
        for (idx k : {1, 3}) {
            const idx n = 6, n_experts = 5;
            padded<double> logits(n, n_experts), noise(n, n_experts), noisy(n, n_experts),
                sigma = uniform_matrix<double>(n, n_experts, 4, 0.5, 1.5), dlogits(n, n_experts),
                dnoisy(n, n_experts), dsigma(n, n_experts);
            fill_normal(logits.view(), 1, random_source(3));
            fill_normal(noise.view(), 1, random_source(4));
            arena workspace(std::size_t{1} << 14);
            auto plain = [&] {
                std::vector<double> load(static_cast<std::size_t>(n_experts));
                double mean = 0, square = 0;
                for (idx t = 0; t < n; ++t)
                    for (idx e = 0; e < n_experts; ++e) {
                        std::vector<double> others;
                        for (idx o = 0; o < n_experts; ++o)
                            if (o != e) others.push_back(noisy(t, o));
                        std::sort(others.rbegin(), others.rend());
                        const double u =
                            (logits(t, e) - others[static_cast<std::size_t>(k - 1)]) / sigma(t, e);
                        load[static_cast<std::size_t>(e)] += std::erfc(-u / std::sqrt(2)) / 2;
                    }
                for (double l : load) mean += l / 5;
                for (double l : load) square += (l - mean) * (l - mean) / 5;
                return (over == variance::sample ? 1.25 : 1) * square / (mean * mean);
            };
            auto with_noise = [&] {
                for (idx t = 0; t < n; ++t)
                    for (idx e = 0; e < n_experts; ++e) noisy(t, e) = logits(t, e) + noise(t, e);
            };
            with_noise();
            const double loss = load_loss<native, double>(k, logits, noisy, sigma, over, 2, dlogits.view(),
                                                          dnoisy.view(), dsigma.view(), workspace, {});
            CHECK(compare_number(loss, plain(), 1e-13) == "");
            auto twice = [&] { return 2 * plain(); };
            CHECK(wrong_gradient(twice, logits.view(), dlogits.view()) == "");
            CHECK(wrong_gradient(twice, noisy.view(), dnoisy.view()) == "");
            CHECK(wrong_gradient(twice, sigma.view(), dsigma.view()) == "");
            // fixed noise: one gradient
            padded<double> both(n, n_experts);
            load_loss<native, double>(k, logits, noisy, sigma, over, 2, both.view(), both.view(), {},
                                      workspace, {});
            CHECK(wrong_gradient(
                      [&] {
                          with_noise();
                          return twice();
                      },
                      logits.view(), both.view()) == "");
            with_noise();
            CHECK(load_loss<native, double>(k, logits, noisy, sigma, over, 0, {}, {}, {}, workspace, {}) ==
                  loss);
        }
}

#if __has_include(<nlohmann/json.hpp>)

TEMPLATE_TEST_CASE("balance: golden values", "", float_native, float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    const auto golden = nlohmann::json::parse(std::ifstream(SLUICE_TEST_DIR "/data/moe.json"));
    balanced<T> b(6, 8, 2);
    auto load = [&](const char* router) {
        for (std::size_t t = 0; t < 6; ++t) {
            for (std::size_t e = 0; e < 8; ++e)
                b.logits(static_cast<idx>(t), static_cast<idx>(e)) = golden["logits"][t][e].get<T>();
            for (std::size_t j = 0; j < 2; ++j)
                b.indices(static_cast<idx>(t), static_cast<idx>(j)) =
                    golden["router"][router]["indices"][t][j].get<std::int32_t>();
        }
    };
    auto wrong = [&](double value, const char* name) {
        const double want = golden["losses"][name];
        return compare_number(value, want, 40 * unit_roundoff<T> * want);
    };
    load("softmax_topk_norm");
    CHECK(wrong(b.template loss<Arch>({}), "balance_normalised") == "");
    CHECK(wrong(b.template loss<Arch>({.form = balance_form::sum_over_choices}), "balance_hf_sum_over_k") ==
          "");
    CHECK(wrong(b.template loss<Arch>({.form = balance_form::first_choice}), "switch_gshard_top1") == "");
    CHECK(wrong(router_z_loss<Arch, T>(b.logits, 0, {}, b.workspace, {}), "z_loss") == "");
    for (auto over : {variance::population, variance::sample})
        CHECK(wrong(importance_loss<Arch, T>(b.logits, over, 0, {}, b.workspace, {}),
                    over == variance::population ? "importance_cv2_population" : "importance_cv2_sample") ==
              "");
    load("sigmoid_bias_group_top2sum");
    b.offsets = {0, 6};
    CHECK(wrong(b.template loss<Arch>({.score = router_score::sigmoid}), "seq_balance_dsv3") == "");

    const auto& update = golden["bias_update"];
    idx counts[8] = {};
    count_choices(b.indices.view(), counts);
    padded<T> bias(1, 8);
    for (std::size_t e = 0; e < 8; ++e) {
        CHECK(counts[e] == update["counts"][e].get<idx>());
        bias(0, static_cast<idx>(e)) = golden["bias"][e].get<T>();
    }
    update_selection_bias<T>(counts, update["gamma"], bias.view());
    for (std::size_t e = 0; e < 8; ++e)
        CHECK(compare_number(bias(0, static_cast<idx>(e)), update["new_bias"][e], 2 * unit_roundoff<T>) ==
              "");
}

#endif

TEST_CASE("update_selection_bias: exact at the mean, and evens out skewed experts") {
    padded<float> bias(1, 4);
    const idx counts[] = {5, 3, 4, 4};
    update_selection_bias<float>(counts, 0.25, bias.view());
    CHECK((bias(0, 0) == -0.25F && bias(0, 1) == 0.25F && bias(0, 2) == 0 && bias(0, 3) == 0));
    CHECK_THROWS_WITH(update_selection_bias<float>(counts, 0.25, bias.view().col_block(0, 3)),
                      "update_selection_bias: bias must be 1 x 4, is 1 x 3");

    // 8 of 64 experts by sigmoid of normal logits with a fixed skew of deviation 1: the largest load falls
    // from about 6 times the mean to below 1.2 within 60 steps or so; chance alone leaves 1.1
    constexpr idx n = 4096, n_experts = 64, k = 8;
    const router_config c{.n_experts = n_experts,
                          .top_k = k,
                          .score = router_score::sigmoid,
                          .selection_bias = true,
                          .weights = {.norm = weight_norm::sum, .eps = 1e-20}};
    sluice::tensor<float> logits(n, n_experts), weights(n, k), skew(1, n_experts), b(1, n_experts);
    sluice::tensor<std::int32_t> indices(n, k);
    fill_normal(skew.view(), 1, random_source(1));
    arena workspace(std::size_t{1} << 20);
    double first = 0, least = 9;
    for (std::uint64_t step = 0; step < 80; ++step) {
        fill_normal(logits.view(), 1, random_source(100 + step));
        for (idx t = 0; t < n; ++t)
            for (idx e = 0; e < n_experts; ++e) logits(t, e) += skew(0, e);
        route<native, float>(c, logits.view(), {.bias = b.view()}, indices.view(), weights.view(), workspace,
                             {});
        idx load[n_experts] = {};
        count_choices(indices.view(), load);
        const double most = static_cast<double>(*std::max_element(load, load + n_experts));
        const double overload = most / (n * k / n_experts) - 1;
        if (step == 0) first = overload;
        least = std::min(least, overload);
        update_selection_bias<float>(load, 5e-3, b.view());
    }
    INFO("first " << first << ", least " << least);
    CHECK((first > 3 && first < 7));
    CHECK(least < 0.2);
}

TEMPLATE_TEST_CASE("balance: the same bits for every executor", "", float_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    struct results {
        double losses[4];
        padded<T> dlogits;
    };
    auto run = [](executor_ref ex) {
        balanced<T> b(37, 70, 3);
        b.offsets = {0, 10, 37};
        const padded<T> sigma = uniform_matrix<T>(37, 70, 4, 0.5, 1.5), noisy = b.logits;
        const double losses[] = {
            b.template loss<Arch>({.counted = counted_choices::unbiased, .score = router_score::sigmoid},
                                  T(2), ex),
            router_z_loss<Arch, T>(b.logits, T(0.5), b.dlogits.view(), b.workspace, ex),
            importance_loss<Arch, T>(b.logits, variance::sample, T(0.5), b.dlogits.view(), b.workspace, ex),
            load_loss<Arch, T>(3, b.logits, noisy.view(), sigma.view(), variance::sample, T(0.5),
                               b.dlogits.view(), b.dlogits.view(), {}, b.workspace, ex)};
        results r{{}, b.dlogits};
        std::copy_n(losses, 4, r.losses);
        return r;
    };
    const results first = run({});
    for_each_executor([&](executor_ref ex, const std::string& name) {
        const results r = run(ex);
        INFO(name);
        CHECK(std::equal(r.losses, r.losses + 4, first.losses));
        CHECK(different_bits(r.dlogits.view(), first.dlogits.view()) == "");
    });
}

TEST_CASE("balance: no tokens, dry runs and exact memory; nothing is allocated") {
    REQUIRE(allocations_are_noticed());
    auto all = [](auto& logits, auto indices, auto dlogits, arena& workspace, executor_ref ex) {
        using T = float;
        double sum = 0;
        for (const auto& c : {balance_config{}, balance_config{.counted = counted_choices::unbiased}})
            sum += balance_loss<native, T>(c, logits, indices, {}, 1, dlogits, workspace, ex);
        sum += router_z_loss<native, T>(logits, 1, dlogits, workspace, ex);
        sum += importance_loss<native, T>(logits, variance::population, 1, dlogits, workspace, ex);
        return sum + load_loss<native, T>(2, logits, logits, dlogits, variance::population, 1, dlogits,
                                          dlogits, {}, workspace, ex);
    };
    balanced<float> none(0, 8, 2), some(20, 8, 2);
    CHECK(all(none.logits, none.indices.view(), none.dlogits.view(), none.workspace, {}) == 0);
    sluice::thread_pool pool(2);
    start_all(pool);
    for (executor_ref ex : {executor_ref(), executor_ref(pool)}) {
        arena dry;
        dry_run counting{ex.concurrency()};
        const tensor_view<float> z(nullptr, 20, 8);
        CHECK(all(z, tensor_view<const std::int32_t>(nullptr, 20, 2), z, dry, counting) == 0);
        arena exact(dry.bytes()), small(0);
        fill(some.dlogits.view(), 1.0F);
        CHECK(allocations_of([&] {
                  all(some.logits, tensor_view<const std::int32_t>(some.indices.view()), some.dlogits.view(),
                      exact, ex);
              }) == 0);
        CHECK(exact.used() == 0);
        CHECK_THROWS_AS(all(some.logits, tensor_view<const std::int32_t>(some.indices.view()),
                            some.dlogits.view(), small, ex),
                        capacity_error);
    }
}

TEST_CASE("balance: arguments that do not fit are named") {
    balanced<float> b(6, 8, 2);
    padded<float> wrong(6, 9);
    auto loss = [&](const balance_config& c, const tensor_view<float>& dlogits = {}) {
        balance_loss<native, float>(c, b.logits, b.indices.view(), b.offsets, 1, dlogits, b.workspace, {});
    };
    CHECK_THROWS_WITH(loss({.score = router_score::none}), "balance_loss: logits themselves are no shares");
    CHECK_THROWS_WITH(loss({}, wrong.view()), "balance_loss: dlogits must be 6 x 8, is 6 x 9");
    for (const std::vector<idx>& offsets : {std::vector<idx>{0, 5}, {1, 6}, {0, 4, 3, 6}}) {
        b.offsets = offsets;
        CHECK_THROWS_WITH(loss({}), "balance_loss: offsets must rise from 0 to the number of tokens");
    }
    b.offsets = {};
    b.indices(3, 1) = 8;
    CHECK_THROWS_WITH(loss({}), "count_choices: expert 8 of token 3 is outside the 8");
    CHECK_THROWS_AS(loss({}), input_error);
    CHECK_THROWS_WITH((load_loss<native, float>(8, b.logits, b.logits, b.logits, variance::sample, 1, {}, {},
                                                {}, b.workspace, {})),
                      "load_loss: top_k must be less than all experts");
    CHECK_THROWS_WITH((load_loss<native, float>(2, b.logits, wrong, b.logits, variance::sample, 1, {}, {}, {},
                                                b.workspace, {})),
                      "load_loss: noisy must be 6 x 8, is 6 x 9");
    CHECK_THROWS_WITH((load_loss<native, float>(2, b.logits, b.logits, wrong, variance::sample, 1, {}, {}, {},
                                                b.workspace, {})),
                      "load_loss: sigma must be 6 x 8, is 6 x 9");
    CHECK_THROWS_WITH((router_z_loss<native, float>(b.logits, 1, wrong.view(), b.workspace, {})),
                      "router_z_loss: dlogits must be 6 x 8, is 6 x 9");
}
