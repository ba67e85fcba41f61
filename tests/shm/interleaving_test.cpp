// SPDX-License-Identifier: Apache-2.0
// A get, stopped after each of its instructions in turn, while the daemon does its worst.
//
// Threads that run side by side hardly ever meet in the few nanoseconds that matter (stress_test.cpp lets them try).
// Here a reader in a process of its own is stopped under ptrace after its k-th instruction, the writer has its turn,
// the reader goes on; for every k. The name is there at every instant: whatever happens, the
// get has to find it, whole.
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <new>
#include <thread>
#include <vector>

#include "shm/hash.hpp"
#include "shm/validate.hpp"
#include "tests/support/segment_fixture.hpp"

namespace stepstash::test {
namespace {

using shm::Found;
using shm::Offset;
using shm::Segment;
using shm::Slot;

// A sanitizer's build has many times the instructions, most of them its own, and time grows with the square.
// ThreadSanitizer has nothing to find in two processes of which one stands still.
#if defined(__SANITIZE_THREAD__)
constexpr long kPlaces = 8;
#elif defined(__SANITIZE_ADDRESS__)
constexpr long kPlaces = 32;
#else
constexpr long kPlaces = std::numeric_limits<long>::max();
#endif

/// Where a get is stopped: after its end, which tells how many instructions it takes, and then after each of these from
/// the last to the first; of more than kPlaces instructions, after every n-th.
class Places {
 public:
  [[nodiscard]] bool left() const { return next_ >= 0; }

  /// The get is to be stopped after this many instructions, or after its end when that comes first.
  [[nodiscard]] long next() const { return next_; }

  /// It was stopped after `instructions`.
  void visited(long instructions) {
    if (stride_ == 0) stride_ = std::max(1L, instructions / kPlaces);
    next_ = std::min(next_, instructions) - stride_;
  }

