// Work is split into equal runs of consecutive items; which thread does an item changes no result.
#pragma once

#include <omp.h>

#include "simd.h"

namespace {

struct Team {
    int thread, threads;

    INLINE int begin(int64_t items) const { return (int)(items * thread / threads); }
    INLINE int end(int64_t items) const { return (int)(items * (thread + 1) / threads); }
};

INLINE Team team() { return {omp_get_thread_num(), omp_get_num_threads()}; }

}  // namespace
