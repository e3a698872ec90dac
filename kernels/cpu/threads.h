// The threads of one call of the network. Those that wait for each other spin for a moment, then they sleep.
//
// Nothing is shared between pools, and nothing is global. A pool starts its threads when it is used, and they end when
// it has not been used for a while. They block all signals. Where a thread cannot be started there are fewer, which
// changes no result. In the child of a fork, where they do not exist, they are started anew.
#pragma once

#include <pthread.h>
#include <stdint.h>
#include <sys/types.h>

#include <atomic>
#include <memory>
#include <vector>

#include "interface.h"

namespace sprfast {

// A word that threads wait for to change.
class Signal {
public:
    uint32_t value() const { return value_.load(std::memory_order_acquire); }

    // Replaces `before` and wakes all that wait; false where the value is another one.
    bool change(uint32_t before, uint32_t after);

    // Returns when the value is not `before` any more; false: it still is, after `milliseconds` (negative: without
    // end).
    bool wait(uint32_t before, int milliseconds = -1);

private:
    std::atomic<uint32_t> value_{0}, sleeping_{0};
};

class Pool {
public:
    // threads: that work at once, the caller among them. idle: milliseconds after which unused ones end.
    explicit Pool(int threads, int idle = 10'000);
    ~Pool();  // not while they work
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    // What operators take; one thread at a time may use them. Starts what is missing.
    const spr_threads& threads();

    // Threads that there are, the caller among them.
    int count() const { return 1 + (int)workers_.size(); }

private:
    using Work = void (*)(void* context, int32_t thread, int32_t threads);

    // What the threads have in common.
    struct Meeting {
        Signal command;  // to the workers: another value is another work, an odd one the end
        Signal together;
        std::atomic<uint32_t> come{0};
        int threads = 1;  // of the work
        Work work = nullptr;
        void* context = nullptr;

        void wait();
    };
    struct Worker {
        Meeting* meeting;
        int index, idle;
        uint32_t seen;  // the command before it was started
        pthread_t handle;
    };

    void run(Work work, void* context);
    bool gone() const;
    void start();
    void end();
    static void* serve(void* worker);

    const int wanted_, idle_;
    const spr_threads threads_;
    pid_t process_;
    std::unique_ptr<Meeting> meeting_;
    std::vector<Worker> workers_;  // whose addresses stay
};

}  // namespace sprfast
