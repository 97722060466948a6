// Where routed tokens stand: the slots (token t, j-th choice) sorted by expert, rows of tokens gathered in
// that order, and what experts made of them combined again, token by token. No two workers write one row, so
// nothing is scattered and the order of every sum is that of the slots.
//
// Gathering and combining are each other's backward, with the same weights or without.
#pragma once

#include "../core/arena.hpp"
#include "../core/batch.hpp"
#include "../core/executor.hpp"
#include "../kernels/elementwise.hpp"
#include "../kernels/gather.hpp"
#include "../kernels/top_k.hpp"

#include <numeric>

namespace sluice {

// Who is dropped: what comes late in the order first choices of all tokens, second choices, ...; the same
// with tokens by their largest weight (Riquelme et al., "Scaling vision with sparse mixture of experts",
// 2021); or an expert's smallest weights.
enum class drop_order { slot_major, batch_priority, by_weight };

// In a slot's place: its expert e, or ~e where it was dropped.
struct routing_plan {
    static constexpr std::int32_t dropped = -1, identity = -2;

    idx n_tokens = 0, n_slots = 0, n_experts = 0; // n_slots: of a token
    idx most_rows = 0;
    const std::int32_t* offsets = nullptr; // n_experts + 1: the first row of each expert
    std::int32_t* rows = nullptr;   // n_tokens * n_slots: the row of each slot, or dropped, or identity
    std::int32_t* slots = nullptr;  // n_rows: the slot t * n_slots + j of each row
    std::int32_t* tokens = nullptr; // n_rows: its token t

    // Rows of all experts; the most there can be in a dry run.
    idx n_rows() const { return offsets == nullptr ? most_rows : offsets[n_experts]; }
    idx begin(idx expert) const { return offsets[expert]; }
    idx count(idx expert) const { return offsets[expert + 1] - offsets[expert]; }
    std::span<const std::int32_t> token_of_rows() const {
        return {tokens, tokens == nullptr ? 0 : static_cast<std::size_t>(n_rows())};
    }
};

// What a router did with the rows of one training call. Losses on the router add the gradient of the logits
// to dlogits.
template <class T>
struct routing_record {
    const batch& b;
    in<T> logits; // (n, n_experts), before noise
    in<T> noisy;  // after it; spread: of learnt noise. Empty where there is none
    in<T> spread;
    tensor_view<const std::int32_t> indices; // (n, slots), as route left them
    tensor_view<T> dlogits, dspread;
};

// A reference to a callable (const routing_record<T>&, arena& workspace, executor_ref), for T float, double
// or both, which has to outlive it. It is called in each backward of a layer that routes, in the calling
// thread, and before that with an executor that is dry, to count the workspace that it takes.
class router_hook {
public:
    router_hook() = default;
    template <class F>
    requires(!std::is_same_v<std::remove_cvref_t<F>, router_hook>) router_hook(F& f)
        : object_(const_cast<void*>(static_cast<const void*>(&f))),
          of_float_(caller<F, float>()),
          of_double_(caller<F, double>()) {}

