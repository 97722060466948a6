#include "support/archs.hpp"
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
using sluice::key_range;
using sluice::key_tile;
using sluice::tensor_view;
using sluice::kernels::attention_backward;
using sluice::kernels::attention_backward_args;
using sluice::kernels::attention_block;
using sluice::kernels::attention_block_args;
using sluice::kernels::attention_scratch;

namespace {

// Row i sees the last `window` of `past` + i + 1 keys.
struct last_keys {
    static constexpr idx n_sources = 1;
    idx past, window;
    key_range range(idx sequence, idx row, idx source) const {
        if (sequence != 3 || source != 0) return {0, 0}; // what the kernel was not told to ask for
        return {std::max<idx>(0, past + row + 1 - window), past + row + 1};
    }
};

template <class T>
struct one_source {
    attention_source<T> keys;
    attention_source<T> operator()(idx, idx) const { return keys; }
};

double number(auto value) { return static_cast<double>(value); }

// One block of query rows, all of its memory ending with a page: rows stand next to each other, the group's
// heads side by side, and the scratch has exactly the elements it was promised, filled with NaN.
template <class T>
struct block {
    block(idx tokens_, idx group_, idx d_, idx past, idx window)
        : tokens(tokens_),
          group(group_),
          d(d_),
          policy{past, window},
          n_keys(past + tokens),
          q(tokens * group * d),
          dy(tokens * group * d),
          k(n_keys * d),
          v(n_keys * d),
          y(tokens * group * d),
          lse(tokens * group),
          delta(tokens * group),
          dq(tokens * group * d),
          dk(n_keys * d),
          dv(n_keys * d) {
        fill_uniform(q.row(), 1, -2, 2);
        fill_uniform(k.row(), 2, -2, 2);
        fill_uniform(v.row(), 3);
        fill_uniform(dy.row(), 4);
    }
    template <class Arch>
    void forward() {
        page_end<T> scratch(attention_scratch<T, Arch>::forward(tokens * group, d));
        fill(scratch.row(), std::numeric_limits<T>::quiet_NaN());
        const one_source<T> sources{{k.data(), v.data(), d, d, 0}};
        attention_block{}(Arch{},
                          attention_block_args<T, last_keys, one_source<T>>{.q = q.data(),
                                                                            .q_row = group * d,
                                                                            .y = y.data(),
                                                                            .y_row = group * d,
                                                                            .lse = lse.data(),
                                                                            .lse_row = group,
                                                                            .tokens = tokens,
                                                                            .group = group,
                                                                            .head_dim = d,
                                                                            .kv_head = 0,
                                                                            .sequence = 3,
                                                                            .first_row = 0,
                                                                            .scale = scale(),
                                                                            .policy = &policy,
                                                                            .sources = &sources,
                                                                            .scratch = scratch.data()});
    }
    // Adds to dq, dk and dv.
    template <class Arch>
    void backward() {
        page_end<T> scratch(attention_scratch<T, Arch>::backward(d));
        fill(scratch.row(), std::numeric_limits<T>::quiet_NaN());
        for (idx i = 0; i < tokens * group; ++i) {
            double sum = 0;
            for (idx c = 0; c < d; ++c) sum += number(dy[i * d + c]) * number(y[i * d + c]);
            delta[i] = static_cast<T>(sum);
        }
        attention_backward{}(Arch{},
                             attention_backward_args<T, last_keys>{.q = q.data(),
                                                                   .dy = dy.data(),
                                                                   .lse = lse.data(),
                                                                   .delta = delta.data(),
                                                                   .dq = dq.data(),
                                                                   .q_row = group * d,
                                                                   .dy_row = group * d,
                                                                   .lse_row = group,
                                                                   .delta_row = group,
                                                                   .dq_row = group * d,
                                                                   .keys = {k.data(), v.data(), d, d, 0},
                                                                   .dk = dk.data(),
                                                                   .dv = dv.data(),
                                                                   .dk_row = d,
                                                                   .dv_row = d,
                                                                   .rows = tokens,
                                                                   .n_keys = n_keys,
                                                                   .group = group,
                                                                   .head_dim = d,
                                                                   .sequence = 3,
                                                                   .source = 0,
                                                                   .scale = scale(),
                                                                   .policy = &policy,
                                                                   .scratch = scratch.data()});
    }
    T scale() const { return T(0.25); }

