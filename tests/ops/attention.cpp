#include "support/allocations.hpp"
#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/executors.hpp"
#include "support/random_data.hpp"

#include <sluice/ops/attention.hpp>

#include <array>
#include <cmath>
#include <limits>
#include <vector>

using namespace sluice::test;
using sluice::arena;
using sluice::attend;
using sluice::attend_backward;
using sluice::attention_shape;
using sluice::attention_source;
using sluice::batch;
using sluice::causal_attention;
using sluice::dry_run;
using sluice::executor_ref;
using sluice::idx;
using sluice::key_range;
using sluice::key_tile;
using sluice::packed_keys;
using sluice::tensor_view;
using sluice::simd::native;

namespace {

// Row i sees its own chunk of `chunk` rows up to itself, and the chunk before.
struct chunked {
    static constexpr idx n_sources = 1;
    idx chunk = 16;
    key_range range(idx, idx row, idx) const { return {std::max<idx>(0, row / chunk - 1) * chunk, row + 1}; }
};

// The first `prefix` rows see each other, later rows see all before them: keys behind the row itself.
struct prefix_then_causal {
    static constexpr idx n_sources = 1;
    idx prefix = 70;
    idx rows = 0;
    key_range range(idx, idx row, idx) const { return {0, std::min(rows, std::max(prefix, row + 1))}; }
};

// Only keys of earlier groups of `group` rows: the first rows see none, and `seen` limits how far back they
// look.
struct earlier_groups {
    static constexpr idx n_sources = 1;
    idx group = 7;
    idx seen = 1000;
    key_range range(idx, idx row, idx) const {
        const idx hi = row / group * group;
        return {std::max<idx>(0, hi - seen), hi};
    }
};

// A memory that every row sees whole, and then the rows up to itself.
struct memory_then_causal {
    static constexpr idx n_sources = 2;
    idx memory = 37;
    key_range range(idx, idx row, idx source) const { return {0, source == 0 ? memory : row + 1}; }
};

template <class T>
struct memory_and_rows {
    attention_source<T> memory;
    packed_keys<T> rows;
    attention_source<T> operator()(idx sequence, idx source) const {
        return source == 0 ? memory : rows(sequence, source);
    }
};

attention_shape shape_of(idx kv_heads, idx group, idx d) { return {kv_heads * group, kv_heads, d}; }

// A batch over owned offsets.
struct sequences {
    explicit sequences(std::vector<idx> lengths) {
        for (idx n : lengths) offsets.push_back(offsets.back() + n);
    }
    batch rows() const { return {.n_tokens = offsets.back(), .offsets = offsets}; }
    std::vector<idx> offsets{0};
};

template <class T>
struct attention_data {
    attention_data(attention_shape s, idx n, std::uint64_t key = 1)
        : shape(s),
          q(uniform_matrix<T>(n, s.n_heads * s.head_dim, key, -2, 2)),
          k(uniform_matrix<T>(n, s.n_kv_heads * s.head_dim, key + 1, -2, 2)),
          v(uniform_matrix<T>(n, s.n_kv_heads * s.head_dim, key + 2)),
          y(n, q.view().cols()),
          lse(n, s.n_heads),
          dy(uniform_matrix<T>(n, q.view().cols(), key + 3)),
          dq(uniform_matrix<T>(n, q.view().cols(), key + 4)),
          dk(uniform_matrix<T>(n, k.view().cols(), key + 5)),
          dv(uniform_matrix<T>(n, k.view().cols(), key + 6)) {}

