// Checks of states: streaming is forward, bit for bit, and what a state cannot hold is refused.
#pragma once

#include "layer_suite/suite.hpp"

namespace sluice::test {

template <class Traits, class Type>
void layer_suite<Traits, Type>::streams_to_the_same_bits_at_every_split() {
    for_each_variant(false, [](const subject& s) {
        for (idx n : {13, 70}) {
            const sample<T> rows({n}, s.layer.d_in(), 11);
            const auto want = forward(s.layer, rows);
            for (idx cut = 0; cut <= n; ++cut) {
                INFO(n << " tokens, cut at " << cut);
                stream<layer_type> two(s.layer, limits_of(n));
                padded<T> y(n, s.layer.d_out());
                two.extend(rows, {{0, 0, cut, 0}}, y);
                two.extend(rows, {{0, cut, n - cut, cut}}, y);
                expect(different_bits(y.view(), want.view()));
            }
        }
        const idx n = 203; // past the end of every ring
        const sample<T> rows({n}, s.layer.d_in(), 12);
        const auto want = forward(s.layer, rows);
        for (idx step : {1, 7, 61}) {
            INFO("steps of " << step);
            stream<layer_type> many(s.layer, {.max_tokens = n, .max_rows = step});
            padded<T> y(n, s.layer.d_out());
            for (idx i = 0; i < n; i += step) many.extend(rows, {{0, i, std::min(step, n - i), i}}, y);
            expect(different_bits(y.view(), want.view()));
        }
    });
}

template <class Traits, class Type>
void layer_suite<Traits, Type>::streams_several_sequences_unevenly() {
    for_each_variant(false, [](const subject& s) {
        const sample<T> rows({90, 0, 71, 5}, s.layer.d_in(), 13);
        const auto want = forward(s.layer, rows);
        const idx slots[] = {2, 0, 4, 1};
        stream<layer_type> many(s.layer, {.max_tokens = 90, .max_rows = 16, .n_sequences = 5});
        padded<T> y(rows.offsets.back(), s.layer.d_out());
        std::vector<idx> done(4, 0);
        for (idx round = 0; done[0] < 90 || done[2] < 71 || done[3] < 5; ++round) {
            std::vector<piece> pieces;
            for (idx i : {2, 0, 3, 1}) { // another order than the sample's, and not all every time
                idx& have = done[static_cast<std::size_t>(i)];
                const idx n = std::min((3 * round + 5 * i) % 6, rows.length(i) - have);
                if ((round + i) % 4 == 3) continue;
                pieces.push_back({slots[i], rows.rows().begin(i) + have, n, have});
                have += n;
            }
            many.extend(rows, pieces, y);
        }
        expect(different_bits(y.view(), want.view()));
    });
}

template <class Traits, class Type>
void layer_suite<Traits, Type>::takes_tokens_back() {
    for_each_variant(false, [](const subject& s) {
        const idx n = 150, most = 3;
        const sample<T> rows({n}, s.layer.d_in(), 14), wrong({n}, s.layer.d_in(), 15);
        const auto want = forward(s.layer, rows);
        stream<layer_type> many(s.layer,
                                {.max_tokens = n, .max_rows = 8, .n_sequences = 2, .max_rollback = most});
        padded<T> y(n, s.layer.d_out()), dropped(n, s.layer.d_out());
        for (idx slot : {1, 0}) {
            many.extend(wrong, {{slot, 0, 2, 0}},
                        dropped); // all of it may be taken back, and at any time
            many.state().truncate(slot, 0);
            for (idx i = 0, round = 0; i < n; ++round) {
                const idx step = std::min<idx>(round % 8 + 1, n - i);
                many.extend(rows, {{slot, i, step, i}}, y);
                i += step;
                const idx draft = std::min<idx>(round % (most + 1), n - i);
                many.extend(wrong, {{slot, i, draft, i}}, dropped);
                many.state().truncate(slot, i);
            }
            expect(different_bits(y.view(), want.view()));
        }
    });
}

// A state that is full, and truncations to what it does not hold.
template <class Traits, class Type>
void layer_suite<Traits, Type>::states_refuse_what_they_cannot_hold() {
    if constexpr (!row_by_row)
        for_each_variant(false, [](const subject& s) {
            const idx n = 6;
            const sample<T> rows({n}, s.layer.d_in(), 92);
            const auto want = forward(s.layer, rows);
            const limits most{.max_tokens = n, .max_rows = n, .n_sequences = 2, .max_rollback = 1};
            const sizes need = s.layer.bytes(most);
            if (need.state == 0) {
                SUCCEED("made of layers without state");
                return;
            }
            arena workspace(need.workspace), memory(need.state);
            auto state = s.layer.bind_state(memory, most);
            padded<T> y(n, s.layer.d_out());
            auto extend = [&](idx first, idx m) {
                s.layer.extend(batch::one(std::span<const token_id>(rows.ids).subspan(
                                              static_cast<std::size_t>(first), static_cast<std::size_t>(m)),
                                          first),
                               rows.x.view().row_block(first, m), y.view().row_block(first, m), state,
                               workspace);
            };
            extend(0, 4);
            fill(y.view(), T(7));
            CHECK_THROWS_AS(extend(1, 3), capacity_error); // 4 + 3 > 6
            for (idx i = 0; i < n; ++i) CHECK(y(i, 0) == T(7));
            for (const auto& [slot, length] : {std::pair<idx, idx>{-1, 0},
                                               {2, 0},
                                               {1L << 62, 0},
                                               {0, -1},
                                               {0, 5},
                                               {0, 1L << 62},
                                               {0, 2},
                                               {1, 1}})
                CHECK_THROWS_AS(state.truncate(slot, length), input_error);
            extend(4, 2);
            CHECK_THROWS_AS(extend(5, 1), capacity_error);
            state.truncate(0, 5);
            CHECK_THROWS_AS(state.truncate(0, 4), input_error); // two behind the newest
            extend(5, 1);
            expect(different_bits(y.view().row_block(4, 2), want.view().row_block(4, 2)));
        });
    else
        SUCCEED("rows do not know of each other");
}

} // namespace sluice::test
