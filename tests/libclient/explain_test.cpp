// SPDX-License-Identifier: Apache-2.0
#include "libclient/explain.hpp"

#include <boost/test/unit_test.hpp>
#include <cstring>
#include <string>
#include <thread>

#include "base/text.hpp"

namespace stepstash::client {

BOOST_AUTO_TEST_SUITE(explain_)

BOOST_AUTO_TEST_CASE(an_explanation_is_kept_for_its_own_code_only) {
  explain(Errc::segment_full, "%d bytes do not fit", 7);
  BOOST_TEST(std::string(explanation(Errc::segment_full)) == "7 bytes do not fit");
  BOOST_TEST(std::string(explanation(Errc::too_many)) == make_error_code(Errc::too_many).message());
}

BOOST_AUTO_TEST_CASE(a_forgotten_explanation_explains_nothing) {
  explain(Errc::segment_full, "old");
  forget_explanation();
  BOOST_TEST(std::string(explanation(Errc::segment_full)) == make_error_code(Errc::segment_full).message());
}

BOOST_AUTO_TEST_CASE(each_thread_has_its_own_explanation) {
  explain(Errc::segment_full, "mine");
  std::thread([] { explain(Errc::segment_full, "theirs"); }).join();
  BOOST_TEST(std::string(last_explanation()) == "mine");
}

BOOST_AUTO_TEST_CASE(long_explanations_are_cut) {
  explain(Errc::segment_full, "%s", std::string(5000, 'x').c_str());
  BOOST_TEST(std::strlen(last_explanation()) == 1023u);
}

BOOST_AUTO_TEST_CASE(what_stands_in_an_explanation_cannot_command_a_terminal) {
  explain(Errc::segment_full, "%s: %s",
          "/tmp/a\xc2\x9b"
          "31m",
          "\x1b]0;x\x07\n\xe2\x80\xae\xff");
  BOOST_TEST(std::string(last_explanation()) == "/tmp/a\\xc2\\x9b31m: \\x1b]0;x\\x07\\x0a\\xe2\\x80\\xae\\xff");
  // Escapes take more room than what they stand for, and a cut leaves no half of one, nor of a character.
  for (const char* piece : {"\x1b", "\xe2\x82\xac", "\xff"}) {
    for (std::size_t before = 0; before < 4; ++before) {
      std::string text(before, 'x');
      while (text.size() < 3000) text += piece;
      explain(Errc::segment_full, "%s", text.c_str());
      const std::string kept = last_explanation();
      BOOST_TEST(kept.size() >= 1020u);
      BOOST_TEST(kept.size() <= 1023u);
      BOOST_TEST(visible(kept) == kept);
      const std::string shown = visible(text);
      BOOST_TEST(kept == shown.substr(0, kept.size()));
      BOOST_TEST((kept.size() - before) % visible(piece).size() == 0u);
    }
  }
}

BOOST_AUTO_TEST_CASE(quoted_text_stays_on_one_line) {
  BOOST_TEST(std::string(Quoted("a\nb\x7F\"\\").c_str()) == R"("a\x0ab\x7f\"\\")");
  BOOST_TEST(std::string(Quoted("na\xC3\xAFve").c_str()) == "\"na\xC3\xAFve\"");
  BOOST_TEST(std::string(Quoted("a\xC2\x9B\xE2\x80\xAE\xFF").c_str()) == R"("a\xc2\x9b\xe2\x80\xae\xff")");
  BOOST_TEST(std::string(Quoted("").c_str()) == "\"\"");
}

BOOST_AUTO_TEST_CASE(quoted_text_of_any_bytes_and_length_fits_its_buffer) {
  for (std::size_t length = 0; length < 300; ++length) {
    for (const char c : {'x', '\n', '"', '\x80', '\xE2', '\xFF'}) {
      BOOST_TEST_REQUIRE(std::strlen(Quoted(std::string(length, c)).c_str()) < 96u);
    }
    std::string euros;
    for (std::size_t i = 0; i < length; ++i) euros += "\xE2\x82\xAC";
    BOOST_TEST_REQUIRE(std::strlen(Quoted(euros).c_str()) < 96u);
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace stepstash::client