    template <class Arch = native, class Policy>
    void forward(const batch& b, const Policy& policy, executor_ref ex = {}) {
        attend<Arch, T>(b, shape, q, packed_keys<T>{&b, k, v}, policy, y.view(), lse.view(), workspace(), ex);
    }
    template <class Arch = native, class Policy>
    void backward(const batch& b, const Policy& policy, executor_ref ex = {}) {
        attend_backward<Arch, T>(b, shape, q, k, v, y, lse, dy, policy, dq.view(), dk.view(), dv.view(),
                                 workspace(), ex);
    }
    static arena& workspace() {
        static arena memory(std::size_t{1} << 23);
        return memory;
    }
    std::string touched() const {
        std::string all;
        for (const auto* m : {&q, &k, &v, &y, &lse, &dy, &dq, &dk, &dv}) all += m->touched();
        return all;
    }
    attention_shape shape;
    padded<T> q, k, v, y, lse, dy, dq, dk, dv;
};

template <class T>
double at(const tensor_view<T>& t, idx i, idx j) {
    return static_cast<double>(t(i, j));
}

// One query head against the keys it sees, in double: scores, then weights. `size` of a weight is for the
// bound: an error in the argument of exp is a relative error of its value.
template <class T>
struct plain_row {
    struct seen_key {
        const T *k, *v;
        idx key, source;
        double score, score_size, weight, size;
    };
    template <class Policy, class Sources>
    plain_row(const attention_shape& s, const T* q, idx kv_head, const Sources& sources, const Policy& policy,
              idx sequence, idx row) {
        const double scale = 1 / std::sqrt(static_cast<double>(s.head_dim));
        double largest = -std::numeric_limits<double>::infinity(), size = 0;
        for (idx source = 0; source < Policy::n_sources; ++source) {
            const key_range range = policy.range(sequence, row, source);
            const attention_source<T> from = sources(sequence, source);
            for (idx key = range.lo; key < range.hi; ++key) {
                seen_key one{from.k + from.row(key) * from.k_row + kv_head * s.head_dim,
                             from.v + from.row(key) * from.v_row + kv_head * s.head_dim,
                             key,
                             source,
                             0,
                             0,
                             0,
                             0};
                for (idx c = 0; c < s.head_dim; ++c) {
                    const double term = scale * static_cast<double>(q[c]) * static_cast<double>(one.k[c]);
                    one.score += term;
                    one.score_size += std::abs(term);
                }
                largest = std::max(largest, one.score);
                keys.push_back(one);
            }
        }
        for (auto& one : keys) total += one.weight = std::exp(one.score - largest);
        for (auto& one : keys) {
            one.weight /= total;
            size += one.weight * (1 + one.score_size);
        }
        for (auto& one : keys) one.size = one.weight * (1 + one.score_size + size);
        lse = {largest + std::log(total), std::abs(largest) + size};
    }
    std::vector<seen_key> keys;
    double total = 0;
    expected lse;
};

// Every gradient as its formula reads, with the sizes for the bound.
template <class T>
struct plain_attention {
    plain_attention(const attention_data<T>& data, const batch& b, const auto& sources, const auto& policy,
                    bool gradients = false)
        : y(b.n_tokens, data.q.view().cols()),
          lse(b.n_tokens, data.shape.n_heads),
          dq(b.n_tokens, y.cols()),
          dk(b.n_tokens, data.k.view().cols()),
          dv(b.n_tokens, dk.cols()) {
        const attention_shape& s = data.shape;
        for (idx sequence = 0; sequence < b.n_sequences(); ++sequence)
            for (idx i = b.begin(sequence); i < b.end(sequence); ++i)
                for (idx h = 0; h < s.n_heads; ++h) {
                    const idx head = h * s.head_dim, kv_head = h / s.group();
                    const plain_row<T> row(s, data.q.view().row(i) + head, kv_head, sources, policy, sequence,
                                           i - b.begin(sequence));
                    lse(i, h) = row.lse;
                    for (const auto& one : row.keys)
                        for (idx c = 0; c < s.head_dim; ++c) {
                            y(i, head + c).value += one.weight * static_cast<double>(one.v[c]);
                            y(i, head + c).size += one.size * std::abs(static_cast<double>(one.v[c]));
                        }
                    if (gradients) add_gradients(data, row, b.begin(sequence), i, head, kv_head * s.head_dim);
                }
    }
    oracle y, lse, dq, dk, dv;

private:
    void add_gradients(const attention_data<T>& data, const plain_row<T>& row, idx begin, idx i, idx head,
                       idx kv) {
        const idx d = data.shape.head_dim;
        const double scale = 1 / std::sqrt(static_cast<double>(d));
        const auto dy = data.dy.view(), q = data.q.view(), k = data.k.view();
        double delta = 0, delta_size = 0;
        for (idx c = 0; c < d; ++c) {
            delta += at(dy, i, head + c) * y(i, head + c).value;
            delta_size += std::abs(at(dy, i, head + c)) * y(i, head + c).size;
        }
        for (const auto& one : row.keys) {
            const idx j = begin + one.key;
            double slope = -delta, slope_size = delta_size;
            for (idx c = 0; c < d; ++c) {
                slope += at(dy, i, head + c) * static_cast<double>(one.v[c]);
                slope_size += std::abs(at(dy, i, head + c) * static_cast<double>(one.v[c]));
            }
            slope *= one.weight * scale;
            slope_size *= one.size * scale;
            for (idx c = 0; c < d; ++c) {
                add(dq(i, head + c), slope * at(k, j, kv + c), slope_size * std::abs(at(k, j, kv + c)));
                add(dk(j, kv + c), slope * at(q, i, head + c), slope_size * std::abs(at(q, i, head + c)));
                add(dv(j, kv + c), one.weight * at(dy, i, head + c),
                    one.size * std::abs(at(dy, i, head + c)));
            }
        }
    }
    static void add(expected& to, double value, double size) {
        to.value += value;
        to.size += size;
    }
};

// Compares forward, and backward where asked, with the plain loops, for the instruction sets of this machine.
template <class T, class Policy>
void check_against_plain(attention_shape s, const batch& b, const Policy& policy, bool gradients = false) {
    const attention_data<T> inputs(s, b.n_tokens);
    const plain_attention<T> want(inputs, b, packed_keys<T>{&b, inputs.k, inputs.v}, policy, gradients);
    const tolerance limit{.chain = s.head_dim + b.n_tokens, .may_be_dull = b.n_tokens < 3};
    auto check = [&](auto arch) {
        using Arch = decltype(arch);
        attention_data<T> data = inputs;
        data.template forward<Arch>(b, policy);
        REQUIRE(compare(data.y.view(), want.y, limit) == "");
        REQUIRE(compare(data.lse.view(), want.lse, {.chain = limit.chain, .may_be_dull = true}) == "");
        if (gradients) {
            data.template backward<Arch>(b, policy);
            // with one key all weights are 1 and the slopes of q and k are rounding errors around zero
            const tolerance slopes{
                .chain = 2 * limit.chain, .nmse = b.n_tokens < 3 ? 1.0 : 0.0, .may_be_dull = b.n_tokens < 3};
            REQUIRE(compare(data.dv.view(), want.dv,
                            {.chain = slopes.chain, .may_be_dull = b.n_tokens < 3}) == "");
            REQUIRE(compare(data.dq.view(), want.dq, slopes) == "");
            REQUIRE(compare(data.dk.view(), want.dk, slopes) == "");
        }
        REQUIRE(data.touched() == "");
        REQUIRE(data.workspace().used() == 0);
    };
    check(native{});
    check(sluice::simd::scalar{});
}

constexpr std::array<idx, 8> row_counts{1, 2, 3, 63, 64, 65, 129, 200};

// Three decode-like and prompt-like calls whose rows are those of one call of n rows.
const std::vector<std::vector<idx>> splits{
    {0, 1, 2, 3, 5, 64, 65, 130}, {0, 63, 64, 128, 129, 130}, {0, 127, 130}};

} // namespace

