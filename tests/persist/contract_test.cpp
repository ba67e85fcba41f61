// SPDX-License-Identifier: Apache-2.0
// What backing_store.hpp promises, tried on every implementation there is.
#include <boost/mpl/list.hpp>
#include <limits>

#include "persist/sqlite_store.hpp"
#include "tests/persist/values.hpp"
#include "tests/support/faulty_store.hpp"
#include "tests/support/memory_store.hpp"
#include "tests/support/temp_dir.hpp"

namespace stepstash::test {
namespace {

using persist::kChunkBytes;
using persist::kInlineBytes;

struct InMemory {
  MemoryStore memory;
  persist::BackingStore& store = memory;
};

struct InSqlite {
  TempDir directory;
  std::unique_ptr<persist::SqliteStore> owner =
      persist::SqliteStore::open({.path = directory.file("build-data.sqlite")}).value();
  persist::BackingStore& store = *owner;
};

struct BehindFaultyStore {
  MemoryStore memory;
  FaultyStore faulty{memory};
  persist::BackingStore& store = faulty;
};

using Stores = boost::mpl::list<InMemory, InSqlite, BehindFaultyStore>;

BOOST_AUTO_TEST_SUITE(contract)

BOOST_AUTO_TEST_CASE_TEMPLATE(a_value_of_any_length_comes_back_as_it_went, Store, Stores) {
  Store it;
  std::uint64_t id = 0;
  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, kInlineBytes - 1, kInlineBytes, kInlineBytes + 1,
                                 kChunkBytes - 1, kChunkBytes, kChunkBytes + 1, 20 * kChunkBytes + 7}) {
    ++id;
    const Bytes value = pattern(size, id);
    BOOST_TEST_REQUIRE(set(it.store, row(id, id, 7, "value " + std::to_string(id), value)).has_value());
    BOOST_TEST(has(it.store, id, id, value), "size " << size);
  }
  BOOST_TEST(entries(it.store).size() == id);
}

BOOST_AUTO_TEST_CASE_TEMPLATE(an_entry_comes_back_with_all_its_words, Store, Stores) {
  Store it;
  const Bytes value = pattern(300, 1);
  const std::string name = "r\xC3\xA9sultats \xF0\x9F\x98\x80";
  BOOST_TEST_REQUIRE(set(it.store, row(11, 12, 9223372036854775807, name, value, "")).has_value());
  const auto all = entries(it.store);
  BOOST_TEST_REQUIRE(all.size() == 1u);
  BOOST_TEST(all[0].id == 11u);
  BOOST_TEST(all[0].revision == 12u);
  BOOST_TEST(all[0].buildid == 9223372036854775807);
  BOOST_TEST(all[0].length == 300u);
  BOOST_TEST(all[0].name == name);
  BOOST_TEST(all[0].source == "");
  BOOST_TEST(all[0].value_hash == ~std::uint64_t{12});
}

