// The network over the operators of one instruction set: from images and noise to error maps and anomaly maps.
#pragma once

#include <stdint.h>

#include <map>
#include <memory>
#include <string>

#include "interface.h"
#include "per_process.h"

namespace sprfast {

constexpr int GROUPS = 32;          // of every GroupNorm
constexpr int CHANNELS = 32;        // every feature map has a multiple of this many
constexpr int MIN_SIDE = 16;        // pixels: what four halvings leave a pixel of
constexpr int SAMPLES = 6;          // of a pass: enough to keep all threads busy in the deepest maps
constexpr int MOST_THREADS = 1024;  // of a call

using Observer = void (*)(const spr_layer*);

class Network {
public:
    // window: of the anomaly map, network pixels; 0: the published one. The arrays by the names and with the sizes of
    // method/folded.py; none is kept as it is.
    Network(int base_width, int draws, int window, const std::map<std::string, const float*>& arrays,
            const spr_operators* operators);
    ~Network();
    Network(const Network&) = delete;
    Network& operator=(const Network&) = delete;

    // x: (images, 3, height, width); noise: (draws, 3, height, width); errors: (images, height, width); maps:
    // (images, 256, 256). From any thread, several at the same time; in a forked child too. An image gives the same
    // bits in any batch and with any number of threads. `observe` is called after every operator. Throws Failure and
    // std::bad_alloc.
    void maps(const float* x, int images, int height, int width, const float* noise, float* errors, float* maps,
              int threads, Observer observe = nullptr) const;

private:
    struct Weights;
    struct Workspace;
    struct Idle;
    class Pass;

    std::unique_ptr<Workspace> lend(int height, int width, int threads) const;
    void give_back(std::unique_ptr<Workspace> space) const;

    std::unique_ptr<const Weights> weights_;
    std::unique_ptr<PerProcess<Idle>> idle_;
};

}  // namespace sprfast
