// SPDX-License-Identifier: Apache-2.0
// What is copied out of a damaged segment whose database is another one, when that database's list has gone first.
#include "daemon/salvage.hpp"

#include <boost/test/unit_test.hpp>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "shm/hash.hpp"
#include "shm/object.hpp"
#include "shm/segment.hpp"
#include "tests/support/temp_dir.hpp"

using namespace stepstash;

namespace {

struct TwoSegments {
  test::TempDir directory;
  shm::ObjectDirectory objects = shm::ObjectDirectory::open(directory.path().string()).value();
  std::unique_ptr<shm::Segment> from = create("from", 4 << 20);

  std::unique_ptr<shm::Segment> create(const std::string& name, std::uint64_t bytes) {
    auto segment = shm::Segment::create(objects, name, bytes).value();
    segment->install(/*keep_former=*/false).value();
    return segment;
  }

  static shm::Segment::EntryFacts facts(std::uint64_t id, const std::string& name, const std::string& value,
                                        shm::EntryState state) {
    shm::Segment::EntryFacts facts;
    facts.id = facts.revision = id;
    facts.build = 1;
    facts.name = name;
    facts.length = value.size();
    facts.value_hash = shm::hash_bytes(std::as_bytes(std::span(value)));
    facts.state = state;
    return facts;
  }

  static void put(shm::Segment& segment, std::uint64_t id, const std::string& name, const std::string& value,
                  shm::EntryState state) {
    const shm::Draft draft = segment.draft(name, "", value.size()).value();
    segment.reserve(draft, value.size()).value();
    segment.ensure_slot(1, name).value();
    std::memcpy(segment.value_bytes(draft).data(), value.data(), value.size());
    segment.publish(draft, facts(id, name, value, state));
  }

  /// A record of the list: its value is in the database alone.
  static void list(shm::Segment& segment, std::uint64_t id, const std::string& name, const std::string& value) {
    segment.ensure_slot(1, name).value();
    segment.publish_record(facts(id, name, value, shm::EntryState::clean)).value();
  }

  static std::string value_of(const shm::Segment& segment, std::string_view name) {
    const shm::Entry* entry = segment.find(1, name);
    if (entry == nullptr) return "(none)";
    if (entry->value_offset == 0) return "(evicted)";
    const auto bytes = shm::entry_value(*entry);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }
};

}  // namespace

BOOST_AUTO_TEST_SUITE(salvage)

BOOST_FIXTURE_TEST_CASE(values_that_another_database_lacks_are_kept_though_they_are_clean, TwoSegments) {
  put(*from, 1, "dirty", "of the segment", shm::EntryState::dirty);
  put(*from, 2, "clean", "in the former database", shm::EntryState::clean);
  put(*from, 3, "listed", "in both", shm::EntryState::clean);
  put(*from, 4, "other", "newer", shm::EntryState::clean);
  const auto into = create("into", 4 << 20);
  list(*into, 3, "listed", "in both");
  list(*into, 2, "other", "older");

  const auto saved = daemon::salvage_to(nullptr, objects, "from", *into).value();

  BOOST_TEST(saved.entries == 3u);
  BOOST_TEST(saved.left_out.empty());
  BOOST_TEST(value_of(*into, "dirty") == "of the segment");
  BOOST_TEST(value_of(*into, "clean") == "in the former database");
  BOOST_TEST(value_of(*into, "other") == "newer");
  BOOST_TEST(value_of(*into, "listed") == "(evicted)");  // the database has it
  into->for_each([](const shm::Entry& entry) {
    if (entry.value_offset != 0) BOOST_TEST((entry.state.load() == shm::EntryState::dirty));  // it is written
  });
}

BOOST_FIXTURE_TEST_CASE(a_value_that_finds_no_room_is_named_whether_it_was_dirty_or_clean, TwoSegments) {
  put(*from, 1, "dirty", std::string(1'000'000, 'd'), shm::EntryState::dirty);
  put(*from, 2, "clean", std::string(1'000'000, 'c'), shm::EntryState::clean);
  const auto into = create("into", 1 << 20);

  const auto saved = daemon::salvage_to(nullptr, objects, "from", *into).value();

  BOOST_TEST(saved.entries == 0u);
  BOOST_TEST_REQUIRE(saved.left_out.size() == 2u);
  BOOST_TEST(saved.left_out[0].find("\"dirty\"") != std::string::npos, saved.left_out[0]);
  BOOST_TEST(saved.left_out[1].find("\"clean\"") != std::string::npos, saved.left_out[1]);
}

BOOST_AUTO_TEST_SUITE_END()
