// Memory of floats, not initialised; pages of it that nobody writes take up none.
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <memory>
#include <new>

namespace sprfast {

struct Free {
    void operator()(float* memory) const { free(memory); }
};
using Floats = std::unique_ptr<float[], Free>;

// `count` floats that begin on a cache line; much memory in huge pages, since every access that misses costs less then.
inline Floats floats(int64_t count) {
    constexpr int64_t LINE = 64, HUGE_PAGE = 2 << 20;
    if (count < 0 || count > INT64_MAX / 8) throw std::bad_alloc();
    const int64_t alignment = count * 4 < 2 * HUGE_PAGE ? LINE : HUGE_PAGE;
    const int64_t bytes = (count * 4 + alignment - 1) / alignment * alignment;
    void* memory = aligned_alloc(alignment, bytes ? bytes : LINE);
    if (!memory) throw std::bad_alloc();
    if (alignment == HUGE_PAGE) madvise(memory, bytes, MADV_HUGEPAGE);  // where the system has none it is as it was
    return Floats(static_cast<float*>(memory));
}

}  // namespace sprfast
