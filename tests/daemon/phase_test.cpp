// SPDX-License-Identifier: Apache-2.0
// The phases of a start: their names, and how long each took.
#include "daemon/phase.hpp"

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <set>
#include <string>

using namespace stepstash::daemon;
using namespace std::chrono_literals;

namespace {

struct Times {
  PhaseTimes times;
  PhaseTimes::Instant start = std::chrono::steady_clock::now();
};

}  // namespace

BOOST_FIXTURE_TEST_SUITE(phase, Times)

BOOST_AUTO_TEST_CASE(a_phase_lasts_until_the_next_one_begins) {
  times.enter(Phase::opening_database, start);
  times.enter(Phase::attaching_segment, start + 2ms);
  times.end(start + 5ms);
  times.end(start + 9ms);
  BOOST_REQUIRE(times.all().size() == 2u);
  BOOST_TEST((times.all()[0].phase == Phase::opening_database));
  BOOST_TEST((times.all()[0].spent == 2ms));
  BOOST_TEST((times.all()[1].phase == Phase::attaching_segment));
  BOOST_TEST((times.all()[1].spent == 3ms));
}

BOOST_AUTO_TEST_CASE(a_phase_that_begins_again_adds_to_its_time) {
  times.enter(Phase::counting_entries, start);
  times.enter(Phase::waiting_for_database, start + 1ms);
  times.enter(Phase::counting_entries, start + 10ms);
  times.end(start + 14ms);
  BOOST_REQUIRE(times.all().size() == 2u);
  BOOST_TEST((times.all()[0].spent == 5ms));
  BOOST_TEST((times.all()[1].spent == 9ms));
}

BOOST_AUTO_TEST_CASE(each_phase_has_a_name_and_a_text_of_its_own) {
  std::set<std::string_view> names;
  std::set<std::string_view> texts;
  int phases = 0;
  for (int i = 0; i <= static_cast<int>(Phase::building_catalog); ++i, ++phases) {
    const std::string_view name = name_of(static_cast<Phase>(i));
    BOOST_TEST(!name.empty());
    BOOST_TEST(std::all_of(name.begin(), name.end(), [](char c) { return (c >= 'a' && c <= 'z') || c == '_'; }), name);
    names.insert(name);
    texts.insert(text_of(static_cast<Phase>(i)));
  }
  BOOST_TEST(names.size() == static_cast<std::size_t>(phases));
  BOOST_TEST(texts.size() == static_cast<std::size_t>(phases));
}

BOOST_AUTO_TEST_SUITE_END()