TEMPLATE_TEST_CASE("attend: every group and head size against plain loops", "", float, double) {
    for (idx d : {1, 7, 16, 33, 64, 100, 128, 256})
        for (idx group : {1, 2, 3, 8}) {
            const idx kv_heads = group < 3 ? 2 : 1;
            CAPTURE(d, group);
            check_against_plain<TestType>(shape_of(kv_heads, group, d), batch::one(67),
                                          causal_attention{d % 2 * 9});
        }
}

TEMPLATE_TEST_CASE("attend: every window and number of rows against plain loops", "", float, double) {
    for (idx n : row_counts)
        for (idx window : {idx{0}, idx{1}, idx{5}, idx{64}, idx{100}, n}) {
            CAPTURE(n, window);
            check_against_plain<TestType>(shape_of(2, 3, 8), batch::one(n), causal_attention{window});
        }
}

TEMPLATE_TEST_CASE("attend: policies from outside against plain loops", "", float, double) {
    const attention_shape s = shape_of(2, 3, 20);
    for (idx n : {64, 150}) {
        CAPTURE(n);
        check_against_plain<TestType>(s, batch::one(n), chunked{16}, true);
        check_against_plain<TestType>(s, batch::one(n), chunked{64}, true);
        check_against_plain<TestType>(s, batch::one(n), prefix_then_causal{30, n}, true);
        check_against_plain<TestType>(s, batch::one(n), prefix_then_causal{n - 1, n}, true);
    }
}

TEMPLATE_TEST_CASE("attend: two sources share one softmax", "", float_native, float_scalar, double_native,
                   double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    for (idx memory : {0, 1, 37, 64, 130}) {
        const attention_shape s = shape_of(2, 2, 24);
        attention_data<T> data(s, 70), other(s, 130, 50);
        const batch b = batch::one(70);
        const memory_and_rows<T> sources{
            {other.k.data(), other.v.data(), other.k.view().row_stride(), other.v.view().row_stride(), 0},
            {&b, data.k, data.v}};
        const memory_then_causal policy{memory};
        attend<Arch, T>(b, s, data.q, sources, policy, data.y.view(), data.lse.view(), data.workspace(), {});
        const plain_attention<T> want(data, b, sources, policy);
        CAPTURE(memory);
        CHECK(compare(data.y.view(), want.y, {.chain = 24 + 200}) == "");
        CHECK(compare(data.lse.view(), want.lse, {.chain = 24 + 200}) == "");
        CHECK(data.touched() == "");
    }
}

TEMPLATE_TEST_CASE("attend_backward: against plain loops", "", float, double) {
    for (idx d : {1, 7, 16, 33, 64, 128})
        for (idx group : {1, 2, 3, 8}) {
            CAPTURE(d, group);
            check_against_plain<TestType>(shape_of(group < 3 ? 2 : 1, group, d), batch::one(67),
                                          causal_attention{}, true);
        }
    for (idx n : row_counts)
        for (idx window : {idx{0}, idx{1}, idx{5}, idx{64}, idx{100}, n}) {
            CAPTURE(n, window);
            // in a window of one key the slopes of q and k are rounding errors around zero
            if (window != 1 && n > 1)
                check_against_plain<TestType>(shape_of(2, 3, 8), batch::one(n), causal_attention{window},
                                              true);
        }
}

