// SPDX-License-Identifier: Apache-2.0
// Several daemons, dying clients, forks: who holds which resources, and who gets them back.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "tests/support/harness.hpp"

using namespace stepstash;
using namespace stepstash::test;

// ---- one daemon per instance ---------------------------------------------------------------------------------------

BOOST_AUTO_TEST_SUITE(second_daemon)

BOOST_AUTO_TEST_CASE(it_refuses_to_serve_what_another_one_holds) {
  Served first;
  first.client.set(1, "v", "value");
  const std::string pid = "pid " + std::to_string(first.daemon.pid());
  {
    DaemonProcess second;
    second.use_segment(first.daemon.segment());
    BOOST_TEST(second.start_refused() == 75);
    BOOST_TEST(contains(second.log(), "segment /dev/shm/" + first.daemon.segment()), second.log());
    BOOST_TEST(contains(second.log(), pid), second.log());
  }
  {
    DaemonProcess second;
    second.use_db(first.daemon.db());
    BOOST_TEST(second.start_refused() == 75);
    BOOST_TEST(contains(second.log(), "database " + first.daemon.db()), second.log());
    BOOST_TEST(contains(second.log(), pid), second.log());
  }
  {
    DaemonProcess second;
    second.use_socket(first.daemon.socket());
    BOOST_TEST(second.start_refused() == 75);
    BOOST_TEST(contains(second.log(), "socket " + first.daemon.socket()), second.log());
    BOOST_TEST(contains(second.log(), pid), second.log());
  }
  // The first one is not affected.
  Client client(first.daemon.socket());
  BOOST_TEST(client.get(1, "v")->text() == "value");
  client.set(1, "w", generated(kMiB, 1));
  client.flush();
  BOOST_TEST(client.get(1, "w").has_value());
  BOOST_TEST(first.client.get(1, "w").has_value());
}

BOOST_AUTO_TEST_CASE(the_socket_of_a_dead_daemon_is_taken_over) {
  Served served;
  served.daemon.kill();
  BOOST_TEST(::access(served.daemon.socket().c_str(), F_OK) == 0);
  served.daemon.start();
  BOOST_TEST(!Client(served.daemon.socket()).get(1, "v"));
}

BOOST_AUTO_TEST_CASE(a_foreign_file_in_the_place_of_the_socket_is_not_touched) {
  DaemonProcess daemon;
  std::ofstream(daemon.socket()) << "somebody's file";
  BOOST_TEST(daemon.start_refused() != 0);
  BOOST_TEST(contains(daemon.log(), daemon.socket()), daemon.log());
  std::ifstream file(daemon.socket());
  BOOST_TEST(std::string(std::istreambuf_iterator<char>(file), {}) == "somebody's file");
}

BOOST_AUTO_TEST_CASE(a_link_in_the_place_of_the_socket_is_not_followed) {
  Served other;
  DaemonProcess daemon;
  std::filesystem::create_symlink(other.daemon.socket(), daemon.socket());
  BOOST_TEST(daemon.start_refused() != 0);
  BOOST_TEST(std::filesystem::is_symlink(daemon.socket()));
  BOOST_TEST(std::filesystem::is_socket(other.daemon.socket()));
}

BOOST_AUTO_TEST_CASE(a_segment_that_is_a_link_or_a_directory_is_not_used) {
  for (const bool link : {true, false}) {
    DaemonProcess daemon;
    const std::string victim = daemon.directory().file("victim");
    std::ofstream(victim) << "somebody's file";
    std::filesystem::create_directory(daemon.segment_directory());
    if (link) {
      std::filesystem::create_symlink(victim, daemon.segment_path());
    } else {
      std::filesystem::create_directory(daemon.segment_path());
    }
    BOOST_TEST(daemon.start_refused() != 0);
    BOOST_TEST(contains(daemon.log(), daemon.segment()), daemon.log());
    BOOST_TEST(std::filesystem::file_size(victim) == 15u);
  }
}

BOOST_AUTO_TEST_SUITE_END()

// ---- clients that die ----------------------------------------------------------------------------------------------

BOOST_AUTO_TEST_SUITE(dying_clients)

namespace {

struct Held {
  explicit Held(const Client& client)
      : views(figure(client, "open_views")),
        pages(figure(client, "pin_pages")),
        connections(figure(client, "connections")),
        rings(figure(client, "staging_rings")),
        used(figure(client, "segment.used_bytes")) {}
  std::uint64_t views, pages, connections, rings, used;
  bool operator==(const Held&) const = default;
  friend std::ostream& operator<<(std::ostream& out, const Held& held) {
    return out << held.views << " views, " << held.pages << " pages, " << held.connections << " connections, "
               << held.rings << " rings, " << held.used << " bytes";
  }
};

}  // namespace

