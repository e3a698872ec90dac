// The network over the operators of one instruction set: from images and noise to error maps and anomaly maps.
#pragma once

#include <stdint.h>
#include <sys/types.h>

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "interface.h"

namespace sprfast {

constexpr int GROUPS = 32;    // of every GroupNorm
constexpr int MIN_SIDE = 16;  // pixels: what four halvings leave a pixel of

using Observer = void (*)(const spr_layer*);

class Network {
public:
    // The arrays by the names of method/folded.py, of the shapes that it says; none is kept as it is. base_width: a
    // multiple of 32.
    Network(int base_width, int draws, const std::map<std::string, const float*>& arrays,
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

    int draws() const;

private:
    struct Weights;
    struct Idle;
    std::unique_ptr<const Weights> weights_;
    mutable std::atomic<Idle*> idle_;  // workspaces that no call is using
};

}  // namespace sprfast
