// Text on stdout while it is made, and the speed of it on stderr.
#pragma once

#include "interrupt.hpp"
#include "tokens.hpp"

#include <cstdio>
#include <stdexcept>
#include <string_view>

namespace sluice::examples {

inline void report_speed(const char* what, idx tokens, double seconds) {
    std::fprintf(stderr, "%s: %td tokens, %.1f tokens/s\n", what, tokens,
                 seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0);
}

// Prints the prompt and then each piece that write(put) puts, until put returns false: at Ctrl-C, or where
// the text cannot be written, which is an error. `write` returns a `writing`.
template <class Write>
void stream_text(std::string_view prompt, const Write& write) {
    const interrupt_guard guard;
    bool written = true;
    const auto put = [&](std::string_view text) {
        written = written && std::fwrite(text.data(), 1, text.size(), stdout) == text.size() &&
                  std::fflush(stdout) == 0;
        return written && !interrupted();
    };
    put(prompt);
    const writing done = write(put);
    put("\n");
    if (!written) throw std::runtime_error("the text cannot be written");
    report_speed("prefill", done.read, done.read_seconds);
    report_speed("decode", done.decoded, done.decode_seconds);
}

} // namespace sluice::examples
