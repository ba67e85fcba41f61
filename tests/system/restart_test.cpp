// SPDX-License-Identifier: Apache-2.0
// Every way in which the daemon ends, and what exists afterwards: I4, I5, and ids that are unique forever.
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <set>
#include <thread>

#include "tests/support/harness.hpp"

using namespace stepstash;
using namespace stepstash::test;

namespace {

const std::vector<std::string> kNeverFlushes = {"--flush-interval=1h", "--segment-size=64MiB"};

/// Simulates a power failure: the daemon dies and memory is lost.
void lose_power(DaemonProcess& daemon) {
  daemon.kill();
  daemon.remove_segment();
}

}  // namespace

BOOST_AUTO_TEST_SUITE(warm_restart)

BOOST_AUTO_TEST_CASE(all_that_was_acknowledged_survives_sigkill) {
  DaemonProcess daemon(kNeverFlushes);
  daemon.start();
  {
    Client client(daemon.socket());
    client.set(1, "small", "small", "step 1");
    client.set(1, "empty", "");
    client.set(1, "large", generated(5 * kMiB, 1), "step 2");
    client.set(1, "replaced", generated(kMiB, 2));
    client.set(1, "replaced", "its second value");
    client.finish(2, epoch(1234));
    client.set(3, "dropped", "gone");
    client.drop(3);
    BOOST_TEST(query(daemon.db(), "SELECT count(*) FROM build_data") == 0);  // only memory has it
  }
  daemon.kill();
  daemon.start({"--flush-interval=20ms", "--segment-size=64MiB"});
  Client client(daemon.socket());
  BOOST_TEST(client.get(1, "small")->text() == "small");
  BOOST_TEST(client.get(1, "small")->source() == "step 1");
  BOOST_TEST(client.get(1, "empty")->length() == 0u);
  BOOST_TEST(is_generated(client.get(1, "large")->bytes(), 5 * kMiB, 1));
  BOOST_TEST(client.get(1, "replaced")->text() == "its second value");
  BOOST_TEST(!client.get(3, "dropped"));
  BOOST_TEST(client.list(1).size() == 4u);
  BOOST_TEST(figure(client, "last_recovery.entries_kept") == 4u);
  BOOST_TEST(figure(client, "last_recovery.entries_set_aside") == 0u);
  // From here it reaches the database without any request.
  BOOST_TEST(eventually([&] { return figure(client, "dirty_values") == 0; }));
  BOOST_TEST(query(daemon.db(), "SELECT count(*) FROM build_data WHERE buildid = 1") == 4);
  BOOST_TEST(eventually(
      [&] { return query(daemon.db(), "SELECT count(*) FROM builds WHERE id = 2 AND complete_at = 1234") == 1; }));
}

BOOST_AUTO_TEST_CASE(a_client_goes_on_with_the_restarted_daemon_through_the_same_mappings) {
  DaemonProcess daemon(kNeverFlushes);
  daemon.start();
  Client reader(daemon.socket());
  reader.set(1, "before", generated(kMiB, 1));
  const auto view = reader.get(1, "before");
  struct stat before {};
  BOOST_REQUIRE(::stat(daemon.segment_path().c_str(), &before) == 0);
  daemon.kill();
  daemon.start();
  struct stat after {};
  BOOST_REQUIRE(::stat(daemon.segment_path().c_str(), &after) == 0);
  BOOST_TEST(before.st_ino == after.st_ino);

  Client(daemon.socket()).set(1, "after", "set by another client of the new daemon");
  // The reader has not contacted the new daemon, which does not know it: it finds the value in its old mapping.
  BOOST_TEST(figure(Client(daemon.socket()), "gets_asked") == 0u);
  const auto found = reader.get(1, "after");
  BOOST_REQUIRE(found);
  BOOST_TEST(found->text() == "set by another client of the new daemon");
  BOOST_TEST(is_generated(view->bytes(), kMiB, 1));
  reader.set(1, "again", "and it sets values as before");
  BOOST_TEST(reader.get(1, "again").has_value());
}

