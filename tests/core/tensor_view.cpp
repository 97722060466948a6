#include "support/catch.hpp"

#include <sluice/core/tensor_view.hpp>

#include <limits>
#include <vector>

using sluice::idx;
using sluice::tensor_view;

static_assert(std::is_trivially_copyable_v<tensor_view<float>>);
static_assert(std::is_convertible_v<tensor_view<float>, tensor_view<const float>>);
static_assert(!std::is_convertible_v<tensor_view<const float>, tensor_view<float>>);
static_assert(!std::is_convertible_v<tensor_view<float>, tensor_view<double>>);
static_assert(std::is_convertible_v<std::span<float>, tensor_view<float>>);
static_assert(std::is_same_v<tensor_view<const float>::value_type, float>);
static_assert(!sluice::eigen_like<tensor_view<float>> && !sluice::eigen_like<std::vector<float>>);
static_assert(tensor_view<float>().empty() && tensor_view<float>(nullptr, 3, 4).size() == 12);

namespace {

std::vector<float> counting(std::size_t n) {
    std::vector<float> v(n);
    for (std::size_t i = 0; i < n; ++i) v[i] = static_cast<float>(i);
    return v;
}

// Takes what an op takes: T is deduced from the first argument only.
template <class T>
T first_of(const tensor_view<T>& y, sluice::in<T> x) {
    return x(0, 0) + y(0, 0);
}

} // namespace

TEST_CASE("a default view is empty") {
    const tensor_view<float> v;
    CHECK(v.data() == nullptr);
    CHECK((v.rows() == 0 && v.cols() == 0 && v.row_stride() == 0 && v.size() == 0));
    CHECK((v.empty() && v.contiguous()));
}

TEST_CASE("elements and rows stand where the stride says") {
    auto memory = counting(20);
    const tensor_view<float> packed(memory.data(), 4, 5);
    CHECK((packed.row_stride() == 5 && packed.contiguous() && packed.size() == 20));
    const tensor_view<float> strided(memory.data(), 4, 3, 5);
    CHECK_FALSE(strided.contiguous());
    for (idx i = 0; i < 4; ++i)
        for (idx j = 0; j < 3; ++j) {
            CHECK(strided(i, j) == static_cast<float>(5 * i + j));
            CHECK(&strided(i, j) == strided.row(i) + j);
        }
    strided(2, 1) = -1;
    CHECK(memory[11] == -1);
}

TEST_CASE("one row is contiguous whatever its stride") {
    auto memory = counting(10);
    CHECK(tensor_view<float>(memory.data(), 1, 3, 10).contiguous());
    CHECK(tensor_view<float>(memory.data(), 1, 3, 0).contiguous());
    CHECK(tensor_view<float>(memory.data(), 0, 3, 10).contiguous());
    CHECK_FALSE(tensor_view<float>(memory.data(), 2, 3, 5).contiguous());
}

TEST_CASE("impossible shapes are refused with the numbers") {
    float x = 0;
    CHECK_THROWS_AS(tensor_view<float>(&x, -1, 2), sluice::config_error);
    CHECK_THROWS_WITH(tensor_view<float>(&x, -1, 2), "tensor_view: -1 x 2 with row stride 2 is no shape");
    CHECK_THROWS_WITH(tensor_view<float>(&x, 2, -3), "tensor_view: 2 x -3 with row stride -3 is no shape");
    CHECK_THROWS_WITH(tensor_view<float>(&x, 2, 3, 2), "tensor_view: 2 x 3 with row stride 2 is no shape");
    CHECK_THROWS_WITH(tensor_view<float>(&x, 2, 3, -3), "tensor_view: 2 x 3 with row stride -3 is no shape");
    CHECK_NOTHROW(tensor_view<float>(&x, 1, 1, 0));
    CHECK_NOTHROW(tensor_view<float>(nullptr, 0, 0));
}

TEST_CASE("a span is one row") {
    auto memory = counting(6);
    const tensor_view<float> v = std::span<float>(memory);
    CHECK((v.rows() == 1 && v.cols() == 6 && v.data() == memory.data()));
    const tensor_view<float> none = std::span<float>();
    CHECK((none.rows() == 1 && none.cols() == 0 && none.empty()));
}

TEST_CASE("a view converts to a const view with its stride") {
    auto memory = counting(20);
    const tensor_view<float> v(memory.data(), 3, 4, 5);
    const tensor_view<const float> c = v;
    CHECK((c.data() == v.data() && c.rows() == 3 && c.cols() == 4 && c.row_stride() == 5));
    CHECK(first_of(v, v) == 0.0F);
    CHECK(first_of(v, c) == 0.0F);
}

TEST_CASE("row blocks and column blocks address the same elements") {
    auto memory = counting(35);
    const tensor_view<float> v(memory.data(), 5, 6, 7);
    const auto rows = v.row_block(2, 3);
    CHECK((rows.rows() == 3 && rows.cols() == 6 && rows.row_stride() == 7 && rows.data() == v.row(2)));
    const auto cols = v.col_block(4, 2);
    CHECK((cols.rows() == 5 && cols.cols() == 2 && cols.row_stride() == 7 && &cols(3, 1) == &v(3, 5)));
    CHECK(v.row_block(5, 0).empty());
    CHECK(v.col_block(6, 0).empty());
    CHECK(v.row_block(0, 5).col_block(0, 6).size() == v.size());
}

TEST_CASE("blocks of a null view are null") {
    const tensor_view<float> dry(nullptr, 5, 6);
    CHECK(dry.row_block(3, 2).data() == nullptr);
    CHECK(dry.col_block(3, 2).data() == nullptr);
    CHECK(dry.row_block(3, 2).rows() == 2);
}

