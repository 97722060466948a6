#include "support/catch.hpp"

#include <sluice/core/tensor.hpp>

#include <limits>

using sluice::idx;
using sluice::tensor;
using sluice::tensor_view;

static_assert(!std::is_copy_constructible_v<tensor<float>> &&
              std::is_nothrow_move_constructible_v<tensor<float>>);
static_assert(std::is_convertible_v<tensor<float>&, tensor_view<float>>);
static_assert(std::is_convertible_v<tensor<float>&, tensor_view<const float>>);
static_assert(std::is_convertible_v<const tensor<float>&, tensor_view<const float>>);
static_assert(!std::is_convertible_v<const tensor<float>&, tensor_view<float>>);

TEST_CASE("a tensor is zeroed aligned and contiguous") {
    tensor<double> t(3, 5);
    CHECK((t.rows() == 3 && t.cols() == 5 && t.size() == 15));
    CHECK(reinterpret_cast<std::uintptr_t>(t.data()) % 64 == 0);
    CHECK(t.view().contiguous());
    for (idx i = 0; i < 3; ++i)
        for (idx j = 0; j < 5; ++j) CHECK(t(i, j) == 0);
}

TEST_CASE("elements are reached by row and index also when const") {
    tensor<float> t(2, 3);
    t(1, 2) = 4;
    t.row(0)[1] = 5;
    const tensor<float>& c = t;
    CHECK((c(1, 2) == 4 && c.row(0)[1] == 5 && c.data() == t.data()));
    static_assert(std::is_same_v<decltype(c.view()), tensor_view<const float>>);
    static_assert(std::is_same_v<decltype(t.view()), tensor_view<float>>);
    const tensor_view<const float> v = c;
    CHECK(&v(1, 2) == &t(1, 2));
}

TEST_CASE("empty tensors are legal") {
    CHECK(tensor<float>().size() == 0);
    CHECK(tensor<float>().data() == nullptr);
    tensor<float> none(0, 4), thin(4, 0);
    CHECK((none.rows() == 0 && none.cols() == 4 && thin.rows() == 4 && thin.cols() == 0));
}

TEST_CASE("impossible shapes are refused") {
    CHECK_THROWS_WITH(tensor<float>(-1, 2), "arena: -1 x 2 is no shape");
    CHECK_THROWS_AS(tensor<float>(std::numeric_limits<idx>::max(), 2), sluice::config_error);
    CHECK_THROWS_AS(tensor<float>(std::numeric_limits<idx>::max() / 4, 1), sluice::config_error);
}

TEST_CASE("a moved-from tensor is empty and the memory stays where it was") {
    tensor<float> a(2, 2);
    a(1, 1) = 3;
    const float* at = a.data();
    tensor<float> b(std::move(a));
    CHECK((a.size() == 0 && a.data() == nullptr));
    CHECK((b.data() == at && b(1, 1) == 3));
    tensor<float> c(5, 5);
    c = std::move(b);
    CHECK((c.data() == at && c.rows() == 2 && b.data() == nullptr));
    tensor<float>& self = c;
    c = std::move(self);
    CHECK((c.data() == at && c(1, 1) == 3));
    a = tensor<float>(1, 1);
    CHECK(a(0, 0) == 0);
}