BOOST_AUTO_TEST_CASE(all_that_a_killed_client_held_comes_back) {
  Served served({"--segment-size=64MiB"});
  Client& client = served.client;
  for (int i = 0; i < 10; ++i) client.set(1, std::to_string(i), generated(kMiB, 1));
  client.flush();
  const Held before(client);

  const auto hold = [&](const Signal& ready) {
    Client own(served.daemon.socket());
    std::vector<View> views;
    for (int i = 0; i < 10; ++i) views.push_back(*own.get(1, std::to_string(i)));
    auto known = own.begin(2, "known", 8 * kMiB);
    known->write(generated(3 * kMiB, 1));
    auto unknown = own.begin(2, "unknown");
    unknown->write(generated(3 * kMiB, 1));
    ready.raise();
    for (;;) ::pause();
    return 0;
  };
  const Signal ready;
  Child first([&] { return hold(ready); });
  Child second([&] { return hold(ready); });
  BOOST_REQUIRE(ready.wait());
  BOOST_REQUIRE(ready.wait());
  const Held meanwhile(client);
  BOOST_TEST(meanwhile.views == before.views + 20);
  BOOST_TEST(meanwhile.pages == before.pages + 2);
  BOOST_TEST(meanwhile.connections >= before.connections + 4);
  BOOST_TEST(meanwhile.rings >= before.rings + 4);
  BOOST_TEST(meanwhile.used >= before.used + 4 * 3 * kMiB);
  first.kill();
  second.kill();
  BOOST_TEST(eventually([&] { return Held(client) == before; }, 5s), Held(client));
  BOOST_TEST(client.list(2).empty());
}

BOOST_AUTO_TEST_CASE(clients_killed_at_any_moment_leave_nothing_behind) {
  Served served({"--segment-size=64MiB", "--flush-interval=10ms"});
  Client& client = served.client;
  client.set(1, "read", generated(kMiB, 1));
  client.flush();
  const Held before(client);
  const int rounds = kScale == 1 ? 20 : 5;
  for (int round = 0; round < rounds; ++round) {
    const Signal going;
    Child child([&] {
      Client own(served.daemon.socket());
      for (std::uint64_t i = 0;; ++i) {
        const auto view = own.get(1, "read");
        own.set(2, std::to_string(i % 3), generated(i % 2 == 0 ? 1000 : 2 * kMiB, i));
        if (i == 2) going.raise();
      }
      return 0;
    });
    BOOST_REQUIRE(going.wait());
    std::this_thread::yield();
    child.kill();
  }
  client.drop(2);
  client.flush();
  BOOST_TEST(eventually([&] { return Held(client) == before; }, 5s), Held(client));
  BOOST_TEST(is_generated(client.get(1, "read")->bytes(), kMiB, 1));
}

BOOST_AUTO_TEST_CASE(what_a_killed_client_was_acknowledged_is_there) {
  Served served;
  const Signal acknowledged;
  Child child([&] {
    Client own(served.daemon.socket());
    own.set(1, "v", generated(5 * kMiB, 1));
    acknowledged.raise();
    for (;;) ::pause();
    return 0;
  });
  BOOST_REQUIRE(acknowledged.wait());
  child.kill();
  BOOST_TEST(is_generated(served.client.get(1, "v")->bytes(), 5 * kMiB, 1));
}

BOOST_AUTO_TEST_CASE(a_client_can_write_neither_the_segment_nor_its_descriptor) {
  // I1, as far as a client can tell: its mapping of the segment is not writable, and it holds no descriptor of it.
  Served served;
  served.client.set(1, "v", "value");
  std::ifstream maps("/proc/self/maps");
  int mappings = 0;
  for (std::string line; std::getline(maps, line);) {
    if (!contains(line, served.daemon.segment_path()) || contains(line, ".pin.")) continue;
    ++mappings;
    BOOST_TEST(contains(line, " r--s "), line);
  }
  BOOST_TEST(mappings == 1);
  for (const auto& fd : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    const auto target = std::filesystem::read_symlink(fd.path(), gone);
    BOOST_TEST(!contains(target.string(), served.daemon.segment()), target);
  }
  Child child([&] {
    const Client own(served.daemon.socket());
    const auto view = own.get(1, "v");
    const_cast<char&>(view->text().front()) = 'X';
    return 0;
  });
  BOOST_TEST(child.join() == 128 + SIGSEGV);
  BOOST_TEST(served.client.get(1, "v")->text() == "value");
}