#if !defined(NDEBUG) || defined(SLUICE_ENABLE_ASSERTS)
TEST_CASE("blocks outside the view are caught where assertions are on") {
    auto memory = counting(12);
    const tensor_view<float> v(memory.data(), 3, 4);
    CHECK_THROWS_AS(v.row_block(2, 2), sluice::error);
    CHECK_THROWS_AS(v.row_block(-1, 2), sluice::error);
    CHECK_THROWS_AS(v.row_block(0, -1), sluice::error);
    CHECK_THROWS_AS(v.col_block(4, 1), sluice::error);
    CHECK_THROWS_AS(v.col_block(-2, 2), sluice::error);
}
#endif

TEST_CASE("shape text and require_shape name both shapes") {
    CHECK(sluice::shape_text(3, 40) == "3 x 40");
    const tensor_view<float> v(nullptr, 3, 4);
    CHECK_NOTHROW(sluice::require_shape(v, 3, 4, "linear", "weight"));
    CHECK_THROWS_AS(sluice::require_shape(v, 4, 3, "linear", "weight"), sluice::config_error);
    CHECK_THROWS_WITH(sluice::require_shape(v, 4, 4, "linear", "weight"),
                      "linear: weight must be 4 x 4, is 3 x 4");
    CHECK_THROWS_WITH(sluice::require_shape(v, 3, 5, "linear", "weight"),
                      "linear: weight must be 3 x 5, is 3 x 4");
}

TEST_CASE("overlap is found between views of any type") {
    std::vector<double> memory(32);
    const tensor_view<double> a(memory.data(), 2, 4, 8); // elements 0 to 3 and 8 to 11
    CHECK(sluice::overlap(a, a));
    CHECK(sluice::overlap(a, tensor_view<const double>(memory.data() + 11, 1, 1)));
    CHECK(sluice::overlap(tensor_view<const double>(memory.data() + 11, 1, 1), a));
    CHECK_FALSE(sluice::overlap(a, tensor_view<double>(memory.data() + 12, 1, 20)));
    const tensor_view<char> bytes(reinterpret_cast<char*>(memory.data()) + 95, 1, 1);
    CHECK(sluice::overlap(a, bytes));
    // columns side by side, and a row between the rows
    CHECK_FALSE(sluice::overlap(a, tensor_view<double>(memory.data() + 4, 2, 4, 8)));
    CHECK_FALSE(sluice::overlap(tensor_view<double>(memory.data() + 4, 2, 4, 8), a));
    CHECK_FALSE(sluice::overlap(a, tensor_view<double>(memory.data() + 4, 1, 4)));
    CHECK(sluice::overlap(a, tensor_view<double>(memory.data() + 4, 1, 5)));
    CHECK(sluice::overlap(a, tensor_view<double>(memory.data() + 4, 2, 4, 7)));
}

// Against a set of the elements themselves.
TEST_CASE("overlap is what sharing an element means") {
    std::vector<float> memory(64);
    auto elements = [&](const tensor_view<float>& v) {
        std::vector<bool> in(64);
        for (idx i = 0; i < v.rows(); ++i)
            for (idx j = 0; j < v.cols(); ++j) in[static_cast<std::size_t>(&v(i, j) - memory.data())] = true;
        return in;
    };
    std::vector<tensor_view<float>> views;
    for (idx first : {0, 1, 3, 4, 7})
        for (idx rows : {1, 2, 3, 4})
            for (idx cols : {1, 2, 3, 5})
                for (idx stride : {5, 6, 9}) views.push_back({memory.data() + first, rows, cols, stride});
    idx together = 0;
    for (const auto& a : views)
        for (const auto& b : views) {
            const auto in_a = elements(a), in_b = elements(b);
            bool shared = false;
            for (std::size_t i = 0; i < 64; ++i) shared = shared || (in_a[i] && in_b[i]);
            together += shared;
            if (sluice::overlap(a, b) != shared) {
                CAPTURE(a.data() - memory.data(), a.rows(), a.cols(), a.row_stride());
                CAPTURE(b.data() - memory.data(), b.rows(), b.cols(), b.row_stride());
                FAIL("wrong");
            }
        }
    CHECK((together > 1000 && together < static_cast<idx>(views.size() * views.size()) - 1000));
}

TEST_CASE("outputs are apart from inputs, or the very same view") {
    std::vector<float> memory(32);
    const tensor_view<float> a(memory.data(), 2, 4, 8), right(memory.data() + 4, 2, 4, 8),
        shifted(memory.data() + 1, 2, 4, 8), denser(memory.data(), 2, 4);
    CHECK(sluice::apart(a, right));
    CHECK_FALSE(sluice::apart(a, right, a));
    CHECK(sluice::apart_or_same(a, a, right));
    CHECK_FALSE(sluice::apart_or_same(a, shifted));
    CHECK_FALSE(sluice::apart_or_same(a, a, denser));
}

TEST_CASE("empty and null views overlap nothing") {
    std::vector<float> memory(8);
    const tensor_view<float> a(memory.data(), 2, 4);
    CHECK_FALSE(sluice::overlap(a, tensor_view<float>(memory.data() + 1, 0, 4)));
    CHECK_FALSE(sluice::overlap(tensor_view<float>(memory.data() + 1, 4, 0), a));
    CHECK_FALSE(sluice::overlap(a, tensor_view<float>(nullptr, 2, 4)));
    CHECK(sluice::apart_or_same(tensor_view<float>(), tensor_view<float>(), a));
}

TEST_CASE("fill writes every element of a view and nothing between its rows") {
    auto memory = counting(15);
    sluice::fill(tensor_view<float>(memory.data(), 3, 4, 5), 7);
    for (std::size_t i = 0; i < 15; ++i) CHECK(memory[i] == (i % 5 < 4 ? 7.0F : static_cast<float>(i)));
}
