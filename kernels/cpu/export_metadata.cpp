#include "export_metadata.h"

#include <limits.h>
#include <string.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "base64.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
              "arrays of files are little-endian, and are taken as they are");

namespace sprfast {

using json::Kind;
using json::Value;

namespace {

constexpr int64_t MIN_SIDE = 16;          // pixels at the network's input, of which its halvings leave one
constexpr int64_t MAX_SIDE = 1 << 16;     // that an export may say
constexpr int64_t MAX_FIELD_SIDE = 1024;  // of an error field
constexpr int64_t MAX_SCORES = 1024;      // that a threshold keeps of its calibration
constexpr int64_t MAX_TILE = 4096;        // network pixels
constexpr int64_t MAX_BATCH = 4096;       // images a call

// A value and where it stands, such as `schedule.levels[0].t`.
struct Item {
    std::string name;
    Value value;

    bool null() const { return value.kind() == Kind::null; }

    void require(bool condition, const std::string& allowed) const {
        if (condition) return;
        throw Failure{Code::bad_file,
                      name + ": " + json::printable(value.text()) + " is not allowed, expected " + allowed};
    }

    int64_t integer(int64_t low, int64_t high) const {
        const bool is = value.kind() == Kind::integer && value.integer() >= low && value.integer() <= high;
        require(is, "an integer from " + std::to_string(low) + " to " + std::to_string(high));
        return value.integer();
    }

    double number() const {
        require(value.kind() == Kind::number || value.kind() == Kind::integer, "a number");
        return value.number();
    }

    int choice(std::initializer_list<const char*> allowed) const {
        std::string list;
        int index = 0;
        for (const char* each : allowed) {
            if (value.kind() == Kind::string && value.string() == each) return index;
            list += (index++ ? ", " : "one of ") + std::string(each);
        }
        require(false, list);
        return -1;
    }

    // Of a list, of which `allowed` says how many it may have.
    std::vector<Item> items(size_t least, size_t most, const std::string& allowed) const {
        require(value.kind() == Kind::array && value.size() >= least && value.size() <= most, allowed);
        std::vector<Item> found;
        for (const Value& each : value.items())
            found.push_back({name + "[" + std::to_string(found.size()) + "]", each});
        return found;
    }

    std::pair<int, int> height_and_width(int64_t low, int64_t high) const {
        const std::vector<Item> sides = items(2, 2, "a height and a width");
        return {static_cast<int>(sides[0].integer(low, high)), static_cast<int>(sides[1].integer(low, high))};
    }

    std::vector<float> floats(std::pair<int, int> shape) const {
        const size_t count = static_cast<size_t>(shape.first) * static_cast<size_t>(shape.second);
        const std::string allowed = "base64 of " + std::to_string(shape.first) + " x " + std::to_string(shape.second) +
                                    " little-endian float32 numbers";
        require(value.kind() == Kind::string, allowed);
        const std::string_view text = value.text();
        const std::optional<std::string> bytes = base64_bytes(text.substr(1, text.size() - 2));
        require(bytes && bytes->size() == count * sizeof(float), allowed);
        std::vector<float> found(count);
        memcpy(found.data(), bytes->data(), bytes->size());
        return found;
    }
};

// The members of an object; those that are not asked for are ignored.
class Object {
public:
    explicit Object(const Item& item) : name(item.name) {
        item.require(item.value.kind() == Kind::object, "an object");
        for (json::Value::Member& member : item.value.members()) members.emplace(std::move(member.name), member.value);
    }

    std::optional<Item> find(const char* member) const {
        const auto found = members.find(member);
        if (found == members.end()) return {};
        return Item{name.empty() ? member : name + "." + member, found->second};
    }

    Item operator[](const char* member) const {
        std::optional<Item> found = find(member);
        const std::string place = name.empty() ? member : name + "." + member;
        if (!found) throw Failure{Code::bad_file, "field '" + place + "' is missing"};
        return *found;
    }

    int integer(const char* member, int64_t low, int64_t high, int absent) const {
        const std::optional<Item> found = find(member);
        return found ? static_cast<int>(found->integer(low, high)) : absent;
    }

    double number(const char* member, double absent) const {
        const std::optional<Item> found = find(member);
        return found ? found->number() : absent;
    }

