// From a camera's frame to a verdict, in C++17: sprfast.h with exceptions, containers and an engine that releases
// itself. What is not said here is as there.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "sprfast.h"

namespace sprfast {
inline namespace v1 {

class Error : public std::runtime_error {
public:
    Error(std::int32_t code, const char* text) : std::runtime_error(text), code(code) {}
    const std::int32_t code;
};

struct Maps {
    sprfast_result result;
    std::int32_t height, width;  // of the error map
    std::vector<float> error_map, anomaly_map;
    std::vector<std::uint8_t> pred_mask;  // empty where the export has no threshold for pixels
};

// A frame whose rows lie without gaps in a span, vector or array of bytes or 16-bit values.
template <typename Pixels>
sprfast_frame packed(std::int32_t format, const Pixels& pixels, std::int32_t height, std::int32_t width) {
    const int channels = format == SPRFAST_GREY8 || format == SPRFAST_GREY16 ? 1 : 3;
    const int bytes = format == SPRFAST_GREY16 || format == SPRFAST_RGB16 || format == SPRFAST_BGR16 ? 2 : 1;
    const std::int64_t pitch = std::int64_t{channels} * bytes * width;
    return {sizeof(sprfast_frame), format, pixels.data(), pixels.size() * sizeof *pixels.data(), height, width, pitch};
}

// Every function throws Error for an argument that is not allowed; what is wrong with a frame is in its result.
class Engine {
public:
    explicit Engine(const std::string& path, std::int32_t threads = 0, const char* instruction_set = nullptr) {
        const sprfast_options options{sizeof options, threads, instruction_set};
        sprfast_engine* opened = nullptr;
        checked([&](sprfast_error* error) { return sprfast_open(path.c_str(), &options, &opened, error); });
        engine_.reset(opened);
    }

    sprfast_info info() const {
        auto info = sized<sprfast_info>();
        checked([&](sprfast_error* error) { return sprfast_describe(engine_.get(), &info, error); });
        return info;
    }

    sprfast_result score(const sprfast_frame& frame) const {
        auto result = sized<sprfast_result>();
        checked([&](sprfast_error* error) { return sprfast_score(engine_.get(), &frame, &result, error); });
        return result;
    }

    // Of a span, vector or array of frames.
    template <typename Frames> std::vector<sprfast_result> score_many(const Frames& frames) const {
        std::vector<sprfast_result> results(frames.size(), sized<sprfast_result>());
        checked([&](sprfast_error* error) {
            return sprfast_score_many(engine_.get(), frames.data(), frames.size(), results.data(), error);
        });
        return results;
    }

    // Throws Error for a bad frame too.
    Maps maps(const sprfast_frame& frame) const {
        constexpr std::size_t area = std::size_t{SPRFAST_MAP_SIZE} * SPRFAST_MAP_SIZE;
        const double threshold = info().map_threshold;
        Maps m{sized<sprfast_result>(), 0, 0, {}, std::vector<float>(area), {}};
        m.pred_mask.resize(threshold == threshold ? area : 0);
        checked([&](sprfast_error* error) {
            return sprfast_input_size(engine_.get(), frame.height, frame.width, &m.height, &m.width, error);
        });
        m.error_map.resize(std::size_t(m.height) * std::size_t(m.width));
        const sprfast_maps places{sizeof places,
                                  m.height,
                                  m.width,
                                  0,
                                  m.error_map.data(),
                                  m.anomaly_map.data(),
                                  m.pred_mask.empty() ? nullptr : m.pred_mask.data()};
        checked([&](sprfast_error* error) { return sprfast_map(engine_.get(), &frame, &m.result, &places, error); });
        if (m.result.code) throw Error(m.result.code, m.result.reason);
        return m;
    }

private:
    template <typename T> static T sized() {
        T value{};
        value.size = sizeof value;
        return value;
    }

    template <typename Call> static void checked(Call call) {
        auto error = sized<sprfast_error>();
        if (call(&error) != SPRFAST_OK) throw Error(error.code, error.text);
    }

    struct Close {
        void operator()(sprfast_engine* engine) const { sprfast_close(engine); }
    };
    std::unique_ptr<sprfast_engine, Close> engine_;
};

}  // namespace v1
}  // namespace sprfast
