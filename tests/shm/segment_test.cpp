// SPDX-License-Identifier: Apache-2.0
#include "shm/segment.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <set>

#include "shm/hash.hpp"
#include "shm/validate.hpp"
#include "tests/support/segment_fixture.hpp"

namespace stepstash::test {
namespace {

using shm::EntryState;
using shm::Found;
using shm::Reader;
using shm::Segment;

struct SmallStash : Stash {
  SmallStash() : Stash(1024 * 1024) {}
};

/// Sets values of `bytes` bytes called 0, 1, 2, ... until there is no room; returns how many.
int fill(Stash& stash, BuildId build, std::size_t bytes, EntryState state) {
  for (int i = 0;; ++i) {
    auto made = try_set_pattern(*stash.segment, build, std::to_string(i), bytes, state);
    if (made) continue;
    BOOST_TEST_REQUIRE((made.error() == Errc::segment_full));
    return i;
  }
}

std::vector<std::string> names_of(const Stash& stash) {
  std::vector<std::string> names;
  stash.segment->for_each([&](const shm::Entry& entry) {
    names.push_back(std::to_string(entry.buildid) + "/" + std::string(shm::entry_name(entry)));
  });
  std::sort(names.begin(), names.end());
  return names;
}

BOOST_AUTO_TEST_SUITE(segment)

// ---- create, install, attach ----

BOOST_AUTO_TEST_CASE(a_segment_is_not_seen_under_its_name_before_it_is_complete) {
  const ShmDir dir;
  const auto objects = take(shm::ObjectDirectory::open(dir.path()));
  shm::Recovery recovery;
  const auto made = take(Segment::create(objects, "s", 1024 * 1024));
  BOOST_TEST((Segment::attach(objects, "s", recovery).error() == std::errc::no_such_file_or_directory));
  BOOST_TEST(take(made->install(true)) == "");
  BOOST_TEST(Segment::attach(objects, "s", recovery).has_value());
  BOOST_TEST(take(objects.list("s")).size() == 1u);
}

BOOST_AUTO_TEST_CASE(a_size_that_cannot_be_is_refused_and_leaves_nothing) {
  const ShmDir dir;
  const auto objects = take(shm::ObjectDirectory::open(dir.path()));
  for (const std::uint64_t bytes : {std::uint64_t{0}, std::uint64_t{1024 * 1024 - 4096}, shm::kMaxSegmentBytes + 1}) {
    BOOST_TEST((Segment::create(objects, "s", bytes).error() == Errc::invalid_argument), bytes << " bytes");
  }
  BOOST_TEST(take(objects.list("")).empty());
}

BOOST_FIXTURE_TEST_CASE(a_size_is_rounded_up_to_pages, SmallStash) {
  const auto other = take(Segment::create(objects, "other", 1024 * 1024 + 1));
  BOOST_TEST(other->bytes() == 1024u * 1024 + 4096);
}

BOOST_FIXTURE_TEST_CASE(installing_over_a_segment_keeps_it_aside_when_asked_to, SmallStash) {
  set(1, "x", "old");
  auto next = take(Segment::create(objects, kName, 1024 * 1024));
  BOOST_TEST(take(next->install(/*keep_former=*/true)) == "segment.damaged.1");
  segment = std::move(next);
  BOOST_TEST(segment->find(1, "x") == nullptr);
  shm::Recovery former;
  const auto aside = take(Segment::attach(objects, "segment.damaged.1", former));
  BOOST_TEST(former.entries_kept == 1u);
  auto third = take(Segment::create(objects, kName, 1024 * 1024));
  BOOST_TEST(take(third->install(/*keep_former=*/false)) == "");
  BOOST_TEST(take(objects.list("segment")).size() == 2u);
}

BOOST_FIXTURE_TEST_CASE(an_attach_finds_all_entries_builds_and_counters, Stash) {
  set(1, "dirty", "1", "src");
  set(2, "clean", "2", "", EntryState::clean);
  take(segment->evict(set(2, "evicted", std::string(500, 'e'), "", EntryState::clean)));
  set(2, "", "");
  shm::BuildRecord* build = take(segment->add_build(2, false));
  build->complete_at = 1234;
  build->hold = shm::Hold::held;
  segment->header().id_limit = 777;
  segment->header().store_id = 42;
  segment->header().commit_count = 5;
  const std::uint64_t next = segment->header().next_id;
  const std::uint64_t free_bytes = segment->heap().free_bytes();
  restart();
  BOOST_TEST(recovery.set_aside.empty());
  BOOST_TEST(recovery.entries_kept == 4u);
  const Reader client = reader();
  BOOST_TEST(found(client, 1, "dirty") == "1");
  BOOST_TEST(found(client, 2, "clean") == "2");
  BOOST_TEST(found(client, 2, "evicted") == "(evicted)");
  BOOST_TEST(found(client, 2, "") == "");
  BOOST_TEST((segment->find(1, "dirty")->state == EntryState::dirty));
  BOOST_TEST((segment->find(2, "clean")->state == EntryState::clean));
  BOOST_TEST_REQUIRE(segment->find_build(2) != nullptr);
  BOOST_TEST(segment->find_build(2)->complete_at == 1234);
  BOOST_TEST((segment->find_build(2)->hold == shm::Hold::held));
  BOOST_TEST(segment->builds() == 1u);
  BOOST_TEST(segment->header().next_id == next);
  BOOST_TEST(segment->header().id_limit == 777u);
  BOOST_TEST(segment->header().store_id == 42u);
  BOOST_TEST(segment->header().commit_count == 5u);
  BOOST_TEST(segment->heap().free_bytes() >= free_bytes);
  BOOST_TEST(disorder(*segment) == "");
}

BOOST_AUTO_TEST_CASE(a_new_segment_without_its_name_is_taken_over_if_it_is_complete) {
  const ShmDir dir;
  const auto objects = take(shm::ObjectDirectory::open(dir.path()));
  shm::Recovery recovery;
  take(Segment::create(objects, "s", 1024 * 1024))->header().store_id = 42;  // killed in install()
  BOOST_TEST(take(Segment::attach(objects, "s", recovery))->header().store_id == 42u);
  BOOST_TEST(take(objects.list("s")).size() == 1u);
  take(Segment::create(objects, "other", 1024 * 1024))->abandon();
  BOOST_TEST(take(objects.list("other")).empty());
}

BOOST_FIXTURE_TEST_CASE(a_segment_left_half_made_is_in_nobodys_way, Stash) {
  set(1, "x", "value");
  { const auto half = take(Segment::create(objects, kName, kBytes)); }  // killed before install()
  restart();
  BOOST_TEST(segment->find(1, "x") != nullptr);
  BOOST_TEST(Segment::create(objects, kName, kBytes).has_value());
}

BOOST_FIXTURE_TEST_CASE(a_segment_that_is_not_this_users_own_file_is_unsafe, Stash) {
  BOOST_TEST_REQUIRE(::link(dir.file(kName).c_str(), dir.file("second").c_str()) == 0);
  shm::Recovery ignored;
  BOOST_TEST((Segment::attach(objects, kName, ignored).error() == Errc::unsafe_object));
}

// ---- entries ----

BOOST_FIXTURE_TEST_CASE(a_draft_that_was_not_published_never_was, Stash) {
  const std::uint64_t free_before = segment->heap().free_bytes();
  const shm::Draft discarded = take(segment->draft("x", "", 100'000));
  segment->discard(discarded);
  BOOST_TEST(segment->heap().free_bytes() == free_before);
  take(segment->draft("x", "", 100'000));  // the daemon dies with it
  BOOST_TEST(segment->heap().free_bytes() < free_before);
  restart();
  BOOST_TEST(segment->heap().free_bytes() == free_before);
  BOOST_TEST(disorder(*segment) == "");
}

BOOST_FIXTURE_TEST_CASE(a_value_of_unknown_length_grows_in_place_and_gives_back_what_it_has_too_much, Stash) {
  shm::Draft draft = take(segment->draft("log", "", 1000));
  BOOST_TEST(draft.capacity >= 1000u);
  BOOST_TEST(take(segment->extend(draft, 500'000)));
  BOOST_TEST(draft.capacity >= 500'000u);
  take(segment->reserve(draft, 300'000));
  const auto value = segment->value_bytes(draft).first(300'000);
  fill_pattern(value, 9, 9);
  take(segment->ensure_slot(1, "log"));
  Segment::EntryFacts facts;
  facts.id = facts.revision = next_id();
  facts.build = 1;
  facts.name = "log";
  facts.length = value.size();
  facts.value_hash = shm::hash_bytes(value);
  const shm::Entry& entry = segment->publish(draft, facts);
  BOOST_TEST(entry.block.size < 301'000u);
  restart();
  BOOST_TEST(recovery.set_aside.empty());
  BOOST_TEST(is_pattern(shm::entry_value(*segment->find(1, "log")), 9, 9));
  BOOST_TEST(disorder(*segment) == "");
}

BOOST_FIXTURE_TEST_CASE(a_draft_cannot_grow_into_what_is_in_use, Stash) {
  shm::Draft draft = take(segment->draft("log", "", 1000));
  set(1, "neighbour", std::string(100, 'n'));
  const std::uint64_t capacity = draft.capacity;
  BOOST_TEST(!take(segment->extend(draft, 500'000)));
  BOOST_TEST(!take(segment->extend(draft, ~std::uint64_t{0})));
  BOOST_TEST(draft.capacity == capacity);
  BOOST_TEST(text_of(shm::entry_value(*segment->find(1, "neighbour"))) == std::string(100, 'n'));
}

BOOST_FIXTURE_TEST_CASE(the_largest_value_fits_into_an_empty_segment_and_a_longer_one_is_refused, Stash) {
  const std::uint64_t most = segment->max_value_bytes();
  const std::string longest(1024, 'n');
  const shm::Draft draft = take(segment->draft(longest, longest, most));
  BOOST_TEST(draft.capacity >= most);
  segment->discard(draft);
  for (const std::uint64_t bytes : {most + 1, kBytes, ~std::uint64_t{0}, ~std::uint64_t{0} - 4096}) {
    BOOST_TEST((segment->draft("x", "", bytes).error() == Errc::segment_full), bytes << " bytes");
  }
}

BOOST_FIXTURE_TEST_CASE(replacing_keeps_the_key_and_frees_the_block_before, Stash) {
  set(1, "x", std::string(1000, 'a'));
  const std::uint64_t id = segment->find(1, "x")->id;
  segment->reclaim();
  const std::uint64_t free_before = segment->heap().free_bytes();
  for (int i = 0; i < 100; ++i) {
    set(1, "x", std::string(1000, 'b'));
    BOOST_TEST(segment->retired() == 1u);
    BOOST_TEST(segment->retired_bytes() > 1000u);
    segment->reclaim();
  }
  BOOST_TEST(segment->retired_bytes() == 0u);
  BOOST_TEST(segment->heap().free_bytes() == free_before);
  BOOST_TEST(segment->find(1, "x")->id == id);
  BOOST_TEST(segment->index().entries() == 1u);
}

BOOST_FIXTURE_TEST_CASE(a_pinned_block_is_not_reused_until_it_is_released, Stash) {
  const Reader client = reader();
  set_pattern(1, "x", 200'000);
  shm::Pinned view;
  BOOST_TEST_REQUIRE((client.find(1, "x", view) == Found::resident));
  const shm::Offset block = segment->offset_of(*view.entry) + 0;
  segment->erase(*segment->find(1, "x"));
  BOOST_TEST(segment->reclaim() == 0u);
  BOOST_TEST(segment->retired() == 1u);
  while (auto other = segment->draft("y", "", 50'000)) BOOST_TEST(other.value().block != block);
  BOOST_TEST(is_pattern(view.value(), view.entry->id, view.entry->revision));
  view.release();
  BOOST_TEST(segment->reclaim() > 200'000u);
  BOOST_TEST(segment->retired() == 0u);
}

BOOST_FIXTURE_TEST_CASE(a_held_block_waits_for_as_many_unretained_as_holds, Stash) {
  const shm::Entry& entry = set(1, "x", std::string(1000, 'x'));
  const shm::Offset block = segment->offset_of(entry);
  segment->retain(block);
  segment->retain(block);
  segment->erase(entry);
  BOOST_TEST(segment->reclaim() == 0u);
  segment->unretain(block);
  BOOST_TEST(segment->reclaim() == 0u);
  BOOST_TEST(text_of(shm::entry_value(segment->entry_at(block))) == std::string(1000, 'x'));
  segment->unretain(block);
  BOOST_TEST(segment->reclaim() > 1000u);
  segment->unretain(block);  // one too many is nothing
}

BOOST_FIXTURE_TEST_CASE(what_readers_of_a_dead_daemon_hold_survives_the_attach_and_goes_when_they_let_go, Stash) {
  std::optional<Reader> client(reader());
  std::vector<shm::Pinned> views(3);
  for (int i = 0; i < 3; ++i) {
    const std::string name = std::to_string(i);
    set_pattern(1, name, 100'000);
    BOOST_TEST_REQUIRE((client->find(1, name, views[static_cast<std::size_t>(i)]) == Found::resident));
  }
  segment->erase(*segment->find(1, "0"));  // retired
  set_pattern(1, "1", 100'000);            // replaced
  restart();                               // "2" is still published
  BOOST_TEST(segment->retired() == 2u);
  BOOST_TEST(segment->reclaim() == 0u);
  fill(*this, 2, 50'000, EntryState::dirty);
  for (const auto& view : views) BOOST_TEST(is_pattern(view.value(), view.entry->id, view.entry->revision));
  views[0].release();
  BOOST_TEST(segment->reclaim() > 100'000u);
  BOOST_TEST(segment->retired() == 1u);
  client.reset();  // without releasing: its page is reaped
  BOOST_TEST(segment->pins().reap() == 1u);
  BOOST_TEST(segment->reclaim() > 100'000u);
  BOOST_TEST(segment->retired() == 0u);
  BOOST_TEST(disorder(*segment) == "");
}

/// What is pinned on pages that the next daemon cannot open, or read, may be anything.
BOOST_FIXTURE_TEST_CASE(an_attach_that_cannot_see_all_pins_fails_and_frees_nothing, Stash,
                        *boost::unit_test::enable_if<kMayLackDescriptors>()) {
  set(1, "viewed", "value");
  std::vector<shm::Reader> readers;
  std::vector<shm::Pinned> views(12);
  for (shm::Pinned& view : views) {
    readers.push_back(reader());
    BOOST_TEST_REQUIRE((readers.back().find(1, "viewed", view) == shm::Found::resident));
  }
  set(1, "viewed", "another");
  segment.reset();
  {
    const FewDescriptors few(8);
    const auto attached = shm::Segment::attach(objects, kName, recovery);
    BOOST_TEST_REQUIRE(!attached);
    BOOST_TEST((attached.error() == std::errc::too_many_files_open));
  }
  for (std::size_t i = 0; i + 1 < views.size(); ++i) views[i].release();
  restart();
  BOOST_TEST(segment->retired() == 1u);
  for (int i = 0; i < 100; ++i) set_pattern(2, "other", 1000);
  BOOST_TEST(text_of(views.back().value()) == "value");
  views.back().release();
}

/// A reader that was stopped in the middle of a probe goes on in the table that was current then.
BOOST_FIXTURE_TEST_CASE(former_tables_outlive_the_daemon_while_a_client_does_and_are_used_again, Stash) {
  std::optional<shm::Reader> client(reader());
  std::set<shm::Offset> tables;
  std::uint64_t next = 0;
  const auto set_and_drop = [&] {  // it grows, and then is cleaned of tombstones
    for (BuildId build = 1; build <= 3; ++build) {
      for (int i = 0; i < 500; ++i) set(build, std::to_string(++next), "");
      tables.insert(segment->index().table_block());
    }
    for (BuildId build = 1; build <= 3; ++build) drop(*segment, build);
    segment->reclaim();
  };
  const auto in_chain = [&] {
    std::set<shm::Offset> found;
    segment->for_each_block([&](shm::Offset at, std::uint64_t, bool free) {
      const auto& block = reinterpret_cast<const shm::BlockHeader&>(segment->entry_at(at));
      if (!free && block.kind == shm::BlockKind::index) found.insert(at);
    });
    return found;
  };
  for (int i = 0; i < 50 && tables.size() < 4; ++i) set_and_drop();
  BOOST_TEST(tables.size() == 4u);  // of 1024 and 2048 slots, and two of 4096
  BOOST_TEST((in_chain() == tables));
  restart();
  BOOST_TEST((in_chain() == tables));
  BOOST_TEST(disorder(*segment) == "");
  for (int i = 0; i < 10; ++i) set_and_drop();
  BOOST_TEST(segment->index().slots() == 4096u);
  BOOST_TEST((in_chain() == tables));  // no other was needed
  BOOST_TEST(disorder(*segment) == "");
  client.reset();
  restart();
  BOOST_TEST((in_chain() == std::set<shm::Offset>{segment->index().table_block()}));
  BOOST_TEST(disorder(*segment) == "");
}

/// Nobody has ever been in it.
BOOST_FIXTURE_TEST_CASE(a_larger_table_that_was_never_finished_is_freed_while_a_client_lives, Stash) {
  const shm::Reader client = reader();
  const shm::Offset block = take(segment->heap().allocate_high(64 + 2 * segment->index().slots() * sizeof(shm::Slot)));
  auto* bytes_of_it = reinterpret_cast<std::byte*>(&segment->header()) + block;
  const std::uint64_t bytes = segment->heap().block_bytes(block);
  reinterpret_cast<shm::BlockHeader*>(bytes_of_it)->kind = shm::BlockKind::index;
  std::memset(bytes_of_it + 64, 0, bytes - 64);
  const std::uint64_t free_before = segment->heap().free_bytes();
  restart();
  BOOST_TEST(segment->heap().free_bytes() == free_before + bytes);
  BOOST_TEST(disorder(*segment) == "");
}

BOOST_FIXTURE_TEST_CASE(nothing_is_freed_while_a_pin_page_cannot_be_read, Stash) {
  const shm::Reader honest = reader();
  set(1, "viewed", "value");
  shm::Pinned view;
  BOOST_TEST_REQUIRE((honest.find(1, "viewed", view) == shm::Found::resident));
  set(1, "viewed", "another");
  make_unreadable(dir.file("segment.pin.1." + std::to_string(honest.uid())));
  BOOST_TEST(segment->reclaim() == 0u);
  BOOST_TEST(segment->retired() == 1u);
  BOOST_TEST(text_of(view.value()) == "value");
  view.release();
  restart();
  BOOST_TEST(segment->retired() == 0u);
}

BOOST_FIXTURE_TEST_CASE(evicting_keeps_the_record_and_frees_the_value, Stash) {
  const shm::Entry& entry = set(1, "x", std::string(100'000, 'x'), "src", EntryState::clean);
  const std::uint64_t id = entry.id;
  const std::uint64_t revision = entry.revision;
  const std::uint64_t hash = entry.value_hash;
  const std::uint64_t promised = segment->evictable_bytes(entry);
  segment->reclaim();
  const std::uint64_t room_before = segment->heap().free_bytes() + segment->slab_bytes();
  const shm::Entry& record = *take(segment->evict(entry));
  segment->reclaim();
  BOOST_TEST(segment->heap().free_bytes() + segment->slab_bytes() - room_before == promised);
  BOOST_TEST(record.id == id);
  BOOST_TEST(record.revision == revision);
  BOOST_TEST(record.length == 100'000u);
  BOOST_TEST(record.value_hash == hash);
  BOOST_TEST(record.value_offset == 0u);
  BOOST_TEST(shm::entry_source(record) == "src");
  BOOST_TEST(segment->evictable_bytes(record) == 0u);
  restart();
  BOOST_TEST(recovery.set_aside.empty());
  BOOST_TEST(segment->find(1, "x")->value_offset == 0u);
}

/// I9: to the last byte full, evicting works still, for it has memory of its own.
BOOST_FIXTURE_TEST_CASE(evicting_works_with_the_segment_full, Stash) {
  const int count = fill(*this, 1, 30'000, EntryState::clean);
  fill(*this, 2, 1, EntryState::dirty);
  BOOST_TEST(segment->heap().largest_free() < 192u);
  for (int i = 0; i < count; ++i) {
    const auto evicted = segment->evict(*segment->find(1, std::to_string(i)));
    BOOST_TEST_REQUIRE(evicted.has_value(), "entry " << i);
    if (i % 20 == 19) segment->reclaim();
  }
  segment->reclaim();
  BOOST_TEST(segment->heap().free_bytes() >= static_cast<std::uint64_t>(count) * 29'000);
  BOOST_TEST(disorder(*segment) == "");
}

BOOST_FIXTURE_TEST_CASE(erasing_and_dropping_work_with_the_segment_full, Stash) {
  take(segment->add_build(1, false));
  fill(*this, 1, 30'000, EntryState::dirty);
  fill(*this, 2, 1, EntryState::dirty);
  drop(*segment, 1);
  segment->reclaim();
  BOOST_TEST(segment->heap().largest_free() > 1'000'000u);
  BOOST_TEST(try_set_pattern(*segment, 1, "again", 30'000).has_value());
}

BOOST_FIXTURE_TEST_CASE(a_marked_state_is_what_the_next_daemon_finds, Stash) {
  segment->mark(set(1, "committed", "1"), EntryState::clean);
  segment->mark(set(1, "again", "2", "", EntryState::clean), EntryState::dirty);
  restart();
  BOOST_TEST((segment->find(1, "committed")->state == EntryState::clean));
  BOOST_TEST((segment->find(1, "again")->state == EntryState::dirty));
}

BOOST_FIXTURE_TEST_CASE(reclaiming_when_due_keeps_what_is_retired_bounded, Stash) {
  for (int i = 0; i < 2000; ++i) {
    set(1, "x", std::string(100, 'x'));
    segment->reclaim_if_due();
    BOOST_TEST_REQUIRE(segment->retired() <= 32u);
  }
  for (int i = 0; i < 100; ++i) {
    set_pattern(1, "large", 100'000);
    segment->reclaim_if_due();
    BOOST_TEST_REQUIRE(segment->retired_bytes() <= kBytes / 16);
  }
}

// ---- what attach completes, refuses and reports ----

BOOST_FIXTURE_TEST_CASE(a_drop_under_way_is_completed_and_what_was_set_after_it_stays, Stash) {
  for (const char* name : {"a", "b", "c"}) set(1, name, name);
  set(2, "other build", "stays");
  shm::BuildRecord* build = take(segment->add_build(1, false));
  build->drop_upto = segment->header().next_id - 1;
  segment->erase(*segment->find(1, "b"));  // killed in the middle
  restart();
  BOOST_TEST(recovery.set_aside.empty());
  BOOST_TEST(names_of(*this) == std::vector<std::string>{"2/other build"}, boost::test_tools::per_element());
  set(1, "a", "new");
  restart();
  BOOST_TEST((names_of(*this) == std::vector<std::string>{"1/a", "2/other build"}));
  BOOST_TEST(disorder(*segment) == "");
}

BOOST_FIXTURE_TEST_CASE(ids_of_entries_are_below_next_id_after_attach, Stash) {
  set(1, "x", "1");
  const std::uint64_t highest = segment->find(1, "x")->revision;
  segment->header().next_id = 1;  // lost
  restart();
  BOOST_TEST(segment->header().next_id == highest + 1);
}

BOOST_FIXTURE_TEST_CASE(a_dirty_value_that_does_not_match_its_checksum_is_named_and_only_its_record_stays, Stash) {
  set(1, "sound", "sound");
  const shm::Entry& entry = set(3, "te\nst", "value");
  const_cast<std::byte&>(shm::entry_value(entry)[2]) ^= std::byte{1};
  restart();
  BOOST_TEST_REQUIRE(recovery.set_aside.size() == 1u);
  BOOST_TEST(recovery.set_aside[0].starts_with("build 3, name \"te\\x0ast\", id "), recovery.set_aside[0]);
  BOOST_TEST_REQUIRE(segment->find(3, "te\nst") != nullptr);
  BOOST_TEST(segment->find(3, "te\nst")->value_offset == 0u);  // no older value can be served in its place
  const Reader client = reader();
  BOOST_TEST(found(client, 3, "te\nst") == "(evicted)");
  BOOST_TEST(found(client, 1, "sound") == "sound");
  BOOST_TEST(disorder(*segment) == "");
}

/// Start time does not grow with bytes: a clean value's checksum is looked at when it is used, not at attach.
BOOST_FIXTURE_TEST_CASE(a_clean_value_is_not_read_at_attach, Stash) {
  const shm::Entry& entry = set(1, "x", "value", "", EntryState::clean);
  const_cast<std::byte&>(shm::entry_value(entry)[2]) ^= std::byte{1};
  restart();
  BOOST_TEST(recovery.set_aside.empty());
  BOOST_TEST(recovery.entries_kept == 1u);
}

BOOST_FIXTURE_TEST_CASE(a_damaged_record_is_set_aside_and_the_rest_is_served, Stash) {
  set(1, "sound", "sound");
  const_cast<std::uint64_t&>(set(1, "damaged", "value").id) ^= 1;
  restart();
  BOOST_TEST(recovery.set_aside.size() == 1u);
  BOOST_TEST((names_of(*this) == std::vector<std::string>{"1/sound"}));
}

BOOST_FIXTURE_TEST_CASE(build_records_that_cannot_be_are_set_aside, Stash) {
  shm::BuildRecord* one = take(segment->add_build(1, false));
  shm::BuildRecord* two = take(segment->add_build(2, false));
  shm::BuildRecord* three = take(segment->add_build(3, false));
  two->buildid = 1;
  three->buildid = -3;
  one->complete_at = 77;
  restart();
  BOOST_TEST(recovery.set_aside.size() == 2u);
  BOOST_TEST(segment->builds() == 1u);
  BOOST_TEST(segment->find_build(1)->complete_at == 77);
}

BOOST_FIXTURE_TEST_CASE(another_layout_is_refused_and_left_untouched, Stash) {
  set(1, "x", "value");
  segment->header().layout_version += 1;
  shm::Recovery ignored;
  BOOST_TEST((Segment::attach(objects, kName, ignored).error() == Errc::format_mismatch));
  segment->header().layout_version -= 1;
  restart();
  BOOST_TEST(recovery.entries_kept == 1u);
}

BOOST_FIXTURE_TEST_CASE(an_index_word_of_another_size_is_refused, Stash) {
  set(1, "x", "value");
  const shm::IndexWord word = segment->header().index;
  const auto log2 = shm::index_log2_slots(word);
  for (const unsigned other : {0u, log2 - 1, log2 + 1, 45u, 63u}) {
    segment->header().index = shm::make_index_word(0, other, shm::index_slots_offset(word));
    shm::Recovery ignored;
    BOOST_TEST((Segment::attach(objects, kName, ignored).error() == Errc::corrupt_segment), "log2 " << other);
  }
  segment->header().index = word;
  restart();
  BOOST_TEST(recovery.entries_kept == 1u);
}

BOOST_FIXTURE_TEST_CASE(salvage_gives_the_sound_entries_of_a_segment_that_attach_refuses, Stash) {
  set(1, "sound", "sound", "src");
  take(segment->evict(set(1, "evicted", std::string(500, 'e'), "", EntryState::clean)));
  const shm::Entry& damaged = set(1, "damaged", "value");
  const_cast<std::byte&>(shm::entry_value(damaged)[0]) ^= std::byte{1};
  set(2, "dropped", "x");
  shm::BuildRecord* build = take(segment->add_build(2, false));
  build->drop_upto = segment->header().next_id - 1;
  build->complete_at = 99;
  segment->header().header_hash ^= 1;
  segment.reset();
  shm::Recovery ignored;
  BOOST_TEST((Segment::attach(objects, kName, ignored).error() == Errc::corrupt_segment));
  std::vector<std::string> entries;
  std::vector<std::string> builds;
  take(Segment::salvage(
      objects, kName,
      [&](const shm::Entry& entry) {
        entries.push_back(std::string(shm::entry_name(entry)) + "=" + text_of(shm::entry_value(entry)));
      },
      [&](const shm::BuildRecord& record) {
        builds.push_back(std::to_string(record.buildid) + " complete at " + std::to_string(record.complete_at));
      }));
  std::sort(entries.begin(), entries.end());
  BOOST_TEST((entries == std::vector<std::string>{"evicted=", "sound=sound"}));
  BOOST_TEST((builds == std::vector<std::string>{"2 complete at 99"}));
}

// ---- builds ----

BOOST_FIXTURE_TEST_CASE(the_last_eighth_of_the_build_table_is_for_what_frees, SmallStash) {
  const std::uint64_t capacity = segment->builds_capacity();
  BuildId build = 1;
  while (segment->add_build(build, /*spare=*/false)) ++build;
  BOOST_TEST(segment->builds() == capacity - capacity / 8);
  BOOST_TEST((segment->add_build(build, false).error() == Errc::too_many_builds));
  while (segment->add_build(build, /*spare=*/true)) ++build;
  BOOST_TEST(segment->builds() == capacity);
  BOOST_TEST((segment->add_build(build, true).error() == Errc::too_many_builds));
  BOOST_TEST(take(segment->add_build(5, false)) == segment->find_build(5));  // known ones are no new ones
  segment->remove_build(*segment->find_build(5));
  BOOST_TEST(segment->find_build(5) == nullptr);
  BOOST_TEST(segment->add_build(build, true).has_value());
  restart();
  BOOST_TEST(segment->builds() == capacity);
  BOOST_TEST((segment->add_build(5, true).error() == Errc::too_many_builds));
}

BOOST_FIXTURE_TEST_CASE(a_record_that_is_used_again_remembers_nothing, Stash) {
  shm::BuildRecord* record = take(segment->add_build(1, false));
  record->complete_at = 5;
  record->drop_upto = 6;
  record->hold = shm::Hold::held;
  record->completed_ns = 7;
  segment->remove_build(*record);
  const shm::BuildRecord* again = take(segment->add_build(2, false));
  BOOST_TEST(again == record);
  BOOST_TEST(again->complete_at == shm::kNotComplete);
  BOOST_TEST(again->drop_upto == 0u);
  BOOST_TEST((again->hold == shm::Hold::unknown));
  BOOST_TEST(again->completed_ns == 0);
}

BOOST_AUTO_TEST_CASE(a_segment_of_bytes_for_takes_what_it_was_computed_for) {
  const std::uint64_t entries = 5000;
  const std::uint64_t builds = 3000;
  const std::string text(200, 't');
  Stash stash(Segment::bytes_for(builds, entries, entries * (text.size() + 4)), builds);
  for (std::uint64_t i = 0; i < builds; ++i) {
    BOOST_TEST_REQUIRE(stash.segment->add_build(static_cast<BuildId>(i) + 1, true).has_value());
  }
  for (std::uint64_t i = 0; i < entries; ++i) {
    const std::string name = text + std::to_string(i);
    take(stash.segment->ensure_slot(static_cast<BuildId>(i % builds) + 1, name));
    Segment::EntryFacts facts;
    facts.id = facts.revision = stash.next_id();
    facts.build = static_cast<BuildId>(i % builds) + 1;
    facts.name = name;
    facts.length = 1'000'000'000;
    facts.state = EntryState::clean;
    BOOST_TEST_REQUIRE(stash.segment->publish_record(facts).has_value());
  }
}

// ---- a full tmpfs ----

BOOST_AUTO_TEST_CASE(a_tmpfs_without_room_for_the_tables_is_an_error_and_keeps_nothing,
                     *boost::unit_test::precondition(TinyTmpfs::possible)) {
  const TinyTmpfs tiny(64 * 1024);
  const auto objects = take(shm::ObjectDirectory::open(tiny.path()));
  BOOST_TEST((Segment::create(objects, "s", 4 * 1024 * 1024).error() == std::errc::no_space_on_device));
  BOOST_TEST(take(objects.list("s")).empty());
}

BOOST_AUTO_TEST_CASE(a_tmpfs_that_fills_up_is_an_error_to_one_set_and_the_rest_goes_on,
                     *boost::unit_test::precondition(TinyTmpfs::possible)) {
  const TinyTmpfs tiny(2 * 1024 * 1024);
  const auto objects = take(shm::ObjectDirectory::open(tiny.path()));
  const auto one = take(Segment::create(objects, "s", 16 * 1024 * 1024));
  take(one->install(true));
  take(try_set_pattern(*one, 1, "before", 50'000));
  BOOST_TEST((try_set_pattern(*one, 1, "large", 8 * 1024 * 1024).error() == std::errc::no_space_on_device));
  tiny.fill();
  BOOST_TEST((try_set_pattern(*one, 1, "large", 8 * 1024 * 1024).error() == std::errc::no_space_on_device));
  BOOST_TEST(disorder(*one) == "");
  BOOST_TEST(is_pattern(shm::entry_value(*one->find(1, "before")), 1, 1));
  one->erase(*one->find(1, "before"));
  one->reclaim();
  take(try_set_pattern(*one, 1, "after", 40'000));  // in the memory that it has
  BOOST_TEST(disorder(*one) == "");
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace stepstash::test
