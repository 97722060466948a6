// Instruction sets as types. `native` is what the compiler's flags allow; `scalar` is one lane of plain C++,
// for reading, debugging and comparing. Kernels are function objects whose first argument is the Arch; code
// outside kernels calls them through invoke, so the Arch is part of every symbol's name.
#pragma once

#include "../core/types.hpp"

#include <utility>

// g++ 12 warns of uninitialised values inside its own AVX-512 headers, system headers or not.
#if defined(__GNUC__) && !defined(__clang__)
#    pragma GCC diagnostic push
#    pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#    pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <xsimd/xsimd.hpp>
#if defined(__GNUC__) && !defined(__clang__)
#    pragma GCC diagnostic pop
#endif

namespace sluice::simd {

struct scalar {};

template <class Arch>
constexpr bool has_registers() {
    if constexpr (std::is_same_v<Arch, scalar>)
        return false;
    else
        return Arch::supported() && xsimd::has_simd_register<float, Arch>::value;
}

template <class Arch>
struct native_or_scalar {
    using type = std::conditional_t<has_registers<Arch>(), Arch, scalar>;
};
using native = native_or_scalar<xsimd::default_arch>::type;

inline namespace SLUICE_ISA {

template <class Arch, class Kernel, class... Args>
inline void invoke(Arch arch, const Kernel& kernel, Args&&... args) {
    kernel(arch, std::forward<Args>(args)...);
}

} // namespace SLUICE_ISA
} // namespace sluice::simd
