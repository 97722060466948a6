#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/random_data.hpp"

#include <sluice/ops/attention.hpp>

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

using namespace sluice::test;
using sluice::attention_source;
using sluice::idx;
using sluice::key_tile;
using sluice::tensor_view;

TEST_CASE("attention kernels: keys of a ring stand modulo its rows") {
    attention_source<float> source;
    CHECK((source.row(0) == 0 && source.row(1'000'000) == 1'000'000));
    source.ring = 2 * key_tile;
    CHECK((source.row(0) == 0 && source.row(127) == 127 && source.row(128) == 0 &&
           source.row(1000) == 1000 % 128));
}

namespace {

// Causal, and all that a policy may add: a bias by key, one for the last key, and holes among the last ten
// keys.
template <bool Bias, bool Tail>
struct decorated : sluice::causal_attention {
    double bias(idx, idx key, idx) const requires Bias { return 0.3 * static_cast<double>(key % 5); }
    double last_bias(idx, idx row, idx) const requires Bias {
        return -0.7 + 0.1 * static_cast<double>(row % 3);
    }
    sluice::key_tail tail(idx, idx row, idx) const requires Tail {
        const idx first = std::max<idx>(0, row - 9);
        const auto holes = static_cast<std::uint64_t>(row * 0x9E37 + 5);
        return {first, ~holes | std::uint64_t{1} << (row - first)}; // itself always
    }
};

template <class Policy>
double score_of(const Policy& p, idx row, idx key, double score) {
    if constexpr (sluice::kernels::has_bias<Policy>) score += p.bias(0, key, 0);
    if constexpr (sluice::kernels::has_last_bias<Policy>)
        if (key == row) score += p.last_bias(0, row, 0);
    if constexpr (sluice::kernels::has_tail<Policy>) {
        const auto t = p.tail(0, row, 0);
        if (key >= t.first && (t.seen >> (key - t.first) & 1U) == 0)
            return -std::numeric_limits<double>::infinity();
    }
    return score;
}

// One head of one sequence, by the formula.
template <class Policy>
void plain_attention(const Policy& p, tensor_view<const double> q, tensor_view<const double> k,
                     tensor_view<const double> v, tensor_view<double> y) {
    const idx d = q.cols();
    for (idx i = 0; i < q.rows(); ++i) {
        double total = 0;
        for (idx e = 0; e < d; ++e) y(i, e) = 0;
        for (idx j = 0; j <= i; ++j) {
            double s = 0;
            for (idx e = 0; e < d; ++e) s += q(i, e) * k(j, e);
            const double w = std::exp(score_of(p, i, j, s / std::sqrt(static_cast<double>(d))));
            total += w;
            for (idx e = 0; e < d; ++e) y(i, e) += w * v(j, e);
        }
        for (idx e = 0; e < d; ++e) y(i, e) /= total;
    }
}

template <class Policy>
void check_decorated(const Policy& p) {
    constexpr idx n = 150, d = 9;
    const sluice::attention_shape shape{1, 1, d};
    padded<double> q = uniform_matrix<double>(n, d, 1), k = uniform_matrix<double>(n, d, 2),
                   v = uniform_matrix<double>(n, d, 3), dy = uniform_matrix<double>(n, d, 4), y(n, d),
                   lse(n, 1), want(n, d), dq(n, d), dk(n, d), dv(n, d);
    const sluice::batch b = sluice::batch::one(n);
    sluice::arena workspace(1 << 22);
    sluice::attend<sluice::simd::native, double>(b, shape, q, sluice::packed_keys<double>{&b, k, v}, p,
                                                 y.view(), lse.view(), workspace, {});
    plain_attention<Policy>(p, q, k, v, want.view());
    double apart = 0;
    for (idx i = 0; i < n; ++i)
        for (idx e = 0; e < d; ++e) apart = std::max(apart, std::abs(y(i, e) - want(i, e)));
    CHECK(apart < 1e-13);

    sluice::attend_backward<sluice::simd::native, double>(b, shape, q, k, v, y, lse, dy, p, dq.view(),
                                                          dk.view(), dv.view(), workspace, {});
    auto loss = [&] {
        plain_attention<Policy>(p, q, k, v, want.view());
        double sum = 0;
        for (idx i = 0; i < n; ++i)
            for (idx e = 0; e < d; ++e) sum += want(i, e) * dy(i, e);
        return sum;
    };
    for (idx trial = 0; trial < 12; ++trial) {
        const idx i = trial * 37 % n, e = trial % d;
        for (auto [x, dx] : {std::pair{&q, &dq}, std::pair{&k, &dk}, std::pair{&v, &dv}}) {
            const double before = (*x)(i, e), h = 1e-4;
            (*x)(i, e) = before + h;
            const double above = loss();
            (*x)(i, e) = before - h;
            const double below = loss();
            (*x)(i, e) = before;
            CHECK(std::abs((above - below) / (2 * h) - (*dx)(i, e)) < 1e-7);
        }
    }
}

} // namespace

