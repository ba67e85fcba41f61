// SPDX-License-Identifier: Apache-2.0
#include "persist/restore.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <algorithm>

#include <memory>
#include <string_view>
#include <utility>

#include "base/errc.hpp"
#include "base/unique_fd.hpp"
#include "persist/database_files.hpp"
#include "persist/schema.hpp"
#include "persist/sqlite_store.hpp"

namespace stepstash::persist {
namespace {

constexpr int kPagesPerStep = 1024;
constexpr int kBusyMs = 5000;

bool has_bytes(const std::string& path) noexcept {
  struct ::stat status {};
  return ::stat(path.c_str(), &status) == 0 && status.st_size > 0;
}

/// `path` as an SQLite URI with immutable=1: for a file that nobody changes, it needs neither a -shm next to it nor a
/// lock.
std::string immutable_uri(const std::string& path) {
  static constexpr char kDigits[] = "0123456789ABCDEF";
  std::string uri = path.starts_with('/') ? "file:" : "file:./";
  for (const char c : path) {
    if (c == '%' || c == '?' || c == '#') {
      const auto byte = static_cast<unsigned char>(c);
      uri += {'%', kDigits[byte >> 4], kDigits[byte & 15]};
    } else {
      uri += c;
    }
  }
  return uri + "?immutable=1";
}

struct Close {
  void operator()(sqlite3* db) const noexcept { sqlite3_close(db); }
};

Result<> copy_pages(const std::string& from, const std::string& to, std::string& why) {
  // A backup made with `.backup` has no log. If there is one, it belongs to the backup, and SQLite reads both.
  const bool logged = has_bytes(from + "-wal");
  sqlite3* raw = nullptr;
  int code =
      sqlite3_open_v2((logged ? from : immutable_uri(from)).c_str(), &raw,
                      SQLITE_OPEN_READONLY | SQLITE_OPEN_URI | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE, nullptr);
  const std::unique_ptr<sqlite3, Close> source(raw);
  const auto failed = [&](const std::string& what, int error, sqlite3* of) {
    why = what + ": " + (of != nullptr ? sqlite3_errmsg(of) : sqlite3_errstr(error));
    const int primary = error & 0xFF;
    return make_error_code(primary == SQLITE_CORRUPT || primary == SQLITE_NOTADB ? Errc::corrupt_database
                                                                                 : Errc::not_durable);
  };
  if (code != SQLITE_OK) return failed(from, code, raw);
  Connection target = STEPSTASH_TRY(Connection::open(to, kBusyMs));
  sqlite3_backup* backup = sqlite3_backup_init(target.get(), "main", source.get(), "main");
  if (backup == nullptr) return failed(to, sqlite3_extended_errcode(target.get()), target.get());
  do {
    code = sqlite3_backup_step(backup, kPagesPerStep);
  } while (code == SQLITE_OK);
  const int finished = sqlite3_backup_finish(backup);
  if (code != SQLITE_DONE) return failed(from, code, nullptr);
  if (finished != SQLITE_OK) return failed(to, finished, target.get());
  auto verdict = target.query_text("PRAGMA integrity_check(1)");
  if (!verdict) {
    why = from + ": " + target.describe(verdict.error());
    return Errc::corrupt_database;
  }
  if (verdict.value() != "ok") {
    why = from + ": " + verdict.value();
    return Errc::corrupt_database;
  }
  return success();
}

/// Syncs the database as one file. SQLite may silently fail to empty the log on close: then the file alone is
/// incomplete.
Result<> settle(const std::string& path, std::string& why) {
  if (has_bytes(path + "-wal") || ::access((path + "-shm").c_str(), F_OK) == 0) {
    why = path + ": its log could not be written into it";
    return Errc::not_durable;
  }
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!fd || ::fsync(fd.get()) != 0) return last_errno();
  return success();
}

}  // namespace

void remove_whole(const std::string& path) noexcept {
  ::unlink(path.c_str());
  for (const char* suffix : kCompanions) ::unlink((path + suffix).c_str());
}

