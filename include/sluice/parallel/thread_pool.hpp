// An executor of n workers: the calling thread and n - 1 threads of its own.
//
// [0, n) is cut into about four chunks a worker, claimed from a counter. Workers spin about 20 us before they
// sleep, since the next region of a decode step is closer than a wake-up. A worker that wakes too late is not
// waited for. Pass it to another instruction set's code as executor_ref.
#pragma once

#include "../core/error.hpp"
#include "../core/executor.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace sluice {
inline namespace SLUICE_ISA {

class thread_pool {
public:
    // All processors.
    static idx default_workers() { return std::max<idx>(1, std::thread::hardware_concurrency()); }
    // Starts workers - 1 threads. Throws config_error unless workers is in [1, 32767], std::system_error
    // where the system has no more threads.
    explicit thread_pool(idx workers = default_workers()) : thread_pool(no_threads{}) {
        // This constructor delegates so that the destructor joins what was started when a later start throws.
        require_positive(workers, "thread_pool", "workers");
        require(workers <= idx{inside_mask}, "thread_pool", "workers must be at most 32767");
        concurrency_ = workers;
        threads_.reserve(static_cast<std::size_t>(workers - 1));
        for (idx worker = 1; worker < workers; ++worker)
            threads_.emplace_back([this, worker] { loop(worker); });
    }
    thread_pool(const thread_pool&) = delete;

    // Joins. No run may be under way.
    ~thread_pool() {
        stop_.store(true, std::memory_order_relaxed);
        gate_.fetch_add(one_epoch);
        wake();
        for (auto& thread : threads_) thread.join();
    }
    idx concurrency() const { return concurrency_; }

    // Runs `task` over [0, n) and returns when all of it is done; the caller is worker 0. The first exception
    // of a task is rethrown here once, after the running chunks have ended; chunks not begun are dropped.
    // Called from inside one of this pool's tasks it runs serially as that task's worker; calls from several
    // threads wait for each other. Allocates nothing.
    void run(idx n, task_ref task) {
        if (n <= 0) return;
        for (const frame* f = frames(); f != nullptr; f = f->outer)
            if (f->pool == this) return task(0, n, f->worker);
        const std::lock_guard one_at_a_time(running_);
        if (concurrency_ == 1 || n == 1) {
            const frame here(this, 0);
            return task(0, n, 0);
        }
        task_ = &task;
        end_ = static_cast<std::uint64_t>(n);
        chunk_ = static_cast<std::uint64_t>(std::max<idx>(1, n / (4 * concurrency_)));
        next_.store(0, std::memory_order_relaxed);
        gate_.store(((gate_.load(std::memory_order_relaxed) >> epoch_shift) + 1) << epoch_shift | open);
        wake();
        work(0);
        finish();
    }

private:
    // gate_: how many of the threads are inside the region, whether more may enter, and the region's number.
    // Entering is one compare-and-swap, so that nobody enters a region that has been closed.
    static constexpr std::uint64_t inside_mask = 0x7FFF;
    static constexpr std::uint64_t open = 0x8000;
    static constexpr int epoch_shift = 16;
    static constexpr std::uint64_t one_epoch = std::uint64_t{1} << epoch_shift;

    struct no_threads {};
    explicit thread_pool(no_threads) {}

    // The tasks that this thread is inside of, innermost first.
    struct frame {
        frame(const thread_pool* p, idx w) : pool(p), worker(w), outer(frames()) { frames() = this; }
        frame(const frame&) = delete;
        ~frame() { frames() = outer; }
        const thread_pool* pool;
        idx worker;
        const frame* outer;
    };
    static const frame*& frames() {
        static thread_local const frame* innermost = nullptr;
        return innermost;
    }

    static void relax() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#else
        std::this_thread::yield();
#endif
    }
    // True as soon as `holds` does, false after about 20 us.
    template <class F>
    static bool spin(F&& holds) {
        const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(20);
        do {
            for (int i = 0; i < 32; ++i) {
                if (holds()) return true;
                relax();
            }
        } while (std::chrono::steady_clock::now() < until);
        return false;
    }
    void work(idx worker) {
        const frame here(this, worker);
#if defined(__cpp_exceptions)
        try {
            claim(worker);
        } catch (...) {
            next_.store(end_, std::memory_order_relaxed);
            const std::lock_guard lock(sleep_);
            if (!error_) error_ = std::current_exception();
        }
#else
        claim(worker);
#endif
    }
    void claim(idx worker) {
        for (;;) {
            const std::uint64_t begin = next_.fetch_add(chunk_, std::memory_order_relaxed);
            if (begin >= end_) return;
            (*task_)(static_cast<idx>(begin), static_cast<idx>(std::min(begin + chunk_, end_)), worker);
        }
    }

    // Closes the region and waits for those inside it.
    void finish() {
        gate_.fetch_and(~open);
        auto left = [this] { return (gate_.load() & inside_mask) == 0; };
        if (!spin(left)) {
            std::unique_lock lock(sleep_);
            done_.wait(lock, left);
        }
        if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
    }

    // A sleeper counts itself before it looks at the gate a last time, and the caller changes the gate before
    // it looks at the count: one of the two sees the other.
    void wake() {
        if (sleepers_.load() == 0) return;
        std::unique_lock(sleep_).unlock();
        start_.notify_all();
    }

    void loop(idx worker) {
        std::uint64_t seen = 0;
        for (;;) {
            auto changed = [&] { return gate_.load() >> epoch_shift != seen; };
            if (!spin(changed)) {
                std::unique_lock lock(sleep_);
                sleepers_.fetch_add(1);
                start_.wait(lock, changed);
                sleepers_.fetch_sub(1);
            }
            std::uint64_t gate = gate_.load();
            seen = gate >> epoch_shift;
            if (stop_.load(std::memory_order_relaxed)) return;
            while (gate >> epoch_shift == seen && (gate & open) != 0)
                if (gate_.compare_exchange_weak(gate, gate + 1)) {
                    work(worker);
                    leave();
                    break;
                }
        }
    }
    void leave() {
        const std::uint64_t before = gate_.fetch_sub(1);
        if ((before & open) != 0 || (before & inside_mask) != 1) return;
        std::unique_lock(sleep_).unlock();
        done_.notify_one();
    }

    idx concurrency_ = 1;
    const task_ref* task_ = nullptr;
    std::uint64_t end_ = 0, chunk_ = 1;
    std::exception_ptr error_;
    // On lines of their own: every claim writes next_, every idle worker reads gate_.
    alignas(64) std::atomic<std::uint64_t> next_{0}; // unsigned: it may run past end_ by a chunk a worker
    alignas(64) std::atomic<std::uint64_t> gate_{0};
    alignas(64) std::atomic<idx> sleepers_{0};
    std::atomic<bool> stop_{false};
    std::mutex running_, sleep_; // held by the caller of run; guards sleeping and error_
    std::condition_variable start_, done_;
    std::vector<std::thread> threads_;
};

} // namespace SLUICE_ISA
} // namespace sluice
