// Instruction sets as types. `native` is what the compiler's flags allow; `scalar` is one lane of plain C++,
// for reading, debugging and comparing; `dynamic` is one of several, picked when the program runs. Kernels
// are function objects whose first argument is the Arch; code outside kernels calls them through invoke, so
// the Arch is part of every symbol's name.
#pragma once

#include "../core/error.hpp"
#include "../core/types.hpp"

#include <atomic>
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

inline namespace SLUICE_ISA {
// In the namespace, because flags decide what becomes of it.
struct scalar {};
} // namespace SLUICE_ISA

using sse2 = xsimd::sse2;
using sse4_2 = xsimd::sse4_2;
using avx = xsimd::avx;
using avx2 = xsimd::fma3<xsimd::avx2>;
using avx512 = xsimd::avx512bw; // with F, CD, DQ and VL
using neon64 = xsimd::neon64;
// And with products of bytes, by one instruction (VNNI); floats are as in avx512 and avx2. xsimd has such
// types in some versions and for some processors only.
struct avx512_vnni {};
struct avx2_vnni {};

// The Arch whose registers xsimd knows.
template <class Arch>
struct xsimd_arch {
    using type = Arch;
};
template <>
struct xsimd_arch<avx512_vnni> {
    using type = avx512;
};
template <>
struct xsimd_arch<avx2_vnni> {
    using type = avx2;
};
template <class Arch>
using xsimd_arch_t = typename xsimd_arch<Arch>::type;

template <class Arch>
constexpr bool has_registers() {
    if constexpr (std::is_same_v<Arch, scalar>)
        return false;
    else
        return xsimd_arch_t<Arch>::supported() && xsimd::has_simd_register<float, xsimd_arch_t<Arch>>::value;
}

template <class Arch>
struct native_or_scalar {
    using type = std::conditional_t<has_registers<Arch>(), Arch, scalar>;
};
#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
using native = avx512_vnni;
#elif defined(__AVXVNNI__) && defined(__AVX2__) && defined(__FMA__) && !defined(__AVX512BW__)
using native = avx2_vnni;
#else
using native = native_or_scalar<xsimd::default_arch>::type;
#endif

// The first of Archs that the processor has; best first. Its kernels are compiled in files of their own, one
// for each Arch (in CMake: sluice_dispatch), and the file that says dynamic needs no flags. float only.
template <class... Archs>
struct dynamic {
    static_assert(sizeof...(Archs) > 0);
};

// What sluice_dispatch compiles unless told otherwise; native where there is nothing to choose from.
#if defined(__x86_64__)
using portable = dynamic<avx512_vnni, avx512, avx2, sse2>;
#else
using portable = native;
#endif

// Signatures of kernels, for lists of what is compiled for each Arch of a dynamic; see instantiate.hpp.
template <class Kernel, class... Args>
struct call {};
template <class... Calls>
struct calls {};

// kernel(Arch{}, args...). Its body is seen only where instantiate.hpp is included, so that no other file can
// compile it with other flags. Where the linker misses it, no list of calls names it.
template <class Arch, class Kernel, class... Args>
void compiled(const Kernel& kernel, Args... args);

// Whether another file of the program holds the kernel of a call, so that this one need not compile it (in
// CMake: sluice_compile_kernels). What specialises it comes before all that uses kernels, in every file of
// the program.
template <class Arch, class Call>
inline constexpr bool compiled_elsewhere = false;

// Which of its architectures a dynamic is; -1 until it is asked for.
template <class Dynamic>
inline std::atomic<int> choice = -1;

inline namespace SLUICE_ISA {

// Whether the processor and the operating system run it.
template <class Arch>
inline bool available() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if constexpr (std::is_same_v<Arch, avx512_vnni>)
        return available<avx512>() && __builtin_cpu_supports("avx512vnni");
    else if constexpr (std::is_same_v<Arch, avx512>)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512cd") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl");
    else if constexpr (std::is_same_v<Arch, avx2>)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    else if constexpr (std::is_same_v<Arch, avx2_vnni>)
        return has_registers<avx2_vnni>(); // not all compilers can ask for it
    else if constexpr (std::is_same_v<Arch, avx>)
        return __builtin_cpu_supports("avx");
    else if constexpr (std::is_same_v<Arch, sse4_2>)
        return __builtin_cpu_supports("sse4.2");
    else if constexpr (std::is_same_v<Arch, sse2>)
        return true;
#endif
    return std::is_same_v<Arch, scalar> || has_registers<Arch>();
}

template <class... Archs>
inline int choose(dynamic<Archs...>) {
    const bool runs[] = {available<Archs>()...};
    for (int i = 0; i < static_cast<int>(sizeof...(Archs)); ++i)
        if (runs[i]) {
            choice<dynamic<Archs...>>.store(i, std::memory_order_relaxed);
            return i;
        }
    SLUICE_THROW(config_error("simd: this machine has none of the instruction sets that were compiled"));
}

// For tests: makes a dynamic be Arch, if that is available. Before any size is asked for, as sizes differ.
template <class Arch, class... Archs>
inline bool force(dynamic<Archs...>) {
    int at = 0;
    if (!available<Arch>() || !((std::is_same_v<Arch, Archs> || (++at, false)) || ...)) return false;
    choice<dynamic<Archs...>>.store(at, std::memory_order_relaxed);
    return true;
}

template <class First, class... Rest, class F>
inline auto with_nth(int n, const F& f) {
    if constexpr (sizeof...(Rest) > 0)
        if (n > 0) return with_nth<Rest...>(n - 1, f);
    return f(First{});
}

// Calls f with the Arch that a dynamic is; a concrete Arch is itself.
template <class F, class... Archs>
inline auto with_arch(dynamic<Archs...> all, const F& f) {
    const int chosen = choice<dynamic<Archs...>>.load(std::memory_order_relaxed);
    return with_nth<Archs...>(chosen >= 0 ? chosen : choose(all), f);
}

// Elements of T in a register.
template <class T, class Arch>
constexpr idx lanes(Arch) {
    if constexpr (std::is_same_v<Arch, scalar>)
        return 1;
    else if constexpr (has_registers<Arch>())
        return static_cast<idx>(xsimd::batch<T, xsimd_arch_t<Arch>>::size);
    else
        return static_cast<idx>(xsimd_arch_t<Arch>::alignment() / sizeof(T));
}
template <class T, class... Archs>
inline idx lanes(dynamic<Archs...> arch) {
    return with_arch(arch, [](auto which) { return lanes<T>(which); });
}

// How arguments pass: objects by reference, all else by value.
template <class Arg, class Value = std::decay_t<Arg>>
using passed = std::conditional_t<std::is_class_v<Value>, const Value&, Value>;

template <class Arch, class Kernel, class... Args>
inline void invoke(Arch arch, const Kernel& kernel, Args&&... args) {
    if constexpr (compiled_elsewhere<Arch, call<Kernel, passed<Args>...>>)
        compiled<Arch, Kernel, passed<Args>...>(kernel, args...);
    else
        kernel(arch, std::forward<Args>(args)...);
}

template <class... Archs, class Kernel, class... Args>
inline void invoke(dynamic<Archs...> arch, const Kernel& kernel, Args&&... args) {
    with_arch(arch, [&](auto which) { compiled<decltype(which), Kernel, passed<Args>...>(kernel, args...); });
}

} // namespace SLUICE_ISA
} // namespace sluice::simd
