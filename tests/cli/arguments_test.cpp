#define BOOST_TEST_MODULE cli
#include "cli/arguments.hpp"

#include <boost/test/unit_test.hpp>
#include <vector>

namespace stepstash::cli {
namespace {

using namespace std::chrono_literals;

Parsed parse(std::vector<const char*> words, const char* environment = nullptr) {
  words.insert(words.begin(), "stepstash");
  return parse_arguments(static_cast<int>(words.size()), words.data(), environment);
}

Arguments good(std::vector<const char*> words, const char* environment = nullptr) {
  const Parsed parsed = parse(std::move(words), environment);
  BOOST_TEST_REQUIRE(parsed.arguments.has_value(), parsed.text);
  return *parsed.arguments;
}

/// The complaint; empty when there was none.
std::string refused(std::vector<const char*> words, const char* environment = nullptr) {
  const Parsed parsed = parse(std::move(words), environment);
  if (parsed.arguments || parsed.exit_status != kUsage) return {};
  return parsed.text;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(arguments)

BOOST_AUTO_TEST_CASE(a_first_argument_that_is_a_whole_number_is_the_build) {
  const Arguments a = good({"set", "42", "report", "file", "--source", "s", "--durable", "--if-absent"}, "7");
  BOOST_TEST(a.build == 42);
  BOOST_TEST(a.name.value() == "report");
  BOOST_TEST(a.file == "file");
  BOOST_TEST(a.source == "s");
  BOOST_TEST(a.durable);
  BOOST_TEST(a.if_absent);
}

BOOST_AUTO_TEST_CASE(otherwise_the_build_comes_from_the_environment) {
  const Arguments a = good({"set", "report", "file"}, "7");
  BOOST_TEST(a.build == 7);
  BOOST_TEST(a.name.value() == "report");
  BOOST_TEST(a.file == "file");
  BOOST_TEST(good({"finish"}, "7").build == 7);
  BOOST_TEST(good({"list"}, "7").build == 7);
  BOOST_TEST(!good({"list"}, "7").name.has_value());
  BOOST_TEST(good({"list", "report"}, "7").name.value() == "report");
  BOOST_TEST(good({"list", "42"}, "7").build == 42);
}

BOOST_AUTO_TEST_CASE(with_the_option_no_argument_is_the_build) {
  const Arguments a = good({"set", "--build", "9", "2024", "file"}, "7");
  BOOST_TEST(a.build == 9);
  BOOST_TEST(a.name.value() == "2024");
  BOOST_TEST(a.file == "file");
  BOOST_TEST(good({"get", "2024", "--build=9"}).name.value() == "2024");
}

BOOST_AUTO_TEST_CASE(builds_that_are_none_are_refused) {
  for (const char* build : {"0", "-1", "9223372036854775808", "99999999999999999999"}) {
    BOOST_TEST(refused({"get", "--", build, "n"}).find("9223372036854775807") != std::string::npos, build);
  }
  for (const char* build : {"", "0", "x", "1e3", " 1", "1 ", "+1", "0x10"}) {
    BOOST_TEST(!refused({"get", "--build", build, "n"}).empty(), "--build '" << build << "'");
    if (*build != 0) BOOST_TEST(!refused({"get", "n"}, build).empty(), "$STEPSTASH_BUILD '" << build << "'");
  }
  BOOST_TEST(good({"get", "9223372036854775807", "n"}).build == INT64_MAX);
}

BOOST_AUTO_TEST_CASE(what_is_missing_or_too_much_is_refused) {
  BOOST_TEST(!refused({}).empty());
  BOOST_TEST(!refused({"get"}).empty());
  BOOST_TEST(!refused({"get", "42"}).empty());
  BOOST_TEST(!refused({"get", "report"}).empty());  // no build anywhere
  BOOST_TEST(!refused({"get", "42", "a", "b"}).empty());
  BOOST_TEST(!refused({"get", "a", "b"}, "7").empty());
  BOOST_TEST(!refused({"set", "1", "2", "3", "4"}).empty());
  BOOST_TEST(!refused({"finish", "42", "43"}).empty());
  BOOST_TEST(!refused({"flush", "42"}).empty());
  BOOST_TEST(!refused({"prune"}).empty());
  BOOST_TEST(!refused({"frobnicate"}).empty());
  BOOST_TEST(!refused({"get", "42", "a", "--frobnicate"}).empty());
}

BOOST_AUTO_TEST_CASE(names_arrive_as_they_are) {
  for (const char* name : {"", "[a,b]", "{}", "a b", "%%", "stats", "set", "na\xC3\xAFve", "a\nb", "../x", "@f"}) {
    BOOST_TEST(good({"get", "42", name}).name.value() == name, "'" << name << "'");
  }
  BOOST_TEST(good({"get", "--", "42", "-o"}).name.value() == "-o");
  BOOST_TEST(good({"get", "42", "--", "--help"}).name.value() == "--help");
}

BOOST_AUTO_TEST_CASE(durations_need_a_unit_and_fit_the_protocol) {
  BOOST_TEST((duration("200ms") == 200ms));
  BOOST_TEST((duration("5s") == 5s));
  BOOST_TEST((duration("2min") == 120s));
  BOOST_TEST((duration("1h") == 3600s));
  BOOST_TEST((duration("49d") == 49 * 24h));
  for (const char* text : {"", "5", "s", "-1s", "1.5s", "5 s", "50d", "5m", "99999999999999999999s", "5sec"}) {
    BOOST_TEST(!duration(text).has_value(), "'" << text << "'");
  }
  BOOST_TEST((good({"get", "42", "n", "--wait", "0s"}).wait == 0ms));
  BOOST_TEST(!refused({"get", "42", "n", "--wait", "5"}).empty());
  BOOST_TEST(!refused({"get", "42", "n", "--timeout", "0s"}).empty());
}

BOOST_AUTO_TEST_CASE(times_are_whole_seconds_of_either_sign) {
  BOOST_TEST(good({"finish", "42", "--at", "1700000000"}).at.value() == 1'700'000'000);
  BOOST_TEST(good({"prune", "--older-than=-5"}).at.value() == -5);
  for (const char* text : {"", "now", "1e9", "1.5", "9223372036854775808", "-9223372036854775808"}) {
    BOOST_TEST(!refused({"finish", "42", (std::string("--at=") + text).c_str()}).empty(), "'" << text << "'");
  }
}

BOOST_AUTO_TEST_CASE(help_is_no_error_and_tells_the_exit_statuses) {
  for (const char* command :
       {"set", "get", "stat", "list", "finish", "prune", "drop", "hold", "unhold", "flush", "doctor", "stats"}) {
    const Parsed parsed = parse({command, "--help"});
    BOOST_TEST(parsed.exit_status == kDone);
    BOOST_TEST(parsed.text.find(std::string("Usage: stepstash ") + command) != std::string::npos, command);
    BOOST_TEST(parsed.text.find("Examples:") != std::string::npos, command);
    BOOST_TEST(parsed.text.find("77 not permitted") != std::string::npos, command);
  }
  BOOST_TEST(parse({"--version"}).text == "stepstash " STEPSTASH_VERSION "\n");
}

BOOST_AUTO_TEST_CASE(a_complaint_cannot_be_forged_by_its_arguments) {
  const std::string text = refused({"get", "42", "a", "evil\nstepstash: all is well"});
  BOOST_TEST(text.find("\nstepstash: all is well") == std::string::npos);
  BOOST_TEST(!text.empty());
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace stepstash::cli
