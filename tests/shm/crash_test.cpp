// SPDX-License-Identifier: Apache-2.0
// The daemon killed with SIGKILL, and what the next one finds.
//
// What a kill after the k-th instruction leaves is the segment's memory at that instant. So the writer is run under
// ptrace, one instruction at a time, and every state that its memory ever has is copied, attached and compared with
// what had been acknowledged: that is a kill at every instruction of the script, for the price of one run.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <new>
#include <random>
#include <set>

#include "shm/hash.hpp"
#include "shm/validate.hpp"
#include "tests/support/segment_fixture.hpp"

namespace stepstash::test {
namespace {

using shm::EntryState;
using shm::Segment;

// AddressSanitizer multiplies the instructions of a script, and looks for other things than this test: there every 13th
// instant is looked at. Under ThreadSanitizer, which is concerned with threads and makes one copy of a large value
// hundreds of thousands of instructions, only the real SIGKILL at the end of this file is left.
#ifdef __SANITIZE_ADDRESS__
constexpr std::uint64_t kStride = 13;
#else
constexpr std::uint64_t kStride = 1;
#endif

constexpr std::uint64_t kSmall = 1024 * 1024;

/// All that a segment promises, as one text: two segments that say the same are the same to everybody.
std::string contents(const Segment& segment) {
  std::vector<std::string> lines;
  segment.for_each([&](const shm::Entry& entry) {
    std::string line = std::to_string(entry.buildid) + "/" + std::string(shm::entry_name(entry)) + " id " +
                       std::to_string(entry.id) + " revision " + std::to_string(entry.revision);
    line += entry.state.load() == EntryState::dirty ? " dirty" : " clean";
    line += " from " + std::string(shm::entry_source(entry)) + " length " + std::to_string(entry.length);
    if (entry.value_offset != 0) line += " hash " + std::to_string(shm::hash_bytes(shm::entry_value(entry)));
    lines.push_back(line);
  });
  segment.for_each_build([&](const shm::BuildRecord& build) {
    lines.push_back("build " + std::to_string(build.buildid) + " complete at " + std::to_string(build.complete_at) +
                    " dropped to " + std::to_string(build.drop_upto) + " hold " +
                    std::to_string(static_cast<unsigned>(build.hold.load())));
  });
  std::sort(lines.begin(), lines.end());
  std::string text;
  for (const auto& line : lines) text += line + "\n";
  return text;
}

/// Memory that parent and child share, apart from the segment: what was acknowledged.
template <class T>
class Shared {
 public:
  Shared() {
    void* at = ::mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) throw std::bad_alloc();
    value_ = new (at) T();
  }
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;
  ~Shared() { ::munmap(value_, sizeof(T)); }
  T& operator*() const noexcept { return *value_; }
  T* operator->() const noexcept { return value_; }

 private:
  T* value_;
};

using Step = std::function<void(Segment&)>;

/// A copy of a segment's memory as an object of its own, to be attached.
class Snapshot {
 public:
  explicit Snapshot(Stash& stash) : stash_(stash), fd_(take(stash.objects.create("snapshot"))) {
    BOOST_TEST_REQUIRE(::ftruncate(fd_.get(), static_cast<::off_t>(stash.segment->mapped_bytes())) == 0);
  }
  void write(const std::byte* bytes, std::size_t count) {
    BOOST_TEST_REQUIRE(::pwrite(fd_.get(), bytes, count, 0) == static_cast<::ssize_t>(count));
  }
  std::unique_ptr<Segment> attach(shm::Recovery& recovery) {
    return take(Segment::attach(stash_.objects, "snapshot", recovery));
  }

