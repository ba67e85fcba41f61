// SPDX-License-Identifier: Apache-2.0
#include "persist/sqlite_store.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <limits>
#include <utility>

#include "base/crash_point.hpp"
#include "base/errc.hpp"
#include "base/text.hpp"
#include "persist/schema.hpp"

namespace stepstash::persist {
namespace {

constexpr std::size_t kPageBytes = 16 * 1024;

/// Rows deleted per transaction: a row changes about one page, a chunk the bookkeeping of its 64, so that the WAL needs
/// no more than kReserveBytes for it.
constexpr std::size_t kRowsPerTransaction = 256;
constexpr std::size_t kRowsPerChunk = 4;
/// A file of this size is kept next to the database and removed when the disk is full. Deleting first needs room in the
/// WAL, and the WAL can be emptied only into a database file that has room to grow: without a reserve, a disk once
/// filled by our own half-written values stayed full.
constexpr std::uint64_t kReserveBytes = kRowsPerTransaction * kPageBytes;
/// Upper bound on pages vacuumed when the disk is full: 1 GiB, about a second.
constexpr std::uint64_t kPagesToMakeRoom = 65536;
/// Free space that opening a database takes.
constexpr std::uint64_t kBytesToOpen = 16 * kPageBytes;
/// Chunks (MiB) deleted per call; the rest is left for the next one: half a second, at 10 ms per 64.
constexpr std::size_t kChunksPerCall = 4096;
/// Pages freed per transaction: 8 MiB that may have to be moved.
constexpr std::uint64_t kPagesPerVacuumStep = 512;
/// Size kept by an idle WAL: what it will need again, and room for deletions on a full disk.
constexpr std::uint64_t kWalKeepBytes = kTransactionBytes;

constexpr std::uint64_t kMaxInt = std::numeric_limits<std::int64_t>::max();
/// Invalid rows reported by name; the rest are counted.
constexpr std::uint64_t kRowsNamed = 100;
constexpr const char* kOfEveryConnection =
    "PRAGMA synchronous=FULL; PRAGMA temp_store=MEMORY; PRAGMA trusted_schema=OFF; PRAGMA cell_size_check=ON;"
    "PRAGMA foreign_keys=OFF; PRAGMA secure_delete=OFF;";

std::int64_t signed_twin(std::uint64_t value) noexcept { return static_cast<std::int64_t>(value); }
std::uint64_t unsigned_twin(std::int64_t value) noexcept { return static_cast<std::uint64_t>(value); }

/// Maps SQLite's codes to those the daemon acts on; errors of neither disk nor file are left as they are.
std::error_code boundary_error(std::error_code error) noexcept {
  if (error.category() != sqlite_category()) return error;
  if (error.value() == SQLITE_CANTOPEN_SYMLINK) return Errc::unsafe_object;
  switch (error.value() & 0xFF) {
    case SQLITE_FULL:
    case SQLITE_IOERR:
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
    case SQLITE_PROTOCOL:
    case SQLITE_READONLY:
    case SQLITE_CANTOPEN:
      return Errc::not_durable;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return Errc::corrupt_database;
    default:
      return error;
  }
}

/// Whether the disk was full: SQLite recognizes ENOSPC in write(2) only.
bool disk_full(std::error_code error, const Connection& connection) noexcept {
  if (error.category() != sqlite_category()) return false;
  const int primary = error.value() & 0xFF;
  const int number = connection ? sqlite3_system_errno(connection.get()) : 0;
  return primary == SQLITE_FULL || (primary == SQLITE_IOERR && (number == ENOSPC || number == EDQUOT));
}

}  // namespace

/// The transaction of a commit: begun when there is something to write, committed when it has become large.
class SqliteStore::Work {
 public:
  explicit Work(Connection& connection) noexcept : connection_(connection) {}

  /// Call before each piece of work that must not be split.
  Result<> begin() {
    if (!transaction_) transaction_.emplace(STEPSTASH_TRY(Transaction::begin_write(connection_)));
    STEPSTASH_CRASH_POINT("persist.work.begun");
    return success();
  }
  /// Call after it.
  Result<> spent(std::size_t rows, std::size_t bytes) {
    rows_ += rows;
    bytes_ += bytes;
    if (rows_ < kRowsPerTransaction && bytes_ < kTransactionBytes) return success();
    return finish();
  }
  Result<> finish() {
    if (!transaction_) return success();
    STEPSTASH_CRASH_POINT("persist.work.commit_due");
    STEPSTASH_TRY(transaction_->commit());
    STEPSTASH_CRASH_POINT("persist.work.committed");
    transaction_.reset();
    rows_ = bytes_ = 0;
    return success();
  }

 private:
  Connection& connection_;
  std::optional<Transaction> transaction_;
  std::size_t rows_ = 0;
  std::size_t bytes_ = 0;
};

struct SqliteStore::WriterStatements {
  Statement upsert_build, find_name, find_id, upsert_entry, delete_entry, select_drop;
  Statement insert_chunk, delete_chunks, mark, unmark, select_mark;
  Statement bump_commit_count, select_meta, update_next_id, max_id;