    // Which of the allowed texts it is, the first one where it is absent.
    int choice(const char* member, std::initializer_list<const char*> allowed) const {
        const std::optional<Item> found = find(member);
        return found ? found->choice(allowed) : 0;
    }

private:
    std::string name;
    std::map<std::string, Value> members;
};

int base_width(const Object& network) {
    const int width = network.integer("base_width", 32, 1024, 64);
    if (width % 32) network["base_width"].require(false, "a multiple of 32 up to 1024");
    if (network.integer("embedding_dim", 2, 4096, 256) % 2)
        network["embedding_dim"].require(false, "an even number from 2 to 4096");
    return width;
}

// Whether Python would take it for true.
bool truth(const Value& value) {
    switch (value.kind()) {
        case Kind::null:
            return false;
        case Kind::boolean:
            return value.truth();
        case Kind::integer:
        case Kind::number:
            return value.number() != 0;
        default:
            return value.text().size() > 2;  // not just the quotes or brackets
    }
}

Level level(const Item& item) {
    const Object given(item);
    Level found;
    found.t = given.number("t", found.t);
    found.draws = given.integer("draws", 1, 1024, found.draws);
    found.weight = given.number("weight", found.weight);
    if (!(found.t >= 1e-8 && found.t <= 1)) given["t"].require(false, "a time in [1e-8, 1]");
    if (!(found.weight > 0)) given["weight"].require(false, "a positive number");
    return found;
}

Schedule schedule(const Object& given) {
    Schedule found;
    if (const std::optional<Item> levels = given.find("levels")) {
        found.levels.clear();
        for (const Item& each : levels->items(1, 64, "1 to 64 levels")) found.levels.push_back(level(each));
    }
    const std::optional<Item> antithetic = given.find("antithetic");  // in format 1, which had no `noise`
    found.noise = antithetic && truth(antithetic->value) ? NoiseKind::antithetic : NoiseKind::gaussian;
    if (const std::optional<Item> noise = given.find("noise")) {
        constexpr NoiseKind KINDS[] = {NoiseKind::gaussian, NoiseKind::antithetic, NoiseKind::signs, NoiseKind::none};
        found.noise = KINDS[noise->choice({"gaussian", "antithetic", "signs", "none"})];
    }
    double weights = 0;
    for (const Level& each : found.levels) {
        weights += each.weight;
        const std::string draws =
            "schedule.levels: " + std::to_string(each.draws) + " draws are not allowed, expected ";
        if (found.noise == NoiseKind::antithetic && each.draws % 2)
            throw Failure{Code::bad_file, draws + "an even number for antithetic noise"};
        if (found.noise == NoiseKind::none && each.draws > 1)
            throw Failure{Code::bad_file, draws + "1 without noise, where all draws are the same"};
    }
    if (!std::isfinite(weights)) given["levels"].require(false, "weights with a finite sum");
    return found;
}

Preprocessing preprocessing(const Object& given) {
    Preprocessing found;
    found.size = given.integer("size", 16, 4096, found.size);
    constexpr SizePolicy POLICIES[] = {SizePolicy::fit, SizePolicy::stretch, SizePolicy::refuse};
    found.size_policy = POLICIES[given.choice("size_policy", {"fit", "stretch", "refuse"})];
    found.bit_depth = given.integer("bit_depth", 8, 16, found.bit_depth);
    given.choice("alpha", {"refuse", "composite"});
    found.exif = given.choice("orientation", {"exif", "ignore"}) == 0;
    given.choice("frames", {"refuse", "first"});
    given.choice("profiles", {"refuse", "convert"});
    if (const std::optional<Item> pixels = given.find("max_pixels"))
        found.max_pixels = pixels->integer(1, int64_t{1} << 31);
    return found;
}

// Whether one positive integer, of any length, is at most another.
bool at_most(const Value& a, const Value& b) {
    const std::string_view one = a.text(), other = b.text();
    return one.size() < other.size() || (one.size() == other.size() && one <= other);
}

// That it is a rate strictly between 0 and 1.
void require_rate(const Item& item) {
    const double rate = item.number();
    item.require(rate > 0 && rate < 1, "a rate in (0, 1)");
}

// That they are none or as many as expected, in ascending order.
void check_scores(const Item& scores, int64_t expected) {
    const std::string allowed = "none or " + std::to_string(expected) + " scores";
    const std::vector<Item> items = scores.items(0, static_cast<size_t>(expected), allowed);
    scores.require(items.empty() || items.size() == static_cast<size_t>(expected), allowed);
    double before = -INFINITY;
    for (const Item& each : items) {
        each.require(each.number() >= before, "numbers in ascending order");
        before = each.number();
    }
}

double threshold(const Object& given) {
    const double value = given["value"].number();
    int64_t samples = 0;
    if (given["source"].choice({"calibrated", "manual"}) == 0) {
        samples = given["samples"].integer(1, INT64_MAX);
        require_rate(given["false_reject_rate"]);
        const Item rank = given["rank"];
        rank.integer(1, INT64_MAX);
        rank.require(at_most(rank.value, given["samples"].value), "at most the number of samples");
    } else {
        for (const char* name : {"samples", "false_reject_rate", "rank"}) {
            const std::optional<Item> item = given.find(name);
            const bool rate = *name == 'f';
            if (item) item->require(rate ? item->number() == 0 : item->value.text() == "0", "0 for a manual threshold");
        }
    }
    if (const std::optional<Item> scores = given.find("scores")) check_scores(*scores, std::min(samples, MAX_SCORES));
    return value;
}

double map_threshold(const Object& given) {
    given["samples"].integer(1, INT64_MAX);
    require_rate(given["false_pixel_rate"]);
    return given["value"].number();
}

Field field(const Object& given) {
    const std::pair<int, int> shape = given["shape"].height_and_width(1, MAX_FIELD_SIDE);
    const Item expected = given["expected"];
    Field found{shape.first, shape.second, expected.floats(shape)};
    const auto allowed = [](float each) { return std::isfinite(each) && each > 0; };
    expected.require(std::all_of(found.expected.begin(), found.expected.end(), allowed),
                     "finite, positive float32 numbers");
    given["samples"].integer(1, INT64_MAX);
    return found;
}

Probe probe(const Object& given) {
    const std::pair<int, int> shape = given["shape"].height_and_width(MIN_SIDE, MAX_SIDE);
    const Item map = given["error_map"], tolerance = given["tolerance"];
    Probe found{shape.first, shape.second, map.floats(shape), 0};
    const auto finite = [](float each) { return std::isfinite(each); };
    const auto zero = [](float each) { return each == 0; };
    map.require(std::all_of(found.error_map.begin(), found.error_map.end(), finite), "finite numbers");
    map.require(!std::all_of(found.error_map.begin(), found.error_map.end(), zero), "numbers of which not all are 0");
    found.tolerance = tolerance.number();
    const bool allowed = tolerance.value.kind() == Kind::number && found.tolerance > 0 && found.tolerance < 1;
    tolerance.require(allowed, "a number between 0 and 1");
    return found;
}

std::string sha256(const Item& item) {
    const std::string digits = item.value.kind() == Kind::string ? item.value.string() : "";
    const bool hexadecimal = digits.find_first_not_of("0123456789abcdef") == std::string::npos;
    item.require(digits.size() == 64 && hexadecimal, "64 hexadecimal digits");
    return digits;
}

std::string joined(std::pair<int, int> size) { return std::to_string(size.first) + "x" + std::to_string(size.second); }

// What matters to none who scores, and must be right all the same.
void check_rest(const Object& given) {
    if (const Item quantization = given["quantization"]; !quantization.null()) quantization.choice({"int8", "float8"});
    if (const Item batch = given["batch"]; !batch.null()) batch.integer(1, MAX_BATCH);
    const Item certificates = given["certificates"];
    certificates.require(certificates.value.kind() == Kind::array, "a list of objects");
    for (const Value& each : certificates.value.items())
        certificates.require(each.kind() == Kind::object, "a list of objects");
    for (const char* name : {"trained_on", "category"})
        if (const std::optional<Item> text = given.find(name))
            text->require(text->value.kind() == Kind::string, "a string");
}

}  // namespace

Export read_metadata(const Value& document) {
    const Object given(Item{"", document});
    Export found{};
    found.base_width = base_width(Object(given["network"]));
    const Item precision = given["precision"];
    precision.choice({"float32", "bfloat16", "float16"});
    found.precision = precision.value.string();
    found.schedule = schedule(Object(given["schedule"]));
    found.preprocessing = preprocessing(Object(given["preprocessing"]));
    found.noise_seed = static_cast<uint32_t>(given["noise_seed"].integer(0, UINT32_MAX));
    if (const std::optional<Item> each = given.find("field"); each && !each->null()) found.field = field(Object(*each));
    if (const Item each = given["threshold"]; !each.null()) found.threshold = threshold(Object(each));
    if (const std::optional<Item> each = given.find("map_threshold"); each && !each->null())
        found.map_threshold = map_threshold(Object(*each));
    if (const std::optional<Item> each = given.find("window"); each && !each->null())
        found.window = static_cast<int>(each->integer(1, MAX_WINDOW));
    if (const std::optional<Item> each = given.find("tile"); each && !each->null()) {
        found.tile = static_cast<int>(each->integer(MIN_SIDE, MAX_TILE));
        if (!found.window)
            throw Failure{Code::bad_file, "tile: " + std::to_string(found.tile) +
                                              " needs a window too, since 31 of 256 places are too many of a large "
                                              "image"};
    }
    if (const Item size = given["size"]; !size.null()) found.size = size.height_and_width(MIN_SIDE, MAX_SIDE);
    found.model_sha256 = sha256(given["model_sha256"]);
    found.probe = probe(Object(given["probe"]));
    const std::pair<int, int> probed{found.probe.height, found.probe.width};
    if (found.size && *found.size != probed)
        throw Failure{Code::bad_file, "probe: " + joined(probed) + " pixels (height x width), the export takes " +
                                          joined(*found.size) + " only"};
    check_rest(given);
    return found;
}

}  // namespace sprfast