BOOST_AUTO_TEST_CASE(the_next_daemon_honours_the_pins_that_the_dead_one_gave) {
  DaemonProcess daemon({"--flush-interval=10ms", "--segment-size=8MiB"});
  daemon.start();
  Client reader(daemon.socket());
  reader.set(1, "pinned", generated(2 * kMiB, 1));
  reader.set(1, "dropped", generated(kMiB, 2));
  auto replaced = reader.get(1, "pinned");
  auto dropped = reader.get(1, "dropped");
  reader.set(1, "dropped", "while the first daemon lives");  // already retired when the daemon dies
  daemon.kill();
  daemon.start();

  Client writer(daemon.socket());
  writer.set(1, "pinned", "replaced after the restart");
  for (std::uint64_t i = 0; i < 64; ++i) {
    writer.set(2, "churn " + std::to_string(i % 5), generated(512 * kKiB, 10 + i));
  }
  BOOST_TEST(is_generated(replaced->bytes(), 2 * kMiB, 1));
  BOOST_TEST(is_generated(dropped->bytes(), kMiB, 2));
  BOOST_TEST(figure(writer, "open_views") == 2u);
  BOOST_TEST(figure(writer, "segment.retired_bytes") >= 3 * kMiB);
  replaced.reset();
  dropped.reset();
  BOOST_TEST(eventually([&] { return figure(writer, "segment.retired_bytes") == 0; }));
}

