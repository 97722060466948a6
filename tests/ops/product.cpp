#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/executors.hpp"
#include "support/random_data.hpp"

#include <sluice/core/tensor.hpp>
#include <sluice/ops/matmul.hpp>

#include <cstring>
#include <vector>

using namespace sluice::test;
using sluice::bf16;
using sluice::idx;
using sluice::packed;
using sluice::tensor_view;

namespace {

// A packed copy in memory of its own.
template <class S>
struct packed_copy {
    template <class W>
    explicit packed_copy(const tensor_view<W>& w)
        : memory(static_cast<std::size_t>(tensor_view<packed<S>>::elements(w.rows(), w.cols()))),
          view(memory.data(), w.rows(), w.cols()) {
        sluice::pack_matrix(w, view);
    }
    std::vector<S> memory;
    tensor_view<packed<S>> view;
};

struct shape {
    idx m, k, n;
};
constexpr shape shapes[] = {{1, 1, 1},    {1, 300, 33}, {2, 257, 31},    {5, 64, 64},     {12, 40, 100},
                            {13, 17, 32}, {24, 9, 65},  {25, 300, 70},   {97, 33, 129},   {130, 256, 300},
                            {200, 5, 16}, {3, 0, 40},   {107, 513, 260}, {250, 1030, 290}};

} // namespace

TEMPLATE_TEST_CASE("product: packed weights give the bits of plain ones", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    for (const auto [m, k, n] : shapes) {
        padded<T> x = uniform_matrix<T>(m, k, 1), w = uniform_matrix<T>(n, k, 2), y(m, n), z(m, n);
        const packed_copy<T> p(w.view());
        sluice::arena workspace(1 << 24);
        sluice::matmul<Arch, T>(x, w, y.view(), {}, workspace, {});
        sluice::matmul<Arch, T>(x, p.view, z.view(), {}, workspace, {});
        CAPTURE(m, k, n);
        CHECK(different_bits(y.view(), z.view()) == "");
        CHECK(y.touched() + z.touched() == "");
    }
}

TEMPLATE_TEST_CASE("product: bf16 weights, plain and packed, give the bits of the floats they stand for", "",
                   float_native, float_scalar) {
    using Arch = typename TestType::arch;
    for (const auto [m, k, n] : shapes) {
        padded<float> x = uniform_matrix<float>(m, k, 1), w = uniform_matrix<float>(n, k, 2), y(m, n),
                      z(m, n);
        std::vector<bf16> narrow;
        for (idx i = 0; i < n; ++i)
            for (idx j = 0; j < k; ++j) {
                narrow.push_back(sluice::to_bf16(w(i, j)));
                w(i, j) = sluice::to_float(narrow.back());
            }
        const tensor_view<const bf16> plain(narrow.data(), n, k);
        const packed_copy<bf16> p(plain), q(w.view());
        sluice::arena workspace(1 << 24);
        sluice::matmul<Arch, float>(x, w, y.view(), {}, workspace, {});
        CAPTURE(m, k, n);
        sluice::matmul<Arch, float>(x, plain, z.view(), {}, workspace, {});
        CHECK(different_bits(y.view(), z.view()) == "");
        for (const auto& view : {p.view, q.view}) {
            sluice::matmul<Arch, float>(x, view, z.view(), {}, workspace, {});
            CHECK(different_bits(y.view(), z.view()) == "");
        }
    }
}

TEST_CASE("product: an activation is applied to the finished sum") {
    padded<float> x = uniform_matrix<float>(31, 300, 1), w = uniform_matrix<float>(70, 300, 2), y(31, 70),
                  z(31, 70);
    padded<float> bias = uniform_matrix<float>(1, 70, 3);
    sluice::arena workspace(1 << 22);
    using enum sluice::activation;
    for (auto kind : {silu, gelu, relu}) {
        sluice::matmul<sluice::simd::native, float>(x, w, y.view(), {.bias = bias.view()}, workspace, {});
        sluice::with_activation(kind, [&](auto k) {
            for (idx i = 0; i < 31; ++i)
                sluice::kernels::activation_forward<decltype(k)::value>{}(
                    sluice::simd::native{}, static_cast<const float*>(y.view().row(i)),
                    static_cast<const float*>(nullptr), y.view().row(i), idx{70});
        });
        sluice::matmul<sluice::simd::native, float>(x, w, z.view(), {.bias = bias.view(), .act = kind},
                                                    workspace, {});
        CHECK(different_bits(y.view(), z.view()) == "");
    }
}

TEST_CASE("product: every number of workers and every row count gives the same bits for packed weights") {
    padded<float> x = uniform_matrix<float>(140, 300, 1), w = uniform_matrix<float>(290, 300, 2), y(140, 290);
    const packed_copy<float> p(w.view());
    const packed_copy<bf16> q(w.view());
    auto check = [&](const auto& weights) {
        sluice::arena workspace(1 << 24);
        sluice::matmul<sluice::simd::native, float>(x, weights, y.view(), {}, workspace, {});
        for_each_executor([&](sluice::executor_ref ex, const std::string&) {
            padded<float> z(140, 290);
            sluice::matmul<sluice::simd::native, float>(x, weights, z.view(), {}, workspace, ex);
            CHECK(different_bits(y.view(), z.view()) == "");
        });
        for (idx rows : {1, 2, 11, 12, 23, 24, 25, 48, 97}) {
            padded<float> z(rows, 290);
            sluice::matmul<sluice::simd::native, float>(x.view().row_block(140 - rows, rows), weights,
                                                        z.view(), {}, workspace, {});
            CHECK(different_bits(z.view(), y.view().row_block(140 - rows, rows)) == "");
        }
    };
    check(p.view);
    check(q.view);
}

