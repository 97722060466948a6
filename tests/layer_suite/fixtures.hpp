// What the checks of the layer suite work on: poisoned and guarded memory, spread parameters, samples of
// packed sequences, and a state that is fed pieces of them.
#pragma once

#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/message_of.hpp"
#include "support/random_data.hpp"

#include <sluice/core/eigen.hpp>
#include <sluice/core/layer.hpp>
#include <sluice/core/tensor.hpp>

#include <deque>
#include <numeric>
#include <vector>

namespace sluice::test {

template <class Config>
struct variant {
    std::string name;
    Config config{};
    bool large = false;
};

// CHECK of a sentence about what is wrong, "" for nothing. Functions, since the macro's code in every
// instance of the suite is most of what there is to compile.
inline void expect(const std::string& wrong, int line = __builtin_LINE(),
                   const char* file = __builtin_FILE()) {
    INFO(file << ", line " << line);
    CHECK(wrong == "");
}
inline void expect_wrong(const std::string& wrong, int line = __builtin_LINE(),
                         const char* file = __builtin_FILE()) {
    INFO(file << ", line " << line);
    CHECK(wrong != "");
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
            [&](const param_name&, role r, auto& t) {
                t = tensors.emplace_back(t.rows(), t.cols()).view();
                roles.push_back(r);
            },
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
    std::vector<role> roles;       // as tensors
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

} // namespace sluice::test
