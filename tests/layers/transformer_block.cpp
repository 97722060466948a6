#include "support/layer_suite.hpp"
#include "support/reference_of.hpp"

using namespace sluice::test;
using sluice::arena;
using sluice::batch;
using sluice::config_error;
using sluice::executor_ref;
using sluice::idx;
using sluice::in;
using sluice::tensor_view;
using sluice::transformer_block_config;

namespace {

struct block_traits {
    template <class W>
    using params = sluice::transformer_block_params<W>;
    template <class T, class W, class Arch>
    using layer = sluice::transformer_block<T, W, Arch>;

    static std::vector<variant<transformer_block_config>> variants() {
        using kind = sluice::feed_forward_kind;
        return {
            {"rms, swiglu",
             {.attention = {.d_model = 6, .n_heads = 2, .n_kv_heads = 1, .head_dim = 4},
              .feed_forward = {.d_model = 6, .d_ff = 11},
              .norm = {.d_model = 6}}},
            {"layer norm, gelu with biases, window",
             {.attention = {.d_model = 5, .n_heads = 1, .n_kv_heads = 1, .head_dim = 6, .window = 9},
              .feed_forward = {.d_model = 5, .d_ff = 7, .kind = kind::gelu, .bias = true},
              .norm = {.d_model = 5, .kind = sluice::norm_kind::layer, .eps = 1e-3}}},
            {"awkward widths",
             {.attention = {.d_model = 67,
                            .n_heads = 6,
                            .n_kv_heads = 3,
                            .head_dim = 18,
                            .norm = sluice::qk_norm::per_head},
              .feed_forward = {.d_model = 67, .d_ff = 129, .kind = kind::geglu},
              .norm = {.d_model = 67}},
             true},
        };
    }
    static void reference(const transformer_block_config& c, const params<double>& p, const batch& b,
                          in<double> x, tensor_view<double> y) {
        sluice::reference::transformer_block<double>(b, reference_of(c), reference_of(p), x, y);
    }
    // Norms with a larger eps.
    static void wrong_reference(transformer_block_config c, const params<double>& p, const batch& b,
                                in<double> x, tensor_view<double> y) {
        c.norm.eps += 0.01;
        reference(c, p, b, x, y);
    }
};

// A block's change as a layer of its own.
template <class Block>
class change_of {
public:
    using scalar = typename Block::scalar;
    using T = scalar;
    using config_type = typename Block::config_type;
    using params_type = typename Block::params_type;
    using grad_type = typename Block::grad_type;
    using state_type = typename Block::state_type;

    change_of(const config_type& c, const params_type& p) : block_(c, p) {}
    const config_type& config() const { return block_.config(); }
    idx d_in() const { return block_.d_in(); }
    idx d_out() const { return block_.d_out(); }
    void forward(const batch& b, in<T> x, tensor_view<T> y, arena* tape, arena& workspace,
                 executor_ref ex = {}) const {
        block_.change(b, x, y, tape, workspace, ex);
    }
    void backward(const batch& b, in<T> x, in<T> dy, tensor_view<T> dx, arena& tape, const grad_type& grad,
                  arena& workspace, executor_ref ex = {}) const {
        block_.change_backward(b, x, dy, dx, tape, grad, workspace, ex);
    }
    state_type bind_state(arena& memory, const sluice::limits& most) const {
        return block_.bind_state(memory, most);
    }
    void extend(const batch& b, in<T> x, tensor_view<T> y, state_type& state, arena& workspace,
                executor_ref ex = {}) const {
        block_.extend_change(b, x, y, state, workspace, ex);
    }
    sluice::sizes bytes(const sluice::limits& most) const { return block_.bytes(most); }

private:
    Block block_;
};

struct change_traits : block_traits {
    template <class T, class W, class Arch>
    using layer = change_of<sluice::transformer_block<T, W, Arch>>;

    static void reference(const transformer_block_config& c, const params<double>& p, const batch& b,
                          in<double> x, tensor_view<double> y) {
        block_traits::reference(c, p, b, x, y);
        for (idx i = 0; i < x.rows(); ++i)
            for (idx j = 0; j < x.cols(); ++j) y(i, j) -= x(i, j);
    }
    // Adds x.
    static void wrong_reference(const transformer_block_config& c, const params<double>& p, const batch& b,
                                in<double> x, tensor_view<double> y) {
        block_traits::reference(c, p, b, x, y);
    }
};

} // namespace