TEMPLATE_TEST_CASE("attend: several sequences are each alone", "", float_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    const attention_shape s = shape_of(2, 3, 18);
    const sequences packed({0, 5, 0, 65, 1, 128, 0});
    const batch b = packed.rows();
    for (idx window : {0, 7}) {
        attention_data<T> data(s, b.n_tokens);
        data.template forward<Arch>(b, causal_attention{window});
        data.template backward<Arch>(b, causal_attention{window});
        CHECK(data.touched() == "");
        for (idx sequence = 0; sequence < b.n_sequences(); ++sequence) {
            const idx first = b.begin(sequence), n = b.end(sequence) - first;
            attention_data<T> alone(s, n);
            for (auto m : {&attention_data<T>::q, &attention_data<T>::k, &attention_data<T>::v,
                           &attention_data<T>::dy})
                copy((data.*m).view().row_block(first, n), (alone.*m).view());
            alone.template forward<Arch>(batch::one(n), causal_attention{window});
            alone.template backward<Arch>(batch::one(n), causal_attention{window});
            CAPTURE(window, sequence);
            for (auto m : {&attention_data<T>::y, &attention_data<T>::lse, &attention_data<T>::dq,
                           &attention_data<T>::dk, &attention_data<T>::dv})
                CHECK(different_bits((alone.*m).view(), (data.*m).view().row_block(first, n)) == "");
        }
    }
}

TEMPLATE_TEST_CASE("attend: rows after others have the bits of one call", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    constexpr idx n = 130;
    for (attention_shape s : {shape_of(2, 1, 16), shape_of(1, 3, 20), shape_of(1, 8, 9), shape_of(1, 100, 2)})
        for (idx window : {0, 1, 5, 64, 100}) {
            attention_data<T> whole(s, n);
            whole.template forward<Arch>(batch::one(n), causal_attention{window});
            const attention_source<T> all{whole.k.data(), whole.v.data(), whole.k.view().row_stride(),
                                          whole.v.view().row_stride(), 0};
            auto from_past = [&](idx first, idx rows) {
                const std::array<idx, 1> past{first};
                padded<T> y(rows, s.n_heads * s.head_dim);
                attend<Arch, T>(batch::one(rows), s, whole.q.view().row_block(first, rows),
                                [&](idx, idx) { return all; }, causal_attention{window, past}, y.view(), {},
                                whole.workspace(), {});
                return different_bits(y.view(), whole.y.view().row_block(first, rows)) + y.touched();
            };
            CAPTURE(s.n_heads, window);
            for (idx i = 0; i < n; ++i) REQUIRE(from_past(i, 1) == "");
            for (const auto& cuts : splits)
                for (std::size_t i = 1; i < cuts.size(); ++i)
                    REQUIRE(from_past(cuts[i - 1], cuts[i] - cuts[i - 1]) == "");
        }
}

TEMPLATE_TEST_CASE("attend: a ring has the bits of keys that never wrap", "", float_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    constexpr idx n = 500, rows = 20;
    const attention_shape s = shape_of(2, 3, 12);
    attention_data<T> whole(s, n);
    for (idx window : {1, 5, 45, 64, 100}) {
        whole.template forward<Arch>(batch::one(n), causal_attention{window});
        const idx ring = sluice::round_up(window - 1 + rows, key_tile);
        padded<T> k(ring, whole.k.view().cols()), v(ring, k.view().cols());
        const attention_source<T> source{k.data(), v.data(), k.view().row_stride(), v.view().row_stride(),
                                         ring};
        for (idx first = 0; first < n; first += rows) {
            for (idx i = first; i < first + rows; ++i) {
                copy(whole.k.view().row_block(i, 1), k.view().row_block(i % ring, 1));
                copy(whole.v.view().row_block(i, 1), v.view().row_block(i % ring, 1));
            }
            const std::array<idx, 1> past{first};
            padded<T> y(rows, s.n_heads * s.head_dim);
            attend<Arch, T>(batch::one(rows), s, whole.q.view().row_block(first, rows),
                            [&](idx, idx) { return source; }, causal_attention{window, past}, y.view(), {},
                            whole.workspace(), {});
            CAPTURE(window, first);
            REQUIRE(different_bits(y.view(), whole.y.view().row_block(first, rows)) == "");
            REQUIRE(y.touched() + k.touched() == "");
        }
    }
}

