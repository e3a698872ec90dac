#include "base64.h"

#include <stdint.h>

namespace sprfast {

namespace {

int sextet(char c) {
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

}  // namespace

std::optional<std::string> base64_bytes(std::string_view text) {
    if (text.size() % 4) return {};
    const size_t padding = text.empty() || text.back() != '=' ? 0 : text[text.size() - 2] != '=' ? 1 : 2;
    std::string bytes;
    bytes.reserve(text.size() / 4 * 3);
    for (size_t at = 0; at < text.size(); at += 4) {
        uint32_t bits = 0;
        for (size_t i = at; i < at + 4; i++) {
            const int value = i >= text.size() - padding ? 0 : sextet(text[i]);
            if (value < 0) return {};
            bits = bits << 6 | static_cast<uint32_t>(value);
        }
        for (int shift = 16; shift >= 0; shift -= 8) bytes += static_cast<char>(bits >> shift & 255);
    }
    bytes.resize(bytes.size() - padding);
    return bytes;
}

}  // namespace sprfast
