#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/random_data.hpp"

#include <sluice/kernels/norm.hpp>

#include <cmath>
#include <vector>

using namespace sluice::test;
using sluice::idx;
using sluice::tensor_view;
using sluice::kernels::norm_dscale;
using sluice::kernels::norm_dx;
using sluice::kernels::norm_dx_args;
using sluice::kernels::norm_rows;
using sluice::kernels::norm_rows_args;

namespace {

constexpr double eps = 1e-5;

// One row as the papers write it; `width` is the same with positive terms.
struct plain_row {
    template <class T>
    plain_row(const T* x, idx n, bool centred) {
        const auto count = static_cast<double>(n);
        double absolute = 0, squares = 0;
        for (idx j = 0; j < n; ++j) {
            mean += centred ? static_cast<double>(x[j]) / count : 0;
            absolute += centred ? std::abs(static_cast<double>(x[j])) / count : 0;
        }
        for (idx j = 0; j < n; ++j)
            squares += (static_cast<double>(x[j]) - mean) * (static_cast<double>(x[j]) - mean);
        inverse = 1 / std::sqrt(squares / count + eps);
        for (idx j = 0; j < n; ++j) {
            h.push_back((static_cast<double>(x[j]) - mean) * inverse);
            width.push_back((std::abs(static_cast<double>(x[j])) + absolute) * inverse);
        }
    }
    double mean = 0, inverse = 0;
    std::vector<double> h, width;
};

std::vector<idx> row_widths() {
    std::vector<idx> all{256, 257, 300};
    for (idx n = 1; n <= 67; ++n) all.push_back(n);
    return all;
}

// Inputs whose last elements end with their pages, so that no tail can be read past.
template <class T>
struct norm_data {
    norm_data(idx rows_, idx n_) : rows(rows_), n(n_), x(rows_ * n_), dy(rows_ * n_), scale(n_), bias(n_) {
        const auto key = static_cast<std::uint64_t>(7 * n);
        fill_uniform(x.row(), key, -1, 2);
        fill_uniform(dy.row(), key + 1);
        fill_uniform(scale.row(), key + 2, 0.5, 1.5);
        fill_uniform(bias.row(), key + 3);
    }
    plain_row plain(idx i, bool centred) { return {x.data() + i * n, n, centred}; }
    double dy_at(idx i, idx j) { return static_cast<double>(dy[i * n + j]); }
    double scale_at(idx j) { return static_cast<double>(scale[j]); }
    idx rows, n;
    page_end<T> x, dy, scale, bias;
};

} // namespace

TEMPLATE_TEST_CASE("norm_rows: both norms, with and without bias, for all widths", "", float_native,
                   float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    constexpr idx rows = 3;
    for (idx n : row_widths())
        for (bool centred : {false, true})
            for (bool biased : {false, true}) {
                norm_data<T> data(rows, n);
                padded<T> y(rows, n), inverse(1, rows), mean(1, rows);
                norm_rows{}(typename TestType::arch{},
                            norm_rows_args<T>{.x = data.x.data(),
                                              .x_row = n,
                                              .scale = data.scale.data(),
                                              .bias = biased ? data.bias.data() : nullptr,
                                              .y = y.data(),
                                              .y_row = y.view().row_stride(),
                                              .inverse = inverse.data(),
                                              .mean = centred ? mean.data() : nullptr,
                                              .rows = rows,
                                              .n = n,
                                              .eps = static_cast<T>(eps)});
                oracle want(rows, n), want_inverse(1, rows), want_mean(1, rows);
                for (idx i = 0; i < rows; ++i) {
                    const plain_row row = data.plain(i, centred);
                    want_inverse(0, i) = {row.inverse, row.inverse * (1 + row.inverse)};
                    want_mean(0, i) = {row.mean, 2};
                    for (idx j = 0; j < n; ++j) {
                        const double shift = biased ? static_cast<double>(data.bias[j]) : 0;
                        const auto at = static_cast<std::size_t>(j);
                        want(i, j) = {row.h[at] * data.scale_at(j) + shift,
                                      row.width[at] * data.scale_at(j) * (1 + row.inverse) + std::abs(shift)};
                    }
                }
                CAPTURE(n, centred, biased);
                // one centred element is exactly zero
                const bool dull = centred && n == 1;
                const tolerance limit{.chain = n, .nmse = sizeof(T) == 4 ? 1e-9 : 1e-25, .may_be_dull = dull};
                REQUIRE(compare(y.view(), want, limit) == "");
                REQUIRE(compare(inverse.view(), want_inverse, limit) == "");
                REQUIRE(compare(mean.view(), want_mean, {.chain = n, .nmse = 1, .may_be_dull = !centred}) ==
                        "");
                REQUIRE(y.touched() + inverse.touched() + mean.touched() == "");
            }
}