BOOST_AUTO_TEST_SUITE_END()

// ---- forks ---------------------------------------------------------------------------------------------------------

BOOST_AUTO_TEST_SUITE(forks)

BOOST_AUTO_TEST_CASE(a_child_goes_on_with_its_parents_client) {
  Served served;
  Client& client = served.client;
  client.set(1, "v", "value");
  client.set(1, "large", generated(2 * kMiB, 1));
  Child child([&] {
    const auto view = client.get(1, "v");
    if (!view || view->text() != "value") return 1;
    client.set(1, "from the child", generated(kMiB, 5));
    if (!is_generated(client.get(1, "from the child")->bytes(), kMiB, 5)) return 2;
    if (client.list(1).size() != 3) return 3;
    return 0;
  });
  // Meanwhile the parent uses its own.
  for (int i = 0; i < 200; ++i) client.set(2, "parent", std::to_string(i));
  BOOST_TEST(child.join() == 0);
  BOOST_TEST(is_generated(client.get(1, "from the child")->bytes(), kMiB, 5));
  BOOST_TEST(client.get(2, "parent")->text() == "199");
}

BOOST_AUTO_TEST_CASE(a_child_neither_uses_up_nor_releases_its_parents_pins) {
  Served served({"--segment-size=8MiB", "--flush-interval=10ms"});
  Client& client = served.client;
  client.set(1, "v", generated(2 * kMiB, 1));
  auto view = client.get(1, "v");
  const Signal looked;
  Child child([&] {
    {
      auto inherited = std::move(view);
      if (!is_generated(inherited->bytes(), 2 * kMiB, 1)) return 1;
    }  // "releases" it
    for (int i = 0; i < 1000; ++i) {
      if (!client.get(1, "v")) return 2;
    }
    client = Client(served.daemon.socket());  // closes the inherited one
    looked.raise();
    return 0;
  });
  BOOST_REQUIRE(looked.wait());
  BOOST_TEST(child.join() == 0);
  client.set(1, "v", "replaced");
  for (std::uint64_t i = 0; i < 40; ++i) client.set(2, std::to_string(i % 5), generated(512 * kKiB, i));
  BOOST_TEST(is_generated(view->bytes(), 2 * kMiB, 1));
  BOOST_TEST(figure(client, "open_views") == 1u);
  client.set(3, "and goes on", "v");
  BOOST_TEST(client.get(3, "and goes on").has_value());
}

BOOST_AUTO_TEST_CASE(a_child_that_ends_at_once_harms_nobody) {
  Served served;
  Client& client = served.client;
  client.set(1, "v", "value");
  auto view = client.get(1, "v");
  for (int i = 0; i < 20; ++i) {
    Child child([] { return 0; });
    BOOST_TEST(child.join() == 0);
    client.set(1, "n", std::to_string(i));
    BOOST_TEST(client.get(1, "n")->text() == std::to_string(i));
  }
  BOOST_TEST(view->text() == "value");
  BOOST_TEST(figure(client, "connections") == 1u);
}

/// A step with open views, a set in progress and a few threads forks a long-running process and is killed. The child is
/// told `with_views` too: without views it has no segment either.
void leaves_nothing_behind(Served& served, bool with_views) {
  const auto at_rest = [&] {
    return figure(served.client, "open_views") == 0 && figure(served.client, "connections") == 1 &&
           figure(served.client, "pin_pages") == 1 && figure(served.client, "staging_rings") == 0;
  };
  BOOST_TEST_REQUIRE(eventually(at_rest));
  const Signal ready, end;
  int report[2];
  BOOST_REQUIRE(::pipe2(report, O_CLOEXEC) == 0);
  const UniqueFd from_server(report[0]);
  UniqueFd to_test(report[1]);
  Child step([&] {
    Client client(served.daemon.socket());
    std::vector<View> views;
    for (int i = 0; with_views && i < 3; ++i) views.push_back(*client.get(1, "v"));
    auto writer = client.begin(1, "never there", 10 * kMiB);
    const std::string part = generated(kMiB, 1);
    writer->write(std::as_bytes(std::span(part)));
    const pid_t server = ::fork();
    if (server == 0) {
      ::setsid();
      ::prctl(PR_SET_PDEATHSIG, 0);
      if (with_views && views[0].text() != "value") ::_exit(1);
      ready.raise();
      end.wait();
      std::ifstream maps("/proc/self/maps");
      char segments = '0', others = '0';
      for (std::string line; std::getline(maps, line);) {
        if (contains(line, ".pin.") || contains(line, "stepstash-ring")) {
          ++others;
        } else if (contains(line, served.daemon.segment())) {
          ++segments;
        }
      }
      const char found[] = {segments, others};
      static_cast<void>(!::write(to_test.get(), found, 2));
      ::_exit(0);
    }
    ::pause();
    return 0;
  });
  BOOST_REQUIRE(ready.wait());
  to_test.reset();
  if (with_views) BOOST_TEST(eventually([&] { return figure(served.client, "open_views") == 3u; }));
  step.kill();
  BOOST_TEST(eventually(at_rest, 1s));
  end.raise();
  char found[2] = {};
  BOOST_TEST(::read(from_server.get(), found, 2) == 2);
  BOOST_TEST(found[0] == (with_views ? '1' : '0'));
  BOOST_TEST(found[1] == '0');
}