TEMPLATE_TEST_CASE("product: sums that wait beside the result start from it where it is the residual", "",
                   float_native, double_native) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    constexpr idx m = 250, k = 1030, n = 290;
    padded<T> x = uniform_matrix<T>(m, k, 1), w = uniform_matrix<T>(n, k, 2), y = uniform_matrix<T>(m, n, 3);
    const packed_copy<T> p(w.view());
    sluice::arena workspace(1 << 24);
    sluice::matmul<Arch, T>(x, w, y.view(), {.residual = y.view()}, workspace, {});
    for_each_executor([&](sluice::executor_ref ex, const std::string&) {
        padded<T> z = uniform_matrix<T>(m, n, 3);
        sluice::matmul<Arch, T>(x, p.view, z.view(), {.residual = z.view()}, workspace, ex);
        CHECK(different_bits(y.view(), z.view()) == "");
        CHECK(z.touched() == "");
    });
}

namespace {

// Products of one region, with rows of their own of one matrix x.
template <class W>
struct region {
    region(std::vector<tensor_view<W>> w_, std::vector<idx> rows_, idx k, idx n)
        : w(std::move(w_)), rows(std::move(rows_)) {
        idx all = 0;
        for (const idx m : rows) first.push_back(std::exchange(all, all + m));
        x = sluice::tensor<float>(all, k);
        y = sluice::tensor<float>(all, n);
        fill_uniform(x.view(), 5);
    }
    auto product(idx i, bool whole = false) {
        const auto e = static_cast<std::size_t>(i);
        const idx at = whole ? 0 : first[e], m = whole ? x.rows() : rows[e];
        auto p = sluice::detail::make_product<sluice::simd::native>(sluice::in<float>(x).row_block(at, m),
                                                                    w[e], y.view().row_block(at, m), {});
        p.grouped = true;
        return p;
    }
    template <class F>
    void run(sluice::executor_ref ex, const F& then) {
        const auto n = static_cast<idx>(rows.size());
        sluice::arena memory(1 << 24);
        sluice::detail::run_products<float>(
            n, product(0, true), [&](idx i) { return product(i); }, memory, ex, then);
    }
    std::vector<tensor_view<W>> w;
    std::vector<idx> rows, first;
    sluice::tensor<float> x, y;
};

// Parts [i, i + 1) of eight, one after another, and where each ended.
struct eighths {
    idx concurrency() const { return 8; }
    void run(idx n, sluice::task_ref task) const {
        for (idx part = 0; part < 8; ++part) {
            task(n * part / 8, n * (part + 1) / 8, part);
            ended.push_back(*done);
        }
    }
    const idx* done;
    mutable std::vector<idx> ended;
};

} // namespace

TEST_CASE("product: several in a region give the bits that each has alone") {
    const std::vector<idx> rows{0, 3, 130, 1, 12, 0, 13, 60, 97};
    const idx k = 1300, n = 300;
    std::vector<padded<float>> w;
    std::vector<packed_copy<float>> panels;
    std::vector<packed_copy<bf16>> narrow;
    std::vector<tensor_view<float>> plain_views;
    std::vector<tensor_view<packed<float>>> packed_views;
    std::vector<tensor_view<packed<bf16>>> narrow_views;
    for (std::size_t i = 0; i < rows.size(); ++i) {
        w.push_back(uniform_matrix<float>(n, k, 10 + i));
        panels.emplace_back(w.back().view());
        narrow.emplace_back(w.back().view());
    }
    for (std::size_t i = 0; i < rows.size(); ++i) {
        plain_views.push_back(w[i].view());
        packed_views.push_back(panels[i].view);
        narrow_views.push_back(narrow[i].view);
    }
    auto check = [&](auto views) {
        region r(std::move(views), rows, k, n);
        sluice::tensor<float> want(r.y.rows(), n);
        sluice::arena memory(1 << 24);
        for (std::size_t i = 0; i < rows.size(); ++i)
            sluice::matmul(sluice::in<float>(r.x).row_block(r.first[i], rows[i]), r.w[i],
                           want.view().row_block(r.first[i], rows[i]), {}, memory, {});
        for_each_executor([&](sluice::executor_ref ex, const std::string& name) {
            INFO(name);
            sluice::fill(r.y.view(), 7.0F);
            r.run(ex, [](idx, const auto&, const auto&) {});
            CHECK(different_bits(r.y.view(), want.view()) == "");
        });
    };
    check(plain_views);
    check(packed_views);
    check(narrow_views);
}

TEST_CASE("product: workers share a region by its work, wherever the rows are") {
    const idx k = 64, n = 512;
    const padded<float> one = uniform_matrix<float>(n, k, 3);
    const packed_copy<float> panels(one.view());
    std::vector<idx> rows(64, 5);
    rows[0] = rows[1] = 700; // nearly all of it in the first two products
    rows[2] = 0;
    region r(std::vector<tensor_view<packed<float>>>(64, panels.view), rows, k, n);
    std::vector<idx> work;
    idx done = 0;
    eighths ex{&done, {}};
    r.run(ex,
          [&](idx, const auto& block, const auto&) { done += std::max<idx>(block.rows, 12) * block.cols; });
    for (std::size_t i = 0; i < 8; ++i) {
        const idx before = i == 0 ? 0 : ex.ended[i - 1];
        // as even as whole blocks allow, whose size depends on the registers
        CHECK(static_cast<double>(ex.ended[i] - before) < 2.0 * static_cast<double>(done) / 8);
    }
}
