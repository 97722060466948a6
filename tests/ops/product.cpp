#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/executors.hpp"
#include "support/random_data.hpp"

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
constexpr shape shapes[] = {{1, 1, 1},    {1, 300, 33}, {2, 257, 31},   {5, 64, 64},   {12, 40, 100},
                            {13, 17, 32}, {24, 9, 65},  {25, 300, 70},  {97, 33, 129}, {130, 256, 300},
                            {200, 5, 16}, {3, 0, 40},   {107, 513, 260}};

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
