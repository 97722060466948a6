// The suite that every layer goes through: SLUICE_TEST_LAYER(prefix, traits, types...) makes its test cases.
// A traits struct says what the layer is called with and what its reference computes:
//   template <class W> using params;                       template <class T, class W, class Arch> using
//   layer; static std::vector<variant<config>> variants();        configs; a `large` one takes part where
//   that is cheap static void reference(config, params<double>, batch, x, y);      wrong_reference: the same
//   with a mistake
#pragma once

#include "support/allocations.hpp"
#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/executors.hpp"
#include "support/guard_page.hpp"
#include "support/random_data.hpp"

#include <sluice/core/eigen.hpp>
#include <sluice/core/layer.hpp>
#include <sluice/core/tensor.hpp>

#include <deque>
#include <numeric>
#include <optional>
#include <thread>
#include <vector>

namespace sluice::test {

template <class Config>
struct variant {
    std::string name;
    Config config{};
    bool large = false;
};

// The message of the Error that f() throws.
template <class Error, class F>
std::string message_of(F&& f) {
    try {
        f();
    } catch (const Error& e) {
        return e.what();
    } catch (const std::exception& e) {
        return std::string("another error: ") + e.what();
    }
    return "no error";
}

// CHECK of a sentence about what is wrong, "" for nothing. Functions, since the macro's code in every
// instance of the suite is most of what there is to compile.
inline void expect(const std::string& wrong, int line = __builtin_LINE()) {
    INFO("layer_suite.hpp, line " << line);
    CHECK(wrong == "");
}
inline void expect_wrong(const std::string& wrong, int line = __builtin_LINE()) {
    INFO("layer_suite.hpp, line " << line);
    CHECK(wrong != "");
}

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

// Memory of NaN between guards of NaN, as an arena: what is read before it is written spoils the result.
class poisoned_memory {
public:
    explicit poisoned_memory(std::size_t bytes)
        : bytes_(bytes), memory_(bytes + 3 * guard, poison), arena_(std::span(start(), bytes)) {}
    poisoned_memory(const poisoned_memory&) = delete;

    sluice::arena& arena() { return arena_; }
    operator sluice::arena&() { return arena_; }
    std::string touched() const {
        const auto* first = memory_.data();
        const auto before = static_cast<std::size_t>(const_cast<poisoned_memory*>(this)->start() - first);
        for (std::size_t i = 0; i < memory_.size(); ++i)
            if ((i < before || i >= before + bytes_) && memory_[i] != poison)
                return "bytes outside were written";
        return "";
    }

private:
    static constexpr std::size_t guard = sluice::arena::alignment;
    static constexpr std::byte poison{0xFF};
    std::byte* start() {
        const auto address = reinterpret_cast<std::uintptr_t>(memory_.data());
        return memory_.data() + guard + (guard - address % guard) % guard;
    }

    std::size_t bytes_;
    std::vector<std::byte> memory_;
    sluice::arena arena_;
};

// A parameter set P (of T or const T) whose tensors lie apart, strided and misaligned between guards.
template <class P, class T>
struct spread_params {
    template <class Config>
    explicit spread_params(const Config& config) : skeleton(config) {
        each_param(
            [&](const param_name&, role, auto& t) { t = tensors.emplace_back(t.rows(), t.cols()).view(); },
            skeleton.view);
    }
    P& view() { return skeleton.view; }
    std::string touched() const {
        for (const auto& t : tensors)
            if (std::string where = t.touched(); !where.empty()) return where;
        return "";
    }

    owned_params<P> skeleton;      // for sets that keep their views in memory
    std::deque<padded<T>> tensors; // in the order of each()
};

// Rows of packed sequences: a batch and the memory it refers to.
template <class T>
struct sample {
    sample(const std::vector<idx>& lengths, idx width, std::uint64_t key)
        : offsets{0},
          x(uniform_matrix<T>(std::accumulate(lengths.begin(), lengths.end(), idx{0}), width, key)) {
        for (idx n : lengths) offsets.push_back(offsets.back() + n);
        const random_source numbers(key);
        for (idx i = 0; i < offsets.back(); ++i) ids.push_back(static_cast<token_id>(numbers.bits(i) % 5));
    }
    batch rows() const { return {.n_tokens = offsets.back(), .offsets = offsets, .ids = ids}; }
    // Sequence s alone.
    batch alone(idx s) const {
        const auto first = offsets[static_cast<std::size_t>(s)];
        return batch::one(
            std::span(ids).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(length(s))));
    }
    tensor_view<const T> x_of(idx s) const {
        return x.view().row_block(offsets[static_cast<std::size_t>(s)], length(s));
    }
    idx n_sequences() const { return static_cast<idx>(offsets.size()) - 1; }
    idx length(idx s) const { return rows().end(s) - rows().begin(s); }
    // Another token at row i.
    void change(idx i) {
        for (idx j = 0; j < x.view().cols(); ++j) x(i, j) = T(1.5) - x(i, j);
        token_id& id = ids[static_cast<std::size_t>(i)];
        id = (id + 1) % 5;
    }

