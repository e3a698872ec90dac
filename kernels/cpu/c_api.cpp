// The C interface over the engine: structs of any version in and out, and nothing thrown beyond.
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <exception>
#include <limits>
#include <new>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "engine.h"
#include "sprfast.h"

#define SPR_STRING(text) #text
#define SPR_EXPANDED(text) SPR_STRING(text)

struct sprfast_engine {
    sprfast::Engine engine;
};

namespace sprfast {
namespace {

constexpr uint32_t MOST_BYTES = 4096;  // of a struct of any version
constexpr double NONE = std::numeric_limits<double>::quiet_NaN();

[[noreturn]] void refuse(const std::string& text) { throw Failure{Code::invalid_argument, text}; }

// Copies as much of a text as there is room for, to the end of a character.
template <size_t SIZE> void write_text(char (&to)[SIZE], const char* text) {
    size_t length = strnlen(text, SIZE - 1);
    while (length > 0 && (text[length] & 0xC0) == 0x80) length--;
    memcpy(to, text, length);
    memset(to + length, 0, SIZE - length);
}

// The size that a caller says its struct has, which is at least that of the first version.
template <typename T> uint32_t size_of(const T* given, const char* name) {
    if (!given) refuse(std::string(name) + ": is null");
    uint32_t size;
    memcpy(&size, given, sizeof size);
    if (size < sizeof(T) || size > MOST_BYTES || size % alignof(T))
        refuse(std::string(name) + ".size: " + std::to_string(size) + " is not allowed, expected " +
               std::to_string(sizeof(T)));
    return size;
}

// A struct of the caller's, of which all is known or 0.
template <typename T> T taken(const T* given, const char* name) {
    const uint32_t size = size_of(given, name);
    T known;
    memcpy(&known, given, sizeof known);
    const char* bytes = reinterpret_cast<const char*>(given);
    for (uint32_t i = sizeof known; i < size; i++)
        if (bytes[i])
            refuse(std::string(name) + ": a field of a later version is set, which this library does not know");
    return known;
}

// Into a struct of the caller's, whose size stays; what is not known of it is 0.
template <typename T> void give(T* to, T value) {
    memcpy(&value.size, to, sizeof value.size);
    memcpy(to, &value, sizeof value);
    memset(reinterpret_cast<char*>(to) + sizeof value, 0, value.size - sizeof value);
}

template <typename T> T* at(T* first, size_t index, uint32_t size) {
    using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
    return reinterpret_cast<T*>(reinterpret_cast<Byte*>(first) + index * size);
}

int32_t said(sprfast_error* error, int32_t code, const char* text) {
    if (error) {
        sprfast_error value{};
        value.code = code;
        write_text(value.text, text);
        give(error, value);
    }
    return code;
}

// What `work` throws, as a code and a text.
template <typename Work> int32_t guarded(sprfast_error* error, Work work) noexcept {
    try {
        if (error) size_of(error, "error");
    } catch (...) {
        return SPRFAST_INVALID_ARGUMENT;  // there is no place for a text
    }
    try {
        work();
        return said(error, SPRFAST_OK, "");
    } catch (const Failure& failure) {
        return said(error, static_cast<int32_t>(failure.code), failure.text.c_str());
    } catch (const std::bad_alloc&) {
        return said(error, SPRFAST_OUT_OF_MEMORY, "no memory");
    } catch (const std::exception& exception) {
        return said(error, SPRFAST_INTERNAL, exception.what());
    } catch (...) {
        return said(error, SPRFAST_INTERNAL, "not known");
    }
}

const Engine& engine_of(const sprfast_engine* engine) {
    if (!engine) refuse("engine: is null");
    return engine->engine;
}

PixelFormat format_of(int32_t format) {
    switch (format) {
        case SPRFAST_GREY8:
            return PixelFormat::grey8;
        case SPRFAST_GREY16:
            return PixelFormat::grey16;
        case SPRFAST_RGB8:
            return PixelFormat::rgb8;
        case SPRFAST_BGR8:
            return PixelFormat::bgr8;
        case SPRFAST_RGB16:
            return PixelFormat::rgb16;
        case SPRFAST_BGR16:
            return PixelFormat::bgr16;
    }
    refuse("frame.format: " + std::to_string(format) + " is not known");
}

Frame frame_of(const sprfast_frame& given) {
    if (given.bytes > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
        refuse("frame.bytes: " + std::to_string(given.bytes) + " is more than any memory");
    return {
        given.data, static_cast<int64_t>(given.bytes), given.height, given.width, given.pitch, format_of(given.format)};
}

int32_t code_of(Verdict verdict) {
    return verdict == Verdict::pass ? SPRFAST_PASS : verdict == Verdict::reject ? SPRFAST_REJECT : SPRFAST_ERROR;
}

sprfast_result failed(int32_t code, const char* reason) {
    sprfast_result result{};
    result.pred_score = NONE;
    result.code = code;
    write_text(result.reason, reason);
    return result;
}

sprfast_result result_of(const Result& given, int draws) {
    if (given.code) return failed(static_cast<int32_t>(*given.code), given.reason.c_str());
    sprfast_result result{};
    result.verdict = code_of(given.verdict);
    result.pred_score = given.score;
    result.passes = draws;
    write_text(result.reason, given.reason.c_str());
    return result;
}

// Makes a result an ERROR, before anything can go wrong; its size.
uint32_t not_scored(sprfast_result* result) {
    const uint32_t size = size_of(result, "result");
    give(result, failed(SPRFAST_INTERNAL, "the frame was not scored"));
    return size;
}

// work(frame) for a frame that can be understood; what is wrong with it goes to its result.
template <typename Work> void with_frame(const sprfast_frame* given, sprfast_result* result, Work work) {
    try {
        work(frame_of(taken(given, "frame")));
    } catch (const Failure& failure) {
        give(result, failed(static_cast<int32_t>(failure.code), failure.text.c_str()));
    }
}

void score_many(const sprfast_engine* engine, const sprfast_frame* frames, size_t count, sprfast_result* results) {
    if (!count) return (void)engine_of(engine);
    if (count > PTRDIFF_MAX / MOST_BYTES) refuse("count: " + std::to_string(count) + " is more than any memory holds");
    const uint32_t result_size = size_of(results, "result");
    for (size_t i = 0; i < count; i++)
        if (not_scored(at(results, i, result_size)) != result_size)
            refuse("result.size: is not the same in all results");
    const Engine& scorer = engine_of(engine);
    const uint32_t frame_size = size_of(frames, "frame");
    std::vector<Frame> good;
    std::vector<sprfast_result*> to;
    for (size_t i = 0; i < count; i++) {
        const sprfast_frame* frame = at(frames, i, frame_size);
        if (size_of(frame, "frame") != frame_size) refuse("frame.size: is not the same in all frames");
        with_frame(frame, at(results, i, result_size), [&](const Frame& understood) {
            good.push_back(understood);
            to.push_back(at(results, i, result_size));
        });
    }
    const std::vector<Result> scored = scorer.score(good);
    for (size_t i = 0; i < good.size(); i++) give(to[i], result_of(scored[i], scorer.exported().schedule.draws()));
}

// Where maps go, once it is known that they fit there.
Maps maps_of(const Engine& engine, const sprfast_maps& given, std::pair<int, int> size) {
    const auto address = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); };
    if (address(given.error_map) % alignof(float)) refuse("maps.error_map: is not aligned as floats are");
    if (address(given.anomaly_map) % alignof(float)) refuse("maps.anomaly_map: is not aligned as floats are");
    if (given.error_map && size != std::pair(given.height, given.width))
        refuse("maps: are " + std::to_string(given.height) + "x" + std::to_string(given.width) +
               " (height x width), the error map is " + std::to_string(size.first) + "x" + std::to_string(size.second));
    if (given.pred_mask && !map_value(engine.exported()))
        throw Failure{Code::unsupported, "maps.pred_mask: the export has no threshold for pixels"};
    return {given.error_map, given.anomaly_map, given.pred_mask};
}

void map(const sprfast_engine* engine, const sprfast_frame* given, sprfast_result* result, const sprfast_maps* maps) {
    not_scored(result);
    const Engine& scorer = engine_of(engine);
    const sprfast_maps wanted = taken(maps, "maps");
    size_of(given, "frame");
    std::optional<Frame> frame;
    std::pair<int, int> size;
    with_frame(given, result, [&](const Frame& understood) {
        size = scorer.input_size(understood.height, understood.width);
        frame = understood;
    });
    if (!frame) return;
    const Maps places = maps_of(scorer, wanted, size);
    give(result, result_of(scorer.score(*frame, places), scorer.exported().schedule.draws()));
}

sprfast_info info_of(const Engine& engine) {
    const Export& exported = engine.exported();
    sprfast_info info{};
    const std::pair<int, int> size = engine.input_size();
    info.height = size.first;
    info.width = size.second;
    const SizePolicy policy = exported.preprocessing.size_policy;
    info.any_size = policy == SizePolicy::fit && !exported.size && !exported.field;
    info.size_policy = policy == SizePolicy::fit       ? SPRFAST_FIT
                       : policy == SizePolicy::stretch ? SPRFAST_STRETCH
                                                       : SPRFAST_REFUSE;
    info.bit_depth = exported.preprocessing.bit_depth;
    info.draws = exported.schedule.draws();
    info.threads = engine.threads();
    info.threshold = exported.threshold.value_or(NONE);
    info.map_threshold = map_value(exported).value_or(NONE);
    info.probe_error = engine.probe_error();
    write_text(info.model_sha256, exported.model_sha256.c_str());
    write_text(info.instruction_set, engine.instruction_set().c_str());
    return info;
}

}  // namespace
}  // namespace sprfast

