#include "network.h"

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

#include "failure.h"
#include "memory.h"
#include "score.h"
#include "threads.h"

namespace sprfast {

namespace {

constexpr int64_t MOST_PIXELS = 1 << 30;  // of an image; no machine has the memory for more

struct Block {
    const char* name;
    int halvings;               // of the image's sides
    int before, middle, after;  // channels into it, between its convolutions and out of it, in base widths
    int skip;                   // the block that it reads beside the one before it, which is upsampled then
};
constexpr int COLORS = 3, NONE = -1, BLOCK_COUNT = 9, BOTTOM = 4, LAST = BLOCK_COUNT - 1;
constexpr Block BLOCKS[BLOCK_COUNT] = {
    {"inc", 0, 0, 1, 1, NONE},  // which reads the image's colours
    {"down1", 1, 1, 2, 2, NONE}, {"down2", 2, 2, 4, 4, NONE}, {"down3", 3, 4, 8, 8, NONE}, {"down4", 4, 8, 8, 8, NONE},
    {"up1", 3, 16, 8, 4, 3},     {"up2", 2, 8, 4, 2, 2},      {"up3", 1, 4, 2, 1, 1},      {"up4", 0, 2, 1, 1, 0},
};
constexpr int CONVOLUTIONS = 2 * BLOCK_COUNT;  // of block i, 2·i and 2·i + 1, in the order of their calls

const Block& block_of(int convolution) { return BLOCKS[convolution / 2]; }
bool is_second(int convolution) { return convolution % 2; }
std::string name_of(int convolution) {
    return std::string(block_of(convolution).name) + (is_second(convolution) ? ".second" : ".first");
}

std::vector<float> copy(const float* from, int64_t count) { return std::vector<float>(from, from + count); }

// (channels, 3, 3, 3) to (27, channels).
Floats pack_perturb(const float* weight, int channels) {
    Floats packed = floats((int64_t)9 * COLORS * channels);
    for (int o = 0; o < channels; o++)
        for (int k = 0; k < 9 * COLORS; k++) packed[(int64_t)k * channels + o] = weight[(int64_t)o * 9 * COLORS + k];
    return packed;
}

}  // namespace

struct Network::Weights {
    // A 3x3 convolution and the GroupNorm behind it.
    struct Convolution {
        std::string name;
        int channels_in, channels_out;
        Floats weight;  // packed
        std::vector<float> bias, gamma, beta;
    };

    Weights(int width, int draws, int window, const std::map<std::string, const float*>& arrays,
            const spr_operators& operators);

    const int draws, window;
    const spr_operators& operators;
    std::vector<Convolution> convolutions;
    std::vector<float> embeddings[LAST];  // of the blocks; that of the last is folded into the head
    std::vector<float> head_weight, head_bias, std, scale;
};

Network::Weights::Weights(int width, int of_image, int of_map, const std::map<std::string, const float*>& arrays,
                          const spr_operators& table)
    : draws(of_image), window(of_map), operators(table) {
    const auto array = [&](const std::string& name) {
        const auto found = arrays.find(name);
        if (found == arrays.end()) throw Failure{Code::invalid_argument, "arrays: '" + name + "' is missing"};
        return found->second;
    };
    for (int i = 0; i < CONVOLUTIONS; i++) {
        const Block& block = block_of(i);
        const std::string name = name_of(i);
        const int in = i == 0 ? COLORS : width * (is_second(i) ? block.middle : block.before);
        const int out = width * (is_second(i) ? block.after : block.middle);
        const float* weight = array(name + ".weight");
        Floats packed = i == 0 ? pack_perturb(weight, out) : floats(operators.conv3x3_weights(in, out));
        if (i > 0) operators.pack_conv3x3(weight, in, out, packed.get());
        convolutions.push_back({name, in, out, std::move(packed), copy(array(name + ".bias"), out),
                                copy(array(name + ".gamma"), out), copy(array(name + ".beta"), out)});
    }
    for (int i = 0; i < LAST; i++)
        embeddings[i] =
            copy(array(BLOCKS[i].name + std::string(".embedding")), (int64_t)draws * width * BLOCKS[i].after);
    head_weight = copy(array("head_weight"), (int64_t)COLORS * width);
    head_bias = copy(array("head_bias"), (int64_t)draws * COLORS);
    std = copy(array("std"), draws);
    scale = copy(array("scale"), draws);
}

// The memory of one pass, 2.25·samples·H·W·base width floats of raw maps and little else, and the threads of a call.
//
// A map's memory is used again when nothing reads the map any more. Three places, one behind the other, hold all maps:
//
// 1. inc.second, later up4.second;
// 2. the first map of every block, and behind it the second maps of down1, down2 and down3, which skip connections
//    read;
// 3. the second maps of down4, up1, up2 and up3.
//
// In the second place each map takes at most half of the room of the one before it.
struct Network::Workspace {
    // Of a convolution's output, by sample.
    struct Output {
        int height, width;
        int64_t floats, start, affine;  // start, affine: where map and affine begin
    };

