#include "base/types.hpp"

namespace stepstash {
namespace {

/// Bytes of the UTF-8 sequence at `at`, 0 when it is not well-formed (Unicode 15, table 3-7).
std::size_t sequence_bytes(std::string_view text, std::size_t at) noexcept {
  const auto byte = [&](std::size_t i) -> unsigned {
    return at + i < text.size() ? static_cast<unsigned char>(text[at + i]) : 0;
  };
  const auto continues = [&](std::size_t i) { return (byte(i) & 0xC0) == 0x80; };
  const unsigned lead = byte(0);
  if (lead == 0) return 0;
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead <= 0xDF) return continues(1) ? 2 : 0;
  if (lead >= 0xE0 && lead <= 0xEF) {
    const unsigned low = lead == 0xE0 ? 0xA0 : 0x80;
    const unsigned high = lead == 0xED ? 0x9F : 0xBF;
    return byte(1) >= low && byte(1) <= high && continues(2) ? 3 : 0;
  }
  if (lead >= 0xF0 && lead <= 0xF4) {
    const unsigned low = lead == 0xF0 ? 0x90 : 0x80;
    const unsigned high = lead == 0xF4 ? 0x8F : 0xBF;
    return byte(1) >= low && byte(1) <= high && continues(2) && continues(3) ? 4 : 0;
  }
  return 0;
}

}  // namespace

bool valid_text(std::string_view text) noexcept {
  if (text.size() > kMaxNameBytes) return false;
  std::size_t chars = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t step = sequence_bytes(text, at);
    if (step == 0 || ++chars > kMaxNameChars) return false;
    at += step;
  }
  return true;
}

}  // namespace stepstash
