#include "support/allocations.hpp"
#include "support/layer_suite.hpp"

#include <sluice/layers/embedding.hpp>
#include <sluice/reference/embedding.hpp>

using namespace sluice::test;
using sluice::arena;
using sluice::batch;
using sluice::config_error;
using sluice::embedding_config;
using sluice::executor_ref;
using sluice::head_kind;
using sluice::idx;
using sluice::input_error;
using sluice::tensor_view;
using sluice::token_id;

namespace {

const embedding_config untied{.vocabulary = 13, .d_model = 7},
    tied{.vocabulary = 13, .d_model = 7, .head = head_kind::tied};

// An embedding with weights between guards, and the same in double.
template <class T, class Arch = sluice::simd::native>
struct subject {
    using layer_type = sluice::embedding<T, const T, Arch>;
    explicit subject(const embedding_config& c)
        : table(uniform_matrix<T>(c.vocabulary, c.d_model, 1)),
          head(uniform_matrix<T>(c.vocabulary, c.d_model, 2)),
          layer(c, {table.view(), c.head == head_kind::tied ? tensor_view<const T>() : head.view()}) {}
    padded<double> wide(const padded<T>& m) const {
        padded<double> result(m.view().rows(), m.view().cols());
        copy(m.view(), result.view());
        return result;
    }
    padded<double> out() const { return wide(layer.config().head == head_kind::tied ? table : head); }

    padded<T> table, head;
    layer_type layer;
};

std::vector<token_id> some_ids(idx n, idx vocabulary, std::uint64_t key) {
    std::vector<token_id> ids;
    for (idx i = 0; i < n; ++i)
        ids.push_back(static_cast<token_id>(sluice::random_source(key).bits(i) %
                                            static_cast<std::uint32_t>(vocabulary)));
    return ids;
}

// Targets of which every fifth is none.
std::vector<token_id> some_targets(idx n, idx vocabulary) {
    auto targets = some_ids(n, vocabulary, 5);
    for (std::size_t i = 3; i < targets.size(); i += 5) targets[i] = sluice::ignored_target;
    return targets;
}

// What loss() takes.
template <class L>
std::size_t loss_bytes(const L& layer, idx rows, const executor_ref& ex = {}) {
    using T = typename L::scalar;
    arena dry, grad_memory;
    sluice::dry_run counting{ex.concurrency()};
    const tensor_view<T> x(nullptr, rows, layer.config().d_model);
    const auto grad = L::grad_type::bind(grad_memory, layer.config());
    layer.loss(x, {}, 1, &grad, x, dry, executor_ref(counting));
    return dry.bytes();
}

} // namespace

TEMPLATE_TEST_CASE("rows of the table are looked up", "", float_native, double_scalar) {
    using T = typename TestType::scalar;
    const subject<T, typename TestType::arch> s(untied);
    for (idx n : {0, 1, 7, 300}) {
        const auto ids = some_ids(n, 13, 4);
        padded<T> y(n, 7);
        padded<double> want(n, 7);
        s.layer.forward(batch::one(ids), y);
        sluice::reference::embedding<double>(ids, s.wide(s.table).view(), want.view());
        for (idx i = 0; i < n; ++i)
            for (idx j = 0; j < 7; ++j) REQUIRE(static_cast<double>(y(i, j)) == want(i, j));
        CHECK(y.touched() + s.table.touched() == "");
        for_each_executor([&](executor_ref ex, const std::string&) {
            padded<T> other(n, 7);
            s.layer.forward(batch::one(ids), other, ex);
            CHECK(different_bits(other.view(), y.view()) == "");
        });
    }
}

