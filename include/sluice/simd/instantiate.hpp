// What a file that is compiled once for each architecture of a dynamic includes: bodies for the calls of
// lists.
//   template struct sluice::simd::compile<sluice::simd::native, my_calls>;
// Such a file holds kernels and nothing else, for what it shared with other files would be compiled for one
// processor and run on all. A function that a kernel calls has Arch among its template arguments or is
// SLUICE_INLINE. cmake/kernels.hpp lists those of the library.
#pragma once

#include "arch.hpp"

// The flags of the file have to be those of the architecture that it stands for.
#if defined(SLUICE_DISPATCH_ARCH)
static_assert(std::is_same_v<sluice::simd::native, sluice::simd::SLUICE_DISPATCH_ARCH>,
              "sluice: other flags add to or take from what this file is compiled for");
#endif

namespace sluice::simd {

template <class Arch, class Kernel, class... Args>
void compiled(const Kernel& kernel, Args... args) {
    kernel(Arch{}, args...);
}

using any_function = void();

template <class Arch, class Kernel, class... Args>
inline void take_address(call<Kernel, Args...>, any_function**& out) {
    *out++ = reinterpret_cast<any_function*>(&compiled<Arch, Kernel, Args...>);
}
template <class Arch, class... Calls>
inline void take_address(calls<Calls...>, any_function**& out) {
    (take_address<Arch>(Calls{}, out), ...);
}

// Nobody calls it: a function that names others brings them into the file.
template <class Arch, class... Calls>
struct compile {
    static void take_addresses(any_function** out) { (take_address<Arch>(Calls{}, out), ...); }
};

} // namespace sluice::simd
