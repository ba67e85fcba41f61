#include "base/text.hpp"

#include <boost/test/unit_test.hpp>

namespace stepstash {
namespace {

BOOST_AUTO_TEST_SUITE(text)

BOOST_AUTO_TEST_CASE(no_name_can_forge_a_line_or_end_a_quotation) {
  BOOST_TEST(printable("a\nb\r\tc\"d\\e\x7f\x01") == "a\\x0ab\\x0d\\x09c\\x22d\\x5ce\\x7f\\x01");
  BOOST_TEST(printable(std::string_view("\0", 1)) == "\\x00");
}

BOOST_AUTO_TEST_CASE(letters_of_any_language_stay_as_they_are) {
  BOOST_TEST(printable("Prüfbericht 試験 ok") == "Prüfbericht 試験 ok");
  BOOST_TEST(printable("").empty());
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace stepstash
