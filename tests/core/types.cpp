#include "support/catch.hpp"

#include <sluice/core/types.hpp>

#include <limits>
#include <string>

using sluice::bf16;
using sluice::idx;

static_assert(std::is_signed_v<idx> && sizeof(idx) == sizeof(void*));
static_assert(std::is_same_v<sluice::token_id, std::int32_t>);

static_assert(sizeof(bf16) == 2 && alignof(bf16) == 2);
static_assert(std::is_trivially_copyable_v<bf16> && std::is_standard_layout_v<bf16>);
static_assert(bf16{} == bf16{0} && !(bf16{1} == bf16{2}));

static_assert(sluice::real<float> && sluice::real<double>);
static_assert(!sluice::real<bf16> && !sluice::real<int> && !sluice::real<const float> &&
              !sluice::real<long double>);

static_assert(std::is_same_v<sluice::compute_type<float>, float>);
static_assert(std::is_same_v<sluice::compute_type<double>, double>);
static_assert(std::is_same_v<sluice::compute_type<bf16>, float>);
static_assert(std::is_same_v<sluice::compute_type<const bf16>, float>);
static_assert(std::is_same_v<sluice::compute_type<const double>, double>);

static_assert(std::is_same_v<sluice::vector_type<bf16>, float>);
static_assert(std::is_same_v<sluice::vector_type<const bf16>, const float>);
static_assert(std::is_same_v<sluice::vector_type<double>, double>);
static_assert(std::is_same_v<sluice::vector_type<const double>, const double>);

// The macro names a namespace after one instruction set.
#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

TEST_CASE("the instruction set's name follows the compiler's macros") {
    const std::string name = TEXT(SLUICE_ISA);
    CHECK(name.substr(0, 4) == "isa_");
#if defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
    CHECK(name.substr(0, 10) == "isa_avx512");
#elif defined(__AVX2__) && defined(__FMA__)
    CHECK(name.substr(0, 8) == "isa_avx2");
#elif defined(__x86_64__) && !defined(__SSE4_1__)
    CHECK(name == "isa_sse2");
#endif
}

TEST_CASE("a bf16 is zero unless told otherwise") {
    CHECK(bf16{}.bits == 0);
    CHECK(bf16{0x3F80} == bf16{0x3F80});
    CHECK_FALSE(bf16{0x3F80} == bf16{0xBF80});
}

TEST_CASE("ceil_div and round_up agree with their definition") {
    for (idx a = 0; a <= 130; ++a)
        for (idx b = 1; b <= 17; ++b) {
            const idx q = sluice::ceil_div(a, b);
            CHECK(q * b >= a);
            CHECK((q - 1) * b < a);
            CHECK(sluice::round_up(a, b) == q * b);
        }
    static_assert(sluice::ceil_div(7, 3) == 3 && sluice::round_up(7, 3) == 9);
}