TEMPLATE_TEST_CASE("norm_rows: a far mean costs no more digits than it must", "", float_native,
                   float_scalar) {
    using T = typename TestType::scalar;
    constexpr idx n = 64;
    std::vector<T> x(n), scale(n, T(1)), y(n);
    for (std::size_t j = 0; j < n; ++j) x[j] = T(4096) + static_cast<T>(j % 8); // exact, as is the mean
    T inverse = 0, mean = 0;
    norm_rows{}(typename TestType::arch{}, norm_rows_args<T>{.x = x.data(),
                                                             .x_row = n,
                                                             .scale = scale.data(),
                                                             .bias = nullptr,
                                                             .y = y.data(),
                                                             .y_row = n,
                                                             .inverse = &inverse,
                                                             .mean = &mean,
                                                             .rows = 1,
                                                             .n = n,
                                                             .eps = T(0)});
    CHECK(mean == T(4099.5));
    for (std::size_t j = 0; j < n; ++j) {
        const double want = (static_cast<double>(j % 8) - 3.5) / std::sqrt(5.25);
        CHECK(compare_number(y[j], want, 1e-6) == "");
    }
}

TEMPLATE_TEST_CASE("norm_rows and norm_dx: results may replace their input", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    constexpr idx rows = 2, n = 37;
    norm_data<T> data(rows, n);
    padded<T> x(rows, n), y(rows, n), dy(rows, n), dx(rows, n), inverse(1, rows), mean(1, rows);
    copy(data.x.matrix(rows, n), x.view());
    copy(data.dy.matrix(rows, n), dy.view());
    const idx stride = x.view().row_stride();
    norm_rows_args<T> forward{.x = x.data(),
                              .x_row = stride,
                              .scale = data.scale.data(),
                              .bias = data.bias.data(),
                              .y = y.data(),
                              .y_row = stride,
                              .inverse = inverse.data(),
                              .mean = mean.data(),
                              .rows = rows,
                              .n = n,
                              .eps = T(1e-5)};
    norm_rows{}(typename TestType::arch{}, forward);
    norm_dx_args<T> backward{.x = x.data(),
                             .x_row = stride,
                             .dy = dy.data(),
                             .dy_row = stride,
                             .scale = data.scale.data(),
                             .inverse = inverse.data(),
                             .mean = mean.data(),
                             .dx = dx.data(),
                             .dx_row = stride,
                             .rows = rows,
                             .n = n};
    norm_dx{}(typename TestType::arch{}, backward);
    backward.dx = dy.data();
    norm_dx{}(typename TestType::arch{}, backward);
    CHECK(different_bits(dy.view(), dx.view()) == "");
    forward.y = x.data();
    norm_rows{}(typename TestType::arch{}, forward);
    CHECK(different_bits(x.view(), y.view()) == "");
    CHECK(x.touched() + dy.touched() == "");
}

