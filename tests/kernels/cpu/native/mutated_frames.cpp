// Frames with mutated fields, in memory of exactly the size that they need: each is refused, or has the score of the
// same pixels in rows without gaps. For AddressSanitizer.
//
//     mutated_frames EXPORT FRAMES
#include <math.h>
#include <sprfast.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <memory>
#include <random>
#include <vector>

namespace {

__extension__ typedef __int128 Wide;  // no product of a frame's fields is beyond it

std::mt19937_64 generator(1);

int64_t below(int64_t count) { return static_cast<int64_t>(generator() % static_cast<uint64_t>(count)); }

void require(bool condition, const char* what, int64_t number) {
    if (condition) return;
    fprintf(stderr, "frame %lld: %s\n", static_cast<long long>(number), what);
    exit(1);
}

int64_t pixel_bytes(int32_t format) {
    const bool grey = format == SPRFAST_GREY8 || format == SPRFAST_GREY16;
    const bool deep = format == SPRFAST_GREY16 || format == SPRFAST_RGB16 || format == SPRFAST_BGR16;
    return (grey ? 1 : 3) * (deep ? 2 : 1);
}

// Bytes that a frame reads, or more than there are where its fields are no frame's.
Wide bytes_of(const sprfast_frame& f) {
    if (f.format < 1 || f.format > 6 || f.height < 1 || f.width < 1) return INT64_MAX;
    const Wide row = pixel_bytes(f.format) * f.width;
    return f.pitch < row ? Wide{INT64_MAX} : Wide{f.height - 1} * f.pitch + row;
}

// A value at the ends of what its type holds, or a little beside what it was.
template <class T> T mutated(T value) {
    const int64_t extreme[] = {0, 1, -1, 2, 7, 255, 65535, 65536, 1 << 24, INT32_MAX, INT32_MIN, INT32_MAX - 1};
    if (below(3) == 0) return static_cast<T>(value + below(9) - 4);
    if (sizeof(T) == 8 && below(3) == 0) return static_cast<T>(generator() >> below(64));
    return static_cast<T>(extreme[below(sizeof extreme / sizeof *extreme)]);
}

struct Case {
    std::unique_ptr<unsigned char[]> memory;  // as many bytes as the frame as it was made needs, and no more
    sprfast_frame frame;
    bool good;
};

Case made() {
    Case c{};
    sprfast_frame& f = c.frame;
    f.size = sizeof f;
    f.format = static_cast<int32_t>(1 + below(6));
    f.height = static_cast<int32_t>(1 + below(40));
    f.width = static_cast<int32_t>(1 + below(40));
    f.pitch = f.width * pixel_bytes(f.format) + (below(2) ? below(70) : 0);
    const uint64_t real = static_cast<uint64_t>(bytes_of(f));
    f.bytes = real;
    c.memory.reset(new unsigned char[real]);
    for (uint64_t i = 0; i < real; i++) c.memory[i] = static_cast<unsigned char>(generator());
    f.data = c.memory.get();
    for (int64_t i = below(4); i > 0; i--) switch (below(6)) {
            case 0:
                f.format = mutated(f.format);
                break;
            case 1:
                f.height = mutated(f.height);
                break;
            case 2:
                f.width = mutated(f.width);
                break;
            case 3:
                f.pitch = mutated(f.pitch);
                break;
            case 4:
                f.bytes = mutated(f.bytes);
                break;
            case 5:
                if (below(4) == 0) f.data = nullptr;
        }
    if (bytes_of(f) > real && f.bytes > real) f.bytes = real;  // a caller that lies about its memory cannot be caught
    c.good = f.data && bytes_of(f) <= f.bytes && f.bytes <= INT64_MAX;
    return c;
}

// The same pixels in rows without gaps.
sprfast_frame dense(const sprfast_frame& f, std::vector<unsigned char>& memory) {
    const int64_t row = pixel_bytes(f.format) * f.width;
    memory.resize(static_cast<size_t>(row * f.height));
    for (int32_t y = 0; y < f.height; y++)
        memcpy(memory.data() + y * row, static_cast<const unsigned char*>(f.data) + y * f.pitch,
               static_cast<size_t>(row));
    return {sizeof f, f.format, memory.data(), memory.size(), f.height, f.width, row};
}

// One call with arguments that may be null or of other sizes.
void wild_call(const sprfast_engine* engine, int64_t number) {
    Case c = made();
    sprfast_result result{};
    sprfast_error error{};
    sprfast_maps maps{};
    std::vector<float> memory(SPRFAST_MAP_SIZE * SPRFAST_MAP_SIZE);
    error.size = sizeof error;
    result.verdict = SPRFAST_PASS;
    result.size = below(2) ? sizeof result : static_cast<uint32_t>(below(sizeof result));
    maps.size = below(2) ? sizeof maps : static_cast<uint32_t>(below(sizeof maps));
    maps.height = static_cast<int32_t>(below(33));
    maps.width = static_cast<int32_t>(below(33));
    if (below(2)) maps.error_map = memory.data();
    if (below(2)) maps.anomaly_map = memory.data();
    if (below(4) == 0) c.frame.size = mutated(c.frame.size) % (sizeof c.frame + 1);
    const sprfast_engine* given = below(8) ? engine : nullptr;
    const sprfast_frame* frame = below(8) ? &c.frame : nullptr;
    sprfast_result* to = below(8) ? &result : nullptr;
    const int32_t code = below(2) ? sprfast_map(given, frame, to, below(8) ? &maps : nullptr, &error)
                                  : sprfast_score_many(given, frame, static_cast<size_t>(below(2)), to, &error);
    require(code == error.code && (code == SPRFAST_OK) == (error.text[0] == 0), "code and text", number);
    require(code >= SPRFAST_OK && code <= SPRFAST_INTERNAL, "code", number);
    if (code != SPRFAST_OK && to && result.size == sizeof result && c.frame.size == sizeof c.frame && frame && given)
        require(result.verdict == SPRFAST_ERROR || code == SPRFAST_INVALID_ARGUMENT, "verdict", number);
}

}  // namespace