 private:
  Stash& stash_;
  UniqueFd fd_;
};

/// Runs `script` on the stash in a child, one instruction at a time, and calls `check` with every state that the
/// segment's memory has, and with the number of steps acknowledged before it. Returns how many states there were.
std::uint64_t at_every_instruction(Stash& stash, const Step& before, const std::vector<Step>& script,
                                   const std::function<void(const std::byte*, std::size_t acknowledged)>& check) {
  const Shared<std::atomic<std::size_t>> acknowledged;
  const auto* memory = reinterpret_cast<const std::byte*>(&stash.segment->header());
  const std::size_t bytes = stash.segment->bytes();  // nothing here uses the stand-in
  before(*stash.segment);
  std::vector<std::byte> last(memory, memory + bytes);

  const ::pid_t pid = ::fork();
  BOOST_TEST_REQUIRE(pid >= 0);
  if (pid == 0) {
    if (::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) ::_exit(98);
    ::raise(SIGSTOP);
    try {
      for (const Step& step : script) {
        step(*stash.segment);
        acknowledged->fetch_add(1);
      }
    } catch (const std::exception&) {
      ::_exit(97);
    }
    ::_exit(0);
  }
  std::uint64_t states = 0;
  int status = 0;
  for (std::uint64_t instruction = 0;; ++instruction) {
    BOOST_TEST_REQUIRE(::waitpid(pid, &status, 0) == pid);
    if (!WIFSTOPPED(status)) break;
    const int signal = WSTOPSIG(status);
    if (instruction % kStride == 0 && std::memcmp(memory, last.data(), bytes) != 0) {
      std::memcpy(last.data(), memory, bytes);
      ++states;
      check(last.data(), *acknowledged);
    }
    BOOST_TEST_REQUIRE(::ptrace(PTRACE_SINGLESTEP, pid, nullptr, signal == SIGTRAP || signal == SIGSTOP ? 0 : signal) ==
                       0);
  }
  BOOST_TEST_REQUIRE(WIFEXITED(status));
  BOOST_TEST_REQUIRE(WEXITSTATUS(status) == 0);
  BOOST_TEST(*acknowledged == script.size());
  return states;
}

boost::test_tools::assertion_result may_trace(boost::unit_test::test_unit_id) {
  const ::pid_t pid = ::fork();
  if (pid == 0) {
    if (::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) ::_exit(1);
    ::raise(SIGSTOP);
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(pid, &status, 0);
  bool may = WIFSTOPPED(status);
  if (may) {
    may = ::ptrace(PTRACE_SINGLESTEP, pid, nullptr, nullptr) == 0;
    ::kill(pid, SIGKILL);
    ::waitpid(pid, &status, 0);
  }
  boost::test_tools::assertion_result answer(may);
  answer.message() << "ptrace is not permitted here";
  return answer;
}

Step set_step(BuildId build, std::string name, std::size_t bytes, EntryState state = EntryState::dirty) {
  return [=](Segment& segment) { take(try_set_pattern(segment, build, name, bytes, state)); };
}
Step reclaim_step() {
  return [](Segment& segment) { segment.reclaim(); };
}

/// A value of 300,000 bytes, from a descriptor and with its hash known: the kernel copies it within one instruction.
struct LargeValue {
  LargeValue() {
    const ShmDir dir;
    fd = take(take(shm::ObjectDirectory::open(dir.path())).create("value"));
    const auto bytes = pattern(kBytes, 77, 77);
    BOOST_TEST_REQUIRE(::pwrite(fd.get(), bytes.data(), bytes.size(), 0) == static_cast<::ssize_t>(kBytes));
    hash = shm::hash_bytes(bytes);
  }
  Step step(BuildId build, std::string name) const {
    return [this, build, name](Segment& segment) {
      shm::Draft draft = take(segment.draft(name, "pipe", 100));
      take(segment.extend(draft, kBytes + 50'000));  // of unknown length: more than is needed in the end
      take(segment.reserve(draft, kBytes));
      if (::pread(fd.get(), segment.value_bytes(draft).data(), kBytes, 0) != kBytes) throw std::bad_alloc();
      take(segment.ensure_slot(build, name));
      Segment::EntryFacts facts;
      facts.id = facts.revision = segment.header().next_id.fetch_add(1);
      facts.build = build;
      facts.name = name;
      facts.source = "pipe";
      facts.length = kBytes;
      facts.value_hash = hash;
      segment.publish(draft, facts);
    };
  }
  static constexpr std::size_t kBytes = 300'000;
  UniqueFd fd;
  std::uint64_t hash = 0;
};

/// At every instruction of the script the segment can be attached, and holds what was acknowledged and perhaps the
/// step under way, wholly or not at all.
void survives_a_kill_at_every_instruction(const Step& before, const std::vector<Step>& script) {
  // The same steps undisturbed: what each of them leads to.
  std::vector<std::string> expected;
  {
    Stash undisturbed(kSmall);
    before(*undisturbed.segment);
    expected.push_back(contents(*undisturbed.segment));
    for (const Step& step : script) {
      step(*undisturbed.segment);
      expected.push_back(contents(*undisturbed.segment));
    }
  }
  Stash stash(kSmall);
  Snapshot snapshot(stash);
  std::set<std::size_t> steps_with_states;
  const std::uint64_t states =
      at_every_instruction(stash, before, script, [&](const std::byte* memory, std::size_t acknowledged) {
        snapshot.write(memory, kSmall);
        shm::Recovery recovery;
        const auto next = snapshot.attach(recovery);
        const std::string now = contents(*next);
        const bool done = now == expected[acknowledged];
        const bool also_done = acknowledged < script.size() && now == expected[acknowledged + 1];
        BOOST_TEST_REQUIRE((done || also_done), "killed in step " << acknowledged << " the segment holds\n"
                                                                  << now << "instead of\n"
                                                                  << expected[acknowledged]);
        BOOST_TEST_REQUIRE(recovery.set_aside.empty());
        BOOST_TEST_REQUIRE(disorder(*next) == "");
        next->for_each([&](const shm::Entry& entry) {
          BOOST_TEST_REQUIRE(entry.id < next->header().next_id.load());
          BOOST_TEST_REQUIRE(entry.revision < next->header().next_id.load());
        });
        // And it serves: a set goes through, and is found.
        BOOST_TEST_REQUIRE(try_set_pattern(*next, 99, "after the crash", 500).has_value());
        BOOST_TEST_REQUIRE(disorder(*next) == "");
        steps_with_states.insert(acknowledged);
      });
  BOOST_TEST_MESSAGE(states << " states of the segment were attached");
  BOOST_TEST(states >= script.size());
  stash.restart();
  BOOST_TEST(contents(*stash.segment) == expected.back());
}

BOOST_AUTO_TEST_SUITE(crash)

#ifndef __SANITIZE_THREAD__
BOOST_AUTO_TEST_SUITE(stepped, *boost::unit_test::precondition(may_trace))

BOOST_AUTO_TEST_CASE(no_instruction_of_setting_replacing_evicting_and_erasing_loses_or_tears_anything) {
  survives_a_kill_at_every_instruction(
      [](Segment& segment) {
        take(try_set_pattern(segment, 1, "old", 700));
        take(try_set_pattern(segment, 1, "clean", 3000, EntryState::clean));
      },
      {
          [](Segment& segment) { take(segment.add_build(1, false)); },
          set_step(1, "new", 100),
          set_step(1, "old", 1000),
          reclaim_step(),
          set_step(1, "empty", 0),
          [](Segment& segment) { segment.mark(*segment.find(1, "new"), EntryState::clean); },
          [](Segment& segment) { take(segment.evict(*segment.find(1, "clean"))); },
          reclaim_step(),
          set_step(1, "clean", 200),
          [](Segment& segment) { segment.erase(*segment.find(1, "old")); },
          reclaim_step(),
          set_step(1, "old", 64),
          [](Segment& segment) { segment.find_build(1)->complete_at.store(1000); },
      });
}

BOOST_AUTO_TEST_CASE(no_instruction_of_a_drop_leaves_half_of_a_build) {
  survives_a_kill_at_every_instruction(
      [](Segment& segment) {
        take(segment.add_build(1, false));
        take(segment.add_build(2, false));
        for (const char* name : {"a", "b", "c", "d"}) take(try_set_pattern(segment, 1, name, 100));
        take(try_set_pattern(segment, 2, "a", 100));
      },
      {
          [](Segment& segment) { drop(segment, 1); },
          reclaim_step(),
          set_step(1, "a", 50),
          [](Segment& segment) { drop(segment, 2); },
          [](Segment& segment) { segment.remove_build(*segment.find_build(2)); },
          [](Segment& segment) { take(segment.add_build(3, false)); },
      });
}

BOOST_AUTO_TEST_CASE(no_instruction_of_a_deletion_of_three_builds_leaves_one_of_them) {
  survives_a_kill_at_every_instruction(
      [](Segment& segment) {
        for (BuildId build : {1, 2, 3, 4}) {
          take(segment.add_build(build, false));
          for (const char* name : {"a", "b"}) take(try_set_pattern(segment, build, name, 100));
        }
        segment.find_build(3)->drop_upto = 1;  // of a deletion before that the database is yet to be told of
      },
      {
          [](Segment& segment) {
            shm::BuildRecord* builds[] = {segment.find_build(1), segment.find_build(2), segment.find_build(3)};
            segment.begin_deletion(builds);
            for (BuildId build : {1, 2, 3}) {
              for (const char* name : {"a", "b"}) segment.erase(*segment.find(build, name));
            }
            segment.end_deletion();
          },
          set_step(2, "a", 50),
      });
}

BOOST_AUTO_TEST_CASE(no_instruction_of_setting_a_large_value_of_unknown_length_shows_a_part_of_it) {
  const LargeValue large;
  survives_a_kill_at_every_instruction([](Segment&) {},
                                       {
                                           large.step(1, "large"),
                                           [](Segment& segment) { segment.erase(*segment.find(1, "large")); },
                                           reclaim_step(),
                                           [](Segment& segment) {
                                             segment.heap().set_now(std::chrono::seconds(5));
                                             segment.heap().punch(std::chrono::seconds(5), ~std::uint64_t{0});
                                           },
                                           large.step(1, "again"),
                                       });
}

#ifndef __SANITIZE_ADDRESS__  // the plain build steps through it all
BOOST_AUTO_TEST_CASE(no_instruction_of_the_indexs_growth_loses_an_entry) {
  survives_a_kill_at_every_instruction(
      [](Segment& segment) {
        // 640 of 1024 slots: the next key makes the table grow.
        for (int i = 0; i < 640; ++i) take(try_set_pattern(segment, 1, std::to_string(i), 8));
        BOOST_TEST_REQUIRE(segment.index().slots() == 1024u);
      },
      {set_step(1, "one more", 100)});
}
#endif

/// Attaching is itself a writer, and may be killed as well.
BOOST_AUTO_TEST_CASE(no_instruction_of_attaching_makes_the_next_attach_find_less) {
  Stash stash(kSmall);
  Snapshot snapshot(stash);
  std::string expected;
  const auto half_dropped = [&](Segment& segment) {
    for (const char* name : {"a", "b", "c"}) take(try_set_pattern(segment, 1, name, 100));
    take(try_set_pattern(segment, 2, "stays", 100));
    take(try_set_pattern(segment, 2, "stays", 200));  // the block before is retired, and lost with this daemon
    shm::BuildRecord* build = take(segment.add_build(1, false));
    segment.begin_deletion(std::span(&build, 1));
    segment.erase(*segment.find(1, "b"));
    take(segment.draft("never published", "", 5000));
  };
  const std::uint64_t states = at_every_instruction(stash, half_dropped, {[&](Segment&) {
                                                      shm::Recovery recovery;
                                                      take(Segment::attach(stash.objects, Stash::kName, recovery));
                                                    }},
                                                    [&](const std::byte* memory, std::size_t) {
                                                      snapshot.write(memory, kSmall);
                                                      shm::Recovery recovery;
                                                      const auto next = snapshot.attach(recovery);
                                                      if (expected.empty()) expected = contents(*next);
                                                      BOOST_TEST_REQUIRE(contents(*next) == expected);
                                                      BOOST_TEST_REQUIRE(next->find(2, "stays") != nullptr);
                                                      BOOST_TEST_REQUIRE(recovery.set_aside.empty());
                                                      BOOST_TEST_REQUIRE(disorder(*next) == "");
                                                    });
  BOOST_TEST_MESSAGE(states << " states of the segment were attached");
  BOOST_TEST(states >= (kStride == 1 ? 4u : 1u));
}

BOOST_AUTO_TEST_SUITE_END()
#endif

// ---- a real SIGKILL, at any instant of a long random load ----

constexpr std::size_t kNames = 48;
constexpr BuildId kDroppedBuild = 2;  // the names with odd numbers

BuildId build_of(std::size_t name) { return 1 + static_cast<BuildId>(name % 2); }

/// What the child tells: after each call returned, that it did.
struct Acknowledged {
  struct Name {
    std::atomic<std::uint64_t> revision{0};  // 0: there is none
    std::atomic<std::uint64_t> id{0};
  };
  Name names[kNames];
  std::atomic<std::uint64_t> calls{0};
  std::atomic<std::size_t> under_way{kNames};  // the name that a call is about, kNames: none, kNames + 1: a drop
};

[[noreturn]] void load_until_killed(shm::ObjectDirectory& objects, Acknowledged& told, std::uint64_t seed) {
  shm::Recovery recovery;
  const auto segment = take(Segment::attach(objects, Stash::kName, recovery));
  take(segment->add_build(kDroppedBuild, true));
  std::mt19937_64 random(seed);
  for (;; ++told.calls) {
    const std::size_t name = random() % kNames;
    const std::string text = "name " + std::to_string(name);
    const std::uint64_t what = random() % 100;
    if (what == 0) {
      told.under_way = kNames + 1;
      drop(*segment, kDroppedBuild);
      for (std::size_t i = 1; i < kNames; i += 2) told.names[i].revision = 0;
    } else if (what < 12) {
      told.under_way = name;
      if (const shm::Entry* entry = segment->find(build_of(name), text)) segment->erase(*entry);
      told.names[name].revision = 0;
    } else if (what < 20) {  // as much again for the index, which has to grow or to be cleaned
      told.under_way = kNames;
      for (int i = 0; i < 60; ++i) {
        const std::string other = "other " + std::to_string(random() % 5000);
        if (const shm::Entry* entry = segment->find(9, other)) {
          segment->erase(*entry);
        } else {
          (void)try_set_pattern(*segment, 9, other, 8);
        }
      }
    } else {
      told.under_way = name;
      const std::size_t bytes = what < 90 ? random() % 5000 : random() % 400'000;
      const auto entry = try_set_pattern(*segment, build_of(name), text, bytes);
      if (entry) {
        told.names[name].id = entry.value()->id;
        told.names[name].revision = entry.value()->revision;
      }
    }
    told.under_way = kNames;
    segment->reclaim();
  }
}

BOOST_AUTO_TEST_CASE(whatever_was_acknowledged_before_a_sigkill_is_there_after_it) {
  Stash stash(8 * 1024 * 1024);
  const shm::Reader client = stash.reader();
  const Shared<Acknowledged> told;
  std::mt19937_64 random(20240918);
  std::vector<shm::Pinned> views;
  std::uint64_t killed_in_a_call = 0;
  for (int round = 0; round < 60; ++round) {
    stash.segment.reset();
    const std::uint64_t target = told->calls + random() % 200;
    Child child([&](int) -> int { load_until_killed(stash.objects, *told, random()); });
    // The instant: some calls on, and then some turns of this loop more.
    BOOST_TEST_REQUIRE(eventually([&] { return told->calls >= target; }));
    for (std::atomic<std::uint64_t> turns = random() % 200'000; turns > 0;) turns.fetch_sub(1);
    child.kill();

    stash.recovery = {};
    stash.segment = take(Segment::attach(stash.objects, Stash::kName, stash.recovery));
    BOOST_TEST_REQUIRE(stash.recovery.set_aside.empty());
    BOOST_TEST_REQUIRE(disorder(*stash.segment) == "");
    const std::size_t under_way = told->under_way;
    killed_in_a_call += under_way != kNames;
    std::size_t dropped = 0;
    std::size_t kept = 0;
    for (std::size_t name = 0; name < kNames; ++name) {
      const shm::Entry* entry = stash.segment->find(build_of(name), "name " + std::to_string(name));
      auto& known = told->names[name];
      if (entry != nullptr) {
        BOOST_TEST_REQUIRE(is_pattern(shm::entry_value(*entry), entry->id, entry->revision));
      }
      if (name == under_way) {  // as it was, or as it would have been: from now on it is what is there
        if (entry != nullptr) BOOST_TEST_REQUIRE((entry->revision >= known.revision));
        known.revision = entry == nullptr ? 0 : entry->revision;
        known.id = entry == nullptr ? 0 : entry->id;
        continue;
      }
      if (under_way == kNames + 1 && build_of(name) == kDroppedBuild && known.revision != 0) {
        ++(entry == nullptr ? dropped : kept);
        if (entry == nullptr) known.revision = 0;
      }
      BOOST_TEST_REQUIRE((entry != nullptr) == (known.revision != 0), "round " << round << ", name " << name);
      if (entry == nullptr) continue;
      BOOST_TEST_REQUIRE(entry->revision == known.revision);
      BOOST_TEST_REQUIRE(entry->id == known.id);
    }
    BOOST_TEST_REQUIRE((dropped == 0 || kept == 0), "a drop was done by half");
    told->under_way = kNames;

    // A client that lives through it all: what it holds stays, whichever process died.
    for (auto& view : views) BOOST_TEST_REQUIRE(is_pattern(view.value(), view.entry->id, view.entry->revision));
    if (views.size() > 20) {
      for (auto& view : views) view.release();
      views.clear();
    }
    for (std::size_t name = 0; name < 3; ++name) {
      shm::Pinned view;
      if (client.find(build_of(name), "name " + std::to_string(name), view) == shm::Found::resident)
        views.push_back(view);
    }
  }
  BOOST_TEST_MESSAGE("killed " << killed_in_a_call << " times of 60 inside of a call");
  BOOST_TEST(killed_in_a_call > 0u);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace stepstash::test
