// Adam for tables too large to walk through: a step visits the rows that its batch touched. Each row counts
// its own steps for the correction of its moments' bias, so its first update is as long as any row's first.
// Unlike Adam over the whole table, a row that is not touched does not move on by what its mean still holds
// (lazy Adam). No decay, as the table of Engram has none (Cheng et al., 2026, appendix A; its rate is five
// times the model's).
#pragma once

#include "../ops/table.hpp"
#include "adamw.hpp"

namespace sluice {

// The moments of every row, and how often it was updated. Zero to begin with.
template <class T>
struct row_adam_state {
    tensor_view<T> mean, square;     // as the table
    tensor_view<std::int32_t> steps; // 1 x rows

    static row_adam_state bind(arena& a, idx rows, idx cols) {
        row_adam_state s{a.take<T>(rows, cols), a.take<T>(rows, cols), a.take<std::int32_t>(1, rows)};
        if (a.dry()) return s;
        fill(s.mean, T(0));
        fill(s.square, T(0));
        fill(s.steps, 0);
        return s;
    }
};

inline namespace SLUICE_ISA {

// One step for the rows that `gradient` holds, which is multiplied by `gradient_scale` (clipping). Rate,
// betas and eps are those of c.
template <class Arch = simd::native, class T>
void row_adam(tensor_view<T> table, const row_gradient<T>& gradient, const row_adam_state<T>& state,
              const adamw_config& c, std::type_identity_t<T> gradient_scale = 1, executor_ref ex = {}) {
    require(gradient.cols() == table.cols(), "row_adam", "gradient is of another width than the table");
    require_shape(state.mean, table.rows(), table.cols(), "row_adam", "mean");
    require_shape(state.square, table.rows(), table.cols(), "row_adam", "square");
    require_shape(state.steps, 1, table.rows(), "row_adam", "steps");
    if (ex.dry()) return;
    check_rows(gradient.touched(), table.rows(), "row_adam");
    ex(gradient.rows(), [&](idx begin, idx end, idx) {
        for (idx slot = begin; slot < end; ++slot) {
            const idx row = gradient.touched()[static_cast<std::size_t>(slot)];
            const double step = ++state.steps(0, row);
            kernels::adamw_args<T> a{};
            a.gradient_scale = gradient_scale;
            a.beta1 = static_cast<T>(c.beta1);
            a.beta2 = static_cast<T>(c.beta2);
            a.step_size = static_cast<T>(c.rate / (1 - std::pow(static_cast<double>(a.beta1), step)));
            a.square_scale = static_cast<T>(1 / (1 - std::pow(static_cast<double>(a.beta2), step)));
            a.eps = static_cast<T>(c.eps);
            a.keep = 1;
            a.weight = table.row(row);
            a.gradient = gradient.row(slot);
            a.mean = state.mean.row(row);
            a.square = state.square.row(row);
            a.n = table.cols();
            simd::invoke(Arch{}, kernels::adamw_step{}, a);
        }
    });
}

} // namespace SLUICE_ISA
} // namespace sluice