TEST_CASE("attention: a policy's biases and tail mask, forward and backward") {
    check_decorated(decorated<true, false>{});
    check_decorated(decorated<false, true>{});
    check_decorated(decorated<true, true>{});
}

namespace {

struct counted : sluice::causal_attention {
    double bias(idx, idx key, idx) const { return std::log(static_cast<double>(1 + key % 3)); }
};
struct repeated {
    static constexpr idx n_sources = 1;
    std::vector<idx> ends; // keys up to and with key i, repeats counted
    sluice::key_range range(idx, idx row, idx) const { return {0, ends[static_cast<std::size_t>(row)]}; }
};

} // namespace

TEST_CASE("attention: a bias of log n on a key is that key n times") {
    constexpr idx n = 70, d = 16;
    padded<double> q = uniform_matrix<double>(n, d, 1), k = uniform_matrix<double>(n, d, 2),
                   v = uniform_matrix<double>(n, d, 3), y(n, d), want(n, d);
    std::vector<double> many_k, many_v;
    repeated policy;
    for (idx j = 0; j < n; ++j) {
        for (idx copy = 0; copy <= j % 3; ++copy) {
            many_k.insert(many_k.end(), k.view().row(j), k.view().row(j) + d);
            many_v.insert(many_v.end(), v.view().row(j), v.view().row(j) + d);
        }
        policy.ends.push_back(static_cast<idx>(many_k.size()) / d);
    }
    const sluice::batch b = sluice::batch::one(n);
    auto source = [&](idx, idx) {
        return sluice::attention_source<double>{
            .k = many_k.data(), .v = many_v.data(), .k_row = d, .v_row = d};
    };
    sluice::arena workspace(1 << 22);
    const sluice::attention_shape shape{1, 1, d};
    sluice::attend<sluice::simd::native, double>(b, shape, q, sluice::packed_keys<double>{&b, k, v},
                                                 counted{}, y.view(), {}, workspace, {});
    sluice::attend<sluice::simd::native, double>(b, shape, q, source, policy, want.view(), {}, workspace, {});
    for (idx i = 0; i < n; ++i)
        for (idx e = 0; e < d; ++e) CHECK(std::abs(y(i, e) - want(i, e)) < 1e-14);
}

TEST_CASE("attention: keys beyond the 64 of a tail are seen as the range says") {
    struct behind : sluice::causal_attention {
        sluice::key_tail tail(idx, idx, idx) const { return {10, 0}; } // hides keys 10 to 73
    };
    for (idx tile : {0, 64}) {
        std::vector<double> scores(64, 1.0);
        sluice::kernels::add_biases(behind{}, {0, 0, tile, 64}, static_cast<const double*>(nullptr), 127,
                                    {0, 64}, scores.data());
        for (idx j = 0; j < 64; ++j) {
            const bool hidden = tile + j >= 10 && tile + j < 74;
            CHECK(std::isinf(scores[static_cast<std::size_t>(j)]) == hidden);
        }
    }
}