    Workspace(const Weights& weights, int height, int width, int threads);

    bool fits(int h, int w, int t) const { return h == height && w == width && t == threads; }

    // A convolution as its operator takes it.
    spr_conv3x3 shape(int convolution, int samples) const;
    spr_perturb_conv3x3 first_shape(int images) const;

    const Weights& weights;
    const int height, width, threads;
    const int together;                // images of a pass
    std::vector<float> rows, columns;  // matrices of the anomaly map
    Output outputs[CONVOLUTIONS];
    Floats maps, affines, scratch;  // scratch: of the operators
    Pool pool;
    std::unique_ptr<Workspace> next;  // of a list of idle ones
};

Network::Workspace::Workspace(const Weights& of, int h, int w, int t)
    : weights(of),
      height(h),
      width(w),
      threads(t),
      together(std::max(1, SAMPLES / of.draws)),
      rows(smoothing_matrix(h, of.window)),
      columns(smoothing_matrix(w, of.window)),
      pool(t) {
    const int samples = together * weights.draws;
    const int64_t whole = (int64_t)h * w * weights.convolutions[0].channels_out;
    int64_t map = 0, affine = 0;
    for (int i = 0; i < CONVOLUTIONS; i++) {
        const Block& block = block_of(i);
        Output& output = outputs[i];
        output.height = h >> block.halvings;
        output.width = w >> block.halvings;
        output.floats = (int64_t)output.height * output.width * weights.convolutions[i].channels_out;
        output.start = !is_second(i)         ? whole
                       : block.halvings == 0 ? 0
                       : i / 2 < BOTTOM      ? whole + output.floats
                                             : 2 * whole;
        output.affine = affine;
        affine += 2 * weights.convolutions[i].channels_out;
        map = std::max(map, output.start + output.floats);
    }
    const spr_operators& o = weights.operators;
    const spr_perturb_conv3x3 first = first_shape(together);
    int64_t space = std::max(o.perturb_conv3x3_space(&first, t), o.anomaly_map_space(together, h, w, MAP_SIZE));
    for (int i = 1; i < CONVOLUTIONS; i++) {
        const spr_conv3x3 convolution = shape(i, samples);
        space = std::max(space, o.conv3x3_space(&convolution, t));
    }
    maps = floats(samples * map);
    affines = floats(samples * affine);
    scratch = floats(space);
}

spr_conv3x3 Network::Workspace::shape(int i, int samples) const {
    const Weights::Convolution& c = weights.convolutions[i];
    return {samples, weights.draws,  outputs[i].height, outputs[i].width, c.channels_in, c.channels_out,
            GROUPS,  c.weight.get(), c.bias.data(),     c.gamma.data(),   c.beta.data()};
}

spr_perturb_conv3x3 Network::Workspace::first_shape(int images) const {
    const Weights::Convolution& c = weights.convolutions[0];
    return {images,  weights.draws,      height,         width,         c.channels_out, GROUPS,       1, nullptr,
            nullptr, weights.std.data(), c.weight.get(), c.bias.data(), c.gamma.data(), c.beta.data()};
}

// Images that go through the network together.
class Network::Pass {
public:
    Pass(Workspace& space, int images, Observer observe)
        : weights_(space.weights),
          space_(space),
          images_(images),
          samples_(images * space.weights.draws),
          observe_(observe),
          threads_(space.pool.threads()) {}

