// Lets a long run stop in good order: the first SIGINT or SIGTERM only sets a flag that the run looks at
// between steps; the second ends the process at once, as it would have without a guard.
// Not here: waking a blocked call, and any clean-up; that is the caller's, once interrupted() is true.
#pragma once

#include <array>
#include <atomic>
#include <csignal>
#include <cstddef>

namespace sluice::examples {

namespace detail {

inline std::atomic<bool> interrupt_flag{false};
static_assert(std::atomic<bool>::is_always_lock_free, "a signal handler may only touch lock-free atomics");

inline constexpr std::array<int, 2> interrupt_signals{SIGINT, SIGTERM};

extern "C" inline void sluice_examples_on_interrupt(int signal) {
    if (interrupt_flag.exchange(true)) {
        // Raised again under the default action, so that the exit status tells what ended the process.
        std::signal(signal, SIG_DFL);
        std::raise(signal);
    }
}

} // namespace detail

// Stays true after the guard is gone, until the next guard is made.
[[nodiscard]] inline bool interrupted() { return detail::interrupt_flag.load(); }

// One guard at a time, made before other threads start.
class interrupt_guard {
public:
    interrupt_guard() {
        detail::interrupt_flag.store(false);
        for (std::size_t i = 0; i < previous_.size(); ++i) {
            const int signal = detail::interrupt_signals[i];
            previous_[i] = std::signal(signal, detail::sluice_examples_on_interrupt);
            // A shell starts background programs with SIGINT ignored; that choice is not ours to undo.
            if (previous_[i] == SIG_IGN) {
                std::signal(signal, SIG_IGN);
            }
        }
    }

    interrupt_guard(const interrupt_guard&) = delete;
    interrupt_guard& operator=(const interrupt_guard&) = delete;

    ~interrupt_guard() {
        for (std::size_t i = 0; i < previous_.size(); ++i) {
            if (previous_[i] != SIG_ERR) {
                std::signal(detail::interrupt_signals[i], previous_[i]);
            }
        }
    }

private:
    using handler = void (*)(int);

    std::array<handler, detail::interrupt_signals.size()> previous_{};
};

} // namespace sluice::examples
