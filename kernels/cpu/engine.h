// From an export's file to an engine, and from frames to verdicts; what sprfast/engine/predictor.py is in Python.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "export_file.h"
#include "failure.h"
#include "lanczos.h"
#include "network.h"
#include "pixels.h"
#include "recent.h"
#include "score.h"

namespace sprfast {

struct Result {
    Verdict verdict = Verdict::error;
    double score = 0;          // NaN where there is none
    std::optional<Code> code;  // of what is wrong with the frame
    std::string reason;        // why the verdict is ERROR
};

// Where maps of one frame go; each may be null.
struct Maps {
    float* error_map = nullptr;    // of the size of the network's input
    float* anomaly_map = nullptr;  // (256, 256)
    uint8_t* pred_mask = nullptr;  // (256, 256); null where the export has no threshold for pixels
};

// Any thread may call it, at the same time as others, in a child of a fork too.
class Engine {
public:
    // Reads the file and computes its probe image. threads: 1 to MOST_THREADS; 0: what OMP_NUM_THREADS says, else the
    // processors that this process may use. instruction_set: null or empty: what SPRFAST_INSTRUCTION_SET says, else the
    // best. Throws Failure.
    Engine(const std::string& path, int threads, const char* instruction_set);

    const Export& exported() const { return export_; }  // without its arrays
    int threads() const { return threads_; }
    const std::string& instruction_set() const { return instruction_set_; }
    double probe_error() const { return probe_error_; }

    // Height and width of the network's input that any size policy takes.
    std::pair<int, int> input_size() const;
    // Of frames of this size. Throws Failure where the export does not take them.
    std::pair<int, int> input_size(int height, int width) const;

    // A result for each frame, in their order; its bits do not depend on the others.
    std::vector<Result> score(const std::vector<Frame>& frames) const;
    // One frame, with its maps where there is no failure.
    Result score(const Frame& frame, const Maps& maps) const;

private:
    static constexpr size_t RECENT_SIZES = 4;  // whose noise is kept

    std::vector<Result> score(const std::vector<Frame>& frames, const Maps& maps) const;
    void score_part(const std::vector<Frame>& frames, const std::vector<size_t>& indices, std::pair<int, int> size,
                    const Maps& maps, std::vector<Result>& results) const;
    void score_together(const std::vector<Frame>& frames, const std::vector<size_t>& indices, std::pair<int, int> size,
                        const Maps& maps, std::vector<Result>& results) const;
    // Of the tiles of images of this size, of which an image that is no larger is the only one.
    std::pair<int, int> tile_size(std::pair<int, int> size) const;
    void network(const float* pixels, int images, std::pair<int, int> size, float* errors, float* maps) const;
    void from_tiles(const float* pixels, std::pair<int, int> size, float* errors, float* map) const;
    Result result(std::pair<int, int> size, const float* errors, const float* map) const;
    std::shared_ptr<const std::vector<float>> drawn(int height, int width) const;  // (D, 3, height, width)
    double self_test() const;

    std::string instruction_set_;
    const spr_operators* operators_;
    int threads_;
    Export export_;
    std::unique_ptr<const Network> network_;
    mutable Recent<std::vector<float>> drawn_{RECENT_SIZES};
    mutable Filters filters_;
    double probe_error_;
};

}  // namespace sprfast