    void run(const float* x, const float* noise, float* errors, float* maps) const;

private:
    void first(const float* x, const float* noise) const;
    void convolve(int convolution, const spr_source* sources, int count) const;
    void head(const float* noise, float* errors) const;
    void anomaly_map(const float* errors, float* maps) const;

    float* raw(int i) const { return space_.maps.get() + samples_ * space_.outputs[i].start; }
    float* affine(int i) const { return space_.affines.get() + samples_ * space_.outputs[i].affine; }
    spr_source output(int i, const float* embedding, int kind) const {
        return {raw(i),
                affine(i),
                embedding,
                weights_.convolutions[i].channels_out,
                space_.outputs[i].height,
                space_.outputs[i].width,
                kind};
    }
    spr_source result(int block, int kind) const {
        return output(2 * block + 1, weights_.embeddings[block].data(), kind);
    }

    template <class Operator> void watched(spr_layer layer, const Operator& run) const {
        const auto begin = std::chrono::steady_clock::now();
        run();
        if (!observe_) return;
        layer.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
        observe_(&layer);
    }

    const Weights& weights_;
    const Workspace& space_;
    const int images_;
    const int64_t samples_;
    const Observer observe_;
    const spr_threads& threads_;
};

void Network::Pass::run(const float* x, const float* noise, float* errors, float* maps) const {
    first(x, noise);
    for (int block = 0; block < BLOCK_COUNT; block++) {
        const int skip = BLOCKS[block].skip;
        if (skip != NONE) {
            const spr_source sources[] = {result(skip, SPR_ACTIVATION), result(block - 1, SPR_UPSAMPLED)};
            convolve(2 * block, sources, 2);
        } else if (block > 0) {
            const spr_source source = result(block - 1, SPR_POOLED);
            convolve(2 * block, &source, 1);
        }
        const spr_source source = output(2 * block, nullptr, SPR_ACTIVATION);
        convolve(2 * block + 1, &source, 1);
    }
    head(noise, errors);
    anomaly_map(errors, maps);
}

void Network::Pass::first(const float* x, const float* noise) const {
    spr_perturb_conv3x3 c = space_.first_shape(images_);
    c.image = x;
    c.noise = noise;
    watched({weights_.convolutions[0].name.c_str(), COLORS, c.channels_out, c.height, c.width, images_, 0, nullptr,
             raw(0), affine(0), 0},
            [&] { weights_.operators.perturb_conv3x3(&c, raw(0), affine(0), space_.scratch.get(), &threads_); });
}

void Network::Pass::convolve(int i, const spr_source* sources, int count) const {
    const spr_conv3x3 c = space_.shape(i, (int)samples_);
    watched({weights_.convolutions[i].name.c_str(), c.channels_in, c.channels_out, c.height, c.width, images_, count,
             sources, raw(i), affine(i), 0},
            [&] { weights_.operators.conv3x3(&c, sources, raw(i), affine(i), space_.scratch.get(), &threads_); });
}

void Network::Pass::head(const float* noise, float* errors) const {
    const spr_source source = output(CONVOLUTIONS - 1, nullptr, SPR_ACTIVATION);
    const spr_head h{images_,
                     weights_.draws,
                     space_.height,
                     space_.width,
                     source.channels,
                     1,
                     source.raw,
                     source.affine,
                     weights_.head_weight.data(),
                     weights_.head_bias.data(),
                     noise,
                     weights_.scale.data()};
    watched({"head", h.channels, COLORS, h.height, h.width, images_, 1, &source, errors, nullptr, 0},
            [&] { weights_.operators.head(&h, errors, &threads_); });
}

void Network::Pass::anomaly_map(const float* errors, float* maps) const {
    watched({"anomaly map", 1, 1, MAP_SIZE, MAP_SIZE, images_, 0, nullptr, maps, nullptr, 0}, [&] {
        weights_.operators.anomaly_map(images_, space_.height, space_.width, MAP_SIZE, errors, space_.rows.data(),
                                       space_.columns.data(), maps, space_.scratch.get(), &threads_);
    });
}

// Workspaces that no call is using, all of the size last asked for. Those of a forked process's parent are never looked
// at, since another of its threads may have been about to change them.
struct Network::Idle {
    int height = 0, width = 0, threads = 0;
    std::unique_ptr<Workspace> first;
};

std::unique_ptr<Network::Workspace> Network::lend(int height, int width, int threads) const {
    std::unique_ptr<Workspace> found = idle_->locked([&](Idle& here) {
        here.height = height;
        here.width = width;
        here.threads = threads;
        std::unique_ptr<Workspace> first = std::move(here.first);
        if (first && first->fits(height, width, threads)) here.first = std::move(first->next);
        return first;
    });
    if (found && found->fits(height, width, threads)) return found;
    found.reset();  // and all behind it: first they go, then there is a new one
    return std::make_unique<Workspace>(*weights_, height, width, threads);
}

void Network::give_back(std::unique_ptr<Workspace> space) const {
    idle_->locked([&](Idle& here) {
        if (!space->fits(here.height, here.width, here.threads)) return;  // a call with another size came meanwhile
        space->next = std::move(here.first);
        here.first = std::move(space);
    });
}

Network::Network(int base_width, int draws, int window, const std::map<std::string, const float*>& arrays,
                 const spr_operators* operators) {
    if (base_width < CHANNELS || base_width % CHANNELS || base_width > 1 << 20)
        throw Failure{Code::invalid_argument, "base_width: " + std::to_string(base_width) +
                                                  " is not allowed, expected a multiple of " +
                                                  std::to_string(CHANNELS)};
    if (draws < 1) throw Failure{Code::invalid_argument, "draws: " + std::to_string(draws) + " is not allowed"};
    if (window < 0 || window > MAX_WINDOW)
        throw Failure{Code::invalid_argument, "window: " + std::to_string(window) + " is not allowed"};
    if (!operators) throw Failure{Code::invalid_argument, "operators: none for this instruction set"};
    weights_ = std::make_unique<const Weights>(base_width, draws, window, arrays, *operators);
    idle_ = std::make_unique<PerProcess<Idle>>();
}

Network::~Network() = default;

void Network::maps(const float* x, int images, int height, int width, const float* noise, float* errors, float* maps,
                   int threads, Observer observe) const {
    if (std::min(height, width) < MIN_SIDE)
        throw Failure{Code::bad_image, "image: expected at least " + std::to_string(MIN_SIDE) +
                                           " pixels on each side, got " + std::to_string(height) + "x" +
                                           std::to_string(width)};
    if (threads < 1 || threads > MOST_THREADS)
        throw Failure{Code::invalid_argument, "threads: " + std::to_string(threads) +
                                                  " is not allowed, expected 1 to " + std::to_string(MOST_THREADS)};
    const int64_t pixels = (int64_t)height * width;
    if (pixels > MOST_PIXELS) throw std::bad_alloc();
    std::unique_ptr<Workspace> space = lend(height, width, threads);
    for (int first = 0; first < images; first += space->together) {
        const Pass pass(*space, std::min(space->together, images - first), observe);
        pass.run(x + first * COLORS * pixels, noise, errors + first * pixels,
                 maps + (int64_t)first * MAP_SIZE * MAP_SIZE);
    }
    give_back(std::move(space));
}

}  // namespace sprfast
