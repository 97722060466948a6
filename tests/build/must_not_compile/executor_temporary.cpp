// expect: executor_ref
#include <sluice/parallel/thread_pool.hpp>

void use(sluice::executor_ref ex) {
    ex(1, [](sluice::idx, sluice::idx, sluice::idx) {});
}

void call() {
#ifdef CONTROL
    sluice::thread_pool pool(2);
    use(pool);
#else
    use(sluice::thread_pool(2)); // would be gone before it is used
#endif
}