BOOST_AUTO_TEST_CASE_TEMPLATE(the_empty_name_is_a_name, Store, Stores) {
  Store it;
  const Bytes value = pattern(3, 1);
  BOOST_TEST_REQUIRE(set(it.store, row(1, 1, 7, "", value)).has_value());
  BOOST_TEST_REQUIRE(set(it.store, row(2, 2, 7, "x", value)).has_value());
  BOOST_TEST(entries(it.store).size() == 2u);
  BOOST_TEST_REQUIRE(put_build(it.store, 7, {}, {}, 1).has_value());
  BOOST_TEST(ids(it.store) == std::vector<std::uint64_t>{2}, boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE_TEMPLATE(replacing_keeps_the_id_and_forgets_the_old_revision, Store, Stores) {
  Store it;
  const Bytes before = pattern(2 * kChunkBytes, 1);
  const Bytes after = pattern(5 * kChunkBytes + 1, 2);
  BOOST_TEST_REQUIRE(set(it.store, row(5, 5, 7, "tree", before, "step 1")).has_value());
  BOOST_TEST_REQUIRE(set(it.store, row(5, 6, 7, "tree", after, "step 2")).has_value());

  BOOST_TEST(has(it.store, 5, 6, after));
  const auto all = entries(it.store);
  BOOST_TEST_REQUIRE(all.size() == 1u);
  BOOST_TEST(all[0].id == 5u);
  BOOST_TEST(all[0].source == "step 2");
  Bytes out(before.size());
  BOOST_TEST(error_of(it.store.load_value(5, 5, out)) == Errc::not_found);
}

BOOST_AUTO_TEST_CASE_TEMPLATE(a_value_may_shrink_to_a_row_and_grow_to_chunks_again, Store, Stores) {
  Store it;
  std::uint64_t revision = 0;
  for (const std::size_t size : {3 * kChunkBytes, std::size_t{10}, 2 * kChunkBytes, std::size_t{0}, kInlineBytes + 1}) {
    const Bytes value = pattern(size, ++revision);
    BOOST_TEST_REQUIRE(set(it.store, row(5, revision, 7, "tree", value)).has_value());
    BOOST_TEST(has(it.store, 5, revision, value), "size " << size);
    BOOST_TEST(entries(it.store).at(0).length == size);
  }
}

BOOST_AUTO_TEST_CASE_TEMPLATE(loading_wants_the_id_the_revision_and_the_length, Store, Stores) {
  Store it;
  const Bytes value = pattern(100, 1);
  BOOST_TEST_REQUIRE(set(it.store, row(5, 6, 7, "x", value)).has_value());
  Bytes right(100), longer(101), shorter(99);
  BOOST_TEST(it.store.load_value(5, 6, right).has_value());
  BOOST_TEST(error_of(it.store.load_value(4, 6, right)) == Errc::not_found);
  BOOST_TEST(error_of(it.store.load_value(5, 7, right)) == Errc::not_found);
  BOOST_TEST(error_of(it.store.load_value(5, 6, longer)) == Errc::not_found);
  BOOST_TEST(error_of(it.store.load_value(5, 6, shorter)) == Errc::not_found);
}

BOOST_AUTO_TEST_CASE_TEMPLATE(a_drop_spares_later_ids_and_other_builds, Store, Stores) {
  Store it;
  const Bytes small = pattern(10, 1);
  const Bytes large = pattern(kChunkBytes * 2, 2);
  persist::Batch batch;
  std::vector<std::string> names;
  for (std::uint64_t id = 1; id <= 1500; ++id) names.push_back("n" + std::to_string(id * 7919 % 1500));
  for (std::uint64_t id = 1; id <= 1500; ++id) batch.entries.push_back(row(id, id, 7, names[id - 1], small));
  batch.entries.push_back(row(2000, 2000, 8, "other", small));
  batch.entries.push_back(row(900'000, 2001, 7, "large, late", large));
  batch.entries.push_back(row(3, 2002, 7, names[2], large));
  BOOST_TEST_REQUIRE(it.store.commit(batch).has_value());

  BOOST_TEST_REQUIRE(put_build(it.store, 7, {}, {}, 1499).has_value());
  BOOST_TEST(ids(it.store) == (std::vector<std::uint64_t>{1500, 2000, 900'000}), boost::test_tools::per_element());
  BOOST_TEST(has(it.store, 900'000, 2001, large));
}

BOOST_AUTO_TEST_CASE_TEMPLATE(a_batch_drops_first_and_sets_then, Store, Stores) {
  Store it;
  const Bytes before = pattern(10, 1);
  const Bytes after = pattern(20, 2);
  BOOST_TEST_REQUIRE(set(it.store, row(1, 1, 7, "x", before)).has_value());
  persist::Batch batch;
  batch.builds.push_back({7, {}, {}, 4});
  batch.entries.push_back(row(5, 5, 7, "x", after));
  BOOST_TEST_REQUIRE(it.store.commit(batch).has_value());
  BOOST_TEST(ids(it.store) == std::vector<std::uint64_t>{5}, boost::test_tools::per_element());
  BOOST_TEST(has(it.store, 5, 5, after));
}

BOOST_AUTO_TEST_CASE_TEMPLATE(a_stale_row_of_the_same_name_gives_way, Store, Stores) {
  Store it;
  const Bytes before = pattern(2 * kChunkBytes, 1);
  const Bytes after = pattern(20, 2);
  BOOST_TEST_REQUIRE(set(it.store, row(1, 1, 7, "x", before)).has_value());
  BOOST_TEST_REQUIRE(set(it.store, row(5, 5, 7, "x", after)).has_value());
  BOOST_TEST(ids(it.store) == std::vector<std::uint64_t>{5}, boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE_TEMPLATE(repeating_a_batch_changes_nothing_but_the_count, Store, Stores) {
  Store it;
  const Bytes small = pattern(10, 1);
  const Bytes large = pattern(3 * kChunkBytes, 2);
  persist::Batch batch;
  batch.builds.push_back({7, 100, true, 0});
  batch.entries.push_back(row(1, 1, 7, "small", small));
  batch.entries.push_back(row(2, 2, 7, "large", large));
  const std::uint64_t count = it.store.commit_count();
  BOOST_TEST_REQUIRE(it.store.commit(batch).has_value());
  BOOST_TEST_REQUIRE(it.store.commit(batch).has_value());
  BOOST_TEST(it.store.commit_count() == count + 2);
  BOOST_TEST(entries(it.store).size() == 2u);
  BOOST_TEST(has(it.store, 1, 1, small));
  BOOST_TEST(has(it.store, 2, 2, large));
}

BOOST_AUTO_TEST_CASE_TEMPLATE(of_two_revisions_in_one_batch_the_later_stays, Store, Stores) {
  Store it;
  const Bytes first = pattern(2 * kChunkBytes, 1);
  const Bytes second = pattern(30, 2);
  persist::Batch batch;
  batch.entries.push_back(row(1, 1, 7, "x", first));
  batch.entries.push_back(row(1, 2, 7, "x", second));
  BOOST_TEST_REQUIRE(it.store.commit(batch).has_value());
  BOOST_TEST(has(it.store, 1, 2, second));
}

BOOST_AUTO_TEST_CASE_TEMPLATE(facts_of_a_build_leave_each_other_alone, Store, Stores) {
  Store it;
  BOOST_TEST(!it.store.load_build(7).value().has_value());
  BOOST_TEST_REQUIRE(put_build(it.store, 7, 1000).has_value());
  BOOST_TEST_REQUIRE(put_build(it.store, 7, {}, true).has_value());
  auto build = it.store.load_build(7).value();
  BOOST_TEST_REQUIRE(build.has_value());
  BOOST_TEST(build->buildid == 7);
  BOOST_TEST(build->complete_at.value() == 1000);
  BOOST_TEST(build->held);

  BOOST_TEST_REQUIRE(put_build(it.store, 7, -5, false).has_value());
  build = it.store.load_build(7).value();
  BOOST_TEST(build->complete_at.value() == -5);
  BOOST_TEST(!build->held);
}

BOOST_AUTO_TEST_CASE_TEMPLATE(complete_at_survives_the_last_value, Store, Stores) {
  Store it;
  const Bytes value = pattern(10, 1);
  BOOST_TEST_REQUIRE(set(it.store, row(1, 1, 7, "x", value)).has_value());
  BOOST_TEST_REQUIRE(put_build(it.store, 7, 1000).has_value());
  BOOST_TEST_REQUIRE(put_build(it.store, 7, {}, {}, std::numeric_limits<std::uint64_t>::max()).has_value());
  BOOST_TEST(entries(it.store).empty());
  const auto build = it.store.load_build(7).value();
  BOOST_TEST_REQUIRE(build.has_value());
  BOOST_TEST(build->complete_at.value() == 1000);
}

BOOST_AUTO_TEST_CASE_TEMPLATE(a_build_with_data_and_no_facts_is_known_as_running, Store, Stores) {
  Store it;
  const Bytes value = pattern(10, 1);
  BOOST_TEST_REQUIRE(set(it.store, row(1, 1, 7, "x", value)).has_value());
  const auto build = it.store.load_build(7).value();
  BOOST_TEST_REQUIRE(build.has_value());
  BOOST_TEST(!build->complete_at.has_value());
  BOOST_TEST(!build->held);
}

BOOST_AUTO_TEST_CASE_TEMPLATE(a_cold_start_learns_of_every_build_with_data_and_no_other, Store, Stores) {
  Store it;
  const Bytes value = pattern(10, 1);
  BOOST_TEST_REQUIRE(set(it.store, row(1, 1, 9, "x", value, "source")).has_value());
  BOOST_TEST_REQUIRE(set(it.store, row(2, 2, 7, "xyz", value, "")).has_value());
  BOOST_TEST_REQUIRE(set(it.store, row(3, 3, 7, "\xC3\xA9", value, "")).has_value());
  BOOST_TEST_REQUIRE(put_build(it.store, 8, 1000).has_value());
  BOOST_TEST_REQUIRE(put_build(it.store, 9, 2000, true).has_value());

  std::vector<persist::StoredBuild> builds;
  const auto loaded = it.store.load_builds_with_data([&](const persist::StoredBuild& build) {
    builds.push_back(build);
    return true;
  });
  BOOST_TEST_REQUIRE(loaded.has_value());
  BOOST_TEST_REQUIRE(builds.size() == 2u);
  BOOST_TEST(builds[0].buildid == 7);
  BOOST_TEST(!builds[0].complete_at.has_value());
  BOOST_TEST(builds[1].buildid == 9);
  BOOST_TEST(builds[1].complete_at.value() == 2000);
  BOOST_TEST(builds[1].held);

  const auto census = it.store.census().value();
  BOOST_TEST(census.entries == 3u);
  BOOST_TEST(census.text_bytes == 1u + 6u + 3u + 2u);
  BOOST_TEST(census.builds_with_data == 2u);
}

BOOST_AUTO_TEST_CASE_TEMPLATE(an_empty_store_counts_nothing, Store, Stores) {
  Store it;
  const auto census = it.store.census().value();
  BOOST_TEST(census.entries == 0u);
  BOOST_TEST(census.text_bytes == 0u);
  BOOST_TEST(census.builds_with_data == 0u);
  BOOST_TEST(it.store.store_id() != 0u);
}

BOOST_AUTO_TEST_CASE_TEMPLATE(entries_come_in_id_order_until_told_to_stop, Store, Stores) {
  Store it;
  const Bytes value = pattern(10, 1);
  for (const std::uint64_t id : {30, 10, 20}) {
    BOOST_TEST_REQUIRE(set(it.store, row(id, id, 7, std::to_string(id), value)).has_value());
  }
  std::vector<std::uint64_t> seen;
  const auto loaded = it.store.load_entries([&](const persist::StoredEntry& entry) {
    seen.push_back(entry.id);
    return seen.size() < 2;
  });
  BOOST_TEST(loaded.has_value());
  BOOST_TEST(seen == (std::vector<std::uint64_t>{10, 20}), boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE_TEMPLATE(reserved_ranges_never_overlap, Store, Stores) {
  Store it;
  const auto first = it.store.reserve_ids(100, 0).value();
  const auto second = it.store.reserve_ids(1, 0).value();
  const auto third = it.store.reserve_ids(5, 5000).value();
  const auto fourth = it.store.reserve_ids(5, 0).value();
  BOOST_TEST(first >= 1u);
  BOOST_TEST(second >= first + 100);
  BOOST_TEST(third >= 5000u);
  BOOST_TEST(fourth >= third + 5);
}

BOOST_AUTO_TEST_CASE_TEMPLATE(reserved_ids_lie_beyond_those_in_use, Store, Stores) {
  Store it;
  const Bytes value = pattern(10, 1);
  BOOST_TEST_REQUIRE(set(it.store, row(777, 1, 7, "x", value)).has_value());
  BOOST_TEST(it.store.reserve_ids(1, 0).value() > 777u);
}

BOOST_AUTO_TEST_CASE_TEMPLATE(ids_end_at_the_largest_int64_and_not_beyond, Store, Stores) {
  Store it;
  constexpr std::uint64_t kLast = std::numeric_limits<std::int64_t>::max();
  BOOST_TEST(error_of(it.store.reserve_ids(1, kLast + 1)) == Errc::out_of_ids);
  BOOST_TEST(error_of(it.store.reserve_ids(std::numeric_limits<std::uint64_t>::max(), 0)) == Errc::out_of_ids);
  BOOST_TEST(error_of(it.store.reserve_ids(0, 0)) == Errc::invalid_argument);
  BOOST_TEST(it.store.reserve_ids(1, 1).value() == 1u);
}

BOOST_AUTO_TEST_CASE_TEMPLATE(rows_outside_the_contract_are_refused, Store, Stores) {
  Store it;
  const Bytes value = pattern(10, 1);
  const std::uint64_t count = it.store.commit_count();
  constexpr std::uint64_t kTooLarge = std::uint64_t{1} << 63;
  BOOST_TEST(error_of(set(it.store, row(0, 1, 7, "x", value))) == Errc::invalid_argument);
  BOOST_TEST(error_of(set(it.store, row(kTooLarge, 1, 7, "x", value))) == Errc::invalid_argument);
  BOOST_TEST(error_of(set(it.store, row(1, kTooLarge, 7, "x", value))) == Errc::invalid_argument);
  BOOST_TEST(error_of(set(it.store, row(1, 1, 0, "x", value))) == Errc::invalid_argument);
  BOOST_TEST(error_of(put_build(it.store, -1, 5)) == Errc::invalid_argument);
  BOOST_TEST(it.store.commit_count() == count);
  BOOST_TEST(entries(it.store).empty());
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace stepstash::test
