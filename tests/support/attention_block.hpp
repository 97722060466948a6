// One block of query rows for the attention kernels, and what plain loops make of it.
#pragma once

#include "check.hpp"
#include "random_data.hpp"

#include <sluice/kernels/attention.hpp>
#include <sluice/kernels/attention_backward.hpp>

#include <cmath>
#include <limits>
#include <vector>

namespace sluice::test {

// Row i sees the last `window` of `past` + i + 1 keys.
struct last_keys {
    static constexpr idx n_sources = 1;
    idx past, window;
    sluice::key_range range(idx sequence, idx row, idx source) const {
        if (sequence != 3 || source != 0) return {0, 0}; // what the kernel was not told to ask for
        return {std::max<idx>(0, past + row + 1 - window), past + row + 1};
    }
};

template <class T>
struct one_source {
    sluice::attention_source<T> keys;
    sluice::attention_source<T> operator()(idx, idx) const { return keys; }
};

inline double number(auto value) { return static_cast<double>(value); }

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
        page_end<T> scratch(sluice::kernels::attention_scratch<T, Arch>(tokens * group, d));
        fill(scratch.row(), std::numeric_limits<T>::quiet_NaN());
        const one_source<T> sources{{k.data(), v.data(), d, d, 0}};
        sluice::kernels::attention_block{}(
            Arch{},
            sluice::kernels::attention_block_args<T, last_keys, one_source<T>>{.q = q.data(),
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
        page_end<T> scratch(sluice::kernels::attention_backward_scratch<T, Arch>(d));
        fill(scratch.row(), std::numeric_limits<T>::quiet_NaN());
        for (idx i = 0; i < tokens * group; ++i) {
            double sum = 0;
            for (idx c = 0; c < d; ++c) sum += number(dy[i * d + c]) * number(y[i * d + c]);
            delta[i] = static_cast<T>(sum);
        }
        sluice::kernels::attention_backward{}(Arch{}, sluice::kernels::attention_backward_args<T, last_keys>{
                                                          .q = q.data(),
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
inline constexpr idx all_keys = 1000;
inline constexpr block_shape block_shapes[] = {
    {1, 1, 1, 0, all_keys}, {1, 1, 1, 5, all_keys},    {1, 8, 64, 63, all_keys},   {1, 3, 33, 64, all_keys},
    {2, 3, 17, 61, 3},      {3, 2, 5, 0, all_keys},    {8, 8, 16, 60, 64},         {13, 1, 40, 70, 20},
    {21, 3, 7, 127, 100},   {64, 1, 32, 0, all_keys},  {64, 1, 32, 0, 10},         {64, 1, 128, 30, 64},
    {30, 2, 100, 0, 1},     {5, 2, 31, 190, all_keys}, {65, 1, 130, 63, all_keys}, {70, 4, 64, 0, 2},
    {40, 4, 64, 37, 15},    {40, 4, 48, 37, 16},       {40, 3, 64, 37, 17},        {66, 2, 80, 5, 63},
    {66, 4, 32, 5, 64},     {66, 1, 96, 70, 65},       {17, 1, 256, 64, 128}};

} // namespace sluice::test