  Result<> prepare(const Connection& connection) {
    const std::pair<Statement*, std::string_view> all[] = {
        {&upsert_build,
         "INSERT INTO builds(id, complete_at, held) VALUES(?1, ?2, coalesce(?3, 0)) ON CONFLICT(id) DO UPDATE SET "
         "complete_at = coalesce(?2, complete_at), held = coalesce(?3, held)"},
        {&find_name, "SELECT id, revision, chunks FROM build_data WHERE buildid = ?1 AND name = ?2"},
        {&find_id, "SELECT id, revision, chunks FROM build_data WHERE id = ?1"},
        {&upsert_entry,
         "INSERT INTO build_data(id, buildid, name, length, source, revision, value_hash, chunks, value) "
         "VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT(id) DO UPDATE SET buildid = excluded.buildid, "
         "name = excluded.name, length = excluded.length, source = excluded.source, revision = excluded.revision, "
         "value_hash = excluded.value_hash, chunks = excluded.chunks, value = excluded.value"},
        {&delete_entry, "DELETE FROM build_data WHERE id = ?1"},
        // Continues at the name last deleted, so that surviving entries are passed once, not once per round.
        {&select_drop,
         "SELECT id, revision, chunks, name FROM build_data WHERE buildid = ?1 AND name >= ?2 AND id <= ?3 "
         "ORDER BY name LIMIT ?4"},
        {&insert_chunk, "INSERT INTO value_chunks(revision, seq, data) VALUES(?1, ?2, ?3)"},
        {&delete_chunks,
         "DELETE FROM value_chunks WHERE id IN (SELECT id FROM value_chunks WHERE revision = ?1 LIMIT ?2)"},
        {&mark, "INSERT OR IGNORE INTO chunks_to_delete VALUES(?1)"},
        {&unmark, "DELETE FROM chunks_to_delete WHERE revision = ?1"},
        {&select_mark, "SELECT revision FROM chunks_to_delete LIMIT 1"},
        {&bump_commit_count, "UPDATE meta SET value = value + 1 WHERE key = 'commit_count'"},
        {&select_meta, "SELECT value FROM meta WHERE key = ?1"},
        {&update_next_id, "UPDATE meta SET value = ?1 WHERE key = 'next_id'"},
        {&max_id, "SELECT coalesce(max(id), 0) FROM build_data"},
    };
    for (const auto& [statement, sql] : all) *statement = STEPSTASH_TRY(Statement::prepare(connection, sql));
    return success();
  }

  Result<std::uint64_t> meta(std::string_view key) {
    const Reset at_end(select_meta);
    select_meta.bind(1, key);
    if (!STEPSTASH_TRY(select_meta.step())) return Errc::corrupt_database;
    return unsigned_twin(select_meta.integer(0));
  }

  struct Row {
    std::int64_t id = 0;
    std::int64_t revision = 0;
    std::int64_t chunks = 0;
  };
  /// The row that a bound find_name or find_id selects.
  static Result<std::optional<Row>> find(Statement& statement) {
    const Reset at_end(statement);
    if (!STEPSTASH_TRY(statement.step())) return std::optional<Row>();
    return std::optional<Row>(Row{statement.integer(0), statement.integer(1), statement.integer(2)});
  }

  /// Deletes a row; its chunks, if any, are left to collect_chunks.
  Result<> remove(const Row& row) {
    if (row.chunks > 0) STEPSTASH_TRY(mark.bind(1, row.revision).run());
    return delete_entry.bind(1, row.id).run();
  }
};

struct SqliteStore::ReaderStatements {
  Statement select_build, select_value, select_chunks;

