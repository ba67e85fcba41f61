// SPDX-License-Identifier: Apache-2.0
// Readers who hold too much: their pages are closed, what they hold is written off, and others have the room of as much
// in the stand-in.
#include <fcntl.h>

#include <optional>
#include <set>
#include <vector>

#include "shm/pins.hpp"
#include "shm/validate.hpp"
#include "tests/support/segment_fixture.hpp"

namespace stepstash::test {
namespace {

using shm::Found;
using shm::Offset;
using shm::PageState;
using shm::PinRegistry;

/// A client's view of its page.
struct Page {
  explicit Page(PinRegistry::NewPage made)
      : mapping(take(shm::Mapping::map(made.fd.get(), shm::kPageBytes, shm::Mapping::Access::read_write))) {}
  shm::PinPage& page() const { return *reinterpret_cast<shm::PinPage*>(mapping.data()); }
  std::atomic<Offset>& pin(std::size_t i) const { return page().lines[i / 7].pins[i % 7]; }
  PageState state() const { return shm::page_state(page().state.load()); }
  shm::Mapping mapping;
};

struct Registry {
  ShmDir dir;
  shm::ObjectDirectory objects = take(shm::ObjectDirectory::open(dir.path()));
  PinRegistry pins{objects, "s.pin."};
  shm::SegmentId segment{1, 2, 3};
  shm::PinScan scan{1 << 20};
  shm::BlockSet entries{1 << 20};

  Registry() {
    for (Offset at = 64; at < 1024; at += 64) entries.insert(at);
  }
  Result<> close(std::uint32_t uid) { return pins.close(uid, entries); }
  static constexpr const char* kFirst = "s.pin.1.7";
  Page create(std::uint32_t uid) { return Page(take(pins.create(segment, 1, uid))); }
  const shm::PinScan& look() {
    take(pins.scan(scan));
    return scan;
  }
};

constexpr std::size_t kValueBytes = 50'000;

/// A segment of 4 MiB full of clean values, and a reader of user 7 who holds them all.
struct Hoarded : Stash {
  Hoarded() : greedy(reader_of(7)) {
    for (int i = 0;; ++i) {
      auto set = try_set_pattern(*segment, 1, std::to_string(i), kValueBytes, shm::EntryState::clean);
      if (!set) break;
      ++values;
    }
    for (int i = 0; i < values; ++i) {
      BOOST_TEST_REQUIRE((greedy.find(1, std::to_string(i), views.emplace_back()) == Found::resident));
    }
  }
  shm::Reader reader_of(std::uint32_t uid) {
    auto page = take(segment->pins().create(segment->header().segment_id, ::getpid(), uid));
    return take(shm::Reader::attach(take(segment->open_for_client()), std::move(page.fd)));
  }
  /// What a store does that wants room: everything clean goes that no serving page holds.
  void evict_all() {
    for (int i = 0; i < values; ++i) {
      const shm::Entry* entry = segment->find(1, std::to_string(i));
      if (entry != nullptr && segment->evictable_bytes(*entry) > 0) {
        take(segment->evict(*entry));
        segment->reclaim();
      }
    }
  }
  /// Sets values of another build until there is no room; returns how many.
  int fill(BuildId build) {
    for (int i = 0;; ++i) {
      if (!try_set_pattern(*segment, build, std::to_string(i), kValueBytes, shm::EntryState::clean)) return i;
    }
  }
  bool views_are_whole() const {
    bool whole = true;
    for (const shm::Pinned& view : views) {
      whole =
          whole && view.value().size() == kValueBytes && is_pattern(view.value(), view.entry->id, view.entry->revision);
    }
    return whole;
  }
  bool all_are_whole(const shm::Reader& reader, BuildId build, int count) const {
    for (int i = 0; i < count; ++i) {
      shm::Pinned view;
      if (reader.find(build, std::to_string(i), view) != Found::resident) return false;
      const bool whole = is_pattern(view.value(), view.entry->id, view.entry->revision);
      view.release();
      if (!whole) return false;
    }
    return true;
  }
  void release_all() {
    for (shm::Pinned& view : views) view.release();
    views.clear();
  }

