// SPDX-License-Identifier: Apache-2.0
#include "base/errc.hpp"

#include <boost/test/unit_test.hpp>
#include <set>
#include <string>

namespace stepstash {
namespace {

constexpr int kLast = static_cast<int>(Errc::foreign_database);

BOOST_AUTO_TEST_SUITE(errc)

BOOST_AUTO_TEST_CASE(every_code_has_a_text_of_its_own) {
  std::set<std::string> texts;
  for (int code = 1; code <= kLast; ++code) {
    const std::string text = make_error_code(static_cast<Errc>(code)).message();
    BOOST_TEST(text != "unknown stepstash error", "code " << code);
    BOOST_TEST(texts.insert(text).second, "code " << code << " says what another one says: " << text);
  }
}

BOOST_AUTO_TEST_CASE(a_number_that_is_no_code_is_said_to_be_unknown) {
  BOOST_TEST(make_error_code(static_cast<Errc>(kLast + 1)).message() == "unknown stepstash error");
}

/// They travel in the protocol.
BOOST_AUTO_TEST_CASE(the_numbers_are_the_published_ones) {
  BOOST_TEST(static_cast<int>(Errc::not_found) == 1);
  BOOST_TEST(static_cast<int>(Errc::segment_full) == 4);
  BOOST_TEST(static_cast<int>(Errc::condition_failed) == 7);
  BOOST_TEST(static_cast<int>(Errc::corrupt_segment) == 12);
  BOOST_TEST(static_cast<int>(Errc::not_durable) == 17);
  BOOST_TEST(static_cast<int>(Errc::unavailable) == 20);
  BOOST_TEST(kLast == 24);
}

BOOST_AUTO_TEST_CASE(a_code_of_ours_never_equals_an_errno_of_the_same_number) {
  const std::error_code ours = Errc::not_found;
  BOOST_TEST((ours == Errc::not_found));
  BOOST_TEST((ours != std::error_code(1, std::system_category())));
  BOOST_TEST(ours.category().name() == std::string("stepstash"));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace stepstash
