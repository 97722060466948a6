// Counts what a piece of code allocates, in all threads: operator new and delete are replaced, and with the GNU C
// library malloc and its relatives too (not under a sanitizer, which has its own).
// For one source file of a program only: replacements are no inline functions.
#pragma once

#include <sluice/core/types.hpp>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <new>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#    define SLUICE_TEST_SANITIZED 1
#elif defined(__has_feature)
#    if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#        define SLUICE_TEST_SANITIZED 1
#    endif
#endif
#if defined(__GLIBC__) && !defined(SLUICE_TEST_SANITIZED)
#    define SLUICE_TEST_COUNTS_MALLOC 1
#else
#    define SLUICE_TEST_COUNTS_MALLOC 0
#endif

namespace sluice::test {

inline std::atomic<idx>& allocation_counter() {
    static constinit std::atomic<idx> counter{0};
    return counter;
}

// How many allocations f() makes.
template <class F> idx allocations_of(F&& f) {
    const idx before = allocation_counter().load();
    f();
    return allocation_counter().load() - before;
}

}  // namespace sluice::test

#if SLUICE_TEST_COUNTS_MALLOC
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
#    define SLUICE_TEST_UNCOUNTED_MALLOC __libc_malloc
#    define SLUICE_TEST_UNCOUNTED_MEMALIGN __libc_memalign
#else
#    define SLUICE_TEST_UNCOUNTED_MALLOC std::malloc
#    define SLUICE_TEST_UNCOUNTED_MEMALIGN std::aligned_alloc
#endif

// The array and nothrow forms of the standard library call these.
void* operator new(std::size_t n) {
    ++sluice::test::allocation_counter();
    if (void* p = SLUICE_TEST_UNCOUNTED_MALLOC(n == 0 ? 1 : n)) return p;
    throw std::bad_alloc();
}
void* operator new(std::size_t n, std::align_val_t alignment) {
    ++sluice::test::allocation_counter();
    const auto a = static_cast<std::size_t>(alignment);
    const std::size_t whole = n == 0 ? a : (n + a - 1) / a * a;  // what aligned_alloc asks for
    if (void* p = SLUICE_TEST_UNCOUNTED_MEMALIGN(a, whole)) return p;
    throw std::bad_alloc();
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }

namespace sluice::test {

// Whether the counter would notice: the first thing that a test which counts has to require.
inline bool allocations_are_noticed() {
    void* volatile hidden = nullptr;  // keeps the compiler from leaving the allocation out
    const idx plain = allocations_of([&] { hidden = ::operator new(8); });
    ::operator delete(hidden);
    const idx array = allocations_of([&] { hidden = ::operator new[](8); });
    ::operator delete[](hidden);
    const idx aligned = allocations_of([&] { hidden = ::operator new(128, std::align_val_t{64}); });
    ::operator delete(hidden, std::align_val_t{64});
    const idx c = allocations_of([&] { hidden = std::malloc(8); });
    std::free(hidden);
    const idx c_aligned = allocations_of([&] { hidden = std::aligned_alloc(64, 64); });
    std::free(hidden);
    const idx nothing = allocations_of([] {});
    const idx from_c = SLUICE_TEST_COUNTS_MALLOC;
    return plain == 1 && array == 1 && aligned == 1 && c == from_c && c_aligned == from_c && nothing == 0;
}

}  // namespace sluice::test
