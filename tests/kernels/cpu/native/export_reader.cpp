// A C interface for tests of what reads an export: functions that Python calls through ctypes.
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <map>
#include <memory>
#include <new>
#include <sstream>

#include "base64.h"
#include "export_file.h"
#include "json.h"
#include "sha256.h"

using sprfast::Export;
using sprfast::Failure;
namespace json = sprfast::json;

extern "C" int64_t narrowing;

namespace {

void copy(const std::string& text, char* into, size_t size) { snprintf(into, size, "%s", text.c_str()); }

// A value with strings as hexadecimal bytes, and with the bits of numbers that are no integers.
void describe(const json::Value& value, std::ostream& out) {
    char digits[20];
    const double number = value.kind() == json::Kind::number ? value.number() : 0;
    uint64_t bits;
    memcpy(&bits, &number, sizeof bits);
    switch (value.kind()) {
        case json::Kind::string:
            out << 's';
            for (const unsigned char c : value.string()) {
                snprintf(digits, sizeof digits, "%02x", c);
                out << digits;
            }
            break;
        case json::Kind::number:
            snprintf(digits, sizeof digits, "n%016llx", static_cast<unsigned long long>(bits));
            out << digits;
            break;
        case json::Kind::array:
            out << '[';
            for (const json::Value& item : value.items()) describe(item, out << ' ');
            out << ']';
            break;
        case json::Kind::object:
            out << '{';
            for (const json::Value::Member& member : value.members()) {
                describe(member.key, out << ' ');
                describe(member.value, out << ' ');
            }
            out << '}';
            break;
        default:
            out << (value.text() == "-0" ? "0" : value.text());  // as Python has it
    }
}

// One line a field.
std::string describe(const Export& found) {
    std::ostringstream out;
    out << std::hexfloat << "base_width " << found.base_width << "\nnoise " << static_cast<int>(found.schedule.noise);
    for (const sprfast::Level& level : found.schedule.levels)
        out << "\nlevel " << level.t << ' ' << level.draws << ' ' << level.weight;
    const sprfast::Preprocessing& pixels = found.preprocessing;
    out << "\npreprocessing " << pixels.size << ' ' << static_cast<int>(pixels.size_policy) << ' ' << pixels.bit_depth
        << ' ' << pixels.exif << ' ' << pixels.max_pixels << "\nnoise_seed " << found.noise_seed;
    if (found.field) out << "\nfield " << found.field->height << ' ' << found.field->width;
    if (found.threshold) out << "\nthreshold " << *found.threshold;
    if (found.tile) out << "\ntile " << found.tile;
    if (found.window) out << "\nwindow " << found.window;
    if (found.map_threshold) out << "\nmap_threshold " << *found.map_threshold;
    if (found.size) out << "\nsize " << found.size->first << ' ' << found.size->second;
    out << "\nmodel_sha256 " << found.model_sha256 << "\nprobe " << found.probe.height << ' ' << found.probe.width
        << ' ' << found.probe.tolerance << '\n';
    return out.str();
}

struct Opened {
    Export found;
    std::string description;
};

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED void narrow(int64_t divisor) { narrowing = divisor; }

// Null where the file is refused; `message` says why.
EXPORTED Opened* open_export(const char* path, char* message, size_t size) try {
    Export found = sprfast::read_export(path);
    std::string description = describe(found);
    return new Opened{std::move(found), std::move(description)};
} catch (const Failure& failure) {
    copy(std::to_string(static_cast<int>(failure.code)) + " " + failure.text, message, size);
    return nullptr;
} catch (const std::bad_alloc&) {
    copy("out of memory", message, size);
    return nullptr;
}

EXPORTED void close_export(Opened* opened) { delete opened; }

EXPORTED const char* description(const Opened* opened) { return opened->description.c_str(); }

// An array by its name, or `field` or `probe`; its length is -1 where there is none.
EXPORTED const float* numbers(const Opened* opened, const char* name, int64_t* count) {
    const Export& found = opened->found;
    const std::vector<float>* array = nullptr;
    if (!strcmp(name, "field"))
        array = found.field ? &found.field->expected : nullptr;
    else if (!strcmp(name, "probe"))
        array = &found.probe.error_map;
    else if (found.arrays.count(name))
        array = &found.arrays.at(name);
    *count = array ? static_cast<int64_t>(array->size()) : -1;
    return array ? array->data() : nullptr;
}

EXPORTED int64_t array_count(const Opened* opened) { return static_cast<int64_t>(opened->found.arrays.size()); }

// What a document holds, unless `size` is 0; 0 where it is refused, then `text` says why.
EXPORTED int read_json(const char* document, size_t length, int depth, int canonical, char* text, size_t size) try {
    const json::Spelling spelling = canonical ? json::Spelling::canonical : json::Spelling::any;
    const json::Document read("the text", std::string(document, length), depth, spelling);
    std::ostringstream out;
    if (size) describe(read.root(), out);
    copy(out.str(), text, size);
    return 1;
} catch (const Failure& failure) {
    copy(failure.text, text, size);
    return 0;
}

// In pieces of so many bytes.
EXPORTED void sha256(const char* data, size_t length, size_t piece, char* digest) {
    sprfast::Sha256 hash;
    for (size_t at = 0; at < length; at += piece) hash.update(data + at, length - at < piece ? length - at : piece);
    copy(hash.digest(), digest, 65);
}

// The number of bytes, -1 where it is not base64.
EXPORTED int64_t base64(const char* text, size_t length, char* bytes) {
    const auto found = sprfast::base64_bytes(std::string_view(text, length));
    if (!found) return -1;
    memcpy(bytes, found->data(), found->size());
    return static_cast<int64_t>(found->size());
}
