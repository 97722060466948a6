// Checks of what a layer computes: against its reference, for any view, batch, executor and thread.
#pragma once

#include "layer_suite/suite.hpp"
#include "support/executors.hpp"
#include "support/float_modes.hpp"

#include <optional>
#include <thread>

namespace sluice::test {

template <class Traits, class Type>
void layer_suite<Traits, Type>::agrees_with_its_reference() {
    for_each_variant(true, [](const subject& s) {
        for (const auto& lengths : {std::vector<idx>{1}, {2}, {5, 0, 1, 9}, {33}, {0, 131, 64}}) {
            const sample<T> rows(lengths, s.layer.d_in(), 7);
            INFO("rows: " << rows.offsets.back());
            const auto y = forward(s.layer, rows);
            expect(compare(y.view(), ask(Traits::reference, s, rows), close));
        }
        expect(s.narrow.touched());
    });
}

// The guard of the case above: it has to see a wrong formula, and one wrong number.
template <class Traits, class Type>
void layer_suite<Traits, Type>::a_wrong_reference_is_noticed() {
    for_each_variant(false, [](const subject& s) {
        const sample<T> rows({5, 0, 1, 9}, s.layer.d_in(), 7);
        auto y = forward(s.layer, rows);
        expect_wrong(compare(y.view(), ask(Traits::wrong_reference, s, rows), close));
        const oracle want = ask(Traits::reference, s, rows);
        REQUIRE(compare(y.view(), want, close) == "");
        y(7, 0) += static_cast<T>(2 * (4 * std::sqrt(static_cast<double>(chain())) + 8) * unit_roundoff<T> *
                                  want(7, 0).size);
        expect_wrong(compare(y.view(), want, close));
    });
}

template <class Traits, class Type>
void layer_suite<Traits, Type>::takes_any_view() {
    for_each_variant(true, [](const subject& s) {
        const sample<T> rows({17, 4}, s.layer.d_in(), 3);
        const auto want = forward(s.layer, rows);
        const idx n = want.view().rows(), d_in = s.layer.d_in(), d_out = s.layer.d_out();
        poisoned_memory workspace(s.layer.bytes(limits_of(n, 2)).workspace);

        const eigen_matrix<T> x = rows.x.view().eigen();
        eigen_matrix<T> y(n, d_out), wide = eigen_matrix<T>::Constant(n + 2, d_out + 3, T(7));
        s.layer.forward(rows.rows(), x, y, nullptr, workspace.arena());
        expect(different_bits(tensor_view<const T>(y), want.view()));
        s.layer.forward(rows.rows(), x, wide.block(1, 2, n, d_out), nullptr, workspace.arena());
        expect(different_bits(tensor_view<const T>(wide.block(1, 2, n, d_out)), want.view()));
        wide.block(1, 2, n, d_out).setConstant(T(7));
        CHECK((wide.array() == T(7)).all());

        for (idx lead : {0, 1, 3, 8}) {
            padded<T> in_place(n, d_in, lead, lead), out(n, d_out, 2 * lead + 1, lead + 1);
            copy(rows.x.view(), in_place.view());
            s.layer.forward(rows.rows(), in_place.view(), out, nullptr, workspace.arena());
            expect(different_bits(out.view(), want.view()));
            expect(out.touched() + in_place.touched());
        }
    });
}

template <class Traits, class Type>
void layer_suite<Traits, Type>::sequences_do_not_meet() {
    for_each_variant(true, [](const subject& s) {
        const sample<T> rows({3, 0, 70, 1, 0, 12, 0}, s.layer.d_in(), 5);
        const auto together = forward(s.layer, rows);
        for (idx i = 0; i < rows.n_sequences(); ++i) {
            const auto alone = forward(s.layer, rows.alone(i), rows.x_of(i));
            const auto mine = together.view().row_block(rows.rows().begin(i), rows.length(i));
            expect(different_bits(alone.view(), mine));
        }
    });
}

template <class Traits, class Type>
void layer_suite<Traits, Type>::no_tokens_are_legal() {
    for_each_variant(false, [](const subject& s) {
        const tensor_view<T> x(nullptr, 0, s.layer.d_in()), y(nullptr, 0, s.layer.d_out());
        poisoned_memory workspace(s.layer.bytes(limits_of(0, 2)).workspace), tape(64), state_memory(1 << 20);
        const std::vector<idx> offsets{0, 0, 0};
        auto state = bind_state(s.layer, state_memory, {.max_tokens = 4, .n_sequences = 2});
        for (const batch& b : {batch{}, batch{.offsets = offsets}}) {
            s.layer.forward(b, x, y, nullptr, workspace.arena());
            extend(s.layer, b, x, y, state, workspace.arena());
            CHECK(workspace.arena().used() == 0);
            if constexpr (trains) {
                poisoned_memory room(s.layer.bytes(limits_of(0)).tape);
                gradients g(s, 0);
                s.layer.forward(b, x, y, &room.arena(), workspace.arena());
                s.layer.backward(b, x, y, x, room.arena(), g.grad.view(), workspace.arena());
                CHECK(room.arena().used() == 0);
                for (const auto& t : g.grad.tensors) CHECK(all_zero(t.view()));
            }
        }
    });
}

template <class Traits, class Type>
void layer_suite<Traits, Type>::is_causal() {
    for_each_variant(false, [](const subject& s) {
        const idx n = 70;
        const sample<T> rows({4, n, 3}, s.layer.d_in(), 9);
        const auto want = forward(s.layer, rows);
        for (idx t : {0, 1, 2, 40, 63, 64, 65, 69}) {
            INFO("changed token: " << t);
            const idx at = 4 + t;
            sample<T> other = rows;
            other.change(at);
            auto check = [&](const padded<T>& y) {
                const auto before = [&](const padded<T>& m) { return m.view().row_block(0, at); };
                const auto after = [&](const padded<T>& m) {
                    const idx first = row_by_row ? at + 1 : 4 + n;
                    return m.view().row_block(first, m.view().rows() - first);
                };
                expect(different_bits(before(y), before(want)));
                expect(different_bits(after(y), after(want)));
                expect_wrong(different_bits(y.view().row_block(at, 1), want.view().row_block(at, 1)));
            };
            check(forward(s.layer, other));
            if (s.layer.d_in() == 0) continue;
            fill(other.x.view().row_block(at, 1), std::numeric_limits<T>::quiet_NaN());
            const auto spoilt = forward(s.layer, other);
            check(spoilt);
            expect(not_all_nan(spoilt.view(), at));
        }
        if constexpr (trains) gradients_run_backwards_only(s);
    });
}

template <class Traits, class Type>
void layer_suite<Traits, Type>::any_executor_gives_the_same_bits() {
    std::deque<subject> subjects;
    for (const auto& v : Traits::variants()) subjects.emplace_back(v.config);
    for_each_executor([&](executor_ref ex, const std::string& name) {
        for (std::size_t i = 0; i < subjects.size(); ++i) {
            INFO(name << ", config: " << Traits::variants()[i].name);
            const subject& s = subjects[i];
            const sample<T> rows({66, 0, 9}, s.layer.d_in(), 31);
            const auto want = forward(s.layer, rows);
            expect(different_bits(forward(s.layer, rows.rows(), rows.x.view(), ex).view(), want.view()));

            if constexpr (streams) {
                stream<layer_type> many(
                    s.layer,
                    {.max_tokens = 66, .max_rows = 40, .n_sequences = 2, .workers = ex.concurrency()});
                padded<T> y(75, s.layer.d_out());
                many.extend(rows, {{0, 0, 31, 0}, {1, 66, 9, 0}}, y, ex);
                many.extend(rows, {{0, 31, 35, 31}}, y, ex);
                expect(different_bits(y.view(), want.view()));
            }

            if constexpr (trains) {
                const auto dy = uniform_matrix<T>(75, s.layer.d_out(), 32);
                gradients serial(s, 75), shared(s, 75);
                backward(s.layer, rows.rows(), rows.x.view(), dy.view(), serial);
                backward(s.layer, rows.rows(), rows.x.view(), dy.view(), shared, ex);
                expect(different_bits(shared.dx.view(), serial.dx.view()));
                for (std::size_t k = 0; k < serial.grad.tensors.size(); ++k)
                    expect(different_bits(shared.grad.tensors[k].view(), serial.grad.tensors[k].view()));
            }
        }
    });
}

// One object, two threads, each with its own memory.
template <class Traits, class Type>
void layer_suite<Traits, Type>::two_threads_may_call_one_layer() {
    for_each_variant(false, [](const subject& s) {
        const sample<T> rows({40, 3}, s.layer.d_in(), 96);
        const auto want = forward(s.layer, rows);
        struct caller {
            std::optional<padded<T>> y;
            std::string problem;
        } callers[2];
        std::vector<std::thread> threads;
        for (caller& c : callers) {
            c.y.emplace(43, s.layer.d_out());
            threads.emplace_back([&s, &rows, &c] {
                try {
                    arena workspace(s.layer.bytes(limits_of(43, 2)).workspace);
                    for (int i = 0; i < 20; ++i)
                        s.layer.forward(rows.rows(), rows.x.view(), *c.y, nullptr, workspace);
                } catch (const std::exception& e) {
                    c.problem = e.what();
                }
            });
        }
        for (auto& t : threads) t.join();
        for (const caller& c : callers) expect(c.problem + different_bits(c.y->view(), want.view()));
    });
}

// Rounding in another direction, and subnormal numbers taken for zero: nothing fails, results are near, and
// streaming still gives the bits of forward.
template <class Traits, class Type>
void layer_suite<Traits, Type>::other_float_modes_change_little() {
    constexpr bool single = std::is_same_v<T, float>;
    for_each_variant(false, [](const subject& s) {
        sample<T> rows({5, 0, 9}, s.layer.d_in(), 17);
        for (idx i = 0; i < rows.x.view().rows(); i += 2)
            for (idx j = 0; j < s.layer.d_in(); j += 3) rows.x(i, j) *= std::numeric_limits<T>::min() / 3;
        const oracle want = ask(Traits::reference, s, rows);
        const auto dy = uniform_matrix<T>(14, s.layer.d_out(), 18);
        gradients usual(s, 14);
        if constexpr (trains) backward(s.layer, rows.rows(), rows.x.view(), dy.view(), usual);
        for (const auto& mode : float_modes) {
            INFO(mode.name);
            padded<T> y(14, s.layer.d_out()), streamed(14, s.layer.d_out());
            gradients g(s, 14);
            in_float_mode(mode, [&] {
                y = forward(s.layer, rows);
                if constexpr (streams) {
                    stream<layer_type> two(s.layer, {.max_tokens = 9, .max_rows = 9, .n_sequences = 2});
                    two.extend(rows, {{0, 0, 3, 0}, {1, 5, 6, 0}}, streamed);
                    two.extend(rows, {{0, 3, 2, 3}, {1, 11, 3, 6}}, streamed);
                }
                if constexpr (trains) backward(s.layer, rows.rows(), rows.x.view(), dy.view(), g);
            });
            expect(compare(y.view(), want, {.chain = 64 * chain(), .nmse = single ? 1e-10 : 1e-25}));
            if constexpr (streams) expect(different_bits(streamed.view(), y.view()));
            if constexpr (trains) {
                expect(far_from(g.dx, usual.dx));
                for (std::size_t i = 0; i < g.grad.tensors.size(); ++i)
                    expect(far_from(g.grad.tensors[i], usual.grad.tensors[i]));
            }
        }
    });
}
template <class Traits, class Type>
std::string layer_suite<Traits, Type>::far_from(const padded<T>& got, const padded<T>& usual) {
    const auto r = usual.view();
    oracle o(r.rows(), r.cols());
    double most = 1;
    for (idx i = 0; i < r.rows(); ++i)
        for (idx j = 0; j < r.cols(); ++j) most = std::max(most, std::abs(static_cast<double>(r(i, j))));
    for (idx i = 0; i < r.rows(); ++i)
        for (idx j = 0; j < r.cols(); ++j) o(i, j) = {static_cast<double>(r(i, j)), most};
    // sums that cancel keep little, so the bound for each element is what counts
    const double nmse = std::is_same_v<T, float> ? 1e-6 : 1e-20;
    return compare(got.view(), o, {.chain = 1024 * chain(), .nmse = nmse, .may_be_dull = true});
}

} // namespace sluice::test