 private:
  long next_ = std::numeric_limits<long>::max();
  long stride_ = 0;
};

constexpr std::size_t kValueBytes = 200;

/// What the reader says after each get.
struct Verdict {
  std::atomic<long> gets{0};
  std::atomic<bool> searched{false};  // the get has returned: what follows is no longer looked at step by step
  std::atomic<int> answer{-1};
  std::atomic<bool> whole{false};
};

bool is_whole(const shm::Pinned& view) {
  return view.entry->buildid == 1 && view.name() == "x" && view.value().size() == kValueBytes &&
         is_pattern(view.value(), view.entry->id, view.entry->revision);
}

[[noreturn]] void read_for_ever(const shm::Reader& client, Verdict& verdict) {
  const ::pid_t self = ::getpid();
  for (;; ++verdict.gets) {
    verdict.searched = false;
    ::kill(self, SIGSTOP);
    shm::Pinned view;
    const Found answer = client.find(1, "x", view);
    verdict.searched = true;
    verdict.answer = static_cast<int>(answer);
    ::kill(self, SIGSTOP);
    if (answer != Found::resident) continue;
    verdict.whole = is_whole(view);
    view.release();
  }
}

/// What is free may be anybody's at any time: a view that is not protected by its pin shows it.
void overwrite_free_memory(Segment& segment) {
  segment.reclaim();
  std::vector<shm::Draft> drafts;
  for (std::uint64_t bytes = 256 * 1024; bytes > 0; bytes /= 2) {
    for (;;) {
      auto draft = segment.draft("", "", bytes);
      if (!draft) break;
      drafts.push_back(draft.value());
      take(segment.reserve(draft.value(), draft.value().capacity));
      std::ranges::fill(segment.value_bytes(draft.value()), std::byte{0xAB});
    }
  }
  for (const shm::Draft& draft : drafts) segment.discard(draft);
}

/// Runs gets of (1, "x") and takes `turn` in each, at another of its instructions each time; `before_each` before it.
/// Returns after how many instructions a get was through. With `reopen`, which is called after each, the get may find
/// its page closed.
long at_every_instruction_of_a_get(
    Stash& stash, const std::function<void()>& turn, const std::function<void()>& before_each = [] {},
    Found expected = Found::resident, const std::function<void()>& reopen = {}) {
  const shm::Reader client = stash.reader();
  void* shared = ::mmap(nullptr, sizeof(Verdict), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  BOOST_TEST_REQUIRE((shared != MAP_FAILED));
  auto& verdict = *new (shared) Verdict();
  Child reader([&](int) -> int {
    if (::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) return 98;
    read_for_ever(client, verdict);
  });
  const auto stopped_by = [&] {
    int status = 0;
    if (::waitpid(reader.pid(), &status, 0) != reader.pid() || !WIFSTOPPED(status)) return 0;
    return WSTOPSIG(status);
  };
  BOOST_TEST_REQUIRE(stopped_by() == SIGSTOP);
  long all_instructions = 0;
  for (Places places; places.left();) {
    before_each();
    const long before = verdict.gets;
    long instructions = 0;
    for (; instructions < places.next() && !verdict.searched; ++instructions) {
      BOOST_REQUIRE(::ptrace(PTRACE_SINGLESTEP, reader.pid(), nullptr, 0) == 0);
      BOOST_REQUIRE(stopped_by() == SIGTRAP);
    }
    places.visited(instructions);
    all_instructions = std::max(all_instructions, instructions);
    turn();                                 // also with the view open, the first time
    for (int stop = 0; stop < 2; ++stop) {  // the end of the search; the end of the get
      BOOST_TEST_REQUIRE(::ptrace(PTRACE_CONT, reader.pid(), nullptr, 0) == 0);
      BOOST_TEST_REQUIRE(stopped_by() == SIGSTOP);
      if (stop == 0) overwrite_free_memory(*stash.segment);
    }
    BOOST_TEST_REQUIRE(verdict.gets == before + 1);
    if (reopen) reopen();
    if (reopen && verdict.answer == static_cast<int>(Found::closed)) continue;
    BOOST_TEST_REQUIRE(verdict.answer == static_cast<int>(expected), "after " << instructions << " instructions");
    BOOST_TEST_REQUIRE((expected != Found::resident || verdict.whole), "after " << instructions << " instructions");
  }
  BOOST_TEST(client.pins_in_use() == 0u);
  reader.kill();
  ::munmap(shared, sizeof(Verdict));
  return all_instructions;
}

boost::test_tools::assertion_result may_trace(boost::unit_test::test_unit_id) {
  Child child([](int) -> int {
    if (::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) == 0) ::raise(SIGSTOP);
    return 0;
  });
  int status = 0;
  ::waitpid(child.pid(), &status, 0);
  boost::test_tools::assertion_result answer(WIFSTOPPED(status));
  answer.message() << "ptrace is not permitted here";
  return answer;
}

/// Keys come and go until the index has another table; returns the word before.
shm::IndexWord swap_table(Segment& segment) {
  const shm::IndexWord before = segment.header().index.load();
  for (int i = 0; segment.header().index.load() == before; ++i) {
    const std::string passing = "passing " + std::to_string(i);
    take(try_set_pattern(segment, 2, passing, 8));
    segment.erase(*segment.find(2, passing));
    segment.reclaim();
  }
  return before;
}

std::atomic<Slot>* slots_of(Segment& segment, shm::IndexWord word) {
  return reinterpret_cast<std::atomic<Slot>*>(reinterpret_cast<std::byte*>(&segment.header()) +
                                              shm::index_slots_offset(word));
}

BOOST_AUTO_TEST_SUITE(interleaving, *boost::unit_test::precondition(may_trace))

BOOST_AUTO_TEST_CASE(a_value_that_is_replaced_and_whose_block_is_reused_is_never_seen_torn) {
  Stash stash(1024 * 1024);
  stash.set_pattern(1, "x", kValueBytes);
  const long instructions = at_every_instruction_of_a_get(stash, [&] {
    // The block of the value that the reader may have seen goes to another name, of the same length, at once.
    stash.set_pattern(1, "x", kValueBytes);
    stash.segment->reclaim();
    stash.set_pattern(1, "y", kValueBytes);
    stash.set_pattern(1, "z", kValueBytes);
    stash.segment->reclaim();
  });
  BOOST_TEST_MESSAGE("a get takes about " << instructions << " instructions here");
  BOOST_TEST(instructions > 50);
}

BOOST_AUTO_TEST_CASE(a_name_that_is_there_is_never_missed_while_the_table_changes) {
  Stash stash(1024 * 1024);
  stash.set_pattern(1, "x", kValueBytes);
  at_every_instruction_of_a_get(stash, [&] {
    // The reader may be in the former table, which the next swap begins by clearing.
    const shm::IndexWord former = swap_table(*stash.segment);
    for (std::uint64_t i = 0; i < std::uint64_t{1} << shm::index_log2_slots(former); ++i) {
      slots_of(*stash.segment, former)[i].store(shm::kEmptySlot);
    }
  });
}

BOOST_AUTO_TEST_CASE(a_value_that_is_replaced_after_its_table_was_is_held_or_looked_for_again) {
  Stash stash(1024 * 1024);
  stash.set_pattern(1, "before", 100);
  stash.set_pattern(1, "x", kValueBytes);
  at_every_instruction_of_a_get(stash, [&] {
    // The slot of the former table stays as it was, and leads to the block that is given up here.
    swap_table(*stash.segment);
    stash.set_pattern(1, "x", kValueBytes);
    stash.segment->reclaim();
  });
}

BOOST_AUTO_TEST_CASE(whatever_a_former_table_holds_leads_nobody_astray) {
  Stash stash(1024 * 1024);
  stash.set_pattern(1, "x", kValueBytes);
  at_every_instruction_of_a_get(stash, [&] {
    // As after a restart, when the former table's memory is anybody's: every slot has the fingerprint that is looked
    // for, and leads to another entry.
    const std::uint64_t hash =
        shm::key_hash(secret_of(*stash.segment), 1, shm::entry_name(*stash.segment->find(1, "x")));
    const Slot mine = shm::make_slot(hash, stash.segment->offset_of(stash.set_pattern(1, "y", kValueBytes)));
    const shm::IndexWord former = swap_table(*stash.segment);
    for (std::uint64_t i = 0; i < std::uint64_t{1} << shm::index_log2_slots(former); ++i) {
      slots_of(*stash.segment, former)[i].store(mine);
    }
    stash.set_pattern(1, "x", kValueBytes);
    stash.segment->reclaim();
  });
}

BOOST_AUTO_TEST_CASE(what_was_deleted_before_a_get_began_is_not_found_by_it_whenever_the_deletion_comes_to_its_end) {
  Stash stash(1024 * 1024);
  Segment& segment = *stash.segment;
  shm::BuildRecord* build = nullptr;
  at_every_instruction_of_a_get(
      stash,
      [&] {  // all the rest of it, until nothing tells of it any more
        segment.erase(*segment.find(1, "x"));
        segment.end_deletion();
        build->drop_upto.store(0);
        segment.remove_build(*build);
        take(segment.add_build(2, true));
      },
      [&] {
        if (shm::BuildRecord* other = segment.find_build(2)) segment.remove_build(*other);
        segment.reclaim();
        build = take(segment.add_build(1, true));
        stash.set_pattern(1, "x", kValueBytes);
        segment.begin_deletion(std::span(&build, 1));
      },
      Found::miss);
}

BOOST_AUTO_TEST_CASE(what_is_set_anew_during_a_deletion_is_found_by_every_get_that_begins_after_it) {
  Stash stash(1024 * 1024);
  Segment& segment = *stash.segment;
  shm::BuildRecord* build = take(segment.add_build(1, true));
  at_every_instruction_of_a_get(
      stash,
      [&] {  // another deletion of the build's neighbour begins and ends, and this one ends
        shm::BuildRecord* other = take(segment.add_build(2, true));
        stash.set_pattern(2, "y", kValueBytes);
        segment.begin_deletion(std::span(&other, 1));
        segment.erase(*segment.find(2, "y"));
        segment.end_deletion();
        segment.end_deletion();
        build->drop_upto.store(0);
      },
      [&] {
        if (segment.find(1, "x") != nullptr) segment.erase(*segment.find(1, "x"));
        stash.set_pattern(1, "x", kValueBytes);
        segment.begin_deletion(std::span(&build, 1));
        segment.erase(*segment.find(1, "x"));
        stash.set_pattern(1, "x", kValueBytes);
      });
}

BOOST_AUTO_TEST_CASE(a_value_that_is_evicted_and_loaded_again_is_never_seen_torn) {
  Stash stash(1024 * 1024);
  stash.set_pattern(1, "x", kValueBytes, shm::EntryState::clean);
  at_every_instruction_of_a_get(stash, [&] {
    take(stash.segment->evict(*stash.segment->find(1, "x")));
    stash.segment->reclaim();
    stash.set_pattern(1, "y", kValueBytes);
    stash.set_pattern(1, "x", kValueBytes, shm::EntryState::clean);
    stash.segment->reclaim();
  });
}

/// What the reader's process says in the test below.
struct Shared {
  std::atomic<int> turn{0};  // 1: the other thread's; 2: it is over
  std::atomic<bool> given_back{false};
  std::atomic<bool> searched{false};
  std::atomic<int> answer{-1};
  std::atomic<bool> whole{false};
  std::atomic<bool> given_back_at_last{false};
};

// The client's own threads: one is in a get, stopped after each of its instructions in turn, while another one has
// attached to the next segment and gives the former one back. The first one finds the value, which then stays for as
// long as its view, or is told to look in the other segment; it never reads zeros for a value, and is never lost in
// addresses that are gone.
BOOST_AUTO_TEST_CASE(a_segment_that_is_given_back_during_a_get_is_held_or_said_to_be_superseded) {
  Stash stash(1024 * 1024);
  stash.set_pattern(1, "x", kValueBytes);
  void* place = ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  BOOST_TEST_REQUIRE((place != MAP_FAILED));
  long held = 0, superseded = 0;
  for (Places places; places.left();) {
    shm::Reader client = stash.reader();
    auto& shared = *new (place) Shared();
    Child reader([&](int) -> int {
      std::thread other([&] {
        while (shared.turn != 1) ::sched_yield();
        client.supersede();
        shared.given_back = client.give_back() == shm::GivenBack::all;
        shared.turn = 2;
      });
      if (::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) return 98;
      ::raise(SIGSTOP);
      shm::Pinned view;
      const Found answer = client.find(1, "x", view);
      shared.searched = true;
      shared.answer = static_cast<int>(answer);
      ::raise(SIGSTOP);
      other.join();
      if (answer == Found::resident) {
        shared.whole = is_whole(view);
        view.release();
      }
      shared.given_back_at_last = shared.given_back || client.give_back() == shm::GivenBack::all;
      return 0;
    });
    int status = 0;
    const auto stopped_by = [&] {
      return ::waitpid(reader.pid(), &status, 0) == reader.pid() && WIFSTOPPED(status) ? WSTOPSIG(status) : 0;
    };
    BOOST_TEST_REQUIRE(stopped_by() == SIGSTOP);
    long instructions = 0;
    for (; instructions < places.next() && !shared.searched; ++instructions) {
      BOOST_REQUIRE(::ptrace(PTRACE_SINGLESTEP, reader.pid(), nullptr, 0) == 0);
      BOOST_REQUIRE(stopped_by() == SIGTRAP);
    }
    places.visited(instructions);
    shared.turn = 1;
    while (shared.turn != 2) ::sched_yield();
    BOOST_REQUIRE(::ptrace(PTRACE_CONT, reader.pid(), nullptr, 0) == 0);
    BOOST_TEST_REQUIRE(stopped_by() == SIGSTOP, "after " << instructions << " instructions");
    BOOST_REQUIRE(::ptrace(PTRACE_CONT, reader.pid(), nullptr, 0) == 0);
    BOOST_TEST_REQUIRE(::waitpid(reader.pid(), &status, 0) == reader.pid());
    BOOST_TEST_REQUIRE((WIFEXITED(status) && WEXITSTATUS(status) == 0), "after " << instructions << " instructions");
    if (shared.answer == static_cast<int>(Found::resident)) {
      ++held;
      BOOST_TEST_REQUIRE(shared.whole, "after " << instructions << " instructions");
      BOOST_TEST_REQUIRE(!shared.given_back, "after " << instructions << " instructions");
    } else {
      ++superseded;
      BOOST_TEST_REQUIRE(shared.answer == static_cast<int>(Found::superseded),
                         "after " << instructions << " instructions");
    }
    BOOST_TEST_REQUIRE(shared.given_back_at_last, "after " << instructions << " instructions");
  }
  BOOST_TEST(held > 0);
  BOOST_TEST(superseded > 0);
  ::munmap(place, sizeof(Shared));
}

/// Its page is closed, and what it may be about to look at is given to others at once.
BOOST_AUTO_TEST_CASE(a_reader_whose_page_is_closed_has_the_whole_value_or_finds_out) {
  Stash stash(1024 * 1024);
  stash.set_pattern(1, "x", kValueBytes, shm::EntryState::clean);
  const auto turn = [&] {
    take(stash.segment->close_user(::getuid()));
    take(stash.segment->evict(*stash.segment->find(1, "x")));
    stash.segment->reclaim();
    stash.set_pattern(1, "y", kValueBytes);
    stash.set_pattern(1, "z", kValueBytes);
  };
  const auto reopen = [&] {
    stash.segment->open_user(::getuid());
    stash.set_pattern(1, "x", kValueBytes, shm::EntryState::clean);
    stash.segment->reclaim();
  };
  at_every_instruction_of_a_get(
      stash, turn, [] {}, Found::resident, reopen);
}

BOOST_AUTO_TEST_CASE(a_reader_whose_page_was_closed_for_an_instant_has_the_whole_value) {
  Stash stash(1024 * 1024);
  stash.set_pattern(1, "x", kValueBytes, shm::EntryState::clean);
  at_every_instruction_of_a_get(stash, [&] {
    take(stash.segment->close_user(::getuid()));
    take(stash.segment->evict(*stash.segment->find(1, "x")));
    stash.segment->reclaim();
    stash.set_pattern(1, "y", kValueBytes);
    stash.segment->open_user(::getuid());
    stash.set_pattern(1, "x", kValueBytes, shm::EntryState::clean);
    stash.segment->reclaim();
  });
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace stepstash::test
