// SPDX-License-Identifier: Apache-2.0
// I6: a get of a resident value takes no lock and makes no system call, whatever happens to the daemon or to other
// readers.
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <thread>

#include "tests/support/harness.hpp"

using namespace stepstash;
using namespace stepstash::test;

namespace {

/// From here on the process may exit; any other system call kills it with SIGSYS.
bool forbid_system_calls() {
  sock_filter program[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
  };
  const sock_fprog filter{std::size(program), program};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

constexpr int kGets = 1'000'000 / static_cast<int>(kScale);

/// In a child: a million gets, stats and misses without any system call. With `planted`, one in the middle.
int read_in_silence(const std::string& socket, bool planted) {
  const Client client(socket);
  stepstash_client* handle = client.handle();
  stepstash_view view;
  // Once first, for everything set up on first use.
  if (stepstash_get(handle, 1, "small", &view) != STEPSTASH_OK) return 10;
  stepstash_release(&view);
  if (stepstash_get(handle, 1, "not there", &view) != STEPSTASH_MISS) return 11;
  if (!forbid_system_calls()) return 12;
  for (int i = 0; i < kGets; ++i) {
    if (planted && i == kGets / 2) ::syscall(SYS_getppid);
    switch (i % 8) {
      case 0:
        if (stepstash_get(handle, 1, "not there", &view) != STEPSTASH_MISS) ::syscall(SYS_exit_group, 13);
        break;
      case 1:
        if (stepstash_stat(handle, 1, "large", &view) != STEPSTASH_OK) ::syscall(SYS_exit_group, 14);
        break;
      case 2:
        if (stepstash_get(handle, 1, "large", &view) != STEPSTASH_OK) ::syscall(SYS_exit_group, 15);
        break;
      default:
        if (stepstash_get(handle, 1, "small", &view) != STEPSTASH_OK) ::syscall(SYS_exit_group, 16);
        if (view.length != 5 || static_cast<const char*>(view.data)[4] != 'l') ::syscall(SYS_exit_group, 17);
    }
    stepstash_release(&view);
  }
  ::syscall(SYS_exit_group, 0);
  return 18;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(readers)

BOOST_AUTO_TEST_CASE(a_million_gets_make_no_system_call) {
  DaemonProcess daemon;
  daemon.start();
  {
    Client client(daemon.socket());
    client.set(1, "small", "small");
    client.set(1, "large", generated(kMiB, 1));
  }
  Child child([&] { return read_in_silence(daemon.socket(), false); });
  BOOST_TEST(child.join() == 0);
  // The same with one planted system call, to show that the test would detect it.
  Child control([&] { return read_in_silence(daemon.socket(), true); });
  BOOST_TEST(control.join() == 128 + SIGSYS);
}

BOOST_AUTO_TEST_CASE(a_million_gets_ask_the_daemon_nothing) {
  DaemonProcess daemon;
  daemon.start();
  Client client(daemon.socket());
  client.set(1, "v", "value");
  const std::uint64_t asked = figure(client, "gets_asked");
  bool all = true;
  for (int i = 0; i < kGets; ++i) all = all && client.get(1, "v").has_value();
  BOOST_TEST(all);
  BOOST_TEST(figure(client, "gets_asked") == asked);
}

namespace {

std::atomic<int> suspended{0};
std::atomic<bool> resume{false};

/// Stops the thread at whatever instruction it was.
void hold_here(int) {
  suspended = 1;
  while (!resume) {
  }
  suspended = 0;
}

}  // namespace

// ThreadSanitizer delivers signals only when the thread calls a library function.
BOOST_AUTO_TEST_CASE(a_reader_suspended_at_any_instruction_holds_up_no_other,
                     *boost::unit_test::enable_if<!kThreadSanitizer>()) {
  DaemonProcess daemon;
  daemon.start();
  Client client(daemon.socket());
  client.set(1, "v", "value");
  struct sigaction action {};
  action.sa_handler = hold_here;
  BOOST_REQUIRE(::sigaction(SIGUSR1, &action, nullptr) == 0);
  std::atomic<bool> over{false};
  std::thread other([&] {
    while (!over) {
      stepstash_view view;
      if (stepstash_get(client.handle(), 1, "v", &view) == STEPSTASH_OK) stepstash_release(&view);
    }
  });
  bool all = true;
  for (int round = 0; round < 300; ++round) {
    resume = false;
    BOOST_REQUIRE(::pthread_kill(other.native_handle(), SIGUSR1) == 0);
    BOOST_REQUIRE(eventually([] { return suspended == 1; }));
    for (int i = 0; i < 200; ++i) {
      const auto view = client.get(1, "v");
      all = all && view && view->text() == "value";
    }
    resume = true;
    BOOST_REQUIRE(eventually([] { return suspended == 0; }));
  }
  over = true;
  other.join();
  BOOST_TEST(all);
}

BOOST_AUTO_TEST_CASE(gets_go_on_while_the_daemon_stands_still) {
  DaemonProcess daemon;
  daemon.start();
  Client client(daemon.socket(), 500ms);
  for (int i = 0; i < 100; ++i) client.set(1, "n" + std::to_string(i), std::to_string(i));
  daemon.stop();
  for (int i = 0; i < 100; ++i) {
    const auto view = client.get(1, "n" + std::to_string(i));  // looked up for the first time
    BOOST_REQUIRE(view);
    BOOST_TEST(view->text() == std::to_string(i));
    BOOST_TEST(client.stat(1, "n" + std::to_string(i))->length() == view->length());
  }
  BOOST_TEST(!client.get(1, "never set"));

  // Calls that need the daemon fail at their deadline.
  const auto start = std::chrono::steady_clock::now();
  BOOST_CHECK_EXCEPTION(client.set(1, "late", "v"), Error, [](const Error& error) {
    return error.code() == STEPSTASH_EDEADLINE || error.code() == STEPSTASH_EUNAVAILABLE;
  });
  BOOST_TEST((std::chrono::steady_clock::now() - start < 5s));
  daemon.resume();
  client.set(1, "after", "v");
  BOOST_TEST(client.get(1, "after")->text() == "v");
}

BOOST_AUTO_TEST_CASE(gets_go_on_while_the_daemon_is_dead) {
  DaemonProcess daemon;
  daemon.start();
  Client client(daemon.socket(), 500ms);
  for (int i = 0; i < 100; ++i) client.set(1, "n" + std::to_string(i), std::to_string(i));
  client.set(1, "large", generated(3 * kMiB, 1));
  daemon.kill();
  for (int i = 0; i < 100; ++i) {
    const auto view = client.get(1, "n" + std::to_string(i));
    BOOST_REQUIRE(view);
    BOOST_TEST(view->text() == std::to_string(i));
  }
  BOOST_TEST(is_generated(client.get(1, "large")->bytes(), 3 * kMiB, 1));
  BOOST_TEST(!client.get(1, "never set"));
  const auto start = std::chrono::steady_clock::now();
  BOOST_CHECK_EXCEPTION(client.set(1, "late", "v"), Error,
                        [](const Error& error) { return error.code() == STEPSTASH_EUNAVAILABLE; });
  BOOST_TEST((std::chrono::steady_clock::now() - start < 5s));
}

BOOST_AUTO_TEST_SUITE_END()
