// Work on an operator is split into equal runs of consecutive items; which thread does an item changes no result.
#pragma once

#include "interface.h"
#include "simd.h"

namespace {

// One of the threads that work on an operator.
struct Team {
    int thread, threads;
    const spr_threads* all = nullptr;

    INLINE int begin(int64_t items) const { return (int)(items * thread / threads); }
    INLINE int end(int64_t items) const { return (int)(items * (thread + 1) / threads); }

    // Returns when all threads have come here.
    INLINE void meet() const {
        if (threads > 1) all->barrier(all->pool);
    }
};

// Calls work(team) in each thread, and returns when all have ended.
template <class Work> void in_parallel(const spr_threads& threads, const Work& work) {
    struct Call {
        const spr_threads& threads;
        const Work& work;
    } call{threads, work};
    const auto enter = [](void* context, int32_t thread, int32_t count) {
        const Call& called = *(const Call*)context;
        called.work(Team{thread, count, &called.threads});
    };
    threads.run(threads.pool, enter, &call);
}

}  // namespace
