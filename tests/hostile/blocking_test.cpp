// SPDX-License-Identifier: Apache-2.0
// A blocked sink must not block the daemon: its standard error, its service manager, its disk. Clients do not wait for
// them.
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/hostile/flood.hpp"
#include "tests/hostile/siege.hpp"

using namespace stepstash;
using namespace stepstash::test;

namespace {

/// A full pipe.
struct FullPipe {
  FullPipe() {
    int ends[2];
    BOOST_REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
    read.reset(ends[0]);
    write.reset(ends[1]);
    ::fcntl(write.get(), F_SETFL, O_NONBLOCK);
    const std::string text(4096, '-');
    while (::write(write.get(), text.data(), text.size()) > 0) filled += text.size();
    ::fcntl(write.get(), F_SETFL, 0);
  }
  UniqueFd read, write;
  std::size_t filled = 0;
};

void served_at_once(Client& client) {
  const Latency latency = Latency::of(client, 700ms);
  BOOST_TEST(latency.worst < 1e6 * std::chrono::duration<double>(Siege::kServedWithin).count(), latency);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(hostile_blocking)

BOOST_AUTO_TEST_CASE(a_log_that_nobody_reads_keeps_no_client_waiting) {
  FullPipe pipe;
  DaemonProcess daemon;
  daemon.use_stderr(pipe.write.get());
  daemon.start();
  Client client(daemon.socket());
  for (int i = 0; i < 5; ++i) {
    BOOST_REQUIRE(::kill(daemon.pid(), SIGHUP) == 0);  // each logs two lines
    served_at_once(client);
    if (i == 0) client.set(1, "durable", "value", "", {.durable = true});
  }
  BOOST_TEST(client.get(1, "durable")->text() == "value");
  BOOST_TEST(stats(client).at("log_lines_dropped") == 0u);
  // The pipe is read: everything is there.
  pipe.write.reset();
  std::string text;
  std::thread reader([&] {
    std::array<char, 4096> some;
    for (ssize_t got = 0; (got = ::read(pipe.read.get(), some.data(), some.size())) > 0;) {
      text.append(some.data(), static_cast<std::size_t>(got));
    }
  });
  BOOST_TEST(daemon.terminate() == 0);
  reader.join();
  for (const char* part : {"listening on", "configuration reloaded", "stopping: signal 15", "stopped; segment"}) {
    BOOST_TEST(contains(text, part), part);
  }
}

BOOST_AUTO_TEST_CASE(a_log_that_nobody_reads_keeps_no_daemon_alive) {
  FullPipe pipe;
  DaemonProcess daemon;
  daemon.use_stderr(pipe.write.get());
  daemon.start();
  Client(daemon.socket()).set(1, "v", "value", "", {.durable = true});
  const auto start = std::chrono::steady_clock::now();
  BOOST_TEST(daemon.terminate() == 0);
  BOOST_TEST((std::chrono::steady_clock::now() - start < 10s));
}

BOOST_AUTO_TEST_CASE(a_service_manager_that_does_not_read_keeps_no_client_waiting) {
  DaemonProcess daemon;
  daemon.leave_notices_unread();
  daemon.start();
  const UniqueFd full(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  daemon.notify_path().copy(address.sun_path, sizeof address.sun_path - 1);
  int messages = 0;
  while (::sendto(full.get(), "X=1", 3, 0, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 3)
    ++messages;
  BOOST_TEST(messages < 100'000);
  Client client(daemon.socket());
  for (int i = 0; i < 5; ++i) {  // its status changes each second
    client.set(2 + i, "v", "value");
    served_at_once(client);
  }
  BOOST_REQUIRE(::kill(daemon.pid(), SIGHUP) == 0);
  served_at_once(client);
  BOOST_TEST(daemon.terminate() == 0);
}

BOOST_AUTO_TEST_SUITE_END()
