// SPDX-License-Identifier: Apache-2.0
#include "libclient/fork_epoch.hpp"

#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <csignal>
#include <thread>

namespace stepstash::client {
namespace {

template <class F>
int exit_status_of(pid_t child, F&& in_child) {
  if (child == 0) ::_exit(in_child() ? 0 : 1);
  int status = -1;
  ::waitpid(child, &status, 0);
  return status;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(fork_epoch_)

BOOST_AUTO_TEST_CASE(a_process_keeps_its_epoch_in_all_threads) {
  watch_for_forks();
  const std::uint64_t epoch = fork_epoch();
  BOOST_TEST(epoch != 0u);
  std::uint64_t in_thread = 0;
  std::thread([&] { in_thread = fork_epoch(); }).join();
  BOOST_TEST(in_thread == epoch);
}

BOOST_AUTO_TEST_CASE(a_child_and_its_child_have_epochs_of_their_own) {
  watch_for_forks();
  const std::uint64_t parent = fork_epoch();
  const int status = exit_status_of(::fork(), [&] {
    const std::uint64_t child = fork_epoch();
    if (child == parent || child == 0 || fork_epoch() != child) return false;
    return exit_status_of(::fork(), [&] { return fork_epoch() != parent && fork_epoch() != child; }) == 0;
  });
  BOOST_TEST(status == 0);
  BOOST_TEST(fork_epoch() == parent);
}

#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
// The sanitizers' run-time does not survive a fork behind its back.
BOOST_AUTO_TEST_CASE(a_child_by_the_bare_system_call_is_noticed_as_well) {
  watch_for_forks();
  const std::uint64_t parent = fork_epoch();
  const auto child = static_cast<pid_t>(::syscall(SYS_clone, SIGCHLD, nullptr, nullptr, nullptr, nullptr));
  BOOST_TEST(exit_status_of(child, [&] { return fork_epoch() != parent; }) == 0);
}
#endif

BOOST_AUTO_TEST_SUITE_END()

}  // namespace stepstash::client
