// A regular file, read from its beginning on.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <string>

namespace sprfast {

class RegularFile {
public:
    // Links are followed. The file is opened without waiting and then looked at: between a look at the name and the
    // opening, the name could become a pipe, whose opening waits for ever. Throws Failure, without the path in its
    // text.
    explicit RegularFile(const std::string& path);
    ~RegularFile();
    RegularFile(const RegularFile&) = delete;
    RegularFile& operator=(const RegularFile&) = delete;

    uint64_t size() const { return bytes; }  // as it was when the file was opened
    // The next bytes, up to this many: fewer are left where fewer are returned. Throws Failure.
    size_t read(void* data, size_t count);

private:
    int descriptor;
    uint64_t bytes;
};

}  // namespace sprfast