/// Each living client's page costs a start one descriptor; without it the daemon would not know what is pinned. Not
/// with the sanitizers, which need descriptors themselves.
BOOST_AUTO_TEST_CASE(a_start_with_fewer_descriptors_than_clients_is_refused_and_changes_nothing,
                     *boost::unit_test::enable_if<kScale == 1>()) {
  Served served({"--segment-size=8MiB"});
  DaemonProcess& daemon = served.daemon;
  served.client.set(1, "n", generated(60'000, 1));
  std::vector<Client> clients;
  std::vector<View> views;
  for (int i = 0; i < 80; ++i) views.push_back(clients.emplace_back(daemon.socket()).get(1, "n").value());
  served.client.set(1, "n", "replaced");
  daemon.kill();
  daemon.limit_descriptors(60);
  BOOST_TEST(daemon.start_refused() == 75);
  BOOST_TEST(contains(daemon.log(), "LimitNOFILE"));
  daemon.limit_descriptors(0);
  daemon.start();
  BOOST_TEST(figure(served.client, "pin_pages") == 81u);
  for (std::uint64_t i = 0; i < 200; ++i) served.client.set(2, std::to_string(i % 5), generated(60'000, 10 + i));
  for (const View& view : views) BOOST_TEST(is_generated(view.bytes(), 60'000, 1));
  BOOST_TEST(served.client.get(1, "n")->text() == "replaced");
}

BOOST_AUTO_TEST_CASE(a_client_that_died_with_the_daemon_leaves_no_pins) {
  DaemonProcess daemon(kNeverFlushes);
  daemon.start();
  Client(daemon.socket()).set(1, "v", generated(kMiB, 1));
  const Signal pinned;
  Child child([&] {
    const Client client(daemon.socket());
    const auto view = client.get(1, "v");
    pinned.raise();
    for (;;) ::pause();
    return 0;
  });
  BOOST_REQUIRE(pinned.wait());
  daemon.kill();
  child.kill();
  daemon.start();
  Client client(daemon.socket());
  BOOST_TEST(figure(client, "open_views") == 0u);
  client.set(1, "v", "replaced");
  BOOST_TEST(eventually([&] { return figure(client, "segment.retired_bytes") == 0; }));
}

BOOST_AUTO_TEST_CASE(whatever_was_acknowledged_survives_a_daemon_that_is_killed_again_and_again) {
  DaemonProcess daemon({"--flush-interval=5ms", "--segment-size=64MiB"});
  daemon.start();
  const auto length = [](int i) { return i % 3 == 0 ? 100 * kKiB : 100; };  // staged and inline
  std::atomic<int> acknowledged{0};
  std::atomic<bool> over{false};
  Worker setter([&] {
    Client client(daemon.socket(), 60s);
    for (int i = 1; !over; ++i) {
      client.set(1 + i % 7, "n" + std::to_string(i), generated(length(i), static_cast<std::uint64_t>(i)));
      client.set(9, "latest", std::to_string(i));
      acknowledged = i;
    }
  });
  const int rounds = kScale == 1 ? 10 : 4;
  for (int round = 1; round <= rounds; ++round) {
    const int aim = acknowledged + 40;
    BOOST_CHECK(eventually([&] { return acknowledged >= aim; }));
    daemon.kill();
    daemon.start();
  }
  over = true;
  setter.join();
  const Client client(daemon.socket());
  BOOST_TEST(figure(client, "last_recovery.entries_set_aside") == 0u);
  BOOST_TEST(client.get(9, "latest")->text() == std::to_string(acknowledged));
  for (int i = 1; i <= acknowledged; ++i) {
    const auto view = client.get(1 + i % 7, "n" + std::to_string(i));
    BOOST_REQUIRE_MESSAGE(view, "n" << i << " of " << acknowledged << " is lost");
    BOOST_TEST(is_generated(view->bytes(), length(i), static_cast<std::uint64_t>(i)));
  }
}

BOOST_AUTO_TEST_SUITE_END()

// ---- cold start ----------------------------------------------------------------------------------------------------

BOOST_AUTO_TEST_SUITE(cold_start)

BOOST_AUTO_TEST_CASE(sigterm_writes_everything_and_leaves_the_segment) {
  DaemonProcess daemon(kNeverFlushes);
  daemon.start();
  {
    Client client(daemon.socket());
    for (int i = 0; i < 50; ++i) client.set(1, "n" + std::to_string(i), std::to_string(i));
    client.set(1, "large", generated(20 * kMiB, 1));
    client.finish(9, epoch(99));
    BOOST_TEST(query(daemon.db(), "SELECT count(*) FROM build_data") == 0);
  }
  BOOST_TEST(daemon.terminate() == 0);
  BOOST_TEST(query(daemon.db(), "SELECT count(*) FROM build_data WHERE buildid = 1") == 51);
  BOOST_TEST(query(daemon.db(), "SELECT complete_at FROM builds WHERE id = 9") == 99);
  BOOST_TEST(::access(daemon.segment_path().c_str(), F_OK) == 0);
  BOOST_TEST(::access(daemon.socket().c_str(), F_OK) != 0);
}

BOOST_AUTO_TEST_CASE(a_cold_start_serves_everything_from_the_database) {
  DaemonProcess daemon(kNeverFlushes);
  daemon.start();
  std::map<std::string, std::uint64_t> ids;
  {
    Client client(daemon.socket());
    for (int i = 0; i < 40; ++i) {
      const std::string name = "n" + std::to_string(i);
      ids[name] = client.set(1, name, generated(static_cast<std::uint64_t>(i) * 7919, 1), "source " + name)->id;
    }
    ids["large"] = client.set(1, "large", generated(20 * kMiB, 2), "")->id;
    client.set(2, "v", "of a finished build");
    client.finish(2, epoch(1000));
    client.set(3, "v", "of a held build");
    client.finish(3, epoch(1000));
    client.hold(3);
    client.finish(4, epoch(1000));  // without data
  }
  BOOST_TEST(daemon.terminate() == 0);
  daemon.remove_segment();
  daemon.start();

  Client client(daemon.socket());
  BOOST_TEST(figure(client, "last_recovery.entries_kept") == 0u);
  BOOST_TEST(figure(client, "last_recovery.entries_loaded") == 43u);
  BOOST_TEST(figure(client, "values_resident") == 0u);
  BOOST_TEST(client.list(1).size() == 41u);
  BOOST_TEST(client.stat(1, "large")->length() == 20 * kMiB);
  for (int i = 0; i < 40; ++i) {
    const std::string name = "n" + std::to_string(i);
    const auto view = client.get(1, name);
    BOOST_REQUIRE(view);
    BOOST_TEST(is_generated(view->bytes(), static_cast<std::uint64_t>(i) * 7919, 1));
    BOOST_TEST(view->source() == "source " + name);
    BOOST_TEST(view->id() == ids[name]);
  }
  BOOST_TEST(is_generated(client.get(1, "large")->bytes(), 20 * kMiB, 2));
  client.set(4, "v", "set after its finish, two daemons ago");
  BOOST_TEST(client.prune(epoch(1000)) == 0u);  // strictly older
  BOOST_TEST(client.prune(epoch(1001)) == 2u);  // builds 2 and 4; 3 is held
  BOOST_TEST(!client.get(2, "v"));
  BOOST_TEST(!client.get(4, "v"));
  BOOST_TEST(client.get(3, "v")->text() == "of a held build");
  client.unhold(3);
  BOOST_TEST(client.prune(epoch(1001)) == 1u);
  BOOST_TEST(client.list(1).size() == 41u);
}

BOOST_AUTO_TEST_CASE(a_durable_set_is_in_the_database_when_it_returns) {
  DaemonProcess daemon(kNeverFlushes);
  daemon.start();
  Client client(daemon.socket());
  client.set(1, "later", "not durable");
  const auto has = [&](const std::string& name) {
    return query(daemon.db(), "SELECT count(*) FROM build_data WHERE buildid = 1 AND name = '" + name + "'");
  };
  BOOST_TEST(has("later") == 0);
  client.set(1, "small", "durable", "", {.durable = true});
  BOOST_TEST(has("small") == 1);
  client.set(1, "large", generated(3 * kMiB, 1), "", {.durable = true});
  BOOST_TEST(has("large") == 1);
  BOOST_TEST(query(daemon.db(), "SELECT length FROM build_data WHERE name = 'large'") ==
             static_cast<std::int64_t>(3 * kMiB));
  lose_power(daemon);
  daemon.start();
  Client after(daemon.socket());
  BOOST_TEST(after.get(1, "small")->text() == "durable");
  BOOST_TEST(is_generated(after.get(1, "large")->bytes(), 3 * kMiB, 1));
}

BOOST_AUTO_TEST_CASE(a_flush_returns_when_all_before_it_is_in_the_database) {
  DaemonProcess daemon(kNeverFlushes);
  daemon.start();
  Client client(daemon.socket());
  for (int i = 0; i < 100; ++i) client.set(1, std::to_string(i), generated(kMiB / 4, 1));
  client.finish(2, epoch(7));
  client.flush();
  BOOST_TEST(query(daemon.db(), "SELECT count(*) FROM build_data") == 100);
  BOOST_TEST(query(daemon.db(), "SELECT complete_at FROM builds WHERE id = 2") == 7);
}

BOOST_AUTO_TEST_CASE(a_small_value_can_be_read_with_plain_sql) {
  DaemonProcess daemon(kNeverFlushes);
  daemon.start();
  Client client(daemon.socket());
  client.set(77, "report", "42", "unit tests", {.durable = true});
  BOOST_TEST(query(daemon.db(),
                   "SELECT CAST(CAST(value AS TEXT) AS INTEGER) FROM build_data "
                   "WHERE buildid = 77 AND name = 'report' AND source = 'unit tests' AND length = 2") == 42);
}

BOOST_AUTO_TEST_CASE(a_daemon_that_finds_another_database_writes_its_values_there) {
  DaemonProcess daemon({"--flush-interval=10ms"});
  daemon.start();
  {
    Client client(daemon.socket());
    client.set(1, "v", "value");
    client.flush();
  }
  daemon.kill();
  daemon.use_db(daemon.directory().file("other.db"));
  daemon.start();
  Client client(daemon.socket());
  BOOST_TEST(client.get(1, "v")->text() == "value");
  client.flush();
  BOOST_TEST(query(daemon.db(), "SELECT count(*) FROM build_data WHERE buildid = 1") == 1);
}

BOOST_AUTO_TEST_SUITE_END()

// ---- deletions -----------------------------------------------------------------------------------------------------

BOOST_AUTO_TEST_SUITE(deletions)

BOOST_AUTO_TEST_CASE(what_was_deleted_does_not_come_back_after_sigkill) {
  DaemonProcess daemon(kNeverFlushes);
  daemon.start();
  {
    Client client(daemon.socket());
    for (std::int64_t build = 1; build <= 3; ++build) {
      for (int i = 0; i < 20; ++i) client.set(build, std::to_string(i), generated(10 * kKiB, 1));
    }
    client.finish(2, epoch(1000));
    client.flush();
    BOOST_TEST(client.drop(1) == 20u);
    BOOST_TEST(client.prune(epoch(1001)) == 20u);
    client.set(1, "new", "set after the drop");
    // The rows still exist: only the segment knows that they are to be deleted.
    BOOST_TEST(query(daemon.db(), "SELECT count(*) FROM build_data WHERE buildid < 3") == 40);
  }
  daemon.kill();
  daemon.start();
  {
    Client client(daemon.socket());
    BOOST_TEST(client.list(1).size() == 1u);
    BOOST_TEST(client.get(1, "new")->text() == "set after the drop");
    BOOST_TEST(client.list(2).empty());
    BOOST_TEST(client.list(3).size() == 20u);
    client.flush();
    BOOST_TEST(query(daemon.db(), "SELECT count(*) FROM build_data WHERE buildid = 1") == 1);
    BOOST_TEST(query(daemon.db(), "SELECT count(*) FROM build_data WHERE buildid = 2") == 0);
  }
  lose_power(daemon);
  daemon.start();
  Client client(daemon.socket());
  BOOST_TEST(client.list(1).size() == 1u);
  BOOST_TEST(client.list(2).empty());
  BOOST_TEST(client.list(3).size() == 20u);
}

BOOST_AUTO_TEST_CASE(a_deletion_that_was_flushed_survives_the_loss_of_power) {
  DaemonProcess daemon(kNeverFlushes);
  daemon.start();
  {
    Client client(daemon.socket());
    client.set(1, "large", generated(10 * kMiB, 1));
    client.flush();
    client.drop(1);
    client.flush();
  }
  lose_power(daemon);
  daemon.start();
  Client client(daemon.socket());
  BOOST_TEST(client.list(1).empty());
  BOOST_TEST(query(daemon.db(), "SELECT count(*) FROM build_data") == 0);
}

BOOST_AUTO_TEST_CASE(a_value_dropped_before_its_turn_is_never_written) {
  DaemonProcess daemon(kNeverFlushes);
  daemon.start();
  Client client(daemon.socket());
  for (int i = 0; i < 10; ++i) client.set(1, "v" + std::to_string(i), generated(kMiB, 1));
  client.drop(1);
  client.set(2, "replaced", generated(kMiB, 1));
  client.set(2, "replaced", "small");
  client.flush();
  BOOST_TEST(figure(client, "flushed_values") == 1u);
  BOOST_TEST(figure(client, "flushed_bytes") == 5u);
}

BOOST_AUTO_TEST_CASE(a_size_that_is_no_multiple_of_a_page_is_rounded_up_and_no_reason_to_warn) {
  DaemonProcess daemon({"--segment-size=8388609B"});
  for (int start = 0; start < 2; ++start) {
    daemon.start();
    BOOST_TEST(figure(Client(daemon.socket()), "segment.total_bytes") == 8'388'608u + 4096);
    daemon.terminate();
  }
  BOOST_TEST(!contains(daemon.log(), "not the configured"), daemon.log());
}

BOOST_AUTO_TEST_SUITE_END()

// ---- ids -----------------------------------------------------------------------------------------------------------

BOOST_AUTO_TEST_CASE(no_id_is_ever_given_twice) {
  DaemonProcess daemon(kNeverFlushes);
  daemon.start();
  std::set<std::uint64_t> given;
  std::set<std::uint64_t> revisions;
  int number = 0;
  const auto set_some = [&](const char* when) {
    Client client(daemon.socket());
    for (int i = 0; i < 20; ++i) {
      const auto result = client.set(1, "n" + std::to_string(++number), "v");
      BOOST_TEST(given.insert(result->id).second, result->id << " was given again " << when);
      BOOST_TEST(revisions.insert(result->revision).second);
    }
  };
  set_some("at first");
  daemon.kill();
  daemon.start();
  set_some("after SIGKILL");
  Client(daemon.socket()).drop(1);
  set_some("after a drop");
  Client(daemon.socket()).finish(1, epoch(1));
  BOOST_TEST(Client(daemon.socket()).prune(epoch(2)) == 20u);
  set_some("after a prune");
  BOOST_TEST(daemon.terminate() == 0);
  daemon.start();
  set_some("after SIGTERM");
  BOOST_TEST(daemon.terminate() == 0);
  daemon.remove_segment();
  daemon.start();
  set_some("after a cold start");
  lose_power(daemon);  // the ids just allocated were never in the database
  daemon.start();
  set_some("after the loss of power");
  Client(daemon.socket()).drop(1);
  Client(daemon.socket()).flush();
  lose_power(daemon);
  daemon.start();
  set_some("after the loss of power, with an empty database");
}

BOOST_AUTO_TEST_CASE(a_value_keeps_its_id_through_replacement_in_other_lives) {
  DaemonProcess daemon(kNeverFlushes);
  daemon.start();
  const auto first = *Client(daemon.socket()).set(1, "v", "1");
  daemon.kill();
  daemon.start();
  const auto second = *Client(daemon.socket()).set(1, "v", "2");
  BOOST_TEST(second.id == first.id);
  BOOST_TEST(second.revision > first.revision);
  daemon.terminate();
  daemon.remove_segment();
  daemon.start();
  const auto third = *Client(daemon.socket()).set(1, "v", "3");  // replaces a value that is only in the database
  BOOST_TEST(third.id == first.id);
  BOOST_TEST(third.revision > second.revision);
  Client client(daemon.socket());
  client.flush();
  BOOST_TEST(query(daemon.db(), "SELECT count(*) FROM build_data") == 1);
}

BOOST_AUTO_TEST_SUITE(orderly_stop)

namespace {

/// The stop may take a moment, but not the five seconds that self-terminating requests get.
void stop_at_once(DaemonProcess& daemon) {
  const auto start = std::chrono::steady_clock::now();
  BOOST_TEST(daemon.terminate() == 0);
  const auto took = std::chrono::steady_clock::now() - start;
  BOOST_TEST((took < 3s), std::chrono::duration<double>(took).count() << " s");
}

}  // namespace

BOOST_AUTO_TEST_CASE(who_waits_for_a_name_waits_on_with_the_next_daemon) {
  Served served;
  std::atomic<bool> asking{false};
  Worker waiter([&] {
    Client own(served.daemon.socket());
    own.set(2, "is there", "value");
    asking = true;
    const auto view = own.wait(1, "name", 60s);
    if (!view || view->text() != "value") throw std::runtime_error("another value");
  });
  BOOST_REQUIRE(eventually([&] { return asking.load(); }));
  for (int i = 0; i < 100; ++i) served.client.set(3, "meanwhile", "value");
  stop_at_once(served.daemon);
  served.daemon.start();
  served.client.set(1, "name", "value");
  waiter.join();
}

BOOST_AUTO_TEST_CASE(a_wait_keeps_its_deadline_across_a_stop) {
  Served served;
  std::atomic<bool> asking{false};
  Worker waiter([&] {
    Client own(served.daemon.socket());
    own.set(2, "is there", "value");
    asking = true;
    const auto start = std::chrono::steady_clock::now();
    if (own.wait(1, "never", 4s)) throw std::runtime_error("a value");
    const auto took = std::chrono::steady_clock::now() - start;
    if (took < 3900ms || took > 10s) throw std::runtime_error("another deadline");
  });
  BOOST_REQUIRE(eventually([&] { return asking.load(); }));
  for (int i = 0; i < 100; ++i) served.client.set(3, "meanwhile", "value");
  stop_at_once(served.daemon);
  served.daemon.start();
  waiter.join();
}

BOOST_AUTO_TEST_CASE(a_set_that_waits_for_room_is_made_by_the_next_daemon) {
  Served served({"--segment-size=8MiB"});
  std::vector<View> held;
  for (int i = 0;; ++i) {  // until readers hold all of it
    try {
      served.client.set(1, std::to_string(i), generated(500 * kKiB, 1), "", {.deadline = kFullAfter});
    } catch (const Error& error) {
      BOOST_REQUIRE(error.code() == STEPSTASH_EFULL);
      break;
    }
    held.push_back(served.client.get(1, std::to_string(i)).value());
  }
  std::atomic<int> asking{0};
  const auto set = [&](std::int64_t build, std::uint64_t bytes) {
    Client own(served.daemon.socket());
    ++asking;
    own.set(build, "v", generated(bytes, 2), "", {.deadline = 60s});
  };
  Worker staged([&] { set(2, 900 * kKiB); });
  Worker also_staged([&] { set(3, 600 * kKiB); });
  BOOST_REQUIRE(eventually([&] { return asking == 2; }));
  const std::uint64_t tries = figure(served.client, "room_tries");
  BOOST_REQUIRE(eventually([&] { return figure(served.client, "room_tries") > tries + 2; }));
  stop_at_once(served.daemon);
  served.daemon.start();
  held.clear();
  staged.join();
  also_staged.join();
  BOOST_TEST(is_generated(served.client.get(2, "v")->bytes(), 900 * kKiB, 2));
}

BOOST_AUTO_TEST_CASE(a_durable_set_that_waits_for_its_commit_is_committed_or_made_again) {
  Served served({"--flush-interval=10ms"});
  served.client.set(1, "first", "value", "", {.durable = true});
  std::optional<WriteLock> lock(served.daemon.db());
  Worker durable([&] {
    Client own(served.daemon.socket());
    own.set(1, "durable", "value", "", {.durable = true, .deadline = 60s});
  });
  BOOST_REQUIRE(eventually([&] { return served.client.get(1, "durable").has_value(); }));
  BOOST_REQUIRE(::kill(served.daemon.pid(), SIGTERM) == 0);
  BOOST_REQUIRE(eventually([&] { return contains(served.daemon.log(), "stopping"); }));
  lock.reset();
  BOOST_TEST(served.daemon.terminate() == 0);
  BOOST_TEST(query(served.daemon.db(), "SELECT count(*) FROM build_data") == 2);
  served.daemon.start();
  durable.join();
}

BOOST_AUTO_TEST_SUITE_END()
