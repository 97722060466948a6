#include "support/catch.hpp"
#include <sluice/sluice.hpp>
#include <cstdio>
using namespace sluice;
template <class S, class Arch> void go(const char* name, idx m, idx k, idx n) {
    tensor<float> x(m, k), w(n, k), y(m, n), z(m, n);
    random_source r(1);
    fill_normal(x.view(), 1, r.split(0));
    fill_normal(w.view(), 1, r.split(1));
    arena mem(static_cast<std::size_t>(tensor_view<packed<S>>::elements(n, k)) + 4096), ws(std::size_t(8) << 20);
    auto p = mem.take<packed<S>>(n, k), q = p;
    pack_matrix(w.view(), p);
    matmul<Arch, float>(x.view(), p, y.view(), {}, ws, {});
    const tensor_view<packed<in_float<S>>> f(q.data(), n, k);
    matmul<Arch, float>(x.view(), f, z.view(), {}, ws, {});
    double worst = 0, exact = 0, norm = 0; std::vector<float> row(k);
    for (idx j = 0; j < n; ++j) { unpack_row(p, j, row.data());
      for (idx i = 0; i < m; ++i) { double s = 0, t = 0; for (idx c = 0; c < k; ++c) s += double(x(i, c)) * row[c], t += double(x(i,c)) * w(j,c);
        norm = std::max(norm, std::abs(t)); worst = std::max(worst, std::abs(y(i, j) - s)); exact = std::max(exact, std::abs(z(i, j) - s)); } }
    std::printf("%s %td %td %td: bytes %g float %g of %g\n", name, m, k, n, worst, exact, norm);
}
TEST_CASE("x") {
  for (idx m : {1, 5, 20, 130}) { go<int8_row, simd::native>("int8_row", m, 300, 70); go<int8_block, simd::native>("int8_block", m, 300, 70); go<int4_block, simd::native>("int4_block", m, 300, 70); go<int4_block_min, simd::native>("int4_min", m, 300, 70); }
  go<int4_block_min, simd::scalar>("int4_min scalar", 13, 300, 70); go<int8_row, simd::scalar>("row scalar", 13, 300, 70);
}
