// What fuzz targets share. A target is one function, LLVMFuzzerTestOneInput; whatever bytes it is given, only
// errors of the library may come of them.
#pragma once

#include <sluice/core/error.hpp>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>

#define SLUICE_FUZZ_CHECK(condition)                                                                         \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                             \
            std::abort();                                                                                    \
        }                                                                                                    \
    } while (false)

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace sluice::test {

// Anything but an error that tells what is wrong with the input ends the program.
template <class F>
void attempt(F&& f) {
    try {
        f();
    } catch (const input_error&) {
    } catch (const config_error&) {
    }
}

inline volatile unsigned sum_of_bytes = 0;

// So that a sanitizer sees where they lie.
inline void read_bytes(std::span<const std::byte> bytes) {
    unsigned sum = 0;
    for (const std::byte b : bytes) sum += static_cast<unsigned>(b);
    sum_of_bytes = sum;
}

} // namespace sluice::test
