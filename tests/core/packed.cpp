#include "support/catch.hpp"

#include <sluice/core/packed.hpp>

#include <type_traits>

using sluice::bf16;
using sluice::idx;
using sluice::packed;
using sluice::tensor_view;

TEST_CASE("packed: a panel is 128 bytes of what is computed with") {
    CHECK(tensor_view<packed<float>>::panel == 32);
    CHECK(tensor_view<packed<bf16>>::panel == 32);
    CHECK(tensor_view<packed<double>>::panel == 16);
}

TEST_CASE("packed: rows are padded to whole panels, an empty matrix takes nothing") {
    using view = tensor_view<packed<float>>;
    CHECK(view::elements(1, 7) == 32 * 7);
    CHECK(view::elements(32, 7) == 32 * 7);
    CHECK(view::elements(33, 7) == 64 * 7);
    CHECK(view::elements(0, 7) == 0);
    CHECK(view::elements(7, 0) == 0);
    CHECK(view(nullptr, 40, 7).panel_stride() == 32 * 7);
    CHECK(view(nullptr, 40, 7).size() == 40 * 7);
    CHECK(view(nullptr, 0, 7).empty());
}

TEST_CASE("packed: an arena hands out as much as it counts") {
    sluice::arena dry;
    CHECK(dry.take<packed<bf16>>(33, 5).data() == nullptr);
    CHECK(dry.bytes() == 64 * 5 * 2);
    sluice::arena real(dry.bytes());
    const auto w = real.take<packed<bf16>>(33, 5);
    CHECK(w.data() != nullptr);
    CHECK(w.rows() == 33);
    CHECK(w.cols() == 5);
    CHECK(real.used() == dry.bytes());
}

TEST_CASE("packed: computes in the type its element computes in, and converts to const") {
    STATIC_REQUIRE(std::is_same_v<sluice::compute_type<packed<bf16>>, float>);
    STATIC_REQUIRE(std::is_same_v<sluice::compute_type<const packed<double>>, double>);
    STATIC_REQUIRE(std::is_same_v<sluice::vector_type<packed<bf16>>, float>);
    STATIC_REQUIRE(std::is_same_v<sluice::vector_type<const packed<bf16>>, const float>);
    STATIC_REQUIRE(std::is_convertible_v<tensor_view<packed<float>>, tensor_view<const packed<float>>>);
    STATIC_REQUIRE(!std::is_convertible_v<tensor_view<const packed<float>>, tensor_view<packed<float>>>);
    STATIC_REQUIRE(std::is_trivially_copyable_v<tensor_view<packed<float>>>);
}