TEST_CASE("the gradient of a row is the sum over its tokens, and accumulates") {
    const subject<double> s(untied);
    const auto ids = some_ids(90, 6, 4); // rows from 6 on are never looked up
    const auto dy = uniform_matrix<double>(90, 7, 8);
    for_each_executor([&](executor_ref ex, const std::string& name) {
        INFO(name);
        padded<double> table(13, 7);
        fill(table.view(), 0.5);
        s.layer.backward(batch::one(ids), dy.view(), {table.view(), {}}, ex);
        for (idx row = 0; row < 13; ++row)
            for (idx j = 0; j < 7; ++j) {
                double sum = 0.5;
                for (idx i = 0; i < 90; ++i)
                    if (ids[static_cast<std::size_t>(i)] == row) sum += dy.view()(i, j);
                CHECK(table(row, j) == sum);
            }
        CHECK(table.touched() == "");
    });
}

TEMPLATE_TEST_CASE("logits and loss agree with their reference", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    for (const auto& config : {untied, tied, embedding_config{.vocabulary = 131, .d_model = 1}}) {
        const subject<T, typename TestType::arch> s(config);
        const idx v = config.vocabulary, d = config.d_model;
        for (idx n : {0, 1, 255, 256, 257, 600}) {
            const auto x = uniform_matrix<T>(n, d, 9);
            const auto wide_x = s.wide(x);
            padded<double> want(n, v);
            sluice::reference::output_logits<double>(s.out().view(), wide_x.view(), want.view());
            poisoned_memory workspace(loss_bytes(s.layer, n));
            padded<T> y(n, v);
            s.layer.logits(x.view(), y, workspace.arena());
            oracle logits(n, v);
            for (idx i = 0; i < n; ++i)
                for (idx j = 0; j < v; ++j) logits(i, j) = {want(i, j), static_cast<double>(d)};
            if (n > 0) CHECK(compare(y.view(), logits, {.chain = d}) == "");
            const auto targets = some_targets(n, v);
            const double loss = s.layer.loss(x.view(), targets, 1, nullptr, {}, workspace.arena());
            const double right = sluice::reference::cross_entropy<double>(want.view(), targets);
            CHECK(std::abs(loss - right) <= 8 * unit_roundoff<T> * static_cast<double>(n * (d + 4)));
            CHECK(workspace.touched() == "");
            CHECK(workspace.arena().used() == 0);
        }
    }
}

// Rows are taken in blocks; the gradient is held against softmax minus one-hot of all rows at once.
TEST_CASE("the gradient of the loss is that of the plain formula") {
    for (const auto& config : {untied, tied}) {
        const subject<double> s(config);
        const idx n = 300, v = 13, d = 7;
        const double weight = 0.37;
        const auto x = uniform_matrix<double>(n, d, 9);
        const auto targets = some_targets(n, v);
        const auto w = s.out();
        padded<double> dlogits(n, v), want_dx(n, d), want_dw(v, d);
        sluice::reference::output_logits<double>(w.view(), x.view(), dlogits.view());
        for (idx i = 0; i < n; ++i) {
            const token_id target = targets[static_cast<std::size_t>(i)];
            double total = 0;
            for (idx j = 0; j < v; ++j) total += std::exp(dlogits(i, j));
            for (idx j = 0; j < v; ++j)
                dlogits(i, j) =
                    target < 0 ? 0 : weight * (std::exp(dlogits(i, j)) / total - (j == target ? 1 : 0));
            for (idx k = 0; k < d; ++k)
                for (idx j = 0; j < v; ++j) {
                    want_dx(i, k) += dlogits(i, j) * w.view()(j, k);
                    want_dw(j, k) += dlogits(i, j) * x.view()(i, k);
                }
        }
        for_each_executor([&](executor_ref ex, const std::string& name) {
            INFO(name);
            poisoned_memory workspace(loss_bytes(s.layer, n, ex));
            padded<double> table(v, d), head(v, d), dx(n, d), same_memory = x;
            const bool own_head = config.head == head_kind::untied;
            const sluice::embedding_params<double> grad{table.view(),
                                                        own_head ? head.view() : tensor_view<double>()};
            fill(dx.view(), std::nan(""));
            const double loss = s.layer.loss(x.view(), targets, weight, &grad, dx, workspace.arena(), ex);
            CHECK(workspace.arena().bytes() == loss_bytes(s.layer, n, ex));
            CHECK(loss == s.layer.loss(x.view(), targets, 1, nullptr, {}, workspace.arena()));
            padded<double>& dw = own_head ? head : table;
            for (idx j = 0; j < v; ++j)
                for (idx k = 0; k < d; ++k)
                    CHECK(dw(j, k) == approx(want_dw(j, k)).epsilon(1e-12).margin(1e-12));
            for (idx i = 0; i < n; ++i)
                for (idx k = 0; k < d; ++k)
                    REQUIRE(dx(i, k) == approx(want_dx(i, k)).epsilon(1e-12).margin(1e-13));
            const padded<double> before = dw;
            s.layer.loss(same_memory.view(), targets, weight, &grad, same_memory, workspace.arena(),
                         ex); // dx is x
            CHECK(different_bits(same_memory.view(), dx.view()) == "");
            for (idx k = 0; k < d; ++k) CHECK(dw(2, k) == approx(2 * before.view()(2, k)).epsilon(1e-12));
            CHECK(workspace.touched() + dx.touched() + head.touched() + table.touched() == "");
        });
    }
}

