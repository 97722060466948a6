#include "support/catch.hpp"

#include <sluice/core/eigen.hpp>

#include <vector>

using sluice::idx;
using sluice::tensor_view;

namespace {

using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using column_matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic>;

matrix counting(idx rows, idx cols) {
    matrix m(rows, cols);
    for (idx i = 0; i < rows; ++i)
        for (idx j = 0; j < cols; ++j) m(i, j) = static_cast<float>(100 * i + j);
    return m;
}

template <class T, class M>
void check_same(const tensor_view<T>& v, const M& m) {
    REQUIRE((v.rows() == m.rows() && v.cols() == m.cols()));
    for (idx i = 0; i < v.rows(); ++i)
        for (idx j = 0; j < v.cols(); ++j) CHECK(&v(i, j) == &m.coeffRef(i, j));
}

// How users meet the conversion: an argument of an op.
float sum(const tensor_view<const float>& x) {
    float s = 0;
    for (idx i = 0; i < x.rows(); ++i)
        for (idx j = 0; j < x.cols(); ++j) s += x(i, j);
    return s;
}
void set(const tensor_view<float>& y, float value) { sluice::fill(y, value); }

} // namespace

static_assert(sluice::eigen_like<matrix> && sluice::eigen_like<const matrix&>);

TEST_CASE("a row-major matrix converts to a view of its memory") {
    matrix m = counting(4, 5);
    check_same(tensor_view<float>(m), m);
    CHECK(tensor_view<float>(m).contiguous());
    set(m, 2);
    CHECK(m.sum() == 40);
}

TEST_CASE("a const matrix converts to a const view") {
    const matrix m = counting(3, 2);
    check_same(tensor_view<const float>(m), m);
    CHECK(sum(m) == m.sum());
}

TEST_CASE("a mutable matrix converts to a const view too") {
    matrix m = counting(3, 2);
    check_same(tensor_view<const float>(m), m);
}

TEST_CASE("a block keeps the stride of its matrix") {
    matrix m = counting(6, 7);
    auto block = m.block(1, 2, 3, 4);
    const tensor_view<float> v = block;
    check_same(v, block);
    CHECK(v.row_stride() == 7);
    CHECK_FALSE(v.contiguous());
    set(m.block(1, 2, 3, 4), 0); // temporaries too
    CHECK(m(0, 2) == 2);
    CHECK(m(1, 2) == 0);
    CHECK(m(3, 5) == 0);
    CHECK(m(3, 6) == 306);
}

TEST_CASE("rows columns and middle parts of rows convert") {
    matrix m = counting(6, 7);
    check_same(tensor_view<float>(m.middleRows(2, 3)), m.middleRows(2, 3));
    check_same(tensor_view<float>(m.rightCols(2)), m.rightCols(2));
    auto row = m.row(4);
    const tensor_view<float> v = row;
    check_same(v, row);
    CHECK((v.rows() == 1 && v.cols() == 7 && v.data() == &m(4, 0)));
    auto part = m.row(4).segment(2, 3);
    CHECK(tensor_view<float>(part).data() == &m(4, 2));
}

TEST_CASE("Map and Map with an outer stride convert") {
    std::vector<float> memory(40, 1.0F);
    Eigen::Map<matrix> packed(memory.data(), 5, 8);
    check_same(tensor_view<float>(packed), packed);
    Eigen::Map<matrix, Eigen::Unaligned, Eigen::OuterStride<>> strided(memory.data(), 5, 6,
                                                                       Eigen::OuterStride<>(8));
    const tensor_view<float> v = strided;
    check_same(v, strided);
    CHECK(v.row_stride() == 8);
    Eigen::Map<const matrix> fixed(memory.data(), 5, 8);
    check_same(tensor_view<const float>(fixed), fixed);
}

TEST_CASE("a Map whose rows overlap is refused like any such view") {
    std::vector<float> memory(40);
    Eigen::Map<matrix, Eigen::Unaligned, Eigen::OuterStride<>> windows(memory.data(), 5, 6,
                                                                       Eigen::OuterStride<>(1));
    CHECK_THROWS_WITH(tensor_view<float>(windows), "tensor_view: 5 x 6 with row stride 1 is no shape");
}

TEST_CASE("Ref converts and keeps its constness") {
    matrix m = counting(6, 7);
    using stride = Eigen::OuterStride<>;
    Eigen::Ref<matrix, 0, stride> ref = m.block(1, 1, 2, 3);
    const tensor_view<float> v = ref;
    CHECK((v.data() == &m(1, 1) && v.rows() == 2 && v.cols() == 3 && v.row_stride() == 7));
    const Eigen::Ref<const matrix, 0, stride> read = m;
    const tensor_view<const float> c = read;
    CHECK((c.data() == m.data() && c.rows() == 6));
}

TEST_CASE("vectors convert whatever their direction") {
    Eigen::RowVectorXf row = Eigen::RowVectorXf::LinSpaced(5, 0, 4);
    const tensor_view<float> r = row;
    check_same(r, row);
    CHECK((r.rows() == 1 && r.cols() == 5));
    Eigen::VectorXf column = Eigen::VectorXf::LinSpaced(5, 0, 4);
    const tensor_view<float> c = column;
    check_same(c, column);
    CHECK((c.rows() == 5 && c.cols() == 1 && c.row_stride() == 1));
}

TEST_CASE("fixed sizes convert") {
    Eigen::Matrix<double, 3, 4, Eigen::RowMajor> m;
    m.setRandom();
    check_same(tensor_view<double>(m), m);
    Eigen::Matrix<double, 3, 1> column;
    check_same(tensor_view<double>(column), column);
    Eigen::Array<float, 2, 6, Eigen::RowMajor> array;
    check_same(tensor_view<float>(array), array);
}

TEST_CASE("empty matrices convert") {
    matrix none(0, 5), thin(3, 0);
    CHECK(tensor_view<float>(none).empty());
    CHECK(tensor_view<float>(none).cols() == 5);
    CHECK(tensor_view<float>(thin).rows() == 3);
}

TEST_CASE("eigen gives a Map on the same memory back") {
    std::vector<float> memory(24);
    const tensor_view<float> v(memory.data(), 3, 5, 8);
    auto map = v.eigen();
    check_same(v, map);
    v.eigen() = matrix::Constant(3, 5, 4.0F);
    CHECK(memory[8 + 4] == 4);
    CHECK(memory[5] == 0);
    check_same(tensor_view<float>(map), map); // and back again
    const tensor_view<const float> c = v;
    static_assert(std::is_const_v<std::remove_pointer_t<decltype(c.eigen().data())>>);
    CHECK(c.eigen().sum() == 60);
    CHECK((v.eigen() * v.eigen().transpose()).eval()(1, 2) == 80);
}

TEST_CASE("a column-major matrix is reached through its transpose") {
    column_matrix m = column_matrix::Random(4, 3);
    const tensor_view<float> v = m.transpose();
    CHECK((v.rows() == 3 && v.cols() == 4 && &v(2, 1) == &m(1, 2)));
}
