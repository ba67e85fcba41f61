// SPDX-License-Identifier: Apache-2.0
// What only the store on disk can get wrong.
#include "persist/sqlite_store.hpp"

#include <sqlite3.h>

#include <atomic>
#include <set>
#include <thread>

#include "tests/persist/fault_vfs.hpp"
#include "tests/persist/values.hpp"
#include "tests/support/temp_dir.hpp"

namespace stepstash::test {
namespace {

using persist::Connection;
using persist::kChunkBytes;
using persist::kInlineBytes;
using persist::SqliteStore;

struct Disk {
  TempDir directory;
  std::string path = directory.file("build-data.sqlite");
  std::unique_ptr<SqliteStore> store;

  Disk() { reopen(); }
  void reopen(std::uint64_t max_bytes = 0) {
    store.reset();
    std::string why;
    auto opened =
        SqliteStore::open({.path = path, .busy_timeout = std::chrono::milliseconds(20), .max_bytes = max_bytes}, &why);
    BOOST_TEST_REQUIRE(opened.has_value(), why);
    store = std::move(opened).value();
  }
  /// As a shell would ask.
  std::int64_t query(std::string_view sql) { return Connection::open(path, 1000).value().query_int(sql).value(); }
  std::string text(std::string_view sql) { return Connection::open(path, 1000).value().query_text(sql).value(); }
};

BOOST_FIXTURE_TEST_SUITE(sqlite_store, Disk)

BOOST_AUTO_TEST_CASE(everything_is_there_after_reopening) {
  const Bytes small = pattern(100, 1);
  const Bytes large = pattern(3 * kChunkBytes + 1, 2);
  BOOST_TEST_REQUIRE(set(*store, row(1, 1, 7, "small", small)).has_value());
  BOOST_TEST_REQUIRE(set(*store, row(2, 2, 7, "large", large)).has_value());
  BOOST_TEST_REQUIRE(put_build(*store, 7, 123, true).has_value());
  const auto id = store->store_id();
  const auto count = store->commit_count();
  BOOST_TEST(count == 3u);
  reopen();
  BOOST_TEST(store->store_id() == id);
  BOOST_TEST(store->commit_count() == count);
  BOOST_TEST(has(*store, 1, 1, small));
  BOOST_TEST(has(*store, 2, 2, large));
  BOOST_TEST(store->load_build(7).value()->complete_at.value() == 123);
}

BOOST_AUTO_TEST_CASE(two_databases_have_two_identities) {
  const auto other = SqliteStore::open({.path = directory.file("other")});
  BOOST_TEST_REQUIRE(other.has_value());
  BOOST_TEST(other.value()->store_id() != store->store_id());
}

BOOST_AUTO_TEST_CASE(ids_are_never_reserved_twice_across_reopening) {
  std::set<std::uint64_t> seen;
  for (int round = 0; round < 5; ++round) {
    for (int i = 0; i < 3; ++i) {
      const auto first = store->reserve_ids(10, 0).value();
      for (std::uint64_t id = first; id < first + 10; ++id) BOOST_TEST(seen.insert(id).second, id);
    }
    reopen();
  }
}

BOOST_AUTO_TEST_CASE(a_shell_lists_entries_and_reads_small_values) {
  const Bytes value = {std::byte{'h'}, std::byte{'i'}};
  const Bytes large = pattern(2 * kChunkBytes, 2);
  BOOST_TEST_REQUIRE(set(*store, row(41, 1, 7, "greeting", value, "step 1")).has_value());
  BOOST_TEST_REQUIRE(set(*store, row(42, 2, 7, "tree", large, "step 2")).has_value());
  BOOST_TEST(text("SELECT group_concat(id||' '||buildid||' '||name||' '||length||' '||source, ';') FROM build_data") ==
             "41 7 greeting 2 step 1;42 7 tree 2097152 step 2");
  BOOST_TEST(text("SELECT CAST(value AS TEXT) FROM build_data WHERE id = 41") == "hi");
  BOOST_TEST(query("SELECT sum(length(data)) FROM value_chunks WHERE revision = 2") == 2 * 1024 * 1024);
}

BOOST_AUTO_TEST_CASE(the_chunks_of_what_is_replaced_or_dropped_go_with_the_commit) {
  const Bytes value = pattern(4 * kChunkBytes, 1);
  BOOST_TEST_REQUIRE(set(*store, row(1, 1, 7, "x", value)).has_value());
  BOOST_TEST_REQUIRE(set(*store, row(1, 2, 7, "x", value)).has_value());
  BOOST_TEST(query("SELECT count(*) FROM value_chunks") == 4);
  BOOST_TEST(query("SELECT min(revision) FROM value_chunks") == 2);
  BOOST_TEST_REQUIRE(put_build(*store, 7, {}, {}, 1).has_value());
  BOOST_TEST(query("SELECT count(*) FROM value_chunks") == 0);
  BOOST_TEST(query("SELECT count(*) FROM chunks_to_delete") == 0);
}

BOOST_AUTO_TEST_CASE(many_chunks_are_deleted_in_several_transactions) {
  // Chunks of one byte stand for a value of 5000 MiB, made by hand.
  store.reset();
  {
    auto connection = Connection::open(path, 1000).value();
    BOOST_TEST_REQUIRE(
        connection
            .execute("WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 4999) INSERT INTO "
                     "value_chunks(revision, seq, data) SELECT 9, i, x'00' FROM n;"
                     "INSERT INTO chunks_to_delete VALUES(9)")
            .has_value());
  }
  reopen();  // deletes a bounded part
  const auto left = query("SELECT count(*) FROM value_chunks");
  BOOST_TEST(left > 0);
  BOOST_TEST(left < 1000);
  BOOST_TEST_REQUIRE(store->vacuum(100).has_value());
  BOOST_TEST(query("SELECT count(*) FROM value_chunks") == 0);
  BOOST_TEST(query("SELECT count(*) FROM chunks_to_delete") == 0);
}

BOOST_AUTO_TEST_CASE(small_entries_of_a_batch_share_a_transaction) {
  store.reset();
  FaultVfs vfs;
  reopen();
  const Bytes value = pattern(200, 1);
  std::vector<std::string> names;
  for (int i = 0; i < 2000; ++i) names.push_back(std::to_string(i));
  persist::Batch batch;
  for (std::uint64_t id = 1; id <= 2000; ++id) batch.entries.push_back(row(id, id, 7, names[id - 1], value));
  const std::uint64_t before = vfs.syncs;
  BOOST_TEST_REQUIRE(store->commit(batch).has_value());
  BOOST_TEST(vfs.syncs - before <= 3u);  // of the WAL; a checkpoint would add two more
  store.reset();
}

BOOST_AUTO_TEST_CASE(a_large_value_does_not_make_a_large_wal) {
  const Bytes value = pattern(100 * kChunkBytes, 1);
  store.reset();
  FaultVfs vfs;
  reopen();
  std::uint64_t largest = 0;
  vfs.on_write = [&](std::uint64_t number) {
    if (number % 64 == 0) largest = std::max(largest, std::uint64_t{std::filesystem::file_size(path + "-wal")});
    return SQLITE_OK;
  };
  BOOST_TEST_REQUIRE(set(*store, row(1, 1, 7, "x", value)).has_value());
  BOOST_TEST(largest > 0u);
  BOOST_TEST(largest < 3 * persist::kTransactionBytes);
  BOOST_TEST(has(*store, 1, 1, value));
  store.reset();
}

BOOST_AUTO_TEST_CASE(lists_and_censuses_do_not_walk_the_values) {
  const std::size_t count = 64;
  persist::Batch batch;
  const Bytes value = pattern(kInlineBytes, 1);
  std::vector<std::string> names;
  for (std::size_t i = 0; i < count; ++i) names.push_back("report " + std::to_string(i));
  for (std::uint64_t id = 1; id <= count; ++id) batch.entries.push_back(row(id, id, 7, names[id - 1], value));
  BOOST_TEST_REQUIRE(store->commit(batch).has_value());
  store.reset();

  FaultVfs vfs;
  reopen();
  std::uint64_t before = vfs.bytes_read;
  BOOST_TEST(store->census().value().entries == count);
  BOOST_TEST(entries(*store).size() == count);
  BOOST_TEST(vfs.bytes_read - before < count * kInlineBytes / 8);
  before = vfs.bytes_read;
  BOOST_TEST(has(*store, 1, 1, value));
  BOOST_TEST(vfs.bytes_read - before >= kInlineBytes);  // so the counter does count
  store.reset();

  // Bytes, not pages of the cache: SQLite from 3.45 on reads overflow pages past its cache.
  auto shell = Connection::open(path, 1000).value();
  const auto bytes_of = [&](const char* sql) {
    const std::uint64_t start = vfs.bytes_read;
    BOOST_TEST_REQUIRE(shell.query_int(sql).has_value());
    return vfs.bytes_read - start;
  };
  BOOST_TEST(bytes_of("SELECT sum(length), max(source) FROM build_data") < count * kInlineBytes / 8);
  BOOST_TEST(bytes_of("SELECT sum(length(hex(value))) FROM build_data") >= count * kInlineBytes / 2);
  shell = Connection();
}

BOOST_AUTO_TEST_CASE(a_quota_reached_keeps_the_old_state_and_takes_writes_when_lifted) {
  const Bytes before = pattern(2 * kChunkBytes, 1);
  const Bytes after = pattern(30 * kChunkBytes, 2);
  BOOST_TEST_REQUIRE(set(*store, row(1, 1, 7, "x", before)).has_value());
  reopen(8 * kChunkBytes);
  const auto count = store->commit_count();
  BOOST_TEST(error_of(set(*store, row(1, 2, 7, "x", after))) == Errc::not_durable);
  BOOST_TEST(store->last_error().find("full") != std::string::npos, store->last_error());
  BOOST_TEST(has(*store, 1, 1, before));
  BOOST_TEST(store->commit_count() == count);
  // Something that fits is taken, and sweeps away what the failed commit left.
  const Bytes small = pattern(kChunkBytes, 3);
  BOOST_TEST(set(*store, row(2, 3, 7, "y", small)).has_value(), store->last_error());
  BOOST_TEST(query("SELECT count(*) FROM value_chunks WHERE revision = 2") == 0);
  reopen();
  BOOST_TEST(set(*store, row(1, 2, 7, "x", after)).has_value());
  BOOST_TEST(has(*store, 1, 2, after));
}

BOOST_AUTO_TEST_CASE(a_locked_database_is_not_durable_and_then_takes_the_batch) {
  auto shell = Connection::open(path, 0).value();
  const Bytes value = pattern(10, 1);
  BOOST_TEST_REQUIRE(shell.execute("BEGIN IMMEDIATE").has_value());
  BOOST_TEST(error_of(set(*store, row(1, 1, 7, "x", value))) == Errc::not_durable);
  BOOST_TEST(error_of(store->reserve_ids(1, 0)) == Errc::not_durable);
  BOOST_TEST(store->last_error().find("locked") != std::string::npos, store->last_error());
  BOOST_TEST(store->load_build(7).has_value());  // reading does not wait
  BOOST_TEST_REQUIRE(shell.execute("COMMIT").has_value());
  BOOST_TEST(set(*store, row(1, 1, 7, "x", value)).has_value());
  BOOST_TEST(has(*store, 1, 1, value));
}

BOOST_AUTO_TEST_CASE(a_value_is_loaded_whole_or_not_at_all_while_another_thread_replaces_it) {
  constexpr std::uint64_t kRevisions = 12;
  std::vector<Bytes> values;
  for (std::uint64_t revision = 0; revision <= kRevisions; ++revision) {
    values.push_back(pattern(3 * kChunkBytes + revision, revision));
  }
  BOOST_TEST_REQUIRE(set(*store, row(1, 1, 7, "x", values[1])).has_value());
  std::atomic<std::uint64_t> committed{1};
  std::atomic<bool> failed{false};
  std::thread writer([&] {
    for (std::uint64_t revision = 2; revision <= kRevisions; ++revision) {
      if (!set(*store, row(1, revision, 7, "x", values[revision]))) failed = true;
      committed = revision;
    }
  });
  std::uint64_t loaded = 0, gone = 0, wrong = 0;
  while (committed < kRevisions) {
    const std::uint64_t revision = committed;
    Bytes out(values[revision].size());
    const auto result = store->load_value(1, revision, out);
    if (result) {
      out == values[revision] ? ++loaded : ++wrong;
    } else {
      result.error() == Errc::not_found ? ++gone : ++wrong;
    }
  }
  writer.join();
  BOOST_TEST(!failed);
  BOOST_TEST(wrong == 0u);
  BOOST_TEST(loaded + gone > 0u);
  BOOST_TEST(has(*store, 1, kRevisions, values[kRevisions]));
}

BOOST_AUTO_TEST_CASE(vacuum_gives_the_space_back_in_bounded_steps) {
  const Bytes large = pattern(40 * kChunkBytes, 1);
  const Bytes kept = pattern(2 * kChunkBytes, 2);
  BOOST_TEST_REQUIRE(set(*store, row(1, 1, 7, "x", large)).has_value());
  BOOST_TEST_REQUIRE(set(*store, row(2, 2, 8, "y", kept)).has_value());
  const auto full = store->size_bytes();
  BOOST_TEST(full > large.size());
  BOOST_TEST_REQUIRE(put_build(*store, 7, {}, {}, 1).has_value());

  std::uint64_t calls = 0, freed = 0;
  for (;; ++calls) {
    const auto pages = store->vacuum(1000).value();
    BOOST_TEST(pages <= 1000u);
    freed += pages;
    if (pages == 0) break;
  }
  BOOST_TEST(calls >= 3u);
  BOOST_TEST(freed * 16384 > 38 * kChunkBytes);
  BOOST_TEST(std::filesystem::file_size(path) < 4 * kChunkBytes);
  BOOST_TEST(store->size_bytes() < 9 * kChunkBytes + persist::kTransactionBytes);
  BOOST_TEST(has(*store, 2, 2, kept));
  BOOST_TEST(text("PRAGMA integrity_check") == "ok");
}

BOOST_AUTO_TEST_CASE(rows_a_shell_spoiled_are_skipped_and_named) {
  const Bytes value = pattern(10, 1);
  BOOST_TEST_REQUIRE(set(*store, row(5, 5, 7, "good", value)).has_value());
  BOOST_TEST_REQUIRE(Connection::open(path, 1000)
                         .value()
                         .execute("INSERT INTO build_data SELECT -1, 7, 'a', 0, '', 1, 1, 0, x'';"
                                  "INSERT INTO build_data SELECT 6, -7, 'b', 0, '', 1, 1, 0, x'';"
                                  "INSERT INTO build_data SELECT 7, 7, CAST(x'ff' AS TEXT), 0, '', 1, 1, 0, x'';"
                                  "INSERT INTO build_data SELECT 8, 7, 'd', -1, '', 1, 1, 0, x''")
                         .has_value());
  BOOST_TEST(ids(*store) == std::vector<std::uint64_t>{5}, boost::test_tools::per_element());
  BOOST_TEST_REQUIRE(store->skipped().size() == 4u);
  BOOST_TEST(store->skipped()[3].find("row 8 of build_data breaks the contract (build 7, name \"d\", length -1)") !=
             std::string::npos);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace stepstash::test
