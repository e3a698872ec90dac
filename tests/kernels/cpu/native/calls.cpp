// Calls functions of this process for support/emulator.py, each by its address.
//
//     calls MEMORY ADDRESS SIZE LISTENER
//
// MEMORY is a file descriptor of memory that lies at the same address here and in the caller, so that pointers into it
// mean the same. LISTENER is one of a socket; every connection is served by a thread of its own, until stdin ends.
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <thread>

namespace {

struct Call {
    int64_t function, words[15];  // of its arguments the integers and pointers, in their order
    double numbers[2];            // and the others
};

// Registers and stack are as for a function that has fewer arguments, or integers that are narrower: its own part of
// them is where it looks for it. So say the calling conventions of aarch64 and x86-64 on Linux.
using Function = int64_t (*)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                             int64_t, int64_t, int64_t, int64_t, int64_t, double, double);

void serve(int connection) {
    for (Call c; recv(connection, &c, sizeof c, MSG_WAITALL) == sizeof c;) {
        const int64_t* w = c.words;
        const int64_t result =
            reinterpret_cast<Function>(c.function)(w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9], w[10],
                                                   w[11], w[12], w[13], w[14], c.numbers[0], c.numbers[1]);
        if (send(connection, &result, sizeof result, 0) != sizeof result) break;
    }
    close(connection);
}

void serve_all(int listener) {
    for (int connection; (connection = accept(listener, nullptr, nullptr)) >= 0;)
        std::thread(serve, connection).detach();
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 5) return 1;
    const int memory = atoi(arguments[1]), listener = atoi(arguments[4]);
    void* const address = reinterpret_cast<void*>(strtoull(arguments[2], nullptr, 10));
    const size_t size = strtoull(arguments[3], nullptr, 10);
    if (mmap(address, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, memory, 0) != address) return 1;
    printf("%lld\n", static_cast<long long>(reinterpret_cast<intptr_t>(&dlsym)));  // with which all others are found
    fflush(stdout);
    std::thread(serve_all, listener).detach();
    _exit(getchar() == EOF ? 0 : 1);
}
