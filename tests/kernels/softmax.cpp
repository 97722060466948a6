#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/random_data.hpp"

#include <sluice/kernels/softmax.hpp>

#include <cmath>
#include <limits>
#include <vector>

using namespace sluice::test;
using sluice::idx;
using sluice::tensor_view;
using sluice::token_id;
using sluice::kernels::cross_entropy_dx;
using sluice::kernels::log_sum_exp_rows;
using sluice::kernels::softmax_dx;
using sluice::kernels::softmax_rows;

namespace {

// One row in double; `size` is for the bound: an error in the argument of exp is a relative error of its
// value.
struct plain_softmax {
    template <class T>
    plain_softmax(const T* x, idx n) : p(static_cast<std::size_t>(n)), size(p.size()) {
        largest = static_cast<double>(x[0]);
        for (idx j = 1; j < n; ++j) largest = std::max(largest, static_cast<double>(x[j]));
        double sum = 0;
        for (std::size_t j = 0; j < p.size(); ++j)
            sum += p[j] = std::exp(static_cast<double>(x[j]) - largest);
        for (std::size_t j = 0; j < p.size(); ++j) {
            p[j] /= sum;
            size[j] = p[j] * (1 + std::abs(static_cast<double>(x[j]) - largest));
        }
        lse = largest + std::log(sum);
    }
    double largest = 0, lse = 0;
    std::vector<double> p, size;
};

std::vector<idx> row_widths() {
    std::vector<idx> all{255, 256, 257, 1000};
    for (idx n = 1; n <= 67; ++n) all.push_back(n);
    return all;
}

template <class T, class Arch>
std::vector<T> softmax_of(std::vector<T> x) {
    const auto n = static_cast<idx>(x.size());
    softmax_rows{}(Arch{}, x.data(), n, x.data(), n, 1, n);
    return x;
}

constexpr idx rows = 3;

} // namespace

TEMPLATE_TEST_CASE("softmax kernels: rows, their gradient and log-sum-exp for all widths", "", float_native,
                   float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    const typename TestType::arch arch;
    for (idx n : row_widths()) {
        page_end<T> x(rows * n), dy(rows * n);
        fill_uniform(x.row(), static_cast<std::uint64_t>(n), -6, 6);
        fill_uniform(dy.row(), static_cast<std::uint64_t>(n + 2000));
        padded<T> y(rows, n), dx(rows, n), lse(1, rows), in_place(rows, n);
        softmax_rows{}(arch, x.data(), n, y.data(), y.view().row_stride(), rows, n);
        softmax_dx{}(arch, y.data(), y.view().row_stride(), dy.data(), n, dx.data(), dx.view().row_stride(),
                     rows, n);
        log_sum_exp_rows{}(arch, x.data(), n, lse.data(), rows, n);
        oracle want(rows, n), want_dx(rows, n), want_lse(1, rows);
        for (idx i = 0; i < rows; ++i) {
            const plain_softmax row(x.data() + i * n, n);
            want_lse(0, i) = {row.lse, 1 + std::abs(row.largest)};
            double inner = 0, inner_size = 0;
            for (idx j = 0; j < n; ++j) {
                const auto at = static_cast<std::size_t>(j);
                const double d = static_cast<double>(dy[i * n + j]);
                want(i, j) = {row.p[at], row.size[at]};
                inner += row.p[at] * d;
                inner_size += row.size[at] * std::abs(d);
            }
            for (idx j = 0; j < n; ++j) {
                const auto at = static_cast<std::size_t>(j);
                const double d = static_cast<double>(dy[i * n + j]);
                want_dx(i, j) = {row.p[at] * (d - inner), row.size[at] * (std::abs(d) + inner_size)};
            }
        }
        CAPTURE(n);
        const tolerance limit{.chain = n, .may_be_dull = n == 1};
        const tolerance gradient{.chain = n, .nmse = n < 3 ? 1.0 : 0.0, .may_be_dull = n == 1};
        REQUIRE(compare(y.view(), want, limit) == "");
        REQUIRE(compare(dx.view(), want_dx, gradient) == "");
        REQUIRE(compare(lse.view(), want_lse, {.chain = n}) == "");
        REQUIRE(y.touched() + dx.touched() + lse.touched() == "");
        // outputs over their inputs
        const idx stride = in_place.view().row_stride();
        copy(x.matrix(rows, n), in_place.view());
        softmax_rows{}(arch, in_place.data(), stride, in_place.data(), stride, rows, n);
        REQUIRE(different_bits(in_place.view(), y.view()) == "");
        copy(dy.matrix(rows, n), in_place.view());
        softmax_dx{}(arch, y.data(), y.view().row_stride(), in_place.data(), stride, in_place.data(), stride,
                     rows, n);
        REQUIRE(different_bits(in_place.view(), dx.view()) == "");
        REQUIRE(in_place.touched() == "");
    }
}

