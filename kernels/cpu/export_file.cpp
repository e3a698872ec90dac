// A safetensors file with one array of float32 numbers a name, and with a manifest in its header: JSON text that holds
// the metadata, shape, type and hash of every array, and a hash of itself. The hashes notice damage and careless edits;
// they do not protect against a malicious author, who can compute them anew.
#include "export_file.h"

#include <math.h>
#include <string.h>

#include <algorithm>

#include "export_metadata.h"
#include "folded.h"
#include "json.h"
#include "regular_file.h"
#include "sha256.h"

namespace sprfast {

using json::Kind;
using json::quoted;
using json::Value;

namespace {

constexpr int64_t FORMAT_VERSION = 3;
constexpr uint64_t MAX_BYTES = uint64_t{1} << 31;  // of the file
constexpr uint64_t MAX_HEADER_BYTES = 16 << 20;
constexpr size_t LENGTH_BYTES = 8;   // of the header's length, before it
constexpr int HEADER_DEPTH = 127;    // as the safetensors library reads it
constexpr int MANIFEST_DEPTH = 900;  // about where Python's own reader gives up

using Members = std::map<std::string, Value>;

[[noreturn]] void fail(const std::string& text) { throw Failure{Code::bad_file, text}; }

Members members_of(const Value& value) {
    Members found;
    for (Value::Member& member : value.members()) found.emplace(std::move(member.name), member.value);
    return found;
}

// A member, which must be of this kind; `of` says what it is a member of.
Value field(const Members& members, const char* name, Kind kind, const std::string& of = "") {
    const auto found = members.find(name);
    const std::string field = "field " + quoted(name) + of;
    if (found == members.end()) fail(field + " is missing");
    const Kind given = found->second.kind();
    if (given != kind) fail(field + " is " + name_of(given) + ", expected " + name_of(kind));
    return found->second;
}

std::string read_header(RegularFile& file) {
    if (file.size() > MAX_BYTES)
        fail(std::to_string(file.size()) + " bytes, an export has up to " + std::to_string(MAX_BYTES));
    uint8_t begin[LENGTH_BYTES + 1] = {};
    const size_t got = file.read(begin, sizeof begin);
    if (got && begin[0] == 8 && begin[LENGTH_BYTES] != '{')  // ONNX's field ir_version
        fail("is an ONNX file, which is not read here; export the model with `--to plan`");
    uint64_t length = 0;
    for (size_t i = LENGTH_BYTES; i-- > 0;) length = length << 8 | begin[i];
    const uint64_t behind = file.size() < LENGTH_BYTES ? 0 : file.size() - LENGTH_BYTES;
    std::string text;
    if (got == sizeof begin && length >= 2 && length <= std::min(MAX_HEADER_BYTES, behind)) {
        text.resize(length);
        text[0] = static_cast<char>(begin[LENGTH_BYTES]);
        if (file.read(text.data() + 1, length - 1) == length - 1) return text;
    }
    fail("not a safetensors file, or cut short (a header of " + std::to_string(length) + " bytes in a file of " +
         std::to_string(file.size()) + ", allowed up to " + std::to_string(MAX_HEADER_BYTES) + ")");
}

// The manifest's text, from the entry of the header that only holds texts.
std::string manifest_text(const Members& header) {
    const Members metadata = members_of(field(header, "__metadata__", Kind::object));
    field(metadata, "sprfast", Kind::string);
    for (const auto& [name, value] : metadata)
        if (value.kind() != Kind::string) fail("field " + quoted(name) + " of the header is not a string");
    return metadata.at("sprfast").string();
}

// The SHA-256 of a canonical object without its member `sha256`, which spells it.
std::string hash_without(std::string_view text, const Value& sha256) {
    static constexpr std::string_view KEY = "\"sha256\":";
    size_t begin = sha256.begin() - KEY.size(), end = sha256.end();
    if (text.substr(begin, KEY.size()) != KEY) return "";
    // one of the commas around it goes too
    if (text[end] == ',')
        end++;
    else if (text[begin - 1] == ',')
        begin--;
    Sha256 hash;
    hash.update(text.data(), begin);
    hash.update(text.data() + end, text.size() - end);
    return hash.digest();
}

// That the manifest is one of an export, of a version that is known, and whole.
Members verified(const json::Document& document) {
    if (document.root().kind() != Kind::object) fail("the manifest is not an object");
    Members members = members_of(document.root());
    const std::string kind = field(members, "kind", Kind::string).string();
    if (kind == "model") fail("is a model file, not an export; run `sprfast export` with `--to plan` on it first");
    if (kind == "checkpoint") fail("is a checkpoint of a training, not an export");
    const Value version = field(members, "format_version", Kind::integer);
    if (version.integer() < 1 || version.integer() > FORMAT_VERSION)
        fail("has format " + std::string(version.text()) + ", this one reads up to " + std::to_string(FORMAT_VERSION) +
             ": upgrade sprfast");
    const auto sha256 = members.find("sha256");
    if (sha256 == members.end() || sha256->second.kind() != Kind::string ||
        sha256->second.string() != hash_without(document.text(), sha256->second))
        fail("the manifest does not match its own sha256, the file is damaged");
    if (kind != "plan") fail("is a " + quoted(kind) + " file, expected a 'plan' file");
    return members;
}

// An array's place in the data, and what it must be.
struct Place {
    std::string name, sha256;
    uint64_t begin, end;  // bytes
};

bool equals(const Value& value, int64_t number) {  // as Python compares
    if (value.kind() == Kind::boolean) return number == (value.truth() ? 1 : 0);
    if (value.kind() == Kind::number) return value.number() == static_cast<double>(number);
    return value.kind() == Kind::integer && value.integer() == number;
}

// Whether a list has these items. As a size, each must be an integer.
bool is_shape(const Value& value, const std::vector<int64_t>& shape, bool sizes) {
    if (value.size() != shape.size()) return false;
    const std::vector<Value> items = value.items();
    for (size_t i = 0; i < items.size(); i++)
        if (!equals(items[i], shape[i]) || (sizes && items[i].kind() != Kind::integer)) return false;
    return true;
}

std::string described(const std::vector<int64_t>& shape) {
    std::string text;
    for (const int64_t side : shape) text += (text.empty() ? "[" : ", ") + std::to_string(side);
    return text + "]";
}

bool is_offset(const Value& value) { return value.kind() == Kind::integer && value.text()[0] != '-'; }

// From what the header says of an array and what the manifest does; both must be right.
Place place_of(const std::string& name, const std::vector<int64_t>& shape, const Value& entry, const Value& claimed) {
    const std::string of = " of tensor " + quoted(name);
    const auto require = [&](bool condition, const char* what, const Value& value, const std::string& expected) {
        if (!condition) fail(what + of + " is " + json::printable(value.text()) + ", expected " + expected);
    };
    uint64_t bytes = sizeof(float);
    for (const int64_t side : shape) bytes *= static_cast<uint64_t>(side);
    require(entry.kind() == Kind::object, "the entry", entry, "an object");
    require(claimed.kind() == Kind::object, "the entry", claimed, "an object");
    const Members said = members_of(entry), meant = members_of(claimed);

    const Value dtype = field(said, "dtype", Kind::string, of), type = field(meant, "dtype", Kind::string, of);
    require(dtype.string() == "F32", "dtype", dtype, "F32");
    require(type.string() == "float32", "dtype", type, "float32");
    const Value sides = field(said, "shape", Kind::array, of), same = field(meant, "shape", Kind::array, of);
    require(is_shape(sides, shape, true), "shape", sides, described(shape));
    require(is_shape(same, shape, false), "shape", same, described(shape));
    const Value place = field(said, "data_offsets", Kind::array, of);
    const std::string allowed = "a place of " + std::to_string(bytes) + " bytes";
    require(place.size() == 2, "data_offsets", place, allowed);
    const Value first = place.items()[0], last = place.items()[1];
    require(is_offset(first) && is_offset(last), "data_offsets", place, allowed);
    Place found{name, field(meant, "sha256", Kind::string, of).string(), static_cast<uint64_t>(first.integer()),
                static_cast<uint64_t>(last.integer())};
    require(found.begin <= found.end && found.end - found.begin == bytes, "data_offsets", place, allowed);
    return found;
}

void require_names(const Members& found, const std::map<std::string, std::vector<int64_t>>& expected) {
    for (const auto& each : expected)
        if (!found.count(each.first)) fail("tensor " + quoted(each.first) + " is missing");
    for (const auto& each : found)
        if (!expected.count(each.first)) fail("tensor " + quoted(each.first) + " is not one of an export");
}

// Where the arrays lie, in the order of the file, which they fill without holes.
std::vector<Place> places_of(const Members& header, const Members& claimed,
                             const std::map<std::string, std::vector<int64_t>>& shapes, uint64_t data_bytes) {
    Members entries = header;
    entries.erase("__metadata__");
    require_names(entries, shapes);
    require_names(claimed, shapes);
    std::vector<Place> found;
    for (const auto& [name, shape] : shapes) found.push_back(place_of(name, shape, entries.at(name), claimed.at(name)));
    std::sort(found.begin(), found.end(), [](const Place& a, const Place& b) { return a.begin < b.begin; });
    uint64_t end = 0;
    for (const Place& each : found) {
        if (each.begin != end)
            fail("tensor " + quoted(each.name) + " does not follow the one before: the file is damaged");
        end = each.end;
    }
    if (end != data_bytes)
        fail("the file is damaged, its tensors have " + std::to_string(end) + " bytes where " +
             std::to_string(data_bytes) + " are in the file");
    return found;
}

std::vector<float> read_array(RegularFile& file, const Place& place) {
    std::vector<float> numbers((place.end - place.begin) / sizeof(float));
    const size_t bytes = numbers.size() * sizeof(float);
    if (file.read(numbers.data(), bytes) != bytes) fail("cut short while it was read");
    Sha256 hash;
    hash.update(numbers.data(), bytes);
    if (hash.digest() != place.sha256)
        fail("tensor " + quoted(place.name) + " has another sha256 than the manifest says: the file is damaged");
    for (const float each : numbers)
        if (!isfinite(each)) fail("tensor " + quoted(place.name) + " holds NaN or infinity, expected finite numbers");
    return numbers;
}

// Everything is checked before memory is taken for the arrays.
Export read_checked(RegularFile& file) {
    const json::Document header("the header", read_header(file), HEADER_DEPTH, json::Spelling::any);
    if (header.root().kind() != Kind::object)
        fail("the header is " + std::string(name_of(header.root().kind())) + ", expected an object");
    const Members entries = members_of(header.root());
    const json::Document text("the manifest", manifest_text(entries), MANIFEST_DEPTH, json::Spelling::canonical);
    const Members manifest = verified(text);
    const Members claimed = members_of(field(manifest, "tensors", Kind::object));
    Export found = read_metadata(field(manifest, "document", Kind::object));
    const auto shapes = folded_shapes(found.base_width, found.schedule.draws());
    const uint64_t data_bytes = file.size() - LENGTH_BYTES - header.text().size();
    for (const Place& each : places_of(entries, claimed, shapes, data_bytes))
        found.arrays.emplace(each.name, read_array(file, each));
    char more;
    if (file.read(&more, 1)) fail("grew while it was read");
    return found;
}

}  // namespace

Export read_export(const std::string& path) {
    try {
        RegularFile file(path);
        return read_checked(file);
    } catch (const Failure& failure) {
        throw Failure{failure.code, path + ": " + failure.text};
    }
}

}  // namespace sprfast
