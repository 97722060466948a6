// Comes first in most tests, by their build: kernels of both instruction sets are compiled once for all of
// them, in compiled_kernels.cpp, and so a layer's test compiles in half the time.
#pragma once

#include "../../cmake/kernels.hpp"

#include "catch.hpp"

template <class Arch, class Call>
requires(std::is_same_v<Arch, sluice::simd::native> ||
         std::is_same_v<Arch, sluice::simd::scalar>) inline constexpr bool sluice::simd::
    compiled_elsewhere<Arch, Call> = sluice::simd::is_listed<
        sluice::simd::calls<sluice::kernels::all_calls, sluice::kernels::calls_of<double>>, Call>;