    template <class T>
    void operator()(const routing_record<T>& r, arena& workspace, executor_ref ex) const {
        if (object_ == nullptr) return;
        const auto call = [this] {
            if constexpr (std::is_same_v<T, float>)
                return of_float_;
            else
                return of_double_;
        }();
        require(call != nullptr, "router_hook", "the callable does not take this type of numbers");
        call(object_, r, workspace, ex);
    }

private:
    template <class T>
    using call_type = void (*)(void*, const routing_record<T>&, arena&, executor_ref);
    template <class F, class T>
    static constexpr call_type<T> caller() {
        if constexpr (std::is_invocable_v<F&, const routing_record<T>&, arena&, executor_ref>)
            return [](void* f, const routing_record<T>& r, arena& workspace, executor_ref ex) {
                (*static_cast<F*>(f))(r, workspace, ex);
            };
        else
            return nullptr;
    }
    void* object_ = nullptr;
    call_type<float> of_float_ = nullptr;
    call_type<double> of_double_ = nullptr;
};

struct plan_limits {
    idx n_experts = 0;
    idx n_identity = 0;                         // experts behind them that return their input: no rows
    idx n_null = 0;                             // behind those: slots of theirs are dropped
    idx room = std::numeric_limits<idx>::max(); // tokens of an expert, at most
};

// Sorts the slots of indices (n, n_slots) by expert, in each expert by slot. Memory from `keep`: a workspace,
// or a tape. Throws input_error for an index that is no expert.
inline routing_plan plan_slots(const tensor_view<const std::int32_t>& indices, const plan_limits& most,
                               arena& keep, executor_ref ex) {
    routing_plan p{.n_tokens = indices.rows(), .n_slots = indices.cols(), .n_experts = most.n_experts};
    const idx n = p.n_tokens * p.n_slots, active = most.n_experts + most.n_identity,
              all = active + most.n_null;
    require(n <= std::numeric_limits<std::int32_t>::max() - 2, "routing_plan",
            "slots must be fewer than 2^31");
    p.most_rows = most.room > n / std::max<idx>(p.n_experts, 1) ? n : most.room * p.n_experts;
    auto* const offsets = keep.take<std::int32_t>(p.n_experts + 2);
    p.rows = keep.take<std::int32_t>(n);
    p.slots = keep.take<std::int32_t>(p.most_rows);
    p.tokens = keep.take<std::int32_t>(p.most_rows);
    if (ex.dry() || offsets == nullptr) return p;
    std::fill_n(offsets, p.n_experts + 2, 0);
    for (idx t = 0; t < p.n_tokens; ++t)
        for (idx j = 0; j < p.n_slots; ++j) {
            const std::int32_t e = indices(t, j);
            if ((e < 0 ? ~e : e) >= all)
                SLUICE_THROW(input_error("routing_plan: expert " + std::to_string(e) + " of token " +
                                         std::to_string(t) + " is outside the " + std::to_string(all)));
            if (e >= 0 && e < p.n_experts) ++offsets[e + 2];
        }
    for (idx e = 2; e <= p.n_experts + 1; ++e) offsets[e] += offsets[e - 1];
    if (offsets[p.n_experts + 1] > p.most_rows)
        SLUICE_THROW(capacity_error("routing_plan", offsets[p.n_experts + 1], p.most_rows, "rows"));
    for (idx t = 0; t < p.n_tokens; ++t) // offsets[e + 1] runs from the begin of e to its end
        for (idx j = 0; j < p.n_slots; ++j) {
            const std::int32_t e = indices(t, j);
            std::int32_t& row = p.rows[t * p.n_slots + j];
            row = e < 0 || e >= active ? p.dropped : p.identity;
            if (e < 0 || e >= p.n_experts) continue;
            row = offsets[e + 1]++;
            p.slots[row] = static_cast<std::int32_t>(t * p.n_slots + j);
            p.tokens[row] = static_cast<std::int32_t>(t);
        }
    p.offsets = offsets;
    return p;
}

inline namespace SLUICE_ISA {

// Drops the slots that find their expert full: more than `room` of one below n_experts; others, identity
// experts, are never full. What was dropped before takes no room.
template <class T>
void drop_overflow(drop_order by, idx room, idx n_experts, tensor_view<std::int32_t> indices, in<T> weights,
                   arena& workspace, executor_ref ex) {
    const arena::scope scope(workspace);
    const idx n = indices.rows(), k = indices.cols(), m = by == drop_order::by_weight ? n * k : n;
    auto* const load = workspace.take<idx>(n_experts);
    auto* const order = workspace.take<idx>(m);
    auto* const best = workspace.take<T>(n);
    if (ex.dry()) return;
    std::fill_n(load, n_experts, idx{0});
    std::iota(order, order + m, idx{0});
    auto visit = [&](idx t, idx j) {
        std::int32_t& e = indices(t, j);
        if (e >= 0 && e < n_experts && load[e]++ >= room) e = ~e;
    };
    // of equal ones the earlier first: std::stable_sort would allocate
    auto sort_by = [&](auto&& weight) {
        auto larger = [](T a, T b) { return b < a || (b != b && a == a); };
        std::sort(order, order + m, [&](idx a, idx b) {
            return larger(weight(a), weight(b)) || (!larger(weight(b), weight(a)) && a < b);
        });
    };
    if (by == drop_order::by_weight) {
        sort_by([&](idx slot) { return weights(slot / k, slot % k); });
        for (idx i = 0; i < m; ++i) visit(order[i] / k, order[i] % k);
        return;
    }
    if (by == drop_order::batch_priority) {
        for (idx t = 0; t < n; ++t) best[t] = *std::max_element(weights.row(t), weights.row(t) + k);
        sort_by([&](idx t) { return best[t]; });
    }
    for (idx j = 0; j < k; ++j)
        for (idx i = 0; i < n; ++i) visit(order[i], j);
}

// Each column of weights (n, n_experts) keeps its `room` largest, of equal ones the earlier: experts choose
// tokens. indices (n, n_experts) get e where token t was taken by e, and ~e, with weight 0, elsewhere.
template <class Arch = simd::native, class T>
void choose_tokens(idx room, tensor_view<std::int32_t> indices, tensor_view<T> weights, arena& workspace,
                   executor_ref ex) {
    require_shape(indices, weights.rows(), weights.cols(), "choose_tokens", "indices");
    const arena::scope scope(workspace);
    const idx n = weights.rows(), k = std::min(room, n);
    const auto column = workspace.take<T>(ex.concurrency(), n);
    const auto taken = workspace.take<std::int32_t>(ex.concurrency(), n);
    ex(weights.cols(), [&](idx begin, idx end, idx worker) {
        T* const w = column.row(worker);
        std::int32_t* const tokens = taken.row(worker);
        for (idx e = begin; e < end; ++e) {
            for (idx t = 0; t < n; ++t) {
                w[t] = std::exchange(weights(t, e), T(0));
                indices(t, e) = ~static_cast<std::int32_t>(e);
            }
            simd::invoke(Arch{}, kernels::top_k{}, static_cast<const T*>(w), n, k, false, tokens);
            for (idx i = 0; i < k; ++i) {
                weights(tokens[i], e) = w[tokens[i]];
                indices(tokens[i], e) = static_cast<std::int32_t>(e);
            }
        }
    });
}

// y (n_rows, d): each row its token's of x (n_tokens, d), times its slot's of weights (n_tokens, n_slots)
// where they are not empty.
template <class Arch = simd::native, class T>
void gather_slots(const routing_plan& p, in<T> x, in<T> weights, tensor_view<T> y, executor_ref ex) {
    require_shape(x, p.n_tokens, y.cols(), "gather_slots", "x");
    require_shape(y, p.n_rows(), x.cols(), "gather_slots", "y");
    if (!weights.empty()) require_shape(weights, p.n_tokens, p.n_slots, "gather_slots", "weights");
    ex(y.rows(), [&](idx begin, idx end, idx) {
        simd::invoke(Arch{}, kernels::gather_rows{}, x.data(), x.row_stride(),
                     static_cast<const std::int32_t*>(p.tokens + begin), end - begin, x.cols(), y.row(begin),
                     y.row_stride());
        for (idx r = begin; r < end && !weights.empty(); ++r)
            simd::invoke(Arch{}, kernels::scale_elements{}, static_cast<const T*>(y.row(r)),
                         weights(p.tokens[r], p.slots[r] % p.n_slots), y.row(r), y.cols());
    });
}

// y (n_tokens, d): of each token the sum over its slots, in order, of their rows of x (n_rows, d), times
// weights (n_tokens, n_slots) where they are not empty. Dropped slots and identity experts add nothing.
template <class Arch = simd::native, class T>
void combine_slots(const routing_plan& p, in<T> x, in<T> weights, tensor_view<T> y, executor_ref ex) {
    require_shape(x, p.n_rows(), y.cols(), "combine_slots", "x");
    require_shape(y, p.n_tokens, x.cols(), "combine_slots", "y");
    if (!weights.empty()) require_shape(weights, p.n_tokens, p.n_slots, "combine_slots", "weights");
    ex(y.rows(), [&](idx begin, idx end, idx) {
        for (idx t = begin; t < end; ++t)
            simd::invoke(Arch{}, kernels::gather_weighted{}, x.data(), x.row_stride(),
                         static_cast<const std::int32_t*>(p.rows + t * p.n_slots),
                         weights.empty() ? nullptr : weights.row(t), p.n_slots, y.cols(), y.row(t));
    });
}

// dweights(t, j) = <of_tokens(t), of_rows(row of the slot)>: of combine_slots with dy and the rows, of
// gather_slots with x and the rows' gradient. For identity experts the product is with identity(t), their
// input, which may be empty where there are none; dropped slots get 0.
template <class Arch = simd::native, class T>
void slot_products(const routing_plan& p, in<T> of_tokens, in<T> of_rows, in<T> identity,
                   tensor_view<T> dweights, executor_ref ex) {
    require_shape(of_tokens, p.n_tokens, of_tokens.cols(), "slot_products", "of_tokens");
    require_shape(of_rows, p.n_rows(), of_tokens.cols(), "slot_products", "of_rows");
    require_shape(dweights, p.n_tokens, p.n_slots, "slot_products", "dweights");
    if (!identity.empty()) require_shape(identity, p.n_tokens, of_tokens.cols(), "slot_products", "identity");
    ex(p.n_tokens, [&](idx begin, idx end, idx) {
        for (idx t = begin; t < end; ++t)
            for (idx j = 0; j < p.n_slots; ++j) {
                const std::int32_t row = p.rows[t * p.n_slots + j];
                const T* other = row >= 0 ? of_rows.row(row) : nullptr;
                if (row == p.identity && !identity.empty()) other = identity.row(t);
                dweights(t, j) = T(0);
                if (other != nullptr)
                    simd::invoke(Arch{}, kernels::dot{}, of_tokens.row(t), other, of_tokens.cols(),
                                 &dweights(t, j));
            }
    });
}

// y(t) += x(t) times the weights of the token's identity experts; with dy in place of x their dx.
template <class Arch = simd::native, class T>
void add_identity(const routing_plan& p, in<T> x, in<T> weights, tensor_view<T> y, executor_ref ex) {
    require_shape(x, p.n_tokens, y.cols(), "add_identity", "x");
    require_shape(y, p.n_tokens, x.cols(), "add_identity", "y");
    require_shape(weights, p.n_tokens, p.n_slots, "add_identity", "weights");
    ex(y.rows(), [&](idx begin, idx end, idx) {
        for (idx t = begin; t < end; ++t) {
            T weight = 0;
            for (idx j = 0; j < p.n_slots; ++j)
                if (p.rows[t * p.n_slots + j] == p.identity) weight += weights(t, j);
            if (weight != 0)
                simd::invoke(Arch{}, kernels::add_scaled{}, x.row(t), weight, y.row(t), y.cols());
        }
    });
}

} // namespace SLUICE_ISA
} // namespace sluice
