#include "folded.h"

namespace sprfast {

namespace {

// Channels into a block, between its convolutions and out of it, in base widths; 0: the image's three.
struct Block {
    const char* name;
    int64_t in, middle, out;
};
constexpr Block BLOCKS[] = {{"inc", 0, 1, 1},   {"down1", 1, 2, 2}, {"down2", 2, 4, 4},
                            {"down3", 4, 8, 8}, {"down4", 8, 8, 8}, {"up1", 16, 8, 4},
                            {"up2", 8, 4, 2},   {"up3", 4, 2, 1},   {"up4", 2, 1, 1}};

}  // namespace

std::map<std::string, std::vector<int64_t>> folded_shapes(int64_t base_width, int64_t draws) {
    std::map<std::string, std::vector<int64_t>> shapes{
        {"std", {draws}}, {"scale", {draws}}, {"head_weight", {3, base_width}}, {"head_bias", {draws, 3}}};
    const auto convolution = [&](const std::string& place, int64_t in, int64_t out) {
        shapes[place + ".weight"] = {out, in, 3, 3};
        for (const char* vector : {".bias", ".gamma", ".beta"}) shapes[place + vector] = {out};
    };
    for (const Block& block : BLOCKS) {
        const std::string name = block.name;
        const int64_t middle = block.middle * base_width, out = block.out * base_width;
        convolution(name + ".first", block.in ? block.in * base_width : 3, middle);
        convolution(name + ".second", middle, out);
        shapes[name + ".embedding"] = {draws, out};
    }
    shapes.erase("up4.embedding");  // which is folded into the head
    return shapes;
}

}  // namespace sprfast
