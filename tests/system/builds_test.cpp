// SPDX-License-Identifier: Apache-2.0
// Builds: finish, prune, drop, hold; and waiting for values that another process will set.
#include <unistd.h>

#include <atomic>
#include <boost/test/unit_test.hpp>
#include <map>
#include <thread>

#include "tests/support/harness.hpp"

using namespace stepstash;
using namespace stepstash::test;

BOOST_AUTO_TEST_SUITE(builds)

BOOST_AUTO_TEST_CASE(prune_deletes_what_completed_strictly_before_and_counts_exactly) {
  Served served;
  Client& client = served.client;
  for (std::int64_t build = 1; build <= 5; ++build) {
    for (std::int64_t i = 0; i < build; ++i) client.set(build, std::to_string(i), "v");
  }
  client.finish(1, epoch(99));
  client.finish(2, epoch(100));
  client.finish(3, epoch(101));
  client.finish(4, epoch(-5));  // times before 1970 are valid
  BOOST_TEST(client.prune(epoch(-5)) == 0u);
  BOOST_TEST(client.prune(epoch(100)) == 1u + 4u);
  BOOST_TEST(client.list(1).empty());
  BOOST_TEST(client.list(2).size() == 2u);
  BOOST_TEST(client.prune(epoch(100)) == 0u);
  BOOST_TEST(client.prune(epoch(101)) == 2u);
  BOOST_TEST(client.list(3).size() == 3u);
  BOOST_TEST(client.prune(epoch(4'000'000'000)) == 3u);
  BOOST_TEST(client.list(5).size() == 5u);  // never finished
  client.flush();
  BOOST_TEST(query(served.daemon.db(), "SELECT count(*) FROM build_data") == 5);
}

BOOST_AUTO_TEST_CASE(builds_are_listed_with_what_they_take_before_and_after_a_kill) {
  Served served({"--segment-size=16MiB"});
  Client& client = served.client;
  const auto told = [&] {
    std::string text;
    for (const Build& b : client.builds()) {
      text += std::to_string(b.build) + ": " + std::to_string(b.entries) + " " +
              std::to_string(b.resident_bytes + b.evicted_bytes) + " " +
              (b.complete_at ? std::to_string(*b.complete_at) : "running") + (b.held ? " held\n" : "\n");
    }
    return text;
  };
  BOOST_TEST(told() == "");
  client.set(3, "a", "12345");
  client.set(3, "b", generated(kMiB, 1));
  client.set(3, "a", "123");  // replaced
  client.set(1, "a", "");
  client.set(2, "a", "x");
  client.set(9, "a", "x");
  client.finish(1, epoch(-5));
  client.finish(2, epoch(100));
  client.hold(2);
  client.drop(9);
  client.finish(10, epoch(1));  // without data
  const std::string expected = "1: 1 0 -5\n2: 1 1 100 held\n3: 2 1048579 running\n";
  BOOST_TEST(told() == expected);
  served.daemon.kill();
  served.daemon.start();
  BOOST_TEST(told() == expected);
  for (int i = 0; i < 20; ++i) {
    client.set(20, std::to_string(i), generated(kMiB, 7));
    client.flush();
  }
  std::uint64_t bytes = 0, evicted = 0;
  for (const Build& b : client.builds()) {
    bytes += b.resident_bytes + b.evicted_bytes;
    evicted += b.evicted_bytes;
  }
  BOOST_TEST(bytes == 21 * kMiB + 4);
  BOOST_TEST(evicted > 4 * kMiB);  // 16 MiB cannot hold them
  for (std::int64_t build = 100; build < 700; ++build) client.set(build, "v", "v");
  BOOST_TEST(client.builds().size() == 604u);
}

BOOST_AUTO_TEST_CASE(a_second_finish_moves_the_time) {
  Served served;
  served.client.set(1, "v", "v");
  served.client.finish(1, epoch(1000));
  served.client.finish(1, epoch(2000));
  BOOST_TEST(served.client.prune(epoch(1500)) == 0u);
  served.client.finish(1, epoch(500));
  BOOST_TEST(served.client.prune(epoch(1500)) == 1u);
}

BOOST_AUTO_TEST_CASE(finish_without_a_time_means_now) {
  Served served;
  served.client.set(1, "v", "v");
  served.client.finish(1);
  const auto now = std::chrono::system_clock::now();
  BOOST_TEST(served.client.prune(now - 100s) == 0u);
  BOOST_TEST(served.client.prune(now + 100s) == 1u);
}

BOOST_AUTO_TEST_CASE(a_build_that_finished_without_data_is_remembered) {
  Served served({"--flush-interval=1h"});
  served.client.finish(1, epoch(1000));  // in memory only
  served.client.finish(2, epoch(1000));
  served.client.flush();  // ... and only in the database, because there is nothing to serve
  served.client.finish(1, epoch(1000));
  served.daemon.kill();
  served.daemon.start();
  Client client(served.daemon.socket());
  client.set(1, "v", "set after the finish");
  client.set(2, "v", "set after the finish");
  BOOST_TEST(client.prune(epoch(1000)) == 0u);
  BOOST_TEST(client.prune(epoch(1001)) == 2u);
}

BOOST_AUTO_TEST_CASE(complete_at_survives_the_last_value) {
  Served served;
  Client& client = served.client;
  client.set(1, "v", "v");
  client.finish(1, epoch(1000));
  BOOST_TEST(client.drop(1) == 1u);
  client.flush();
  BOOST_TEST(query(served.daemon.db(), "SELECT complete_at FROM builds WHERE id = 1") == 1000);
  client.set(1, "late", "v");
  BOOST_TEST(client.prune(epoch(1001)) == 1u);
  client.flush();
  BOOST_TEST(query(served.daemon.db(), "SELECT complete_at FROM builds WHERE id = 1") == 1000);
  client.set(1, "later still", "v");
  BOOST_TEST(client.prune(epoch(1001)) == 1u);
}

BOOST_AUTO_TEST_CASE(held_builds_are_kept_until_they_are_let_go) {
  Served served;
  Client& client = served.client;
  client.set(1, "v", "v");
  client.hold(1);
  client.finish(1, epoch(1000));
  BOOST_TEST(client.prune(epoch(2000)) == 0u);
  BOOST_TEST(client.get(1, "v").has_value());
  client.hold(1);  // holding twice has no further effect
  client.unhold(1);
  BOOST_TEST(client.prune(epoch(2000)) == 1u);
  // A hold outlives the data it was set for.
  client.set(2, "v", "v");
  client.hold(2);
  BOOST_TEST(client.drop(2) == 1u);
  client.finish(2, epoch(1000));
  client.set(2, "again", "v");
  BOOST_TEST(client.prune(epoch(2000)) == 0u);
}

BOOST_AUTO_TEST_CASE(drop_deletes_one_build_whole) {
  Served served;
  Client& client = served.client;
  for (int i = 0; i < 500; ++i) client.set(1, std::to_string(i), std::to_string(i));
  client.set(2, "other", "v");
  client.hold(1);
  client.flush();
  BOOST_TEST(client.drop(1) == 500u);
  BOOST_TEST(client.drop(1) == 0u);
  BOOST_TEST(client.drop(99) == 0u);
  BOOST_TEST(client.list(1).empty());
  BOOST_TEST(!client.get(1, "7"));
  BOOST_TEST(client.get(2, "other").has_value());
  client.flush();
  BOOST_TEST(query(served.daemon.db(), "SELECT count(*) FROM build_data") == 1);
}

BOOST_AUTO_TEST_CASE(the_daemon_prunes_by_itself_after_the_horizon) {
  Served served({"--build-data-horizon=1h", "--prune-interval=100ms"});
  Client& client = served.client;
  const auto now = std::chrono::system_clock::now();
  client.set(1, "v", "old");
  client.set(2, "v", "recent");
  client.set(3, "v", "held");
  client.set(4, "v", "running");
  client.hold(3);
  client.finish(2, now - 30min);
  client.finish(3, now - 2h);
  client.finish(1, now - 2h);
  BOOST_TEST(eventually([&] { return !client.get(1, "v"); }));
  for (std::int64_t build = 2; build <= 4; ++build) BOOST_TEST(client.get(build, "v").has_value());
  BOOST_TEST(figure(client, "entries_pruned") == 1u);
}

/// One client sets 150 names in turn, repeatedly, and drops them before every third round. At every instant the names
/// of the current round come first, and the others are of the previous round or, after a drop, absent.
BOOST_AUTO_TEST_CASE(a_list_of_several_pages_is_of_one_instant_while_its_build_is_set_and_dropped) {
  constexpr std::size_t kNames = 150;
  Served served;
  std::atomic<bool> over{false};
  const auto name = [](std::size_t i) { return "name " + std::to_string(1000 + i); };
  Worker writer([&] {
    Client own(served.daemon.socket());
    for (std::uint64_t turn = 1; !over; ++turn) {
      if (turn % 3 == 0) own.drop(1);
      for (std::size_t i = 0; i < kNames && !over; ++i) own.set(1, name(i), "v", std::to_string(turn));
    }
  });
  int long_ones = 0, within_a_turn = 0;
  const auto give_up = std::chrono::steady_clock::now() + 60s;
  while ((long_ones < 60 || within_a_turn < 20) && std::chrono::steady_clock::now() < give_up) {
    std::map<std::string, std::uint64_t> turns;
    std::uint64_t last_id = 0, turn = 0;
    for (const Entry& entry : served.client.list(1)) {
      BOOST_TEST_REQUIRE(entry.id > last_id);
      last_id = entry.id;
      BOOST_TEST_REQUIRE(turns.emplace(entry.name, std::stoull(entry.source)).second, entry.name << " twice");
      turn = std::max<std::uint64_t>(turn, std::stoull(entry.source));
    }
    if (turns.empty()) continue;
    std::size_t of_this_turn = 0;
    while (of_this_turn < kNames && turns.contains(name(of_this_turn)) && turns.at(name(of_this_turn)) == turn) {
      ++of_this_turn;
    }
    const bool dropped = turn == 1 || turn % 3 == 0;
    BOOST_TEST_REQUIRE(turns.size() == (dropped ? of_this_turn : kNames), "turn " << turn << ", " << of_this_turn);
    for (std::size_t i = of_this_turn; i < kNames && !dropped; ++i) {
      BOOST_TEST_REQUIRE(turns.at(name(i)) == turn - 1,
                         name(i) << " is of turn " << turns.at(name(i)) << ", not " << turn - 1);
    }
    long_ones += turns.size() > 32;
    within_a_turn += of_this_turn > 0 && of_this_turn < kNames && !dropped;
  }
  over = true;
  writer.join();
  BOOST_TEST(long_ones >= 60);
  BOOST_TEST(within_a_turn >= 20);
}

BOOST_AUTO_TEST_SUITE_END()

// ---- waiting -------------------------------------------------------------------------------------------------------

BOOST_AUTO_TEST_SUITE(waiting)

BOOST_AUTO_TEST_CASE(a_wait_ends_when_another_process_sets_the_name) {
  Served served;
  const Signal started;
  Child child([&] {
    Client client(served.daemon.socket());
    started.raise();
    const auto view = client.wait(1, "awaited", 50s);
    return view && is_generated(view->bytes(), kMiB, 1) ? 0 : 1;
  });
  BOOST_REQUIRE(started.wait());
  served.client.set(1, "something else", "v");
  const auto start = std::chrono::steady_clock::now();
  served.client.set(1, "awaited", generated(kMiB, 1));
  BOOST_TEST(child.join() == 0);
  BOOST_TEST((std::chrono::steady_clock::now() - start < 20s));
}

BOOST_AUTO_TEST_CASE(a_wait_for_what_is_there_returns_at_once) {
  Served served;
  served.client.set(1, "v", "v");
  BOOST_TEST(served.client.wait(1, "v", 0ms).has_value());
}

BOOST_AUTO_TEST_CASE(a_wait_ends_at_its_deadline) {
  Served served;
  const auto start = std::chrono::steady_clock::now();
  BOOST_TEST(!served.client.wait(1, "never", 300ms));
  const auto waited = std::chrono::steady_clock::now() - start;
  BOOST_TEST((waited >= 300ms));
  BOOST_TEST((waited < 10s));
  BOOST_TEST(!served.client.wait(1, "never", 0ms));
}

BOOST_AUTO_TEST_CASE(the_death_of_a_waiting_client_is_noticed) {
  Served served;
  BOOST_TEST(eventually([&] { return figure(served.client, "connections") == 1; }));
  Child child([&] {
    Client client(served.daemon.socket());
    client.wait(1, "never", 1h);
    return 0;
  });
  BOOST_TEST(eventually([&] { return figure(served.client, "connections") == 2; }));
  child.kill();
  BOOST_TEST(eventually([&] { return figure(served.client, "connections") == 1; }, 5s));
}

BOOST_AUTO_TEST_CASE(a_wait_survives_a_restart_of_the_daemon) {
  Served served;
  const Signal started;
  Child child([&] {
    Client client(served.daemon.socket());
    started.raise();
    const auto view = client.wait(1, "awaited", 50s);
    return view && view->text() == "v" ? 0 : 1;
  });
  BOOST_REQUIRE(started.wait());
  BOOST_TEST(eventually([&] { return figure(served.client, "connections") == 2; }));
  served.daemon.kill();
  served.daemon.start();
  served.client.set(1, "awaited", "v");
  BOOST_TEST(child.join() == 0);
}

BOOST_AUTO_TEST_SUITE_END()
