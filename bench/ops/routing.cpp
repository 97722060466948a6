// Which experts a token goes to, from logits that are there: the choice, its weights, and back.
#include <sluice/ops/routing.hpp>

#include "../support/contest.hpp"

#include <algorithm>
#include <numeric>
#include <vector>

namespace {

using namespace sluice;
using namespace sluice::bench;

constexpr idx n_tokens = 4096;

struct data {
    explicit data(const router_config& config, idx workers)
        : c(config),
          logits(n_tokens, c.n_experts),
          bias(1, c.selection_bias ? c.n_experts : 0),
          weights(n_tokens, c.top_k),
          weights_peer(n_tokens, c.top_k),
          indices(n_tokens, c.top_k),
          workspace(workspace_for(workers, [&](arena& memory, executor_ref ex) { run(memory, ex); })) {
        fill_normal(logits.view(), 1, random_source(1));
        fill_normal(bias.view(), 0.1, random_source(2));
    }
    void run(arena& memory, executor_ref ex) {
        route<simd::native, float>(c, logits, {.bias = c.selection_bias ? bias.view() : in<float>()},
                                   indices.view(), weights.view(), memory, ex);
    }
    // The best of all scores by std::partial_sort; what is not a group's is left out before.
    void run_peer(executor_ref ex) {
        ex(n_tokens, [&](idx begin, idx end, idx) {
            std::vector<float> score(static_cast<std::size_t>(c.n_experts)), of_choice(score.size());
            std::vector<idx> order(score.size());
            for (idx t = begin; t < end; ++t) choose(t, score, of_choice, order);
        });
    }
    void choose(idx t, std::vector<float>& score, std::vector<float>& of_choice, std::vector<idx>& order) {
        const std::size_t n = score.size();
        const bool sigmoid = c.score == router_score::sigmoid;
        const float most = *std::max_element(logits.row(t), logits.row(t) + c.n_experts);
        for (std::size_t e = 0; e < n; ++e) {
            const float z = logits(t, static_cast<idx>(e));
            score[e] = sigmoid ? 1 / (1 + std::exp(-z)) : std::exp(z - most);
            of_choice[e] = score[e] + (c.selection_bias ? bias(0, static_cast<idx>(e)) : 0.0F);
        }
        if (c.groups.n_groups > 1) {
            const std::size_t size = n / static_cast<std::size_t>(c.groups.n_groups);
            std::vector<std::pair<float, std::size_t>> groups;
            for (std::size_t g = 0; g < n; g += size) {
                std::vector<float> best(of_choice.begin() + static_cast<idx>(g),
                                        of_choice.begin() + static_cast<idx>(g + size));
                std::partial_sort(best.begin(), best.begin() + 2, best.end(), std::greater<>());
                groups.emplace_back(-best[0] - best[1], g);
            }
            std::sort(groups.begin(), groups.end());
            for (auto g = static_cast<std::size_t>(c.groups.kept); g < groups.size(); ++g)
                std::fill_n(of_choice.begin() + static_cast<idx>(groups[g].second), size,
                            -std::numeric_limits<float>::infinity());
        }
        std::iota(order.begin(), order.end(), idx{0});
        std::partial_sort(order.begin(), order.begin() + c.top_k, order.end(), [&](idx a, idx b) {
            return of_choice[static_cast<std::size_t>(a)] > of_choice[static_cast<std::size_t>(b)];
        });
        float sum = 0;
        for (idx j = 0; j < c.top_k; ++j)
            sum += weights_peer(t, j) = score[static_cast<std::size_t>(order[static_cast<std::size_t>(j)])];
        for (idx j = 0; j < c.top_k; ++j) weights_peer(t, j) *= static_cast<float>(c.weights.scale) / sum;
    }

    router_config c;
    tensor<float> logits, bias, weights, weights_peer;
    tensor<std::int32_t> indices;
    arena workspace;
};

void router(const std::string& name, const router_config& config) {
    row("moe_router/" + name, [config](contest& c) {
        auto& d = c.hold<data>(config, c.threads());
        const executor_ref ex = c.executor();
        c.rows(static_cast<double>(n_tokens));
        c.ours([&d, ex] { d.run(d.workspace, ex); }, d.weights);
        c.against(
            "partial_sort", [&d, ex] { d.run_peer(ex); }, d.weights_peer);
    });
}

router_config softmax_of(idx k, idx n) {
    return {.n_experts = n, .top_k = k, .weights = {.norm = weight_norm::sum}};
}

const declare rows([] {
    router("2of8", softmax_of(2, 8));
    router("8of64", softmax_of(8, 64));
    router("8of128", softmax_of(8, 128));
    router("8of256", {.n_experts = 256, // DeepSeek-V3's
                      .top_k = 8,
                      .score = router_score::sigmoid,
                      .selection_bias = true,
                      .groups = {8, 4, group_rank::best_two},
                      .weights = {.norm = weight_norm::sum, .eps = 1e-20, .scale = 2.5}});
});

} // namespace
