#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/executors.hpp"
#include "support/random_data.hpp"

#include <sluice/core/tensor.hpp>
#include <sluice/ops/segment.hpp>

#include <numeric>
#include <string>

using namespace sluice::test;
using sluice::arena;
using sluice::batch;
using sluice::concept_forming;
using sluice::executor_ref;
using sluice::idx;
using sluice::in;
using sluice::segment_past;
using sluice::tensor;
using sluice::tensor_view;

namespace {

// Sequences cut as digits say, a segment each: {"312", "", "1"} is 3 + 1 + 2 tokens, none, and one.
struct cut_text {
    explicit cut_text(const std::vector<std::string>& lengths, concept_forming form,
                      const segment_past<double>* past = nullptr)
        : memory(std::size_t{1} << 16) {
        for (const std::string& digits : lengths) {
            for (const char c : digits)
                for (int i = 0; i < c - '0'; ++i) starts.push_back(i == 0 ? 1 : 0);
            offsets.push_back(static_cast<idx>(starts.size()));
        }
        cut(form, past);
    }
    void cut(concept_forming form, const segment_past<double>* past) {
        b = {.n_tokens = offsets.back(), .offsets = offsets};
        for (idx i = 0; i < b.n_tokens; ++i) p.push_back(0.5 + static_cast<double>(i) / 1000);
        s = sluice::segments<double>::take(memory, b);
        s.number(0, [&](idx q) { return sluice::segments<double>::made(b, q, starts.data(), form, past); });
        s.take_made(memory);
        s.place(past);
        s.fill(b, starts.data(), p.data(), form, past);
    }
    cut_text(const cut_text&) = delete;
    template <class V>
    static std::vector<idx> list(const V* from, idx n) {
        return {from, from + n};
    }
    std::vector<idx> seen() const { return list(s.seen, b.n_tokens); }
    std::vector<idx> lengths() const {
        std::vector<idx> n;
        for (idx k = 0; k < s.to.n_tokens; ++k) n.push_back(s.length(k));
        return n;
    }

    arena memory;
    std::vector<std::uint8_t> starts;
    std::vector<idx> offsets{0};
    std::vector<double> p;
    batch b;
    sluice::segments<double> s;
};
using indices = std::vector<idx>;

constexpr auto mean = concept_forming::mean, token = concept_forming::boundary_token,
               leaking = concept_forming::leaking_mean;

} // namespace

TEST_CASE("segments tile a sequence, and tokens see those before them or their own") {
    const cut_text text({"312", "", "4", "11"}, mean);
    CHECK(text.seen() == indices{0, 0, 0, 1, 2, 2, 0, 0, 0, 0, 0, 1});
    CHECK(text.lengths() == indices{3, 1, 1}); // the last of each sequence is open
    CHECK(cut_text::list(text.s.to.offsets.data(), 5) == indices{0, 2, 2, 2, 3});
    CHECK(cut_text::list(text.s.to.positions.data(), 3) == indices{0, 1, 0});
    CHECK(cut_text::list(text.s.age, 6) == indices{1, 2, 3, 1, 1, 2});
    CHECK(text.s.p[1] == 0.503);
    for (const auto form : {token, leaking}) {
        const cut_text all({"312", "", "4", "11"}, form);
        CHECK(all.seen() == indices{1, 1, 1, 2, 3, 3, 1, 1, 1, 1, 1, 2});
        CHECK(all.lengths() == indices{3, 1, 2, 4, 1, 1});
        CHECK(all.s.begin[2] == 4);
        CHECK(all.s.end[2] == 6);
    }
}

