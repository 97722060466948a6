#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/random_data.hpp"

#include <sluice/kernels/routing.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

using namespace sluice::test;
using namespace sluice;

TEMPLATE_TEST_CASE("routing kernels: the best and the two best of a group", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    constexpr T nan = std::numeric_limits<T>::quiet_NaN(), inf = std::numeric_limits<T>::infinity();
    for (idx n = 1; n <= 70; ++n)
        for (int kind = 0; kind < 4; ++kind) {
            page_end<T> x(n);
            fill_uniform(x.row(), static_cast<std::uint64_t>(n));
            if (kind == 1) // ties
                for (idx i = 0; i < n; ++i) x[i] = static_cast<T>(i % 3);
            if (kind == 2)
                for (idx i = 0; i < n; i += 2) x[i] = nan;
            std::vector<T> sorted;
            for (idx i = 0; i < n; ++i)
                if (x[i] == x[i]) sorted.push_back(x[i]);
            std::sort(sorted.rbegin(), sorted.rend());
            if (kind == 3) { // one number among -inf
                for (idx i = 0; i < n; ++i) x[i] = i == n / 2 ? T(0.5) : -inf;
                sorted = {T(0.5)};
            }
            CAPTURE(n, kind);
            const T best = kernels::rank_group<Arch>(static_cast<const T*>(x.data()), n, group_rank::best);
            CHECK(best == (sorted.empty() ? -inf : sorted[0]));
            if (n < 2 || sorted.empty()) continue;
            const T two = kernels::rank_group<Arch>(static_cast<const T*>(x.data()), n, group_rank::best_two);
            if (sorted.size() > 1)
                CHECK(two == sorted[0] + sorted[1]);
            else
                CHECK((two > -inf && two < -T(1e30))); // above a group without a number
        }
}

TEMPLATE_TEST_CASE("routing kernels: nothing is read or written outside the row and the scratch", "",
                   float_native, float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    for (idx n : {1, 2, 3, 8, 15, 16, 17, 60, 64, 130})
        for (auto score :
             {router_score::none, router_score::softmax, router_score::sigmoid, router_score::sqrt_softplus})
            for (idx k : {idx{1}, idx{2}, n})
                for (bool odd : {false, true}) {
                    if (k > n) continue;
                    const idx groups = n % 4 == 0 && k <= n / 2 ? 4 : 1;
                    page_end<T> logits(2 * n), bias(n), weights(2 * k), dweights(2 * k), dlogits(2 * n),
                        scratch(kernels::route_scratch(n));
                    page_end<std::int32_t> indices(2 * k), order(2 * n);
                    fill_uniform(logits.row(), 1, 0.1, 2);
                    fill_uniform(bias.row(), 2);
                    fill_uniform(dweights.row(), 3);
                    fill(scratch.row(), std::numeric_limits<T>::quiet_NaN());
                    if (odd) logits[n] = std::numeric_limits<T>::quiet_NaN();
                    kernels::router_rows seen;
                    kernels::route_args<T> g{};
                    g.logits = logits.data();
                    g.logits_row = g.dlogits_row = g.n_experts = n;
                    g.bias = bias.data();
                    g.indices = indices.data();
                    g.indices_row = g.weights_row = g.top_k = k;
                    g.weights = weights.data();
                    g.dlogits = dlogits.data();
                    g.rows = 2;
                    g.score = score;
                    g.rule = {.norm = weight_norm::sum, .eps = 1e-6};
                    g.rank = group_rank::best;
                    g.n_groups = groups;
                    g.kept_groups = groups == 1 ? 1 : 2;
                    g.choose = true;
                    g.scratch = scratch.data();
                    g.order = order.data();
                    g.seen = &seen;
                    kernels::route_rows{}(Arch{}, g);
                    g.weights = dweights.data();
                    kernels::route_rows_dx{}(Arch{}, g);
                    CAPTURE(n, k, odd, static_cast<int>(score));
                    CHECK(seen.with_nan == (odd ? 1 : 0));
                    for (idx i = 0; i < 2 * k; ++i) {
                        CHECK((indices[i] >= 0 && indices[i] < n));
                        CHECK(std::isfinite(weights[i]));
                    }
                    for (idx i = 0; i < 2 * n; ++i) CHECK(std::isfinite(dlogits[i]));
                }
}
