// SPDX-License-Identifier: Apache-2.0
// Names and sources: Unicode 15, table 3-7, is the authority on what is well-formed.
#include "base/types.hpp"

#include <boost/test/unit_test.hpp>
#include <limits>

namespace stepstash {
namespace {

using namespace std::string_literals;

std::string repeated(std::string_view piece, std::size_t times) {
  std::string out;
  for (std::size_t i = 0; i < times; ++i) out += piece;
  return out;
}

/// The shortest encoding by plain arithmetic, surrogates and all: what is encoded here is judged elsewhere.
std::string encoded(char32_t c) {
  const auto byte = [](char32_t value) { return static_cast<char>(static_cast<unsigned char>(value)); };
  if (c < 0x80) return {byte(c)};
  if (c < 0x800) return {byte(0xC0 | c >> 6), byte(0x80 | (c & 63))};
  if (c < 0x10000) return {byte(0xE0 | c >> 12), byte(0x80 | (c >> 6 & 63)), byte(0x80 | (c & 63))};
  return {byte(0xF0 | c >> 18), byte(0x80 | (c >> 12 & 63)), byte(0x80 | (c >> 6 & 63)), byte(0x80 | (c & 63))};
}

struct Case {
  const char* what;
  std::string text;
  bool valid;
};

BOOST_AUTO_TEST_SUITE(types)

BOOST_AUTO_TEST_CASE(a_text_is_valid_exactly_when_the_table_says_so) {
  const Case cases[] = {
      {"empty", "", true},
      {"ASCII", "report/unit.xml", true},
      {"a newline", "a\nb", true},
      {"DEL", "\x7f", true},
      {"NUL alone", "\0"s, false},
      {"NUL inside", "a\0b"s, false},
      {"first of two bytes", "\xC2\x80", true},
      {"last of two bytes", "\xDF\xBF", true},
      {"first of three bytes", "\xE0\xA0\x80", true},
      {"before the surrogates", "\xED\x9F\xBF", true},
      {"after the surrogates", "\xEE\x80\x80", true},
      {"U+FFFF", "\xEF\xBF\xBF", true},
      {"first of four bytes", "\xF0\x90\x80\x80", true},
      {"U+10FFFF, the last", "\xF4\x8F\xBF\xBF", true},
      {"overlong NUL", "\xC0\x80", false},
      {"overlong slash, two bytes", "\xC0\xAF", false},
      {"overlong DEL", "\xC1\xBF", false},
      {"overlong slash, three bytes", "\xE0\x80\xAF", false},
      {"overlong U+07FF", "\xE0\x9F\xBF", false},
      {"overlong slash, four bytes", "\xF0\x80\x80\xAF", false},
      {"overlong U+FFFF", "\xF0\x8F\xBF\xBF", false},
      {"first surrogate", "\xED\xA0\x80", false},
      {"last surrogate", "\xED\xBF\xBF", false},
      {"a surrogate pair (CESU-8)", "\xED\xA0\xBD\xED\xB8\x80", false},
      {"beyond U+10FFFF", "\xF4\x90\x80\x80", false},
      {"lead F5", "\xF5\x80\x80\x80", false},
      {"five bytes", "\xF8\x88\x80\x80\x80", false},
      {"FE", "\xFE", false},
      {"FF", "\xFF", false},
      {"a continuation alone", "\x80", false},
      {"a continuation too many", "\xC3\xA9\xA9", false},
      {"two bytes cut", "\xC3", false},
      {"three bytes cut at one", "\xE2", false},
      {"three bytes cut at two", "\xE2\x82", false},
      {"four bytes cut at three", "\xF0\x9F\x98", false},
      {"two bytes, then a letter", "\xC3z", false},
      {"three bytes, then a letter", "\xE2\x82z", false},
      {"four bytes, then a letter", "\xF0\x9F\x98z", false},
      {"three bytes cut by NUL", "\xE2\x82\0"s, false},
      {"fault behind valid text", "ok \xC3\xA9 \xFF", false},
      {"256 letters", std::string(256, 'n'), true},
      {"257 letters", std::string(257, 'n'), false},
      {"256 characters of two bytes", repeated("\xC3\xA9", 256), true},
      {"257 characters of two bytes", repeated("\xC3\xA9", 257), false},
      {"256 characters of four bytes, 1024 bytes", repeated("\xF0\x9F\x98\x80", 256), true},
      {"257 characters of four bytes, 1028 bytes", repeated("\xF0\x9F\x98\x80", 257), false},
      {"255 of four bytes and one cut", repeated("\xF0\x9F\x98\x80", 255) + "\xF0\x9F\x98", false},
  };
  for (const Case& one : cases) BOOST_TEST(valid_text(one.text) == one.valid, one.what);
}

BOOST_AUTO_TEST_CASE(every_code_point_but_nul_and_the_surrogates_is_a_valid_text) {
  std::size_t wrong = 0;
  for (char32_t c = 0; c <= 0x110000; ++c) {
    const bool valid = c != 0 && (c < 0xD800 || c > 0xDFFF) && c <= 0x10FFFF;
    wrong += valid_text(encoded(c)) != valid;
  }
  BOOST_TEST(wrong == 0u);
}

/// All two-byte strings at once: nothing outside table 3-7 slips through.
BOOST_AUTO_TEST_CASE(of_all_pairs_of_bytes_those_of_the_table_are_valid) {
  std::size_t valid = 0;
  for (int a = 0; a < 256; ++a) {
    for (int b = 0; b < 256; ++b) valid += valid_text({std::initializer_list<char>{char(a), char(b)}.begin(), 2});
  }
  BOOST_TEST(valid == 127u * 127u + 30u * 64u);  // two letters, or one character of two bytes
}

BOOST_AUTO_TEST_CASE(a_view_that_ends_inside_a_longer_string_is_judged_by_its_own_end) {
  const std::string text = "a\xC3\xA9";
  BOOST_TEST(valid_text(std::string_view(text).substr(0, 3)));
  BOOST_TEST(!valid_text(std::string_view(text).substr(0, 2)));
}

BOOST_AUTO_TEST_CASE(builds_are_the_positive_numbers) {
  BOOST_TEST(!valid_build(std::numeric_limits<BuildId>::min()));
  BOOST_TEST(!valid_build(-1));
  BOOST_TEST(!valid_build(0));
  BOOST_TEST(valid_build(1));
  BOOST_TEST(valid_build(std::numeric_limits<BuildId>::max()));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace stepstash