    std::vector<idx> offsets;
    std::vector<token_id> ids; // below 5
    padded<T> x;
};

// Tokens that one call appends: rows [row, row + n) of a sample to `slot`, which holds `position` tokens.
struct piece {
    idx slot, row, n, position;
};

template <class Layer>
class stream {
    using T = typename Layer::scalar;

public:
    stream(const Layer& layer, const limits& most)
        : layer_(layer),
          need_(layer.bytes(most)),
          state_memory_(need_.state),
          workspace_(need_.workspace),
          state_(layer.bind_state(state_memory_, most)) {}

    // y has a row for every row of the sample; those of the pieces are written.
    void extend(const sample<T>& from, const std::vector<piece>& pieces, tensor_view<T> y,
                executor_ref ex = {}) {
        std::vector<idx> offsets{0}, positions, slots, rows;
        std::vector<token_id> ids;
        for (const piece& p : pieces) {
            offsets.push_back(offsets.back() + p.n);
            slots.push_back(p.slot);
            for (idx i = 0; i < p.n; ++i) {
                rows.push_back(p.row + i);
                positions.push_back(p.position + i);
                ids.push_back(from.ids[static_cast<std::size_t>(p.row + i)]);
            }
        }
        const auto n = static_cast<idx>(rows.size());
        padded<T> x(n, layer_.d_in()), out(n, layer_.d_out());
        for (idx i = 0; i < n; ++i) copy(from.x.view().row_block(row(rows, i), 1), x.view().row_block(i, 1));
        batch b{.n_tokens = n, .offsets = offsets, .positions = positions, .ids = ids, .slots = slots};
        if (pieces.size() == 1 && pieces[0].slot == 0)
            b = batch::one(ids, pieces[0].position); // the common form
        layer_.extend(b, x.view(), out.view(), state_, workspace_.arena(), ex);
        for (idx i = 0; i < n; ++i)
            copy(tensor_view<const T>(out.view()).row_block(i, 1), y.row_block(row(rows, i), 1));
        expect(out.touched());
        expect(state_memory_.touched());
        expect(workspace_.touched());
        CHECK(workspace_.arena().used() == 0);
    }
    typename Layer::state_type& state() { return state_; }

private:
    static idx row(const std::vector<idx>& rows, idx i) { return rows[static_cast<std::size_t>(i)]; }

    Layer layer_;
    sizes need_;
    poisoned_memory state_memory_, workspace_;
    typename Layer::state_type state_;
};

template <class Traits, class Type>
class layer_suite {
public:
    using T = typename Type::scalar;
    using arch = typename Type::arch;
    template <class W>
    using params = typename Traits::template params<W>;
    using layer_type = typename Traits::template layer<T, const T, arch>;
    using config_type = typename layer_type::config_type;
    static constexpr bool trains = trainable_layer<layer_type>;
    static constexpr bool row_by_row = std::is_same_v<typename layer_type::state_type, no_state>;

    static_assert(layer<layer_type> && streaming_layer<layer_type>);

    // A layer with weights that T can hold, and the same weights for the reference.
    struct subject {
        explicit subject(const config_type& config)
            : wide(config), narrow(config), layer(config, narrow.view()) {
            std::uint64_t key = 100;
            std::size_t i = 0;
            each_param(
                [&](const param_name&, role r, auto& t) {
                    const double most =
                        r == role::matrix ? std::sqrt(3.0 / static_cast<double>(t.cols())) : 1;
                    fill_uniform(t, ++key, r == role::vector ? 0.5 : -most, r == role::vector ? 1.5 : most);
                    copy(t, narrow.tensors[i].view(), [](double v) { return static_cast<T>(v); });
                    copy(narrow.tensors[i++].view(), t, [](T v) { return static_cast<double>(v); });
                },
                wide.view);
        }
        owned_params<params<double>> wide;
        spread_params<params<const T>, T> narrow;
        layer_type layer;