    idx tokens, group, d;
    last_keys policy;
    idx n_keys;
    page_end<T> q, dy, k, v, y, lse, delta, dq, dk, dv;
};

// The same from plain loops. Gradients start from what the block's hold.
template <class T>
struct plain_block {
    explicit plain_block(block<T>& b)
        : y(b.tokens * b.group, b.d),
          lse(1, b.tokens * b.group),
          dq(b.tokens * b.group, b.d),
          dk(b.n_keys, b.d),
          dv(b.n_keys, b.d) {
        for (idx row = 0; row < b.tokens * b.group; ++row) add_row(b, row);
    }
    oracle y, lse, dq, dk, dv;

private:
    void add_row(block<T>& b, idx row) {
        const auto [lo, hi] = b.policy.range(3, row / b.group, 0);
        std::vector<double> weight, error;
        double largest = -std::numeric_limits<double>::infinity(), total = 0, total_error = 0;
        for (idx key = lo; key < hi; ++key) {
            double score = 0, size = 0;
            for (idx c = 0; c < b.d; ++c) {
                const double term =
                    number(b.scale()) * number(b.q[row * b.d + c]) * number(b.k[key * b.d + c]);
                score += term;
                size += std::abs(term);
            }
            weight.push_back(score);
            error.push_back(1 + size);
            largest = std::max(largest, score);
        }
        for (double& w : weight) total += w = std::exp(w - largest);
        for (std::size_t i = 0; i < weight.size(); ++i) total_error += (weight[i] /= total) * error[i];
        for (std::size_t i = 0; i < weight.size(); ++i) error[i] = weight[i] * (error[i] + total_error);
        lse(0, row) = {largest + std::log(total), std::abs(largest) + total_error};
        double delta = 0, delta_size = 0;
        for (idx c = 0; c < b.d; ++c) {
            for (idx key = lo; key < hi; ++key) {
                const double value = number(b.v[key * b.d + c]);
                add(y(row, c), weight[at(key - lo)] * value, error[at(key - lo)] * std::abs(value));
            }
            const double dy = number(b.dy[row * b.d + c]);
            delta += dy * y(row, c).value;
            delta_size += std::abs(dy) * y(row, c).size;
        }
        for (idx key = lo; key < hi; ++key) {
            double slope = -delta, size = delta_size;
            for (idx c = 0; c < b.d; ++c) {
                const double term = number(b.dy[row * b.d + c]) * number(b.v[key * b.d + c]);
                slope += term;
                size += std::abs(term);
            }
            slope *= weight[at(key - lo)] * number(b.scale());
            size *= error[at(key - lo)] * number(b.scale());
            for (idx c = 0; c < b.d; ++c) {
                const double q = number(b.q[row * b.d + c]), k = number(b.k[key * b.d + c]);
                const double dy = number(b.dy[row * b.d + c]);
                add(dq(row, c), slope * k, size * std::abs(k));
                add(dk(key, c), slope * q, size * std::abs(q));
                add(dv(key, c), weight[at(key - lo)] * dy, error[at(key - lo)] * std::abs(dy));
            }
        }
    }
    static std::size_t at(idx i) { return static_cast<std::size_t>(i); }
    static void add(expected& to, double value, double size) {
        to.value += value;
        to.size += size;
    }
};

struct block_shape {
    idx tokens, group, d, past, window;
};
constexpr idx all = 1000;
constexpr block_shape shapes[] = {{1, 1, 1, 0, all},   {1, 1, 1, 5, all},    {1, 8, 64, 63, all},
                                  {1, 3, 33, 64, all}, {2, 3, 17, 61, 3},    {3, 2, 5, 0, all},
                                  {8, 8, 16, 60, 64},  {13, 1, 40, 70, 20},  {21, 3, 7, 127, 100},
                                  {64, 1, 32, 0, all}, {64, 1, 32, 0, 10},   {64, 1, 128, 30, 64},
                                  {30, 2, 100, 0, 1},  {5, 2, 31, 190, all}, {65, 1, 130, 63, all}};

} // namespace

