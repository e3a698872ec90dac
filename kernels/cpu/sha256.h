// SHA-256, of FIPS 180-4.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <string>

namespace sprfast {

// Takes bytes in any number of pieces.
class Sha256 {
public:
    void update(const void* data, size_t bytes);
    // Of all bytes taken so far, as 64 hexadecimal digits in lower case; nothing may be taken afterwards.
    std::string digest();

private:
    void block(const uint8_t* data);

    uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                         0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    uint64_t taken = 0;   // bytes
    uint8_t pending[64];  // of them the last taken % 64, which fill no block yet
};

}  // namespace sprfast
