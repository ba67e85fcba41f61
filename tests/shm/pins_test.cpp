// SPDX-License-Identifier: Apache-2.0
#include "shm/pins.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <optional>
#include <random>
#include <unordered_set>

#include "shm/validate.hpp"
#include "tests/support/segment_fixture.hpp"

namespace stepstash::test {
namespace {

using shm::Offset;
using shm::PinRegistry;

/// A client's view of its page: mapped through the very descriptor that create() gave, which is closed.
struct ClientPage {
  explicit ClientPage(PinRegistry::NewPage made)
      : number(made.number), mapping(take(shm::Mapping::map(made.fd.get(), shm::kPageBytes, kReadWrite))) {}
  shm::PinPage& page() const { return *reinterpret_cast<shm::PinPage*>(mapping.data()); }
  std::atomic<Offset>& pin(std::size_t i) const { return page().lines[i / 7].pins[i % 7]; }

  static constexpr auto kReadWrite = shm::Mapping::Access::read_write;
  std::uint32_t number;
  shm::Mapping mapping;
};

struct Registry {
  ShmDir dir;
  shm::ObjectDirectory objects = take(shm::ObjectDirectory::open(dir.path()));
  std::unique_ptr<PinRegistry> pins = std::make_unique<PinRegistry>(objects, "s.pin.");
  shm::SegmentId segment{1, 2, 3};
  shm::SegmentId other_segment{9};