using namespace sprfast;

int32_t sprfast_open(const char* path, const sprfast_options* options, sprfast_engine** engine,
                     sprfast_error* error) noexcept {
    if (engine) *engine = nullptr;
    return guarded(error, [&] {
        if (!path) refuse("path: is null");
        if (!engine) refuse("engine: is null");
        const sprfast_options given = options ? taken(options, "options") : sprfast_options{};
        *engine = new sprfast_engine{{path, given.threads, given.instruction_set}};
    });
}

void sprfast_close(sprfast_engine* engine) noexcept { delete engine; }

int32_t sprfast_describe(const sprfast_engine* engine, sprfast_info* info, sprfast_error* error) noexcept {
    return guarded(error, [&] {
        size_of(info, "info");
        give(info, info_of(engine_of(engine)));
    });
}

int32_t sprfast_input_size(const sprfast_engine* engine, int32_t height, int32_t width, int32_t* input_height,
                           int32_t* input_width, sprfast_error* error) noexcept {
    return guarded(error, [&] {
        if (!input_height || !input_width) refuse("input_height, input_width: are null");
        const std::pair<int, int> size = engine_of(engine).input_size(height, width);
        *input_height = size.first;
        *input_width = size.second;
    });
}

int32_t sprfast_score(const sprfast_engine* engine, const sprfast_frame* frame, sprfast_result* result,
                      sprfast_error* error) noexcept {
    return sprfast_score_many(engine, frame, 1, result, error);
}

int32_t sprfast_score_many(const sprfast_engine* engine, const sprfast_frame* frames, size_t count,
                           sprfast_result* results, sprfast_error* error) noexcept {
    return guarded(error, [&] { score_many(engine, frames, count, results); });
}

int32_t sprfast_map(const sprfast_engine* engine, const sprfast_frame* frame, sprfast_result* result,
                    const sprfast_maps* maps, sprfast_error* error) noexcept {
    return guarded(error, [&] { map(engine, frame, result, maps); });
}

const char* sprfast_version() noexcept { return SPR_EXPANDED(SPRFAST_VERSION); }

uint32_t sprfast_abi_version() noexcept { return SPRFAST_ABI_VERSION; }
