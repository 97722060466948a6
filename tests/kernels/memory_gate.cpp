#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/random_data.hpp"

#include <sluice/kernels/memory_gate.hpp>

#include <vector>

using namespace sluice::test;
using sluice::gate_form;
using sluice::idx;

// The whole formula is held against the reference, and its slopes, where the layer is tested.
TEMPLATE_TEST_CASE("gate_argument: signed root and its slope", "", float_native, double_native) {
    using T = typename TestType::scalar;
    using sluice::kernels::gate_argument;
    using sluice::kernels::gate_slope;
    CHECK(gate_argument(gate_form::plain, T(-4)) == T(-4));
    CHECK(gate_argument(gate_form::signed_root, T(-4)) == T(-2));
    CHECK(gate_argument(gate_form::signed_root, T(0.25)) == T(0.5));
    CHECK(gate_argument(gate_form::signed_root, T(0)) == std::sqrt(T(1e-6)));
    CHECK(gate_argument(gate_form::signed_root, -T(0)) == -std::sqrt(T(1e-6)));
    CHECK(gate_slope(gate_form::plain, T(9)) == 1);
    CHECK(gate_slope(gate_form::signed_root, T(-4)) == T(0.25));
    CHECK(gate_slope(gate_form::signed_root, T(1e-7)) == 0);
    CHECK(std::isnan(gate_argument(gate_form::signed_root, std::numeric_limits<T>::quiet_NaN())));
}

TEMPLATE_TEST_CASE("memory_output and memory_dz: sums over the taps that there are", "", float_native,
                   float_scalar, double_native, double_scalar) {
    using T = typename TestType::scalar;
    typename TestType::arch arch{};
    for (const idx d : {1, 3, 16, 37}) {
        const idx branches = 2, width = 2 * d, n_taps = 3;
        const auto gate = uniform_matrix<T>(1, branches, 1), value = uniform_matrix<T>(1, d, 2),
                   sources = uniform_matrix<T>(2, width, 3), taps = uniform_matrix<T>(n_taps, width, 4),
                   dy = uniform_matrix<T>(1, width, 5);
        const T* const at[] = {sources.view().row(0), nullptr, sources.view().row(1)};
        const sluice::kernels::tap_sources<T> conv{taps.view().data(), taps.view().row_stride(), n_taps, at};
        padded<T> y(1, width), plain(1, width), dz(1, width);
        sluice::kernels::memory_output{}(arch, gate.view().data(), value.view().data(), conv, branches, d,
                                         y.view().data());
        sluice::kernels::memory_output{}(arch, gate.view().data(), value.view().data(),
                                         sluice::kernels::tap_sources<T>{nullptr, 0, 0, nullptr}, branches, d,
                                         plain.view().data());
        sluice::kernels::memory_dz{}(arch, dy.view().data(), conv, width, dz.view().data());
        for (idx i = 0; i < width; ++i) {
            const auto u =
                static_cast<double>(gate.view()(0, i / d)) * static_cast<double>(value.view()(0, i % d));
            double z = 0;
            for (idx j : {0, 2})
                z += static_cast<double>(taps.view()(j, i)) * static_cast<double>(sources.view()(j / 2, i));
            const double sigmoid = 1 / (1 + std::exp(-z)), allowed = 32 * unit_roundoff<T>;
            CHECK(compare_number(plain(0, i), u, allowed) == "");
            CHECK(compare_number(y(0, i), u + z * sigmoid, allowed) == "");
            CHECK(compare_number(dz(0, i),
                                 static_cast<double>(dy.view()(0, i)) * sigmoid * (1 + z * (1 - sigmoid)),
                                 allowed) == "");
        }
        CHECK(y.touched() + plain.touched() + dz.touched() == "");
    }
}

TEMPLATE_TEST_CASE("weighted_products: sums over rows, column by column", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    for (const idx n : {1, 15, 16, 33}) {
        const auto a = uniform_matrix<T>(9, n, 1), b = uniform_matrix<T>(9, n, 2),
                   f = uniform_matrix<T>(9, 2, 3);
        for (const bool weighted : {false, true}) {
            padded<T> out(1, n);
            oracle want(1, n);
            sluice::kernels::weighted_products{}(typename TestType::arch{},
                                                 weighted ? f.view().data() : nullptr, f.view().row_stride(),
                                                 a.view().data(), a.view().row_stride(), b.view().data(),
                                                 b.view().row_stride(), idx{9}, n, out.view().data());
            for (idx j = 0; j < n; ++j)
                for (idx i = 0; i < 9; ++i) {
                    const double term = static_cast<double>(a.view()(i, j)) *
                                        static_cast<double>(b.view()(i, j)) *
                                        (weighted ? static_cast<double>(f.view()(i, 0)) : 1);
                    want(0, j).value += term;
                    want(0, j).size += std::abs(term);
                }
            CHECK(compare(out.view(), want, {.chain = 9, .may_be_dull = true}) == "");
            CHECK(out.touched() == "");
        }
    }
}