TEMPLATE_TEST_CASE("softmax kernels: cross_entropy_dx for all widths and targets", "", float_native,
                   float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    const typename TestType::arch arch;
    for (idx n : row_widths()) {
        page_end<T> x(rows * n), lse(rows);
        page_end<token_id> target(rows);
        fill_uniform(x.row(), static_cast<std::uint64_t>(n), -6, 6);
        target[0] = static_cast<token_id>(n - 1);
        target[1] = -1;
        target[2] = 0;
        const T weight = T(0.3);
        oracle want(rows, n);
        for (idx i = 0; i < rows; ++i) {
            const plain_softmax row(x.data() + i * n, n);
            lse[i] = static_cast<T>(row.lse);
            for (idx j = 0; j < n && target[i] >= 0; ++j) {
                const auto at = static_cast<std::size_t>(j);
                const double hit = target[i] == j ? 1 : 0;
                // the rounding of lse is an error of the argument as well
                const double size = row.size[at] + row.p[at] * std::abs(row.lse) + hit;
                want(i, j) = {static_cast<double>(weight) * (row.p[at] - hit),
                              static_cast<double>(weight) * size};
            }
        }
        padded<T> dx(rows, n), in_place(rows, n);
        fill(dx.view(), T(7)); // ignored rows have to be cleared
        cross_entropy_dx{}(arch, x.data(), n, lse.data(), target.data(), weight, dx.data(),
                           dx.view().row_stride(), rows, n);
        CAPTURE(n);
        REQUIRE(compare(dx.view(), want, {.chain = n, .nmse = n < 3 ? 1.0 : 1e-11, .may_be_dull = n == 1}) ==
                "");
        for (idx j = 0; j < n; ++j) REQUIRE(dx(1, j) == 0);
        copy(x.matrix(rows, n), in_place.view());
        const idx stride = in_place.view().row_stride();
        cross_entropy_dx{}(arch, in_place.data(), stride, lse.data(), target.data(), weight, in_place.data(),
                           stride, rows, n);
        REQUIRE(different_bits(in_place.view(), dx.view()) == "");
        REQUIRE(in_place.touched() + dx.touched() == "");
    }
}

TEMPLATE_TEST_CASE("softmax kernels: huge numbers stay finite", "", float_native, float_scalar, double_native,
                   double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    for (T huge : {T(100), T(1e4), T(1e30)})
        for (T sign : {T(1), T(-1)})
            for (std::size_t n : {1U, 3U, 16U, 19U, 35U}) {
                std::vector<T> x(n, sign * huge);
                for (T p : softmax_of<T, Arch>(x))
                    CHECK(compare_number(p, 1 / static_cast<double>(n), 1e-6) == "");
                T lse = 0;
                log_sum_exp_rows{}(Arch{}, x.data(), 0, &lse, 1, static_cast<idx>(n));
                const double want = static_cast<double>(x[0]) + std::log(static_cast<double>(n));
                CHECK(compare_number(lse, want, 1e-6 * static_cast<double>(huge)) == "");
            }
    // one stands out, at every place
    for (std::size_t at = 0; at < 19; ++at) {
        std::vector<T> x(19, T(-1e30));
        x[at] = T(1e30);
        const auto p = softmax_of<T, Arch>(x);
        for (std::size_t j = 0; j < 19; ++j) CHECK(p[j] == (j == at ? 1 : 0));
    }
}

TEMPLATE_TEST_CASE("softmax kernels: infinities and NaN", "", float_native, float_scalar, double_native,
                   double_scalar) {
    using T = typename TestType::scalar;
    using Arch = typename TestType::arch;
    const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
    auto all_nan = [](const std::vector<T>& p) {
        for (T v : p)
            if (!std::isnan(v)) return false;
        return true;
    };
    for (std::size_t n : {1U, 3U, 16U, 19U, 35U}) {
        CHECK(all_nan(softmax_of<T, Arch>(std::vector<T>(n, -inf))));
        for (std::size_t at = 0; at < n; ++at) {
            std::vector<T> x(n, T(0.5));
            x[at] = nan;
            CHECK(all_nan(softmax_of<T, Arch>(x)));
            T lse = 0;
            log_sum_exp_rows{}(Arch{}, x.data(), 0, &lse, 1, static_cast<idx>(n));
            CHECK(std::isnan(lse));
            x[at] = inf;
            CHECK(all_nan(softmax_of<T, Arch>(x)));
            if (n == 1) continue;
            x[at] = -inf;
            const auto p = softmax_of<T, Arch>(x);
            for (std::size_t j = 0; j < n; ++j)
                CHECK(compare_number(p[j], j == at ? 0 : 1 / static_cast<double>(n - 1),
                                     j == at ? 0 : 1e-6) == "");
        }
    }
}

TEMPLATE_TEST_CASE("softmax kernels: nothing is written for no rows and no columns", "", float_native,
                   double_scalar) {
    using T = typename TestType::scalar;
    const typename TestType::arch arch;
    padded<T> y(2, 0);
    softmax_rows{}(arch, y.data(), 5, y.data(), 5, 2, 0);
    softmax_rows{}(arch, y.data(), 5, y.data(), 5, 0, 5);
    softmax_dx{}(arch, y.data(), 5, y.data(), 5, y.data(), 5, 2, 0);
    CHECK(y.touched() == "");
    T lse = 0;
    log_sum_exp_rows{}(arch, y.data(), 5, &lse, 1, 0); // the sum of nothing
    CHECK((std::isnan(lse) || lse == -std::numeric_limits<T>::infinity()));
}
