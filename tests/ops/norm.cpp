#include "support/allocations.hpp"
#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/executors.hpp"
#include "support/random_data.hpp"

#include <sluice/ops/norm.hpp>

#include <cmath>
#include <limits>
#include <vector>

using namespace sluice::test;
using sluice::executor_ref;
using sluice::idx;
using sluice::normalise;
using sluice::normalise_backward;
using sluice::tensor_view;

namespace {

constexpr double eps = 1e-5;

template <class T>
struct norm_data {
    norm_data(idx m_, idx n_, bool centred_)
        : m(m_),
          n(n_),
          centred(centred_),
          x(uniform_matrix<T>(m, n, 1, -1, 2)),
          y(m, n),
          dy(uniform_matrix<T>(m, n, 2)),
          dx(m, n),
          scale(uniform_matrix<T>(1, n, 3, 0.5, 1.5)),
          bias(uniform_matrix<T>(1, n, 4)),
          inverse(1, m),
          mean(1, m),
          dscale(uniform_matrix<T>(1, n, 5)),
          dbias(uniform_matrix<T>(1, n, 6)) {}
    // RMSNorm without bias, LayerNorm with
    tensor_view<T> mean_or_none() { return centred ? mean.view() : tensor_view<T>(); }
    template <class Arch>
    void forward(executor_ref ex = {}) {
        normalise<Arch, T>(x, scale, centred ? tensor_view<const T>(bias) : tensor_view<const T>(), y.view(),
                           inverse.view(), mean_or_none(), T(eps), ex);
    }
    template <class Arch>
    void backward(executor_ref ex = {}) {
        normalise_backward<Arch, T>(x, scale, inverse, mean_or_none(), dy, dx.view(), dscale.view(),
                                    centred ? dbias.view() : tensor_view<T>(), ex);
    }
    std::string touched() const {
        return x.touched() + y.touched() + dy.touched() + dx.touched() + scale.touched() + bias.touched() +
               inverse.touched() + mean.touched() + dscale.touched() + dbias.touched();
    }
    idx m, n;
    bool centred;
    padded<T> x, y, dy, dx, scale, bias, inverse, mean, dscale, dbias;
};

// Forward and backward as the papers write them.
struct plain_norm {
    template <class T>
    plain_norm(norm_data<T>& data)
        : y(data.m, data.n), dx(data.m, data.n), dscale(1, data.n), dbias(1, data.n) {
        const auto count = static_cast<double>(data.n);
        auto at = [](auto& t, idx i, idx j) { return static_cast<double>(t(i, j)); };
        for (idx j = 0; j < data.n; ++j) {
            dscale(0, j) = {at(data.dscale, 0, j), 1};
            dbias(0, j) = {at(data.dbias, 0, j), 1};
        }
        for (idx i = 0; i < data.m; ++i) {
            double mean = 0, squares = 0, mean_g = 0, mean_gh = 0, g_size = 0, gh_size = 0;
            for (idx j = 0; j < data.n; ++j) mean += data.centred ? at(data.x, i, j) / count : 0;
            for (idx j = 0; j < data.n; ++j) squares += std::pow(at(data.x, i, j) - mean, 2);
            const double r = 1 / std::sqrt(squares / count + eps);
            std::vector<double> h, size;
            for (idx j = 0; j < data.n; ++j) {
                h.push_back((at(data.x, i, j) - mean) * r);
                size.push_back((std::abs(at(data.x, i, j)) + 2) * r);
                const double g = at(data.dy, i, j) * at(data.scale, 0, j) / count;
                mean_g += data.centred ? g : 0;
                g_size += data.centred ? std::abs(g) : 0;
                mean_gh += g * h.back();
                gh_size += std::abs(g) * size.back();
            }
            for (idx j = 0; j < data.n; ++j) {
                const auto k = static_cast<std::size_t>(j);
                const double scale = at(data.scale, 0, j), bias = data.centred ? at(data.bias, 0, j) : 0;
                const double d = at(data.dy, i, j), g = d * scale;
                y(i, j) = {h[k] * scale + bias, size[k] * scale * (1 + r) + std::abs(bias)};
                dx(i, j) = {r * (g - mean_g - h[k] * mean_gh),
                            r * (1 + r) * (std::abs(g) + g_size + size[k] * gh_size)};
                dscale(0, j).value += d * h[k];
                dscale(0, j).size += std::abs(d) * size[k] * (1 + r);
                dbias(0, j).value += d;
                dbias(0, j).size += std::abs(d);
            }
        }
    }
    oracle y, dx, dscale, dbias;
};

} // namespace

TEMPLATE_TEST_CASE("norm: RMSNorm and LayerNorm forward and backward", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    for (bool centred : {false, true})
        for (idx n : {5, 16, 63, 64, 65, 130, 257})
            for (idx m : {1, 2, 13}) {
                norm_data<T> data(m, n, centred);
                const plain_norm want(data);
                data.template forward<Arch>();
                data.template backward<Arch>();
                CAPTURE(centred, m, n);
                const tolerance limit{.chain = n + m, .nmse = sizeof(T) == 4 ? 1e-11 : 1e-26};
                REQUIRE(compare(data.y.view(), want.y, limit) == "");
                REQUIRE(compare(data.dx.view(), want.dx, limit) == "");
                REQUIRE(compare(data.dscale.view(), want.dscale, limit) == "");
                if (centred) REQUIRE(compare(data.dbias.view(), want.dbias, limit) == "");
                REQUIRE(data.touched() == "");
            }
}

