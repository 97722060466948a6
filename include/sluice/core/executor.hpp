// How a call gets its threads: the library has none of its own. An executor runs `body(begin, end, worker)`
// over parts of [0, n), each idx once, with worker < concurrency(), and returns when all are done. Results
// never depend on how [0, n) was cut or on which worker ran a part.
//
// executor_ref is two pointers and converts from anything that models `executor`; the default is serial.
#pragma once

#include "types.hpp"

#include <type_traits>

namespace sluice {

// A reference to a callable `void(idx begin, idx end, idx worker)`; never owns it.
class task_ref {
public:
    template <class F>
    requires(!std::is_same_v<std::remove_cvref_t<F>, task_ref>) task_ref(F& f)
        : object_(const_cast<void*>(static_cast<const void*>(&f))),
          call_([](void* object, idx begin, idx end, idx worker) {
              (*static_cast<F*>(object))(begin, end, worker);
          }) {}
    void operator()(idx begin, idx end, idx worker) const { call_(object_, begin, end, worker); }

private:
    void* object_;
    void (*call_)(void*, idx, idx, idx);
};

template <class E>
concept executor = requires(E& e, idx n, task_ref task) {
    { e.concurrency() } -> std::convertible_to<idx>;
    e.run(n, task);
};

// Runs everything in the calling thread.
struct serial {
    static idx concurrency() { return 1; }
    static void run(idx n, task_ref task) { task(0, n, 0); }
};

// Runs nothing: with it and dry arenas a layer's own code tells what memory it would take.
struct dry_run {
    idx workers = 1;
    idx concurrency() const { return workers; }
    static void run(idx, task_ref) {}
};

class executor_ref {
public:
    executor_ref() : object_(nullptr), table_(&table<serial>) {}
    template <class E>
    requires(!std::is_same_v<std::remove_cvref_t<E>, executor_ref> && executor<E>) executor_ref(E& e)
        : object_(const_cast<void*>(static_cast<const void*>(&e))), table_(&table<E>) {}

    idx concurrency() const { return table_->concurrency(object_); }
    bool dry() const { return table_->dry; }

    template <class F>
    void operator()(idx n, F&& body) const {
        if (n > 0) table_->run(object_, n, task_ref(body));
    }

private:
    struct functions {
        idx (*concurrency)(void*);
        void (*run)(void*, idx, task_ref);
        bool dry;
    };
    template <class E>
    static constexpr functions table{[](void* e) -> idx { return static_cast<E*>(e)->concurrency(); },
                                     [](void* e, idx n, task_ref task) { static_cast<E*>(e)->run(n, task); },
                                     std::is_same_v<std::remove_const_t<E>, dry_run>};

    void* object_;
    const functions* table_;
};

} // namespace sluice
