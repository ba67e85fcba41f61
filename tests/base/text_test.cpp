// SPDX-License-Identifier: Apache-2.0
#include "base/text.hpp"

#include <boost/test/unit_test.hpp>
#include <random>
#include <vector>

namespace stepstash {
namespace {

using namespace std::string_view_literals;

/// The test's own encoder and decoder: nothing of text.cpp's.
std::string encode(char32_t c) {
  const auto byte = [](char32_t bits) { return static_cast<char>(bits); };
  if (c < 0x80) return {byte(c)};
  if (c < 0x800) return {byte(0xC0 | c >> 6), byte(0x80 | (c & 63))};
  if (c < 0x10000) return {byte(0xE0 | c >> 12), byte(0x80 | (c >> 6 & 63)), byte(0x80 | (c & 63))};
  return {byte(0xF0 | c >> 18), byte(0x80 | (c >> 12 & 63)), byte(0x80 | (c >> 6 & 63)), byte(0x80 | (c & 63))};
}

/// Whether `text` is UTF-8 in which no code point is obeyed by a terminal or turns or hides what stands beside it.
bool harmless(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    const auto lead = static_cast<unsigned char>(text[at]);
    const std::size_t bytes = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    if ((lead >= 0x80 && lead < 0xC2) || lead > 0xF4 || at + bytes > text.size()) return false;
    char32_t c = bytes == 1 ? lead : lead & (0xFFu >> (bytes + 1));
    for (std::size_t i = 1; i < bytes; ++i) {
      const auto next = static_cast<unsigned char>(text[at + i]);
      if ((next & 0xC0) != 0x80) return false;
      c = c << 6 | (next & 63);
    }
    if (encode(c) != text.substr(at, bytes) || (c >= 0xD800 && c < 0xE000) || c > 0x10FFFF) return false;
    const bool control = c < 0x20 || (c >= 0x7F && c < 0xA0);
    const bool turns =
        c == 0x61C || c == 0x200E || c == 0x200F || (c >= 0x202A && c <= 0x202E) || (c >= 0x2066 && c <= 0x2069);
    const bool hides = c == 0xAD || (c >= 0x200B && c <= 0x200D) || c == 0x2028 || c == 0x2029 || c == 0x2060 ||
                       c == 0xFEFF || (c >= 0xE0001 && c <= 0xE007F);
    if (control || turns || hides) return false;
    at += bytes;
  }
  return true;
}

/// Undoes printable().
std::string undone(std::string_view text) {
  std::string out;
  for (std::size_t at = 0; at < text.size(); ++at) {
    if (text[at] != '\\') {
      out += text[at];
      continue;
    }
    out += static_cast<char>(std::stoi(std::string(text.substr(at + 2, 2)), nullptr, 16));
    at += 3;
  }
  return out;
}

BOOST_AUTO_TEST_SUITE(text)

BOOST_AUTO_TEST_CASE(no_name_can_forge_a_line_or_end_a_quotation) {
  BOOST_TEST(printable("a\nb\r\tc\"d\\e\x7f\x01") == "a\\x0ab\\x0d\\x09c\\x22d\\x5ce\\x7f\\x01");
  BOOST_TEST(printable(std::string_view("\0", 1)) == "\\x00");
}

BOOST_AUTO_TEST_CASE(letters_of_any_language_stay_as_they_are) {
  for (const char* text :
       {"Prüfbericht 試験 ok", "שלום", "مرحبا", "हिन्दी", "e\u0301", "\U0001F4BE", "\u00A0\u3000", ""}) {
    BOOST_TEST(printable(text) == text);
    BOOST_TEST(visible(text) == text);
    BOOST_TEST(visible_json(text) == text);
  }
}

BOOST_AUTO_TEST_CASE(what_a_terminal_obeys_or_what_deceives_the_eye_is_escaped) {
  BOOST_TEST(printable("a\xc2\x9b"
                       "31mred") == "a\\xc2\\x9b31mred");
  BOOST_TEST(visible("a\u202Egpj.exe") == "a\\xe2\\x80\\xaegpj.exe");
  BOOST_TEST(visible("\u2066x\u2069 \uFEFF\u200B\u2028 \U000E0041 \u00AD") ==
             "\\xe2\\x81\\xa6x\\xe2\\x81\\xa9 \\xef\\xbb\\xbf\\xe2\\x80\\x8b\\xe2\\x80\\xa8 \\xf3\\xa0\\x81\\x81 "
             "\\xc2\\xad");
}

BOOST_AUTO_TEST_CASE(bytes_that_are_no_utf8_are_escaped_and_what_follows_them_is_read) {
  BOOST_TEST(visible("\xff"
                     "a\xc3") == "\\xffa\\xc3");
  BOOST_TEST(visible("\xe2\x82z") == "\\xe2\\x82z");
  BOOST_TEST(visible("\xc0\x9b\xed\xa0\x80\xf5") == "\\xc0\\x9b\\xed\\xa0\\x80\\xf5");
  BOOST_TEST(visible("\xc2\xc2\x9b") == "\\xc2\\xc2\\x9b");
}

BOOST_AUTO_TEST_CASE(a_whole_message_keeps_its_quotes_and_may_be_made_visible_twice) {
  BOOST_TEST(visible("name \"a\\x0a\": \x1b[0m") == "name \"a\\x0a\": \\x1b[0m");
  BOOST_TEST(visible(visible("\x1b\xff\u202E")) == visible("\x1b\xff\u202E"));
}

BOOST_AUTO_TEST_CASE(json_keeps_its_meaning) {
  BOOST_TEST(visible_json("{\"n\":\"a\xc2\x9b\x7f\u202E\",\n\t\"t\":\"\U000E0041\"}") ==
             "{\"n\":\"a\\u009b\\u007f\\u202e\",  \"t\":\"\\udb40\\udc41\"}");
  BOOST_TEST(visible_json("\"\\u009b\\n\"") == "\"\\u009b\\n\"");
}

BOOST_AUTO_TEST_CASE(of_every_code_point_nothing_harmful_comes_out) {
  std::size_t shown = 0;
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    const std::string one = encode(c);
    const std::string out = printable(one);
    if (!harmless(out) || undone(out) != one || !harmless(visible(one)) || !harmless(visible_json(one))) {
      BOOST_ERROR("U+" << std::hex << static_cast<std::uint32_t>(c) << " becomes " << out);
    }
    shown += visible(one) == one ? 1 : 0;
  }
  BOOST_TEST(shown > 1'100'000u);  // almost all of them
}

BOOST_AUTO_TEST_CASE(of_random_bytes_nothing_harmful_comes_out_and_they_can_be_told_from_it) {
  std::mt19937 random(20'240'607);
  const std::vector<std::string> pieces = {
      "\xc2", "\x9b", "\xe2\x80", "\xae", "\x1b[",  "\xef\xbb\xbf", "\xf3\xa0\x81\x81",
      "a",    "\"",   "\\",       "\n",   "\u00fc", "\xed\xa0\x80", "\xf4\x90\x80\x80"};
  for (int i = 0; i < 100'000; ++i) {
    std::string bytes;
    for (auto n = random() % 12; n > 0; --n) {
      bytes += random() % 2 == 0 ? std::string(1, static_cast<char>(random())) : pieces[random() % pieces.size()];
    }
    const std::string out = printable(bytes);
    if (!harmless(out) || undone(out) != bytes) BOOST_ERROR("harmful or ambiguous: " << out);
    const std::string message = visible(bytes);
    if (!harmless(message) || visible(message) != message) BOOST_ERROR("harmful, or changes: " << message);
    if (!harmless(visible_json(bytes))) BOOST_ERROR("harmful: " << visible_json(bytes));
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace stepstash
