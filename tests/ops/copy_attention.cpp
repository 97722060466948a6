#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/message_of.hpp"
#include "support/random_data.hpp"

#include <sluice/ops/attention.hpp>
#include <sluice/ops/copy_attention.hpp>
#include <sluice/reference/cswa.hpp>

using sluice::batch;
using sluice::config_error;
using sluice::copy_rules;
using sluice::copy_state;
using sluice::idx;
using sluice::key_range;
using sluice::limits;
using sluice::no_chunks;
using sluice::window_unit;
using sluice::test::message_of;

namespace {

// Whether copy j (from 1) of position n sees copy i of position m.
bool seen(const copy_rules& r, idx m, idx i, idx n, idx j) {
    const key_range range = i == 1 ? r.original_keys(n) : r.hidden_keys(n, j - 1);
    const idx key = i == 1 ? m : m * r.hidden() + i - 2;
    return key >= range.lo && key < range.hi && (i == 1 || j > 1);
}

idx pairs(idx n, const copy_rules& r) {
    idx total = 0;
    for (idx at = 0; at < n; ++at)
        for (idx copy = 0; copy < r.repeat; ++copy) {
            const key_range a = r.original_keys(at), h = r.hidden_keys(at, copy);
            total += a.hi - a.lo + (copy == 0 ? 0 : h.hi - h.lo);
        }
    return total;
}

} // namespace

TEST_CASE("ranges are the dense mask and never step back") {
    for (idx repeat : {1, 2, 3, 5})
        for (idx window : {0, 1, 2, 3, 7, 100})
            for (idx chunk : {idx{1}, idx{2}, idx{4}, idx{5}, idx{100}, no_chunks})
                for (auto unit : {window_unit::positions, window_unit::hidden_tokens}) {
                    const copy_rules r{repeat, window, chunk, unit};
                    const sluice::reference::copies c{.repeat = repeat,
                                                      .window = window,
                                                      .chunk = chunk,
                                                      .window_of_hidden_tokens =
                                                          unit != window_unit::positions};
                    INFO("K " << repeat << ", W " << window << ", C " << chunk);
                    key_range before[2]{};
                    bool same = true, rising = true, reached = true;
                    for (idx n = 0; n < 13; ++n)
                        for (idx j = 1; j <= repeat; ++j) {
                            const key_range now[2]{r.original_keys(n), r.hidden_keys(n, j - 1)};
                            for (int s = 0; s < 2; ++s)
                                rising = rising && now[s].lo >= before[s].lo && now[s].hi >= before[s].hi &&
                                         now[s].lo <= now[s].hi;
                            std::copy_n(now, 2, before);
                            for (idx m = 0; m < 13; ++m)
                                for (idx i = 1; i <= repeat; ++i) {
                                    const bool want = sluice::reference::visible(c, m, i, n, j);
                                    same = same && seen(r, m, i, n, j) == want;
                                    reached = reached && (!want || i == 1 || m >= r.first_seen(n));
                                }
                        }
                    CHECK(same);
                    CHECK(rising);
                    CHECK(reached);
                }
}

TEST_CASE("visible pairs are as many as published") {
    CHECK(pairs(8, {3, 0, no_chunks}) == 132);
    CHECK(pairs(8, {3, 4, no_chunks}) == 220);
    CHECK(pairs(8, {3, 4, 4}) == 180);
    CHECK(pairs(16, {3, 4, 4}) == 552);
    CHECK(pairs(64, {2, 16, 32}) == 4976);
    CHECK(pairs(64, {3, 16, 32}) == 9440);
    CHECK(pairs(8, {.repeat = 1, .window = 5}) == 36);
}

TEST_CASE("of copies that are alike one query is read") {
    const copy_rules rules{.repeat = 3, .window = 2, .chunk = 4};
    const idx n = 7, d = 4;
    batch b = batch::one(n);
    b.copies = rules.repeat;
    std::vector<sluice::copy_attention::row_keys> keys;
    auto same = sluice::test::uniform_matrix<double>(b.rows(), d, 1), first = same;
    for (idx row = 0; row < b.rows(); ++row) {
        const idx at = row / rules.repeat, copy = row % rules.repeat;
        keys.push_back({{rules.original_keys(at), rules.hidden_keys(at, copy)}, copy == 0});
        for (idx j = 0; j < d; ++j) {
            same(row, j) = same(row - copy, j);
            first(row, j) = copy == 0 ? same(row, j) : std::numeric_limits<double>::quiet_NaN();
        }
    }
    const auto originals = sluice::test::uniform_matrix<double>(n, d, 2),
               hidden = sluice::test::uniform_matrix<double>(b.rows() - n, d, 3);
    const sluice::copy_sources<double> sources{{&b, originals.view(), originals.view()},
                                               {&b, hidden.view(), hidden.view(), rules.hidden()}};
    sluice::arena workspace(1 << 20);
    auto attend = [&](sluice::in<double> q, bool alike) {
        sluice::test::padded<double> y(b.rows(), d);
        sluice::attend(b, {.n_heads = 1, .n_kv_heads = 1, .head_dim = d}, q, sources,
                       sluice::copy_attention{&b, keys.data(), alike}, y.view(), {}, workspace, {});
        return y;
    };
    const auto want = attend(same.view(), false);
    CHECK(sluice::test::different_bits(attend(first.view(), true).view(), want.view()) == "");
    CHECK(sluice::test::different_bits(attend(first.view(), false).view(), want.view()) != "");
}

