// What can go wrong, and how it is reported.
//
// Types are checked at compile time; configs and shapes once, in constructors; values from outside (token
// ids, offsets, files) always. SLUICE_ASSERT guards hot paths and is off with NDEBUG unless
// SLUICE_ENABLE_ASSERTS is defined. Without exceptions SLUICE_THROW calls the user's hook and aborts.
#pragma once

#include "types.hpp"

#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>

namespace sluice {

struct error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A config, a weight's shape or an argument's shape that does not fit: a mistake of the calling program.
struct config_error : error {
    using error::error;
};

// A value from outside that is out of range: a token id, an offset, a position, a file's content.
struct input_error : error {
    using error::error;
};

// Memory or a cache the caller provided is too small: found before a state or an output is written.
struct capacity_error : error {
    capacity_error(const std::string& where, idx needed_, idx have_, std::string_view unit)
        : error(where + ": needs " + std::to_string(needed_) + " " + std::string(unit) + ", has " +
                std::to_string(have_)),
          needed(needed_),
          have(have_) {}
    idx needed;
    idx have;
};

// Called with the message before the program is aborted when exceptions are off.
using error_hook = void (*)(const char* message);
inline error_hook& on_error() {
    static error_hook hook = nullptr;
    return hook;
}

} // namespace sluice

#if defined(__cpp_exceptions)
#    define SLUICE_THROW(exception) throw exception
#else
#    define SLUICE_THROW(exception)                                                                          \
        do {                                                                                                 \
            if (::sluice::on_error() != nullptr) ::sluice::on_error()((exception).what());                   \
            std::abort();                                                                                    \
        } while (false)
#endif

#if !defined(SLUICE_ASSERT)
#    if !defined(NDEBUG) || defined(SLUICE_ENABLE_ASSERTS)
#        define SLUICE_ASSERT(condition)                                                                     \
            do {                                                                                             \
                if (!(condition)) SLUICE_THROW(::sluice::error("assertion failed: " #condition));            \
            } while (false)
#    else
#        define SLUICE_ASSERT(condition) static_cast<void>(0)
#    endif
#endif

namespace sluice {

// The one-line checks of constructors and of arguments. `layer` and `what` name the place.
inline void require(bool holds, std::string_view layer, std::string_view what) {
    if (!holds) SLUICE_THROW(config_error(std::string(layer) + ": " + std::string(what)));
}

// a * b where both come from outside, a config for example: config_error where that is out of range. Configs
// are multiplied before any layer has looked at them.
inline idx size_product(idx a, idx b) {
    if (a < 0 || b < 0 || (b > 0 && a > std::numeric_limits<idx>::max() / b))
        SLUICE_THROW(config_error(std::to_string(a) + " times " + std::to_string(b) + " is no size"));
    return a * b;
}

inline void require_positive(idx value, std::string_view layer, std::string_view name) {
    if (value <= 0)
        SLUICE_THROW(config_error(std::string(layer) + ": " + std::string(name) + " must be positive, is " +
                                  std::to_string(value)));
}

} // namespace sluice