  PinRegistry::NewPage create() { return take(pins->create(segment, 1, kUser)); }
  static constexpr std::uint32_t kUser = 2;
  static std::string name(std::uint32_t number) { return "s.pin." + std::to_string(number) + ".2"; }
  bool exists(const std::string& object) const { return ::access(dir.file(object).c_str(), F_OK) == 0; }
  bool exists(std::uint32_t number) const { return exists(name(number)); }
  bool resumable(std::uint32_t number) const { return pins->resumable(number, kUser, segment); }
  std::unordered_set<Offset> pinned() {
    shm::PinScan all(1 << 20);
    take(pins->scan(all));
    std::unordered_set<Offset> offsets;
    all.serving.for_each([&](Offset at) { offsets.insert(at); });
    all.closed.for_each([&](Offset at) { offsets.insert(at); });
    return offsets;
  }
  /// Makes the daemon's descriptor of a page one that cannot be read; its lock can still be asked for.
  void make_unreadable(std::uint32_t number) { test::make_unreadable(dir.file(name(number))); }
  std::size_t restart() {
    pins = std::make_unique<PinRegistry>(objects, "s.pin.");
    return take(pins->adopt(segment));
  }
};

BOOST_AUTO_TEST_SUITE(pins)

BOOST_FIXTURE_TEST_CASE(a_page_says_whose_it_is_and_has_no_pins, Registry) {
  const ClientPage client(take(pins->create(segment, 4321, 1000)));
  BOOST_TEST(client.page().magic == shm::kPinPageMagic);
  BOOST_TEST(client.page().layout_version == shm::kLayoutVersion);
  BOOST_TEST(client.page().number == client.number);
  BOOST_TEST((client.page().segment_id == segment));
  BOOST_TEST(client.page().pid == 4321);
  BOOST_TEST(client.page().uid == 1000u);
  BOOST_TEST((shm::page_state(client.page().state.load()) == shm::PageState::serving));
  BOOST_TEST(pinned().empty());
  BOOST_TEST(pins->pages() == 1u);
}

BOOST_FIXTURE_TEST_CASE(what_a_client_pins_the_daemon_collects, Registry) {
  const ClientPage one(create());
  const ClientPage other(create());
  one.pin(0) = 64;
  one.pin(440) = 128;
  other.pin(7) = 192;
  BOOST_TEST((pinned() == std::unordered_set<Offset>{64, 128, 192}));
  BOOST_TEST(pins->views().open == 3u);
  one.pin(0) = 0;
  BOOST_TEST((pinned() == std::unordered_set<Offset>{128, 192}));
}

BOOST_FIXTURE_TEST_CASE(hints_reach_the_daemon_and_are_no_pins, Registry) {
  const ClientPage client(create());
  client.page().lines[3].recent = 4096;
  std::vector<Offset> hints;
  pins->recent([&](Offset block) { hints.push_back(block); });
  BOOST_TEST(hints == std::vector<Offset>{4096}, boost::test_tools::per_element());
  BOOST_TEST(pinned().empty());
}

BOOST_FIXTURE_TEST_CASE(a_scan_takes_the_hints_along_and_leaves_out_what_is_no_place_for_a_block, Registry) {
  const ClientPage client(create());
  const Offset last = (1 << 20) - 64;
  client.pin(0) = last;
  client.pin(1) = 65;               // between two places
  client.pin(2) = UINT64_MAX - 63;  // far behind the segment
  client.page().lines[1].recent = 128;
  shm::PinScan scan(1 << 20);
  take(pins->scan(scan, /*hints=*/true));
  BOOST_TEST(scan.pinned(last));
  BOOST_TEST(!scan.pinned(64));
  BOOST_TEST(!scan.pinned(65));
  BOOST_TEST(!scan.pinned(UINT64_MAX - 63));
  BOOST_TEST(!scan.pinned(128));
  BOOST_TEST(scan.recent.contains(128));
  client.pin(0) = 0;
  client.page().lines[1].recent = 0;
  take(pins->scan(scan, /*hints=*/true));  // nothing is left of the last one
  BOOST_TEST(!scan.pinned(last));
  BOOST_TEST(!scan.recent.contains(128));
}

BOOST_FIXTURE_TEST_CASE(hints_are_read_some_pages_at_a_time_and_all_in_turn, Registry) {
  std::vector<ClientPage> clients;
  for (Offset i = 0; i < 5; ++i) {
    clients.emplace_back(create());
    clients.back().page().lines[0].recent = 64 * (i + 1);
  }
  std::unordered_set<Offset> seen;
  for (int i = 0; i < 3; ++i) pins->recent([&](Offset block) { seen.insert(block); }, 2);
  BOOST_TEST(seen.size() == 5u);
}

/// Against the set of the standard library, with numbers from everywhere.
BOOST_AUTO_TEST_CASE(a_set_of_blocks_has_what_was_inserted_and_nothing_else) {
  std::mt19937_64 random(5);
  constexpr std::uint64_t kBytes = std::uint64_t{1} << 36;
  shm::BlockSet set(kBytes);
  for (int round = 0; round < 3; ++round) {
    std::unordered_set<Offset> model;
    for (int i = 0; i < 20'000; ++i) {
      const Offset at = random() % (round == 0 ? 1 << 20 : kBytes) / 64 * 64;
      BOOST_TEST_REQUIRE(set.insert(at) == model.insert(at).second);
    }
    std::size_t count = 0;
    set.for_each([&](Offset at) { count += model.contains(at); });
    BOOST_TEST(count == model.size());
    for (int i = 0; i < 20'000; ++i) {
      const Offset at = random() % (1 << 21) / 64 * 64;
      BOOST_TEST_REQUIRE(set.contains(at) == model.contains(at));
    }
    set.clear();
    BOOST_TEST(set.empty());
    for (const Offset at : model) BOOST_TEST_REQUIRE(!set.contains(at));
  }
}

BOOST_FIXTURE_TEST_CASE(the_mapping_alone_holds_the_page_and_unmapping_lets_it_go, Registry) {
  std::optional<ClientPage> client(create());  // the descriptor is closed by now
  client->pin(5) = 64;
  BOOST_TEST(resumable(client->number));
  BOOST_TEST(pins->reap() == 0u);
  BOOST_TEST(pinned().size() == 1u);
  const std::uint32_t number = client->number;
  client.reset();
  BOOST_TEST(!resumable(number));
  BOOST_TEST(pins->reap() == 1u);
  BOOST_TEST(pinned().empty());
  BOOST_TEST(pins->pages() == 0u);
  BOOST_TEST(!exists(number));
}

BOOST_FIXTURE_TEST_CASE(a_client_killed_with_pins_is_reaped, Registry) {
  auto made = create();
  const std::uint32_t number = made.number;
  Child client([&](int report) {
    const ClientPage page(std::move(made));
    page.pin(0) = 64;
    if (::write(report, "r", 1) != 1) return 1;
    for (;;) ::pause();
  });
  made.fd.reset();
  BOOST_TEST_REQUIRE(client.wait_for_report());
  BOOST_TEST((pinned() == std::unordered_set<Offset>{64}));
  BOOST_TEST(pins->reap() == 0u);
  client.kill();
  BOOST_TEST(pins->reap() == 1u);
  BOOST_TEST(pinned().empty());
  BOOST_TEST(!exists(number));
}

/// A forked child shares its parent's views; they stay until the last of the two is gone.
BOOST_FIXTURE_TEST_CASE(a_page_is_held_until_the_last_process_that_has_it_mapped_is_gone, Registry) {
  auto made = create();
  int ends[2];
  BOOST_TEST_REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  UniqueFd until(ends[1]);  // the grandchild lives until this end is closed
  UniqueFd wait_for(ends[0]);
  Child client([&](int report) {
    const ClientPage page(std::move(made));
    page.pin(0) = 64;
    until.reset();
    if (::fork() == 0) {
      char byte = 0;
      if (::write(report, "r", 1) == 1) (void)!::read(wait_for.get(), &byte, 1);
      ::_exit(0);
    }
    return 0;
  });
  made.fd.reset();
  wait_for.reset();
  BOOST_TEST_REQUIRE(client.wait_for_report());
  client.wait();
  BOOST_TEST(pins->reap() == 0u);
  BOOST_TEST(pinned().size() == 1u);
  until.reset();
  // The grandchild is nobody's child here: its end shows in the pipe that it holds open.
  BOOST_TEST(!client.wait_for_report());
  BOOST_TEST(eventually([&] { return pins->reap() == 1; }));  // its mappings go a moment after its descriptors
  BOOST_TEST(pinned().empty());
}

BOOST_FIXTURE_TEST_CASE(a_new_registry_adopts_what_is_held_and_removes_what_is_not, Registry) {
  const ClientPage alive(create());
  alive.pin(3) = 64;
  std::uint32_t dead = 0;
  { dead = ClientPage(create()).number; }
  BOOST_TEST(restart() == 1u);
  BOOST_TEST((pinned() == std::unordered_set<Offset>{64}));
  BOOST_TEST(resumable(alive.number));
  BOOST_TEST((shm::page_state(alive.page().state.load()) == shm::PageState::serving));
  BOOST_TEST(!exists(dead));
  const ClientPage later(create());
  BOOST_TEST(later.number > alive.number);
}

BOOST_FIXTURE_TEST_CASE(pages_of_another_segment_are_told_so_and_kept_until_let_go, Registry) {
  std::optional<ClientPage> client(create());
  client->pin(0) = 64;
  segment = other_segment;
  BOOST_TEST(restart() == 1u);
  BOOST_TEST((shm::page_state(client->page().state.load()) == shm::PageState::superseded));
  BOOST_TEST(pinned().empty());  // its pins speak of other blocks
  BOOST_TEST(!resumable(client->number));
  BOOST_TEST(pins->reap() == 0u);
  client.reset();
  BOOST_TEST(pins->reap() == 1u);
}

BOOST_FIXTURE_TEST_CASE(a_page_is_resumable_by_its_number_its_user_and_its_segment_only, Registry) {
  const ClientPage client(create());
  BOOST_TEST(pins->resumable(client.number, kUser, segment));
  BOOST_TEST(!pins->resumable(client.number + 1, kUser, segment));
  BOOST_TEST(!pins->resumable(client.number, kUser + 1, segment));
  BOOST_TEST(!pins->resumable(client.number, kUser, other_segment));
}

/// Or the next daemon would close another's pages for what this client holds, and not count it among its own.
BOOST_FIXTURE_TEST_CASE(whose_a_page_is_does_not_change_by_what_its_client_writes, Registry) {
  const ClientPage liar(create());
  const ClientPage victim(take(pins->create(segment, 1, 3)));
  liar.pin(0) = 64;
  victim.pin(0) = 128;
  liar.page().uid = 3;
  BOOST_TEST(restart() == 2u);
  BOOST_TEST((pins->users() == std::set<std::uint32_t>{2, 3}));
  BOOST_TEST(pins->pages_of(2) == 1u);
  BOOST_TEST(pins->resumable(liar.number, 2, segment));
  BOOST_TEST(!pins->resumable(liar.number, 3, segment));
  std::vector<Offset> of_victim;
  pins->for_each_pin(3, [&](Offset block, bool) { of_victim.push_back(block); });
  BOOST_TEST(of_victim == std::vector<Offset>{128}, boost::test_tools::per_element());
  take(pins->close(3, shm::BlockSet(1 << 20)));
  BOOST_TEST((shm::page_state(liar.page().state.load()) == shm::PageState::serving));
  BOOST_TEST((shm::page_state(victim.page().state.load()) == shm::PageState::closed));
}

/// A page that a daemon made which did not put the uid into the name. Its pins count, and it takes no number from
/// others.
BOOST_FIXTURE_TEST_CASE(a_page_whose_name_has_no_user_holds_what_it_pins_and_is_nobodys, Registry) {
  const ClientPage former(create());
  former.pin(0) = 64;
  take(objects.rename(name(former.number), "s.pin.1"));
  BOOST_TEST(restart() == 1u);
  BOOST_TEST((pinned() == std::unordered_set<Offset>{64}));
  BOOST_TEST((pins->users() == std::set<std::uint32_t>{PinRegistry::kNobody}));
  BOOST_TEST(!resumable(former.number));
  BOOST_TEST(!pins->resumable(former.number, PinRegistry::kNobody, segment));
  BOOST_TEST(ClientPage(create()).number != former.number);
  take(pins->close(PinRegistry::kNobody, shm::BlockSet(1 << 20)));
  BOOST_TEST((shm::page_state(former.page().state.load()) == shm::PageState::closed));
}

/// One number, two users: what an earlier version leaves that ran in between.
BOOST_FIXTURE_TEST_CASE(two_pages_of_one_number_hold_what_both_of_them_pin, Registry) {
  const ClientPage former(create());
  former.pin(0) = 64;
  former.page().lines[0].recent = 64;
  take(objects.rename(name(former.number), "s.pin.1"));
  pins = std::make_unique<PinRegistry>(objects, "s.pin.");
  const ClientPage other(create());
  BOOST_TEST_REQUIRE(other.number == former.number);
  other.pin(0) = 128;
  other.page().lines[0].recent = 128;
  BOOST_TEST(restart() == 2u);
  BOOST_TEST((pinned() == std::unordered_set<Offset>{64, 128}));
  std::unordered_set<Offset> seen;
  for (int i = 0; i < 2; ++i) pins->recent([&](Offset block) { seen.insert(block); }, 1);
  BOOST_TEST(seen.size() == 2u);
}

BOOST_FIXTURE_TEST_CASE(what_only_looks_like_a_page_is_left_alone, Registry) {
  const char* const names[] = {"s.pin.",     "s.pin.x",    "s.pin.007",          "s.pin.1x",         "s.pin.-1",
                               "s.pin.1.",   "s.pin.1.x",  "s.pin.1.07",         "s.pin.1.2.3",      "s.pin..2",
                               "s.pin.1.-2", "s.pin.1.2x", "s.pin.1.4294967295", "s.pin.99999999999"};
  for (const char* name : names) take(objects.create(name));
  BOOST_TEST_REQUIRE(::symlink("s.pin.x", dir.file("s.pin.5").c_str()) == 0);
  BOOST_TEST(restart() == 0u);
  BOOST_TEST(take(objects.list("s.pin.")).size() == std::size(names) + 1);
  for (const char* name : {"s.pin.6", "s.pin.6.2"}) {
    take(objects.create(name));  // of the right name, but nobody holds it
    BOOST_TEST(restart() == 0u);
    BOOST_TEST(!exists(name));
  }
}

/// A page that cannot be opened for lack of a resource is not taken for gone: it may hold pins.
BOOST_FIXTURE_TEST_CASE(without_descriptors_for_all_pages_nothing_is_adopted, Registry,
                        *boost::unit_test::enable_if<kMayLackDescriptors>()) {
  std::vector<ClientPage> clients;
  for (int i = 0; i < 8; ++i) clients.emplace_back(create());
  clients.back().pin(0) = 64;
  pins = std::make_unique<PinRegistry>(objects, "s.pin.");
  {
    const FewDescriptors few(6);
    BOOST_TEST((pins->adopt(segment).error() == std::errc::too_many_files_open));
  }
  for (const ClientPage& client : clients) BOOST_TEST(exists(client.number));
  BOOST_TEST(restart() == 8u);
  BOOST_TEST((pinned() == std::unordered_set<Offset>{64}));
}

BOOST_FIXTURE_TEST_CASE(a_page_that_cannot_be_read_is_an_error_and_not_one_without_pins, Registry) {
  const ClientPage client(create());
  const ClientPage other(create());
  client.pin(0) = 64;
  other.pin(0) = 128;
  make_unreadable(client.number);
  shm::PinScan known(1 << 20);
  BOOST_TEST((pins->scan(known).error() == std::errc::bad_file_descriptor));
  BOOST_TEST(known.pinned(128));
  pins->recent([](Offset) {});
  BOOST_TEST(pins->views().open == 1u);
  BOOST_TEST(pins->reap() == 0u);
  BOOST_TEST(restart() == 2u);
  BOOST_TEST((pinned() == std::unordered_set<Offset>{64, 128}));
}

BOOST_FIXTURE_TEST_CASE(a_left_over_object_does_not_stop_the_next_page_of_its_number, Registry) {
  take(objects.create(name(1)));
  const ClientPage client(create());
  BOOST_TEST(client.number == 1u);
  BOOST_TEST(client.page().magic == shm::kPinPageMagic);
}

/// The client has its page's object open for writing, and may do with it what it likes.
BOOST_FIXTURE_TEST_CASE(a_client_that_takes_its_pages_memory_away_loses_its_own_pins_only, Registry) {
  auto made = create();
  const UniqueFd object(::dup(made.fd.get()));
  const ClientPage vandal(std::move(made));
  const ClientPage other(create());
  other.pin(0) = 64;
  vandal.pin(0) = 128;
  BOOST_TEST_REQUIRE(::fallocate(object.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) == 0);
  BOOST_TEST((pinned() == std::unordered_set<Offset>{64}));
  for (const ::off_t bytes : {::off_t{0}, ::off_t{100}, ::off_t{4095}, ::off_t{1 << 20}}) {
    BOOST_TEST_REQUIRE(::ftruncate(object.get(), bytes) == 0);
    BOOST_TEST(pinned().contains(64), bytes << " bytes");
    pins->recent([](Offset) {});
    BOOST_TEST(pins->views().open == 1u);
    BOOST_TEST(resumable(vandal.number));
    // Its length is put right: what it was made longer by is given back to the others.
    BOOST_TEST(pins->reap() == 0u);
    struct stat status {};
    BOOST_TEST_REQUIRE(::fstat(object.get(), &status) == 0);
    BOOST_TEST(status.st_size == static_cast<::off_t>(shm::kPageBytes));
  }
  BOOST_TEST_REQUIRE(::ftruncate(object.get(), 0) == 0);
  BOOST_TEST(restart() == 2u);
  BOOST_TEST((pinned() == std::unordered_set<Offset>{64}));
}

/// The lock is the client's to give up. What it could do through the object it still can, and so the page stays.
BOOST_FIXTURE_TEST_CASE(a_page_without_its_lock_stays_until_nobody_has_it_open, Registry) {
  auto made = create();
  UniqueFd object(::dup(made.fd.get()));
  std::optional<ClientPage> client(std::move(made));
  const std::uint32_t number = client->number;
  client->pin(0) = 64;
  struct flock unlock {};
  unlock.l_type = F_UNLCK;
  BOOST_TEST_REQUIRE(::fcntl(object.get(), F_OFD_SETLK, &unlock) == 0);
  BOOST_TEST(!resumable(number));
  BOOST_TEST(pins->reap() == 0u);
  BOOST_TEST(restart() == 1u);
  BOOST_TEST(pins->pages_of(2) == 1u);  // it counts against its user
  BOOST_TEST((pinned() == std::unordered_set<Offset>{64}));
  object.reset();
  BOOST_TEST(pins->reap() == 0u);
  client.reset();
  BOOST_TEST(pins->reap() == 1u);
  BOOST_TEST(!exists(number));
}

/// Memory behind the end of its page's object, where the length does not tell: all of the tmpfs, if nobody took it
/// back.
BOOST_FIXTURE_TEST_CASE(what_a_client_takes_of_the_tmpfs_through_its_page_is_taken_back, Registry) {
  auto made = create();
  const UniqueFd object(::dup(made.fd.get()));
  const ClientPage hog(std::move(made));
  hog.pin(0) = 64;
  const auto taken = [&] {
    struct stat status {};
    BOOST_TEST_REQUIRE(::fstat(object.get(), &status) == 0);
    BOOST_TEST(status.st_size == static_cast<::off_t>(shm::kPageBytes));
    return status.st_blocks * 512;
  };
  const auto whole = taken();
  for (const bool by_the_next_daemon : {false, true}) {
    BOOST_TEST_REQUIRE(::fallocate(object.get(), FALLOC_FL_KEEP_SIZE, 4096, 1 << 20) == 0);
    BOOST_TEST(taken() == whole + (1 << 20));
    if (by_the_next_daemon) {
      BOOST_TEST(restart() == 1u);
    } else {
      BOOST_TEST(pins->reap() == 0u);
    }
    BOOST_TEST(taken() == whole);
    BOOST_TEST((pinned() == std::unordered_set<Offset>{64}));
  }
}

/// The client scribbles over all of its page: offsets into nowhere, into other blocks, over the daemon's fields.
BOOST_AUTO_TEST_CASE(garbage_in_a_pin_page_harms_nobody_else) {
  Stash stash;
  const shm::Reader honest = stash.reader();
  const ClientPage liar(take(stash.segment->pins().create(stash.segment->header().segment_id, 1, 1)));
  stash.set_pattern(1, "kept", 10'000);
  stash.set_pattern(1, "replaced", 10'000);
  std::mt19937_64 random(99);
  for (int round = 0; round < 20; ++round) {
    auto* words = reinterpret_cast<std::atomic<std::uint64_t>*>(&liar.page());
    for (std::size_t i = 0; i < shm::kPageBytes / sizeof(std::uint64_t); ++i) {
      words[i] = round % 2 == 0 ? random() : random() % Stash::kBytes / 64 * 64;
    }
    stash.set_pattern(1, "replaced", 10'000);
    stash.segment->reclaim();
    stash.segment->pins().recent([](Offset) {});
    BOOST_TEST(disorder(*stash.segment) == "");
    if (round % 5 == 4) stash.restart();
    BOOST_TEST(disorder(*stash.segment) == "");
    shm::Pinned view;
    for (const char* name : {"kept", "replaced"}) {
      BOOST_TEST_REQUIRE((honest.find(1, name, view) == shm::Found::resident));
      BOOST_TEST(is_pattern(view.value(), view.entry->id, view.entry->revision));
      view.release();
    }
  }
}

/// A pin can only ever have been set on an entry. One that names the great free run must not keep it from the heap.
BOOST_AUTO_TEST_CASE(a_pin_on_free_memory_takes_nothing_away_at_attach) {
  Stash stash;
  const ClientPage liar(take(stash.segment->pins().create(stash.segment->header().segment_id, 1, 1)));
  stash.set(1, "x", "value");
  const auto* base = reinterpret_cast<const std::byte*>(&stash.segment->header());
  std::size_t i = 0;
  take(shm::Heap::walk(base, stash.segment->header().heap_offset, Stash::kBytes,
                       [&](Offset at, std::uint64_t) { liar.pin(i++) = at; }));
  const std::uint64_t free_before = stash.segment->heap().free_bytes();
  stash.restart();
  BOOST_TEST(stash.segment->heap().free_bytes() == free_before);
  BOOST_TEST(stash.segment->retired() == 0u);
  BOOST_TEST(disorder(*stash.segment) == "");
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace stepstash::test
