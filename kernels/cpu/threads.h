// Threads of one call of the network: those that wait for each other spin for a moment, then sleep.
//
// Nothing is shared between pools, and nothing is global. A pool starts its threads when it is first used, and they
// end when it has not been used for a while. They block all signals. Where a thread cannot be started, there are
// fewer; results do not depend on it. In the child of a fork, where they do not exist, they are started anew.
#pragma once

#include <pthread.h>
#include <stdint.h>
#include <unistd.h>

#include <atomic>
#include <vector>

#include "interface.h"

namespace sprfast {

// A word that threads wait for to change.
class Signal {
public:
    uint32_t value() const { return value_.load(std::memory_order_acquire); }

    // Replaces `before`, and wakes who waits for that; false where the value is another one.
    bool change(uint32_t before, uint32_t after);

    // Returns when the value is not `before` any more, or false after so many milliseconds; negative: never.
    bool wait(uint32_t before, int milliseconds = -1);

private:
    std::atomic<uint32_t> value_{0}, sleeping_{0};
};

class Pool {
public:
    // threads: that work at once, the caller among them; at least 1. idle: milliseconds until unused ones end.
    explicit Pool(int threads, int idle = 10'000);
    ~Pool();  // not while it runs
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    // What operators take. One at a time may use it.
    const spr_threads& threads() const { return interface_; }

private:
    using Work = void (*)(void*, int32_t, int32_t);

    void run(Work work, void* context);
    void meet();
    void start();  // the threads that are missing
    void forget();
    static void* serve(void* thread);

    struct Thread {
        Pool* pool;
        int index;
        uint32_t seen;  // of `command_` when it was started
        pthread_t handle;
    };

    const int wanted_, idle_;
    spr_threads interface_;
    pid_t process_ = 0;
    std::vector<Thread*> started_;
    int running_ = 1;  // threads of a run, the caller among them
    Work work_ = nullptr;
    void* context_ = nullptr;
    Signal command_, generation_;
    std::atomic<uint32_t> arrived_{0};
};

}  // namespace sprfast
