// SPDX-License-Identifier: Apache-2.0
// The tests' own tool: a fault that is not where a test believes it is proves nothing.
#include "tests/support/faulty_store.hpp"

#include <thread>

#include "tests/persist/values.hpp"
#include "tests/support/memory_store.hpp"

namespace stepstash::test {
namespace {

BOOST_AUTO_TEST_SUITE(faulty_store)

BOOST_AUTO_TEST_CASE(only_the_nth_commit_fails_and_does_not_reach_the_store) {
  MemoryStore disk;
  FaultyStore faulty(disk, 2, Errc::not_durable);
  const Bytes value = pattern(10, 1);
  BOOST_TEST(set(faulty, row(1, 1, 7, "a", value)).has_value());
  BOOST_TEST(error_of(set(faulty, row(2, 2, 7, "b", value))) == Errc::not_durable);
  BOOST_TEST(set(faulty, row(3, 3, 7, "c", value)).has_value());
  BOOST_TEST(ids(disk) == (std::vector<std::uint64_t>{1, 3}), boost::test_tools::per_element());
  BOOST_TEST(faulty.commits() == 3u);
  BOOST_TEST(faulty.failed_commits() == 1u);
}

BOOST_AUTO_TEST_CASE(all_commits_fail_until_healed) {
  MemoryStore disk;
  FaultyStore faulty(disk);
  faulty.fail_commits(Errc::not_durable);
  faulty.fail_loads(Errc::corrupt_database);
  faulty.fail_reservations(Errc::not_durable);
  const Bytes value = pattern(10, 1);
  Bytes out(10);
  for (int i = 0; i < 3; ++i) BOOST_TEST(error_of(set(faulty, row(1, 1, 7, "a", value))) == Errc::not_durable);
  BOOST_TEST(error_of(faulty.load_value(1, 1, out)) == Errc::corrupt_database);
  BOOST_TEST(error_of(faulty.reserve_ids(1, 0)) == Errc::not_durable);
  faulty.heal();
  BOOST_TEST(set(faulty, row(1, 1, 7, "a", value)).has_value());
  BOOST_TEST(has(faulty, 1, 1, value));
  BOOST_TEST(faulty.reserve_ids(1, 0).has_value());
}

BOOST_AUTO_TEST_CASE(a_commit_may_land_and_be_reported_as_failed) {
  MemoryStore disk;
  FaultyStore faulty(disk);
  faulty.fail_nth_commit(1, Errc::not_durable, /*landed=*/true);
  const Bytes value = pattern(10, 1);
  BOOST_TEST(error_of(set(faulty, row(1, 1, 7, "a", value))) == Errc::not_durable);
  BOOST_TEST(has(disk, 1, 1, value));
}

BOOST_AUTO_TEST_CASE(a_blocked_commit_waits_to_be_released_and_reads_do_not) {
  MemoryStore disk;
  FaultyStore faulty(disk);
  const Bytes value = pattern(10, 1);
  BOOST_TEST_REQUIRE(set(faulty, row(1, 1, 7, "a", value)).has_value());
  faulty.block_commits();
  std::thread writer([&] { (void)set(faulty, row(2, 2, 7, "b", value)); });
  const bool blocked = faulty.wait_until_blocked();
  BOOST_TEST(blocked);
  BOOST_TEST(entries(disk).size() == 1u);
  BOOST_TEST(has(faulty, 1, 1, value));
  BOOST_TEST(!faulty.wait_for_commits(2, std::chrono::milliseconds(0)));
  faulty.release();
  BOOST_TEST(faulty.wait_for_commits(2));
  writer.join();
  BOOST_TEST(entries(disk).size() == 2u);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace stepstash::test
