// From a budget to the training steps of each contestant, in terms of a dense model's.
#pragma once

#include "race.hpp"

namespace sluice::examples {

struct budget_options {
    std::string by = "flops"; // flops, time, tokens, params
    idx steps = 2900;         // of the dense model
};

// Seconds that one step takes, from a few of them on a model that is thrown away.
inline double seconds_a_step(const contestant& c, const unit_text& text) {
    const auto model = c.make(c.size, c.seed);
    windows w(c.size.sequences, c.size.context);
    constexpr idx warm = 3, timed = 12;
    double begun = 0;
    for (idx i = 1; i <= warm + timed; ++i) {
        if (i == warm + 1) begun = worked_seconds();
        w.draw(text.training, c.seed, i);
        (void)model->step(w, c.seed, i, 1e-4);
    }
    return (worked_seconds() - begun) / timed;
}

// Inner widths and tables made smaller, all by the same factor, until the model has no more parameters than
// asked for.
inline void shrink(contestant& c, double parameters) {
    const model_size whole = c.size;
    auto count = [&] { return c.make(c.size, c.seed)->costs().parameters; };
    if (count() <= parameters) return;
    double low = 0, high = 1;
    auto set = [&](double part) {
        auto of = [&](idx n, idx multiple) {
            const auto units = static_cast<idx>(part * static_cast<double>(n / multiple));
            return std::max(units, idx{1}) * multiple;
        };
        c.size.d_ff = of(whole.d_ff, 8);
        c.size.expert_d_ff = of(whole.expert_d_ff, 4);
        c.size.d_concept = of(whole.d_concept, whole.head_dim);
        c.size.table_rows = of(whole.table_rows, 1);
    };
    for (int i = 0; i < 12; ++i) {
        const double middle = (low + high) / 2;
        set(middle);
        (count() <= parameters ? low : high) = middle;
    }
    set(low);
}

inline void set_steps(std::vector<contestant>& all, const budget_options& b, const model_size& size,
                      const unit_text& text) {
    const contestant dense = named("dense", size);
    const auto costs = dense.make(dense.size, dense.seed)->costs();
    const double steps = static_cast<double>(b.steps);
    const double seconds = b.by == "time" ? steps * seconds_a_step(dense, text) : 0;
    for (contestant& c : all) {
        double n = steps;
        if (b.by == "flops" && !c.equal_tokens)
            n *= costs.step_flops / c.make(c.size, c.seed)->costs().step_flops;
        if (b.by == "time" && !c.equal_tokens) n = seconds / seconds_a_step(c, text);
        if (b.by == "params") shrink(c, costs.parameters);
        c.steps = std::max<idx>(std::llround(n), 1);
    }
}

} // namespace sluice::examples
