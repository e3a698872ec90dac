#include "threads.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <chrono>

namespace sprfast {

namespace {

// How long a thread that waits keeps its core: about what it takes to sleep and to be woken.
constexpr std::chrono::microseconds SPIN(50);
constexpr int PAUSES = 16;  // between two looks at the clock
constexpr size_t STACK = 1 << 20;

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

// Sleeps while the word has this value, until it is woken or the time is over, or for no reason. False: it is over.
bool sleep_while(std::atomic<uint32_t>& word, uint32_t value, int milliseconds) {
    static_assert(sizeof word == sizeof(uint32_t), "the kernel looks at the word itself");
    const timespec limit{milliseconds / 1000, milliseconds % 1000 * 1'000'000L};
    const timespec* given = milliseconds < 0 ? nullptr : &limit;
    return syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, given, nullptr, 0) == 0 || errno != ETIMEDOUT;
}

}  // namespace

// Either the changer sees that somebody sleeps, or the sleeper sees the change: both orders are sequential.
bool Signal::change(uint32_t before, uint32_t after) {
    if (!value_.compare_exchange_strong(before, after)) return false;
    if (sleeping_.load()) syscall(SYS_futex, &value_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
    return true;
}

bool Signal::wait(uint32_t before, int milliseconds) {
    const auto end = std::chrono::steady_clock::now() + SPIN;
    do {
        for (int i = 0; i < PAUSES; i++) {
            if (value() != before) return true;
            pause();
        }
    } while (std::chrono::steady_clock::now() < end);
    sleeping_.fetch_add(1);
    while (value_.load() == before && sleep_while(value_, before, milliseconds)) {}
    sleeping_.fetch_sub(1);
    return value() != before;
}

// The last one to come lets the others go. Nobody comes again before the word has changed. Who has come reads nothing
// more that the next run changes.
void Pool::Meeting::wait() {
    const uint32_t before = together.value(), expected = threads;
    if (come.fetch_add(1) + 1 < expected) {
        together.wait(before);
        return;
    }
    come.store(0);
    together.change(before, before + 1);
}

Pool::Pool(int threads, int idle)
    : wanted_(threads),
      idle_(idle),
      threads_{this, [](void* pool, Work work, void* context) { static_cast<Pool*>(pool)->run(work, context); },
               [](void* pool) { static_cast<Pool*>(pool)->meeting_->wait(); }},
      process_(getpid()),
      meeting_(new Meeting) {
    workers_.reserve(threads - 1);
}

Pool::~Pool() {
    if (process_ == getpid()) end();
}

const spr_threads& Pool::threads() {
    start();
    return threads_;
}

// Whether the workers have ended, or are another process's.
bool Pool::gone() const { return process_ != getpid() || meeting_->command.value() % 2; }

void Pool::run(Work work, void* context) {
    for (;;) {
        if (gone()) start();
        if (count() == 1) {
            work(context, 0, 1);
            return;
        }
        Meeting& m = *meeting_;
        const uint32_t seen = m.command.value();
        if (seen % 2) continue;
        m.threads = count();
        m.work = work;
        m.context = context;
        if (!m.command.change(seen, seen + 2)) continue;  // they ended just now, since they had waited for so long
        work(context, 0, m.threads);
        m.wait();
        return;
    }
}

void Pool::start() {
    if (process_ != getpid()) {
        workers_.clear();
        meeting_.reset(new Meeting);
        process_ = getpid();
    }
    if (gone()) end();
    const uint32_t seen = meeting_->command.value();
    if (seen % 2) return;  // for `run` to see
    sigset_t all, before;
    pthread_attr_t attributes;
    if (count() == wanted_ || pthread_attr_init(&attributes)) return;
    pthread_attr_setstacksize(&attributes, STACK);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (count() < wanted_) {
        workers_.push_back({meeting_.get(), count(), idle_, seen, {}});
        if (pthread_create(&workers_.back().handle, &attributes, serve, &workers_.back())) {
            workers_.pop_back();
            break;
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    pthread_attr_destroy(&attributes);
}

void Pool::end() {
    Signal& command = meeting_->command;
    uint32_t seen = command.value();
    while (seen % 2 == 0 && !command.change(seen, seen + 1)) seen = command.value();
    for (const Worker& worker : workers_) pthread_join(worker.handle, nullptr);
    workers_.clear();
    command.change(command.value(), command.value() + 1);
}

void* Pool::serve(void* given) {
    const Worker& worker = *static_cast<Worker*>(given);  // but for its handle, which the starter may be writing
    Meeting& m = *worker.meeting;
    for (uint32_t seen = worker.seen;;) {
        if (!m.command.wait(seen, worker.idle) && m.command.change(seen, seen + 1)) return nullptr;
        seen = m.command.value();
        if (seen % 2) return nullptr;
        m.work(m.context, worker.index, m.threads);
        m.wait();
    }
}

}  // namespace sprfast
