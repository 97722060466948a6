// What an error says, to be compared.
#pragma once

#include <sluice/core/error.hpp>

#include <string>

namespace sluice::test {

// The message of the Error that f() throws.
template <class Error, class F>
std::string message_of(F&& f) {
    try {
        f();
    } catch (const Error& e) {
        return e.what();
    } catch (const std::exception& e) {
        return std::string("another error: ") + e.what();
    }
    return "no error";
}

// The message of the input_error that `call` throws; nothing where it throws none.
template <class F>
std::string complaint(F&& call) {
    try {
        call();
    } catch (const input_error& e) {
        return e.what();
    }
    return "";
}

} // namespace sluice::test