TEMPLATE_TEST_CASE("attend: rows that see no key give zeros", "", float_native, float_scalar, double_native,
                   double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    const attention_shape s = shape_of(2, 2, 19);
    const batch b = batch::one(100);
    for (earlier_groups policy :
         {earlier_groups{7, 1000}, earlier_groups{70, 1000}, earlier_groups{30, 0}, earlier_groups{11, 3}}) {
        attention_data<T> data(s, b.n_tokens);
        data.template forward<Arch>(b, policy);
        data.template backward<Arch>(b, policy);
        CAPTURE(policy.group, policy.seen);
        idx blind = 0, wrong = 0;
        for (idx i = 0; i < b.n_tokens; ++i) {
            const key_range range = policy.range(0, i, 0);
            if (range.lo < range.hi) continue;
            ++blind;
            for (idx j = 0; j < data.y.view().cols(); ++j)
                wrong += data.y(i, j) != T(0) || data.dq(i, j) != T(0);
            for (idx h = 0; h < s.n_heads; ++h)
                wrong += data.lse(i, h) != -std::numeric_limits<T>::infinity();
        }
        CHECK(wrong == 0);
        REQUIRE(blind >= 7);
        // the last rows see nobody either way: gradients of unseen keys are zero, all others as the formulas
        // say
        const plain_attention<T> want(data, b, packed_keys<T>{&b, data.k, data.v}, policy, true);
        const tolerance limit{.chain = 200, .may_be_dull = true};
        CHECK(compare(data.y.view(), want.y, limit) == "");
        CHECK(compare(data.dq.view(), want.dq, limit) == "");
        CHECK(compare(data.dk.view(), want.dk, limit) == "");
        CHECK(compare(data.dv.view(), want.dv, limit) == "");
    }
}

TEMPLATE_TEST_CASE("attend: NaN in a key or value reaches only rows that see it", "", float_native,
                   float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    const T nan = std::numeric_limits<T>::quiet_NaN();
    const attention_shape s = shape_of(2, 3, 17);
    const batch b = batch::one(140);
    for (idx window : {0, 5, 64})
        for (idx poisoned : {0, 3, 64, 70, 139})
            for (bool in_key : {false, true}) {
                attention_data<T> clean(s, b.n_tokens), data(s, b.n_tokens);
                (in_key ? data.k : data.v)(poisoned, 17 + 4) =
                    nan; // second head, so that the first stays clean
                const causal_attention policy{window};
                clean.template forward<Arch>(b, policy);
                data.template forward<Arch>(b, policy);
                CAPTURE(window, poisoned, in_key);
                const idx half = 3 * 17;
                REQUIRE(different_bits(data.y.view().col_block(0, half), clean.y.view().col_block(0, half)) ==
                        "");
                for (idx i = 0; i < b.n_tokens; ++i) {
                    const auto mine = data.y.view().row_block(i, 1).col_block(half, half);
                    const key_range range = policy.range(0, i, 0);
                    if (poisoned < range.lo || poisoned >= range.hi)
                        REQUIRE(different_bits(mine, clean.y.view().row_block(i, 1).col_block(half, half)) ==
                                "");
                    else if (in_key)
                        REQUIRE(not_all_nan(mine, 0) == "");
                    else
                        for (idx h = 0; h < 3; ++h) REQUIRE(std::isnan(mine(0, h * 17 + 4)));
                }
            }
}

TEMPLATE_TEST_CASE("attend: NaN in a query stays in its head", "", float_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    const attention_shape s = shape_of(2, 2, 17);
    const batch b = batch::one(100);
    attention_data<T> clean(s, 100), data(s, 100);
    data.q(70, 2 * 17 + 16) = std::numeric_limits<T>::quiet_NaN();
    clean.template forward<Arch>(b, causal_attention{});
    data.template forward<Arch>(b, causal_attention{});
    CHECK(not_all_nan(data.y.view().col_block(2 * 17, 17), 70) == "");
    for (idx i = 0; i < 100; ++i)
        for (idx h = 0; h < 4; ++h)
            if (i != 70 || h != 2)
                CHECK(different_bits(data.y.view().row_block(i, 1).col_block(h * 17, 17),
                                     clean.y.view().row_block(i, 1).col_block(h * 17, 17)) == "");
}

