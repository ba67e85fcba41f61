// SPDX-License-Identifier: Apache-2.0
#include "base/clock.hpp"

#include <time.h>

#include <boost/test/unit_test.hpp>

namespace stepstash {
namespace {

BOOST_AUTO_TEST_SUITE(clock)

/// Other processes compare what one of them read: it has to be the same clock for all.
BOOST_AUTO_TEST_CASE(monotonic_is_the_clock_of_clock_gettime) {
  const SystemClock clock;
  const auto now = [] {
    struct timespec at {};
    ::clock_gettime(CLOCK_MONOTONIC, &at);
    return std::chrono::seconds(at.tv_sec) + std::chrono::nanoseconds(at.tv_nsec);
  };
  const auto before = now();
  const auto read = clock.monotonic();
  BOOST_TEST((before <= read && read <= now()));
}

BOOST_AUTO_TEST_CASE(wall_seconds_are_those_of_time) {
  const SystemClock clock;
  const std::int64_t before = ::time(nullptr);
  const std::int64_t read = clock.wall_seconds();
  // time(2) may lag behind clock_gettime by a tick, so a second's boundary may lie between the two.
  BOOST_TEST((before <= read && read <= ::time(nullptr) + 1));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace stepstash
