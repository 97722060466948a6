// Modes of floating-point arithmetic that a program may have set before it calls us: rounding other than to
// nearest, and subnormal numbers taken for zero. They belong to the thread.
#pragma once

#include <cfenv>
#include <cstdint>
#include <string>

#if defined(__SSE2__)
#    include <xmmintrin.h>
#endif

namespace sluice::test {

// The mode that is set lasts until the end of the scope.
class float_mode {
public:
    struct setting {
        std::string name;
        int rounding = FE_TONEAREST;
        bool flush = false;
    };
    explicit float_mode(const setting& s) : rounding_(std::fegetround()), control_(control()) {
        std::fesetround(s.rounding);
        if (s.flush) set_control(control() | flush_bits);
    }
    float_mode(const float_mode&) = delete;
    ~float_mode() {
        std::fesetround(rounding_);
        set_control(control_);
    }

private:
#if defined(__SSE2__)
    static constexpr std::uint64_t flush_bits = 0x8040; // results, and operands
    static std::uint64_t control() { return _mm_getcsr(); }
    static void set_control(std::uint64_t value) { _mm_setcsr(static_cast<unsigned>(value)); }
#elif defined(__aarch64__)
    static constexpr std::uint64_t flush_bits = std::uint64_t{1} << 24;
    static std::uint64_t control() {
        std::uint64_t value;
        asm volatile("mrs %0, fpcr" : "=r"(value));
        return value;
    }
    static void set_control(std::uint64_t value) { asm volatile("msr fpcr, %0" ::"r"(value)); }
#else
    static constexpr std::uint64_t flush_bits = 0;
    static std::uint64_t control() { return 0; }
    static void set_control(std::uint64_t) {}
#endif

    int rounding_;
    std::uint64_t control_;
};

inline const float_mode::setting float_modes[] = {{"subnormals are zero", FE_TONEAREST, true},
                                                  {"rounded up", FE_UPWARD},
                                                  {"rounded down", FE_DOWNWARD},
                                                  {"rounded to zero", FE_TOWARDZERO},
                                                  {"rounded down, subnormals are zero", FE_DOWNWARD, true}};

// Calls f() in a mode. Compilers know nothing of modes; what keeps f's arithmetic between the two changes is
// that it reads and writes memory which the caller knows.
template <class F>
__attribute__((noinline)) void in_float_mode(const float_mode::setting& s, F&& f) {
    const float_mode now(s);
    asm volatile("" ::: "memory");
    f();
    asm volatile("" ::: "memory");
}

} // namespace sluice::test