TEMPLATE_TEST_CASE("attend: huge logits stay finite", "", float_native, float_scalar, double_native,
                   double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    const attention_shape s = shape_of(1, 2, 16);
    const batch b = batch::one(150);
    for (double sign : {1.0, -1.0}) {
        attention_data<T> data(s, b.n_tokens);
        // every logit is about 1e4 from zero, and rises or falls along the keys by 2 each
        fill(data.q.view(), T(100));
        for (idx i = 0; i < b.n_tokens; ++i)
            for (idx c = 0; c < 16; ++c)
                data.k(i, c) = static_cast<T>(sign * (25 + 0.005 * static_cast<double>(i)));
        data.template forward<Arch>(b, causal_attention{});
        data.template backward<Arch>(b, causal_attention{});
        idx not_finite = 0;
        for (const auto* m : {&data.y, &data.lse, &data.dq, &data.dk, &data.dv})
            for (idx i = 0; i < m->view().rows(); ++i)
                for (idx j = 0; j < m->view().cols(); ++j)
                    not_finite += std::isfinite(m->view()(i, j)) ? 0 : 1;
        CHECK(not_finite == 0);
        for (idx i = 0; i < b.n_tokens; ++i) {
            CHECK(std::abs(data.lse(i, 0)) > T(9999));
            const idx winner = sign > 0 ? i : 0; // holds 1 - exp(-2) of the weight or more
            const double others = std::exp(-2.0) * 1.2;
            CHECK(compare_number(data.y(i, 3), at(data.v.view(), winner, 3), 2 * others) == "");
        }
    }
    // all logits equal: the mean of the values, however far from zero
    attention_data<T> data(s, 80);
    fill(data.q.view(), T(-100));
    fill(data.k.view(), T(25));
    data.template forward<Arch>(batch::one(80), causal_attention{});
    double sum = 0;
    for (idx i = 0; i < 80; ++i) {
        sum += at(data.v.view(), i, 5);
        CHECK(compare_number(data.y(i, 5), sum / static_cast<double>(i + 1), 1e-5) == "");
    }
}

TEMPLATE_TEST_CASE("attend: y may be q", "", float_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    for (idx window : {0, 9})
        for (attention_shape s : {shape_of(2, 3, 21), shape_of(3, 1, 64)}) {
            attention_data<T> data(s, 140);
            const batch b = batch::one(140);
            data.template forward<Arch>(b, causal_attention{window});
            reverse_in_parts parts{2};
            attend<Arch, T>(b, s, data.q, packed_keys<T>{&b, data.k, data.v}, causal_attention{window},
                            data.q.view(), {}, data.workspace(), parts);
            CHECK(different_bits(data.q.view(), data.y.view()) == "");
            CHECK(data.touched() == "");
        }
}

TEMPLATE_TEST_CASE("attend: bits do not depend on the executor", "", float_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    const attention_shape s = shape_of(2, 3, 14);
    const sequences packed({70, 0, 33, 130});
    const batch b = packed.rows();
    for (idx window : {0, 40}) {
        attention_data<T> first(s, b.n_tokens);
        first.template forward<Arch>(b, causal_attention{window});
        first.template backward<Arch>(b, causal_attention{window});
        for_each_executor([&](executor_ref ex, const std::string& name) {
            attention_data<T> data(s, b.n_tokens);
            data.template forward<Arch>(b, causal_attention{window}, ex);
            data.template backward<Arch>(b, causal_attention{window}, ex);
            INFO(name);
            for (auto m : {&attention_data<T>::y, &attention_data<T>::lse, &attention_data<T>::dq,
                           &attention_data<T>::dk, &attention_data<T>::dv})
                CHECK(different_bits((data.*m).view(), (first.*m).view()) == "");
        });
    }
}

TEST_CASE("attend: workspace does not grow with the keys") {
    const attention_shape s = shape_of(2, 4, 32);
    auto forward_bytes = [&](idx rows, idx past, idx workers) {
        arena dry;
        dry_run executor{workers};
        const std::array<idx, 1> before{past};
        const batch b = batch::one(rows);
        const tensor_view<float> q(nullptr, rows, s.n_heads * s.head_dim),
            k(nullptr, rows, s.n_kv_heads * s.head_dim);
        attend<native, float>(b, s, q, packed_keys<float>{&b, k, k}, causal_attention{0, before}, q, {}, dry,
                              executor);
        CHECK(dry.used() == 0);
        return dry.bytes();
    };
    CHECK(forward_bytes(1, 0, 1) == forward_bytes(1, 1'000'000, 1));
    CHECK(forward_bytes(200, 0, 1) == forward_bytes(1'000'000, 0, 1));
    CHECK(forward_bytes(1, 0, 1) <= forward_bytes(200, 0, 1));
    CHECK(forward_bytes(100, 0, 3) <= 3 * forward_bytes(100, 0, 1));
    CHECK(forward_bytes(100, 0, 3) > forward_bytes(100, 0, 1));

    auto backward_bytes = [&](idx rows, idx workers) {
        arena dry;
        dry_run executor{workers};
        const tensor_view<float> q(nullptr, rows, s.n_heads * s.head_dim),
            k(nullptr, rows, s.n_kv_heads * s.head_dim);
        const tensor_view<float> lse(nullptr, rows, s.n_heads);
        attend_backward<native, float>(batch::one(rows), s, q, k, k, q, lse, q, causal_attention{}, q, k, k,
                                       dry, executor);
        return dry.bytes();
    };
    const std::size_t one = backward_bytes(64, 1), two = backward_bytes(128, 1);
    CHECK(two - one == 64 * 8 * sizeof(float)); // one number a row and head
    CHECK(backward_bytes(128, 2) - two < one);

    // what was counted is enough for the call itself
    attention_data<float> data(s, 100);
    arena forward_memory(forward_bytes(100, 0, 2)), backward_memory(backward_bytes(100, 2));
    reverse_in_parts parts{2};
    const batch b = batch::one(100);
    attend<native, float>(b, s, data.q, packed_keys<float>{&b, data.k, data.v}, causal_attention{},
                          data.y.view(), data.lse.view(), forward_memory, parts);
    attend_backward<native, float>(b, s, data.q, data.k, data.v, data.y, data.lse, data.dy,
                                   causal_attention{}, data.dq.view(), data.dk.view(), data.dv.view(),
                                   backward_memory, parts);
    CHECK((forward_memory.used() == 0 && backward_memory.used() == 0));
    arena small(64);
    CHECK_THROWS_AS(attend<native>(b, s, data.q, packed_keys<float>{&b, data.k, data.v}, causal_attention{},
                                   data.y.view(), data.lse.view(), small, parts),
                    sluice::capacity_error);
}

