#include "regular_file.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <system_error>

#include "failure.h"

namespace sprfast {

namespace {

constexpr size_t PIECE = 1 << 30;  // bytes a call; more than 2 GiB no system reads at once

[[noreturn]] void unreadable(const std::string& why) { throw Failure{Code::bad_file, "cannot be read (" + why + ")"}; }

std::string message_of(int error) { return std::system_category().message(error); }

}  // namespace

RegularFile::RegularFile(const std::string& path) {
    if (path.find('\0') != std::string::npos) throw Failure{Code::bad_file, "no such file"};
    do descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    while (descriptor < 0 && errno == EINTR);
    if (descriptor < 0 && errno == ENOENT) throw Failure{Code::bad_file, "no such file"};
    if (descriptor < 0) unreadable(message_of(errno));
    struct stat status;
    const bool known = fstat(descriptor, &status) == 0;
    if (known && S_ISREG(status.st_mode)) {
        bytes = static_cast<uint64_t>(status.st_size);
        return;
    }
    const int error = errno;
    close(descriptor);
    unreadable(known ? "not a regular file" : message_of(error));
}

RegularFile::~RegularFile() { close(descriptor); }

size_t RegularFile::read(void* data, size_t count) {
    size_t done = 0;
    while (done < count) {
        const ssize_t got = ::read(descriptor, static_cast<char*>(data) + done, std::min(count - done, PIECE));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) unreadable(message_of(errno));
        if (got == 0) break;
        done += static_cast<size_t>(got);
    }
    return done;
}

}  // namespace sprfast
