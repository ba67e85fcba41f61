// SPDX-License-Identifier: Apache-2.0
#include "cli/output.hpp"

#include <boost/test/unit_test.hpp>

#include "base/text.hpp"

namespace stepstash::cli {

BOOST_AUTO_TEST_SUITE(output)

BOOST_AUTO_TEST_CASE(text_for_terminals_is_utf8_without_control_characters) {
  for (const char* text : {"", "plain\n", "tab\tand\r\n", "na\xC3\xAFve \xE2\x82\xAC \xF0\x9F\x92\xBE"}) {
    BOOST_TEST(is_text(text), text);
  }
  using namespace std::string_view_literals;
  for (const std::string_view text : {"a\0b"sv, "\x1b[31m"sv, "\x7f"sv, "\xff"sv, "\xC3"sv, "\xC0\x80"sv,
                                      "\xED\xA0\x80"sv, "\xC2\x9B"sv, "\xE2\x82"sv, "\xF5\x80\x80\x80"sv, "\x08"sv}) {
    BOOST_TEST(!is_text(text));
  }
}

BOOST_AUTO_TEST_CASE(each_entry_has_a_line_whatever_its_name_is) {
  const std::vector<Entry> entries = {{1, 2, 42, 3, "a", "s"}, {4, 5, 42, 6, "two\nlines\tand a tab", "\x1b[31m"}};
  BOOST_TEST(list_text(entries, false) == "1\t3\ta\ts\n4\t6\ttwo\\x0alines\\x09and a tab\t\\x1b[31m\n");
  const std::string table = list_text(entries, true);
  BOOST_TEST(std::count(table.begin(), table.end(), '\n') == 3);
  BOOST_TEST(table.find("\x1b") == std::string::npos);
  BOOST_TEST(list_text({}, false).empty());
}

BOOST_AUTO_TEST_CASE(no_name_and_no_daemon_commands_the_terminal) {
  const std::string evil =
      "a\xc2\x9b"
      "31m\xe2\x80\xae";
  const std::vector<Entry> entries = {{1, 2, 42, 3, evil, evil}};
  BOOST_TEST(list_text(entries, false) == "1\t3\ta\\xc2\\x9b31m\\xe2\\x80\\xae\ta\\xc2\\x9b31m\\xe2\\x80\\xae\n");
  BOOST_TEST(list_json(entries) == R"([{"id":1,"revision":2,"buildid":42,"name":"a\u009b31m\u202e","length":3,)"
                                   R"("source":"a\u009b31m\u202e"}])"
                                   "\n");
  // Another program may answer on the socket.
  const std::string json = "{\"" + evil + "\":\"" + evil + "\"}";
  BOOST_TEST(stats_text(json) == "a\\xc2\\x9b31m\\xe2\\x80\\xae  a\\xc2\\x9b31m\\xe2\\x80\\xae\n");
  BOOST_TEST(stats_json(json) == R"({"a\u009b31m\u202e":"a\u009b31m\u202e"})"
                                 "\n");
  for (const std::string& cut : {"{\x1b[31m\n" + evil, evil}) {
    BOOST_TEST(stats_text(cut) == visible(cut) + "\n");
    BOOST_TEST(stats_json(cut) == visible(cut) + "\n");
  }
}

BOOST_AUTO_TEST_CASE(json_has_buildbots_words) {
  BOOST_TEST(list_json({{1, 2, 42, 3, "a\"b", "s"}}) ==
             R"([{"id":1,"revision":2,"buildid":42,"name":"a\"b","length":3,"source":"s"}])"
             "\n");
  BOOST_TEST(list_json({}) == "[]\n");
}

BOOST_AUTO_TEST_CASE(builds_are_listed_for_scripts_terminals_and_as_json) {
  const std::vector<Build> builds = {{42, 3, 1000, 24, 1'700'000'000, true}, {43, 1, 0, 0, std::nullopt, false}};
  BOOST_TEST(builds_text(builds, false) == "42\t3\t1000\t24\t1700000000\theld\n43\t1\t0\t0\t-\t-\n");
  BOOST_TEST(builds_text(builds, true) ==
             "BUILD  ENTRIES  RESIDENT  EVICTED  FINISHED              HELD\n"
             "   42        3      1000       24  2023-11-14T22:13:20Z  held\n"
             "   43        1         0        0  -                     -\n");
  BOOST_TEST(builds_text({}, false).empty());
  // Any number of seconds is legal, also where no calendar has a date for it.
  BOOST_TEST(builds_text({{1, 1, 1, 1, INT64_MAX, false}}, true).find("9223372036854775807") != std::string::npos);
  BOOST_TEST(
      builds_json(builds) ==
      R"([{"buildid":42,"entries":3,"resident_bytes":1000,"evicted_bytes":24,"complete_at":1700000000,"held":true},)"
      R"({"buildid":43,"entries":1,"resident_bytes":0,"evicted_bytes":0,"complete_at":null,"held":false}])"
      "\n");
  BOOST_TEST(builds_json({}) == "[]\n");
}

BOOST_AUTO_TEST_CASE(builds_are_put_in_order_by_number_bytes_and_time) {
  const auto sorted = [](Sort by) {
    std::vector<Build> builds = {{4, 1, 5, 0, 100, false},
                                 {1, 9, 0, 7, std::nullopt, false},
                                 {3, 1, 2, 3, -100, true},
                                 {2, 1, 0, 0, 100, false}};
    sort_builds(builds, by);
    std::vector<std::int64_t> order;
    for (const Build& build : builds) order.push_back(build.build);
    return order;
  };
  BOOST_TEST(sorted(Sort::build) == (std::vector<std::int64_t>{1, 2, 3, 4}), boost::test_tools::per_element());
  BOOST_TEST(sorted(Sort::bytes) == (std::vector<std::int64_t>{1, 3, 4, 2}), boost::test_tools::per_element());
  BOOST_TEST(sorted(Sort::time) == (std::vector<std::int64_t>{2, 4, 3, 1}), boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(stats_are_one_line_each_and_what_is_no_json_is_shown_as_it_is) {
  BOOST_TEST(stats_text(R"({"sets":1,"segment":{"total_bytes":2,"name":"x"}})") ==
             "sets                 1\nsegment.total_bytes  2\nsegment.name         x\n");
  BOOST_TEST(stats_text("{cut") == "{cut\n");
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace stepstash::cli
