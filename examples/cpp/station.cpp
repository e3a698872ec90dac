// Scores the binary PGM and PPM files of a folder, of 8 or 16 bits: a line with verdict, score, name and reason for
// each, in the order of their names.
//
//     c++ -std=c++17 station.cpp $(pkg-config --cflags --libs sprfast) -o station
//     ./station screw.plan parts
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <set>
#include <sprfast.hpp>

// A picture in memory; 16-bit values come with the high byte first.
struct Picture {
    int channels, height, width;
    std::vector<std::uint8_t> bytes;
    std::vector<std::uint16_t> values;

    explicit Picture(const std::filesystem::path& path) {
        std::ifstream file(path, std::ios::binary);
        std::string kind;
        int most = 0;
        file >> kind >> width >> height >> most;
        file.get();
        if (!file || (kind != "P5" && kind != "P6") || width < 1 || height < 1 || width > 65536 || height > 65536)
            throw std::runtime_error("is not a binary PGM or PPM file");
        channels = kind == "P6" ? 3 : 1;
        bytes.resize(std::size_t(width) * std::size_t(height) * std::size_t(channels) * (most > 255 ? 2 : 1));
        if (!file.read(reinterpret_cast<char*>(bytes.data()), std::streamsize(bytes.size())))
            throw std::runtime_error("is not whole");
        for (std::size_t i = 0; most > 255 && i < bytes.size(); i += 2)
            values.push_back(std::uint16_t(bytes[i] << 8 | bytes[i + 1]));
    }

    sprfast_frame frame() const {
        if (values.empty()) return sprfast::packed(channels == 3 ? SPRFAST_RGB8 : SPRFAST_GREY8, bytes, height, width);
        return sprfast::packed(channels == 3 ? SPRFAST_RGB16 : SPRFAST_GREY16, values, height, width);
    }
};

int main(int count, char** arguments) try {
    if (count != 3) return std::fputs("usage: station EXPORT FOLDER\n", stderr), 2;
    const char* const verdicts[] = {"ERROR", "PASS", "REJECT"};
    const sprfast::Engine engine(arguments[1]);
    std::set<std::filesystem::path> paths;
    for (const auto& entry : std::filesystem::directory_iterator(arguments[2])) paths.insert(entry.path());
    for (const std::filesystem::path& path : paths) try {
            const Picture picture(path);
            const sprfast_result result = engine.score(picture.frame());
            std::printf("%s %.17g %s: %s\n", verdicts[result.verdict], result.pred_score, path.c_str(), result.reason);
        } catch (const std::runtime_error& error) {
            std::printf("ERROR nan %s: %s\n", path.c_str(), error.what());
        }
} catch (const std::exception& error) {
    return std::fprintf(stderr, "station: %s\n", error.what()), 2;
}
