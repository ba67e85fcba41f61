// SPDX-License-Identifier: Apache-2.0
// What is on disk after a process died, a disk filled up or an fsync failed, at any point of a commit.
#include <signal.h>
#include <sqlite3.h>
#include <sys/wait.h>
#include <unistd.h>

#include <random>

#include "persist/sqlite_store.hpp"
#include "tests/persist/fault_vfs.hpp"
#include "tests/persist/values.hpp"
#include "tests/support/temp_dir.hpp"

namespace stepstash::test {
namespace {

using persist::SqliteStore;

// One more chunk than fits into a transaction: the value is torn over two of them, and the WAL is checkpointed.
constexpr std::size_t kBytes = persist::kTransactionBytes + persist::kChunkBytes + 12345;

std::int64_t query(const std::string& path, std::string_view sql) {
  auto connection = persist::Connection::open(path, 1000).value();
  return connection.query_int(sql).value();
}

std::string integrity(const std::string& path) {
  auto connection = persist::Connection::open(path, 1000).value();
  return connection.query_text("PRAGMA integrity_check").value();
}

/// The batch under test: replaces the value of entry 1, sets a small one, finishes a build and drops another.
struct Change {
  Bytes large = pattern(kBytes, 2);
  Bytes small = pattern(100, 3);
  persist::Batch batch;
  Change() {
    batch.builds.push_back({7, 1000, {}, 0});
    batch.builds.push_back({8, {}, {}, 50});
    batch.entries.push_back(row(1, 101, 7, "large", large));
    batch.entries.push_back(row(3, 102, 7, "small", small));
  }
};

const Bytes& old_large() {
  static const Bytes value = pattern(2 * persist::kChunkBytes, 1);
  return value;
}

void fill(SqliteStore& store) {
  persist::Batch batch;
  const Bytes dropped = pattern(3 * persist::kChunkBytes, 9);
  batch.entries.push_back(row(1, 1, 7, "large", old_large()));
  batch.entries.push_back(row(2, 2, 8, "dropped", dropped));
  BOOST_TEST_REQUIRE(store.commit(batch).has_value());
}

std::unique_ptr<SqliteStore> open(const std::string& path) {
  std::string why;
  auto store = SqliteStore::open({.path = path}, &why);
  BOOST_TEST_REQUIRE(store.has_value(), why);
  return std::move(store).value();
}

/// The large value is the old one or the new one, in one piece; says which.
bool is_new(SqliteStore& store, const Change& change) {
  if (has(store, 1, 101, change.large)) return true;
  BOOST_TEST(has(store, 1, 1, old_large()));
  return false;
}

std::uint64_t writes_of_one_commit() {
  const TempDir directory;
  FaultVfs vfs;
  auto store = open(directory.file("db"));
  fill(*store);
  const std::uint64_t before = vfs.writes;
  BOOST_TEST_REQUIRE(store->commit(Change().batch).has_value());
  const std::uint64_t writes = vfs.writes - before;
  store.reset();
  return writes;
}

/// A sweep over the writes of a commit: the first ones, the last ones, and some between, the same on every run.
std::vector<std::uint64_t> points(std::uint64_t writes) {
  std::vector<std::uint64_t> all = {1, 2, 3, writes - 1, writes};
  std::mt19937_64 random(20240607);
  while (all.size() < 30) all.push_back(1 + random() % writes);
  return all;
}

BOOST_AUTO_TEST_SUITE(crash)

BOOST_AUTO_TEST_CASE(a_process_killed_at_any_write_leaves_the_old_value_or_the_new_one_entire) {
  const std::uint64_t writes = writes_of_one_commit();
  BOOST_TEST_REQUIRE(writes > 1000u);  // about two per page
  const Change change;
  int old_seen = 0, new_seen = 0;
  for (const std::uint64_t point : points(writes)) {
    const TempDir directory;
    const std::string path = directory.file("db");
    const ::pid_t child = ::fork();
    BOOST_TEST_REQUIRE(child >= 0);
    if (child == 0) {
      FaultVfs vfs;
      auto store = SqliteStore::open({.path = path});
      if (!store) ::_exit(2);
      fill(*store.value());
      vfs.on_write = [&, start = vfs.writes.load()](std::uint64_t number) {
        if (number == start + point) ::raise(SIGKILL);
        return SQLITE_OK;
      };
      (void)store.value()->commit(change.batch);
      ::_exit(3);  // the point was never reached
    }
    int status = 0;
    BOOST_TEST_REQUIRE(::waitpid(child, &status, 0) == child);
    BOOST_TEST_REQUIRE((WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL), "status " << status << " at " << point);

    BOOST_TEST(integrity(path) == "ok");
    auto store = open(path);
    is_new(*store, change) ? ++new_seen : ++old_seen;
    // Nothing half written is left, and nothing half deleted.
    BOOST_TEST(query(path, "SELECT count(*) FROM chunks_to_delete") == 0);
    BOOST_TEST(
        query(path, "SELECT count(*) FROM value_chunks WHERE revision NOT IN (SELECT revision FROM build_data)") == 0);
    // And the batch can be repeated.
    BOOST_TEST(store->commit(change.batch).has_value());
    BOOST_TEST(is_new(*store, change));
    BOOST_TEST(has(*store, 3, 102, change.small));
    BOOST_TEST(ids(*store) == (std::vector<std::uint64_t>{1, 3}), boost::test_tools::per_element());
  }
  BOOST_TEST(old_seen > 0);
  BOOST_TEST(new_seen > 0);
}

BOOST_AUTO_TEST_CASE(a_disk_full_from_any_write_on_costs_nothing_but_the_commit) {
  const std::uint64_t writes = writes_of_one_commit();
  const Change change;
  for (const std::uint64_t point : points(writes)) {
    const TempDir directory;
    FaultVfs vfs;
    auto store = open(directory.file("db"));
    fill(*store);
    const std::uint64_t count = store->commit_count();
    vfs.on_write = [start = vfs.writes.load(), point](std::uint64_t number) {
      return number >= start + point ? SQLITE_FULL : SQLITE_OK;
    };
    const auto full = store->commit(change.batch);
    if (!full) {
      BOOST_TEST(full.error() == Errc::not_durable);
      BOOST_TEST(store->last_error().find("full") != std::string::npos, store->last_error());
      BOOST_TEST(store->commit_count() == count);
    }
    BOOST_TEST(is_new(*store, change) == full.has_value());  // reading goes on

    vfs.on_write = nullptr;
    BOOST_TEST(store->commit(change.batch).has_value());
    BOOST_TEST(is_new(*store, change));
    store.reset();
    BOOST_TEST(integrity(directory.file("db")) == "ok");
  }
}

BOOST_AUTO_TEST_CASE(a_failed_fsync_is_not_acknowledged) {
  const TempDir directory;
  FaultVfs vfs;
  auto store = open(directory.file("db"));
  fill(*store);
  const Change change;
  vfs.on_sync = [](std::uint64_t) { return SQLITE_IOERR_FSYNC; };
  BOOST_TEST(error_of(store->commit(change.batch)) == Errc::not_durable);
  vfs.on_sync = nullptr;
  BOOST_TEST(store->commit(change.batch).has_value());
  BOOST_TEST(is_new(*store, change));
}

BOOST_AUTO_TEST_CASE(every_commit_is_synced_before_it_is_acknowledged) {
  const TempDir directory;
  FaultVfs vfs;
  auto store = open(directory.file("db"));
  const Bytes value = pattern(10, 1);
  for (std::uint64_t id = 1; id <= 10; ++id) {
    const std::uint64_t before = vfs.syncs;
    BOOST_TEST_REQUIRE(set(*store, row(id, id, 7, std::to_string(id), value)).has_value());
    BOOST_TEST(vfs.syncs > before);
  }
  BOOST_TEST(store->reserve_ids(5, 0).has_value());
  const std::uint64_t before = vfs.syncs;
  BOOST_TEST(store->reserve_ids(5, 0).has_value());
  BOOST_TEST(vfs.syncs > before);
}

BOOST_AUTO_TEST_CASE(a_value_is_read_in_the_middle_of_its_own_replacement) {
  const TempDir directory;
  FaultVfs vfs;
  auto store = open(directory.file("db"));
  fill(*store);
  const Change change;
  int loads = 0;
  vfs.on_write = [&, start = vfs.writes.load()](std::uint64_t number) {
    if ((number - start) % 500 == 1 && loads < 4) {
      ++loads;
      BOOST_TEST(has(*store, 1, 1, old_large()));
      BOOST_TEST(store->load_build(7).has_value());
    }
    return SQLITE_OK;
  };
  BOOST_TEST(store->commit(change.batch).has_value());
  BOOST_TEST(loads == 4);
  vfs.on_write = nullptr;
  BOOST_TEST(is_new(*store, change));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace stepstash::test
