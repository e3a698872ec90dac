// State behind a mutex that a fork cannot leave locked: a child makes its own.
#pragma once

#include <unistd.h>

#include <atomic>
#include <mutex>

namespace sprfast {

// A value behind a mutex, which is another one in each process. What the parent had in it is not freed in a child: a
// thread that the child has not got may have been changing it.
template <typename T> class PerProcess {
public:
    PerProcess() : current_(new State{getpid()}) {}
    ~PerProcess() {
        State* state = current_.load();
        if (state->process == getpid()) delete state;
    }
    PerProcess(const PerProcess&) = delete;
    PerProcess& operator=(const PerProcess&) = delete;

    // work(value), while no other thread is at the value.
    template <typename Work> auto locked(Work work) {
        State& state = of_this_process();
        const std::lock_guard<std::mutex> lock(state.mutex);
        return work(state.value);
    }

private:
    struct State {
        pid_t process;
        std::mutex mutex{};
        T value{};
    };

    State& of_this_process() {
        State* state = current_.load();
        if (state->process == getpid()) return *state;
        State* own = new State{getpid()};
        if (current_.compare_exchange_strong(state, own)) return *own;
        delete own;  // another thread of the child was faster
        return *state;
    }

    std::atomic<State*> current_;
};

}  // namespace sprfast
