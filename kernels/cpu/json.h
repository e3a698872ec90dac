// A strict reader of JSON: no duplicate keys, no number that is not finite, no deep nesting.
//
// A document is its text and a list of where each value begins; strings and numbers are made when they are asked for.
// Nothing here calls itself, so that no text needs more stack than another.
#pragma once

#include <stdint.h>

#include <string>
#include <string_view>
#include <vector>

namespace sprfast::json {

enum class Kind : uint8_t {
    null,
    boolean,
    integer,
    number,
    string,
    array,
    object
};  // number: with a point or exponent

// In which spelling a document is read.
enum class Spelling {
    any,       // UTF-8, as RFC 8259 allows
    canonical  // ASCII, keys in ascending order, nothing between the tokens
};

constexpr size_t MAX_DIGITS = 64;  // of an integer, its sign included

class Value;

class Document {
public:
    // Throws Failure, whose text begins with `name` and says what is wrong and where, unless `text` is one JSON value
    // with up to `depth` arrays and objects in one another.
    Document(const char* name, std::string text, int depth, Spelling spelling);
    Document(const Document&) = delete;
    Document& operator=(const Document&) = delete;

    Value root() const;
    const std::string& text() const { return source; }

private:
    friend class Value;
    friend class Reader;

    // A value. Those inside it follow it, of an object key and value in turn; `next` is the first one behind all of
    // them.
    struct Node {
        uint32_t begin, end, next;  // of its text; in the list
        Kind kind;
    };

    Value value(uint32_t index) const;

    std::string source;
    std::vector<Node> nodes;
};

// A value of a document, which must outlive it.
class Value {
public:
    Kind kind() const { return node().kind; }
    // As the document spells it.
    std::string_view text() const;
    size_t begin() const { return node().begin; }  // in the text of the document
    size_t end() const { return node().end; }

    // A string's characters as UTF-8. Half of a surrogate pair, which a canonical text may hold, becomes the three
    // bytes that its number would have.
    std::string string() const;
    bool truth() const { return node().end - node().begin == 4; }  // of a boolean
    double number() const;                                         // of an integer or a number
    // Of an integer; the nearest one that there is where it is larger.
    int64_t integer() const;

    size_t size() const;               // of an array
    std::vector<Value> items() const;  // of an array
    struct Member;
    std::vector<Member> members() const;  // of an object, in the order of the text

private:
    friend class Document;
    Value(const Document* document, uint32_t index) : document(document), index(index) {}
    const Document::Node& node() const { return document->nodes[index]; }

    const Document* document;
    uint32_t index;
};

struct Value::Member {
    std::string name;
    Value key, value;
};

inline Value Document::value(uint32_t index) const { return Value(this, index); }
inline Value Document::root() const { return value(0); }

// "an integer", "an object", ...: for messages.
const char* name_of(Kind kind);

// Text fit for a message, and the same in quotes: a name from a file may be long or hold control characters.
std::string printable(std::string_view text);
std::string quoted(std::string_view text);

}  // namespace sprfast::json