TEMPLATE_TEST_CASE("norm: y may be x and dx may be dy", "", float_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    for (bool centred : {false, true}) {
        norm_data<T> data(7, 131, centred);
        data.template forward<Arch>();
        data.template backward<Arch>();
        norm_data<T> same(7, 131, centred);
        copy(data.inverse.view(), same.inverse.view());
        copy(data.mean.view(), same.mean.view());
        normalise_backward<Arch, T>(same.x, same.scale, same.inverse, same.mean_or_none(), same.dy,
                                    same.dy.view(), same.dscale.view(),
                                    centred ? same.dbias.view() : tensor_view<T>(), {});
        CHECK(different_bits(same.dy.view(), data.dx.view()) == "");
        CHECK(different_bits(same.dscale.view(), data.dscale.view()) == "");
        normalise<Arch, T>(same.x, same.scale,
                           centred ? tensor_view<const T>(same.bias) : tensor_view<const T>(), same.x.view(),
                           same.inverse.view(), same.mean_or_none(), T(eps), {});
        CHECK(different_bits(same.x.view(), data.y.view()) == "");
    }
}

TEMPLATE_TEST_CASE("norm: bits depend on neither the executor nor the other rows", "", float_native,
                   float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    for (bool centred : {false, true}) {
        norm_data<T> first(37, 200, centred);
        first.template forward<Arch>();
        first.template backward<Arch>();
        for_each_executor([&](executor_ref ex, const std::string& name) {
            norm_data<T> data(37, 200, centred);
            data.template forward<Arch>(ex);
            data.template backward<Arch>(ex);
            INFO(name);
            CHECK(different_bits(data.y.view(), first.y.view()) == "");
            CHECK(different_bits(data.inverse.view(), first.inverse.view()) == "");
            CHECK(different_bits(data.mean.view(), first.mean.view()) == "");
            CHECK(different_bits(data.dx.view(), first.dx.view()) == "");
            CHECK(different_bits(data.dscale.view(), first.dscale.view()) == "");
            CHECK(different_bits(data.dbias.view(), first.dbias.view()) == "");
        });
        for (idx i = 0; i < 37; ++i) {
            norm_data<T> one(1, 200, centred);
            copy(first.x.view().row_block(i, 1), one.x.view());
            copy(first.dy.view().row_block(i, 1), one.dy.view());
            one.template forward<Arch>();
            one.template backward<Arch>();
            CHECK(different_bits(one.y.view(), first.y.view().row_block(i, 1)) == "");
            CHECK(different_bits(one.dx.view(), first.dx.view().row_block(i, 1)) == "");
        }
    }
}

TEMPLATE_TEST_CASE("norm: NaN and infinity in a row touch that row only", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    for (bool centred : {false, true}) {
        norm_data<T> clean(9, 75, centred), data(9, 75, centred);
        data.x(4, 74) = std::numeric_limits<T>::quiet_NaN();
        data.x(6, 0) = std::numeric_limits<T>::infinity();
        for (auto* d : {&clean, &data}) {
            d->template forward<Arch>();
            d->template backward<Arch>();
        }
        CHECK(not_all_nan(data.y.view(), 4) == "");
        CHECK(not_all_nan(data.dx.view(), 4) == "");
        CHECK(std::isnan(data.y(6, 0)));
        for (idx i : {0, 1, 2, 3, 5, 7, 8}) {
            CHECK(different_bits(data.y.view().row_block(i, 1), clean.y.view().row_block(i, 1)) == "");
            CHECK(different_bits(data.dx.view().row_block(i, 1), clean.dx.view().row_block(i, 1)) == "");
        }
    }
}

TEST_CASE("norm: backward is the gradient of forward") {
    for (bool centred : {false, true}) {
        norm_data<double> data(3, 7, centred);
        auto loss = [&] {
            data.forward<sluice::simd::native>();
            double sum = 0;
            for (idx i = 0; i < 3; ++i)
                for (idx j = 0; j < 7; ++j) sum += data.y(i, j) * data.dy(i, j);
            return sum;
        };
        loss();
        fill(data.dscale.view(), 0.0);
        fill(data.dbias.view(), 0.0);
        data.backward<sluice::simd::native>();
        CHECK(wrong_gradient(loss, data.x.view(), data.dx.view()) == "");
        CHECK(wrong_gradient(loss, data.scale.view(), data.dscale.view()) == "");
        if (centred) CHECK(wrong_gradient(loss, data.bias.view(), data.dbias.view()) == "");
    }
}

