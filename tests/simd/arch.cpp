#include "support/archs.hpp"
#include "support/catch.hpp"

#include <sluice/simd/arch.hpp>
#include <sluice/simd/pack.hpp>

#include <memory>
#include <string>

using sluice::idx;
namespace simd = sluice::simd;

namespace {

struct record {
    template <class Arch, class... Args>
    void operator()(Arch, idx& seen, Args&&... rest) const;
};

template <class Arch, class... Args>
void record::operator()(Arch, idx& seen, Args&&... rest) const {
    seen = simd::pack<float, Arch>::size * 100 + static_cast<idx>(sizeof...(rest));
}

struct take_ownership {
    template <class Arch>
    void operator()(Arch, std::unique_ptr<int> from, int& to) const {
        to = *from;
    }
};

#define ISA_TEXT_OF(name) #name
#define ISA_TEXT(name) ISA_TEXT_OF(name)

} // namespace

static_assert(!simd::has_registers<simd::scalar>());
static_assert(std::is_same_v<simd::native_or_scalar<simd::scalar>::type, simd::scalar>);
static_assert(std::is_same_v<simd::native, simd::scalar> || simd::has_registers<simd::native>());

TEST_CASE("invoke hands the arch and all arguments to the kernel") {
    idx seen = 0;
    simd::invoke(simd::scalar{}, record{}, seen, 1, 2.0);
    CHECK(seen == 102);
    simd::invoke(simd::native{}, record{}, seen);
    CHECK(seen == simd::pack<float, simd::native>::size * 100);
    int taken = 0;
    simd::invoke(simd::native{}, take_ownership{}, std::make_unique<int>(7), taken);
    CHECK(taken == 7);
}

TEST_CASE("native has the registers that the name of the ISA promises") {
    const std::string isa = ISA_TEXT(SLUICE_ISA);
    const idx bytes = simd::pack<float, simd::native>::size * 4;
    INFO(isa);
    if (isa == "isa_avx512")
        CHECK(bytes == 64);
    else if (isa == "isa_avx2" || isa == "isa_avx")
        CHECK(bytes == 32);
    else if (isa == "isa_sse4" || isa == "isa_sse2" || isa == "isa_neon64")
        CHECK(bytes == 16);
    else if (isa == "isa_generic")
        CHECK(bytes == 4);
    CHECK(simd::pack<double, simd::native>::size * 8 == (bytes == 4 ? 8 : bytes));
    CHECK(simd::pack<float, simd::scalar>::size == 1);
}
