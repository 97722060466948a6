// expect: sluice relies on NaN, infinity and the order of sums; -ffast-math breaks all three
#ifndef CONTROL
#    define __FAST_MATH__ 1 // as -ffast-math does
#endif
#include <sluice/core/types.hpp>
