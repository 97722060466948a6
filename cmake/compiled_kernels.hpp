// Comes first in every file of a target of sluice_compile_kernels: its kernels are in a file of their own.
#pragma once

#include "kernels.hpp"

template <class Call>
inline constexpr bool sluice::simd::compiled_elsewhere<sluice::simd::native, Call> =
    sluice::simd::is_listed<sluice::kernels::all_calls, Call>;