Result<Copied> copy_whole(const std::string& from, const std::string& to, std::string& why) {
  const auto copy = [&]() -> Result<Copied> {
    // First of all: SQLite creates an empty database if the name does not exist, and cannot say why it failed.
    {
      const UniqueFd readable(::open(from.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
      struct ::stat status {};
      if (!readable || ::fstat(readable.get(), &status) != 0) return last_errno();
      if (!S_ISREG(status.st_mode)) return std::make_error_code(std::errc::invalid_argument);
    }
    {
      const UniqueFd made(::open(to.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
      if (!made) return last_errno();
    }
    STEPSTASH_TRY(copy_pages(from, to, why));
    Copied copied;
    {
      // A file without any table would be taken for a new database.
      Connection copy_of = STEPSTASH_TRY(Connection::open(to, kBusyMs));
      const auto application = copy_of.query_int("PRAGMA application_id");
      if (!application || application.value() != kApplicationId) return Errc::foreign_database;
    }
    {
      auto store = STEPSTASH_TRY(SqliteStore::open({.path = to}, &why));
      const auto census = store->census();
      const auto listed = store->load_entries([](const StoredEntry&) { return true; });
      if (!census || !listed) {
        why = store->last_error();
        return census ? listed.error() : census.error();
      }
      copied = {census.value().entries, census.value().builds_with_data};
    }
    STEPSTASH_TRY(settle(to, why));
    return copied;
  };
  auto copied = copy();
  if (!copied) remove_whole(to);
  if (!copied && why.empty()) why = from + ": " + copied.error().message();
  ::unlink((to + "-reserve").c_str());
  return copied;
}

Result<> skip_ids(const std::string& path, std::uint64_t id, std::string& why) {
  {
    auto store = STEPSTASH_TRY(SqliteStore::open({.path = path}, &why));
    if (auto reserved = store->reserve_ids(1, id); !reserved) {
      why = store->last_error();
      return reserved.error();
    }
  }
  ::unlink((path + "-reserve").c_str());
  return settle(path, why);
}

Result<std::uint64_t> close_log(const std::string& path, std::string& why) {
  struct ::stat status {};
  if (::lstat(path.c_str(), &status) != 0) {
    if (errno != ENOENT) return last_errno();
    // A log without its database is useless; next to the backup it would be taken for the backup's own.
    for (const char* suffix : {"-wal", "-shm", "-journal"}) ::unlink((path + suffix).c_str());
    return 0;
  }
  const auto checkpoint = [&]() -> Result<std::uint64_t> {
    Connection former = STEPSTASH_TRY(Connection::open(path, kBusyMs));
    const auto fail = [&](std::error_code error) {
      why = path + ": " + former.describe(error);
      return error;
    };
    auto application = former.query_int("PRAGMA application_id");
    if (!application) return fail(application.error());
    auto tables = former.query_int("SELECT count(*) FROM sqlite_schema");
    if (!tables) return fail(tables.error());
    if (application.value() != kApplicationId && (application.value() != 0 || tables.value() != 0)) {
      why = path + ": another program's database";
      return Errc::foreign_database;
    }
    auto busy = former.query_int("PRAGMA wal_checkpoint(TRUNCATE)");
    if (!busy) return fail(busy.error());
    if (busy.value() != 0) {
      why = path + ": another program has it open";
      return Errc::already_held;
    }
    if (tables.value() == 0) return 0;
    auto next_id = former.query_int("SELECT value FROM meta WHERE key = 'next_id'");
    if (!next_id) return fail(next_id.error());
    return static_cast<std::uint64_t>(std::max<std::int64_t>(next_id.value(), 0));
  };
  auto closed = checkpoint();
  const int primary = !closed && closed.error().category() == sqlite_category() ? closed.error().value() & 0xFF : 0;
  if (primary == SQLITE_CORRUPT || primary == SQLITE_NOTADB) {
    STEPSTASH_TRY(set_aside(path));
    return 0;
  }
  if (primary != 0) return Errc::not_durable;
  const std::uint64_t next_id = STEPSTASH_TRY(closed);
  if (has_bytes(path + "-wal") || ::access((path + "-shm").c_str(), F_OK) == 0) {
    why = path + ": another program has it open";  // the last program to close it removes them
    return Errc::already_held;
  }
  return next_id;
}

}  // namespace stepstash::persist
