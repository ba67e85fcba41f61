// SPDX-License-Identifier: Apache-2.0
// Warm, cold and damaged starts on databases that agree with the segment or do not.
#include "daemon/startup.hpp"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>

#include "shm/hash.hpp"
#include "tests/daemon/engine.hpp"

using namespace stepstash;
using namespace stepstash::test;

namespace {

struct Starting {
  MemoryStore disk;
  ManualClock clock;
  TempDir directory;

  std::string segment_path() const { return directory.file(Engine::kSegment); }
  void forget_segment() const { std::filesystem::remove(segment_path()); }
  /// Whether there is an object of the segment's name with this behind it.
  bool has_object(const std::string& suffix) const { return std::filesystem::exists(segment_path() + suffix); }
  /// Sets build 1, "evicted", and then of build 2 what it takes for it to be evicted.
  static void set_until_evicted(Engine& engine) {
    engine.set(1, "evicted", std::string(200'000, 'e'));
    engine.flush().value();
    for (int i = 0; engine.value(1, "evicted") != "(evicted)"; ++i) {
      BOOST_REQUIRE(i < 100);
      engine.set(2, std::to_string(i), std::string(200'000, 'f'));
      engine.flush().value();
    }
  }
  /// Changes one byte of the segment.
  void damage(std::uint64_t offset) const {
    std::fstream file(segment_path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(offset));
    const auto byte = static_cast<char>(file.get());
    file.seekp(static_cast<std::streamoff>(offset));
    file.put(static_cast<char>(byte ^ 1));
  }
};

/// Covered by the header's checksum, and needed for nothing that is saved.
constexpr std::uint64_t kSegmentIdOffset = offsetof(shm::Header, segment_id);

/// Empty values with long names in a number of builds.
void fill(persist::BackingStore& database, std::size_t entries, BuildId builds, const std::string& source = {},
          std::uint64_t first_id = 1) {
  std::vector<std::string> names;
  for (std::size_t i = 0; i < entries; ++i) names.push_back("name " + std::to_string(i) + std::string(240, 'n'));
  persist::Batch batch;
  for (std::size_t i = 0; i < entries; ++i) {
    batch.entries.push_back({.id = first_id + i,
                             .revision = first_id + i,
                             .buildid = 1 + static_cast<BuildId>(i) % builds,
                             .name = names[i],
                             .source = source,
                             .value_hash = shm::hash_bytes({}),
                             .value = {}});
  }
  database.commit(batch).value();
}

bool mentions(const std::vector<std::string>& lines, std::string_view text) {
  return std::any_of(lines.begin(), lines.end(), [&](auto& line) { return line.find(text) != line.npos; });
}

std::vector<std::string> phases(const Engine& engine) {
  std::vector<std::string> names;
  for (const auto& time : engine.startup().phases) names.emplace_back(daemon::name_of(time.phase));
  return names;
}

using Names = std::vector<std::string>;

/// Sets values of build 1, of 100,000 bytes each, that the database does not take, and returns how many.
int set_dirty(Engine& engine, std::uint64_t bytes) {
  const int values = static_cast<int>(bytes / 100'000);
  for (int i = 0; i < values; ++i)
    engine.set(1, std::to_string(i), std::string(100'000, static_cast<char>('a' + i % 26)));
  return values;
}

/// Every value of set_dirty() is there, in memory or to be had from the database, and in the database after a flush.
void expect_all_dirty(Engine& engine, int values) {
  for (int i = 0; i < values; ++i) {
    const std::string name = std::to_string(i);
    BOOST_REQUIRE(engine.load(1, name).has_value());
    BOOST_TEST((engine.value(1, name) == std::string(100'000, static_cast<char>('a' + i % 26))));
    engine.flush().value();
  }
}

}  // namespace

BOOST_FIXTURE_TEST_SUITE(startup, Starting)

BOOST_AUTO_TEST_CASE(a_warm_start_keeps_what_was_dirty_and_writes_it) {
  FaultyStore faulty(disk);
  faulty.fail_commits(Errc::not_durable);
  std::uint64_t id = 0;
  {
    Engine engine(directory, faulty, clock);
    id = engine.set(1, "v", "value").id;
    engine.store().builds().finish(2, 100).value();
  }
  BOOST_TEST((rows(disk) == Rows{}));
  faulty.heal();
  Engine engine(directory, faulty, clock);
  BOOST_TEST(engine.startup().entries_kept == 1u);
  BOOST_TEST(!engine.startup().all_dirty);
  BOOST_TEST(engine.startup().set_aside.empty());
  BOOST_TEST(phases(engine) == (Names{"counting_entries", "attaching_segment"}));
  BOOST_TEST(engine.value(1, "v") == "value");
  BOOST_TEST(engine.segment().find(1, "v")->id == id);
  BOOST_TEST(engine.flusher().dirty_values() == 1u);
  engine.flush().value();
  BOOST_TEST((rows(disk) == Rows{"1/v=value"}));
  BOOST_TEST(disk.load_build(2).value()->complete_at.value() == 100);
}

BOOST_AUTO_TEST_CASE(a_cold_start_knows_all_entries_and_has_no_value_yet) {
  std::uint64_t id = 0;
  {
    Engine engine(directory, disk, clock);
    id = engine.set(1, "v", "value").id;
    engine.set(2, "w", "of a finished build");
    engine.store().builds().finish(2, 100).value();
    engine.store().builds().hold(2, true).value();
    engine.flush().value();
  }
  forget_segment();
  Engine engine(directory, disk, clock);
  BOOST_TEST(engine.startup().entries_loaded == 2u);
  BOOST_TEST(engine.value(1, "v") == "(evicted)");
  BOOST_TEST(engine.segment().find(1, "v")->id == id);
  BOOST_TEST(engine.segment().find(1, "v")->length == 5u);
  BOOST_TEST(engine.list(1).entries.size() == 1u);
  BOOST_TEST(engine.load(1, "v").has_value());
  BOOST_TEST(engine.value(1, "v") == "value");
  BOOST_TEST(engine.prune(101) == 0u);  // held
  engine.store().builds().hold(2, false).value();
  BOOST_TEST(engine.prune(101) == 1u);
  BOOST_TEST(engine.set(3, "new", "v").id > id + 1);
}

BOOST_AUTO_TEST_CASE(a_database_with_more_entries_than_the_segment_holds_makes_it_larger) {
  fill(disk, 20'000, 3000, std::string(200, 's'));
  Engine engine(directory, disk, clock);
  BOOST_TEST(engine.segment().bytes() > Engine::kSegmentBytes);
  BOOST_TEST(engine.startup().entries_loaded == 20'000u);
  BOOST_TEST(engine.segment().index().entries() == 20'000u);
  BOOST_TEST(engine.set(5000, "and there is room for more", std::string(100'000, 'v')).id > 20'000u);
}

BOOST_AUTO_TEST_CASE(another_database_gets_all_that_is_resident) {
  {
    Engine engine(directory, disk, clock);
    engine.set(1, "clean", "clean value");
    engine.flush().value();
    engine.set(1, "dirty", "dirty value");
    engine.store().builds().finish(1, 100).value();
  }
  MemoryStore other(0xd1ff);
  Engine engine(directory, other, clock);
  BOOST_TEST(engine.startup().all_dirty);
  BOOST_TEST(mentions(engine.startup().set_aside, "database"));
  BOOST_TEST(engine.value(1, "clean") == "clean value");
  engine.flush().value();
  BOOST_TEST((rows(other) == Rows{"1/clean=clean value", "1/dirty=dirty value"}));
  BOOST_TEST(other.load_build(1).value()->complete_at.value() == 100);
}

BOOST_AUTO_TEST_CASE(a_full_segment_and_another_database_with_many_entries_meet_in_a_larger_segment) {
  MemoryStore other(0xd1ff);
  fill(other, 3'000, 500);
  std::uint64_t values = 0;
  {
    Engine engine(directory, disk, clock);
    for (; engine.segment().heap().free_bytes() > 400'000; ++values) {
      engine.set(1, std::to_string(values), std::string(200'000, 'v'));
    }
    engine.flush().value();
    BOOST_REQUIRE(engine.store().catalog().evicted() == 0u);
  }
  Engine engine(directory, other, clock);
  BOOST_TEST(engine.segment().bytes() > Engine::kSegmentBytes);
  BOOST_TEST(engine.segment().index().entries() == 3'000 + values);
  BOOST_TEST(phases(engine) == (Names{"counting_entries", "attaching_segment", "reading_list", "enlarging_segment"}));
  for (std::uint64_t i = 0; i < values; ++i) {
    BOOST_TEST(engine.value(1, std::to_string(i)).substr(0, 9) == "vvvvvvvvv");
  }
  engine.flush().value();
  BOOST_TEST(rows(other).size() == 3'000 + values);
}

BOOST_AUTO_TEST_CASE(evicted_values_that_another_database_lacks_are_named_also_in_a_larger_segment) {
  MemoryStore other(0xd1ff);
  fill(other, 20'000, 500);
  {
    Engine engine(directory, disk, clock);
    for (int i = 0; engine.store().catalog().evicted() == 0; ++i) {
      engine.set(1, std::to_string(i), std::string(200'000, 'v'));
      engine.flush().value();
    }
    BOOST_REQUIRE(engine.value(1, "0") == "(evicted)");
  }
  Engine engine(directory, other, clock);
  BOOST_TEST(engine.segment().bytes() > Engine::kSegmentBytes);
  BOOST_TEST(engine.value(1, "0") == "(miss)");
  BOOST_TEST(mentions(engine.startup().set_aside, "build 1, name \"0\""));
}

BOOST_AUTO_TEST_CASE(the_same_id_and_revision_in_another_database_are_not_taken_for_the_same_value) {
  MemoryStore other(0xd1ff);
  {
    const TempDir elsewhere;
    Engine theirs(elsewhere, other, clock);
    theirs.set(1, "report", "theirs");
    theirs.set(2, "other", std::string(300 << 10, 'o'));
    theirs.flush().value();
  }
  {
    Engine engine(directory, disk, clock);
    engine.set(1, "report", "ours");
    engine.set(3, "mine", std::string(300 << 10, 'm'));
    engine.flush().value();
  }
  Engine engine(directory, other, clock);
  engine.flush().value();
  BOOST_TEST(engine.value(1, "report") == "ours");
  std::set<std::uint64_t> revisions;
  engine.segment().for_each([&](const shm::Entry& entry) { revisions.insert(entry.revision); });
  BOOST_TEST(revisions.size() == 3u);
  BOOST_TEST((rows(other) == Rows{"1/report=ours", "2/other=" + std::string(300 << 10, 'o'),
                                  "3/mine=" + std::string(300 << 10, 'm')}));
}

BOOST_AUTO_TEST_CASE(values_that_only_the_former_database_has_are_named_and_not_served) {
  {
    Engine engine(directory, disk, clock);
    set_until_evicted(engine);
  }
  MemoryStore other(0xd1ff);
  Engine engine(directory, other, clock);
  BOOST_TEST(mentions(engine.startup().set_aside, "\"evicted\""));
  BOOST_TEST(engine.value(1, "evicted") == "(miss)");
}

BOOST_AUTO_TEST_CASE(an_older_copy_of_the_database_is_brought_up_to_date) {
  MemoryStore older(disk.store_id());
  {
    Engine engine(directory, disk, clock);
    engine.set(1, "v", "value");
    engine.flush().value();
    engine.set(1, "w", "value");
    engine.flush().value();
  }
  Engine engine(directory, older, clock);  // the same database, before any of that
  BOOST_TEST(engine.startup().all_dirty);
  engine.flush().value();
  BOOST_TEST((rows(older) == Rows{"1/v=value", "1/w=value"}));
}

BOOST_AUTO_TEST_CASE(ids_go_on_behind_those_of_the_database_and_of_the_segment) {
  FaultyStore faulty(disk);
  std::uint64_t last = 0;
  {
    Engine engine(directory, faulty, clock);
    faulty.fail_commits(Errc::not_durable);
    last = engine.set(1, "v", "value").revision;  // never in the database: lost with the segment
  }
  faulty.heal();
  forget_segment();
  {
    Engine engine(directory, faulty, clock);
    BOOST_TEST(engine.value(1, "v") == "(miss)");
    const auto next = engine.set(1, "v", "value");
    BOOST_TEST(next.id > last);
    last = next.revision;
  }
  MemoryStore other(0xd1ff);  // whose own count is at 1
  Engine engine(directory, other, clock);
  BOOST_TEST(engine.set(1, "w", "value").id > last);
}

BOOST_AUTO_TEST_CASE(a_damaged_segment_is_kept_aside_and_its_dirty_values_are_saved) {
  FaultyStore faulty(disk);
  {
    Engine engine(directory, faulty, clock);
    engine.set(1, "clean", "clean value");
    engine.flush().value();
    faulty.fail_commits(Errc::not_durable);
    engine.set(1, "dirty", "dirty value");
    engine.store().builds().finish(1, 100).value();
  }
  faulty.heal();
  damage(kSegmentIdOffset);
  Engine engine(directory, faulty, clock);
  BOOST_TEST(engine.startup().entries_salvaged == 1u);
  BOOST_TEST(mentions(engine.startup().set_aside, "damaged"));
  BOOST_TEST(engine.value(1, "dirty") == "dirty value");
  BOOST_TEST(engine.load(1, "clean").has_value());
  BOOST_TEST(engine.value(1, "clean") == "clean value");
  BOOST_TEST(engine.prune(101) == 2u);
  BOOST_TEST(has_object(".damaged.1"));
}

BOOST_AUTO_TEST_CASE(a_damaged_segment_and_another_database_are_both_served) {
  std::vector<std::uint64_t> ids;
  {
    Engine engine(directory, disk, clock);
    set_until_evicted(engine);
    ids.push_back(engine.set(1, "clean", "clean value").id);
    engine.flush().value();
    ids.push_back(engine.set(1, "dirty", "dirty value").id);
  }
  damage(kSegmentIdOffset);
  MemoryStore other(0xd1ff);  // which has given the same ids to other names
  persist::Batch batch;
  const std::string theirs = "theirs";
  for (const std::uint64_t id : ids) {
    batch.entries.push_back({.id = id,
                             .revision = id,
                             .buildid = 3,
                             .name = id == ids[0] ? "a" : "b",
                             .source = {},
                             .value_hash = shm::hash_bytes(std::as_bytes(std::span(theirs))),
                             .value = std::as_bytes(std::span(theirs))});
  }
  other.commit(batch).value();
  Engine engine(directory, other, clock);
  BOOST_TEST(engine.value(1, "clean") == "clean value");
  BOOST_TEST(engine.value(1, "dirty") == "dirty value");
  BOOST_TEST(engine.value(1, "evicted") == "(miss)");
  BOOST_TEST(mentions(engine.startup().set_aside, "\"evicted\""));
  engine.flush().value();
  Rows all = rows(other);
  std::erase_if(all, [](const std::string& row) { return row.starts_with("2/"); });
  // Which of ours gets the smaller id is a matter of the index's secret.
  std::sort(all.begin(), all.end());
  BOOST_TEST((all == Rows{"1/clean=clean value", "1/dirty=dirty value", "3/a=theirs", "3/b=theirs"}));
}

BOOST_AUTO_TEST_CASE(dirty_values_of_a_damaged_segment_that_fit_in_no_more_go_to_the_database) {
  FaultyStore faulty(disk);
  faulty.fail_commits(Errc::not_durable);
  int values = 0;
  {
    Engine engine(directory, faulty, clock, 2 * Engine::kSegmentBytes);
    values = set_dirty(engine, 6'000'000);
  }
  faulty.heal();
  damage(kSegmentIdOffset);
  Engine engine(directory, faulty, clock);
  BOOST_TEST(engine.segment().bytes() == Engine::kSegmentBytes);
  BOOST_TEST(engine.startup().entries_salvaged == static_cast<std::uint64_t>(values));
  BOOST_TEST(engine.startup().set_aside.size() == 1u);  // the segment
  BOOST_TEST(phases(engine) == (Names{"counting_entries", "attaching_segment", "salvaging_segment", "writing_out"}));
  BOOST_TEST(rows(disk).size() == static_cast<std::size_t>(values));  // before any flush
  expect_all_dirty(engine, values);
}

BOOST_AUTO_TEST_CASE(dirty_values_of_a_damaged_segment_make_room_for_the_list_of_the_database) {
  FaultyStore faulty(disk);
  faulty.fail_commits(Errc::not_durable);
  int values = 0;
  {
    Engine engine(directory, faulty, clock);
    values = set_dirty(engine, 3'400'000);
  }
  faulty.heal();
  damage(kSegmentIdOffset);
  fill(disk, 20'000, 500, {}, std::uint64_t{1} << 30);
  Engine engine(directory, faulty, clock);
  BOOST_TEST(engine.segment().index().entries() == 20'000u + static_cast<std::uint64_t>(values));
  BOOST_TEST(engine.startup().set_aside.size() == 1u);  // the segment
  BOOST_TEST(phases(engine) ==
             (Names{"counting_entries", "attaching_segment", "salvaging_segment", "reading_list", "writing_out"}));
  expect_all_dirty(engine, values);
}

BOOST_AUTO_TEST_CASE(a_start_that_cannot_read_the_list_fails_and_leaves_no_new_segment) {
  FaultyStore faulty(disk);
  const auto objects = shm::ObjectDirectory::open(directory.path()).value();
  std::vector<std::string> told;
  const auto start = [&](std::uint64_t bytes) {
    return daemon::open_segment(
        objects, Engine::kSegment, bytes, faulty, [](daemon::Phase) {}, told);
  };
  faulty.fail_lists(Errc::corrupt_database);
  BOOST_TEST((start(Engine::kSegmentBytes).error() == Errc::corrupt_database));  // none to create
  BOOST_TEST(!has_object(".new"));
  BOOST_TEST(!has_object(""));
  faulty.heal();
  {
    Engine engine(directory, faulty, clock);
    faulty.fail_commits(Errc::not_durable);
    engine.set(1, "dirty", "dirty value");
  }
  faulty.fail_lists(Errc::corrupt_database);
  BOOST_TEST((start(2 * Engine::kSegmentBytes).error() == Errc::corrupt_database));  // one to resize
  BOOST_TEST(!has_object(".new"));
  damage(kSegmentIdOffset);
  BOOST_TEST((start(Engine::kSegmentBytes).error() == Errc::corrupt_database));  // one to salvage
  BOOST_TEST(!has_object(".new"));
  BOOST_TEST(!has_object(".damaged.1"));
  BOOST_TEST(told.empty());
  faulty.heal();
  Engine engine(directory, faulty, clock);
  BOOST_TEST(engine.value(1, "dirty") == "dirty value");
}

BOOST_AUTO_TEST_CASE(a_start_that_fails_tells_what_the_next_one_will_not_find) {
  FaultyStore faulty(disk);
  std::uint64_t slot = 0;
  {
    Engine engine(directory, faulty, clock);
    engine.set(1, "v", "value");
    engine.flush().value();
    slot = engine.segment().offset_of(*engine.segment().find(1, "v")) + offsetof(shm::Entry, revision);
  }
  damage(slot);
  faulty.fail_lists(Errc::not_durable);
  const auto objects = shm::ObjectDirectory::open(directory.path()).value();
  std::vector<std::string> told;
  const auto failed = daemon::open_segment(
      objects, Engine::kSegment, Engine::kSegmentBytes, faulty, [](daemon::Phase) {}, told);
  BOOST_TEST((failed.error() == Errc::not_durable));
  BOOST_TEST(mentions(told, "damaged"));
  faulty.heal();
  Engine engine(directory, faulty, clock);  // which asks the list nevertheless
  BOOST_TEST(engine.load(1, "v").has_value());
}

BOOST_AUTO_TEST_CASE(no_id_is_given_out_that_only_another_database_has_reserved) {
  {
    Engine engine(directory, disk, clock);
    engine.set(1, "v", "value");
  }
  MemoryStore other(0xd1ff);
  FaultyStore faulty(other);
  faulty.fail_reservations(Errc::not_durable);
  Engine engine(directory, faulty, clock);
  BOOST_TEST((engine.try_set(Engine::params(1, "w"), "value", 20ms).error() == Errc::out_of_ids));
  faulty.heal();
  engine.flusher().kick();
  engine.run_until(
      [&] { return engine.segment().header().id_limit.load() > engine.segment().header().next_id.load(); });
  BOOST_TEST(engine.try_set(Engine::params(1, "w"), "value").has_value());
}

BOOST_AUTO_TEST_CASE(a_moved_segment_goes_on_with_the_ids_that_were_reserved) {
  FaultyStore faulty(disk);
  std::uint64_t last = 0;
  {
    Engine engine(directory, faulty, clock);
    last = engine.set(1, "v", "value").id;
    engine.flush().value();
  }
  faulty.fail_reservations(Errc::not_durable);
  Engine engine(directory, faulty, clock, 2 * Engine::kSegmentBytes);
  BOOST_TEST(engine.segment().bytes() == 2 * Engine::kSegmentBytes);
  BOOST_TEST(engine.set(1, "w", "value").id == last + 1);
}

BOOST_AUTO_TEST_CASE(a_segment_whose_size_cannot_change_now_is_served_as_it_is) {
  FaultyStore faulty(disk);
  faulty.fail_commits(Errc::not_durable);
  {
    Engine engine(directory, faulty, clock);
    engine.set(1, "dirty", "dirty value");
  }
  std::filesystem::create_directory(segment_path() + ".new");  // no segment can be made
  Engine engine(directory, faulty, clock, 2 * Engine::kSegmentBytes);
  BOOST_TEST(engine.segment().bytes() == Engine::kSegmentBytes);
  BOOST_TEST(engine.startup().entries_kept == 1u);
  BOOST_TEST(engine.startup().set_aside.empty());
  BOOST_TEST(engine.value(1, "dirty") == "dirty value");
  BOOST_TEST(phases(engine) == (Names{"counting_entries", "attaching_segment", "resizing_segment"}));
}

BOOST_AUTO_TEST_CASE(a_start_cut_short_between_the_two_steps_of_replacing_a_damaged_segment_keeps_both) {
  FaultyStore faulty(disk);
  faulty.fail_commits(Errc::not_durable);
  {
    Engine engine(directory, faulty, clock);
    engine.set(1, "dirty", "dirty value");
  }
  damage(kSegmentIdOffset);
  { const Engine engine(directory, faulty, clock); }
  // As install() leaves it after its first step.
  std::filesystem::rename(segment_path(), segment_path() + ".new");
  Engine engine(directory, faulty, clock);
  BOOST_TEST(engine.startup().entries_kept == 1u);
  BOOST_TEST(engine.value(1, "dirty") == "dirty value");
  BOOST_TEST(engine.startup().kept.size() == 1u);
  BOOST_TEST(!has_object(".new"));
}

BOOST_AUTO_TEST_CASE(without_its_database_the_segment_keeps_what_only_it_knows_of_builds) {
  FaultyStore faulty(disk);
  {
    Engine engine(directory, faulty, clock);
    engine.set(1, "v", "value");
    engine.flush().value();
    faulty.fail_commits(Errc::not_durable);
    engine.drop(1);
    engine.store().builds().finish(3, 100).value();
  }
  {
    Engine engine(directory, daemon::Database::Absence{Errc::newer_database, "of a newer version"}, clock);
    engine.segment().header().id_limit.store(engine.segment().header().next_id.load());  // and no id is left
    BOOST_TEST((engine.try_set(Engine::params(1, "x"), "v", 20ms).error() == Errc::out_of_ids));
    BOOST_TEST((engine.try_set(Engine::params(3, "x"), "v", 20ms).error() == Errc::out_of_ids));
    BOOST_TEST((engine.try_set(Engine::params(4, "x"), "v", 20ms).error() == Errc::out_of_ids));
    BOOST_TEST(engine.segment().builds() == 2u);
  }
  faulty.heal();
  Engine engine(directory, faulty, clock);
  engine.flush().value();
  BOOST_TEST((rows(disk) == Rows{}));
  BOOST_TEST(disk.load_build(3).value()->complete_at.value() == 100);
}

BOOST_AUTO_TEST_CASE(a_damaged_dirty_value_is_named_and_the_rest_is_served) {
  FaultyStore faulty(disk);
  faulty.fail_commits(Errc::not_durable);
  std::uint64_t offset = 0;
  {
    Engine engine(directory, faulty, clock);
    engine.set(1, "a", "sound value");
    engine.set(1, "bad", "damaged value");
    const shm::Entry* entry = engine.segment().find(1, "bad");
    offset = engine.segment().offset_of(*entry) + entry->value_offset;
  }
  damage(offset);
  faulty.heal();
  Engine engine(directory, faulty, clock);
  BOOST_TEST(mentions(engine.startup().set_aside, "\"bad\""));
  BOOST_TEST(engine.value(1, "a") == "sound value");
  BOOST_TEST(engine.value(1, "bad") != "damaged value");
  engine.flush().value();
  BOOST_TEST((rows(disk) == Rows{"1/a=sound value", "1/bad=(value does not match its checksum)"}));
}

BOOST_AUTO_TEST_CASE(a_damaged_dirty_value_is_named_also_if_the_segment_is_moved_to_another_size) {
  FaultyStore faulty(disk);
  faulty.fail_commits(Errc::not_durable);
  std::uint64_t offset = 0;
  {
    Engine engine(directory, faulty, clock);
    engine.set(1, "bad", "damaged value");
    const shm::Entry* entry = engine.segment().find(1, "bad");
    offset = engine.segment().offset_of(*entry) + entry->value_offset;
  }
  damage(offset);
  faulty.heal();
  Engine engine(directory, faulty, clock, 2 * Engine::kSegmentBytes);
  BOOST_TEST(engine.segment().bytes() == 2 * Engine::kSegmentBytes);
  BOOST_TEST(mentions(engine.startup().set_aside, "\"bad\""));
  engine.flush().value();
  BOOST_TEST((rows(disk) == Rows{"1/bad=(value does not match its checksum)"}));
}

BOOST_AUTO_TEST_CASE(what_was_lost_here_takes_the_row_of_no_other_value_in_another_database) {
  MemoryStore other(0xd1ff);
  {
    const TempDir elsewhere;
    Engine theirs(elsewhere, other, clock);
    theirs.set(1, "theirs", "their value");
    theirs.flush().value();
  }
  FaultyStore faulty(disk);
  faulty.fail_commits(Errc::not_durable);
  std::uint64_t offset = 0;
  {
    Engine engine(directory, faulty, clock);
    engine.set(2, "ours", "damaged value");  // with the same id
    const shm::Entry* entry = engine.segment().find(2, "ours");
    offset = engine.segment().offset_of(*entry) + entry->value_offset;
  }
  damage(offset);
  Engine engine(directory, other, clock);
  engine.flush().value();
  BOOST_TEST((rows(other) == Rows{"1/theirs=their value", "2/ours=(value does not match its checksum)"}));
  BOOST_TEST(engine.load(1, "theirs").has_value());
  BOOST_TEST(engine.value(1, "theirs") == "their value");
  BOOST_TEST(engine.load(2, "ours").error() == Errc::corrupt_value);
}

BOOST_AUTO_TEST_CASE(a_copy_from_before_ids_were_reserved_is_an_older_copy) {
  // As a backup: with all that was committed, and without the range of ids that was reserved after it.
  MemoryStore copy(disk.store_id());
  FaultyStore faulty(disk);
  std::uint64_t last = 0;
  {
    Engine engine(directory, faulty, clock);
    engine.set(1, "v", "value");
    engine.flush().value();
    {
      const TempDir elsewhere;
      Engine writes_it(elsewhere, copy, clock);
      writes_it.set(1, "v", "value");
      writes_it.flush().value();
    }
    BOOST_TEST(copy.commit_count() == disk.commit_count());
    faulty.fail_commits(Errc::not_durable);
    shm::Header& header = engine.segment().header();
    header.next_id.store(header.id_limit.load() - 2);  // it gave nearly all that it had
    engine.flusher().kick();
    engine.set(1, "w", "value");
    const std::uint64_t limit = header.id_limit.load();
    engine.run_until([&] { return header.id_limit.load() != limit; });
    last = engine.set(1, "x", "value").id;  // of the new range, and acknowledged in memory
  }
  {
    Engine engine(directory, copy, clock);
    BOOST_TEST(engine.startup().all_dirty);
  }
  const TempDir elsewhere;  // the loss of power: the segment is gone
  Engine cold(elsewhere, copy, clock);
  BOOST_TEST(cold.set(1, "y", "value").id > last);
}

BOOST_AUTO_TEST_CASE(a_drop_that_the_database_has_not_heard_of_holds_in_a_damaged_segment_too) {
  FaultyStore faulty(disk);
  {
    Engine engine(directory, faulty, clock);
    engine.set(1, "v", "value");
    engine.set(2, "v", "value");
    engine.flush().value();
    faulty.fail_commits(Errc::not_durable);
    engine.drop(1);
  }
  faulty.heal();
  damage(kSegmentIdOffset);
  Engine engine(directory, faulty, clock);
  BOOST_TEST(engine.value(1, "v") == "(miss)");
  BOOST_TEST(engine.value(2, "v") == "(evicted)");
  engine.flush().value();
  BOOST_TEST((rows(disk) == Rows{"2/v=value"}));
}

BOOST_AUTO_TEST_CASE(a_half_made_segment_of_a_start_that_was_killed_is_replaced) {
  std::ofstream(directory.file(std::string(Engine::kSegment) + ".new")) << "half made";
  Engine engine(directory, disk, clock);
  engine.set(1, "v", "value");
  BOOST_TEST(!has_object(".new"));
}

BOOST_AUTO_TEST_CASE(a_segment_of_another_size_than_configured_is_moved_with_what_is_dirty) {
  FaultyStore faulty(disk);
  {
    Engine engine(directory, faulty, clock);
    engine.set(1, "clean", "clean value");
    engine.flush().value();
    faulty.fail_commits(Errc::not_durable);
    engine.set(1, "dirty", "dirty value");
  }
  faulty.heal();
  Engine engine(directory, faulty, clock, 2 * Engine::kSegmentBytes);
  BOOST_TEST(engine.segment().bytes() == 2 * Engine::kSegmentBytes);
  BOOST_TEST(engine.startup().set_aside.empty());
  BOOST_TEST(engine.value(1, "dirty") == "dirty value");
  BOOST_TEST(engine.load(1, "clean").has_value());
  BOOST_TEST(engine.value(1, "clean") == "clean value");
}

BOOST_AUTO_TEST_SUITE_END()
