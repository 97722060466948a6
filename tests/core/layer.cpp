#include "support/catch.hpp"

#include <sluice/core/layer.hpp>

#include <string>

using sluice::arena;
using sluice::batch;
using sluice::executor_ref;
using sluice::idx;
using sluice::in;
using sluice::tensor_view;

namespace {

struct doubler_config {
    idx d_model = 1;
};
template <class W>
struct doubler_params {
    tensor_view<W> scale;
    template <class F, class First, class... Sets>
    static void each(F& f, const sluice::param_name& at, First& first, Sets&... sets) {
        f(sluice::param_name(at, "scale"), sluice::role::vector, first.scale, sets.scale...);
    }
};

// The smallest class that is a layer: y = 2 x.
class doubler {
public:
    using scalar = float;
    using config_type = doubler_config;
    using params_type = doubler_params<const float>;
    using grad_type = doubler_params<float>;
    using state_type = sluice::no_state;

    explicit doubler(const doubler_config& c) : config_(c) {
        sluice::require_positive(c.d_model, "doubler", "d_model");
    }
    const doubler_config& config() const { return config_; }
    idx d_in() const { return config_.d_model; }
    idx d_out() const { return config_.d_model; }
    void forward(const batch& b, in<float> x, const tensor_view<float>& y, arena*, arena&,
                 executor_ref = {}) const {
        sluice::check_batch(b, "doubler");
        sluice::require_shape(x, b.n_tokens, config_.d_model, "doubler", "x");
        for (idx i = 0; i < x.rows(); ++i)
            for (idx j = 0; j < x.cols(); ++j) y(i, j) = 2 * x(i, j);
    }
    state_type bind_state(arena& memory, const sluice::limits& most) const {
        return state_type::bind(memory, config_, most);
    }
    void extend(const batch& b, in<float> x, const tensor_view<float>& y, state_type&, arena& ws,
                executor_ref ex = {}) const {
        forward(b, x, y, nullptr, ws, ex);
    }
    void backward(const batch&, in<float>, in<float> dy, const tensor_view<float>& dx, arena&,
                  const grad_type&, arena&, executor_ref = {}) const {
        for (idx i = 0; i < dy.rows(); ++i)
            for (idx j = 0; j < dy.cols(); ++j) dx(i, j) = 2 * dy(i, j);
    }

private:
    doubler_config config_;
};

// The same, each lacking one thing.
struct no_forward {
    using scalar = float;
    using config_type = doubler_config;
    using params_type = doubler_params<const float>;
    doubler_config config() const { return {}; }
    idx d_in() const { return 1; }
    idx d_out() const { return 1; }
};
struct no_width : no_forward {
    idx d_out() = delete;
    void forward(const batch&, in<float>, const tensor_view<float>&, arena*, arena&, executor_ref) const {}
};
struct forward_only : no_forward {
    void forward(const batch&, in<float>, const tensor_view<float>&, arena*, arena&, executor_ref) const {}
};
struct forward_not_const : no_forward {
    void forward(const batch&, in<float>, const tensor_view<float>&, arena*, arena&, executor_ref) {}
};
struct owning : forward_only {
    std::string name;
};
struct other_scalar : no_forward {
    using scalar = double;
    void forward(const batch&, in<float>, const tensor_view<float>&, arena*, arena&, executor_ref) const {}
};

} // namespace

static_assert(sluice::layer<doubler> && sluice::streaming_layer<doubler> && sluice::trainable_layer<doubler>);
static_assert(sluice::layer<forward_only>);
static_assert(!sluice::streaming_layer<forward_only> && !sluice::trainable_layer<forward_only>);
static_assert(!sluice::layer<no_forward> && !sluice::layer<forward_not_const> &&
              !sluice::layer<other_scalar> && !sluice::layer<no_width>);
static_assert(sluice::is_trainable<doubler> && !sluice::is_trainable<forward_only>);
static_assert(!sluice::layer<owning>, "a layer is trivially copyable");
static_assert(!sluice::layer<int>);

TEST_CASE("limits and sizes start where one token of one sequence is meant") {
    const sluice::limits l;
    CHECK((l.max_tokens == 0 && l.max_rows == 1 && l.n_sequences == 1 && l.max_rollback == 0 &&
           l.workers == 1 && l.max_concepts == 0));
    for (const idx bad : {idx{-1}, idx{1} << 41})
        CHECK_THROWS_AS(sluice::check_limits({.max_concepts = bad}), sluice::config_error);
    const sluice::sizes s;
    CHECK((s.state == 0 && s.workspace == 0 && s.tape == 0));
}

TEST_CASE("the smallest layer runs forward extends and goes backward") {
    const doubler l({.d_model = 2});
    float x[] = {1, 2, 3, 4}, y[4] = {}, dx[4] = {};
    arena ws, tape;
    l.forward(batch::one(2), tensor_view<float>(x, 2, 2), {y, 2, 2}, nullptr, ws);
    CHECK((y[0] == 2 && y[3] == 8));
    auto state = l.bind_state(ws, {});
    l.extend(batch::one(1), tensor_view<float>(x, 1, 2), {y, 1, 2}, state, ws);
    state.truncate(0, 0);
    l.backward(batch::one(2), tensor_view<float>(x, 2, 2), tensor_view<float>(y, 2, 2), {dx, 2, 2}, tape, {},
               ws);
    CHECK(dx[0] == 4);
    CHECK(ws.used() == 0);
    CHECK_THROWS_WITH(l.forward(batch::one(3), tensor_view<float>(x, 2, 2), {y, 2, 2}, nullptr, ws),
                      "doubler: x must be 3 x 2, is 2 x 2");
    CHECK_THROWS_WITH(doubler({.d_model = 0}), "doubler: d_model must be positive, is 0");
}