SLUICE_TEST_LAYER("block ", block_traits, float_native, double_scalar)
SLUICE_TEST_LAYER("change ", change_traits, double_native)

TEST_CASE("forward is x and the change") {
    using suite = layer_suite<block_traits, float_native>;
    suite::for_each_variant(true, [](const suite::subject& s) {
        const sample<float> rows({5, 0, 8}, s.layer.d_in(), 1);
        const auto y = suite::forward(s.layer, rows);
        padded<float> change(13, s.layer.d_in());
        arena workspace(s.layer.bytes(suite::limits_of(13)).workspace);
        s.layer.change(rows.rows(), rows.x.view(), change, nullptr, workspace);
        for (idx i = 0; i < 13; ++i)
            for (idx j = 0; j < s.layer.d_in(); ++j)
                CHECK(y.view()(i, j) ==
                      approx(rows.x.view()(i, j) + change(i, j)).epsilon(1e-6).margin(1e-6));
    });
}

TEST_CASE("parts of another width are refused") {
    const auto good = block_traits::variants()[0].config;
    auto said = [](const transformer_block_config& c) {
        const sluice::owned_params<sluice::transformer_block_params<float>> p(c);
        return message_of<config_error>([&] { sluice::transformer_block<float>(c, p.view); });
    };
    CHECK(said(good) == "no error");
    auto c = good;
    c.norm.d_model = 7;
    CHECK(said(c) == "transformer_block: d_model of norm is 7, of attention 6");
    c = good;
    c.feed_forward.d_model = 5;
    CHECK(said(c) == "transformer_block: d_model of feed_forward is 5, of attention 6");
    c = good;
    c.attention.head_dim = 3;
    CHECK(said(c) == "attention: rotary positions need an even head_dim, is 3");
}

TEST_CASE("a new block changes nothing") {
    const auto c = block_traits::variants()[1].config;
    sluice::owned_params<sluice::transformer_block_params<float>> p(c);
    initialise(p.view, c, sluice::random_source(3));
    const sluice::transformer_block<float> block(c, p.view);
    arena workspace(block.bytes({.max_tokens = 3, .max_rows = 3}).workspace);
    auto x = uniform_matrix<float>(3, 5, 1);
    padded<float> y(3, 5);
    block.forward(batch::one(3), x, y, nullptr, workspace);
    CHECK(different_bits(y.view(), x.view()) == "");
    CHECK(block.flops(3) > 0);
}

TEST_CASE("names of weights say where they stand") {
    const auto c = block_traits::variants()[1].config;
    sluice::owned_params<sluice::transformer_block_params<float>> p(c);
    std::string names;
    each_param([&](const sluice::param_name& name, sluice::role, const auto&) { names += name.str() + " "; },
               p.view);
    CHECK(names ==
          "attention_norm.scale attention_norm.bias attention.w_q attention.w_k attention.w_v attention.w_o "
          "feed_forward_norm.scale feed_forward_norm.bias feed_forward.w_up feed_forward.w_down "
          "feed_forward.b_up feed_forward.b_down ");
}

TEST_CASE("prefill and decode are extend") {
    using suite = layer_suite<block_traits, float_native>;
    const suite::subject s(block_traits::variants()[0].config);
    const sample<float> rows({4}, 6, 3);
    const auto want = suite::forward(s.layer, rows);
    const sluice::limits most{.max_tokens = 4, .max_rows = 3};
    arena memory(s.layer.bytes(most).state), workspace(s.layer.bytes(most).workspace);
    auto state = s.layer.bind_state(memory, most);
    padded<float> y(4, 6);
    s.layer.prefill(batch::one(3), rows.x.view().row_block(0, 3), y.view().row_block(0, 3), state, workspace);
    s.layer.decode(batch::one(1, 3), rows.x.view().row_block(3, 1), y.view().row_block(3, 1), state,
                   workspace);
    CHECK(different_bits(y.view(), want.view()) == "");
}
