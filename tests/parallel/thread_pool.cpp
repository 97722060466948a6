#include "support/catch.hpp"

#include <sluice/parallel/thread_pool.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

// Sanitizers bring their own operator new.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#    define REPLACES_NEW 0
#elif defined(__has_feature)
#    if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#        define REPLACES_NEW 0
#    endif
#endif
#if !defined(REPLACES_NEW)
#    define REPLACES_NEW 1
#endif

#if REPLACES_NEW
namespace {

// Every allocation of this program is counted, and refused once `allowed` more were made.
std::atomic<long> allocations{0};
std::atomic<long> allowed{1L << 40};

} // namespace

void* operator new(std::size_t bytes) {
    ++allocations;
    if (--allowed < 0) throw std::bad_alloc();
    if (void* p = std::malloc(bytes > 0 ? bytes : 1)) return p;
    throw std::bad_alloc();
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
#endif

using sluice::executor_ref;
using sluice::idx;
using sluice::task_ref;
using sluice::thread_pool;

namespace {

// Counts how often each index is run, and whether a worker number or a range is out of bounds. Catch2's
// macros are not for use in several threads, so tasks only count.
struct counter {
    explicit counter(idx n_, idx workers_) : n(n_), workers(workers_), seen(static_cast<std::size_t>(n_)) {}
    void operator()(idx begin, idx end, idx worker) {
        if (begin < 0 || begin >= end || end > n || worker < 0 || worker >= workers) ++bad;
        ++calls;
        for (idx i = begin; i < end; ++i) ++seen[static_cast<std::size_t>(i)];
    }
    bool each_once() const {
        for (const auto& s : seen)
            if (s.load() != 1) return false;
        return bad.load() == 0;
    }
    idx n, workers;
    std::vector<std::atomic<int>> seen;
    std::atomic<int> bad{0};
    std::atomic<int> calls{0};
};

struct busy {
    void operator()(idx, idx, idx) {
        for (int i = 0; i < 2000; ++i) sink.fetch_add(1, std::memory_order_relaxed);
    }
    std::atomic<idx> sink{0};
};

} // namespace

static_assert(sluice::executor<thread_pool>);
static_assert(!std::is_copy_constructible_v<thread_pool> && !std::is_copy_assignable_v<thread_pool>);

TEST_CASE("runs each index once for every n and number of workers") {
    for (idx workers = 1; workers <= 4; ++workers) {
        thread_pool pool(workers);
        CHECK(pool.concurrency() == workers);
        for (idx n = 0; n <= 1000; ++n) {
            counter task(n, workers);
            pool.run(n, task);
            if (!task.each_once()) FAIL("workers " << workers << " n " << n);
        }
    }
}

TEST_CASE("cuts into about four chunks a worker") {
    for (idx workers = 2; workers <= 4; ++workers) {
        thread_pool pool(workers);
        counter many(1000, workers);
        pool.run(1000, many);
        CHECK(many.calls >= 4 * workers);
        CHECK(many.calls <= 4 * workers + 4);
        counter few(3, workers); // fewer indices than chunks: one index a chunk
        pool.run(3, few);
        CHECK(few.calls == 3);
    }
}

TEST_CASE("with no indices does not call the task") {
    thread_pool pool(2);
    counter task(0, 2);
    pool.run(0, task);
    pool.run(-5, task);
    CHECK(task.calls == 0);
}

TEST_CASE("of one worker and single indices run in the calling thread as worker 0") {
    for (idx workers : {1, 3}) {
        thread_pool pool(workers);
        std::thread::id where;
        idx as = -1;
        auto task = [&](idx, idx, idx worker) { where = std::this_thread::get_id(), as = worker; };
        pool.run(1, task);
        CHECK(where == std::this_thread::get_id());
        CHECK(as == 0);
    }
}

TEST_CASE("never gives two threads the same worker number") {
    thread_pool pool(4);
    std::vector<std::atomic<int>> inside(4);
    std::atomic<int> clashes{0};
    auto task = [&](idx, idx, idx worker) {
        auto& mine = inside[static_cast<std::size_t>(worker)];
        if (mine.fetch_add(1) != 0) ++clashes;
        std::this_thread::yield();
        mine.fetch_sub(1);
    };
    for (int round = 0; round < 200; ++round) pool.run(64, task);
    CHECK(clashes == 0);
}

TEST_CASE("defaults to the machine's concurrency") {
    thread_pool pool;
    CHECK(pool.concurrency() == std::max<idx>(1, static_cast<idx>(std::thread::hardware_concurrency())));
}

TEST_CASE("refuses impossible numbers of workers") {
    CHECK_THROWS_WITH(thread_pool(0), "thread_pool: workers must be positive, is 0");
    CHECK_THROWS_WITH(thread_pool(-3), "thread_pool: workers must be positive, is -3");
    CHECK_THROWS_WITH(thread_pool(32768), "thread_pool: workers must be at most 32767");
    CHECK_THROWS_AS(thread_pool(0), sluice::config_error);
}

TEST_CASE("works through executor_ref") {
    thread_pool pool(3);
    executor_ref ex = pool;
    CHECK(ex.concurrency() == 3);
    CHECK_FALSE(ex.dry());
    counter task(77, 3);
    ex(77, task);
    CHECK(task.each_once());
}

TEST_CASE("hands the first exception to the caller once and stays usable") {
    for (idx workers = 1; workers <= 4; ++workers) {
        thread_pool pool(workers);
        for (int round = 0; round < 250; ++round) {
            const idx bad = round % 100;
            auto task = [&](idx begin, idx end, idx) {
                if (begin <= bad && bad < end) throw std::runtime_error("task " + std::to_string(bad));
            };
            try {
                pool.run(100, task);
                FAIL("no exception");
            } catch (const std::runtime_error& e) {
                if (e.what() != "task " + std::to_string(bad)) FAIL(e.what());
            }
            counter after(50, workers);
            pool.run(50, after);
            if (!after.each_once()) FAIL("unusable after an exception");
        }
    }
    SUCCEED("none was wrong");
}

TEST_CASE("reports one exception when every chunk throws") {
    thread_pool pool(4);
    for (int round = 0; round < 200; ++round) {
        auto task = [](idx begin, idx, idx) { throw begin; };
        CHECK_THROWS_AS(pool.run(100, task), idx);
    }
    counter after(100, 4);
    CHECK_NOTHROW(pool.run(100, after));
    CHECK(after.each_once());
}

TEST_CASE("drops chunks that had not begun when a task threw") {
    thread_pool pool(2);
    std::atomic<int> calls{0};
    auto task = [&](idx, idx, idx) {
        ++calls;
        throw 1;
    };
    CHECK_THROWS_AS(pool.run(1000, task), int);
    CHECK(calls <= 2);
}

TEST_CASE("runs nested calls serially as the same worker") {
    thread_pool pool(4);
    std::vector<std::atomic<int>> seen(40 * 30);
    std::atomic<int> wrong{0};
    for (int round = 0; round < 20; ++round) {
        for (auto& s : seen) s = 0;
        auto outer = [&](idx begin, idx end, idx worker) {
            for (idx i = begin; i < end; ++i) {
                const auto thread = std::this_thread::get_id();
                auto inner = [&](idx b, idx e, idx w) {
                    if (w != worker || std::this_thread::get_id() != thread || b != 0 || e != 30) ++wrong;
                    for (idx j = b; j < e; ++j) ++seen[static_cast<std::size_t>(i * 30 + j)];
                };
                pool.run(30, inner);
            }
        };
        pool.run(40, outer);
        for (auto& s : seen)
            if (s != 1) ++wrong;
    }
    CHECK(wrong == 0);
}

TEST_CASE("passes an exception of a nested call through both") {
    thread_pool pool(3);
    auto outer = [&](idx, idx, idx) {
        auto inner = [](idx, idx, idx) { throw std::logic_error("inner"); };
        pool.run(5, inner);
    };
    CHECK_THROWS_WITH(pool.run(9, outer), "inner");
    counter after(9, 3);
    pool.run(9, after);
    CHECK(after.each_once());
}

TEST_CASE("inside another pool's task runs in parallel on its own threads") {
    thread_pool outer(2), inner(2);
    std::atomic<idx> sum{0};
    std::atomic<int> wrong{0};
    auto task = [&](idx begin, idx end, idx worker) {
        for (idx i = begin; i < end; ++i) {
            auto add = [&](idx b, idx e, idx) { sum += e - b; };
            inner.run(10, add);
            auto back = [&](idx, idx, idx w) { wrong += w != worker; }; // still inside outer's task
            outer.run(3, back);
        }
    };
    outer.run(20, task);
    CHECK(sum == 200);
    CHECK(wrong == 0);
}

TEST_CASE("takes calls from several threads in turn") {
    thread_pool pool(3);
    std::atomic<int> failures{0};
    auto client = [&] {
        for (int round = 0; round < 300; ++round) {
            counter task(round % 17, 3);
            pool.run(round % 17, task);
            if (!task.each_once()) ++failures;
        }
    };
    std::thread a(client), b(client);
    client();
    a.join();
    b.join();
    CHECK(failures == 0);
}

TEST_CASE("wakes workers that went to sleep") {
    thread_pool pool(3);
    for (int round = 0; round < 20; ++round) {
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
        counter task(12, 3);
        pool.run(12, task);
        REQUIRE(task.each_once());
    }
    // All three are needed at once: the call ends only if the sleepers come.
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    std::atomic<int> here{0};
    auto meet = [&](idx, idx, idx) {
        ++here;
        while (here < 3) std::this_thread::yield();
    };
    pool.run(3, meet);
    CHECK(here == 3);
}

TEST_CASE("can be made and destroyed at once or after work") {
    for (int round = 0; round < 100; ++round) {
        thread_pool idle(4);
        thread_pool used(2);
        busy task;
        used.run(4, task);
    }
    SUCCEED();
}

TEST_CASE("makes a task's writes visible to the caller") {
    thread_pool pool(4);
    std::vector<idx> plain(1000); // not atomic: a race detector would tell
    for (idx round = 0; round < 50; ++round) {
        auto task = [&](idx begin, idx end, idx) {
            for (idx i = begin; i < end; ++i) plain[static_cast<std::size_t>(i)] += i + round;
        };
        pool.run(1000, task);
    }
    idx sum = 0;
    for (idx v : plain) sum += v;
    CHECK(sum == 50 * (999 * 1000 / 2) + 1000 * (49 * 50 / 2));
}

#if REPLACES_NEW

TEST_CASE("run allocates nothing") {
    thread_pool pool(3);
    std::atomic<idx> sum{0};
    auto task = [&](idx begin, idx end, idx) {
        auto inner = [&](idx b, idx e, idx) { sum += e - b; };
        pool.run(end - begin, inner);
    };
    const long before = allocations;
    for (int round = 0; round < 500; ++round) {
        pool.run(40, task);
        if (round % 100 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    const long after = allocations;
    CHECK(after == before);
    CHECK(sum == 500 * 40);
    // The count would have noticed.
    void* volatile hidden = ::operator new(8);
    ::operator delete(hidden);
    CHECK(allocations > after);
}

TEST_CASE("a pool that cannot start all its threads joins those it started") {
    for (long n = 0; n < 5; ++n) {
        bool refused = false;
        allowed = n; // one for the list of threads, one each for threads
        try {
            thread_pool pool(5);
        } catch (const std::bad_alloc&) {
            refused = true;
        }
        allowed = 1L << 40;
        CHECK(refused);
    }
    allowed = 5;
    CHECK_NOTHROW(thread_pool(5));
    allowed = 1L << 40;
}

#endif