  Result<> prepare(const Connection& connection) {
    select_build = STEPSTASH_TRY(
        Statement::prepare(connection,
                           "SELECT builds.id IS NOT NULL, complete_at, held, EXISTS (SELECT 1 FROM build_data WHERE "
                           "buildid = ?1) FROM (SELECT 1) LEFT JOIN builds ON builds.id = ?1"));
    select_value = STEPSTASH_TRY(
        Statement::prepare(connection, "SELECT revision, length, chunks, value FROM build_data WHERE id = ?1"));
    select_chunks = STEPSTASH_TRY(
        Statement::prepare(connection, "SELECT seq, data FROM value_chunks WHERE revision = ?1 ORDER BY seq"));
    return success();
  }
};

SqliteStore::SqliteStore(std::string path, const Options& options)
    : path_(std::move(path)), busy_timeout_(options.busy_timeout), max_bytes_(options.max_bytes) {}
SqliteStore::~SqliteStore() = default;

Result<std::unique_ptr<SqliteStore>> SqliteStore::open(const Options& options, std::string* why) {
  const auto attempt = [&]() -> Result<std::unique_ptr<SqliteStore>> {
    std::string path = STEPSTASH_TRY(resolve_directory(options.path));  // not inside `new`: an early return would leak
    std::unique_ptr<SqliteStore> store(new SqliteStore(path, options));
    auto opened = store->open_connections();
    if (!opened && opened.error() != Errc::newer_database && opened.error() != Errc::foreign_database &&
        room_beside(path) < kBytesToOpen && ::unlink((path + "-reserve").c_str()) == 0) {
      STEPSTASH_CRASH_POINT("persist.open.reserve_removed");
      store.reset(new SqliteStore(path, options));  // SQLite needs a few free pages to open the database
      opened = store->open_connections();
    }
    if (!opened) {
      std::error_code error = store->report("opening", opened.error(), store->writer_);
      // Our own application_id, but a table or column is missing: no other failure to prepare is a plain SQLITE_ERROR.
      if (error == sqlite_error(SQLITE_ERROR)) error = Errc::corrupt_database;
      if (why != nullptr) *why = store->last_error();
      return error;
    }
    return store;
  };
  if (why != nullptr) why->clear();
  auto result = attempt();
  if (!result && why != nullptr && why->empty()) *why = options.path + ": " + result.error().message();
  return result;
}

Result<> SqliteStore::open_connections() {
  // Files set aside contain values, too, and may come from a version that allowed the group to read them. Files that
  // are not ours contain none of our values: ignore errors.
  for (const std::string& kept : kept_aside(path_)) {
    (void)examine(kept);
    for (const char* suffix : kCompanions) (void)examine(kept + suffix);
  }
  for (const char* suffix : kCompanions) STEPSTASH_TRY(examine(path_ + suffix));
  last_written_ = std::max(modified_at(path_), modified_at(path_ + "-wal"));
  if (!STEPSTASH_TRY(examine(path_))) STEPSTASH_TRY(create_file(path_));

  writer_ = STEPSTASH_TRY(open_connection());
  file_ = FileId::at(path_);
  // The file that was examined and the one that SQLite opened must be the same.
  if (writer_.file_has_moved() || !STEPSTASH_TRY(examine(path_))) return Errc::unsafe_object;
  // For a new file only, and before anything is written. For an existing one these pragmas would change nothing but
  // still write, and a start must not fail for lack of room.
  if (STEPSTASH_TRY(writer_.query_int("PRAGMA page_count")) == 0) {
    STEPSTASH_TRY(writer_.execute(("PRAGMA page_size=" + std::to_string(kPageBytes)).c_str()));
    STEPSTASH_TRY(writer_.execute("PRAGMA auto_vacuum=INCREMENTAL"));
  }
  STEPSTASH_TRY(writer_.execute(kOfEveryConnection));
  // Check the application before changing anything, the journal mode included.
  if (const auto application = STEPSTASH_TRY(writer_.query_int("PRAGMA application_id"));
      application != kApplicationId &&
      (application != 0 || STEPSTASH_TRY(writer_.query_int("SELECT count(*) FROM sqlite_schema")) != 0)) {
    return Errc::foreign_database;
  }
  if (STEPSTASH_TRY(writer_.query_int("PRAGMA user_version")) > std::ssize(migration_steps())) {
    return Errc::newer_database;
  }
  if (STEPSTASH_TRY(writer_.query_text("PRAGMA journal_mode=WAL")) != "wal") return sqlite_error(SQLITE_IOERR);
  STEPSTASH_CRASH_POINT("persist.open.wal");
  STEPSTASH_TRY(migrate(writer_));
  STEPSTASH_CRASH_POINT("persist.open.migrated");
  write_ = STEPSTASH_TRY(set_up_writer(writer_));

  reader_ = STEPSTASH_TRY(open_connection());
  STEPSTASH_TRY(reader_.execute(kOfEveryConnection));
  STEPSTASH_TRY(reader_.execute("PRAGMA query_only=ON; PRAGMA cache_size=-2048"));
  read_ = std::make_unique<ReaderStatements>();
  STEPSTASH_TRY(read_->prepare(reader_));
  store_id_ = STEPSTASH_TRY(write_->meta("store_id"));
  commit_count_ = STEPSTASH_TRY(write_->meta("commit_count"));
  wal_ = FileId::at(path_ + "-wal");
  STEPSTASH_CRASH_POINT("persist.open.identified");
  make_reserve(path_ + "-reserve", kReserveBytes);
  // Left half written or half deleted by a crash. Not a reason to refuse service: commits and vacuum continue the
  // sweep.
  if (auto swept = collect_chunks(kChunksPerCall); !swept) (void)report("sweeping", swept.error(), writer_);
  return success();
}

Result<Connection> SqliteStore::open_connection() const {
  return Connection::open(path_, static_cast<int>(std::clamp<std::int64_t>(busy_timeout_.count(), 0, INT_MAX)));
}

Result<std::unique_ptr<SqliteStore::WriterStatements>> SqliteStore::set_up_writer(Connection& connection) {
  const auto page_bytes = static_cast<std::uint64_t>(STEPSTASH_TRY(connection.query_int("PRAGMA page_size")));
  const auto pragma = [&](const char* name, std::uint64_t value) {
    return connection.execute(("PRAGMA " + std::string(name) + "=" + std::to_string(value)).c_str());
  };
  wal_pages_ = static_cast<int>(kTransactionBytes / page_bytes);
  page_bytes_ = page_bytes;
  sqlite3_wal_hook(connection.get(), &SqliteStore::on_commit, this);
  STEPSTASH_TRY(pragma("journal_size_limit", kWalKeepBytes));
  // Half a transaction; what does not fit is spilled into the WAL, where it goes anyway.
  STEPSTASH_TRY(connection.execute("PRAGMA cache_size=-8192"));
  if (max_bytes_ > 0) {
    STEPSTASH_TRY(pragma("max_page_count", std::max<std::uint64_t>(1, max_bytes_ / page_bytes)));
  }
  auto statements = std::make_unique<WriterStatements>();
  STEPSTASH_TRY(statements->prepare(connection));
  return statements;
}

/// SQLite caches I/O errors per connection. A new connection tells whether the disk really has damaged data or could
/// just not be read.
Result<> SqliteStore::replace_writer() {
  Connection fresh;
  const auto set_up = [&]() -> Result<std::unique_ptr<WriterStatements>> {
    fresh = STEPSTASH_TRY(open_connection());
    STEPSTASH_TRY(fresh.execute(kOfEveryConnection));
    return set_up_writer(fresh);
  };
  auto statements = set_up();
  if (!statements) return report("opening again", statements.error(), fresh);
  if (fresh.file_has_moved()) return Errc::not_durable;
  STEPSTASH_TRY(check_files());            // then it is the same file
  write_ = std::move(statements).value();  // before their connection
  writer_ = std::move(fresh);
  reopen_writer_ = false;
  return success();
}

bool SqliteStore::in_place() const { return FileId::at(path_) == file_ && FileId::at(path_ + "-wal") == wal_; }

Result<> SqliteStore::check_files() {
  if (in_place()) return success();
  remember("the database file or its WAL was deleted, renamed or replaced: " + path_);
  return Errc::not_durable;
}

Result<> SqliteStore::commit(const Batch& batch) {
  STEPSTASH_TRY(check_files());
  if (reopen_writer_) STEPSTASH_TRY(replace_writer());
  if (auto written = write_batch(batch); !written) {
    const bool full = disk_full(written.error(), writer_);
    const std::error_code error = report("committing", written.error(), writer_);
    // Deletions alone succeed on a full disk.
    if (full && rescue_full_disk(batch.builds) && batch.entries.empty()) return success();
    return error;
  }
  // The batch is durable: the rest is cleanup, and its failure loses nothing.
  if (auto swept = collect_chunks(kChunksPerCall); !swept) (void)report("deleting chunks", swept.error(), writer_);
  return success();
}

/// For a full disk: removes the reserve, deletes half-written chunks and what `builds` drops, and gives the space back.
/// True if `builds` has been committed.
bool SqliteStore::rescue_full_disk(const std::vector<BuildRow>& builds) {
  // If there is nothing to delete, the reserve would only let the WAL or the file grow, and be missing later.
  const bool drops = std::ranges::any_of(builds, [](const BuildRow& row) { return row.drop_upto > 0; });
  const auto left_over = writer_.query_int(
      "SELECT (SELECT count(*) FROM chunks_to_delete LIMIT 1) + (SELECT freelist_count FROM pragma_freelist_count)");
  if (!drops && (!left_over || left_over.value() == 0)) return false;
  const std::string reserve = path_ + "-reserve";
  ::unlink(reserve.c_str());
  STEPSTASH_CRASH_POINT("persist.room.reserve_removed");
  // A checkpoint before the file has shrunk would spend the reserve on growing it.
  sqlite3_wal_hook(writer_.get(), nullptr, nullptr);
  const auto free_now = [&] {
    if (auto freed = free_pages(kPagesToMakeRoom); !freed) (void)report("making room", freed.error(), writer_);
  };
  free_now();
  bool committed = false;
  if (!builds.empty()) {
    const auto written = write_batch({builds, {}});
    committed = written.has_value();
    if (!written) (void)report("making room", written.error(), writer_);
    free_now();
  }
  STEPSTASH_CRASH_POINT("persist.room.made");
  sqlite3_wal_hook(writer_.get(), &SqliteStore::on_commit, this);
  make_reserve(reserve, kReserveBytes);
  return committed;
}

Result<> SqliteStore::write_batch(const Batch& batch) {
  Work work(writer_);
  for (const BuildRow& row : batch.builds) STEPSTASH_TRY(put_build(work, row));
  for (const EntryRow& row : batch.entries) STEPSTASH_TRY(put_entry(work, row));
  STEPSTASH_TRY(work.begin());
  STEPSTASH_TRY(write_->bump_commit_count.run());
  STEPSTASH_CRASH_POINT("persist.batch.counted");
  // Read back rather than incremented here: a commit that failed with unknown outcome may have succeeded.
  const std::uint64_t count = STEPSTASH_TRY(write_->meta("commit_count"));
  STEPSTASH_TRY(work.finish());
  STEPSTASH_CRASH_POINT("persist.batch.committed");
  commit_count_ = count;
  return success();
}

Result<> SqliteStore::put_build(Work& work, const BuildRow& row) {
  if (!valid_build(row.buildid)) return Errc::invalid_argument;
  if (row.complete_at || row.held) {
    STEPSTASH_TRY(work.begin());
    Statement& upsert = write_->upsert_build;
    upsert.bind(1, row.buildid);
    row.complete_at ? upsert.bind(2, *row.complete_at) : upsert.bind_null(2);
    row.held ? upsert.bind(3, std::int64_t{*row.held}) : upsert.bind_null(3);
    STEPSTASH_TRY(upsert.run());
    STEPSTASH_CRASH_POINT("persist.build.written");
    STEPSTASH_TRY(work.spent(1, 0));
  }
  return row.drop_upto > 0 ? drop_entries(work, row.buildid, row.drop_upto) : success();
}

Result<> SqliteStore::drop_entries(Work& work, BuildId build, std::uint64_t upto) {
  constexpr std::size_t kRound = 256;
  std::string from;
  std::vector<WriterStatements::Row> rows;
  do {
    STEPSTASH_TRY(work.begin());
    rows.clear();
    Statement& select = write_->select_drop;
    {
      const Reset at_end(select);
      select.bind(1, build).bind(2, from).bind(3, signed_twin(std::min(upto, kMaxInt))).bind(4, std::int64_t{kRound});
      std::string last;  // `from` itself is bound until the end
      while (STEPSTASH_TRY(select.step())) {
        rows.push_back({select.integer(0), select.integer(1), select.integer(2)});
        if (rows.size() == kRound) last = select.text(3);
      }
      select.reset();
      from = std::move(last);
    }
    for (const auto& row : rows) STEPSTASH_TRY(write_->remove(row));
    STEPSTASH_CRASH_POINT("persist.drop.rows_deleted");
    STEPSTASH_TRY(work.spent(rows.size(), 0));
  } while (rows.size() == kRound);
  return success();
}

Result<> SqliteStore::put_entry(Work& work, const EntryRow& row) {
  if (row.id == 0 || row.id > kMaxInt || row.revision > kMaxInt || !valid_build(row.buildid)) {
    return Errc::invalid_argument;
  }
  const std::int64_t id = signed_twin(row.id);
  const std::int64_t revision = signed_twin(row.revision);
  STEPSTASH_TRY(work.begin());
  auto old = STEPSTASH_TRY(WriterStatements::find(write_->find_id.bind(1, id)));
  if (old && old->revision == revision) return success();  // a repeated batch: these bytes are already there

  const bool chunked = row.value.size() > kInlineBytes;
  if (chunked) {
    STEPSTASH_TRY(put_chunks(work, row));
    STEPSTASH_TRY(work.begin());
    STEPSTASH_TRY(write_->unmark.bind(1, revision).run());
    STEPSTASH_CRASH_POINT("persist.entry.chunks_unmarked");
    // Transactions ended in between, so look again.
    old = STEPSTASH_TRY(WriterStatements::find(write_->find_id.bind(1, id)));
  }
  // Another id under the same name is older: this set overtook its deletion.
  const auto namesake = STEPSTASH_TRY(WriterStatements::find(write_->find_name.bind(1, row.buildid).bind(2, row.name)));
  if (namesake && namesake->id != id) STEPSTASH_TRY(write_->remove(*namesake));
  if (old && old->chunks > 0) STEPSTASH_TRY(write_->mark.bind(1, old->revision).run());
  STEPSTASH_CRASH_POINT("persist.entry.old_removed");

  const std::size_t chunks = chunked ? (row.value.size() + kChunkBytes - 1) / kChunkBytes : 0;
  Statement& upsert = write_->upsert_entry;
  const std::uint64_t length = row.lost_bytes > 0 ? row.lost_bytes : row.value.size();
  upsert.bind(1, id).bind(2, row.buildid).bind(3, row.name).bind(4, signed_twin(length)).bind(5, row.source);
  upsert.bind(6, revision).bind(7, signed_twin(row.value_hash)).bind(8, signed_twin(chunks));
  chunked || row.lost_bytes > 0 ? upsert.bind_null(9) : upsert.bind_blob(9, row.value);
  STEPSTASH_TRY(upsert.run());
  STEPSTASH_CRASH_POINT("persist.entry.written");
  return work.spent(0, chunked ? 0 : row.value.size() + row.name.size() + row.source.size());
}

/// Writes the value's chunks, marked for deletion until build_data refers to them.
Result<> SqliteStore::put_chunks(Work& work, const EntryRow& row) {
  const std::int64_t revision = signed_twin(row.revision);
  STEPSTASH_TRY(write_->mark.bind(1, revision).run());
  STEPSTASH_CRASH_POINT("persist.chunk.marked");
  // An earlier attempt may have left some.
  while (const std::size_t deleted = STEPSTASH_TRY(delete_chunks(revision))) {
    STEPSTASH_TRY(work.spent(deleted * kRowsPerChunk, 0));
    STEPSTASH_TRY(work.begin());
  }
  for (std::size_t at = 0; at < row.value.size(); at += kChunkBytes) {
    STEPSTASH_TRY(work.begin());
    const auto piece = row.value.subspan(at, std::min(kChunkBytes, row.value.size() - at));
    Statement& insert = write_->insert_chunk;
    STEPSTASH_TRY(insert.bind(1, revision).bind(2, signed_twin(at / kChunkBytes)).bind_blob(3, piece).run());
    STEPSTASH_CRASH_POINT("persist.chunk.written");
    STEPSTASH_TRY(work.spent(0, piece.size()));
  }
  return success();
}

/// Deletes a bounded number of a revision's chunks within the caller's transaction; returns how many.
Result<std::size_t> SqliteStore::delete_chunks(std::int64_t revision) {
  STEPSTASH_TRY(
      write_->delete_chunks.bind(1, revision).bind(2, std::int64_t{kRowsPerTransaction / kRowsPerChunk}).run());
  STEPSTASH_CRASH_POINT("persist.chunk.deleted");
  return static_cast<std::size_t>(sqlite3_changes(writer_.get()));
}

/// Deletes up to about `limit` chunks that no row needs. Only between commits: one under way has its own chunks marked.
Result<> SqliteStore::collect_chunks(std::size_t limit) {
  Work work(writer_);
  for (std::size_t deleted = 0; deleted < limit;) {
    Statement& select = write_->select_mark;
    const bool any = STEPSTASH_TRY(select.step());
    const std::int64_t revision = any ? select.integer(0) : 0;
    select.reset();
    if (!any) break;
    STEPSTASH_TRY(work.begin());
    const std::size_t chunks = STEPSTASH_TRY(delete_chunks(revision));
    if (chunks < kRowsPerTransaction / kRowsPerChunk) STEPSTASH_TRY(write_->unmark.bind(1, revision).run());
    STEPSTASH_CRASH_POINT("persist.chunk.unmarked");
    STEPSTASH_TRY(work.spent(chunks * kRowsPerChunk + 1, 0));
    deleted += chunks + 1;
  }
  return work.finish();
}

Result<std::uint64_t> SqliteStore::reserve_ids(std::uint64_t count, std::uint64_t at_least) {
  STEPSTASH_TRY(check_files());
  if (reopen_writer_) STEPSTASH_TRY(replace_writer());
  auto first = reserve(count, at_least);
  if (!first) return report("reserving ids", first.error(), writer_);
  return first;
}

Result<std::uint64_t> SqliteStore::reserve(std::uint64_t count, std::uint64_t at_least) {
  if (count == 0) return Errc::invalid_argument;
  auto transaction = STEPSTASH_TRY(Transaction::begin_write(writer_));
  // max(id) reads only the last leaf, and covers rows that a shell inserted.
  std::uint64_t highest = 0;
  {
    const Reset at_end(write_->max_id);
    if (STEPSTASH_TRY(write_->max_id.step()))
      highest = unsigned_twin(std::max<std::int64_t>(0, write_->max_id.integer(0)));
  }
  const std::uint64_t next = STEPSTASH_TRY(write_->meta("next_id"));
  const std::uint64_t first = std::max({std::uint64_t{1}, next, at_least, highest + 1});
  if (first > kMaxInt || count > kMaxInt - first) return Errc::out_of_ids;
  STEPSTASH_TRY(write_->update_next_id.bind(1, signed_twin(first + count)).run());
  // Counted like a batch: an earlier copy would give out the same ids again, so it must be recognizable as older.
  STEPSTASH_TRY(write_->bump_commit_count.run());
  const std::uint64_t commits = STEPSTASH_TRY(write_->meta("commit_count"));
  STEPSTASH_CRASH_POINT("persist.ids.commit_due");
  STEPSTASH_TRY(transaction.commit());
  commit_count_ = commits;
  STEPSTASH_CRASH_POINT("persist.ids.committed");
  return first;
}

Result<BackingStore::Census> SqliteStore::census() {
  const auto count = [&]() -> Result<Census> {
    auto statement = STEPSTASH_TRY(Statement::prepare(
        writer_,
        "SELECT count(*), coalesce(sum(length(CAST(name AS BLOB)) + length(CAST(source AS BLOB))), 0), "
        "(SELECT count(*) FROM (SELECT DISTINCT buildid FROM build_data)) FROM build_data"));
    Census census;
    if (STEPSTASH_TRY(statement.step())) {
      census.entries = unsigned_twin(statement.integer(0));
      census.text_bytes = unsigned_twin(statement.integer(1));
      census.builds_with_data = unsigned_twin(statement.integer(2));
    }
    auto lost = STEPSTASH_TRY(
        Statement::prepare(writer_,
                           "SELECT id, revision, buildid, length, name FROM build_data WHERE value IS NULL AND chunks "
                           "= 0 AND length > 0 ORDER BY id LIMIT 100"));
    while (STEPSTASH_TRY(lost.step())) {
      StoredEntry& entry = census.lost.emplace_back();
      entry.id = unsigned_twin(lost.integer(0));
      entry.revision = unsigned_twin(lost.integer(1));
      entry.buildid = lost.integer(2);
      entry.length = unsigned_twin(lost.integer(3));
      entry.name = lost.text(4);
    }
    return census;
  };
  auto census = count();
  if (!census) return report("counting", census.error(), writer_);
  return census;
}

Result<> SqliteStore::load_entries(const std::function<bool(const StoredEntry&)>& each) {
  const auto load = [&]() -> Result<> {
    auto statement = STEPSTASH_TRY(Statement::prepare(
        writer_, "SELECT id, revision, buildid, length, value_hash, name, source FROM build_data ORDER BY id"));
    rows_skipped_ = 0;
    skipped_.clear();
    StoredEntry entry;
    while (STEPSTASH_TRY(statement.step())) {
      entry.id = unsigned_twin(statement.integer(0));
      entry.revision = unsigned_twin(statement.integer(1));
      entry.buildid = statement.integer(2);
      entry.length = unsigned_twin(statement.integer(3));
      entry.value_hash = unsigned_twin(statement.integer(4));
      entry.name = statement.text(5);
      entry.source = statement.text(6);
      const bool credible = entry.id - 1 < kMaxInt && entry.revision <= kMaxInt && entry.length <= kMaxInt &&
                            valid_build(entry.buildid) && valid_text(entry.name) && valid_text(entry.source);
      if (!credible) {
        if (++rows_skipped_ <= kRowsNamed) {
          skipped_.push_back("database " + path_ + ": row " + std::to_string(statement.integer(0)) +
                             " of build_data breaks the contract (build " + std::to_string(entry.buildid) +
                             ", name \"" + printable(entry.name) + "\", length " +
                             std::to_string(statement.integer(3)) + ") and is not served");
        }
      } else if (!each(entry)) {
        break;
      }
    }
    return success();
  };
  if (auto loaded = load(); !loaded) return report("loading entries", loaded.error(), writer_);
  return success();
}

std::vector<std::string> SqliteStore::skipped() const {
  std::vector<std::string> lines = skipped_;
  if (rows_skipped_ > kRowsNamed) {
    lines.push_back("database " + path_ + ": " + std::to_string(rows_skipped_ - kRowsNamed) + " more such rows");
  }
  return lines;
}

Result<> SqliteStore::load_builds_with_data(const std::function<bool(const StoredBuild&)>& each) {
  const auto load = [&]() -> Result<> {
    auto statement = STEPSTASH_TRY(
        Statement::prepare(writer_,
                           "SELECT d.buildid, builds.complete_at, builds.held FROM (SELECT DISTINCT buildid FROM "
                           "build_data) AS d LEFT JOIN builds ON builds.id = d.buildid ORDER BY d.buildid"));
    while (STEPSTASH_TRY(statement.step())) {
      StoredBuild build;
      build.buildid = statement.integer(0);
      if (!valid_build(build.buildid)) continue;  // load_entries has counted its rows
      if (!statement.is_null(1)) build.complete_at = statement.integer(1);
      build.held = statement.integer(2) != 0;
      if (!each(build)) break;
    }
    return success();
  };
  if (auto loaded = load(); !loaded) return report("loading builds", loaded.error(), writer_);
  return success();
}

Result<std::optional<StoredBuild>> SqliteStore::load_build(BuildId build) {
  const auto load = [&]() -> Result<std::optional<StoredBuild>> {
    Statement& select = read_->select_build;
    const Reset at_end(select);
    select.bind(1, build);
    if (!STEPSTASH_TRY(select.step()) || (select.integer(0) == 0 && select.integer(3) == 0)) {
      return std::optional<StoredBuild>();
    }
    StoredBuild found;
    found.buildid = build;
    if (!select.is_null(1)) found.complete_at = select.integer(1);
    found.held = select.integer(2) != 0;
    return std::optional<StoredBuild>(found);
  };
  auto found = load();
  if (!found) return report("loading a build", found.error(), reader_);
  return found;
}

Result<> SqliteStore::load_value(std::uint64_t id, std::uint64_t revision, std::span<std::byte> out) {
  auto read = read_value(id, revision, out);
  if (!read && read.error() != Errc::not_found) return report("loading a value", read.error(), reader_);
  return read;
}

Result<> SqliteStore::read_value(std::uint64_t id, std::uint64_t revision, std::span<std::byte> out) {
  // One snapshot for row and chunks: neither a replacement committed meanwhile nor its deletions are visible.
  const auto snapshot = STEPSTASH_TRY(Transaction::begin_read(reader_));
  Statement& select = read_->select_value;
  const Reset at_end(select);
  select.bind(1, signed_twin(id));
  if (!STEPSTASH_TRY(select.step())) return Errc::not_found;
  if (unsigned_twin(select.integer(0)) != revision || unsigned_twin(select.integer(1)) != out.size()) {
    return Errc::not_found;
  }
  if (const std::int64_t chunks = select.integer(2); chunks != 0) return read_chunks(revision, chunks, out);
  const auto value = select.blob(3);
  if (select.is_null(3) && !out.empty()) return Errc::corrupt_value;  // written as lost (EntryRow)
  if (value.size() != out.size() || select.is_null(3)) return Errc::corrupt_database;
  if (!value.empty()) std::memcpy(out.data(), value.data(), value.size());
  return success();
}

Result<> SqliteStore::read_chunks(std::uint64_t revision, std::int64_t chunks, std::span<std::byte> out) {
  Statement& select = read_->select_chunks;
  const Reset at_end(select);
  select.bind(1, signed_twin(revision));
  std::int64_t seq = 0;
  while (STEPSTASH_TRY(select.step())) {
    const auto piece = select.blob(1);
    if (select.integer(0) != seq || piece.size() > out.size()) return Errc::corrupt_database;
    if (!piece.empty()) std::memcpy(out.data(), piece.data(), piece.size());
    out = out.subspan(piece.size());
    ++seq;
  }
  if (seq != chunks || !out.empty()) return Errc::corrupt_database;
  return success();
}

Result<std::uint64_t> SqliteStore::vacuum(std::uint64_t pages) {
  STEPSTASH_TRY(check_files());
  auto freed = free_pages(pages);
  make_reserve(path_ + "-reserve", kReserveBytes);
  if (!freed) return report("vacuuming", freed.error(), writer_);
  return freed;
}

Result<std::uint64_t> SqliteStore::free_pages(std::uint64_t pages) {
  STEPSTASH_TRY(collect_chunks(kChunksPerCall));
  const auto free_now = [&] { return writer_.query_int("PRAGMA freelist_count"); };
  std::int64_t left = STEPSTASH_TRY(free_now());
  std::uint64_t freed = 0;
  while (freed < pages && left > 0) {
    const std::uint64_t step = std::min(kPagesPerVacuumStep, pages - freed);
    STEPSTASH_TRY(writer_.execute(("PRAGMA incremental_vacuum(" + std::to_string(step) + ")").c_str()));
    STEPSTASH_CRASH_POINT("persist.vacuum.step");
    const std::int64_t now = STEPSTASH_TRY(free_now());
    if (now >= left) break;  // a database created without auto_vacuum
    freed += static_cast<std::uint64_t>(left - now);
    left = now;
  }
  // A checkpoint that cannot complete would only spend the room that the next deletion needs.
  if (!checkpoint_fits()) return freed;
  // The file itself shrinks at the checkpoint. TRUNCATE waits for readers, so only when there is nothing else to do,
  // and not below the size an idle WAL keeps. A reader in the way (SQLITE_BUSY) is not a failure: a later call will
  // succeed.
  const bool shrink_wal = left == 0 && file_bytes(path_ + "-wal") > kWalKeepBytes;
  const int code = checkpoint_now(writer_.get(), shrink_wal ? SQLITE_CHECKPOINT_TRUNCATE : SQLITE_CHECKPOINT_PASSIVE);
  if (code != SQLITE_OK && (code & 0xFF) != SQLITE_BUSY && (code & 0xFF) != SQLITE_LOCKED) return sqlite_error(code);
  return freed;
}

/// Whether the file system has room for the growth of the database file. O(1).
bool SqliteStore::checkpoint_fits() {
  const auto pages = writer_.query_int("PRAGMA page_count");
  const auto page_bytes = writer_.query_int("PRAGMA page_size");
  if (!pages || !page_bytes) return true;  // the checkpoint itself will report it
  const std::uint64_t wanted = unsigned_twin(pages.value()) * unsigned_twin(page_bytes.value());
  const std::uint64_t have = file_bytes(path_);
  return wanted <= have || wanted - have <= room_beside(path_);
}

/// SQLite's own automatic checkpoint (sqlite3_wal_autocheckpoint) does the same, but does not report the result.
int SqliteStore::on_commit(void* self, sqlite3* connection, const char*, int pages) {
  auto& store = *static_cast<SqliteStore*>(self);
  if (pages >= store.wal_pages_) (void)store.checkpoint_now(connection, SQLITE_CHECKPOINT_PASSIVE);
  return SQLITE_OK;
}

int SqliteStore::checkpoint_now(sqlite3* connection, int mode) {
  int pages = 0;
  int moved = 0;
  const int code = sqlite3_wal_checkpoint_v2(connection, "main", mode, &pages, &moved);
  STEPSTASH_CRASH_POINT("persist.vacuum.checkpointed");
  // After an error, or while another checkpoint is running, both are -1, or partial counts.
  if (pages >= 0 && moved >= 0) {
    log_held_bytes_ = static_cast<std::uint64_t>(std::max(pages - moved, 0)) * page_bytes_;
  }
  return code;
}

void SqliteStore::checkpoint() {
  if (!in_place() || !checkpoint_fits()) return;
  (void)checkpoint_now(writer_.get(), SQLITE_CHECKPOINT_PASSIVE);
}

BackingStore::Files SqliteStore::look() const {
  Files files;
  files.in_place = in_place();
  files.log_bytes = file_bytes(path_ + "-wal");
  files.log_held_bytes = log_held_bytes_;
  files.bytes = file_bytes(path_);
  for (const char* suffix : kCompanions) files.bytes += file_bytes(path_ + suffix);
  return files;
}

std::string SqliteStore::last_error() const {
  const std::lock_guard lock(error_mutex_);
  return last_error_;
}

void SqliteStore::remember(std::string text) {
  const std::lock_guard lock(error_mutex_);
  last_error_ = std::move(text);
}

std::error_code SqliteStore::report(const char* doing, std::error_code error, const Connection& connection) {
  remember(std::string(doing) + ": " + path_ + ": " + connection.describe(error));
  const std::error_code told = boundary_error(error);
  // A disk may come back, but a database reported as damaged is set aside: after a disk error, a connection's report of
  // corruption does not count.
  if (told != Errc::corrupt_database || !connection || connection.read_errno() == 0) return told;
  if (&connection == &writer_) reopen_writer_ = true;
  return Errc::not_durable;
}

}  // namespace stepstash::persist
