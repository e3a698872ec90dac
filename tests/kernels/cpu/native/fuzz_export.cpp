// Damaged exports for the reader: each is refused with a text that begins with the file's name, or gives an export in
// which everything is as it must be.
//
// With clang and -fsanitize=fuzzer this is a target of libFuzzer, whose inputs are whole files. With -DDRIVER it is a
// program: `fuzz_export SEED NUMBER FILE...` damages the files NUMBER times in turn, and prints every text of a refusal
// with how often it was given. Both change files as bytes and, since most such changes only spoil a hash, as what they
// hold, with new hashes.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <fstream>
#include <iterator>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "export_file.h"
#include "folded.h"
#include "json.h"
#include "sha256.h"

using sprfast::Export;
using sprfast::Failure;
namespace json = sprfast::json;

extern "C" int64_t narrowing;

namespace {

#define REQUIRE(condition) \
    if (!(condition)) fprintf(stderr, "%d: %s\n", __LINE__, #condition), abort()

// ---- What must hold of whatever is read.

std::string in_memory(const uint8_t* data, size_t size) {
    static const int descriptor = memfd_create("export", 0);
    REQUIRE(ftruncate(descriptor, 0) == 0 && pwrite(descriptor, data, size, 0) == static_cast<ssize_t>(size));
    return "/proc/self/fd/" + std::to_string(descriptor);
}

void require_sane(const Export& found) {
    REQUIRE(found.base_width >= 32 && found.base_width <= 1024 && found.base_width % 32 == 0);
    const auto shapes = sprfast::folded_shapes(found.base_width, found.schedule.draws());
    REQUIRE(found.arrays.size() == shapes.size());
    for (const auto& [name, shape] : shapes) {
        size_t count = 1;
        for (const int64_t side : shape) count *= static_cast<size_t>(side);
        REQUIRE(found.arrays.count(name) && found.arrays.at(name).size() == count);
        for (const float each : found.arrays.at(name)) REQUIRE(isfinite(each));
    }
    REQUIRE(!found.schedule.levels.empty() && found.schedule.levels.size() <= 64);
    for (const sprfast::Level& level : found.schedule.levels) {
        REQUIRE(level.t >= 1e-8 && level.t <= 1 && level.draws >= 1 && level.draws <= 1024);
        REQUIRE(level.weight > 0 && isfinite(level.weight));
        REQUIRE(found.schedule.noise != sprfast::NoiseKind::antithetic || level.draws % 2 == 0);
        REQUIRE(found.schedule.noise != sprfast::NoiseKind::none || level.draws == 1);
    }
    const sprfast::Preprocessing& pixels = found.preprocessing;
    REQUIRE(pixels.size >= 16 && pixels.size <= 4096 && pixels.bit_depth >= 8 && pixels.bit_depth <= 16);
    REQUIRE(pixels.max_pixels >= 1 && pixels.max_pixels <= int64_t{1} << 31);
    if (found.field) {
        const sprfast::Field& field = *found.field;
        REQUIRE(field.height >= 1 && field.height <= 1024 && field.width >= 1 && field.width <= 1024);
        REQUIRE(field.expected.size() == static_cast<size_t>(field.height) * static_cast<size_t>(field.width));
        for (const float each : field.expected) REQUIRE(isfinite(each) && each > 0);
    }
    REQUIRE(!found.threshold || isfinite(*found.threshold));
    REQUIRE(!found.map_threshold || isfinite(*found.map_threshold));
    const sprfast::Probe& probe = found.probe;
    REQUIRE(probe.height >= 16 && probe.width >= 16 && probe.tolerance > 0 && probe.tolerance < 1);
    REQUIRE(probe.error_map.size() == static_cast<size_t>(probe.height) * static_cast<size_t>(probe.width));
    REQUIRE(!found.size || *found.size == std::pair(probe.height, probe.width));
    REQUIRE(found.model_sha256.size() == 64);
}

// Why a file is refused, empty where it is not.
std::string refusal(const uint8_t* data, size_t size) {
    narrowing = 32;
    const std::string path = in_memory(data, size);
    try {
        require_sane(sprfast::read_export(path));
        return "";
    } catch (const Failure& failure) {
        REQUIRE(failure.code == sprfast::Code::bad_file && failure.text.compare(0, path.size() + 2, path + ": ") == 0);
        for (const char c : failure.text) REQUIRE(c >= ' ' && c <= '~');
        return failure.text.substr(path.size() + 2);
    }
}

// ---- Changes.

using Random = std::mt19937;

size_t below(Random& random, size_t bound) { return bound ? random() % bound : 0; }

const char* const LITERALS[] = {"0",
                                "1",
                                "-1",
                                "2",
                                "16",
                                "32",
                                "64",
                                "1024",
                                "1025",
                                "65536",
                                "2147483648",
                                "4294967296",
                                "9223372036854775807",
                                "9223372036854775808",
                                "18446744073709551616",
                                "-0",
                                "0.0",
                                "-0.0",
                                "0.5",
                                "1.0",
                                "1e-8",
                                "1e-9",
                                "1e-320",
                                "1e308",
                                "1e999",
                                "NaN",
                                "true",
                                "false",
                                "null",
                                "\"\"",
                                "[]",
                                "{}",
                                "[16,16]",
                                "[32,32]",
                                "[1,3.0]",
                                "\"float16\"",
                                "\"antithetic\"",
                                "\"none\"",
                                "\"signs\"",
                                "\"stretch\"",
                                "\"manual\"",
                                "\"calibrated\"",
                                "\"model\"",
                                "\"plan\"",
                                "\"AAAAAA==\"",
                                "\"AACAPw==\"",
                                "\"\\ud800\"",
                                "\"\\u0000\"",
                                "\"\\u000a\"",
                                "{\"draws\":2}",
                                "[{\"draws\":1024}]",
                                "111111111111111111111111111111111111111111111111111111111111111111",
                                "\"x",
                                "[[[[[[[[[[[[[[[[",
                                "'",
                                "\x7f",
                                "\xff"};

struct Span {
    size_t begin, end;
};

void collect(const json::Value& value, std::vector<Span>& values, std::vector<Span>& members) {
    values.push_back({value.begin(), value.end()});
    if (value.kind() == json::Kind::array)
        for (const json::Value& item : value.items()) collect(item, values, members);
    if (value.kind() == json::Kind::object)
        for (const json::Value::Member& member : value.members()) {
            members.push_back({member.key.begin(), member.value.end()});
            collect(member.value, values, members);
        }
}

// JSON text with a value replaced, or a member removed, doubled or added; as it is where it is no JSON. It happens in
// one of the members of the whole, since most of a manifest is about tensors.
std::string edited(const std::string& text, Random& random) try {
    std::vector<Span> values, members;
    const json::Document document("", text, 100, json::Spelling::any);
    const std::vector<json::Value::Member> whole =
        document.root().kind() == json::Kind::object ? document.root().members() : std::vector<json::Value::Member>();
    const size_t chosen = below(random, whole.size() + 1);
    collect(chosen < whole.size() ? whole[chosen].value : document.root(), values, members);
    const Span at = values[below(random, values.size())];
    const auto spelled = [&](Span span) { return text.substr(span.begin, span.end - span.begin); };
    std::string put = LITERALS[below(random, sizeof LITERALS / sizeof *LITERALS)];
    Span out = at;
    switch (below(random, 6)) {
        case 0:
            put = spelled(values[below(random, values.size())]);
            break;
        case 1:
            put = std::string(below(random, 1000), '[') + spelled(at);
            put.append(below(random, 1000), ']');
            break;
        case 2:
            if (members.empty()) break;
            out = members[below(random, members.size())];
            put = "";
            if (text[out.end] == ',')
                out.end++;
            else if (text[out.begin - 1] == ',')
                out.begin--;
            break;
        case 3:
            if (members.empty()) break;
            out.begin = out.end = members[below(random, members.size())].begin;
            put = spelled(members[below(random, members.size())]) + ",";
            break;
        default:
            break;
    }
    return text.substr(0, out.begin) + put + text.substr(out.end);
} catch (const Failure&) {
    return text;
}

std::string damaged(std::string bytes, Random& random) {
    for (size_t left = 1 + below(random, 3); left && !bytes.empty(); left--) {
        const size_t near = random() % 4 ? std::min<size_t>(bytes.size(), 20000) : bytes.size();
        const size_t at = below(random, near), count = 1 + below(random, 1 << below(random, 9));
        switch (below(random, 6)) {
            case 0:
                bytes[at] = static_cast<char>(bytes[at] ^ 1 << below(random, 8));
                break;
            case 1:
                bytes[at] = static_cast<char>(random());
                break;
            case 2:
                bytes.erase(at, count);
                break;
            case 3:
                bytes.insert(at, bytes.substr(below(random, near), count));
                break;
            case 4:
                bytes.insert(at, count, static_cast<char>(random() % 3 ? random() : 0));
                break;
            default:
                if (random() % 4 == 0) bytes.resize(at);
        }
    }
    return bytes;
}

// The parts of a file that is one of safetensors with a manifest in it.
struct Parts {
    std::string before, manifest, after;  // of the header; the manifest without its hash and as JSON
    std::string data;
    bool whole = false;

    explicit Parts(const std::string& file) {
        static const std::string KEY = "\"sprfast\":\"", HASH = "\"sha256\":\"";
        uint64_t length = 0;
        if (file.size() < 8) return;
        memcpy(&length, file.data(), 8);
        if (length > file.size() - 8) return;
        const std::string header = file.substr(8, length);
        data = file.substr(8 + length);
        size_t at = header.find(KEY);
        if (at == std::string::npos) return;
        before = header.substr(0, at += KEY.size());
        for (; at < header.size() && header[at] != '"'; at++) {
            if (header[at] == '\\' && ++at == header.size()) return;
            manifest += header[at];
        }
        after = header.substr(at);
        // the last one is the manifest's own, if it is followed by nothing but the tensors' names
        const size_t tensors = manifest.find("\"tensors\":"), hash = manifest.rfind(HASH, tensors);
        if (tensors == std::string::npos || hash == std::string::npos || hash + 76 != tensors) return;
        manifest.erase(hash, 76);
        whole = true;
    }

    std::string joined() const {
        sprfast::Sha256 hash;
        hash.update(manifest.data(), manifest.size());
        std::string text = manifest, header = before;
        const size_t tensors = text.find("\"tensors\":");
        text.insert(tensors == std::string::npos ? std::min<size_t>(1, text.size()) : tensors,
                    "\"sha256\":\"" + hash.digest() + "\",");
        for (const char c : text) {
            if (c == '"' || c == '\\') header += '\\';
            header += c;
        }
        header += after;
        const uint64_t length = header.size();
        return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
    }

    // A number of a tensor, with its hash.
    void change_data(Random& random) try {
        static const float NUMBERS[] = {NAN, INFINITY, -0.0f, 0, 1e-45f, 3e38f};
        const json::Document read("", joined().substr(8, joined().size() - 8 - data.size()), 100, json::Spelling::any);
        const std::vector<json::Value::Member> members = read.root().members();
        const json::Value::Member& member = members[below(random, members.size())];
        if (member.name == "__metadata__") return;
        size_t begin = 0, end = 0;
        for (const json::Value::Member& each : member.value.members())
            if (each.name == "data_offsets" && each.value.size() == 2) {
                begin = static_cast<size_t>(each.value.items()[0].integer());
                end = static_cast<size_t>(each.value.items()[1].integer());
            }
        if (end > data.size() || begin >= end || end - begin < 4) return;
        const auto digest = [&] {
            sprfast::Sha256 hash;
            hash.update(data.data() + begin, end - begin);
            return hash.digest();
        };
        const std::string old = digest();
        const size_t at = begin + below(random, (end - begin) / 4) * 4;
        memcpy(&data[at], &NUMBERS[below(random, 6)], 4);
        if (const size_t said = manifest.find(old); said != std::string::npos) manifest.replace(said, 64, digest());
    } catch (const Failure&) {  // the header is no JSON
    }
};

std::string changed(const std::string& file, Random& random) {
    Parts parts(file);
    if (!parts.whole || random() % 4 == 0) return damaged(file, random);
    switch (below(random, 6)) {
        case 0:
            parts.change_data(random);
            break;
        case 1: {                                   // the other entries of the header
            static const std::string END = "\"},";  // of the manifest and what holds it
            if (parts.after.compare(0, END.size(), END)) break;
            const std::string entries = edited("{" + parts.after.substr(END.size()), random);
            parts.after = END + entries.substr(!entries.empty() && entries[0] == '{');
            break;
        }
        case 2:
            parts.manifest = damaged(parts.manifest, random);
            break;
        default:
            for (size_t left = 1 + below(random, 2); left; left--) parts.manifest = edited(parts.manifest, random);
    }
    return parts.joined();
}

}  // namespace

#ifdef DRIVER
int main(int count, char** given) {
    Random random(static_cast<uint32_t>(strtoul(given[1], nullptr, 10)));
    std::vector<std::string> files;
    for (int i = 3; i < count; i++) {
        std::ifstream stream(given[i], std::ios::binary);
        files.emplace_back(std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>());
    }
    std::map<std::string, int> texts;
    for (long i = 0; i < strtol(given[2], nullptr, 10); i++) {
        const std::string& file = files[static_cast<size_t>(i) % files.size()];
        const std::string bytes = static_cast<size_t>(i) < files.size() ? file : changed(file, random);
        texts[refusal(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size())]++;
    }
    for (const auto& [text, times] : texts) printf("%d %s\n", times, text.c_str());
}
#else
extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t most);

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t most, unsigned seed) {
    Random random(seed);
    if (random() % 4 == 0) return LLVMFuzzerMutate(data, size, most);
    const std::string made = changed(std::string(reinterpret_cast<const char*>(data), size), random);
    const size_t kept = std::min(made.size(), most);
    memcpy(data, made.data(), kept);
    return kept;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    refusal(data, size);
    return 0;
}
#endif