TEST_CASE("rows without a target count for nothing") {
    const subject<float> s(tied);
    const auto x = uniform_matrix<float>(5, 7, 9);
    arena workspace(loss_bytes(s.layer, 5));
    padded<float> table(13, 7), dx(5, 7);
    const sluice::embedding_params<float> grad{table.view(), {}};
    fill(dx.view(), 3.0F);
    const std::vector<token_id> none(5, sluice::ignored_target);
    CHECK(s.layer.loss(x.view(), none, 1, &grad, dx, workspace) == 0);
    for (idx j = 0; j < 7; ++j) {
        CHECK(dx(3, j) == 0);
        CHECK(table(2, j) == 0);
    }
}

TEST_CASE("token ids outside the vocabulary are named, and nothing is written") {
    const subject<float> s(untied);
    for (token_id bad :
         {-1, 13, std::numeric_limits<token_id>::min(), std::numeric_limits<token_id>::max()}) {
        const std::vector<token_id> ids{3, 12, bad, 0};
        padded<float> y(4, 7), table(13, 7);
        const std::string text =
            "embedding: token id " + std::to_string(bad) + " at row 2 is outside the vocabulary of 13";
        CHECK(message_of<input_error>([&] { s.layer.forward(batch::one(ids), y); }) == text);
        CHECK(message_of<input_error>([&] {
                  s.layer.backward(batch::one(ids), y.view(), {table.view(), {}});
              }) == text);
        for (idx j = 0; j < 7; ++j) CHECK((y(0, j) == 0 && table(3, j) == 0));
    }
    padded<float> y(4, 7);
    CHECK(message_of<config_error>([&] { s.layer.forward(batch::one(3), y); }) ==
          "embedding: y must be 3 x 7, is 4 x 7");
    const std::vector<token_id> ids{1, 2};
    CHECK(message_of<config_error>([&] { s.layer.forward({.n_tokens = 4, .ids = ids}, y); }) ==
          "embedding: y must be 2 x 7, is 4 x 7");
}

TEST_CASE("targets outside the vocabulary are named, and nothing is added to a gradient") {
    const subject<float> s(untied);
    const idx n = 300;
    const auto x = uniform_matrix<float>(n, 7, 9);
    arena workspace(loss_bytes(s.layer, n));
    padded<float> table(13, 7), head(13, 7), dx(n, 7);
    const sluice::embedding_params<float> grad{table.view(), head.view()};
    auto said = [&](const std::vector<token_id>& targets) {
        const std::string text =
            message_of<input_error>([&] { s.layer.loss(x.view(), targets, 1, &grad, dx, workspace); });
        CHECK(workspace.used() == 0);
        for (idx i = 0; i < 91; ++i) CHECK((head(i / 7, i % 7) == 0 && dx(i / 7, i % 7) == 0));
        return text;
    };
    auto targets = some_targets(n, 13);
    for (token_id bad : {13, -2}) {
        targets[280] = bad; // in the second block of rows
        CHECK(said(targets) ==
              "embedding: target " + std::to_string(bad) + " at row 280 is outside the vocabulary of 13");
    }
    targets.pop_back();
    CHECK(said(targets) == "embedding: 299 targets for 300 rows");
}

