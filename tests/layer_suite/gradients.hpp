// Checks of backward: gradients are slopes, accumulate, and look at no later token than they may.
#pragma once

#include "layer_suite/suite.hpp"

namespace sluice::test {

// wrong_gradient() with steps a tenth as long: a norm bends too much for the others where its row is short.
template <class F>
std::string wrong_layer_gradient(F&& f, const tensor_view<double>& x, const tensor_view<double>& gradient) {
    double most = 0;
    for (idx i = 0; i < x.rows(); ++i)
        for (idx j = 0; j < x.cols(); ++j) {
            const double at = x(i, j);
            double tenths = 0;
            const double s = 10 * slope(
                                      [&] {
                                          x(i, j) = at + tenths / 10;
                                          return f();
                                      },
                                      tenths);
            x(i, j) = at;
            const std::string wrong = compare_number(gradient(i, j), s, 1e-7 * std::max(1.0, std::abs(s)));
            if (!wrong.empty()) return place_text(i, j) + wrong;
            most = std::max(most, std::abs(s));
        }
    return most > 1e-3 ? "" : "meaningless: all slopes are near zero";
}

template <class Traits, class Type>
void layer_suite<Traits, Type>::gradients_are_slopes() {
    for_each_variant(false, [](const subject& s) {
        sample<T> rows({4, 0, 1, 3}, s.layer.d_in(), 21);
        const auto dy = uniform_matrix<T>(8, s.layer.d_out(), 22);
        gradients g(s, 8);
        fill(g.dx.view(), std::numeric_limits<T>::quiet_NaN()); // overwritten
        backward(s.layer, rows.rows(), rows.x.view(), dy.view(), g);
        if constexpr (std::is_same_v<T, double>) {
            arena workspace(s.layer.bytes(limits_of(8, 4)).workspace);
            padded<T> y(8, s.layer.d_out());
            auto value = [&] {
                s.layer.forward(rows.rows(), rows.x.view(), y, nullptr, workspace);
                double sum = 0;
                for (idx i = 0; i < 8; ++i)
                    for (idx j = 0; j < s.layer.d_out(); ++j) sum += y(i, j) * dy.view()(i, j);
                return sum;
            };
            expect(wrong_layer_gradient(value, rows.x.view(), g.dx.view()));
            for_each_weight(s, [&](const std::string& name, std::size_t i, tensor_view<T> w) {
                INFO("gradient of " << name);
                if (s.narrow.roles[i] == role::buffer) return; // never trained
                const std::string wrong = wrong_layer_gradient(value, w, g.grad.tensors[i].view());
                if (!routed || !wrong.starts_with("meaningless")) expect(wrong); // nothing came to it
            });
            g.dx(5, 0) += 1e-5 * std::max(1.0, std::abs(g.dx(5, 0)));
            expect_wrong(wrong_layer_gradient(value, rows.x.view(), g.dx.view())); // the test is able to fail
        } else {
            gradients_agree_with_double(s, rows, dy, g);
        }
    });
}

template <class Traits, class Type>
void layer_suite<Traits, Type>::gradients_agree_with_double(const subject& s, const sample<T>& rows,
                                                            const padded<T>& dy, gradients& g) {
    using wide_suite = layer_suite<Traits, numeric_type<double, arch>>;
    typename wide_suite::subject wide(s.layer.config());
    for (std::size_t i = 0; i < s.narrow.tensors.size(); ++i)
        copy(s.narrow.tensors[i].view(), wide.narrow.tensors[i].view());
    padded<double> x(8, s.layer.d_in()), dy_wide(8, s.layer.d_out());
    copy(rows.x.view(), x.view());
    copy(dy.view(), dy_wide.view());
    typename wide_suite::gradients want(wide, 8);
    wide_suite::backward(wide.layer, rows.rows(), x.view(), dy_wide.view(), want);
    auto check = [](const padded<T>& got, const padded<double>& right) {
        const auto r = right.view();
        oracle o(r.rows(), r.cols());
        double most = 1;
        for (idx i = 0; i < r.size(); ++i) most = std::max(most, std::abs(r(i / r.cols(), i % r.cols())));
        for (idx i = 0; i < r.size(); ++i)
            o(i / r.cols(), i % r.cols()) = {r(i / r.cols(), i % r.cols()), most};
        expect(compare(got.view(), o, {.chain = 1024, .nmse = 1e-10, .may_be_dull = true}));
    };
    check(g.dx, want.dx);
    for (std::size_t i = 0; i < g.grad.tensors.size(); ++i) check(g.grad.tensors[i], want.grad.tensors[i]);
}

template <class Traits, class Type>
void layer_suite<Traits, Type>::gradients_accumulate() {
    for_each_variant(true, [](const subject& s) {
        const sample<T> rows({30, 0, 37}, s.layer.d_in(), 23);
        const auto dy = uniform_matrix<T>(67, s.layer.d_out(), 24);
        gradients once(s, 67), twice(s, 67);
        backward(s.layer, rows.rows(), rows.x.view(), dy.view(), once);
        for (int i = 0; i < 2; ++i) backward(s.layer, rows.rows(), rows.x.view(), dy.view(), twice);
        expect(different_bits(once.dx.view(), twice.dx.view()));
        for (std::size_t i = 0; i < once.grad.tensors.size(); ++i) {
            const auto a = once.grad.tensors[i].view(), b = twice.grad.tensors[i].view();
            double most = 0, error = 0;
            for (idx k = 0; k < a.size(); ++k) {
                const auto one = static_cast<double>(a(k / a.cols(), k % a.cols()));
                most = std::max(most, std::abs(one));
                error =
                    std::max(error, std::abs(static_cast<double>(b(k / a.cols(), k % a.cols())) - 2 * one));
            }
            CHECK(((most > 0) == (s.narrow.roles[i] != role::buffer) || routed));
            CHECK(error / (unit_roundoff<T> * std::max(most, 1.0)) <= 400); // 200 with fma
        }
    });
}

// dx of a token does not depend on dy of tokens before it.
template <class Traits, class Type>
void layer_suite<Traits, Type>::gradients_run_backwards_only(const subject& s) {
    const idx n = 70;
    const sample<T> rows({n}, s.layer.d_in(), 9);
    auto dy = uniform_matrix<T>(n, s.layer.d_out(), 4);
    gradients before(s, n), after(s, n);
    backward(s.layer, rows.rows(), rows.x.view(), dy.view(), before);
    for (idx j = 0; j < s.layer.d_out(); ++j) dy(20, j) = T(2);
    backward(s.layer, rows.rows(), rows.x.view(), dy.view(), after);
    expect(different_bits(after.dx.view().row_block(21, n - 21), before.dx.view().row_block(21, n - 21)));
    expect_wrong(different_bits(after.dx.view().row_block(20, 1), before.dx.view().row_block(20, 1)));
}

} // namespace sluice::test
