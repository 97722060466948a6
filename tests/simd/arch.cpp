#include "support/archs.hpp"
#include "support/catch.hpp"

#include <sluice/simd/arch.hpp>
#include <sluice/simd/instantiate.hpp>
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

// Which Arch it was, and where its arguments were.
struct place {
    const void* at = nullptr;
};
struct tell {
    template <class Arch>
    void operator()(Arch, const place& object, int value, int* out) const {
        *out = std::is_same_v<Arch, simd::scalar> ? 1 : std::is_same_v<Arch, simd::native> ? 2 : 3;
        *out += value + (object.at == &object ? 10 : 0);
    }
};
// An instruction set of other processors.
using foreign = std::conditional_t<simd::has_registers<simd::neon64>(), simd::avx512, simd::neon64>;

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
    if (isa == "isa_avx512" || isa == "isa_avx512_vnni")
        CHECK(bytes == 64);
    else if (isa == "isa_avx2" || isa == "isa_avx2_vnni" || isa == "isa_avx")
        CHECK(bytes == 32);
    else if (isa == "isa_sse4" || isa == "isa_sse2" || isa == "isa_neon64")
        CHECK(bytes == 16);
    else if (isa == "isa_generic")
        CHECK(bytes == 4);
    CHECK(simd::pack<double, simd::native>::size * 8 == (bytes == 4 ? 8 : bytes));
    CHECK(simd::pack<float, simd::scalar>::size == 1);
}

TEST_CASE("dynamic is the first of its architectures that this machine has") {
    using list = simd::dynamic<foreign, simd::native, simd::scalar>;
    CHECK(!simd::available<foreign>());
    CHECK(simd::available<simd::native>());
    CHECK(simd::available<simd::scalar>());
    const place here{&here};
    int seen = 0;
    simd::invoke(list{}, tell{}, here, 100, &seen);
    CHECK(seen == 100 + 10 + (std::is_same_v<simd::native, simd::scalar> ? 1 : 2));
    CHECK(simd::lanes<float>(list{}) == simd::pack<float, simd::native>::size);
    CHECK(simd::lanes<double>(list{}) == simd::pack<double, simd::native>::size);
}

TEST_CASE("dynamic can be made to be one that is available") {
    using list = simd::dynamic<foreign, simd::native, simd::scalar>;
    int seen = 0;
    REQUIRE(simd::force<simd::scalar>(list{}));
    simd::invoke(list{}, tell{}, place{}, 0, &seen);
    CHECK(seen == 1);
    CHECK(simd::lanes<float>(list{}) == 1);
    CHECK_FALSE(simd::force<foreign>(list{}));
    CHECK_FALSE(simd::force<simd::scalar>(simd::dynamic<foreign>{}));
    CHECK(simd::lanes<float>(list{}) == 1);
    REQUIRE(simd::force<simd::native>(list{}));
    CHECK(simd::lanes<float>(list{}) == simd::pack<float, simd::native>::size);
}

TEST_CASE("a dynamic of nothing that this machine has is an error") {
    CHECK_THROWS_AS(simd::lanes<float>(simd::dynamic<foreign>{}), sluice::config_error);
}

TEST_CASE("lanes of instruction sets that the flags do not allow") {
    CHECK(simd::lanes<float>(simd::sse2{}) == 4);
    CHECK(simd::lanes<float>(simd::avx2{}) == 8);
    CHECK(simd::lanes<float>(simd::avx512{}) == 16);
    CHECK(simd::lanes<float>(simd::avx512_vnni{}) == 16);
    CHECK(simd::lanes<float>(simd::avx2_vnni{}) == 8);
    CHECK(simd::lanes<double>(simd::avx512{}) == 8);
    CHECK(simd::lanes<float>(simd::neon64{}) == 4);
}