TEMPLATE_TEST_CASE("norm: no rows and rows of zeros", "", float_native, double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    for (bool centred : {false, true}) {
        norm_data<T> none(0, 70, centred);
        const padded<T> before = none.dscale;
        none.template forward<Arch>();
        none.template backward<Arch>();
        CHECK(different_bits(none.dscale.view(), before.view()) == "");
        CHECK(none.touched() == "");
        norm_data<T> zeros(2, 33, centred);
        fill(zeros.x.view(), T(0));
        zeros.template forward<Arch>();
        for (idx j = 0; j < 33; ++j) CHECK(zeros.y(1, j) == (centred ? zeros.bias(0, j) : T(0)));
    }
}

TEST_CASE("norm: shapes that do not fit are named") {
    padded<float> x(3, 8), y(3, 8), scale(1, 8), row3(1, 3), row9(1, 9), none(0, 0);
    const tensor_view<float> empty;
    auto forward = [&](const auto& s, const auto& b, const auto& out, const auto& r, const auto& m) {
        normalise<sluice::simd::native, float>(x, s, b, out, r, m, 1e-5F, {});
    };
    CHECK_THROWS_WITH(forward(scale, empty, row9.view(), row3.view(), empty),
                      "normalise: y must be 3 x 8, is 1 x 9");
    CHECK_THROWS_WITH(forward(row9, empty, y.view(), row3.view(), empty),
                      "normalise: scale must be 1 x 8, is 1 x 9");
    CHECK_THROWS_WITH(forward(scale, row9, y.view(), row3.view(), empty),
                      "normalise: bias must be 1 x 8, is 1 x 9");
    CHECK_THROWS_WITH(forward(scale, empty, y.view(), scale.view(), empty),
                      "normalise: inverse must be 1 x 3, is 1 x 8");
    CHECK_THROWS_WITH(forward(scale, empty, y.view(), row3.view(), scale.view()),
                      "normalise: mean must be 1 x 3, is 1 x 8");
    auto backward = [&](const auto& s, const auto& r, const auto& m, const auto& dy, const auto& dx,
                        const auto& ds, const auto& db) {
        normalise_backward<sluice::simd::native, float>(x, s, r, m, dy, dx, ds, db, {});
    };
    CHECK_THROWS_WITH(backward(scale, row3, empty, row9, y.view(), scale.view(), empty),
                      "normalise_backward: dy must be 3 x 8, is 1 x 9");
    CHECK_THROWS_WITH(backward(scale, row3, empty, y, row9.view(), scale.view(), empty),
                      "normalise_backward: dx must be 3 x 8, is 1 x 9");
    CHECK_THROWS_WITH(backward(scale, row3, empty, y, y.view(), row9.view(), empty),
                      "normalise_backward: dscale must be 1 x 8, is 1 x 9");
    CHECK_THROWS_WITH(backward(row9, row3, empty, y, y.view(), scale.view(), empty),
                      "normalise_backward: scale must be 1 x 8, is 1 x 9");
    CHECK_THROWS_WITH(backward(scale, row9, empty, y, y.view(), scale.view(), empty),
                      "normalise_backward: inverse must be 1 x 3, is 1 x 9");
    CHECK_THROWS_WITH(backward(scale, row3, row9, y, y.view(), scale.view(), empty),
                      "normalise_backward: mean must be 1 x 3, is 1 x 9");
    CHECK_THROWS_WITH(backward(scale, row3, row3, y, y.view(), scale.view(), row9.view()),
                      "normalise_backward: dbias must be 1 x 8, is 1 x 9");
    CHECK_THROWS_AS(forward(row9, empty, y.view(), row3.view(), empty), sluice::config_error);
}

TEST_CASE("norm: a bias without rows is no bias") {
    norm_data<float> data(2, 8, false);
    data.forward<sluice::simd::native>();
    padded<float> y(2, 8);
    normalise<sluice::simd::native, float>(data.x, data.scale, data.bias.view().row_block(0, 0), y.view(),
                                           data.inverse.view(), {}, static_cast<float>(eps), {});
    CHECK(different_bits(y.view(), data.y.view()) == "");
}

TEST_CASE("norm: allocates nothing") {
    REQUIRE(allocations_are_noticed());
    norm_data<float> data(40, 130, true);
    sluice::thread_pool pool(2);
    start_all(pool);
    for (executor_ref ex : {executor_ref(), executor_ref(pool)})
        CHECK(allocations_of([&] {
                  data.forward<sluice::simd::native>(ex);
                  data.backward<sluice::simd::native>(ex);
              }) == 0);
}

TEST_CASE("norm: an output that overlaps an input is noticed") {
    shifted_views<float> m(4);
    std::vector<float> other(4);
    const tensor_view<float> a = m.first(), b = m.shifted(), c = m.apart(), v(other.data(), 1, 4);
    CHECK(overlap_is_noticed([&] { normalise(a, v, {}, b, v, {}, 0.1F, {}); }));
    CHECK(overlap_is_noticed([&] { normalise(c, a.row_block(0, 1), {}, a, v, {}, 0.1F, {}); }));
    CHECK(overlap_is_noticed([&] { normalise_backward(c, v, v, {}, a, b, v, {}, {}); }));
    CHECK(overlap_is_noticed([&] { normalise_backward(a, v, v, {}, c, a, v, {}, {}); }));
}