  shm::Reader greedy;
  int values = 0;
  std::vector<shm::Pinned> views;
};

BOOST_AUTO_TEST_SUITE(closing)

BOOST_FIXTURE_TEST_CASE(what_a_page_holds_when_it_is_closed_counts_until_it_changes, Registry) {
  const Page page = create(7);
  const Page other = create(8);
  page.pin(0) = 64;
  page.pin(440) = 128;
  other.pin(0) = 192;
  take(close(7));
  BOOST_TEST((page.state() == PageState::closed));
  BOOST_TEST((other.state() == PageState::serving));
  BOOST_TEST(look().closed.contains(64));
  BOOST_TEST(look().closed.contains(128));
  BOOST_TEST(look().serving.contains(192));
  BOOST_TEST(!look().serving.contains(64));
  // What appears now does not count, in whatever place, and what was given up does not come back.
  page.pin(1) = 256;
  page.pin(0) = 320;
  BOOST_TEST(!look().pinned(256));
  BOOST_TEST(!look().pinned(320));
  BOOST_TEST(!look().pinned(64));
  page.pin(0) = 64;
  BOOST_TEST(!look().pinned(64));
  BOOST_TEST(look().closed.contains(128));
}

BOOST_FIXTURE_TEST_CASE(who_writes_into_the_state_of_his_page_gets_nothing_by_it, Registry) {
  const Page page = create(7);
  take(close(7));
  page.page().state = 0;
  page.page().uid = 8;
  page.pin(0) = 64;
  BOOST_TEST(!look().pinned(64));
}

/// Or who is closed could have put the numbers of blocks there that are cut later, and would hold what others set.
BOOST_FIXTURE_TEST_CASE(what_is_no_entrys_block_when_a_page_is_closed_is_not_held_by_it_later, Registry) {
  const Page page = create(7);
  page.pin(0) = 64;
  page.pin(1) = 2048;
  BOOST_TEST(look().serving.contains(2048));
  take(close(7));
  BOOST_TEST(look().closed.contains(64));
  BOOST_TEST(!look().pinned(2048));
}

BOOST_AUTO_TEST_CASE(a_closed_user_does_not_hold_what_is_set_later_where_his_pages_point) {
  Stash stash;
  stash.set_pattern(1, "before", 1000);
  const Offset block = stash.segment->offset_of(stash.set_pattern(1, "x", kValueBytes));
  stash.segment->erase(*stash.segment->find(1, "x"));
  stash.segment->reclaim();
  const Page liar(take(stash.segment->pins().create(stash.segment->header().segment_id, 1, 9)));
  for (std::size_t i = 0; i < shm::kPinsPerPage; ++i) liar.pin(i) = block + 64 * i;
  take(stash.segment->close_user(9));
  BOOST_TEST_REQUIRE(stash.segment->offset_of(stash.set_pattern(1, "x", kValueBytes)) == block);
  BOOST_TEST(stash.segment->held_by_users().empty() == false);  // he is closed, and named
  BOOST_TEST(stash.segment->held_by_users()[0].bytes == 0u);
  stash.segment->erase(*stash.segment->find(1, "x"));
  stash.segment->reclaim();
  BOOST_TEST(stash.segment->retired() == 0u);
  BOOST_TEST(stash.segment->heap().written_off() == 0u);
  BOOST_TEST(disorder(*stash.segment) == "");
}

/// Its client goes on taking views by it, as far as it can see: they must count.
BOOST_FIXTURE_TEST_CASE(a_page_that_cannot_be_told_that_it_is_closed_serves_on_until_it_can, Registry) {
  const Page deaf = create(7);
  const Page other = create(7);
  deaf.pin(0) = 64;
  other.pin(0) = 128;
  reopen_as(dir.file(kFirst), O_RDONLY);
  BOOST_TEST((close(7).error() == std::errc::bad_file_descriptor));
  BOOST_TEST(pins.closed(7));
  BOOST_TEST((deaf.state() == PageState::serving));
  BOOST_TEST((other.state() == PageState::closed));
  BOOST_TEST(look().serving.contains(64));
  BOOST_TEST(look().closed.contains(128));
  deaf.pin(1) = 192;  // its client sees that it serves
  BOOST_TEST(look().serving.contains(192));
  bool serves = false;
  pins.for_each_pin(7, [&](Offset, bool serving) { serves = serves || serving; });
  BOOST_TEST(serves);
  reopen_as(dir.file(kFirst), O_RDWR);
  take(close(7));
  BOOST_TEST((deaf.state() == PageState::closed));
  BOOST_TEST(look().closed.contains(64));
  BOOST_TEST(look().closed.contains(192));
  BOOST_TEST(look().closed.contains(128));
  BOOST_TEST(look().serving.empty());
}

BOOST_FIXTURE_TEST_CASE(a_page_without_pins_that_cannot_be_told_so_keeps_no_user_from_being_closed, Registry) {
  const Page empty = create(7);
  reopen_as(dir.file(kFirst), O_RDONLY);
  take(close(7));
  BOOST_TEST((empty.state() == PageState::serving));
}

BOOST_FIXTURE_TEST_CASE(a_page_that_cannot_be_read_is_not_closed, Registry) {
  const Page page = create(7);
  const Page other = create(7);
  page.pin(0) = 64;
  other.pin(0) = 128;
  test::make_unreadable(dir.file(kFirst));
  BOOST_TEST((close(7).error() == std::errc::bad_file_descriptor));
  reopen_as(dir.file(kFirst), O_RDWR);
  BOOST_TEST(look().serving.contains(64));
  BOOST_TEST(look().closed.contains(128));
}

/// The two writers of a page's state write a half each.
BOOST_FIXTURE_TEST_CASE(a_page_that_its_client_has_left_stays_left_whatever_the_daemon_writes, Registry) {
  const Page page = create(7);
  page.page().state.fetch_or(shm::kPageLeft);
  take(close(7));
  BOOST_TEST((page.state() == PageState::superseded));
  BOOST_TEST((shm::page_half_state(page.page().state.load()) == PageState::closed));
  pins.open(7);
  BOOST_TEST((page.state() == PageState::superseded));
  BOOST_TEST((shm::page_half_state(page.page().state.load()) == PageState::serving));
}

/// A reader that looks twice, with all of that in between, finds out.
BOOST_FIXTURE_TEST_CASE(a_page_that_was_closed_and_opened_says_so, Registry) {
  const Page page = create(7);
  std::set<shm::PageWord> seen{page.page().state.load()};
  for (int i = 0; i < 3; ++i) {
    take(close(7));
    pins.open(7);
    BOOST_TEST((page.state() == PageState::serving));
    BOOST_TEST(seen.insert(page.page().state.load()).second);
    take(close(7));
    PinRegistry next(objects, "s.pin.");  // the next daemon opens it
    take(next.adopt(segment));
    BOOST_TEST((page.state() == PageState::serving));
    BOOST_TEST(seen.insert(page.page().state.load()).second);
    pins.open(7);
  }
}

BOOST_FIXTURE_TEST_CASE(pages_that_a_closed_user_gets_are_closed, Registry) {
  const Page before = create(7);
  take(close(7));
  const Page page = create(7);
  BOOST_TEST((page.state() == PageState::closed));
  page.pin(0) = 64;
  BOOST_TEST(!look().pinned(64));
  BOOST_TEST((create(8).state() == PageState::serving));
}

BOOST_FIXTURE_TEST_CASE(a_page_that_is_opened_holds_all_that_stands_in_it, Registry) {
  const Page page = create(7);
  page.pin(0) = 64;
  take(close(7));
  page.pin(1) = 128;
  pins.open(7);
  BOOST_TEST((page.state() == PageState::serving));
  BOOST_TEST(look().serving.contains(64));
  BOOST_TEST(look().serving.contains(128));
  BOOST_TEST((create(7).state() == PageState::serving));
}

BOOST_FIXTURE_TEST_CASE(the_next_daemon_opens_pages_and_counts_all_that_stands_in_them, Registry) {
  const Page page = create(7);
  page.pin(0) = 64;
  take(close(7));
  page.pin(1) = 128;
  PinRegistry next(objects, "s.pin.");
  BOOST_TEST(take(next.adopt(segment)) == 1u);
  BOOST_TEST((page.state() == PageState::serving));
  take(next.scan(scan));
  BOOST_TEST(scan.serving.contains(64));
  BOOST_TEST(scan.serving.contains(128));
}

BOOST_AUTO_TEST_CASE(a_closed_client_keeps_its_views_and_gets_no_more) {
  Stash stash;
  stash.set_pattern(1, "x", 1000);
  const shm::Reader reader = stash.reader();
  shm::Pinned view;
  BOOST_TEST_REQUIRE((reader.find(1, "x", view) == Found::resident));
  take(stash.segment->close_user(reader.uid()));
  shm::Pinned more;
  BOOST_TEST((reader.find(1, "x", more) == Found::closed));
  BOOST_TEST((reader.find(1, "absent", more) == Found::closed));
  BOOST_TEST(!reader.superseded());
  BOOST_TEST(reader.pins_in_use() == 1u);
  BOOST_TEST(is_pattern(view.value(), view.entry->id, view.entry->revision));
  view.release();
  stash.segment->open_user(reader.uid());
  BOOST_TEST_REQUIRE((reader.find(1, "x", more) == Found::resident));
  more.release();
}

BOOST_FIXTURE_TEST_CASE(others_have_the_room_of_what_a_closed_user_holds, Hoarded) {
  BOOST_TEST_REQUIRE(values > 60);
  evict_all();
  BOOST_TEST(fill(2) == 0);  // evicted and pinned: nothing came of it
  BOOST_TEST(disorder(*segment) == "");
  const std::uint64_t capacity = segment->heap().capacity();
  take(segment->close_user(7));
  const int set = fill(2);
  BOOST_TEST(set > values * 9 / 10);
  BOOST_TEST(set <= values);
  BOOST_TEST(segment->heap().capacity() == capacity);
  BOOST_TEST(disorder(*segment) == "");
  BOOST_TEST(views_are_whole());
  const shm::Reader other = reader_of(8);
  BOOST_TEST(all_are_whole(other, 2, set));
  shm::Pinned view;
  BOOST_TEST((greedy.find(2, "0", view) == Found::closed));
  // As much as there was before, and no more, when he has released all of it: what stands in the stand-in counts.
  release_all();
  segment->reclaim();
  segment->open_user(7);
  BOOST_TEST(segment->heap().written_off() == 0u);
  BOOST_TEST(disorder(*segment) == "");
  BOOST_TEST(fill(3) <= values - set);
  BOOST_TEST(all_are_whole(other, 2, set));
  for (int i = 0; i < set; ++i) segment->erase(*segment->find(2, std::to_string(i)));
  segment->reclaim();
  BOOST_TEST(segment->heap().stand_in_used_bytes() <= 256 * 1024u);  // slabs
  BOOST_TEST(disorder(*segment) == "");
  const int again = fill(4);
  BOOST_TEST(again > values * 8 / 10);
  BOOST_TEST(all_are_whole(greedy, 4, again));
}

BOOST_FIXTURE_TEST_CASE(what_another_user_holds_too_is_not_written_off, Hoarded) {
  const shm::Reader other = reader_of(8);
  shm::Pinned view;
  BOOST_TEST_REQUIRE((other.find(1, "0", view) == Found::resident));
  take(segment->close_user(7));
  evict_all();
  const std::uint64_t all = segment->heap().written_off();
  BOOST_TEST(all > 0u);
  view.release();
  segment->reclaim();
  BOOST_TEST(segment->heap().written_off() >= all + kValueBytes);
}

BOOST_FIXTURE_TEST_CASE(what_a_closed_user_holds_outlives_the_daemon, Hoarded) {
  take(segment->close_user(7));
  evict_all();
  const int set = fill(2);
  BOOST_TEST_REQUIRE(set > 0);
  restart();
  BOOST_TEST(recovery.set_aside.empty());
  BOOST_TEST(disorder(*segment) == "");
  BOOST_TEST(views_are_whole());
  // He is served again, by a daemon that knows of nothing; and is closed again when there is no room.
  shm::Pinned view;
  BOOST_TEST_REQUIRE((greedy.find(2, "0", view) == Found::resident));
  BOOST_TEST(is_pattern(view.value(), view.entry->id, view.entry->revision));
  view.release();
  BOOST_TEST(fill(3) == 0);
  BOOST_TEST(all_are_whole(greedy, 2, set));
  // Also records of evicted values have room, or nothing could go.
  for (int i = 0; i < set; ++i) {
    BOOST_TEST_REQUIRE(segment->evict(*segment->find(2, std::to_string(i))).has_value());
    segment->reclaim();
  }
  take(segment->close_user(7));
  BOOST_TEST(fill(4) > values / 2);
  BOOST_TEST(disorder(*segment) == "");
  BOOST_TEST(views_are_whole());
  release_all();
  restart();
  BOOST_TEST(disorder(*segment) == "");
  BOOST_TEST(segment->retired() == 0u);
}

BOOST_FIXTURE_TEST_CASE(who_holds_what_is_counted_once_for_each_user, Hoarded) {
  const shm::Reader also = reader_of(7);
  const shm::Reader other = reader_of(8);
  shm::Pinned twice, two;
  BOOST_TEST_REQUIRE((also.find(1, "0", twice) == Found::resident));
  BOOST_TEST_REQUIRE((other.find(1, "0", two) == Found::resident));
  const Page liar(take(segment->pins().create(segment->header().segment_id, 1, 9)));
  for (std::size_t i = 0; i < shm::kPinsPerPage; ++i) liar.pin(i) = 64 * (i + 1);  // no entries there
  const auto held = segment->held_by_users();
  BOOST_TEST_REQUIRE(held.size() == 2u);
  BOOST_TEST(held[0].uid == 7u);
  BOOST_TEST(held[0].blocks == static_cast<std::size_t>(values));
  BOOST_TEST(held[0].bytes >= static_cast<std::size_t>(values) * kValueBytes);
  BOOST_TEST(held[1].uid == 8u);
  BOOST_TEST(held[1].blocks == 1u);
  BOOST_TEST(held[1].bytes == segment->heap().block_bytes(segment->offset_of(*two.entry)));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace stepstash::test