    private:
        template <class A, class B, class F>
        static void copy(const tensor_view<A>& a, const tensor_view<B>& b, F f) {
            for (idx i = 0; i < a.rows(); ++i)
                for (idx j = 0; j < a.cols(); ++j) b(i, j) = f(a(i, j));
        }
    };

    // Gradients of sum(y dy) for a given dy.
    struct gradients {
        gradients(const subject& s, idx rows) : grad(s.layer.config()), dx(rows, s.layer.d_in()) {}
        spread_params<params<T>, T> grad;
        padded<T> dx;
    };

    static limits limits_of(idx rows, idx n_sequences = 1, idx workers = 1) {
        rows = std::max<idx>(rows, 1); // limits are positive
        return {.max_tokens = rows, .max_rows = rows, .n_sequences = n_sequences, .workers = workers};
    }

    static padded<T> forward(const layer_type& layer, const batch& b, in<T> x, executor_ref ex = {}) {
        poisoned_memory workspace(
            layer.bytes(limits_of(b.n_tokens, b.n_sequences(), ex.concurrency())).workspace);
        padded<T> y(b.n_tokens, layer.d_out());
        layer.forward(b, x, y, nullptr, workspace.arena(), ex);
        expect(workspace.touched());
        CHECK(workspace.arena().used() == 0);
        expect(y.touched());
        return y;
    }
    static padded<T> forward(const layer_type& layer, const sample<T>& s) {
        return forward(layer, s.rows(), s.x.view());
    }

    static void backward(const layer_type& layer, const batch& b, in<T> x, in<T> dy, gradients& g,
                         executor_ref ex = {}) {
        const sizes need = layer.bytes(limits_of(b.n_tokens, b.n_sequences(), ex.concurrency()));
        poisoned_memory workspace(need.workspace), tape(need.tape);
        padded<T> y(b.n_tokens, layer.d_out());
        layer.forward(b, x, y, &tape.arena(), workspace.arena(), ex);
        CHECK(tape.arena().used() == need.tape);
        layer.backward(b, x, dy, g.dx, tape.arena(), g.grad.view(), workspace.arena(), ex);
        CHECK(tape.arena().used() == 0);
        CHECK(workspace.arena().used() == 0);
        expect(workspace.touched() + tape.touched() + g.dx.touched() + g.grad.touched());
    }

    template <class F>
    static void for_each_variant(bool large, F&& f) {
        for (const auto& v : Traits::variants()) {
            if (v.large && !large) continue;
            INFO("config: " << v.name);
            const subject s(v.config);
            f(s);
        }
    }

    // What the reference says of a sample, and how far from it the layer may be.
    template <class Reference>
    static oracle ask(Reference&& reference, const subject& s, const sample<T>& rows) {
        tensor<double> x(rows.x.view().rows(), rows.x.view().cols()), y(x.rows(), s.layer.d_out());
        for (idx i = 0; i < x.rows(); ++i)
            for (idx j = 0; j < x.cols(); ++j) x(i, j) = static_cast<double>(rows.x.view()(i, j));
        reference(s.layer.config(), s.wide.view, rows.rows(), x, y);
        oracle want(y.rows(), y.cols());
        double largest = 0;
        for (idx i = 0; i < y.rows(); ++i)
            for (idx j = 0; j < y.cols(); ++j) largest = std::max(largest, std::abs(y(i, j)));
        for (idx i = 0; i < y.rows(); ++i)
            for (idx j = 0; j < y.cols(); ++j) want(i, j) = {y(i, j), largest};
        return want;
    }
    // Layers over layers carry the rounding of one through the next, and may ask for more.
    static constexpr idx chain() {
        if constexpr (requires { Traits::chain; })
            return Traits::chain;
        else
            return 256;
    }
    static constexpr tolerance close{.chain = chain()};

    // ---------------------------------------------------------------------------------------------------------

