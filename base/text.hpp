// SPDX-License-Identifier: Apache-2.0
/// Makes untrusted text safe for a log line or a terminal.
///
/// One rule, is_visible(), and one UTF-8 decoder serve all code that shows foreign names, sources, paths and messages:
/// the command line, the library's messages, the daemon's log and its errors.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace stepstash {

/// The first code point of a text and its length in bytes; length 0 if the text is empty or does not begin with
/// well-formed UTF-8 (Unicode 15, table 3-7: no overlong forms, no surrogates).
struct CodePoint {
  char32_t value = 0;
  std::size_t bytes = 0;
};
CodePoint decode_utf8(std::string_view text) noexcept;

/// C0, DEL and C1: a terminal interprets them. U+009B acts as ESC [.
constexpr bool is_control(char32_t c) noexcept { return c < 0x20 || (c >= 0x7F && c <= 0x9F); }

/// Whether `c` is visible by itself and does not affect the text around it. Not visible: controls; changes of writing
/// direction; line and paragraph ends; zero-width characters, which make two names look alike; noncharacters. Letters
/// of any language, their marks and all spaces are visible.
bool is_visible(char32_t c) noexcept;

/// Length in bytes of the visible code point at the front of `text`; 0: none, escape it byte by byte.
std::size_t visible_sequence(std::string_view text) noexcept;

/// `text` with everything invisible, and bytes that are not UTF-8, escaped as \xNN, byte by byte. For whole messages:
/// quotes and backslashes stay, so that applying it twice changes nothing.
std::string visible(std::string_view text);

/// The same, but quotes and backslashes are escaped as well: for quoted text and for fields of a line. Injective:
/// different texts have different results.
std::string printable(std::string_view text);

/// `json`, which must be valid JSON, with the same meaning and nothing invisible: \uNNNN within strings, spaces between
/// tokens.
std::string visible_json(std::string_view json);

}  // namespace stepstash