int main(int count, char** arguments) {
    sprfast_error error{};
    error.size = sizeof error;
    sprfast_engine* engine = nullptr;
    const sprfast_options options{sizeof options, 1, nullptr};
    if (count != 3 || sprfast_open(arguments[1], &options, &engine, &error))
        return fprintf(stderr, "%s\n", error.text), 1;
    const int64_t frames = atoll(arguments[2]);
    int64_t good = 0;
    for (int64_t first = 0; first < frames; first += 32) {
        std::vector<Case> cases;
        std::vector<sprfast_frame> given;
        std::vector<std::vector<unsigned char>> memories(32);
        for (int i = 0; i < 32; i++) cases.push_back(made());
        for (const Case& c : cases) given.push_back(c.frame);
        for (int i = 0; i < 32; i++)
            if (cases[i].good) given.push_back(dense(cases[i].frame, memories[i]));
        sprfast_result empty{};
        empty.size = sizeof empty;
        empty.verdict = SPRFAST_PASS;
        std::vector<sprfast_result> results(given.size(), empty);
        require(!sprfast_score_many(engine, given.data(), given.size(), results.data(), &error), error.text, first);
        for (int i = 0, expected = 32; i < 32; i++) {
            const sprfast_result& r = results[i];
            require((r.code == SPRFAST_OK) == cases[i].good, r.reason, first + i);
            require(r.code == SPRFAST_OK || (r.verdict == SPRFAST_ERROR && isnan(r.pred_score) && r.reason[0]),
                    "a refusal", first + i);
            if (!cases[i].good) continue;
            require(r.pred_score == results[expected].pred_score && r.verdict == results[expected].verdict, "score",
                    first + i);
            expected++;
            good++;
        }
        for (int i = 0; i < 8; i++) wild_call(engine, first);
    }
    sprfast_close(engine);
    printf("%lld of %lld frames have a score\n", static_cast<long long>(good), static_cast<long long>(frames));
    return 0;
}
