#include "engine.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <limits>
#include <map>
#include <new>

#include "dispatch.h"
#include "noise.h"

namespace sprfast {

namespace {

constexpr int TOGETHER = 16;  // tiles of an image that go through the network together
constexpr double NONE = std::numeric_limits<double>::quiet_NaN();

std::string described(std::pair<int, int> size) {
    return std::to_string(size.first) + "x" + std::to_string(size.second);
}

int available_processors() {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? std::max(1, CPU_COUNT(&set)) : 1;
}

// What OMP_NUM_THREADS says, where that begins with a number that is allowed, else the processors.
int default_threads() {
    const char* given = getenv("OMP_NUM_THREADS");
    char* end = nullptr;
    const long count = given ? strtol(given, &end, 10) : 0;
    const bool whole = given && (*end == 0 || *end == ',' || *end == ' ');
    return whole && 1 <= count && count <= MOST_THREADS ? static_cast<int>(count) : available_processors();
}

std::string available_sets(const char* precision) {
    std::string names;
    for (const char* name : INSTRUCTION_SETS)
        if (operators_for(name, precision)) names += (names.empty() ? "" : ", ") + std::string(name);
    return names;
}

// The name of the instruction set that is asked for, by argument or environment, else of the best.
std::string chosen_set(const char* given, const char* precision) {
    if (!strcmp(precision, "float16"))
        throw Failure{Code::unsupported, "precision: the CPU kernels compute float32 or bfloat16, not float16"};
    const bool argument = given && *given;
    const char* named = argument ? given : getenv("SPRFAST_INSTRUCTION_SET");
    if (!named || !*named) {
        if (!strcmp(precision, "bfloat16") && amx_missing())
            throw Failure{Code::unsupported, std::string("precision: bfloat16 is for processors with AMX, and ") +
                                                 amx_missing() + "; SPRFAST_INSTRUCTION_SET set to one of " +
                                                 available_sets(precision) +
                                                 " computes it in plain loops, more slowly than float32"};
        named = nullptr;
    }
    for (const char* name : INSTRUCTION_SETS)
        if (operators_for(name, precision) && (!named || !strcmp(named, name))) return name;
    throw Failure{Code::unsupported, std::string(argument ? "instruction_set" : "SPRFAST_INSTRUCTION_SET") + " is '" +
                                         named + "', choose from " + available_sets(precision)};
}

Result failed(const Failure& failure) {
    Result result;
    result.score = NONE;
    result.reason = "frame: " + failure.text;
    result.code = failure.code;
    return result;
}

std::unique_ptr<const Network> network_of(const Export& exported, const spr_operators* operators) {
    std::map<std::string, const float*> arrays;
    for (const auto& [name, values] : exported.arrays) arrays[name] = values.data();
    return std::make_unique<const Network>(exported.base_width, exported.schedule.draws(), exported.window, arrays,
                                           operators);
}

// Where tiles of `tile` pixels begin on a side of `size`, as in sprfast/method/tiles.py.
std::vector<int> starts(int size, int tile) {
    const int stride = tile * 3 / 4, steps = (std::max(0, size - tile) + stride - 1) / stride;
    std::vector<int> found{0};
    for (int i = 1; i <= steps; i++) found.push_back(static_cast<int>(static_cast<int64_t>(i) * (size - tile) / steps));
    return found;
}

}  // namespace

Engine::Engine(const std::string& path, int threads, const char* instruction_set)
    : threads_(threads ? threads : default_threads()) {
    if (threads_ < 1 || threads_ > MOST_THREADS)
        throw Failure{Code::invalid_argument, "threads: " + std::to_string(threads) +
                                                  " is not allowed, expected 1 to " + std::to_string(MOST_THREADS) +
                                                  ", or 0"};
    export_ = read_export(path);
    instruction_set_ = chosen_set(instruction_set, export_.precision.c_str());
    operators_ = operators_for(instruction_set_.c_str(), export_.precision.c_str());
    network_ = network_of(export_, operators_);
    export_.arrays.clear();  // the network has them in a form of its own
    try {
        probe_error_ = self_test();
    } catch (const Failure& failure) {
        throw Failure{failure.code, path + ": " + failure.text};
    }
}

double Engine::self_test() const {
    const auto [height, width] = std::pair(export_.probe.height, export_.probe.width);
    const std::vector<float> image = probe_image(height, width);
    std::vector<float> errors(image.size() / 3), map(MAP_SIZE * MAP_SIZE);
    network(image.data(), 1, {height, width}, errors.data(), map.data());
    return check_probe(export_, errors.data());
}

std::pair<int, int> Engine::input_size() const {
    if (export_.size) return *export_.size;
    if (export_.field) return {export_.field->height, export_.field->width};
    return {export_.preprocessing.size, export_.preprocessing.size};
}

std::pair<int, int> Engine::input_size(int height, int width) const {
    const std::pair<int, int> size = network_size(height, width, export_.preprocessing);
    const bool fits = !export_.size || tile_size(size) == *export_.size;
    if (!fits || (export_.field && size != std::pair(export_.field->height, export_.field->width)))
        throw Failure{Code::bad_image,
                      described(size) + " pixels (height x width) at the network's input, this export" +
                          (export_.field ? "'s error field was fitted at " : " takes only ") + described(input_size())};
    return size;
}

std::pair<int, int> Engine::tile_size(std::pair<int, int> size) const {
    if (!export_.tile) return size;
    return {std::min(size.first, export_.tile), std::min(size.second, export_.tile)};
}

// Error maps and anomaly maps of images of a tile's size or, without tiles, of any.
void Engine::network(const float* pixels, int images, std::pair<int, int> size, float* errors, float* maps) const {
    const auto [height, width] = size;
    network_->maps(pixels, images, height, width, drawn(height, width)->data(), errors, maps, threads_);
}

// Error map and anomaly map of an image that has tiles.
void Engine::from_tiles(const float* pixels, std::pair<int, int> size, float* errors, float* map) const {
    const auto [height, width] = size;
    const auto [rows, columns] = tile_size(size);
    const size_t plane = static_cast<size_t>(height) * width, area = static_cast<size_t>(rows) * columns;
    std::vector<std::pair<int, int>> places;
    for (const int y : starts(height, rows))
        for (const int x : starts(width, columns)) places.emplace_back(y, x);
    std::vector<float> tiles(TOGETHER * 3 * area), found(TOGETHER * area), maps(TOGETHER * MAP_SIZE * MAP_SIZE);
    std::vector<float> total(plane), count(plane);
    for (size_t first = 0; first < places.size(); first += TOGETHER) {
        const size_t tiled = std::min<size_t>(TOGETHER, places.size() - first);
        for (size_t i = 0; i < tiled; i++) {
            const auto [top, left] = places[first + i];
            for (int c = 0; c < 3; c++)
                for (int y = 0; y < rows; y++)
                    std::copy_n(pixels + c * plane + static_cast<size_t>(top + y) * width + left, columns,
                                tiles.data() + (i * 3 + c) * area + static_cast<size_t>(y) * columns);
        }
        network(tiles.data(), static_cast<int>(tiled), {rows, columns}, found.data(), maps.data());
        for (size_t i = 0; i < tiled; i++) {
            const auto [top, left] = places[first + i];
            for (size_t y = 0; y < static_cast<size_t>(rows); y++)
                for (size_t x = 0; x < static_cast<size_t>(columns); x++) {
                    total[(top + y) * width + left + x] += found[i * area + y * columns + x];
                    count[(top + y) * width + left + x] += 1;
                }
        }
    }
    for (size_t i = 0; i < plane; i++) total[i] /= count[i];
    std::copy(total.begin(), total.end(), errors);
    const std::vector<float> smooth = anomaly_map(total, height, width, export_.window);
    std::copy(smooth.begin(), smooth.end(), map);
}

std::shared_ptr<const std::vector<float>> Engine::drawn(int height, int width) const {
    return drawn_.get({height, width}, [&] {
        std::vector<float> noise(static_cast<size_t>(export_.schedule.draws()) * 3 * height * width);
        draws(export_.schedule, height, width, export_.noise_seed, noise.data());
        return noise;
    });
}

Result Engine::result(std::pair<int, int> size, const float* errors, const float* map) const {
    Result result;
    result.score = sprfast::score(export_, errors, size.first, size.second, map);
    result.verdict = verdict(result.score, export_.threshold);
    result.reason = reason(result.score, export_.threshold);
    return result;
}

std::vector<Result> Engine::score(const std::vector<Frame>& frames) const { return score(frames, Maps{}); }

Result Engine::score(const Frame& frame, const Maps& maps) const {
    return std::move(score(std::vector<Frame>{frame}, maps).front());
}

std::vector<Result> Engine::score(const std::vector<Frame>& frames, const Maps& maps) const {
    std::vector<Result> results(frames.size());
    std::map<std::pair<int, int>, std::vector<size_t>> by_size;
    for (size_t i = 0; i < frames.size(); i++) try {
            by_size[input_size(frames[i].height, frames[i].width)].push_back(i);
        } catch (const Failure& failure) {
            results[i] = failed(failure);
        }
    const size_t together = std::max(1, SAMPLES / export_.schedule.draws());
    for (const auto& [size, waiting] : by_size)
        for (size_t first = 0; first < waiting.size(); first += together) {
            const auto begin = waiting.begin() + static_cast<ptrdiff_t>(first);
            const auto end = begin + static_cast<ptrdiff_t>(std::min(together, waiting.size() - first));
            score_part(frames, {begin, end}, size, maps, results);
        }
    return results;
}

// Those frames of `indices`, all of one network size; where there is no memory for all at once, one after the other.
void Engine::score_part(const std::vector<Frame>& frames, const std::vector<size_t>& indices, std::pair<int, int> size,
                        const Maps& maps, std::vector<Result>& results) const {
    try {
        score_together(frames, indices, size, maps, results);
    } catch (const std::bad_alloc&) {
        if (indices.size() == 1)
            results[indices[0]] = failed({Code::out_of_memory, "no memory to score a frame of this size"});
        else
            for (const size_t index : indices) score_part(frames, {index}, size, maps, results);
    }
}

void Engine::score_together(const std::vector<Frame>& frames, const std::vector<size_t>& indices,
                            std::pair<int, int> size, const Maps& maps, std::vector<Result>& results) const {
    const size_t plane = static_cast<size_t>(size.first) * size.second, area = MAP_SIZE * MAP_SIZE;
    std::vector<float> pixels(indices.size() * 3 * plane);
    std::vector<size_t> good;
    for (const size_t index : indices) try {
            network_input(frames[index], export_.preprocessing, operators_, filters_,
                          pixels.data() + good.size() * 3 * plane);
            good.push_back(index);
        } catch (const Failure& failure) {
            results[index] = failed(failure);
        }
    if (good.empty()) return;
    std::vector<float> errors(good.size() * plane), anomalies(good.size() * area);
    if (tile_size(size) == size)
        network(pixels.data(), static_cast<int>(good.size()), size, errors.data(), anomalies.data());
    else
        for (size_t i = 0; i < good.size(); i++)
            from_tiles(pixels.data() + i * 3 * plane, size, errors.data() + i * plane, anomalies.data() + i * area);
    for (size_t i = 0; i < good.size(); i++)
        results[good[i]] = result(size, errors.data() + i * plane, anomalies.data() + i * area);
    if (maps.error_map) std::copy_n(errors.data(), plane, maps.error_map);
    if (maps.anomaly_map) std::copy_n(anomalies.data(), area, maps.anomaly_map);
    if (maps.pred_mask) pred_mask(anomalies.data(), map_value(export_).value(), maps.pred_mask);
}

}  // namespace sprfast
