// SPDX-License-Identifier: Apache-2.0
// More data than the segment holds: eviction of flushed values, and reloading them.
#include <sys/syscall.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <fstream>
#include <thread>

#include "tests/support/harness.hpp"

using namespace stepstash;
using namespace stepstash::test;

namespace {

const std::vector<std::string> kSmall = {"--segment-size=8MiB", "--flush-interval=10ms"};

bool asleep(pid_t thread) {
  std::ifstream stat("/proc/self/task/" + std::to_string(thread) + "/stat");
  std::string text;
  std::getline(stat, text);
  const std::size_t name_end = text.rfind(')');
  return name_end != text.npos && text.substr(name_end + 2, 1) == "S";
}

}  // namespace

BOOST_AUTO_TEST_SUITE(eviction)

BOOST_AUTO_TEST_CASE(more_data_than_the_segment_holds_is_served_exactly) {
  DaemonProcess daemon(kSmall);
  daemon.start();
  Client client(daemon.socket());
  constexpr std::uint64_t kCount = 60, kBytes = 512 * kKiB;
  for (std::uint64_t i = 0; i < kCount; ++i) client.set(1, std::to_string(i), generated(kBytes + i, i), "s");
  const auto listed = client.list(1);
  BOOST_REQUIRE(listed.size() == kCount);
  for (std::uint64_t i = 0; i < kCount; ++i) {
    BOOST_TEST(listed[i].name == std::to_string(i));
    BOOST_TEST(listed[i].length == kBytes + i);
  }
  BOOST_TEST(figure(client, "values_evicted") > 40u);
  BOOST_TEST(figure(client, "values_evicted") + figure(client, "values_resident") == kCount);

  const std::uint64_t asked = figure(client, "gets_asked");
  for (std::uint64_t i = 0; i < kCount; ++i) {  // stat never reloads a value
    const auto stat = client.stat(1, std::to_string(i));
    BOOST_REQUIRE(stat);
    BOOST_TEST(stat->length() == kBytes + i);
    BOOST_TEST(stat->source() == "s");
  }
  BOOST_TEST(figure(client, "gets_asked") == asked);

  for (int round = 0; round < 2; ++round) {
    for (std::uint64_t i = 0; i < kCount; ++i) {
      const auto view = client.get(1, std::to_string(i));
      BOOST_REQUIRE(view);
      BOOST_TEST(is_generated(view->bytes(), kBytes + i, i));
      BOOST_TEST(view->id() == listed[i].id);
      BOOST_TEST(view->revision() == listed[i].revision);
    }
  }
  BOOST_TEST(figure(client, "reloads") > 40u);
}

BOOST_AUTO_TEST_CASE(an_evicted_value_survives_a_warm_restart) {
  DaemonProcess daemon(kSmall);
  daemon.start();
  for (std::uint64_t i = 0; i < 30; ++i) Client(daemon.socket()).set(1, std::to_string(i), generated(kMiB / 2, i));
  daemon.kill();
  daemon.start();
  Client client(daemon.socket());
  BOOST_TEST(client.list(1).size() == 30u);
  for (std::uint64_t i = 0; i < 30; ++i) {
    BOOST_TEST(is_generated(client.get(1, std::to_string(i))->bytes(), kMiB / 2, i));
  }
}

BOOST_AUTO_TEST_CASE(an_evicted_value_asked_for_by_many_at_once_is_loaded_once) {
  DaemonProcess daemon(kSmall);
  daemon.start();
  Client client(daemon.socket());
  client.set(1, "wanted", generated(2 * kMiB, 7));
  for (std::uint64_t i = 0; i < 20; ++i) client.set(2, std::to_string(i), generated(kMiB, i));
  const std::uint64_t asked = figure(client, "gets_asked");
  const std::uint64_t reloads = figure(client, "reloads");

  constexpr int kThreads = 8;
  std::vector<Client> clients;
  for (int i = 0; i < kThreads; ++i) clients.emplace_back(daemon.socket(), 60s);
  std::atomic<int> exact{0};
  std::vector<std::atomic<pid_t>> ids(kThreads);
  std::vector<Worker> threads;
  daemon.stop();  // so that all of them are sent before any is answered
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      ids[t] = static_cast<pid_t>(::syscall(SYS_gettid));
      const auto view = clients[t].get(1, "wanted");
      if (view && is_generated(view->bytes(), 2 * kMiB, 7)) ++exact;
    });
  }
  for (int t = 0; t < kThreads; ++t) BOOST_TEST(eventually([&] { return ids[t] != 0 && asleep(ids[t]); }));
  daemon.resume();
  for (auto& thread : threads) thread.join();
  BOOST_TEST(exact == kThreads);
  BOOST_TEST(figure(client, "reloads") == reloads + 1);
  BOOST_TEST(figure(client, "gets_asked") == asked + kThreads);
}

