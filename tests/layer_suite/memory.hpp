// Checks of memory: nothing is allocated, sizes are those a layer says, and nothing beyond them is touched.
#pragma once

#include "layer_suite/guard_page.hpp"
#include "layer_suite/suite.hpp"
#include "support/allocations.hpp"
#include "support/executors.hpp"

namespace sluice::test {

template <class Traits, class Type>
void layer_suite<Traits, Type>::allocates_nothing() {
    REQUIRE(allocations_are_noticed());
    thread_pool pool(2);
    start_all(pool);
    const executor_ref executors[] = {executor_ref(), executor_ref(pool)};
    for_each_variant(true, [&](const subject& s) {
        const sample<T> rows({9, 0, 4}, s.layer.d_in(), 41);
        const limits most{.max_tokens = 13, .max_rows = 13, .n_sequences = 3, .workers = 2};
        const sizes need = s.layer.bytes(most);
        arena workspace(need.workspace), tape(need.tape), state_memory(need.state);
        auto state = bind_state(s.layer, state_memory, most);
        padded<T> y(13, s.layer.d_out());
        gradients g(s, 13);
        const batch b = rows.rows();
        for (executor_ref ex : executors) {
            CHECK(allocations_of([&] {
                      s.layer.forward(b, rows.x.view(), y, nullptr, workspace, ex);
                      extend(s.layer, b, rows.x.view(), y, state, workspace, ex);
                      for (idx slot : {0, 1, 2}) state.truncate(slot, 0);
                  }) == 0);
            if constexpr (trains)
                CHECK(allocations_of([&] {
                          s.layer.forward(b, rows.x.view(), y, &tape, workspace, ex);
                          s.layer.backward(b, rows.x.view(), y.view(), g.dx, tape, g.grad.view(), workspace,
                                           ex);
                      }) == 0);
        }
    });
}

// bytes() is what the largest calls take, and not a byte more.
template <class Traits, class Type>
void layer_suite<Traits, Type>::takes_the_memory_it_says() {
    reverse_in_parts three{3};
    const executor_ref executors[] = {executor_ref(), executor_ref(three)};
    for_each_variant(true, [&](const subject& s) {
        for (executor_ref ex : executors) {
            const idx n = 12;
            const limits most{.max_tokens = 70,
                              .max_rows = n,
                              .n_sequences = 11,
                              .max_rollback = 2,
                              .workers = ex.concurrency()};
            const sizes need = s.layer.bytes(most);
            const sample<T> rows({1, 0, 2, 0, 3, 0, 4, 0, 1, 1, 0}, s.layer.d_in(), 51);
            poisoned_memory workspace(need.workspace), tape(need.tape), state_memory(need.state);
            auto state = bind_state(s.layer, state_memory, most);
            CHECK(state_memory.arena().used() == need.state);
            padded<T> y(n, s.layer.d_out());
            s.layer.forward(rows.rows(), rows.x.view(), y, nullptr, workspace.arena(), ex);
            extend(s.layer, rows.rows(), rows.x.view(), y, state, workspace.arena(), ex);
            if constexpr (trains) {
                gradients g(s, n);
                s.layer.forward(rows.rows(), rows.x.view(), y, &tape.arena(), workspace.arena(), ex);
                CHECK((tape.arena().used() == need.tape || (skips && tape.arena().used() < need.tape)));
                s.layer.backward(rows.rows(), rows.x.view(), y.view(), g.dx, tape.arena(), g.grad.view(),
                                 workspace.arena(), ex);
                CHECK((workspace.arena().bytes() == need.workspace ||
                       (routed && workspace.arena().bytes() < need.workspace)));
            }
            expect(workspace.touched() + tape.touched() + state_memory.touched());
            if (need.state > 0) {
                poisoned_memory small(need.state - 64);
                CHECK_THROWS_AS(bind_state(s.layer, small, most), capacity_error);
            }
        }
    });
}

// Every arena that is too small is named, and no output was written.
template <class Traits, class Type>
void layer_suite<Traits, Type>::too_little_memory_is_refused_before_output() {
    for_each_variant(false, [](const subject& s) {
        const sample<T> rows({9, 2}, s.layer.d_in(), 61);
        const limits most{.max_tokens = 11, .max_rows = 11, .n_sequences = 2};
        const sizes need = s.layer.bytes(most);
        arena enough(need.workspace);
        padded<T> scratch(11, s.layer.d_out()), y(11, s.layer.d_out());
        s.layer.forward(rows.rows(), rows.x.view(), scratch, nullptr, enough);
        const std::size_t forward_needs = enough.bytes();
        const idx forward_steps = check_too_small(forward_needs, y, [&](arena& workspace) {
            s.layer.forward(rows.rows(), rows.x.view(), y, nullptr, workspace);
        });
        CHECK((forward_steps > 0) == (forward_needs > 0)); // some products need no workspace
        arena room(need.workspace), first_state(need.state);
        auto measured = bind_state(s.layer, first_state, most);
        extend(s.layer, rows.rows(), rows.x.view(), scratch, measured, room);
        check_too_small(room.bytes(), y, [&](arena& workspace) {
            arena state_memory(need.state);
            auto state = bind_state(s.layer, state_memory, most);
            extend(s.layer, rows.rows(), rows.x.view(), y, state, workspace);
        });
        if constexpr (trains) {
            arena tape(need.tape);
            s.layer.forward(rows.rows(), rows.x.view(), scratch, &tape, enough);
            if (tape.bytes() > 0)
                check_too_small(tape.bytes(), y, [&](arena& small) {
                    arena workspace(need.workspace);
                    s.layer.forward(rows.rows(), rows.x.view(), y, &small, workspace);
                });
        }
        if constexpr (trains) backward_is_refused_as_a_whole(s, rows, need);
    });
}

// Gradients and tape are as they were, so that the call can be made again.
template <class Traits, class Type>
void layer_suite<Traits, Type>::backward_is_refused_as_a_whole(const subject& s, const sample<T>& rows,
                                                               const sizes& need) {
    const idx n = rows.offsets.back();
    const auto dy = uniform_matrix<T>(n, s.layer.d_out(), 62);
    gradients want(s, n), g(s, n);
    arena workspace(need.workspace), tape(need.tape), enough(need.workspace);
    padded<T> y(n, s.layer.d_out());
    auto run = [&](gradients& to, arena& space) {
        s.layer.backward(rows.rows(), rows.x.view(), dy.view(), to.dx, tape, to.grad.view(), space);
    };
    s.layer.forward(rows.rows(), rows.x.view(), y, &tape, workspace);
    run(want, enough);
    s.layer.forward(rows.rows(), rows.x.view(), y, &tape, workspace);
    const std::size_t taped = tape.used();
    check_too_small(enough.bytes(), g.dx, [&](arena& small) { run(g, small); });
    CHECK((tape.used() == taped && (taped == need.tape || skips)));
    for (const auto& t : g.grad.tensors) CHECK(all_zero(t.view()));
    run(g, enough);
    expect(different_bits(g.dx.view(), want.dx.view()));
    for (std::size_t i = 0; i < g.grad.tensors.size(); ++i)
        expect(different_bits(g.grad.tensors[i].view(), want.grad.tensors[i].view()));
}

template <class Traits, class Type>
template <class F>
idx layer_suite<Traits, Type>::check_too_small(std::size_t bytes, padded<T>& y, F&& f) {
    idx steps = 0;
    const std::size_t step = std::max<std::size_t>(64, bytes / 40 / 64 * 64);
    for (std::size_t left = 64; left <= bytes; left += step, ++steps) {
        arena workspace(bytes - left);
        fill(y.view(), T(7));
        try {
            f(workspace);
            FAIL("an arena of " << bytes - left << " of " << bytes << " bytes was enough");
        } catch (const capacity_error& e) {
            CHECK(e.have == static_cast<idx>(bytes - left));
            CHECK(e.needed > e.have);
            CHECK_THAT(e.what(), contains_text("needs " + std::to_string(e.needed) + " bytes, has " +
                                               std::to_string(e.have)));
        }
        for (idx i = 0; i < y.view().rows(); ++i)
            for (idx j = 0; j < y.view().cols(); ++j)
                if (y(i, j) != T(7)) FAIL("output was written before the arena was found too small");
    }
    return steps;
}

// Every tensor, state, tape and workspace ends at a page that may not be touched.
template <class Traits, class Type>
void layer_suite<Traits, Type>::touches_nothing_beyond_its_memory() {
    for_each_variant(false, [](const subject& s) {
        const sample<T> rows({5, 0, 1, 9}, s.layer.d_in(), 94);
        const idx n = 15;
        const auto want = forward(s.layer, rows);
        guarded_params<params<const T>, T> weights(s.layer.config(), const_cast<subject&>(s).narrow.view());
        const layer_type layer(s.layer.config(), weights.view());
        const limits most{.max_tokens = 9, .max_rows = n, .n_sequences = 4};
        const sizes need = layer.bytes(most);
        guarded_arena workspace(need.workspace), tape(need.tape), memory(need.state);
        const guarded<T> x(rows.x.view()), y(n, layer.d_out());
        layer.forward(rows.rows(), x.view(), y, nullptr, workspace);
        expect(different_bits(y.view(), want.view()));
        auto state = bind_state(layer, memory, most);
        extend(layer, rows.rows(), x.view(), y, state, workspace);
        expect(different_bits(y.view(), want.view()));
        if constexpr (trains) {
            const auto dy = uniform_matrix<T>(n, layer.d_out(), 95);
            gradients right(s, n);
            backward(s.layer, rows.rows(), rows.x.view(), dy.view(), right);
            spread_params<params<T>, T> zeros(layer.config());
            guarded_params<params<T>, T> grad(layer.config(), zeros.view());
            const guarded<T> guarded_dy(dy.view()), dx(n, layer.d_in());
            layer.forward(rows.rows(), x.view(), y, &tape.arena(), workspace);
            layer.backward(rows.rows(), x.view(), guarded_dy.view(), dx, tape, grad.view(), workspace);
            expect(different_bits(dx.view(), right.dx.view()));
            for (std::size_t i = 0; i < grad.tensors.size(); ++i)
                expect(different_bits(grad.tensors[i].view(), right.grad.tensors[i].view()));
        }
    });
}

// Offsets of rows that no 32 bits hold, in x, y, weights and gradients.
template <class Traits, class Type>
void layer_suite<Traits, Type>::rows_may_be_gigabytes_apart() {
    for_each_variant(false, [](const subject& s) {
        const sample<T> rows({5, 0, 1, 9}, s.layer.d_in(), 97);
        const idx n = 15;
        const auto want = forward(s.layer, rows);
        auto& near = const_cast<subject&>(s).narrow;
        far_rows space(4 + 2 * static_cast<idx>(near.tensors.size()));
        if (!space.available()) {
            WARN("skipped: no address space for matrices of 36 GiB");
            return;
        }
        auto copied = [&](auto& set, const auto& tensors) {
            std::size_t i = 0;
            each_param([&](const param_name&, role, auto& t) { t = space.copy_of(tensors[i++].view()); },
                       set.view);
        };
        owned_params<params<const T>> weights(s.layer.config());
        copied(weights, near.tensors);
        const layer_type layer(s.layer.config(), weights.view);
        const limits most{.max_tokens = 9, .max_rows = n, .n_sequences = 4};
        const sizes need = layer.bytes(most);
        arena workspace(need.workspace), tape(need.tape), memory(need.state);
        const auto x = space.copy_of(rows.x.view()), y = space.template take<T>(n, layer.d_out());
        layer.forward(rows.rows(), x, y, nullptr, workspace);
        expect(different_bits(y, want.view()));
        fill(y, T(0));
        auto state = bind_state(layer, memory, most);
        extend(layer, rows.rows(), x, y, state, workspace);
        expect(different_bits(y, want.view()));
        if constexpr (trains) {
            const auto dy = uniform_matrix<T>(n, layer.d_out(), 98);
            gradients right(s, n);
            backward(s.layer, rows.rows(), rows.x.view(), dy.view(), right);
            owned_params<params<T>> grad(layer.config());
            spread_params<params<T>, T> zeros(layer.config());
            copied(grad, zeros.tensors);
            const auto far_dy = space.copy_of(dy.view()), dx = space.template take<T>(n, layer.d_in());
            layer.forward(rows.rows(), x, y, &tape, workspace);
            layer.backward(rows.rows(), x, far_dy, dx, tape, grad.view, workspace);
            expect(different_bits(dx, right.dx.view()));
            std::size_t i = 0;
            each_param([&](const param_name&, role,
                           auto& t) { expect(different_bits(t, right.grad.tensors[i++].view())); },
                       grad.view);
        }
    });
}

} // namespace sluice::test
