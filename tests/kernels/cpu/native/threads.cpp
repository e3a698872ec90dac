// Pools of threads, and several threads that call one network; for ThreadSanitizer. Says what is wrong and ends with 1.
#include "threads.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <atomic>
#include <random>
#include <thread>

#include "network.h"
#include "score.h"

extern "C" const spr_operators spr_float32_generic;

using namespace sprfast;

namespace {

void require(bool right, const char* what) {
    if (right) return;
    fprintf(stderr, "%s\n", what);
    exit(1);
}

// Every thread sees in the second half of a run what all have written in the first; after a run all have ended.
struct Run {
    const spr_threads* threads = nullptr;
    int written[8] = {}, seen[8] = {};
    std::atomic<int> ended{0};

    static void work(void* context, int32_t thread, int32_t threads) {
        Run& run = *static_cast<Run*>(context);
        run.written[thread] = 1;
        if (threads > 1) run.threads->barrier(run.threads->pool);
        for (int i = 0; i < threads; i++) run.seen[thread] += run.written[i];
        run.ended++;
    }
};

void run_once(Pool& pool, int expected) {
    Run run;
    run.threads = &pool.threads();
    run.threads->run(run.threads->pool, Run::work, &run);
    require(run.ended == expected, "a run has not the threads of its pool");
    for (int i = 0; i < expected; i++) require(run.seen[i] == expected, "a thread has passed a barrier too early");
}

void test_pools() {
    for (int threads = 1; threads <= 5; threads++) {
        Pool pool(threads);
        for (int i = 0; i < 200; i++) run_once(pool, threads);
    }
    Pool unused(3);
    Pool short_lived(3, 1);  // whose threads end about when the next run comes
    for (int i = 0; i < 200; i++) {
        run_once(short_lived, 3);
        usleep(800 + 10 * (i % 60));
    }
}

class Maps {
public:
    Maps(const Network& network, int height, int width, int threads) {
        constexpr int IMAGES = 4, DRAWS = 2;  // two passes
        std::mt19937 random(height);
        std::uniform_real_distribution<float> uniform(-1, 1);
        std::vector<float> x(IMAGES * 3 * height * width), noise(DRAWS * 3 * height * width);
        for (float& value : x) value = uniform(random);
        for (float& value : noise) value = uniform(random);
        errors_.resize(IMAGES * height * width);
        maps_.resize(IMAGES * MAP_SIZE * MAP_SIZE);
        network.maps(x.data(), IMAGES, height, width, noise.data(), errors_.data(), maps_.data(), threads);
    }

    bool operator==(const Maps& other) const { return errors_ == other.errors_ && maps_ == other.maps_; }
    bool finite() const {
        for (const float value : maps_)
            if (!isfinite(value)) return false;
        return true;
    }

private:
    std::vector<float> errors_, maps_;
};

// Every array is a part of one of random numbers that is as long as the longest.
std::unique_ptr<const Network> random_network() {
    constexpr int WIDTH = 32;
    std::mt19937 random(0);
    std::uniform_real_distribution<float> uniform(-0.05f, 0.05f);
    std::vector<float> values((size_t)16 * WIDTH * 8 * WIDTH * 9);
    for (float& value : values) value = uniform(random);
    std::map<std::string, const float*> arrays;
    for (const char* name : {"std", "scale", "head_weight", "head_bias"}) arrays[name] = values.data();
    for (const char* block : {"inc", "down1", "down2", "down3", "down4", "up1", "up2", "up3", "up4"}) {
        arrays[block + std::string(".embedding")] = values.data();
        for (const char* place : {".first", ".second"})
            for (const char* field : {".weight", ".bias", ".gamma", ".beta"})
                arrays[block + std::string(place) + field] = values.data();
    }
    return std::make_unique<const Network>(WIDTH, 2, 0, arrays, &spr_float32_generic);
}

void test_calls_at_once() {
    const std::unique_ptr<const Network> network = random_network();
    const Maps small(*network, 16, 16, 1), large(*network, 17, 24, 1);
    require(small.finite() && large.finite(), "maps are not finite");
    std::vector<std::thread> callers;
    for (int i = 0; i < 4; i++)
        callers.emplace_back([&, i] {
            for (int call = 0; call < 2; call++) {
                const bool first = (i + call) % 2;
                const Maps got(*network, first ? 16 : 17, first ? 16 : 24, 1 + (i + call) % 3);
                require(got == (first ? small : large), "a call has other bits than alone");
            }
        });
    for (std::thread& caller : callers) caller.join();
}

}  // namespace

int main() {
    test_pools();
    test_calls_at_once();
}