BOOST_AUTO_TEST_CASE(values_of_finished_builds_are_evicted_before_those_of_running_ones) {
  DaemonProcess daemon(kSmall);
  daemon.start();
  Client client(daemon.socket());
  client.set(1, "running", generated(kMiB, 1));       // the least recently read one
  client.set(2, "finished", generated(2 * kMiB, 2));  // evicting it alone frees enough for the value that has no room
  client.finish(2);
  client.flush();
  for (std::uint64_t i = 0; figure(client, "evictions") == 0; ++i) {
    BOOST_REQUIRE(i < 20u);
    client.set(3, std::to_string(i), generated(kMiB, i), "", {.durable = true});
  }
  const std::uint64_t asked = figure(client, "gets_asked");
  BOOST_TEST(client.get(1, "running").has_value());
  BOOST_TEST(figure(client, "gets_asked") == asked);
  BOOST_TEST(is_generated(client.get(2, "finished")->bytes(), 2 * kMiB, 2));
  BOOST_TEST(figure(client, "gets_asked") == asked + 1);
}

BOOST_AUTO_TEST_CASE(an_evicted_value_whose_row_was_tampered_with_is_not_served) {
  DaemonProcess daemon(kSmall);
  daemon.start();
  {
    Client client(daemon.socket());
    client.set(1, "bad", "0123456789");
    client.set(1, "good", "abcdefghij");
  }
  daemon.terminate();
  daemon.remove_segment();
  query(daemon.db(), "UPDATE build_data SET value = CAST('0123456788' AS BLOB) WHERE name = 'bad'");
  daemon.start();
  Client client(daemon.socket());
  BOOST_CHECK_EXCEPTION(client.get(1, "bad"), Error,
                        [](const Error& error) { return error.code() == STEPSTASH_ECORRUPT; });
  BOOST_TEST(client.get(1, "good")->text() == "abcdefghij");
  BOOST_TEST(figure(client, "reload_errors") == 1u);
  client.set(1, "bad", "set again");
  BOOST_TEST(client.get(1, "bad")->text() == "set again");
}

BOOST_AUTO_TEST_CASE(an_evicted_value_can_be_replaced_dropped_and_pruned) {
  DaemonProcess daemon(kSmall);
  daemon.start();
  {
    Client client(daemon.socket());
    for (std::int64_t build = 1; build <= 3; ++build) client.set(build, "v", "old");
    client.finish(3, epoch(5));
  }
  daemon.terminate();
  daemon.remove_segment();
  daemon.start();  // all of them are evicted now
  {
    Client client(daemon.socket());
    client.set(1, "v", "new");
    BOOST_TEST(client.drop(2) == 1u);
    BOOST_TEST(client.prune(epoch(6)) == 1u);
    client.flush();
    BOOST_TEST(figure(client, "values_evicted") == 0u);
  }
  daemon.kill();
  daemon.remove_segment();
  daemon.start();
  Client client(daemon.socket());
  BOOST_TEST(client.get(1, "v")->text() == "new");
  BOOST_TEST(client.list(2).empty());
  BOOST_TEST(client.list(3).empty());
}

BOOST_AUTO_TEST_CASE(readers_and_writers_under_eviction_see_exact_values) {
  DaemonProcess daemon(kSmall);
  daemon.start();
  constexpr std::uint64_t kNames = 40;
  Client writer(daemon.socket(), 60s);
  for (std::uint64_t i = 0; i < kNames; ++i) writer.set(1, std::to_string(i), generated(300 * kKiB, i));
  std::atomic<std::uint64_t> wrong{0}, missing{0};
  std::vector<Worker> readers;
  for (std::uint64_t t = 0; t < 3; ++t) {
    readers.emplace_back([&, t] {
      const Client client(daemon.socket(), 60s);
      for (std::uint64_t i = 0; i < 200 / kScale; ++i) {
        const std::uint64_t n = (i * 7 + t * 13) % kNames;
        const auto view = client.get(1, std::to_string(n));
        if (!view) {
          ++missing;
        } else if (!is_generated(view->bytes(), 300 * kKiB, n)) {
          ++wrong;
        }
      }
    });
  }
  for (std::uint64_t i = 0; i < 100 / kScale; ++i) writer.set(2, std::to_string(i % 9), generated(500 * kKiB, i));
  for (auto& reader : readers) reader.join();
  BOOST_TEST(wrong == 0u);
  BOOST_TEST(missing == 0u);
}

BOOST_AUTO_TEST_SUITE_END()