    static void agrees_with_its_reference() {
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
    static void a_wrong_reference_is_noticed() {
        for_each_variant(false, [](const subject& s) {
            const sample<T> rows({5, 0, 1, 9}, s.layer.d_in(), 7);
            auto y = forward(s.layer, rows);
            expect_wrong(compare(y.view(), ask(Traits::wrong_reference, s, rows), close));
            const oracle want = ask(Traits::reference, s, rows);
            REQUIRE(compare(y.view(), want, close) == "");
            y(7, 0) += static_cast<T>(2 * (4 * std::sqrt(static_cast<double>(chain())) + 8) *
                                      unit_roundoff<T> * want(7, 0).size);
            expect_wrong(compare(y.view(), want, close));
        });
    }

    static void takes_any_view() {
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

    static void sequences_do_not_meet() {
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

    static void no_tokens_are_legal() {
        for_each_variant(false, [](const subject& s) {
            const tensor_view<T> x(nullptr, 0, s.layer.d_in()), y(nullptr, 0, s.layer.d_out());
            poisoned_memory workspace(s.layer.bytes(limits_of(0, 2)).workspace), tape(64),
                state_memory(1 << 20);
            const std::vector<idx> offsets{0, 0, 0};
            auto state = s.layer.bind_state(state_memory, {.max_tokens = 4, .n_sequences = 2});
            for (const batch& b : {batch{}, batch{.offsets = offsets}}) {
                s.layer.forward(b, x, y, nullptr, workspace.arena());
                s.layer.extend(b, x, y, state, workspace.arena());
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

    static void is_causal() {
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

    // dx of a token does not depend on dy of tokens before it.
    static void gradients_run_backwards_only(const subject& s) {
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

    static void streams_to_the_same_bits_at_every_split() {
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

    static void streams_several_sequences_unevenly() {
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

    static void takes_tokens_back() {
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

    static void gradients_are_slopes() {
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
                    expect(wrong_layer_gradient(value, w, g.grad.tensors[i].view()));
                });
                g.dx(5, 0) += 1e-5 * std::max(1.0, std::abs(g.dx(5, 0)));
                expect_wrong(
                    wrong_layer_gradient(value, rows.x.view(), g.dx.view())); // the test is able to fail
            } else {
                gradients_agree_with_double(s, rows, dy, g);
            }
        });
    }

    static void gradients_agree_with_double(const subject& s, const sample<T>& rows, const padded<T>& dy,
                                            gradients& g) {
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
        for (std::size_t i = 0; i < g.grad.tensors.size(); ++i)
            check(g.grad.tensors[i], want.grad.tensors[i]);
    }

    static void gradients_accumulate() {
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
                    error = std::max(error,
                                     std::abs(static_cast<double>(b(k / a.cols(), k % a.cols())) - 2 * one));
                }
                CHECK(most > 0);
                CHECK(error <= 200 * unit_roundoff<T> * std::max(most, 1.0));
            }
        });
    }

    static void any_executor_gives_the_same_bits() {
        std::deque<subject> subjects;
        for (const auto& v : Traits::variants()) subjects.emplace_back(v.config);
        for_each_executor([&](executor_ref ex, const std::string& name) {
            for (std::size_t i = 0; i < subjects.size(); ++i) {
                INFO(name << ", config: " << Traits::variants()[i].name);
                const subject& s = subjects[i];
                const sample<T> rows({66, 0, 9}, s.layer.d_in(), 31);
                const auto want = forward(s.layer, rows);
                expect(different_bits(forward(s.layer, rows.rows(), rows.x.view(), ex).view(), want.view()));

                stream<layer_type> many(
                    s.layer,
                    {.max_tokens = 66, .max_rows = 40, .n_sequences = 2, .workers = ex.concurrency()});
                padded<T> y(75, s.layer.d_out());
                many.extend(rows, {{0, 0, 31, 0}, {1, 66, 9, 0}}, y, ex);
                many.extend(rows, {{0, 31, 35, 31}}, y, ex);
                expect(different_bits(y.view(), want.view()));

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

    static void allocates_nothing() {
        REQUIRE(allocations_are_noticed());
        thread_pool pool(2);
        start_all(pool);
        const executor_ref executors[] = {executor_ref(), executor_ref(pool)};
        for_each_variant(true, [&](const subject& s) {
            const sample<T> rows({9, 0, 4}, s.layer.d_in(), 41);
            const limits most{.max_tokens = 13, .max_rows = 13, .n_sequences = 3, .workers = 2};
            const sizes need = s.layer.bytes(most);
            arena workspace(need.workspace), tape(need.tape), state_memory(need.state);
            auto state = s.layer.bind_state(state_memory, most);
            padded<T> y(13, s.layer.d_out());
            gradients g(s, 13);
            const batch b = rows.rows();
            for (executor_ref ex : executors) {
                CHECK(allocations_of([&] {
                          s.layer.forward(b, rows.x.view(), y, nullptr, workspace, ex);
                          s.layer.extend(b, rows.x.view(), y, state, workspace, ex);
                          for (idx slot : {0, 1, 2}) state.truncate(slot, 0);
                      }) == 0);
                if constexpr (trains)
                    CHECK(allocations_of([&] {
                              s.layer.forward(b, rows.x.view(), y, &tape, workspace, ex);
                              s.layer.backward(b, rows.x.view(), y.view(), g.dx, tape, g.grad.view(),
                                               workspace, ex);
                          }) == 0);
            }
        });
    }

    // bytes() is what the largest calls take, and not a byte more.
    static void takes_the_memory_it_says() {
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
                auto state = s.layer.bind_state(state_memory, most);
                CHECK(state_memory.arena().used() == need.state);
                padded<T> y(n, s.layer.d_out());
                s.layer.forward(rows.rows(), rows.x.view(), y, nullptr, workspace.arena(), ex);
                s.layer.extend(rows.rows(), rows.x.view(), y, state, workspace.arena(), ex);
                if constexpr (trains) {
                    gradients g(s, n);
                    s.layer.forward(rows.rows(), rows.x.view(), y, &tape.arena(), workspace.arena(), ex);
                    CHECK(tape.arena().used() == need.tape);
                    s.layer.backward(rows.rows(), rows.x.view(), y.view(), g.dx, tape.arena(), g.grad.view(),
                                     workspace.arena(), ex);
                    CHECK(workspace.arena().bytes() == need.workspace);
                }
                expect(workspace.touched() + tape.touched() + state_memory.touched());
                if (need.state > 0) {
                    poisoned_memory small(need.state - 64);
                    CHECK_THROWS_AS(s.layer.bind_state(small, most), capacity_error);
                }
            }
        });
    }

    // Every arena that is too small is named, and no output was written.
    static void too_little_memory_is_refused_before_output() {
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
            auto measured = s.layer.bind_state(first_state, most);
            s.layer.extend(rows.rows(), rows.x.view(), scratch, measured, room);
            check_too_small(room.bytes(), y, [&](arena& workspace) {
                arena state_memory(need.state);
                auto state = s.layer.bind_state(state_memory, most);
                s.layer.extend(rows.rows(), rows.x.view(), y, state, workspace);
            });
            if constexpr (trains)
                if (need.tape > 0)
                    check_too_small(need.tape, y, [&](arena& tape) {
                        arena workspace(need.workspace);
                        s.layer.forward(rows.rows(), rows.x.view(), y, &tape, workspace);
                    });
            if constexpr (trains) backward_is_refused_as_a_whole(s, rows, need);
        });
    }

    // Gradients and tape are as they were, so that the call can be made again.
    static void backward_is_refused_as_a_whole(const subject& s, const sample<T>& rows, const sizes& need) {
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
        check_too_small(enough.bytes(), g.dx, [&](arena& small) { run(g, small); });
        CHECK(tape.used() == need.tape);
        for (const auto& t : g.grad.tensors) CHECK(all_zero(t.view()));
        run(g, enough);
        expect(different_bits(g.dx.view(), want.dx.view()));
        for (std::size_t i = 0; i < g.grad.tensors.size(); ++i)
            expect(different_bits(g.grad.tensors[i].view(), want.grad.tensors[i].view()));
    }

    template <class F>
    static idx check_too_small(std::size_t bytes, padded<T>& y, F&& f) {
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

    // Every weight with a column or a row too few is named by the constructor, with both shapes.
    static void wrong_shapes_are_named() {
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
    static void wrong_arguments_are_named() {
        for_each_variant(false, [](const subject& s) {
            if (s.layer.d_in() == 0) return;
            const idx d_in = s.layer.d_in(), d_out = s.layer.d_out();
            poisoned_memory workspace(s.layer.bytes(limits_of(4)).workspace), state_memory(1 << 20);
            auto state = s.layer.bind_state(state_memory, {.max_tokens = 4, .max_rows = 4});
            padded<T> x(4, d_in + 1), y(4, d_out + 1);
            const auto good_x = x.view().col_block(0, d_in), good_y = y.view().col_block(0, d_out);
            auto check = [&](tensor_view<T> xs, tensor_view<T> ys, const std::string& text) {
                const batch b = batch::one(3);
                CHECK_THAT(
                    message_of<config_error>([&] { s.layer.forward(b, xs, ys, nullptr, workspace.arena()); }),
                    contains_text(text));
                CHECK_THAT(
                    message_of<config_error>([&] { s.layer.extend(b, xs, ys, state, workspace.arena()); }),
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
    static void overlapping_outputs_are_noticed_or_harmless() {
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
                expect(
                    wrong_or_refused([&] { s.layer.forward(rows.rows(), x, out(d_out), nullptr, workspace); },
                                     out(d_out), want));
                x = in_place(rows.x.view(), d_in);
                arena clean(need.state);
                auto state = s.layer.bind_state(clean, limits_of(n));
                expect(wrong_or_refused([&] { s.layer.extend(rows.rows(), x, out(d_out), state, workspace); },
                                        out(d_out), want));
                if constexpr (trains) {
                    for (const bool over_x : {true, false}) {
                        arena tape(need.tape);
                        gradients g(s, n);
                        padded<T> y(n, d_out);
                        s.layer.forward(rows.rows(), rows.x.view(), y, &tape, workspace);
                        const auto xs =
                            over_x ? tensor_view<const T>(in_place(rows.x.view(), d_in)) : rows.x.view();
                        const auto dys =
                            over_x ? dy.view() : tensor_view<const T>(in_place(dy.view(), d_out));
                        expect(wrong_or_refused(
                            [&] {
                                s.layer.backward(rows.rows(), xs, dys, out(d_in), tape, g.grad.view(),
                                                 workspace);
                                for (std::size_t i = 0; i < g.grad.tensors.size(); ++i)
                                    expect(different_bits(g.grad.tensors[i].view(),
                                                          right.grad.tensors[i].view()));
                            },
                            out(d_in), right.dx));
                    }
                }
            }
        });
    }
    template <class F>
    static std::string wrong_or_refused(F&& f, tensor_view<const T> got, const padded<T>& want) {
        try {
            f();
        } catch (const error& e) {
            const bool said = std::string_view(e.what()).find("apart") != std::string_view::npos;
            return said ? "" : e.what();
        }
        return different_bits(got, want.view());
    }

    // The views of a backward call; no gradient is added to.
    static void wrong_gradient_arguments_are_named() {
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
                const auto x3 = rows.x.view(), dy3 = part(dy, n, d_out);
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
    static void absurd_limits_are_refused() {
        for_each_variant(false, [](const subject& s) {
            constexpr idx most = std::numeric_limits<idx>::max();
            for (const idx n : {idx{-1}, idx{0}, idx{1} << 62, most}) {
                CHECK_THROWS_AS(s.layer.bytes({.max_rows = n}), config_error);
                CHECK_THROWS_AS(s.layer.bytes({.max_rows = 1, .workers = n}), config_error);
                CHECK_THROWS_AS(s.layer.bytes({.max_tokens = 4, .max_rows = 1, .n_sequences = n}),
                                config_error);
            }
            for (const idx n : {idx{-1}, idx{1} << 62, most}) {
                CHECK_THROWS_AS(s.layer.bytes({.max_tokens = n, .max_rows = 1}), config_error);
                CHECK_THROWS_AS(s.layer.bytes({.max_tokens = 4, .max_rows = 1, .max_rollback = n}),
                                config_error);
            }
        });
    }

    // Batches that contradict themselves or name what there is not. Layers that take each row by itself need
    // not look at more than the number of rows.
    static void bad_batches_are_refused() {
        if constexpr (!row_by_row)
            for_each_variant(false, [](const subject& s) {
                const idx n = 4;
                const sample<T> rows({n}, s.layer.d_in(), 91);
                const limits most{.max_tokens = n, .max_rows = n, .n_sequences = 2};
                const sizes need = s.layer.bytes(most);
                arena workspace(need.workspace), memory(need.state);
                auto state = s.layer.bind_state(memory, most);
                padded<T> y(n, s.layer.d_out());
                auto refused = [&](const batch& b, bool by_state_only = false) {
                    if (!by_state_only)
                        CHECK(is_refused([&] { s.layer.forward(b, rows.x.view(), y, nullptr, workspace); }));
                    CHECK(is_refused([&] { s.layer.extend(b, rows.x.view(), y, state, workspace); }));
                    CHECK(all_zero(y.view()));
                    CHECK(workspace.used() == 0);
                };
                const std::span<const token_id> ids(rows.ids);
                for (const auto& offsets : {std::vector<idx>{0, 2},
                                            {1, 4},
                                            {0, 3, 2, 4},
                                            {0, 5, 4},
                                            {0, -1, 4},
                                            {0},
                                            {0, 1L << 62}})
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
                s.layer.extend(rows.rows(), rows.x.view(), y, state, workspace);
                expect(different_bits(y.view(), forward(s.layer, rows).view()));
            });
    }

    // A state that is full, and truncations to what it does not hold.
    static void states_refuse_what_they_cannot_hold() {
        if constexpr (!row_by_row)
            for_each_variant(false, [](const subject& s) {
                const idx n = 6;
                const sample<T> rows({n}, s.layer.d_in(), 92);
                const auto want = forward(s.layer, rows);
                const limits most{.max_tokens = n, .max_rows = n, .n_sequences = 2, .max_rollback = 1};
                const sizes need = s.layer.bytes(most);
                if (need.state == 0) return; // made of layers without
                arena workspace(need.workspace), memory(need.state);
                auto state = s.layer.bind_state(memory, most);
                padded<T> y(n, s.layer.d_out());
                auto extend = [&](idx first, idx m) {
                    s.layer.extend(
                        batch::one(std::span<const token_id>(rows.ids).subspan(
                                       static_cast<std::size_t>(first), static_cast<std::size_t>(m)),
                                   first),
                        rows.x.view().row_block(first, m), y.view().row_block(first, m), state, workspace);
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
    }

    // Whatever stands in a sequence: NaN, infinities, the largest and the smallest numbers.
    static void no_value_leaves_its_sequence() {
        for_each_variant(false, [](const subject& s) {
            if (s.layer.d_in() == 0) return;
            using numbers = std::numeric_limits<T>;
            const sample<T> rows({3, 5, 2}, s.layer.d_in(), 93);
            const auto want = forward(s.layer, rows);
            for (const T value : {numbers::quiet_NaN(), numbers::infinity(), -numbers::infinity(),
                                  numbers::max(), numbers::lowest(), numbers::denorm_min()}) {
                INFO("value: " << value);
                sample<T> other = rows;
                fill(other.x.view().row_block(4, 1), value);
                const auto y = forward(s.layer, other);
                expect(different_bits(y.view().row_block(0, 4), want.view().row_block(0, 4)));
                expect(different_bits(y.view().row_block(8, 2), want.view().row_block(8, 2)));
                if (row_by_row) expect(different_bits(y.view().row_block(5, 5), want.view().row_block(5, 5)));
            }
        });
    }

    // Every tensor, state, tape and workspace ends at a page that may not be touched.
    static void touches_nothing_beyond_its_memory() {
        for_each_variant(false, [](const subject& s) {
            const sample<T> rows({5, 0, 1, 9}, s.layer.d_in(), 94);
            const idx n = 15;
            const auto want = forward(s.layer, rows);
            guarded_params<params<const T>, T> weights(s.layer.config(),
                                                       const_cast<subject&>(s).narrow.view());
            const layer_type layer(s.layer.config(), weights.view());
            const limits most{.max_tokens = 9, .max_rows = n, .n_sequences = 4};
            const sizes need = layer.bytes(most);
            guarded_arena workspace(need.workspace), tape(need.tape), memory(need.state);
            const guarded<T> x(rows.x.view()), y(n, layer.d_out());
            layer.forward(rows.rows(), x.view(), y, nullptr, workspace);
            expect(different_bits(y.view(), want.view()));
            auto state = layer.bind_state(memory, most);
            layer.extend(rows.rows(), x.view(), y, state, workspace);
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

    // One object, two threads, each with its own memory.
    static void two_threads_may_call_one_layer() {
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

private:
    // By any error of the library: which one depends on what is looked at first.
    template <class F>
    static bool is_refused(F&& f) {
        try {
            f();
        } catch (const error&) {
            return true;
        }
        return false;
    }
    static bool all_zero(tensor_view<const T> t) {
        for (idx i = 0; i < t.rows(); ++i)
            for (idx j = 0; j < t.cols(); ++j)
                if (t(i, j) != T(0)) return false;
        return true;
    }
    template <class A, class B>
    static void copy(const tensor_view<A>& from, const tensor_view<B>& to) {
        for (idx i = 0; i < from.rows(); ++i)
            for (idx j = 0; j < from.cols(); ++j) to(i, j) = static_cast<B>(from(i, j));
    }
    template <class F>
    static void for_each_weight(const subject& s, F&& f) {
        std::size_t i = 0;
        auto& narrow = const_cast<subject&>(s).narrow;
        each_param(
            [&](const param_name& name, role, auto&) {
                f(name.str(), i, narrow.tensors[i].view());
                ++i;
            },
            narrow.view());
    }
};

} // namespace sluice::test

#define SLUICE_TEST_PROPERTY(prefix, traits, text, property, ...)                                            \
    TEMPLATE_TEST_CASE(prefix text, "", __VA_ARGS__) {                                                       \
        sluice::test::layer_suite<traits, TestType>::property();                                             \
    }

#define SLUICE_TEST_LAYER_FORWARD(prefix, traits, ...)                                                       \
    SLUICE_TEST_PROPERTY(prefix, traits, "agrees with its reference", agrees_with_its_reference,             \
                         __VA_ARGS__)                                                                        \
    SLUICE_TEST_PROPERTY(prefix, traits, "a wrong reference is noticed", a_wrong_reference_is_noticed,       \
                         __VA_ARGS__)                                                                        \
    SLUICE_TEST_PROPERTY(prefix, traits, "takes any view", takes_any_view, __VA_ARGS__)                      \
    SLUICE_TEST_PROPERTY(prefix, traits, "sequences of a batch do not meet", sequences_do_not_meet,          \
                         __VA_ARGS__)                                                                        \
    SLUICE_TEST_PROPERTY(prefix, traits, "no tokens are legal", no_tokens_are_legal, __VA_ARGS__)            \
    SLUICE_TEST_PROPERTY(prefix, traits, "is causal", is_causal, __VA_ARGS__)                                \
    SLUICE_TEST_PROPERTY(prefix, traits, "streams to the same bits at every split",                          \
                         streams_to_the_same_bits_at_every_split, __VA_ARGS__)                               \
    SLUICE_TEST_PROPERTY(prefix, traits, "streams several sequences unevenly",                               \
                         streams_several_sequences_unevenly, __VA_ARGS__)                                    \
    SLUICE_TEST_PROPERTY(prefix, traits, "takes tokens back", takes_tokens_back, __VA_ARGS__)                \
    SLUICE_TEST_PROPERTY(prefix, traits, "any executor gives the same bits",                                 \
                         any_executor_gives_the_same_bits, __VA_ARGS__)                                      \
    SLUICE_TEST_PROPERTY(prefix, traits, "allocates nothing", allocates_nothing, __VA_ARGS__)                \
    SLUICE_TEST_PROPERTY(prefix, traits, "takes the memory it says", takes_the_memory_it_says, __VA_ARGS__)  \
    SLUICE_TEST_PROPERTY(prefix, traits, "too little memory is refused before output is written",            \
                         too_little_memory_is_refused_before_output, __VA_ARGS__)                            \
    SLUICE_TEST_PROPERTY(prefix, traits, "wrong shapes are named", wrong_shapes_are_named, __VA_ARGS__)      \
    SLUICE_TEST_PROPERTY(prefix, traits, "wrong arguments are named", wrong_arguments_are_named,             \
                         __VA_ARGS__)                                                                        \
    SLUICE_TEST_PROPERTY(prefix, traits, "overlapping outputs are noticed or harmless",                      \
                         overlapping_outputs_are_noticed_or_harmless, __VA_ARGS__)                           \
    SLUICE_TEST_PROPERTY(prefix, traits, "absurd limits are refused", absurd_limits_are_refused,             \
                         __VA_ARGS__)                                                                        \
    SLUICE_TEST_PROPERTY(prefix, traits, "bad batches are refused", bad_batches_are_refused, __VA_ARGS__)    \
    SLUICE_TEST_PROPERTY(prefix, traits, "states refuse what they cannot hold",                              \
                         states_refuse_what_they_cannot_hold, __VA_ARGS__)                                   \
    SLUICE_TEST_PROPERTY(prefix, traits, "no value leaves its sequence", no_value_leaves_its_sequence,       \
                         __VA_ARGS__)                                                                        \
    SLUICE_TEST_PROPERTY(prefix, traits, "touches nothing beyond its memory",                                \
                         touches_nothing_beyond_its_memory, __VA_ARGS__)                                     \
    SLUICE_TEST_PROPERTY(prefix, traits, "two threads may call one layer", two_threads_may_call_one_layer,   \
                         __VA_ARGS__)

#define SLUICE_TEST_LAYER(prefix, traits, ...)                                                               \
    SLUICE_TEST_LAYER_FORWARD(prefix, traits, __VA_ARGS__)                                                   \
    SLUICE_TEST_PROPERTY(prefix, traits, "gradients are slopes", gradients_are_slopes, __VA_ARGS__)          \
    SLUICE_TEST_PROPERTY(prefix, traits, "gradients accumulate", gradients_accumulate, __VA_ARGS__)          \
    SLUICE_TEST_PROPERTY(prefix, traits, "wrong gradient arguments are named",                               \
                         wrong_gradient_arguments_are_named, __VA_ARGS__)
