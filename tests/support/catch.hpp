// Catch2 for our tests: one include for versions 2.13 and 3.
// The macros read the same in both; what was renamed has one name here, in sluice::test.
#pragma once

#if __has_include(<catch2/catch_all.hpp>)
#    include <catch2/catch_all.hpp>
#    define SLUICE_CATCH2_MAJOR 3
#else
#    include <catch2/catch.hpp>
#    define SLUICE_CATCH2_MAJOR 2
#endif

#include <string>

namespace sluice::test {

#if SLUICE_CATCH2_MAJOR >= 3
using approx = Catch::Approx;
#else
using approx = Catch::Detail::Approx;
#endif

// Matches a string that contains `text`, for CHECK_THAT and CHECK_THROWS_WITH.
inline auto contains_text(const std::string& text) {
#if SLUICE_CATCH2_MAJOR >= 3
    return Catch::Matchers::ContainsSubstring(text);
#else
    return Catch::Matchers::Contains(text);
#endif
}

} // namespace sluice::test
