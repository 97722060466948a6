#include "support/catch.hpp"

#include <sluice/core/relay.hpp>

#include <vector>

using sluice::idx;

namespace {

// Layer i of a toy network: y = x + i + 1 in every element, and on the tape one number of its own.
void layer(idx i, sluice::in<double> x, sluice::tensor_view<double> y, sluice::arena* tape) {
    for (idx r = 0; r < x.rows(); ++r)
        for (idx c = 0; c < x.cols(); ++c) y(r, c) = x(r, c) + static_cast<double>(i + 1);
    if (tape != nullptr) tape->push_record(static_cast<double>(i));
}

} // namespace

TEST_CASE("each layer reads what the one before wrote") {
    for (const idx n : {1, 2, 3, 6}) {
        sluice::arena workspace(1 << 14);
        std::vector<double> x(6, 1.0), y(6, 0.0);
        const sluice::tensor_view<double> in(x.data(), 2, 3), out(y.data(), 2, 3);
        sluice::relay<double> walk("toy", n, 2, 3, in, out, nullptr, workspace);
        for (idx i = 0; i < n; ++i)
            walk.step(i,
                      [&](sluice::in<double> a, sluice::tensor_view<double> b) { layer(i, a, b, nullptr); });
        walk.finish();
        for (double v : y) REQUIRE(v == 1.0 + static_cast<double>(n * (n + 1) / 2));
        for (double v : x) REQUIRE(v == 1.0);
    }
}

TEST_CASE("backwards every layer meets its own input again and the tape ends empty") {
    for (const idx n : {1, 2, 3, 6}) {
        sluice::arena workspace(1 << 14), tape(1 << 14);
        std::vector<double> x(6, 1.0), y(6, 0.0), dy(6, 1.0), dx(6, 0.0);
        const sluice::tensor_view<double> in(x.data(), 2, 3), out(y.data(), 2, 3);
        sluice::relay<double> walk("toy", n, 2, 3, in, out, &tape, workspace);
        for (idx i = 0; i < n; ++i)
            walk.step(i, [&](sluice::in<double> a, sluice::tensor_view<double> b) { layer(i, a, b, &tape); });
        walk.finish();
        sluice::relay_back<double> back(n, 2, 3, in, {dy.data(), 2, 3}, {dx.data(), 2, 3}, tape, workspace);
        for (idx i = n - 1; i >= 0; --i)
            back.step(i, [&](sluice::in<double> a, sluice::in<double> d, sluice::tensor_view<double> to) {
                REQUIRE(tape.pop_record<double>() == static_cast<double>(i));
                REQUIRE(a(1, 2) == 1.0 + static_cast<double>(i * (i + 1) / 2));
                for (idx r = 0; r < 2; ++r)
                    for (idx c = 0; c < 3; ++c) to(r, c) = 2 * d(r, c);
            });
        REQUIRE(tape.used() == 0);
        for (double v : dx) REQUIRE(v == static_cast<double>(1 << n));
    }
}

TEST_CASE("a wrong shape is refused before any layer runs") {
    sluice::arena workspace(1 << 10);
    std::vector<double> x(6), y(6);
    const sluice::tensor_view<double> in(x.data(), 2, 3), out(y.data(), 3, 2);
    REQUIRE_THROWS_WITH((sluice::relay<double>("toy", 2, 2, 3, in, out, nullptr, workspace)),
                        "toy: y must be 2 x 3, is 3 x 2");
    REQUIRE(workspace.used() == 0);
}
