// SPDX-License-Identifier: Apache-2.0
#include "base/types.hpp"

#include "base/text.hpp"

namespace stepstash {

bool valid_text(std::string_view text) noexcept {
  if (text.size() > kMaxNameBytes) return false;
  std::size_t chars = 0;
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = decode_utf8(text.substr(at));
    if (c.bytes == 0 || c.value == 0 || ++chars > kMaxNameChars) return false;
    at += c.bytes;
  }
  return true;
}

}  // namespace stepstash
