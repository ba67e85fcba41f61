// SPDX-License-Identifier: Apache-2.0
/// The worked examples of docs/protocol.md against what the codec makes of the same messages.
#include <boost/test/unit_test.hpp>
#include <fstream>
#include <sstream>
#include <utility>

#include "tests/protocol/samples.hpp"

namespace stepstash::protocol {
namespace {

/// The bytes of the fenced block that follows `<!-- example: NAME -->`: hexadecimal, up to a `|` on each line.
std::string documented(const std::string& name) {
  std::ifstream page(STEPSTASH_SOURCE_DIR "/docs/protocol.md");
  std::string line, bytes;
  while (std::getline(page, line) && line != "<!-- example: " + name + " -->") {
  }
  if (!std::getline(page, line) || line.rfind("```", 0) != 0) return "no example of that name";
  while (std::getline(page, line) && line.rfind("```", 0) != 0) {
    std::istringstream left(line.substr(0, line.find('|')));
    for (std::string byte; left >> byte;) bytes += (bytes.empty() ? "" : " ") + byte;
  }
  return bytes;
}

std::string hex(const std::vector<std::byte>& frame) {
  std::string out;
  for (const std::byte b : frame) {
    constexpr const char* digits = "0123456789abcdef";
    if (!out.empty()) out += ' ';
    out += digits[std::to_integer<unsigned>(b) >> 4];
    out += digits[std::to_integer<unsigned>(b) & 15];
  }
  return out;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(protocol_doc)

BOOST_AUTO_TEST_CASE(the_documented_hello_is_what_the_codec_sends) {
  BOOST_TEST(documented("hello") == hex(frame_of(Request(Hello{.attach = true}))));
  BOOST_TEST(documented("hello-1") == hex(frame_of(Request(Hello{.versions = {1, 1}, .attach = true}))));
}

BOOST_AUTO_TEST_CASE(the_documented_answer_to_a_former_hello_is_what_the_codec_sends) {
  HelloOk ok{
      .version = 1, .segment_bytes = 64 << 20, .pin_page = 3, .max_value_bytes = 32 << 20, .server_version = "0.2.0"};
  for (std::size_t i = 0; i < ok.segment_id.size(); ++i) ok.segment_id[i] = static_cast<std::uint8_t>(0xA0 + i);
  BOOST_TEST(documented("hello-ok-1") == hex(frame_of(Reply(ok))));
}

BOOST_AUTO_TEST_CASE(the_documented_set_is_what_the_codec_sends) {
  const SetParams params{.build = 42, .name = "report", .source = "unit tests", .deadline_ms = 10'000};
  BOOST_TEST(documented("set") == hex(frame_of(Request(Set{params, as_bytes("ok\n")}))));
}

BOOST_AUTO_TEST_CASE(the_documented_reply_is_what_the_codec_sends) {
  BOOST_TEST(documented("set-ok") == hex(frame_of(Reply(SetOk{7, 1000}))));
}

BOOST_AUTO_TEST_CASE(the_documented_failure_is_what_the_codec_sends) {
  BOOST_TEST(documented("failure") == hex(frame_of(Reply(Failure{Errc::too_large, "too large"}))));
}

BOOST_AUTO_TEST_CASE(the_documented_page_of_builds_is_what_the_codec_sends) {
  BOOST_TEST(documented("builds") == hex(frame_of(Request(Builds{41}))));
  BuildsPage page;
  page.builds.push_back({42, 3, 588'895, 0, 1'700'000'000, true});
  BOOST_TEST(documented("builds-page") == hex(frame_of(Reply(page))));
}

BOOST_AUTO_TEST_CASE(every_error_number_is_in_the_page) {
  std::ifstream page(STEPSTASH_SOURCE_DIR "/docs/protocol.md");
  std::stringstream text;
  text << page.rdbuf();
  int documented_codes = 0;
  for (int code = 1; make_error_code(static_cast<Errc>(code)).message() != "unknown stepstash error"; ++code) {
    const std::string row = "\n| " + std::to_string(code) + " | ";
    BOOST_TEST((text.str().find(row) != std::string::npos), "no row for error " << code);
    ++documented_codes;
  }
  BOOST_TEST(documented_codes >= 24);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace stepstash::protocol