TEMPLATE_TEST_CASE("norm_dx and norm_dscale: the formula, for all widths", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    constexpr idx rows = 3;
    for (idx n : row_widths())
        for (bool centred : {false, true}) {
            norm_data<T> data(rows, n);
            page_end<T> inverse(rows), mean(rows);
            padded<T> dx(rows, n), dscale(1, n), dbias(1, n);
            fill_uniform(dscale.view(), 91);
            fill_uniform(dbias.view(), 92);
            oracle want(rows, n), want_dscale(1, n), want_dbias(1, n);
            for (idx j = 0; j < n; ++j) {
                want_dscale(0, j) = {static_cast<double>(dscale(0, j)), 1};
                want_dbias(0, j) = {static_cast<double>(dbias(0, j)), 1};
            }
            for (idx i = 0; i < rows; ++i) {
                const plain_row row = data.plain(i, centred);
                inverse[i] = static_cast<T>(row.inverse);
                mean[i] = static_cast<T>(row.mean);
                double mean_g = 0, mean_gh = 0, size_g = 0, size_gh = 0;
                for (idx j = 0; j < n; ++j) {
                    const auto at = static_cast<std::size_t>(j);
                    const double g = data.dy_at(i, j) * data.scale_at(j) / static_cast<double>(n);
                    mean_g += centred ? g : 0;
                    size_g += centred ? std::abs(g) : 0;
                    mean_gh += g * row.h[at];
                    size_gh += std::abs(g) * row.width[at];
                    want_dscale(0, j).value += data.dy_at(i, j) * row.h[at];
                    want_dscale(0, j).size += std::abs(data.dy_at(i, j)) * row.width[at];
                    want_dbias(0, j).value += data.dy_at(i, j);
                    want_dbias(0, j).size += std::abs(data.dy_at(i, j));
                }
                for (idx j = 0; j < n; ++j) {
                    const auto at = static_cast<std::size_t>(j);
                    const double g = data.dy_at(i, j) * data.scale_at(j);
                    want(i, j) = {row.inverse * (g - mean_g - row.h[at] * mean_gh),
                                  row.inverse * (std::abs(g) + size_g + row.width[at] * size_gh)};
                }
            }
            const norm_dx_args<T> args{.x = data.x.data(),
                                       .x_row = n,
                                       .dy = data.dy.data(),
                                       .dy_row = n,
                                       .scale = data.scale.data(),
                                       .inverse = inverse.data(),
                                       .mean = centred ? mean.data() : nullptr,
                                       .dx = dx.data(),
                                       .dx_row = dx.view().row_stride(),
                                       .rows = rows,
                                       .n = n};
            norm_dx{}(typename TestType::arch{}, args);
            CAPTURE(n, centred);
            // rows of one or two elements have little or no gradient left, and so a large relative error
            const tolerance limit{.chain = n,
                                  .nmse = n < 3            ? 1.0
                                          : sizeof(T) == 4 ? 1e-9
                                                           : 1e-25,
                                  .may_be_dull = n < 3};
            REQUIRE(compare(dx.view(), want, limit) == "");
            const tolerance sums{.chain = rows, .nmse = sizeof(T) == 4 ? 1e-9 : 1e-25};
            norm_dscale{}(typename TestType::arch{}, args, dscale.data(), dbias.data());
            REQUIRE(compare(dscale.view(), want_dscale, sums) == "");
            REQUIRE(compare(dbias.view(), want_dbias, sums) == "");
            REQUIRE(dx.touched() + dscale.touched() + dbias.touched() == "");
            const T before = dscale(0, 0);
            norm_dscale{}(typename TestType::arch{}, args, dscale.data(), static_cast<T*>(nullptr));
            REQUIRE(((centred && n == 1) || dscale(0, 0) != before)); // without dbias too
        }
}

TEMPLATE_TEST_CASE("norm kernels: no rows is no work", "", float_native, double_scalar) {
    using T = typename TestType::scalar;
    norm_rows{}(typename TestType::arch{}, norm_rows_args<T>{});
    norm_dx_args<T> none{};
    none.n = 5;
    norm_dx{}(typename TestType::arch{}, none);
    padded<T> dscale(1, 5);
    fill(dscale.view(), T(3));
    norm_dscale{}(typename TestType::arch{}, none, dscale.data(), static_cast<T*>(nullptr));
    for (idx j = 0; j < 5; ++j) CHECK(dscale(0, j) == 3);
    CHECK(dscale.touched() == "");
}