TEST_CASE("a segment goes on in a later call") {
    const double sum[] = {10}, scan[] = {0}, smooth[] = {0};
    const segment_past<double> past[] = {{7, 2, 3, 0.9, sum, scan, smooth}, {}};
    cut_text text({"32", "2"}, mean);
    for (const auto& starts : {std::vector<std::uint8_t>{0, 1, 0, 1, 0, 1, 0}, {1, 0, 0, 1, 0, 1, 0}}) {
        text.starts = starts;
        text.cut(mean, past);
        CHECK(text.s.to.n_tokens == 2);
        CHECK(text.s.before[0] == 2);
        CHECK(text.s.p[0] == 0.9);
        CHECK(text.s.length(0) == (starts[0] != 0 ? 2 : 3));
        CHECK(cut_text::list(text.s.to.positions.data(), 2) == indices{3, 4});
        CHECK(text.seen()[4] == 5);
        tensor<double> h(7, 1), y(2, 1);
        fill(h.view(), 1.0);
        sluice::segment_rows<sluice::simd::native, double>(h, text.s, mean, past, y.view(), {});
        CHECK(y(0, 0) == (starts[0] != 0 ? 5.0 : 11.0 / 3));
        CHECK(y(1, 0) == 1);
    }
    text.starts = {0, 0, 1, 0, 0, 1, 0}; // one of boundary tokens counts as soon as it begins
    text.cut(token, past);
    CHECK(text.s.to.n_tokens == 2);
    CHECK(text.seen() == indices{3, 3, 4, 4, 4, 1, 1});
    CHECK(text.s.age[1] == 4);
}

TEST_CASE("rows of segments are means in the order of tokens") {
    const cut_text text({"42131", "3"}, leaking);
    auto h = uniform_matrix<double>(14, 70, 1);
    tensor<double> y(6, 70);
    for_each_executor([&](executor_ref ex, const std::string& name) {
        INFO(name);
        fill(y.view(), 0.0);
        sluice::segment_rows<sluice::simd::native, double>(h.view(), text.s, leaking, nullptr, y.view(), ex);
        for (idx k = 0; k < 6; ++k)
            for (idx j = 0; j < 70; ++j) {
                double sum = h(text.s.begin[k], j);
                for (idx i = text.s.begin[k] + 1; i < text.s.end[k]; ++i) sum += h(i, j);
                CHECK(y(k, j) == sum * (1 / static_cast<double>(text.s.length(k))));
            }
    });
    auto same = h; // the order of a segment's tokens says nothing about its mean
    for (idx j = 0; j < 70; ++j) std::swap(same(0, j), same(3, j));
    tensor<double> again(6, 70), constant(14, 70);
    sluice::segment_rows<sluice::simd::native, double>(same.view(), text.s, leaking, nullptr, again.view(),
                                                       {});
    for (idx j = 0; j < 70; ++j) CHECK(std::abs(again(0, j) - y(0, j)) < 1e-15);
    for (idx i = 0; i < 14; ++i)
        for (idx j = 0; j < 70; ++j) constant(i, j) = static_cast<double>(j);
    sluice::segment_rows<sluice::simd::native, double>(constant, text.s, leaking, nullptr, again.view(), {});
    for (idx j = 0; j < 70; ++j) CHECK(std::abs(again(3, j) - static_cast<double>(j)) < 1e-13);
    sluice::segment_rows<sluice::simd::native, double>(h.view(), text.s, token, nullptr, again.view(), {});
    for (idx k = 0; k < 6; ++k) CHECK(again(k, 9) == h(text.s.begin[k], 9));

    const cut_text ones({"11111"}, leaking); // every token its own
    sluice::segment_rows<sluice::simd::native, double>(h.view().row_block(0, 5), ones.s, leaking, nullptr,
                                                       y.view().row_block(0, 5), {});
    CHECK(different_bits(in<double>(y.view().row_block(0, 5)), h.view().row_block(0, 5)) == "");
}

TEST_CASE("their gradient is the adjoint") {
    for (const auto form : {mean, token, leaking}) {
        const cut_text text({"42131", "", "3"}, form);
        const idx m = text.s.to.n_tokens;
        auto h = uniform_matrix<double>(14, 9, 1), dy = uniform_matrix<double>(m, 9, 2);
        tensor<double> y(m, 9), dh(14, 9);
        sluice::segment_rows<sluice::simd::native, double>(h.view(), text.s, form, nullptr, y.view(), {});
        sluice::segment_rows_backward<sluice::simd::native, double>(dy.view(), text.s, form, dh.view(), {});
        double left = 0, right = 0;
        for (idx k = 0; k < m; ++k)
            for (idx j = 0; j < 9; ++j) left += y(k, j) * dy(k, j);
        for (idx i = 0; i < 14; ++i)
            for (idx j = 0; j < 9; ++j) right += h(i, j) * dh(i, j);
        CHECK(std::abs(left - right) < 1e-12);
        CHECK(std::abs(left) > 1e-3);
    }
}