TEST_CASE("a config or weights that do not fit are refused") {
    auto said = [](const embedding_config& c, const sluice::embedding_params<float>& p) {
        return message_of<config_error>([&] { sluice::embedding<float>(c, p); });
    };
    using params = sluice::owned_params<sluice::embedding_params<float>>;
    CHECK(said({.vocabulary = 0, .d_model = 2}, {}) == "embedding: vocabulary must be positive, is 0");
    CHECK(said({.vocabulary = 2, .d_model = -1}, {}) == "embedding: d_model must be positive, is -1");
    CHECK(said(untied, params(embedding_config{.vocabulary = 12, .d_model = 7}).view) ==
          "embedding: table must be 13 x 7, is 12 x 7");
    CHECK(said(untied, params(tied).view) == "embedding: head must be 13 x 7, is 0 x 0");
    CHECK(said(tied, params(untied).view) == "embedding: head must be 0 x 0, is 13 x 7");
}

TEST_CASE("too little memory for the loss is refused before a gradient is written") {
    const subject<float> s(untied);
    const auto x = uniform_matrix<float>(20, 7, 9);
    const auto targets = some_targets(20, 13);
    arena small(64);
    padded<float> table(13, 7), head(13, 7), dx(20, 7);
    const sluice::embedding_params<float> grad{table.view(), head.view()};
    CHECK_THROWS_AS(s.layer.loss(x.view(), targets, 1, &grad, dx, small), sluice::capacity_error);
    CHECK(small.used() == 0);
    for (idx i = 0; i < 91; ++i) CHECK(head(i / 7, i % 7) == 0);
}

TEST_CASE("nothing is allocated") {
    REQUIRE(allocations_are_noticed());
    const subject<float> s(untied);
    const auto ids = some_ids(300, 13, 4);
    arena workspace(loss_bytes(s.layer, 300));
    padded<float> y(300, 7), dx(300, 7), table(13, 7), head(13, 7);
    const sluice::embedding_params<float> grad{table.view(), head.view()};
    CHECK(allocations_of([&] {
              s.layer.forward(batch::one(ids), y);
              s.layer.loss(y.view(), ids, 1, &grad, dx, workspace);
              s.layer.backward(batch::one(ids), dx.view(), grad);
          }) == 0);
}

TEST_CASE("a tied table is visited once") {
    sluice::owned_params<sluice::embedding_params<float>> one(tied), two(untied);
    CHECK(count_params(one.view) == 91);
    CHECK(count_params(two.view) == 182);
    initialise(two.view, untied, sluice::random_source(1));
    CHECK(two.view.table(0, 0) / 0.3F != two.view.head(0, 0) / 0.02F); // drawn apart
    CHECK(sluice::embedding<float>(tied, one.view).flops(3) == 2.0 * 3 * 91);
}

TEST_CASE("a vocabulary that multiplies out of range is refused before anything is bound") {
    constexpr idx big = idx{1} << 32, most = std::numeric_limits<idx>::max();
    for (const auto& [v, d] : {std::pair<idx, idx>{big, big}, {most, 2}, {2, most}, {most, most}, {-1, 4}}) {
        arena dry;
        CHECK_THROWS_AS(sluice::embedding_params<float>::bind(dry, {.vocabulary = v, .d_model = d}),
                        sluice::config_error);
    }
}