TEST_CASE("rules out of range are named") {
    auto complaint = [](copy_rules r) { return message_of<config_error>([&] { check_rules(r, "cswa"); }); };
    CHECK(complaint({.repeat = 0}) == "cswa: repeat must be 1 to 1048576, is 0");
    CHECK(complaint({.window = -1}) == "cswa: window must be 0 to 1099511627776, is -1");
    CHECK(complaint({.chunk = 0}) == "cswa: chunk must be 1 to 1099511627776, is 0");
    CHECK(complaint({}) == "no error");
}

TEST_CASE("the ring is as large as what can be seen, or seen again") {
    auto kept = [](const copy_rules& r, const limits& most) {
        sluice::arena dry;
        return copy_state<float>::bind(dry, 1, 4, r, most).kept;
    };
    const limits most{.max_tokens = 1000, .max_rows = 500};
    CHECK(kept({3, 16, 32}, most) == 17); // 16 and the position itself
    CHECK(kept({3, 16, 8}, most) == 8);   // 7: the chunk is shorter
    CHECK(kept({3, 0, 32}, most) == 0);   // dropped at once
    CHECK(kept({3, 16, 1}, most) == 0);   // likewise
    CHECK(kept({1, 16, 32}, most) == 0);  // no copies
    CHECK(kept({3, 5000, no_chunks}, most) == 1000);
    CHECK(kept({5, 9, no_chunks, window_unit::hidden_tokens}, most) == 4); // 9 of 4 a position: 3
    CHECK(kept({3, 16, 32}, {.max_tokens = 1000, .max_rollback = 5}) == 21);
    // and does not grow with the sequence or the call
    CHECK(kept({3, 16, 32}, {.max_tokens = 100000, .max_rows = 4096}) == 17);
}

TEST_CASE("live positions start again with every chunk") {
    sluice::arena memory(std::size_t{1} << 20), workspace(std::size_t{1} << 20);
    const copy_rules rules{3, 2, 4};
    auto state = copy_state<double>::bind(memory, 1, 2, rules, {.max_tokens = 20, .max_rows = 1});
    const idx want[] = {1, 2, 2, 2};
    CHECK(state.live(0) == 0);
    sluice::tensor<double> k(1, 2), hidden(2, 2);
    idx past = 0;
    sluice::attention_source<double> sources[2];
    batch b = batch::one(1);
    b.copies = 3;
    for (idx n = 0; n < 13; ++n) {
        workspace.release(0);
        state.append(b, k, k, hidden, hidden, {&past, 1}, sources, workspace);
        CHECK(past == n);
        CHECK(workspace.used() == 0); // a step works in the ring
        CHECK(state.live(0) == want[n % 4]);
    }
    CHECK(state.tokens(0) == 13);
}

TEST_CASE("keys stay where their index says, in steps and in long calls") {
    for (idx step : {1, 2, 5, 16}) {
        INFO("step " << step);
        sluice::arena memory(std::size_t{1} << 22), workspace(std::size_t{1} << 22);
        const copy_rules rules{4, 6, 9};
        auto state = copy_state<float>::bind(memory, 2, 3, rules, {.max_tokens = 64, .max_rollback = 2});
        idx past = 0;
        sluice::attention_source<float> sources[2];
        for (idx n = 0; n + step <= 64; n += step) {
            batch b = batch::one(step);
            b.copies = 4;
            sluice::tensor<float> k(step, 6), hidden(step * 3, 6);
            for (idx i = 0; i < step; ++i) fill(k.view().row_block(i, 1), static_cast<float>(n + i));
            for (idx i = 0; i < step * 3; ++i)
                fill(hidden.view().row_block(i, 1), static_cast<float>(3 * n + i));
            workspace.release(0);
            state.append(b, k, k, hidden, hidden, {&past, 1}, sources, workspace);
            bool right = true;
            for (idx at = n; at < n + step; ++at) {
                const key_range range = rules.hidden_keys(at, 3);
                for (idx key = range.lo; key < range.hi; ++key) {
                    const auto& s = sources[1];
                    const idx row = s.row(key), tile = row / sluice::key_tile * sluice::key_tile;
                    right = right &&
                            s.k[s.head + tile * 3 + row % sluice::key_tile] == static_cast<float>(key) &&
                            s.v[s.head + row * 3 + 2] == static_cast<float>(key);
                }
            }
            CHECK(right);
        }
    }
}

TEST_CASE("a state of other rules is refused") {
    sluice::arena memory(std::size_t{1} << 20);
    const copy_rules rules{3, 2, 4};
    const auto state = copy_state<double>::bind(memory, 1, 2, rules, {.max_tokens = 20});
    auto complaint = [&](copy_rules r) {
        return message_of<config_error>([&] { state.check_shape(1, 2, r); });
    };
    CHECK(complaint(rules) == "no error");
    CHECK(complaint({2, 2, 4}) == "cswa state: it was bound for repeat 3, the layer has 2");
    CHECK(complaint({3, 1, 4}) == "cswa state: it was bound for window 2, the layer has 1");
    CHECK(complaint({3, 2, 5}) == "cswa state: it was bound for chunk 4, the layer has 5");
    CHECK(complaint({3, 2, 4, window_unit::hidden_tokens}) ==
          "cswa state: it was bound for window_unit 0, the layer has 1");
    CHECK(message_of<config_error>([&] { state.check_shape(2, 2, rules); }) ==
          "attention state: it was bound for 1 x 2 heads and window 0, the layer has 2 x 2 and window 0");
}
