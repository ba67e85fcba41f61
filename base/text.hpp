/// Text from outside, made fit for a log line or a terminal.
#pragma once

#include <string>
#include <string_view>

namespace stepstash {

/// `text` with control characters, quotes and backslashes as \xNN: no newline of a name can forge a log line.
/// Other bytes, UTF-8 among them, stay as they are.
inline std::string printable(std::string_view text) {
  constexpr char kHex[] = "0123456789abcdef";
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == '"' || byte == '\\' || byte == 0x7F) {
      out += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
    } else {
      out += c;
    }
  }
  return out;
}

}  // namespace stepstash
