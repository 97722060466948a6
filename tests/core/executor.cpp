#include "support/catch.hpp"

#include <sluice/core/executor.hpp>

#include <stdexcept>
#include <string>
#include <vector>

using sluice::executor_ref;
using sluice::idx;
using sluice::task_ref;

namespace {

// Runs each index by itself, last first, as changing workers.
struct backwards {
    idx concurrency() const { return 3; }
    void run(idx n, task_ref task) {
        ++regions;
        for (idx i = n; i-- > 0;) task(i, i + 1, i % 3);
    }
    int regions = 0;
};

// An executor made of two callables, as a user would wrap a thread pool of another library.
template <class Run>
struct wrapped {
    int concurrency() const { return workers; }
    void run(idx n, task_ref task) const { run_(n, task); }
    int workers;
    Run run_;
};
template <class Run>
wrapped(int, Run) -> wrapped<Run>;

struct no_run {
    idx concurrency() const { return 1; }
};
struct no_concurrency {
    void run(idx, task_ref) {}
};

struct call {
    idx begin, end, worker;
    bool operator==(const call&) const = default;
};

} // namespace

static_assert(sluice::executor<sluice::serial> && sluice::executor<const sluice::serial>);
static_assert(sluice::executor<sluice::dry_run> && sluice::executor<const sluice::dry_run>);
static_assert(sluice::executor<backwards> && !sluice::executor<const backwards>);
static_assert(!sluice::executor<no_run> && !sluice::executor<no_concurrency> && !sluice::executor<int>);
static_assert(std::is_convertible_v<backwards&, executor_ref>);
static_assert(!std::is_convertible_v<backwards, executor_ref>); // a temporary would dangle
static_assert(!std::is_convertible_v<no_run&, executor_ref>);
static_assert(std::is_trivially_copyable_v<executor_ref> && sizeof(executor_ref) == 2 * sizeof(void*));

TEST_CASE("the default executor is serial") {
    const executor_ref ex;
    CHECK(ex.concurrency() == 1);
    CHECK_FALSE(ex.dry());
    std::vector<call> calls;
    ex(10, [&](idx b, idx e, idx w) { calls.push_back({b, e, w}); });
    CHECK(calls == std::vector<call>{{0, 10, 0}});
}

TEST_CASE("nothing to do runs nothing") {
    backwards b;
    for (executor_ref ex : {executor_ref(), executor_ref(b)}) {
        int calls = 0;
        ex(0, [&](idx, idx, idx) { ++calls; });
        ex(-3, [&](idx, idx, idx) { ++calls; });
        CHECK(calls == 0);
    }
    CHECK(b.regions == 0);
}

TEST_CASE("any executor is used through the reference") {
    backwards b;
    const executor_ref ex = b;
    CHECK(ex.concurrency() == 3);
    std::vector<call> calls;
    ex(3, [&](idx begin, idx end, idx worker) { calls.push_back({begin, end, worker}); });
    CHECK(calls == std::vector<call>{{2, 3, 2}, {1, 2, 1}, {0, 1, 0}});
    CHECK(b.regions == 1);
}

TEST_CASE("executors made of lambdas work also when const") {
    int regions = 0;
    const wrapped ex{2, [&](idx n, task_ref task) {
                         ++regions;
                         task(0, n / 2, 0);
                         task(n / 2, n, 1);
                     }};
    std::vector<int> seen(7);
    const executor_ref ref = ex;
    CHECK(ref.concurrency() == 2);
    ref(7, [&](idx b, idx e, idx) {
        for (idx i = b; i < e; ++i) ++seen[static_cast<std::size_t>(i)];
    });
    CHECK(seen == std::vector<int>(7, 1));
    CHECK(regions == 1);
}

TEST_CASE("a copied reference means the same executor") {
    backwards b;
    const executor_ref first = b;
    executor_ref second;
    second = first;
    const executor_ref third(second);
    third(1, [](idx, idx, idx) {});
    second(1, [](idx, idx, idx) {});
    CHECK(b.regions == 2);
}

TEST_CASE("a dry run runs nothing and tells so") {
    sluice::dry_run plan{.workers = 5};
    const executor_ref ex = plan;
    CHECK(ex.dry());
    CHECK(ex.concurrency() == 5);
    int calls = 0;
    ex(100, [&](idx, idx, idx) { ++calls; });
    CHECK(calls == 0);
    const sluice::dry_run fixed;
    CHECK(executor_ref(fixed).dry());
    CHECK(executor_ref(fixed).concurrency() == 1);
}

TEST_CASE("a task may be a mutable object a const object or a function object with state") {
    struct adder {
        void operator()(idx b, idx e, idx) { total += e - b; }
        idx total = 0;
    };
    adder a;
    const executor_ref ex;
    ex(5, a);
    ex(6, a);
    CHECK(a.total == 11);
    idx seen = 0;
    const auto task = [&](idx, idx e, idx) { seen = e; };
    ex(9, task);
    CHECK(seen == 9);
    const task_ref ref(task);
    const task_ref copy = ref;
    copy(1, 4, 0);
    CHECK(seen == 4);
}

TEST_CASE("exceptions pass through the reference") {
    backwards b;
    const executor_ref ex = b;
    CHECK_THROWS_WITH(ex(4,
                         [](idx begin, idx, idx) {
                             if (begin == 2) throw std::runtime_error("at 2");
                         }),
                      "at 2");
}
