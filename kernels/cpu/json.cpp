#include "json.h"

#include <limits.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "failure.h"

namespace sprfast::json {

namespace {

bool digit(char c) { return c >= '0' && c <= '9'; }
bool high_surrogate(int unit) { return unit >= 0xd800 && unit < 0xdc00; }
bool low_surrogate(int unit) { return unit >= 0xdc00 && unit < 0xe000; }

// The number of the escape \uXXXX whose backslash `p` is at; -1 where there is none. The text ends with a NUL.
int escaped_unit(const char* p) {
    if (p[0] != '\\' || p[1] != 'u') return -1;
    int unit = 0;
    for (const char* at = p + 2; at < p + 6; at++) {
        const char c = *at, low = static_cast<char>(c | 0x20);
        const int value = digit(c) ? c - '0' : low >= 'a' && low <= 'f' ? low - 'a' + 10 : -1;
        if (value < 0) return -1;
        unit = unit << 4 | value;
    }
    return unit;
}

void append_utf8(std::string& text, int code) {
    if (code < 0x80) {
        text += static_cast<char>(code);
        return;
    }
    const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;  // bytes behind the first
    text += static_cast<char>((0xff00 >> (more + 1) & 0xff) | code >> (6 * more));
    for (int i = more - 1; i >= 0; i--) text += static_cast<char>(0x80 | (code >> (6 * i) & 0x3f));
}

// Where the first byte lies that is not part of UTF-8, or the text's length.
size_t utf8_length(const std::string& text) {
    size_t at = 0;
    while (at < text.size()) {
        const unsigned char first = static_cast<unsigned char>(text[at]);
        const int more = first < 0x80   ? 0
                         : first < 0xc2 ? -1
                         : first < 0xe0 ? 1
                         : first < 0xf0 ? 2
                         : first < 0xf5 ? 3
                                        : -1;
        if (more < 0 || text.size() - at <= static_cast<size_t>(more)) return at;
        for (int i = 1; i <= more; i++) {
            const unsigned char c = static_cast<unsigned char>(text[at + i]);
            // behind these first bytes, the second one excludes surrogates and what has a shorter or no spelling
            const int low = i > 1 ? 0x80 : first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
            const int high = i > 1 ? 0xbf : first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
            if (c < low || c > high) return at;
        }
        at += static_cast<size_t>(more) + 1;
    }
    return at;
}

// strtod, with a point whatever the process's locale is.
double parsed_number(const char* text) {
    static const locale_t plain = newlocale(LC_ALL_MASK, "C", static_cast<locale_t>(nullptr));
    return strtod_l(text, nullptr, plain);
}

}  // namespace

class Reader {
public:
    Reader(Document& document, const char* name, int depth, Spelling spelling)
        : document(document),
          name(name),
          text(document.source),
          nodes(document.nodes),
          depth(static_cast<size_t>(depth)),
          canonical(spelling == Spelling::canonical) {}

    void read() {
        if (text.size() >= UINT32_MAX) fail("too long");
        if (!canonical && (at = utf8_length(text)) < text.size()) fail("not UTF-8");
        at = 0;
        do value();
        while (another());
        space();
        if (at < text.size()) fail("expected nothing more");
    }

private:
    [[noreturn]] void fail(const std::string& what) const {
        throw Failure{Code::bad_file,
                      std::string(name) + " is damaged (" + what + " at character " + std::to_string(at) + ")"};
    }

    char peek() const { return text.c_str()[at]; }  // NUL at the end, which no token has

    void space() {
        if (!canonical) at = std::min(text.find_first_not_of(" \t\n\r", at), text.size());
    }

    uint32_t begin(Kind kind) {
        nodes.push_back({static_cast<uint32_t>(at), 0, 0, kind});
        return static_cast<uint32_t>(nodes.size() - 1);
    }

    void end(uint32_t node) {
        nodes[node].end = static_cast<uint32_t>(at);
        nodes[node].next = static_cast<uint32_t>(nodes.size());
    }

    // One value; of an array or object that is not empty, all up to the end of the first one that is neither.
    void value() {
        for (;;) {
            space();
            const char c = peek();
            if (c != '[' && c != '{') return scalar(c);
            if (open.size() == depth) fail("nested too deeply");
            open.push_back(begin(c == '[' ? Kind::array : Kind::object));
            at++;
            space();
            if (peek() == (c == '[' ? ']' : '}')) return close();
            if (c == '{') key();
        }
    }

    // Closes what ends here; whether another value follows.
    bool another() {
        while (!open.empty()) {
            const bool object = nodes[open.back()].kind == Kind::object;
            space();
            if (peek() == ',') {
                at++;
                if (object) key();
                return true;
            }
            if (peek() != (object ? '}' : ']')) fail(object ? "expected a comma or }" : "expected a comma or ]");
            close();
        }
        return false;
    }

    void close() {
        const uint32_t node = open.back();
        open.pop_back();
        at++;
        end(node);
        if (nodes[node].kind == Kind::object) check_names(document.value(node));
    }

    void check_names(const Value& object) const {
        std::vector<std::string> names;
        for (Value::Member& member : object.members()) names.push_back(std::move(member.name));
        const auto unsorted = std::is_sorted_until(names.begin(), names.end());
        if (canonical && unsorted != names.end()) fail("key " + quoted(*unsorted) + " out of order");
        std::sort(names.begin(), names.end());
        const auto twice = std::adjacent_find(names.begin(), names.end());
        if (twice != names.end()) fail("duplicate key " + quoted(*twice));
    }

