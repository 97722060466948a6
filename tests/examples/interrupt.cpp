// Checks that the first signal sets a flag, that handlers are given back, and that the second signal ends the
// process.
#include "../../examples/support/interrupt.hpp"

#include "support/catch.hpp"

#include <csignal>

#if !defined(_WIN32)
#    include <sys/resource.h>
#    include <sys/wait.h>
#    include <unistd.h>
#endif

using sluice::examples::interrupt_guard;
using sluice::examples::interrupted;

namespace {

volatile std::sig_atomic_t n_caught = 0;

extern "C" void count_signal(int) { n_caught = n_caught + 1; }

// Sets a handler and gives back the one before when it goes.
class handler_for_now {
public:
    handler_for_now(int signal, void (*handler)(int))
        : signal_(signal), before_(std::signal(signal, handler)) {}
    handler_for_now(const handler_for_now&) = delete;
    ~handler_for_now() { std::signal(signal_, before_); }

private:
    int signal_;
    void (*before_)(int);
};

} // namespace

TEST_CASE("the first signal only sets the flag") {
    for (int signal : {SIGINT, SIGTERM}) {
        const interrupt_guard guard;
        CHECK_FALSE(interrupted());
        std::raise(signal);
        CHECK(interrupted());
        CHECK(interrupted()); // asking does not clear it
    }
}

TEST_CASE("the flag outlives its guard and the next guard clears it") {
    {
        const interrupt_guard guard;
        std::raise(SIGINT);
    }
    CHECK(interrupted());
    const interrupt_guard next;
    CHECK_FALSE(interrupted());
}

TEST_CASE("handlers from before are given back") {
    n_caught = 0;
    const handler_for_now for_int(SIGINT, count_signal), for_term(SIGTERM, count_signal);
    {
        const interrupt_guard guard;
        std::raise(SIGINT);
        CHECK(n_caught == 0);
    }
    std::raise(SIGINT);
    std::raise(SIGTERM);
    CHECK(n_caught == 2);
}

TEST_CASE("a signal that was ignored stays ignored") {
    const handler_for_now ignored(SIGINT, SIG_IGN);
    {
        const interrupt_guard guard;
        std::raise(SIGINT);
        CHECK_FALSE(interrupted());
        std::raise(SIGTERM);
        CHECK(interrupted());
    }
    const auto now = std::signal(SIGINT, SIG_IGN);
    CHECK(now == SIG_IGN);
}

#if !defined(_WIN32)

namespace {

// How a child process ends that runs f(); it leaves with 42 where f() returns.
template <class F>
int status_of_child(F&& f) {
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        const rlimit no_core{0, 0};
        ::setrlimit(RLIMIT_CORE, &no_core);
        ::alarm(10);                  // a child that hangs is ended, which is seen
        std::signal(SIGINT, SIG_DFL); // whatever the program that runs the tests chose
        std::signal(SIGTERM, SIG_DFL);
        f();
        ::_exit(42);
    }
    int status = 0;
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    return status;
}

} // namespace

TEST_CASE("the second signal ends the process as if there were no guard") {
    for (int first : {SIGINT, SIGTERM})
        for (int second : {SIGINT, SIGTERM}) {
            const int status = status_of_child([&] {
                const interrupt_guard guard;
                std::raise(first);
                std::raise(second);
            });
            CAPTURE(first, second);
            CHECK((WIFSIGNALED(status) && WTERMSIG(status) == second));
        }
}

TEST_CASE("one signal and an end in good order") {
    const int status = status_of_child([] {
        const interrupt_guard guard;
        std::raise(SIGINT);
        if (!interrupted()) ::_exit(1);
    });
    CHECK((WIFEXITED(status) && WEXITSTATUS(status) == 42));
}

TEST_CASE("without a guard a signal ends the process") {
    const int status = status_of_child([] {
        { const interrupt_guard gone; }
        std::raise(SIGINT);
    });
    CHECK((WIFSIGNALED(status) && WTERMSIG(status) == SIGINT));
}

#endif
