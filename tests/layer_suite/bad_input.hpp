// Checks of what a layer refuses, and of values that must not spread.
#pragma once

#include "layer_suite/suite.hpp"

namespace sluice::test {

// Every weight with a column or a row too few is named by the constructor, with both shapes.
template <class Traits, class Type>
void layer_suite<Traits, Type>::wrong_shapes_are_named() {
    for (const auto& v : Traits::variants()) {
        INFO("config: " << v.name);
        spread_params<params<const T>, T> right(v.config);
        CHECK_NOTHROW(layer_type(v.config, right.view()));
        for (std::size_t i = 0; i < right.tensors.size(); ++i)
            for (const bool column : {true, false}) {
                spread_params<params<const T>, T> wrong(v.config);
                std::string name, expected, given;
                std::size_t at = 0;
                each_param(
                    [&](const param_name& full, role, auto& t) {
                        if (at++ != i) return;
                        expected = shape_text(t.rows(), t.cols());
                        t = column ? t.col_block(0, t.cols() - 1) : t.row_block(0, t.rows() - 1);
                        given = shape_text(t.rows(), t.cols());
                        name = full.str();
                    },
                    wrong.view());
                const std::string last = name.substr(name.rfind('.') + 1);
                const std::string said =
                    message_of<config_error>([&] { layer_type(v.config, wrong.view()); });
                CHECK_THAT(said, contains_text(": " + last + " must be " + expected + ", is " + given));
            }
    }
}

// The views of a call.
template <class Traits, class Type>
void layer_suite<Traits, Type>::wrong_arguments_are_named() {
    for_each_variant(false, [](const subject& s) {
        if (s.layer.d_in() == 0) {
            SUCCEED("reads ids alone");
            return;
        }
        const idx d_in = s.layer.d_in(), d_out = s.layer.d_out();
        poisoned_memory workspace(s.layer.bytes(limits_of(4)).workspace), state_memory(1 << 20);
        auto state = bind_state(s.layer, state_memory, {.max_tokens = 4, .max_rows = 4});
        padded<T> x(4, d_in + 1), y(4, d_out + 1);
        const auto good_x = x.view().col_block(0, d_in), good_y = y.view().col_block(0, d_out);
        auto check = [&](tensor_view<T> xs, tensor_view<T> ys, const std::string& text) {
            const batch b = batch::one(3);
            CHECK_THAT(
                message_of<config_error>([&] { s.layer.forward(b, xs, ys, nullptr, workspace.arena()); }),
                contains_text(text));
            CHECK_THAT(
                message_of<config_error>([&] { extend(s.layer, b, xs, ys, state, workspace.arena()); }),
                contains_text(text));
        };
        const auto x3 = good_x.row_block(0, 3), y3 = good_y.row_block(0, 3);
        check(good_x, y3, "x must be " + shape_text(3, d_in) + ", is " + shape_text(4, d_in));
        check(x.view().row_block(0, 3), y3,
              "x must be " + shape_text(3, d_in) + ", is " + shape_text(3, d_in + 1));
        check(x3, good_y, "y must be " + shape_text(3, d_out) + ", is " + shape_text(4, d_out));
        check(x3, y.view().row_block(0, 3),
              "y must be " + shape_text(3, d_out) + ", is " + shape_text(3, d_out + 1));
        CHECK(all_zero(y.view()));
    });
}

// An output over an input, all of it or shifted: an assertion says so, or the result is right all the
// same.
template <class Traits, class Type>
void layer_suite<Traits, Type>::overlapping_outputs_are_noticed_or_harmless() {
    for_each_variant(false, [](const subject& s) {
        const idx n = 5, d_in = s.layer.d_in(), d_out = s.layer.d_out(), wide = std::max(d_in, d_out);
        const sample<T> rows({n}, d_in, 71);
        const auto dy = uniform_matrix<T>(n, d_out, 72);
        const sizes need = s.layer.bytes(limits_of(n));
        arena workspace(need.workspace);
        const auto want = forward(s.layer, rows);
        gradients right(s, n);
        if constexpr (trains) backward(s.layer, rows.rows(), rows.x.view(), dy.view(), right);
        for (const idx shift : {idx{0}, idx{1}, wide}) {
            INFO("shift: " << shift);
            std::vector<T> memory(static_cast<std::size_t>((n + 1) * wide));
            // `out` begins `shift` elements behind `in`
            auto in_place = [&](tensor_view<const T> from, idx cols) {
                const tensor_view<T> to(memory.data(), n, cols);
                copy(from, to);
                return to;
            };
            auto out = [&](idx cols) { return tensor_view<T>(memory.data() + shift, n, cols); };
            auto x = in_place(rows.x.view(), d_in);
            expect(wrong_or_refused([&] { s.layer.forward(rows.rows(), x, out(d_out), nullptr, workspace); },
                                    out(d_out), want));
            x = in_place(rows.x.view(), d_in);
            arena clean(need.state);
            auto state = bind_state(s.layer, clean, limits_of(n));
            expect(wrong_or_refused([&] { extend(s.layer, rows.rows(), x, out(d_out), state, workspace); },
                                    out(d_out), want));
            if constexpr (trains) {
                for (const bool over_x : {true, false}) {
                    arena tape(need.tape);
                    gradients g(s, n);
                    padded<T> y(n, d_out);
                    s.layer.forward(rows.rows(), rows.x.view(), y, &tape, workspace);
                    const auto xs =
                        over_x ? tensor_view<const T>(in_place(rows.x.view(), d_in)) : rows.x.view();
                    const auto dys = over_x ? dy.view() : tensor_view<const T>(in_place(dy.view(), d_out));
                    expect(wrong_or_refused(
                        [&] {
                            s.layer.backward(rows.rows(), xs, dys, out(d_in), tape, g.grad.view(), workspace);
                            for (std::size_t i = 0; i < g.grad.tensors.size(); ++i)
                                expect(
                                    different_bits(g.grad.tensors[i].view(), right.grad.tensors[i].view()));
                        },
                        out(d_in), right.dx));
                }
            }
        }
    });
}

template <class Traits, class Type>
template <class F>
std::string layer_suite<Traits, Type>::wrong_or_refused(F&& f, tensor_view<const T> got,
                                                        const padded<T>& want) {
    try {
        f();
    } catch (const error& e) {
        const bool said = std::string_view(e.what()).find("apart") != std::string_view::npos;
        return said ? "" : e.what();
    }
    return different_bits(got, want.view());
}

// The views of a backward call; no gradient is added to.
template <class Traits, class Type>
void layer_suite<Traits, Type>::wrong_gradient_arguments_are_named() {
    if constexpr (trains)
        for_each_variant(false, [](const subject& s) {
            const idx n = 3, d_in = s.layer.d_in(), d_out = s.layer.d_out();
            const sample<T> rows({n}, d_in, 81);
            const sizes need = s.layer.bytes(limits_of(n));
            padded<T> y(n, d_out), dy(n + 1, d_out + 1), dx(n + 1, d_in + 1);
            auto check = [&](tensor_view<const T> x, tensor_view<const T> dys, tensor_view<T> dxs,
                             const std::string& text) {
                arena workspace(need.workspace), tape(need.tape);
                gradients g(s, n);
                s.layer.forward(rows.rows(), rows.x.view(), y, &tape, workspace);
                CHECK_THAT(message_of<config_error>([&] {
                               s.layer.backward(rows.rows(), x, dys, dxs, tape, g.grad.view(), workspace);
                           }),
                           contains_text(text));
                CHECK(workspace.used() == 0);
                for (const auto& t : g.grad.tensors) CHECK(all_zero(t.view()));
            };
            auto part = [](tensor_view<T> t, idx m, idx cols) {
                return t.row_block(0, m).col_block(0, cols);
            };
            const auto x3 = rows.x.view();
            const auto dy3 = part(dy, n, d_out);
            const auto dx3 = part(dx, n, d_in);
            const std::string wanted = shape_text(n, d_out) + ", is ";
            check(x3, part(dy, n + 1, d_out), dx3, "dy must be " + wanted + shape_text(n + 1, d_out));
            check(x3, part(dy, n, d_out + 1), dx3, "dy must be " + wanted + shape_text(n, d_out + 1));
            check(x3, dy3, part(dx, n + 1, d_in),
                  "dx must be " + shape_text(n, d_in) + ", is " + shape_text(n + 1, d_in));
            check(x3, dy3, part(dx, n, d_in + 1),
                  "dx must be " + shape_text(n, d_in) + ", is " + shape_text(n, d_in + 1));
            check(x3.row_block(0, n - 1), dy3, dx3,
                  "x must be " + shape_text(n, d_in) + ", is " + shape_text(n - 1, d_in));
        });
}

// Sizes no caller can mean; they may come from a file.
template <class Traits, class Type>
void layer_suite<Traits, Type>::absurd_limits_are_refused() {
    for_each_variant(false, [](const subject& s) {
        constexpr idx most = std::numeric_limits<idx>::max();
        for (const idx n : {idx{-1}, idx{0}, idx{1} << 62, most}) {
            CHECK_THROWS_AS(s.layer.bytes({.max_rows = n}), config_error);
            CHECK_THROWS_AS(s.layer.bytes({.max_rows = 1, .workers = n}), config_error);
            CHECK_THROWS_AS(s.layer.bytes({.max_tokens = 4, .max_rows = 1, .n_sequences = n}), config_error);
        }
        for (const idx n : {idx{-1}, idx{1} << 62, most}) {
            CHECK_THROWS_AS(s.layer.bytes({.max_tokens = n, .max_rows = 1}), config_error);
            CHECK_THROWS_AS(s.layer.bytes({.max_tokens = 4, .max_rows = 1, .max_rollback = n}), config_error);
        }
    });
}

// Batches that contradict themselves or name what there is not. Layers that take each row by itself need
// not look at more than the number of rows.
template <class Traits, class Type>
void layer_suite<Traits, Type>::bad_batches_are_refused() {
    if constexpr (!row_by_row)
        for_each_variant(false, [](const subject& s) {
            const idx n = 4;
            const sample<T> rows({n}, s.layer.d_in(), 91);
            const limits most{.max_tokens = n, .max_rows = n, .n_sequences = 2};
            const sizes need = s.layer.bytes(most);
            arena workspace(need.workspace), memory(need.state);
            auto state = bind_state(s.layer, memory, most);
            padded<T> y(n, s.layer.d_out());
            auto refused = [&](const batch& b, bool by_state_only = false) {
                if (by_state_only && !streams) return;
                if (!by_state_only)
                    CHECK(is_refused([&] { s.layer.forward(b, rows.x.view(), y, nullptr, workspace); }));
                CHECK(is_refused([&] { extend(s.layer, b, rows.x.view(), y, state, workspace); }));
                CHECK(all_zero(y.view()));
                CHECK(workspace.used() == 0);
            };
            const std::span<const token_id> ids(rows.ids);
            for (const auto& offsets :
                 {std::vector<idx>{0, 2}, {1, 4}, {0, 3, 2, 4}, {0, 5, 4}, {0, -1, 4}, {0}, {0, 1L << 62}})
                refused({.n_tokens = n, .offsets = offsets, .ids = ids});
            const std::vector<idx> three{0, 1, 2}, negative{0, 1, -1, 3};
            refused({.n_tokens = n, .positions = three, .ids = ids});
            refused({.n_tokens = n, .positions = negative, .ids = ids});
            refused({.n_tokens = n, .ids = ids.first(3)});
            refused({.n_tokens = n, .ids = ids, .first_position = -1});
            refused({.n_tokens = n, .ids = ids, .first_position = std::numeric_limits<idx>::max() - 1});
            refused({.n_tokens = n, .ids = ids, .copies = 0});
            refused({.n_tokens = -1, .ids = ids});
            const std::vector<idx> two_each{0, 2, 4};
            for (const auto& slots : {std::vector<idx>{0}, {0, 1, 2}, {0, -1}, {1, 1}, {-(1L << 62), 0}})
                refused({.n_tokens = n, .offsets = two_each, .ids = ids, .slots = slots});
            for (const auto& slots : {std::vector<idx>{0, 2}, {1L << 62, 0}})
                refused({.n_tokens = n, .offsets = two_each, .ids = ids, .slots = slots}, true);
            const std::vector<idx> three_sequences{0, 2, 4, 4};
            refused({.n_tokens = n, .offsets = three_sequences, .ids = ids}, true);
            // and the state is as it was
            extend(s.layer, rows.rows(), rows.x.view(), y, state, workspace);
            expect(different_bits(y.view(), forward(s.layer, rows).view()));
        });
    else
        SUCCEED("rows do not know of each other");
}

// Whatever stands in a sequence: NaN, infinities, the largest and the smallest numbers.
template <class Traits, class Type>
void layer_suite<Traits, Type>::no_value_leaves_its_sequence() {
    for_each_variant(false, [](const subject& s) {
        if (s.layer.d_in() == 0) {
            SUCCEED("reads ids alone");
            return;
        }
        using numbers = std::numeric_limits<T>;
        const sample<T> rows({3, 5, 2}, s.layer.d_in(), 93);
        const auto want = forward(s.layer, rows);
        for (const T value : {numbers::quiet_NaN(), numbers::infinity(), -numbers::infinity(), numbers::max(),
                              numbers::lowest(), numbers::denorm_min()}) {
            INFO("value: " << value);
            sample<T> other = rows;
            fill(other.x.view().row_block(4, 1), value);
            const auto y = forward(s.layer, other);
            const idx before = streams ? 4 : 3; // nor to an earlier token
            expect(different_bits(y.view().row_block(0, before), want.view().row_block(0, before)));
            expect(different_bits(y.view().row_block(8, 2), want.view().row_block(8, 2)));
            if (row_by_row) expect(different_bits(y.view().row_block(5, 5), want.view().row_block(5, 5)));
        }
    });
}

} // namespace sluice::test
