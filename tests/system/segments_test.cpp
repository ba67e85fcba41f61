// SPDX-License-Identifier: Apache-2.0
// Clients whose segment is no longer served: they notice, and keep nothing of it.
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <boost/test/unit_test.hpp>
#include <filesystem>
#include <fstream>

#include "shm/layout.hpp"
#include "tests/system/command.hpp"

using namespace stepstash;
using namespace stepstash::test;

namespace {

namespace fs = std::filesystem;

/// Mappings of this process whose name contains `part`: kernel names of objects in /dev/shm may end in " (deleted)".
std::size_t mappings_of(std::string_view part) {
  std::ifstream maps("/proc/self/maps");
  std::size_t found = 0;
  for (std::string line; std::getline(maps, line);) found += contains(line, part);
  return found;
}

/// The text of (1, "v") by hits alone; empty if there is none.
std::string hit(Client& client) {
  const auto view = client.get(1, "v");
  return view ? std::string(view->text()) : std::string();
}

/// Whether `client`, which only calls get, reads `text` within a second.
bool reads_within_a_second(Client& client, std::string_view text) {
  return eventually([&] { return hit(client) == text; }, 1s);
}

bool says_served(const std::string& segment) {
  const UniqueFd fd(::open(segment.c_str(), O_RDONLY | O_CLOEXEC));
  std::uint32_t word = 0;
  BOOST_TEST_REQUIRE(::pread(fd.get(), &word, sizeof word, offsetof(shm::Header, served)) == sizeof word);
  return shm::is_served(word);
}

/// A daemon on `segment` with a separate database, in which (1, "v") is `text`.
void serve(DaemonProcess& daemon, const std::string& segment, const std::string& text) {
  daemon.use_segment(segment);
  daemon.use_db(daemon.directory().file("db-" + text));
  daemon.start();
  Client(daemon.socket()).set(1, "v", text);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(segments)

BOOST_AUTO_TEST_CASE(a_segment_says_whether_a_daemon_serves_it_whatever_ends_the_daemon) {
  Served served;
  const std::string path = served.daemon.segment_path();
  BOOST_TEST(says_served(path));
  served.daemon.kill();
  BOOST_TEST(!says_served(path));
  served.daemon.start();
  BOOST_TEST(says_served(path));
  BOOST_TEST(served.daemon.terminate() == 0);
  BOOST_TEST(!says_served(path));
  served.daemon.start();
  BOOST_TEST(says_served(path));
  BOOST_REQUIRE(::kill(served.daemon.pid(), SIGABRT) == 0);
  BOOST_TEST(eventually([&] { return !says_served(path); }));
}

BOOST_AUTO_TEST_CASE(a_client_that_only_gets_reads_within_a_second_from_the_segment_that_serves) {
  DaemonProcess daemon;
  const std::string name = daemon.segment();
  for (const bool in_order : {true, false}) {
    serve(daemon, name + ".one", "one");
    Client client(daemon.socket());
    BOOST_TEST(hit(client) == "one");
    const auto held = client.get(1, "v");
    in_order ? static_cast<void>(daemon.terminate()) : daemon.kill();
    BOOST_TEST(hit(client) == "one");  // gets go on (I6)
    serve(daemon, name + ".two", "two");
    BOOST_TEST(reads_within_a_second(client, "two"));
    BOOST_TEST(held->text() == "one");
    daemon.kill();
    fs::remove(daemon.db());
    fs::remove(daemon.directory().file("db-one"));
  }
  daemon.use_segment(name);
  for (const auto& object : fs::directory_iterator("/dev/shm")) {
    if (contains(object.path().filename().string(), name)) fs::remove_all(object.path());
  }
}

BOOST_AUTO_TEST_CASE(a_segment_that_is_deleted_by_hand_is_left_within_a_second) {
  for (const bool while_it_runs : {false, true}) {
    DaemonProcess daemon;
    daemon.start();
    Client client(daemon.socket());
    client.set(1, "v", "before");
    client.flush();
    BOOST_TEST(hit(client) == "before");
    if (while_it_runs) daemon.remove_segment();
    BOOST_TEST(hit(client) == "before");
    BOOST_TEST(daemon.terminate() == 0);
    if (!while_it_runs) daemon.remove_segment();
    BOOST_TEST(hit(client) == "before");
    daemon.start();
    Client(daemon.socket()).set(1, "v", "after");
    BOOST_TEST(reads_within_a_second(client, "after"));
  }
}

BOOST_AUTO_TEST_CASE(a_segment_that_was_replaced_is_given_back_with_its_last_view) {
  DaemonProcess daemon;
  const std::string name = daemon.segment();
  serve(daemon, name + ".0", "0");
  Client client(daemon.socket());
  for (int i = 1; i <= 4; ++i) {
    const std::string former = name + "." + std::to_string(i - 1), next = name + "." + std::to_string(i);
    auto more = client.get(1, "v");
    {
      const auto held = client.get(1, "v");
      daemon.kill();
      serve(daemon, next, std::to_string(i));
      BOOST_TEST(reads_within_a_second(client, std::to_string(i)));
      BOOST_TEST(mappings_of("/" + former) == 2u);  // the segment, and its page of pins
      BOOST_TEST(held->text() == std::to_string(i - 1));
    }
    BOOST_TEST(more->text() == std::to_string(i - 1));
    BOOST_TEST(mappings_of("/" + former) == 2u);
    more.reset();
    BOOST_TEST(mappings_of("/" + former) == 0u);
    BOOST_TEST(mappings_of("/" + name) == 2u);
  }
  BOOST_TEST(eventually([&] { return figure(client, "pin_pages") == 1u; }));
  for (const auto& object : fs::directory_iterator("/dev/shm")) {
    if (contains(object.path().filename().string(), name)) fs::remove_all(object.path());
  }
}

BOOST_AUTO_TEST_CASE(threads_that_read_meanwhile_find_the_value_and_leave_no_former_segment) {
  DaemonProcess daemon;
  const std::string name = daemon.segment();
  serve(daemon, name + ".0", "0");
  Client client(daemon.socket());
  client.flush();
  std::atomic<bool> over{false};
  std::atomic<long> wrong{0};
  std::vector<Worker> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      while (!over) {
        const auto view = client.get(1, "v");
        if (!view || view->length() != 1 || view->text()[0] < '0' || view->text()[0] > '4') ++wrong;
        if (client.get(1, "absent")) ++wrong;
      }
    });
  }
  for (int i = 1; i <= 4; ++i) {
    daemon.kill();
    // The value exists before anyone can request it: a get must never report a miss.
    daemon.use_segment(name + "." + std::to_string(i));
    daemon.start();
    const std::string current = "/" + name + "." + std::to_string(i);
    BOOST_TEST(eventually([&] { return mappings_of(current) == 2u && mappings_of("/" + name) == 2u; }, 5s));
  }
  over = true;
  for (Worker& thread : threads) thread.join();
  BOOST_TEST(wrong == 0);
  daemon.kill();
  for (const auto& object : fs::directory_iterator("/dev/shm")) {
    if (contains(object.path().filename().string(), name)) fs::remove_all(object.path());
  }
}

BOOST_AUTO_TEST_SUITE_END()
