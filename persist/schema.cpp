// SPDX-License-Identifier: Apache-2.0
#include "persist/schema.hpp"

#include <sys/random.h>

#include <string>

#include "base/crash_point.hpp"
#include "base/errc.hpp"

namespace stepstash::persist {
namespace {

Result<> create_tables(Connection& connection) {
  STEPSTASH_TRY(connection.execute(R"sql(
    CREATE TABLE build_data(
      id INTEGER PRIMARY KEY,
      buildid INTEGER NOT NULL,
      name TEXT NOT NULL,
      length INTEGER NOT NULL,
      source TEXT NOT NULL,
      revision INTEGER NOT NULL,
      value_hash INTEGER NOT NULL,
      chunks INTEGER NOT NULL,
      value BLOB
    );
    CREATE UNIQUE INDEX build_data_buildid_name ON build_data(buildid, name);
    CREATE TABLE value_chunks(
      id INTEGER PRIMARY KEY,
      revision INTEGER NOT NULL,
      seq INTEGER NOT NULL,
      data BLOB NOT NULL
    );
    CREATE UNIQUE INDEX value_chunks_revision_seq ON value_chunks(revision, seq);
    CREATE TABLE chunks_to_delete(revision INTEGER PRIMARY KEY);
    CREATE TABLE builds(
      id INTEGER PRIMARY KEY,
      complete_at INTEGER,
      held INTEGER NOT NULL DEFAULT 0
    );
    CREATE TABLE meta(key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    INSERT INTO meta VALUES('commit_count', 0), ('next_id', 1);
  )sql"));
  STEPSTASH_CRASH_POINT("persist.migrate.tables");
  std::uint64_t store_id = 0;
  while (store_id == 0) {
    if (getrandom(&store_id, sizeof store_id, 0) != static_cast<ssize_t>(sizeof store_id)) return last_errno();
  }
  auto insert = STEPSTASH_TRY(Statement::prepare(connection, "INSERT INTO meta VALUES('store_id', ?1)"));
  insert.bind(1, static_cast<std::int64_t>(store_id));
  return insert.run();
}

constexpr MigrationStep kSteps[] = {create_tables};

}  // namespace

std::span<const MigrationStep> migration_steps() noexcept { return kSteps; }

Result<> migrate(Connection& connection, std::span<const MigrationStep> steps) {
  const auto latest = static_cast<std::int64_t>(steps.size());
  const auto check = [&]() -> Result<std::int64_t> {
    const auto application = STEPSTASH_TRY(connection.query_int("PRAGMA application_id"));
    const auto version = STEPSTASH_TRY(connection.query_int("PRAGMA user_version"));
    // A fresh file has neither an application id nor a table. Anything else without our mark is not ours to change.
    const bool fresh = application == 0 && version == 0 &&
                       STEPSTASH_TRY(connection.query_int("SELECT count(*) FROM sqlite_schema")) == 0;
    if (!fresh && application != kApplicationId) return Errc::foreign_database;
    if (version > latest) return Errc::newer_database;
    if (version < 0 || (!fresh && version == 0)) return Errc::corrupt_database;
    return version;
  };

  if (STEPSTASH_TRY(check()) == latest) return success();
  auto transaction = STEPSTASH_TRY(Transaction::begin_write(connection));
  const auto version = STEPSTASH_TRY(check());  // again: another process may have been first
  for (const MigrationStep step : steps.subspan(static_cast<std::size_t>(version))) STEPSTASH_TRY(step(connection));
  STEPSTASH_CRASH_POINT("persist.migrate.steps");
  STEPSTASH_TRY(connection.execute(("PRAGMA user_version=" + std::to_string(latest)).c_str()));
  STEPSTASH_TRY(connection.execute(("PRAGMA application_id=" + std::to_string(kApplicationId)).c_str()));
  STEPSTASH_CRASH_POINT("persist.migrate.commit_due");
  return transaction.commit();
}

}  // namespace stepstash::persist
