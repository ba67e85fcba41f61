// SPDX-License-Identifier: Apache-2.0
#include "bench/peers.hpp"

namespace stepstash::bench {

Sqlite::Sqlite() {
  sqlite3* db = nullptr;
  const int status = sqlite3_open((World::get().directories.disk + "/state.sqlite").c_str(), &db);
  db_.reset(db);
  require(status == SQLITE_OK, "sqlite: open");
  execute("PRAGMA journal_mode = wal");
  execute(
      "CREATE TABLE IF NOT EXISTS build_data(id INTEGER PRIMARY KEY, buildid INTEGER NOT NULL, "
      "name VARCHAR(256) NOT NULL, value BLOB NOT NULL, length INTEGER NOT NULL, source VARCHAR(256) NOT NULL)");
  execute("CREATE UNIQUE INDEX IF NOT EXISTS build_data_buildid_name ON build_data(buildid, name)");
  select_ = prepare("SELECT buildid, name, value, length, source FROM build_data WHERE buildid = ?1 AND name = ?2");
  update_ = prepare("UPDATE build_data SET value = ?3, length = ?4, source = ?5 WHERE buildid = ?1 AND name = ?2");
  insert_ = prepare("INSERT INTO build_data(buildid, name, value, length, source) VALUES(?1, ?2, ?3, ?4, ?5)");
}

void Sqlite::execute(const char* sql) {
  require(sqlite3_exec(db_.get(), sql, nullptr, nullptr, nullptr) == SQLITE_OK, sqlite3_errmsg(db_.get()));
}

Sqlite::Statement Sqlite::prepare(const char* sql) {
  sqlite3_stmt* statement = nullptr;
  require(sqlite3_prepare_v2(db_.get(), sql, -1, &statement, nullptr) == SQLITE_OK, sqlite3_errmsg(db_.get()));
  return Statement(statement);
}

void Sqlite::get(const Key& key) {
  sqlite3_bind_int64(select_.get(), 1, key.build);
  sqlite3_bind_text(select_.get(), 2, key.name, static_cast<int>(key.length), SQLITE_STATIC);
  require(sqlite3_step(select_.get()) == SQLITE_ROW, "sqlite: get");
  const auto bytes = static_cast<std::size_t>(sqlite3_column_bytes(select_.get(), 2));
  if (value_.size() < bytes) value_.resize(bytes);
  std::memcpy(value_.data(), sqlite3_column_blob(select_.get(), 2), bytes);  // into the driver's object
  benchmark::DoNotOptimize(value_.data());
  sqlite3_reset(select_.get());
}

void Sqlite::set(const Key& key, std::span<const char> bytes) {
  const auto run = [&](sqlite3_stmt* statement) {
    sqlite3_bind_int64(statement, 1, key.build);
    sqlite3_bind_text(statement, 2, key.name, static_cast<int>(key.length), SQLITE_STATIC);
    sqlite3_bind_blob64(statement, 3, bytes.data(), bytes.size(), SQLITE_STATIC);
    sqlite3_bind_int64(statement, 4, static_cast<std::int64_t>(bytes.size()));
    sqlite3_bind_text(statement, 5, "bench", -1, SQLITE_STATIC);
    require(sqlite3_step(statement) == SQLITE_DONE, sqlite3_errmsg(db_.get()));
    sqlite3_reset(statement);
  };
  execute("BEGIN");
  run(update_.get());
  if (sqlite3_changes(db_.get()) == 0) run(insert_.get());
  execute("COMMIT");
}

}  // namespace stepstash::bench
