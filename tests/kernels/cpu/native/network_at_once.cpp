// One network in several threads at once, each call with threads of its own, and in a forked child: for
// ThreadSanitizer. Every answer must have the bits of one thread alone.
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <thread>
#include <vector>

#include "folded.h"
#include "interface.h"

namespace {

constexpr int WIDTH = 32, DRAWS = 2, SIDE = 32, IMAGES = 4, MAP = 256;

// Numbers from -1 to 1 that look random.
std::vector<float> numbers(size_t count, uint32_t state) {
    std::vector<float> result(count);
    for (float& each : result) {
        state = state * 1664525 + 1013904223;
        each = (float)(int32_t)state / 2147483648.0f;
    }
    return result;
}

struct Answer {
    std::vector<float> errors = std::vector<float>(IMAGES * SIDE * SIDE), maps = std::vector<float>(IMAGES * MAP * MAP);

    // Computed with `threads` threads; false: by an error.
    bool compute(const void* network, int threads) {
        static const std::vector<float> x = numbers(IMAGES * 3 * SIDE * SIDE, 1),
                                        noise = numbers(DRAWS * 3 * SIDE * SIDE, 2);
        char error[SPR_ERROR_SIZE];
        const bool failed = spr_interface.maps(network, x.data(), IMAGES, SIDE, SIDE, noise.data(), errors.data(),
                                               maps.data(), threads, nullptr, error);
        if (failed) fprintf(stderr, "%s\n", error);
        return !failed;
    }

    bool operator==(const Answer& other) const {
        return !memcmp(errors.data(), other.errors.data(), errors.size() * sizeof(float)) &&
               !memcmp(maps.data(), other.maps.data(), maps.size() * sizeof(float));
    }
};

void* open() {
    std::vector<std::string> names;
    std::vector<std::vector<float>> arrays;
    for (const auto& [name, shape] : sprfast::folded_shapes(WIDTH, DRAWS)) {
        size_t count = 1;
        for (const int64_t size : shape) count *= (size_t)size;
        names.push_back(name);
        arrays.push_back(numbers(count, (uint32_t)names.size()));
    }
    std::vector<const char*> name_pointers;
    std::vector<const float*> array_pointers;
    for (const auto& name : names) name_pointers.push_back(name.c_str());
    for (const auto& array : arrays) array_pointers.push_back(array.data());
    const spr_operators* operators = nullptr;
    for (const char* set : {"generic", "neon", "avx2", "avx512"})
        if (const spr_operators* found = spr_interface.operators(set)) operators = found;
    char error[SPR_ERROR_SIZE];
    void* network = spr_interface.open_network(operators, WIDTH, DRAWS, (int32_t)names.size(), name_pointers.data(),
                                               array_pointers.data(), error);
    if (!network) fprintf(stderr, "%s\n", error);
    return network;
}

}  // namespace

int main() {
    void* network = open();
    Answer expected, results[4];
    if (!network || !expected.compute(network, 1)) return 1;
    for (int round = 0; round < 3; round++) {
        std::vector<std::thread> callers;
        for (int i = 0; i < 4; i++) callers.emplace_back([&, i] { results[i].compute(network, i + 1); });
        for (std::thread& each : callers) each.join();
        for (const Answer& each : results)
            if (!(each == expected)) return puts("other bits"), 1;
    }
    const pid_t child = fork();
    if (!child) {
        Answer answer;
        _exit(answer.compute(network, 3) && answer == expected ? 0 : 1);
    }
    int status = 1;
    waitpid(child, &status, 0);
    spr_interface.close_network(network);
    return status ? (puts("the child failed"), 1) : 0;
}
