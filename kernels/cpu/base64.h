// Base64, of RFC 4648.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace sprfast {

// The bytes of a text in the standard alphabet, padded to a multiple of four characters; nothing for any other text.
std::optional<std::string> base64_bytes(std::string_view text);

}  // namespace sprfast
