#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/executors.hpp"
#include "support/random_data.hpp"

#include <sluice/ops/memory_gate.hpp>

#include <vector>

using namespace sluice::test;
using sluice::batch;
using sluice::gate_form;
using sluice::idx;
using sluice::tensor_view;

namespace {

constexpr idx n = 9, d = 5, branches = 2, width = 10;
const std::vector<idx> offsets{0, 3, 3, 8, 9};

// Inputs, parameters and gradients, and a call that yields sum(y dy).
struct problem {
    explicit problem(idx n_taps)
        : h(uniform_matrix<double>(n, width, 1)),
          kv(uniform_matrix<double>(n, width + d, 2)),
          dy(uniform_matrix<double>(n, width, 3)),
          key(uniform_matrix<double>(branches, d, 4)),
          query(uniform_matrix<double>(branches, d, 5)),
          value(uniform_matrix<double>(branches, d, 6)),
          taps(uniform_matrix<double>(n_taps, width, 7)) {}

    sluice::memory_gate_weights<double> weights(sluice::arena& workspace) {
        const bool some = taps.view().rows() > 0;
        return sluice::memory_gate_weights<double>::make(workspace,
                                                         {key.view(), query.view(),
                                                          some ? value.view() : tensor_view<double>(),
                                                          some ? taps.view() : tensor_view<double>()},
                                                         gate_form::plain, 1e-3, 1e-2, 2, {});
    }
    double value_of_call(sluice::executor_ref ex = {}) {
        sluice::arena workspace(1 << 16);
        const auto w = weights(workspace);
        auto g = sluice::gated_memory<double>::take(workspace, n, branches, d, w.n_taps() > 0);
        for (idx i = 0; i < n; ++i) std::copy_n(kv.view().row(i), width + d, g.kv.row(i));
        padded<double> y(n, width);
        apply_memory_gate(
            rows, w, sluice::in<double>(h.view()), g, [](idx, idx) -> const double* { return nullptr; },
            y.view(), ex);
        double sum = 0;
        for (idx i = 0; i < n; ++i)
            for (idx j = 0; j < width; ++j) sum += y(i, j) * dy(i, j);
        return sum;
    }
    padded<double> h, kv, dy, key, query, value, taps;
    batch rows{.n_tokens = n, .offsets = offsets};
};

} // namespace

TEST_CASE("memory_gate_backward: slopes of packed sequences, for any workers") {
    for (const idx n_taps : {0, 1, 3}) {
        problem p(n_taps);
        for_each_executor([&](sluice::executor_ref ex, const std::string& name) {
            INFO(name << ", taps: " << n_taps);
            CHECK(p.value_of_call(ex) == p.value_of_call());
            sluice::arena workspace(1 << 16);
            const auto w = p.weights(workspace);
            auto g = sluice::gated_memory<double>::take(workspace, n, branches, d, n_taps > 0);
            for (idx i = 0; i < n; ++i) std::copy_n(p.kv.view().row(i), width + d, g.kv.row(i));
            padded<double> y(n, width), dh(n, width), d_kv(n, width + d), key(branches, d),
                query(branches, d), value(branches, d), taps(n_taps, width);
            apply_memory_gate(
                p.rows, w, sluice::in<double>(p.h.view()), g,
                [](idx, idx) -> const double* { return nullptr; }, y.view(), ex);
            memory_gate_backward(p.rows, w, sluice::in<double>(p.h.view()), g,
                                 sluice::in<double>(p.dy.view()), d_kv.view(), dh.view(),
                                 {key.view(), query.view(), value.view(), taps.view()}, workspace, ex);
            auto f = [&] { return p.value_of_call(); };
            CHECK(wrong_gradient(f, p.h.view(), dh.view()) == "");
            CHECK(wrong_gradient(f, p.kv.view(), d_kv.view()) == "");
            CHECK(wrong_gradient(f, p.key.view(), key.view()) == "");
            CHECK(wrong_gradient(f, p.query.view(), query.view()) == "");
            if (n_taps > 0) CHECK(wrong_gradient(f, p.value.view(), value.view()) == "");
            if (n_taps > 0) CHECK(wrong_gradient(f, p.taps.view(), taps.view()) == "");
        });
    }
}
