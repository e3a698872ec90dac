// One engine in eight threads at once, with frames of more sizes than it keeps the noise of: for
// ThreadSanitizer. Every score must have the bits of one thread alone.
//
//     engine_at_once EXPORT
#include <stdio.h>

#include <sprfast.hpp>
#include <thread>

namespace {

constexpr int SIZES = 6;
const std::vector<unsigned char> pixels(3 * 64 * 64, 77);

std::vector<double> scores(const sprfast::Engine& engine, int first) {
    std::vector<double> found(SIZES);
    for (int i = first; i < first + SIZES; i++) {
        const sprfast_frame frame = sprfast::packed(SPRFAST_RGB8, pixels, 32, 32 + i % SIZES);
        found[static_cast<size_t>(i % SIZES)] = engine.score(frame).pred_score;
    }
    return found;
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 2) return 1;
    const sprfast::Engine engine(arguments[1], 2);
    const std::vector<double> expected = scores(engine, 0);
    std::vector<std::vector<double>> found(8);
    std::vector<std::thread> threads;
    for (int i = 0; i < 8; i++) threads.emplace_back([&, i] { found[static_cast<size_t>(i)] = scores(engine, i); });
    for (std::thread& thread : threads) thread.join();
    for (const std::vector<double>& each : found)
        if (each != expected) return puts("other bits"), 1;
    return puts("the same bits"), 0;
}
