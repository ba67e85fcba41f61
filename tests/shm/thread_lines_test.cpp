// SPDX-License-Identifier: Apache-2.0
// Which thread claims pins where, and who fences for it.
#include "shm/thread_lines.hpp"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstddef>
#include <latch>
#include <set>
#include <thread>

#include "shm/reader_fence.hpp"
#include "tests/support/segment_fixture.hpp"

namespace stepstash::test {
namespace {

using shm::Found;
using shm::Pinned;

struct OneEntry : Stash {
  OneEntry() { set(1, "x", "value"); }
  shm::Reader client = reader();

  bool hold(Pinned& view) const { return client.find(1, "x", view) == Found::resident; }
  /// How many views this thread can open; releases them.
  std::size_t room() const {
    std::vector<Pinned> views;
    for (Pinned view; hold(view);) views.push_back(view);
    for (Pinned& view : views) view.release();
    return views.size();
  }
};

std::size_t line_of(const Pinned& view) {
  return reinterpret_cast<std::uintptr_t>(view.pin) % shm::kPageBytes / sizeof(shm::PinLine) - 1;
}

/// 0 when `body` was true in a child.
int in_child(const std::function<bool()>& body) {
  const pid_t child = ::fork();
  BOOST_REQUIRE(child >= 0);
  if (child == 0) ::_exit(body() ? 0 : 1);
  int status = 0;
  BOOST_REQUIRE(::waitpid(child, &status, 0) == child);
  return status;
}

BOOST_FIXTURE_TEST_SUITE(thread_lines, OneEntry)

BOOST_AUTO_TEST_CASE(threads_claim_in_lines_of_their_own_and_then_in_those_of_all) {
  constexpr std::size_t kThreads = 100;
  std::vector<Pinned> views(kThreads);
  std::atomic<std::size_t> held{0};
  std::latch all(kThreads);
  std::vector<std::thread> threads;
  for (Pinned& view : views) {
    threads.emplace_back([&] {
      held += hold(view) ? 1 : 0;
      all.arrive_and_wait();  // none ends, and gives its line back, before all have one
    });
  }
  for (auto& thread : threads) thread.join();
  BOOST_TEST(held == kThreads);
  std::multiset<std::size_t> lines;
  for (const Pinned& view : views) lines.insert(line_of(view));
  for (std::size_t line = 0; line < shm::kOwnLines; ++line) BOOST_TEST(lines.count(line) <= 1u, line);
  BOOST_TEST(client.pins_in_use() == kThreads);
  for (Pinned& view : views) view.release();  // by another thread than the one that opened it
  BOOST_TEST(client.pins_in_use() == 0u);
}

BOOST_AUTO_TEST_CASE(threads_that_have_ended_leave_their_lines_to_others) {
  for (int i = 0; i < 100; ++i) {
    std::thread([&] {
      Pinned view;
      BOOST_TEST(hold(view));
      view.release();
    }).join();
  }
  BOOST_TEST(room() == shm::kPinsPerPage);
}

BOOST_AUTO_TEST_CASE(views_outlive_the_thread_that_opened_them) {
  std::vector<Pinned> views(30);
  std::thread([&] {
    for (Pinned& view : views) BOOST_TEST(hold(view));
  }).join();
  BOOST_TEST(room() == shm::kPinsPerPage - views.size());
  for (Pinned& view : views) {
    BOOST_TEST(view.pin->load() != 0u);
    view.release();
  }
  BOOST_TEST(room() == shm::kPinsPerPage);
}

BOOST_AUTO_TEST_CASE(a_child_has_the_lines_of_the_threads_that_it_has_not) {
  std::latch lined(21);
  std::latch over(1);
  std::vector<std::thread> threads;
  for (int i = 0; i < 20; ++i) {
    threads.emplace_back([&] {
      Pinned view;
      BOOST_TEST(hold(view));
      view.release();
      lined.arrive_and_wait();
      over.wait();
    });
  }
  lined.arrive_and_wait();
  BOOST_TEST(in_child([&] {
               shm::ThreadLines::forked();
               return room() == shm::kPinsPerPage;
             }) == 0);
  over.count_down();
  for (auto& thread : threads) thread.join();
}

BOOST_AUTO_TEST_CASE(a_process_with_one_thread_leaves_the_fence_to_the_scan,
                     *boost::unit_test::precondition(kernel_fences_readers)) {
  BOOST_TEST(in_child([&] {  // of fork(2): one thread
               return shm::register_reader() && shm::fence_readers().has_value();
             }) == 0);
}

/// With a filter that the daemon did not have when the pages were made.
BOOST_AUTO_TEST_CASE(without_the_fence_nothing_is_concluded_from_pins_and_nothing_is_freed,
                     *boost::unit_test::precondition(kernel_fences_readers)) {
  BOOST_TEST(segment->reclaim() == 0u);
  set(1, "y", std::string(10'000, 'y'));
  BOOST_TEST(in_child([&] {
               sock_filter code[] = {
                   BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
                   BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_membarrier, 0, 1),
                   BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
                   BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
               };
               const sock_fprog program{std::size(code), code};
               if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
                   ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
                 return false;
               }
               shm::PinScan scan(segment->mapped_bytes());
               const auto scanned = segment->pins().scan(scan);
               segment->erase(*segment->find(1, "y"));
               return !scanned && scanned.error() == std::errc::operation_not_permitted && segment->reclaim() == 0;
             }) == 0);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace stepstash::test