BOOST_AUTO_TEST_CASE(a_process_that_a_step_leaves_behind_keeps_nothing_of_the_steps) {
  Served served;
  served.client.set(1, "v", "value");
  leaves_nothing_behind(served, /*with_views=*/true);
  leaves_nothing_behind(served, /*with_views=*/false);
}

// The sanitizers' run-time does not survive a fork that bypasses the C library.
BOOST_AUTO_TEST_CASE(a_child_made_behind_the_c_librarys_back_keeps_no_views_and_no_memory,
                     *boost::unit_test::enable_if<!kAddressSanitizer && !kThreadSanitizer>()) {
  Served served;
  served.client.set(1, "v", "value");
  const Signal ready, end;
  Child step([&] {
    Client client(served.daemon.socket());
    const auto view = client.get(1, "v");
    const long server = ::syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (server == 0) {
      ::setsid();
      ready.raise();
      end.wait();
      ::_exit(0);
    }
    ::pause();
    return 0;
  });
  BOOST_REQUIRE(ready.wait());
  BOOST_TEST(figure(served.client, "open_views") == 1u);
  step.kill();
  BOOST_TEST(eventually([&] { return figure(served.client, "open_views") == 0u; }, 1s));
  BOOST_TEST(eventually([&] { return figure(served.client, "pin_pages") == 1u; }, 1s));
  end.raise();
}

BOOST_AUTO_TEST_CASE(a_child_that_closes_its_parents_client_unmaps_nothing_of_its_own,
                     *boost::unit_test::enable_if<!kThreadSanitizer>()) {
  Served served;
  Client& client = served.client;
  client.set(1, "v", generated(2 * kMiB, 1));  // by a ring
  for (const bool with_view : {false, true}) {
    auto view = client.get(1, "v");
    if (!with_view) view.reset();
    Child child([&] {
      // The addresses that were not inherited are free, and the kernel reuses them.
      std::vector<char*> mine;
      for (int i = 0; i < 200; ++i) {
        void* at =
            ::mmap(nullptr, 8 * kMiB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (at == MAP_FAILED) return 1;
        mine.push_back(static_cast<char*>(at));
      }
      if (with_view && !is_generated(view->bytes(), 2 * kMiB, 1)) return 2;
      client.set(2, "from the child", generated(kMiB, 3));
      if (!is_generated(client.get(1, "v")->bytes(), 2 * kMiB, 1)) return 3;
      client = Client(served.daemon.socket());  // closes the inherited one
      for (char* at : mine) {
        for (std::uint64_t i = 0; i < 8 * kMiB; i += kMiB) at[i] = 'x';
      }
      return 0;
    });
    BOOST_TEST(child.join() == 0);
  }
  BOOST_TEST(eventually([&] { return figure(client, "connections") == 1u; }));
}

// ThreadSanitizer does not follow forks of processes with threads.
BOOST_AUTO_TEST_CASE(a_fork_amid_busy_threads_gives_a_usable_client,
                     *boost::unit_test::enable_if<!kThreadSanitizer>()) {
  Served served;
  Client& client = served.client;
  std::atomic<bool> over{false};
  std::vector<Worker> threads;
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; !over; ++i) {
        client.set(1, "t" + std::to_string(t), std::to_string(i));
        client.get(1, "t" + std::to_string(t));
      }
    });
  }
  int failed = 0;
  for (int i = 0; i < 20; ++i) {
    Child child([&] {
      // The allocator may stay locked forever in such a child (fork(2)); glibc's does not.
      client.set(2, "from child", std::to_string(i));
      return client.get(2, "from child").has_value() ? 0 : 1;
    });
    failed += child.join() != 0;
  }
  over = true;
  for (auto& thread : threads) thread.join();
  BOOST_TEST(failed == 0);
}

BOOST_AUTO_TEST_SUITE_END()