    void key() {
        space();
        if (peek() != '"') fail("expected a key");
        string();
        space();
        if (peek() != ':') fail("expected a colon");
        at++;
    }

    void scalar(char c) {
        if (c == '"') return string();
        if (c == '-' || digit(c)) return number();
        for (const char* word : {"null", "true", "false"})
            if (text.compare(at, strlen(word), word) == 0) {
                const uint32_t node = begin(*word == 'n' ? Kind::null : Kind::boolean);
                at += strlen(word);
                return end(node);
            }
        fail("expected a value");
    }

    void string() {
        const uint32_t node = begin(Kind::string);
        for (at++; peek() != '"';) {
            const unsigned char c = static_cast<unsigned char>(peek());
            if (c < ' ' || (canonical && c > '~')) fail("expected the end of a string");
            if (c == '\\')
                escape();
            else
                at++;
        }
        at++;
        end(node);
    }

    void escape() {
        const char* p = text.c_str() + at;
        if (p[1] && strchr("\"\\/bfnrt", p[1])) {
            at += 2;
            return;
        }
        const int unit = escaped_unit(p);
        if (unit < 0) fail("unknown escape");
        const bool pair = high_surrogate(unit) && low_surrogate(escaped_unit(p + 6));
        if (!canonical && !pair && (high_surrogate(unit) || low_surrogate(unit))) fail("half of a surrogate pair");
        at += pair ? 12 : 6;
    }

    void digits() {
        if (!digit(peek())) fail("expected a digit");
        while (digit(peek())) at++;
    }

    void number() {
        const uint32_t node = begin(Kind::integer);
        const size_t first = at;
        if (peek() == '-') at++;
        if (peek() == '0')
            at++;
        else
            digits();
        if (peek() == '.') {
            nodes[node].kind = Kind::number;
            at++;
            digits();
        }
        if (peek() == 'e' || peek() == 'E') {
            nodes[node].kind = Kind::number;
            at++;
            if (peek() == '-' || peek() == '+') at++;
            digits();
        }
        end(node);
        if (nodes[node].kind == Kind::integer) {
            if (at - first > MAX_DIGITS) fail("an integer of more than " + std::to_string(MAX_DIGITS) + " digits");
        } else if (!std::isfinite(document.value(node).number())) {
            fail("a number that is not finite");
        }
    }

    Document& document;
    const char* const name;
    const std::string& text;
    std::vector<Document::Node>& nodes;
    const size_t depth;
    const bool canonical;
    size_t at = 0;
    std::vector<uint32_t> open;  // arrays and objects that have not ended, from the outermost on
};

Document::Document(const char* name, std::string text, int depth, Spelling spelling) : source(std::move(text)) {
    Reader(*this, name, depth, spelling).read();
}

std::string_view Value::text() const { return std::string_view(document->source).substr(begin(), end() - begin()); }

double Value::number() const { return parsed_number(document->source.c_str() + begin()); }

int64_t Value::integer() const { return strtoll(document->source.c_str() + begin(), nullptr, 10); }

std::string Value::string() const {
    std::string found;
    const char *p = document->source.c_str() + begin() + 1, *const last = document->source.c_str() + end() - 1;
    while (p < last) {
        if (*p != '\\') {
            const char* next = static_cast<const char*>(memchr(p, '\\', static_cast<size_t>(last - p)));
            found.append(p, next ? next : last);
            p = next ? next : last;
            continue;
        }
        const int unit = escaped_unit(p), second = unit < 0 ? -1 : escaped_unit(p + 6);
        if (unit < 0) {
            static constexpr char NAMES[] = "bfnrt", MEANT[] = "\b\f\n\r\t";
            const char* name = strchr(NAMES, p[1]);
            found += name ? MEANT[name - NAMES] : p[1];
            p += 2;
        } else if (high_surrogate(unit) && low_surrogate(second)) {
            append_utf8(found, 0x10000 + ((unit - 0xd800) << 10) + (second - 0xdc00));
            p += 12;
        } else {
            append_utf8(found, unit);
            p += 6;
        }
    }
    return found;
}

size_t Value::size() const {
    size_t count = 0;
    for (uint32_t at = index + 1; at < node().next; at = document->nodes[at].next) count++;
    return count;
}

std::vector<Value> Value::items() const {
    std::vector<Value> found;
    for (uint32_t at = index + 1; at < node().next; at = document->nodes[at].next) found.push_back(document->value(at));
    return found;
}

std::vector<Value::Member> Value::members() const {
    std::vector<Member> found;
    for (uint32_t at = index + 1; at < node().next; at = document->nodes[at + 1].next)
        found.push_back({document->value(at).string(), document->value(at), document->value(at + 1)});
    return found;
}

const char* name_of(Kind kind) {
    static constexpr const char* NAMES[] = {"null",     "true or false", "an integer", "a number",
                                            "a string", "a list",        "an object"};
    return NAMES[static_cast<int>(kind)];
}

std::string printable(std::string_view text) {
    std::string shown;
    for (const char c : text.substr(0, 100)) {
        if (c >= ' ' && c <= '~')
            shown += c;
        else
            for (const char each : {'\\', 'x', "0123456789abcdef"[c >> 4 & 15], "0123456789abcdef"[c & 15]})
                shown += each;
    }
    return text.size() > 100 ? shown + "..." : shown;
}

std::string quoted(std::string_view text) { return "'" + printable(text) + "'"; }

}  // namespace sprfast::json
