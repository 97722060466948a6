// Counts what a piece of code allocates, in all threads. With the GNU C library malloc, operator new and
// their relatives are replaced; a sanitizer has its own and calls a hook; elsewhere operator new is replaced.
// For one source file of a program only: replacements are no inline functions.
#pragma once

#include <sluice/core/types.hpp>

// clang's own declaration of posix_memalign has to come before the definition below
#if __has_include(<mm_malloc.h>)
#    include <mm_malloc.h>
#endif

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <new>

#define SLUICE_TEST_SANITIZED 0
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#    undef SLUICE_TEST_SANITIZED
#    define SLUICE_TEST_SANITIZED 1
#elif defined(__has_feature)
#    if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#        undef SLUICE_TEST_SANITIZED
#        define SLUICE_TEST_SANITIZED 1
#    endif
#endif

namespace sluice::test {

inline std::atomic<idx>& allocation_counter() {
    static constinit std::atomic<idx> counter{0};
    return counter;
}

// How many allocations f() makes.
template <class F>
idx allocations_of(F&& f) {
    const idx before = allocation_counter().load();
    f();
    return allocation_counter().load() - before;
}

} // namespace sluice::test

#if SLUICE_TEST_SANITIZED

extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*)(const volatile void*, std::size_t),
                                                         void (*)(const volatile void*));

namespace sluice::test {
constexpr bool malloc_is_counted = true;
inline const int allocation_hooks = __sanitizer_install_malloc_and_free_hooks(
    [](const volatile void*, std::size_t) { ++allocation_counter(); }, [](const volatile void*) {});
} // namespace sluice::test

#else

#    if defined(__GLIBC__)
// What the replacements of malloc stand on.
extern "C" {
void* __libc_malloc(std::size_t) noexcept;
void* __libc_calloc(std::size_t, std::size_t) noexcept;
void* __libc_realloc(void*, std::size_t) noexcept;
void* __libc_memalign(std::size_t, std::size_t) noexcept;
void __libc_free(void*) noexcept;

void* malloc(std::size_t n) noexcept {
    ++sluice::test::allocation_counter();
    return __libc_malloc(n);
}
void* calloc(std::size_t count, std::size_t n) noexcept {
    ++sluice::test::allocation_counter();
    return __libc_calloc(count, n);
}
void* realloc(void* p, std::size_t n) noexcept {
    ++sluice::test::allocation_counter();
    return __libc_realloc(p, n);
}
void* memalign(std::size_t alignment, std::size_t n) noexcept {
    ++sluice::test::allocation_counter();
    return __libc_memalign(alignment, n);
}
void* aligned_alloc(std::size_t alignment, std::size_t n) noexcept { return memalign(alignment, n); }
int posix_memalign(void** p, std::size_t alignment, std::size_t n) noexcept {
    *p = memalign(alignment, n);
    return *p == nullptr ? ENOMEM : 0;
}
void free(void* p) noexcept { __libc_free(p); }
}
#    endif

namespace sluice::test {
#    if defined(__GLIBC__)
constexpr bool malloc_is_counted = true; // once: operator new does not go through malloc
inline void* uncounted_malloc(std::size_t n) { return __libc_malloc(n); }
inline void* uncounted_memalign(std::size_t alignment, std::size_t n) {
    return __libc_memalign(alignment, n);
}
#    else
constexpr bool malloc_is_counted = false;
inline void* uncounted_malloc(std::size_t n) { return std::malloc(n); }
inline void* uncounted_memalign(std::size_t alignment, std::size_t n) {
    return std::aligned_alloc(alignment, (n + alignment - 1) / alignment * alignment);
}
#    endif
} // namespace sluice::test

// The array and nothrow forms of the standard library call these.
void* operator new(std::size_t n) {
    ++sluice::test::allocation_counter();
    if (void* p = sluice::test::uncounted_malloc(n == 0 ? 1 : n)) return p;
    throw std::bad_alloc();
}
void* operator new(std::size_t n, std::align_val_t alignment) {
    ++sluice::test::allocation_counter();
    const auto a = static_cast<std::size_t>(alignment);
    if (void* p = sluice::test::uncounted_memalign(a, n == 0 ? a : n)) return p;
    throw std::bad_alloc();
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }

#endif

namespace sluice::test {

// Whether the counter would notice: the first thing that a test which counts has to require.
inline bool allocations_are_noticed() {
    void* volatile hidden = nullptr; // keeps the compiler from leaving the allocation out
    const idx plain = allocations_of([&] { hidden = ::operator new(8); });
    ::operator delete(hidden);
    const idx array = allocations_of([&] { hidden = ::operator new[](8); });
    ::operator delete[](hidden);
    const idx aligned = allocations_of([&] { hidden = ::operator new (128, std::align_val_t{64}); });
    ::operator delete (hidden, std::align_val_t{64});
    const idx c = allocations_of([&] { hidden = std::malloc(8); });
    std::free(hidden);
    const idx c_aligned = allocations_of([&] { hidden = std::aligned_alloc(64, 64); });
    std::free(hidden);
    const idx nothing = allocations_of([] {});
    const idx from_c = malloc_is_counted ? 1 : 0;
    const bool c_counts =
        c == from_c && (SLUICE_TEST_SANITIZED || c_aligned == from_c); // one has no hook there
    return plain == 1 && array == 1 && aligned == 1 && c_counts && nothing == 0;
}

} // namespace sluice::test
