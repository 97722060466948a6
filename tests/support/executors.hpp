// Executors under which results must not change by one bit.
#pragma once

#include <sluice/core/executor.hpp>
#include <sluice/parallel/thread_pool.hpp>

#include <atomic>
#include <string>
#include <thread>

namespace sluice::test {

// Runs [0, n) in the calling thread, the last part first, in parts of 1, 2, 3, 1, 2, 3, ... indices, each as
// another worker than the part before. Like a pool it allocates nothing.
struct reverse_in_parts {
    idx workers = 1;
    idx concurrency() const { return workers; }
    void run(idx n, task_ref task) const {
        idx part = 0;
        for (idx end = n; end > 0; ++part) {
            const idx begin = std::max<idx>(0, end - 1 - part % 3);
            task(begin, end, part % workers);
            end = begin;
        }
    }
};

// Returns when all threads of the pool have been at work: what a thread allocates as it starts is done then.
inline void start_all(thread_pool& pool) {
    std::atomic<idx> here{0};
    auto meet = [&](idx, idx, idx) {
        ++here;
        while (here < pool.concurrency()) std::this_thread::yield();
    };
    pool.run(pool.concurrency(), meet);
}

// Calls f(executor, its name): the calling thread, parts in reverse, and pools, of 1, 2 and 3 workers.
template <class F>
void for_each_executor(F&& f) {
    f(executor_ref(), std::string("serial"));
    for (idx workers = 1; workers <= 3; ++workers) {
        reverse_in_parts parts{workers};
        f(executor_ref(parts), "in parts, " + std::to_string(workers) + " workers");
        thread_pool pool(workers);
        f(executor_ref(pool), "thread_pool, " + std::to_string(workers) + " workers");
    }
}

} // namespace sluice::test
