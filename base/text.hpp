// SPDX-License-Identifier: Apache-2.0
/// Text from outside, made fit for a log line or a terminal.
///
/// One rule, is_visible(), and one decoder of UTF-8 serve everything that shows names, sources, paths and messages of
/// others: the command line, the library's messages, the daemon's log and its errors.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace stepstash {

/// The first code point of a text, and how many bytes it takes; no bytes where the text is empty or does not begin with
/// well-formed UTF-8 (Unicode 15, table 3-7: no overlong forms, no surrogates).
struct CodePoint {
  char32_t value = 0;
  std::size_t bytes = 0;
};
CodePoint decode_utf8(std::string_view text) noexcept;

/// C0, DEL and C1: a terminal obeys them. U+009B is ESC [ in one.
constexpr bool is_control(char32_t c) noexcept { return c < 0x20 || (c >= 0x7F && c <= 0x9F); }

/// Whether `c` is seen where it stands, and leaves what stands around it as it is. Not so: controls; what turns the
/// direction of writing; ends of lines and paragraphs; characters of no width, by which two names look alike;
/// noncharacters. Letters of any language, their marks and all spaces are.
bool is_visible(char32_t c) noexcept;

/// Bytes of the visible code point at the front of `text`; 0: none, and what is there is to be escaped byte by byte.
std::size_t visible_sequence(std::string_view text) noexcept;

/// `text` with all that is not visible, and bytes that are no UTF-8, as \xNN, byte by byte. For whole messages: quotes
/// and backslashes stay, so that doing it twice changes nothing.
std::string visible(std::string_view text);

/// The same, quotes and backslashes escaped, too: for what stands between quotes, and for fields of a line. What two
/// texts are made into differs where they differ.
std::string printable(std::string_view text);

/// `json`, valid JSON, with the same meaning and without anything that is not visible: \uNNNN within strings, blanks
/// between them.
std::string visible_json(std::string_view json);

}  // namespace stepstash