TEST_CASE("attend_backward: is the gradient of attend") {
    auto check = [](attention_shape s, const batch& b, const auto& policy) {
        attention_data<double> data(s, b.n_tokens);
        auto loss = [&] {
            data.forward(b, policy);
            double sum = 0;
            for (idx i = 0; i < b.n_tokens; ++i)
                for (idx j = 0; j < data.y.view().cols(); ++j) sum += data.y(i, j) * data.dy(i, j);
            return sum;
        };
        loss();
        data.backward(b, policy);
        CHECK(wrong_gradient(loss, data.q.view(), data.dq.view()) == "");
        CHECK(wrong_gradient(loss, data.k.view(), data.dk.view()) == "");
        CHECK(wrong_gradient(loss, data.v.view(), data.dv.view()) == "");
    };
    for (idx group : {1, 2, 3, 8}) {
        check(shape_of(2, group, 3), batch::one(7), causal_attention{});
        check(shape_of(2, group, 3), batch::one(7), causal_attention{3});
    }
    const sequences packed({4, 0, 1, 6});
    check(shape_of(1, 2, 5), packed.rows(), causal_attention{4});
    check(shape_of(1, 2, 5), batch::one(11), chunked{3});
    check(shape_of(1, 2, 5), batch::one(11), prefix_then_causal{6, 11});
    check(shape_of(1, 2, 5), batch::one(11), earlier_groups{3, 1000});
    check(shape_of(1, 1, 2), batch::one(70), causal_attention{66}); // two tiles
    check(shape_of(1, 1, 2), batch::one(70), chunked{20});
}

TEMPLATE_TEST_CASE("attend_backward: what dq, dk and dv held does not matter", "", float_native,
                   double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    const batch b = batch::one(75);
    attention_data<T> first(shape_of(2, 2, 10), 75), data(shape_of(2, 2, 10), 75);
    for (auto* m : {&data.dq, &data.dk, &data.dv}) fill(m->view(), std::numeric_limits<T>::quiet_NaN());
    for (auto* d : {&first, &data}) {
        d->template forward<Arch>(b, causal_attention{20});
        d->template backward<Arch>(b, causal_attention{20});
    }
    CHECK(different_bits(data.dq.view(), first.dq.view()) == "");
    CHECK(different_bits(data.dk.view(), first.dk.view()) == "");
    CHECK(different_bits(data.dv.view(), first.dv.view()) == "");
}

TEST_CASE("attend: no rows") {
    attention_data<float> data(shape_of(2, 2, 8), 0);
    data.forward(batch::one(0), causal_attention{});
    data.backward(batch::one(0), causal_attention{});
    const sequences none({0, 0});
    data.forward(none.rows(), causal_attention{});
    data.backward(none.rows(), causal_attention{});
    CHECK(data.touched() == "");
    const tensor_view<float> empty(nullptr, 0, 32), keys(nullptr, 0, 16);
    const batch b = batch::one(0);
    attend<native, float>(b, data.shape, empty, packed_keys<float>{&b, keys, keys}, causal_attention{}, empty,
                          {}, data.workspace(), {});
}

TEST_CASE("attend: allocates nothing") {
    REQUIRE(allocations_are_noticed());
    attention_data<float> data(shape_of(2, 3, 16), 150);
    sluice::thread_pool pool(2);
    start_all(pool);
    REQUIRE(data.workspace().used() == 0); // and made before anything is counted
    for (executor_ref ex : {executor_ref(), executor_ref(pool)})
        CHECK(allocations_of([&] {
                  data.forward(batch::one(150), causal_attention{50}, ex);
                  data.backward(batch::one(150), causal_attention{50}, ex);
              }) == 0);
}

