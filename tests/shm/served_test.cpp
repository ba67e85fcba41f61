// SPDX-License-Identifier: Apache-2.0
#include "shm/served.hpp"

#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/support/segment_fixture.hpp"

namespace stepstash::test {
namespace {

using shm::Served;

BOOST_AUTO_TEST_SUITE(served)

BOOST_FIXTURE_TEST_CASE(a_segment_is_served_as_long_as_its_mark_lives, Stash) {
  const shm::Reader client = reader();
  BOOST_TEST(!client.served());
  for (int i = 0; i < 3; ++i) {
    {
      const Served mark(segment->header());
      BOOST_TEST(client.served());
    }
    BOOST_TEST(!client.served());
  }
}

/// Runs `end` in a process that serves; returns the word that is left.
std::uint32_t word_after(Stash& stash, const std::function<void()>& end) {
  Child daemon([&](int report) -> int {
    const Served mark(stash.segment->header());
    if (::write(report, "x", 1) != 1) return 1;
    end();
    return 0;
  });
  BOOST_TEST_REQUIRE(daemon.wait_for_report());
  if (end == nullptr) daemon.kill();
  int status = 0;
  while (::waitpid(daemon.pid(), &status, 0) < 0 && errno == EINTR) {
  }
  return stash.segment->header().served.load();
}

BOOST_FIXTURE_TEST_CASE(whatever_ends_the_daemon_ends_its_mark, Stash) {
  const shm::Reader client = reader();
  const std::vector<std::function<void()>> ends = {
      [] { ::raise(SIGKILL); },
      [] { ::_exit(0); },
      [] { ::signal(SIGABRT, SIG_DFL), ::abort(); },
      [] { ::execl("/bin/true", "true", nullptr); },
  };
  for (const auto& end : ends) {
    const std::uint32_t word = word_after(*this, end);
    BOOST_TEST(word == std::uint32_t{FUTEX_OWNER_DIED});
    BOOST_TEST(!client.served());
  }
  const Served next(segment->header());  // the next daemon takes it over
  BOOST_TEST(client.served());
}

BOOST_FIXTURE_TEST_CASE(a_daemon_in_a_pid_namespace_of_its_own_is_noticed_as_well, Stash) {
  // As in a container: its threads have other numbers there than here.
  Child outer([&](int report) -> int {
    if (::unshare(CLONE_NEWPID) != 0) return ::write(report, "-", 1) == 1 ? 0 : 1;
    const ::pid_t inner = ::fork();
    if (inner == 0) {
      const Served mark(segment->header());
      const std::uint32_t word = segment->header().served.load();
      ::_exit(word != 0 && word < 10 ? (::raise(SIGKILL), 0) : 3);
    }
    int status = 0;
    ::waitpid(inner, &status, 0);
    return ::write(report, WIFSIGNALED(status) ? "k" : "?", 1) == 1 ? 0 : 1;
  });
  BOOST_TEST(outer.wait() == 0);
  const std::uint32_t left = segment->header().served.load();
  if (left == 0) {
    BOOST_TEST_MESSAGE("no PID namespace can be made here");
  } else {
    BOOST_TEST(left == std::uint32_t{FUTEX_OWNER_DIED});
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace stepstash::test