TEST_CASE("a running average is a loop, however it is cut") {
    const idx n = 9, d = 70;
    const std::vector<idx> offsets{0, 6, 6, 9};
    const batch b{.n_tokens = n, .offsets = offsets};
    auto z = uniform_matrix<double>(n, d, 1);
    std::vector<double> a{0.3, 0.9, 0.0001, 0.5, 1, 0.25, 0.4, 0.6, 0.7};
    tensor<double> y(n, d), want(n, d);
    for (idx s = 0; s < 3; ++s)
        for (idx k = b.first_token(s); k < b.first_token(s) + b.tokens(s); ++k)
            for (idx j = 0; j < d; ++j) {
                const double w = a[static_cast<std::size_t>(k)];
                want(k, j) = k == b.first_token(s) ? z(k, j) : w * z(k, j) + (1 - w) * want(k - 1, j);
            }
    for_each_executor([&](executor_ref ex, const std::string& name) {
        INFO(name);
        fill(y.view(), 0.0);
        sluice::smooth_rows<sluice::simd::native, double>(b, z.view(), a.data(), nullptr, y.view(), ex);
        for (idx k = 0; k < n; ++k)
            for (idx j = 0; j < d; ++j) CHECK(std::abs(y(k, j) - want(k, j)) < 1e-15);
    });
    CHECK(different_bits(in<double>(y.view().row_block(4, 1)), z.view().row_block(4, 1)) == ""); // a = 1
    for (idx j = 0; j < d; ++j) CHECK(std::abs(y(2, j) - y(1, j)) < 3e-4);                       // a near 0

    tensor<double> parts(6, d);
    for (const idx cut : {1, 2, 5}) {
        const auto first = parts.view().row_block(0, cut), rest = parts.view().row_block(cut, 6 - cut);
        sluice::smooth_rows<sluice::simd::native, double>(batch::one(cut), z.view().row_block(0, cut),
                                                          a.data(), nullptr, first, {});
        const segment_past<double> past{.tokens = 9, .concepts = cut, .smooth = first.row(cut - 1)};
        sluice::smooth_rows<sluice::simd::native, double>(
            batch::one(6 - cut), z.view().row_block(cut, 6 - cut), a.data() + cut, &past, rest, {});
        CHECK(different_bits(in<double>(parts), in<double>(y.view().row_block(0, 6))) == "");
    }
}

TEST_CASE("slopes of the running average") {
    const idx n = 7, d = 5;
    const std::vector<idx> offsets{0, 4, 4, 7};
    const batch b{.n_tokens = n, .offsets = offsets};
    auto z = uniform_matrix<double>(n, d, 1);
    auto dy = uniform_matrix<double>(n, d, 2);
    tensor<double> a(1, n), y(n, d), dz(n, d), da(1, n);
    for (idx k = 0; k < n; ++k) a(0, k) = 0.2 + 0.1 * static_cast<double>(k);
    auto value = [&] {
        sluice::smooth_rows<sluice::simd::native, double>(b, z.view(), a.data(), nullptr, y.view(), {});
        double sum = 0;
        for (idx k = 0; k < n; ++k)
            for (idx j = 0; j < d; ++j) sum += y(k, j) * dy(k, j);
        return sum;
    };
    value();
    sluice::smooth_rows_backward<sluice::simd::native, double>(b, z.view(), a.data(), y, dy.view(), dz.view(),
                                                               da.data(), {});
    CHECK(wrong_gradient(value, z.view(), dz.view()) == "");
    CHECK(wrong_gradient(value, a.view(), da.view()) == "");
}

TEST_CASE("counts of steps add up") {
    sluice::boundary_counts c{.tokens = 6, .boundaries = 2, .probability = 3};
    c += {.tokens = 4, .boundaries = 3, .probability = 1};
    CHECK(c.share() == 0.5);
    CHECK(c.mean() == 0.4);
    CHECK(std::abs(c.loss_slope(4) - 4 * (4 * 0.5 - 1) / 3 / 10) < 1e-15);
    CHECK(sluice::boundary_counts{}.loss_slope(4) == 0);
}