TEST_CASE("attend: shapes that do not fit are named") {
    const attention_shape s = shape_of(2, 2, 4);
    attention_data<float> data(s, 3);
    padded<float> other(2, 5);
    const batch b = batch::one(3);
    auto forward = [&](attention_shape shape, const batch& rows, const auto& q, const auto& y,
                       const auto& lse) {
        attend<native, float>(rows, shape, q, packed_keys<float>{&b, data.k, data.v}, causal_attention{}, y,
                              lse, data.workspace(), {});
    };
    const auto q = data.q.view(), k = data.k.view(), v = data.v.view(), y = data.y.view(),
               lse = data.lse.view();
    const auto wrong = other.view();
    CHECK_THROWS_WITH(forward({3, 2, 4}, b, q, y, lse),
                      "attention: n_heads must be a multiple of n_kv_heads");
    CHECK_THROWS_WITH(forward({4, 0, 4}, b, q, y, lse),
                      "attention: n_heads must be a multiple of n_kv_heads");
    CHECK_THROWS_WITH(forward({-2, -1, 4}, b, q, y, lse),
                      "attention: n_heads must be a multiple of n_kv_heads");
    CHECK_THROWS_WITH(forward(s, b, wrong, y, lse), "attention: q must be 3 x 16, is 2 x 5");
    CHECK_THROWS_WITH(forward(s, batch::one(4), q, y, lse), "attention: q must be 4 x 16, is 3 x 16");
    CHECK_THROWS_WITH(forward(s, b, q, wrong, lse), "attention: y must be 3 x 16, is 2 x 5");
    CHECK_THROWS_WITH(forward(s, b, q, y, wrong), "attention: lse must be 3 x 4, is 2 x 5");
    CHECK_THROWS_AS(forward(s, b, wrong, y, lse), sluice::config_error);

    auto backward = [&](const auto& k_, const auto& v_, const auto& y_, const auto& lse_, const auto& dy,
                        const auto& dq, const auto& dk, const auto& dv) {
        attend_backward<native, float>(b, s, q, k_, v_, y_, lse_, dy, causal_attention{}, dq, dk, dv,
                                       data.workspace(), {});
    };
    CHECK_NOTHROW(backward(k, v, y, lse, q, data.dq.view(), data.dk.view(), data.dv.view()));
    CHECK_THROWS_WITH(backward(wrong, v, y, lse, q, q, k, v), "attention: k must be 3 x 8, is 2 x 5");
    CHECK_THROWS_WITH(backward(k, wrong, y, lse, q, q, k, v), "attention: v must be 3 x 8, is 2 x 5");
    CHECK_THROWS_WITH(backward(k, v, wrong, lse, q, q, k, v), "attention: y must be 3 x 16, is 2 x 5");
    CHECK_THROWS_WITH(backward(k, v, y, wrong, q, q, k, v), "attention: lse must be 3 x 4, is 2 x 5");
    CHECK_THROWS_WITH(backward(k, v, y, lse, wrong, q, k, v), "attention: dy must be 3 x 16, is 2 x 5");
    CHECK_THROWS_WITH(backward(k, v, y, lse, q, wrong, k, v), "attention: dq must be 3 x 16, is 2 x 5");
    CHECK_THROWS_WITH(backward(k, v, y, lse, q, q, wrong, v), "attention: dk must be 3 x 8, is 2 x 5");
    CHECK_THROWS_WITH(backward(k, v, y, lse, q, q, k, wrong), "attention: dv must be 3 x 8, is 2 x 5");
}

TEST_CASE("attention: an output that overlaps an input is noticed") {
    shifted_views<float> m(4), spare(4), other(4);
    const tensor_view<float> a = m.first(), b = m.shifted(), c = m.apart(), d = spare.first(),
                             e = spare.apart();
    const attention_shape s{.n_heads = 2, .n_kv_heads = 2, .head_dim = 2};
    const tensor_view<float> lse(other.memory.data(), 4, 2);
    const batch rows = batch::one(4);
    arena workspace(1 << 20);
    CHECK(overlap_is_noticed([&] {
        attend(rows, s, a, packed_keys<float>{&rows, c, c}, causal_attention{}, b, lse, workspace, {});
    }));
    auto backward = [&](tensor_view<float> dq, tensor_view<float> dk, tensor_view<float> dv) {
        return overlap_is_noticed([&] {
            attend_backward(rows, s, a, c, c, c, lse, c, causal_attention{}, dq, dk, dv, workspace, {});
        });
    };
    CHECK((backward(b, d, e) && backward(d, b, e) && backward(d, e, b)));
    CHECK((backward(d, d, e) && backward(d, e, e) && backward(d, e, d) && backward(c, d, e)));
    CHECK_FALSE(backward(d, e, other.apart()));
}
