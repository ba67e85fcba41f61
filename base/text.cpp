// SPDX-License-Identifier: Apache-2.0
#include "base/text.hpp"

#include <algorithm>
#include <iterator>

namespace stepstash {
namespace {

struct Range {
  char32_t first, last;
};
/// Unicode 15: Default_Ignorable_Code_Point, Bidi_Control, Zl, Zp and Cf, except for the visible ones (U+0600 and
/// similar, U+FFFC), in ascending order.
constexpr Range kUnseen[] = {
    {0x00AD, 0x00AD},    // soft hyphen
    {0x034F, 0x034F},    // combining grapheme joiner
    {0x061C, 0x061C},    // Arabic letter mark
    {0x115F, 0x1160},    // Hangul fillers
    {0x17B4, 0x17B5},    // Khmer inherent vowels
    {0x180B, 0x180F},    // Mongolian variation selectors and vowel separator
    {0x200B, 0x200F},    // zero width, and direction marks
    {0x2028, 0x202E},    // line and paragraph separators, directional embeddings and overrides
    {0x2060, 0x206F},    // word joiner, invisible operators, directional isolates
    {0x3164, 0x3164},    // Hangul filler
    {0xFDD0, 0xFDEF},    // noncharacters; so are the last two of each plane
    {0xFE00, 0xFE0F},    // variation selectors
    {0xFEFF, 0xFEFF},    // byte order mark
    {0xFFA0, 0xFFA0},    // halfwidth Hangul filler
    {0xFFF0, 0xFFFB},    // interlinear annotations
    {0x13430, 0x1343F},  // joins of hieroglyphs
    {0x1BCA0, 0x1BCA3},  // shorthand format
    {0x1D173, 0x1D17A},  // musical format
    {0xE0000, 0xE0FFF},  // tags and variation selectors
};

constexpr char kHex[] = "0123456789abcdef";

template <class Escapes>
std::string escape(std::string_view text, Escapes escapes) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const std::size_t seen = visible_sequence(text);
    if (seen != 0 && !escapes(text.front())) {
      out += text.substr(0, seen);
      text.remove_prefix(seen);
      continue;
    }
    // The whole code point gets escaped: its later bytes, alone, are not UTF-8 and follow in the next rounds.
    const auto byte = static_cast<unsigned char>(text.front());
    out += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
    text.remove_prefix(1);
  }
  return out;
}

}  // namespace

CodePoint decode_utf8(std::string_view text) noexcept {
  const auto byte = [&](std::size_t i) -> char32_t {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0;
  };
  const auto continues = [&](std::size_t i) { return (byte(i) & 0xC0) == 0x80; };
  const char32_t lead = byte(0);
  if (text.empty()) return {};
  if (lead < 0x80) return {lead, 1};
  if (lead >= 0xC2 && lead <= 0xDF && continues(1)) return {(lead & 0x1F) << 6 | (byte(1) & 0x3F), 2};
  if (lead >= 0xE0 && lead <= 0xEF) {
    const char32_t low = lead == 0xE0 ? 0xA0 : 0x80;
    const char32_t high = lead == 0xED ? 0x9F : 0xBF;
    if (byte(1) < low || byte(1) > high || !continues(2)) return {};
    return {(lead & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F), 3};
  }
  if (lead >= 0xF0 && lead <= 0xF4) {
    const char32_t low = lead == 0xF0 ? 0x90 : 0x80;
    const char32_t high = lead == 0xF4 ? 0x8F : 0xBF;
    if (byte(1) < low || byte(1) > high || !continues(2) || !continues(3)) return {};
    return {(lead & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F), 4};
  }
  return {};
}

bool is_visible(char32_t c) noexcept {
  if (is_control(c) || (c & 0xFFFE) == 0xFFFE) return false;
  const Range* range = std::lower_bound(std::begin(kUnseen), std::end(kUnseen), c,
                                        [](const Range& r, char32_t v) { return r.last < v; });
  return range == std::end(kUnseen) || c < range->first;
}

std::size_t visible_sequence(std::string_view text) noexcept {
  const CodePoint c = decode_utf8(text);
  return c.bytes != 0 && is_visible(c.value) ? c.bytes : 0;
}

std::string visible(std::string_view text) {
  return escape(text, [](char) { return false; });
}

std::string printable(std::string_view text) {
  return escape(text, [](char c) { return c == '"' || c == '\\'; });
}

std::string visible_json(std::string_view json) {
  std::string out;
  out.reserve(json.size());
  const auto put = [&](char32_t unit) {
    out += {'\\', 'u', kHex[unit >> 12 & 15], kHex[unit >> 8 & 15], kHex[unit >> 4 & 15], kHex[unit & 15]};
  };
  while (!json.empty()) {
    const CodePoint c = decode_utf8(json);
    if (c.bytes != 0 && is_visible(c.value)) {
      out += json.substr(0, c.bytes);
    } else if (c.bytes == 0) {
      put(0xFFFD);  // does not occur in valid JSON
    } else if (c.value < 0x20) {
      out += ' ';  // raw controls occur between tokens only
    } else if (c.value < 0x10000) {
      put(c.value);
    } else {
      put(0xD800 + ((c.value - 0x10000) >> 10));
      put(0xDC00 + (c.value & 0x3FF));
    }
    json.remove_prefix(std::max<std::size_t>(c.bytes, 1));
  }
  return out;
}

}  // namespace stepstash