TEMPLATE_TEST_CASE("attention kernels: a block forward and backward, at the end of a page", "", float_native,
                   float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    for (const block_shape& s : shapes) {
        CAPTURE(s.tokens, s.group, s.d, s.past, s.window);
        block<T> b(s.tokens, s.group, s.d, s.past, s.window);
        const plain_block<T> want(b);
        b.template forward<Arch>();
        b.template backward<Arch>();
        const bool dull = s.tokens == 1 || s.window < 4;
        const tolerance sums{.chain = s.d + b.n_keys, .may_be_dull = dull};
        // where one key is seen, the slopes of q and k are rounding errors around zero
        const tolerance slopes{.chain = 2 * sums.chain,
                               .nmse = s.window == 1 || b.n_keys == 1 ? 1e300 : 0,
                               .may_be_dull = dull || s.past > 0};
        const idx rows = s.tokens * s.group;
        REQUIRE(compare(b.y.matrix(rows, s.d), want.y, sums) == "");
        REQUIRE(compare(b.lse.row(), want.lse, {.chain = sums.chain, .may_be_dull = true}) == "");
        REQUIRE(compare(b.dv.matrix(b.n_keys, s.d), want.dv,
                        {.chain = sums.chain, .may_be_dull = slopes.may_be_dull}) == "");
        REQUIRE(compare(b.dq.matrix(rows, s.d), want.dq, slopes) == "");
        REQUIRE(compare(b.dk.matrix(b.n_keys, s.d), want.dk, slopes) == "");
    }
}

TEMPLATE_TEST_CASE("attention kernels: gradients are added to what was there", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    block<T> from_zero(40, 2, 12, 30, 50), from_ones(40, 2, 12, 30, 50);
    for (auto* m : {&from_ones.dq, &from_ones.dk, &from_ones.dv}) fill(m->row(), T(1));
    for (auto* b : {&from_zero, &from_ones}) {
        b->template forward<Arch>();
        b->template backward<Arch>();
    }
    const double near = sizeof(T) == 4 ? 1e-5 : 1e-13;
    for (idx i = 0; i < 40 * 2 * 12; ++i)
        REQUIRE(compare_number(from_ones.dq[i], 1 + number(from_zero.dq[i]), near) == "");
    for (idx i = 0; i < 70 * 12; ++i) {
        REQUIRE(compare_number(from_ones.dk[i], 1 + number(from_zero.dk[i]), near) == "");
        REQUIRE(compare_number(from_ones.dv[i], 1 + number(from_zero.dv[i]), near) == "");
    }
}

TEMPLATE_TEST_CASE("attention kernels: a block's first row, key head, strides and missing lse", "",
                   float_native, float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    constexpr idx d = 10, n = 50, group = 2;
    const last_keys policy{0, 30};
    // two key heads side by side, of which the second is asked for; rows apart from each other
    const padded<T> q = uniform_matrix<T>(n, group * d, 1), k = uniform_matrix<T>(n, 2 * d, 2),
                    v = uniform_matrix<T>(n, 2 * d, 3);
    const one_source<T> sources{
        {k.view().data(), v.view().data(), k.view().row_stride(), v.view().row_stride(), 0}};
    std::vector<T> scratch(static_cast<std::size_t>(attention_scratch<T, Arch>::forward(n * group, d)));
    auto run = [&](padded<T>& y, T* lse, idx first, idx tokens, idx kv_head) {
        attention_block{}(Arch{},
                          attention_block_args<T, last_keys, one_source<T>>{.q = q.view().row(first),
                                                                            .q_row = q.view().row_stride(),
                                                                            .y = y.row(first),
                                                                            .y_row = y.view().row_stride(),
                                                                            .lse = lse,
                                                                            .lse_row = group + 3,
                                                                            .tokens = tokens,
                                                                            .group = group,
                                                                            .head_dim = d,
                                                                            .kv_head = kv_head,
                                                                            .sequence = 3,
                                                                            .first_row = first,
                                                                            .scale = T(1),
                                                                            .policy = &policy,
                                                                            .sources = &sources,
                                                                            .scratch = scratch.data()});
    };
    padded<T> whole(n, group * d), pieces(n, group * d), lse(n, group, 3);
    run(whole, lse.data(), 0, n, 1);
    for (idx first = 0; first < n; first += 7) run(pieces, nullptr, first, std::min<idx>(7, n - first), 1);
    CHECK(different_bits(pieces.view(), whole.view()) == "");
    CHECK(whole.touched() + pieces.touched() + lse.touched() == "");
    for (idx j = 0; j < group * d; ++j) CHECK(whole(0, j) == v.view()(0, d + j % d)); // sees itself alone
    run(pieces, nullptr, 0, n, 0);
    CHECK(pieces(0, 3) == v.view()(0, 3));
    CHECK(different_bits(pieces.view(), whole.view()) != "");
}

TEST_CASE("attention kernels: first_row finds where a condition begins to hold") {
    for (idx rows = 0; rows < 20; ++rows)
        for (idx from = 0; from <= rows; ++from)
            CHECK(sluice::kernels::first_row(rows, [&](idx row) { return row >= from; }) == from);
}

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
