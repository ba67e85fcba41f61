// SPDX-License-Identifier: Apache-2.0
/// BackingStore on one SQLite file (tables: schema.hpp).
///
/// Two connections: the writer, for all calls but two, and a reader for load_value and load_build, which see the last
/// committed state (WAL) and wait for nobody. Thread rule: that of backing_store.hpp; look may be called from any
/// thread.
///
/// Sizes, measured on a 2-core VM with an ext4 virtio disk, SQLite 3.40, values of random bytes, synchronous=FULL
/// (a 64 MiB value is written twice, to the WAL and to the file; ms, median of 3):
///
///   pages (1 MiB chunks)        4 KiB   8 KiB  16 KiB  32 KiB     chunks (16 KiB pages)  64 KiB  256 KiB  1 MiB  4 MiB
///   write 64 MiB                  216     185     183     170     write 64 MiB              187      190    183    181
///   read it back                   24      23      22      20     read it back               21       21     22     23
///   vacuum of 192 MiB            1031     502     250     208     delete 64 MiB              13       11      9      9
///   1000 entries of 200 B         2.6     2.9     2.3     2.3
///
/// Pages of 16 KiB: as fast as larger ones in everything but vacuum, and a commit of one small entry (three pages)
/// costs no more than with 4 KiB. Chunks of 1 MiB: speed no longer depends on the size, so memory per chunk decides.
/// Transactions of 16 MiB: 32 MiB gains a tenth and doubles the WAL; the whole value as one BLOB gains nothing (187
/// ms), needs a WAL as large as the value, takes ten times as long to read (223 ms: SQLite builds it in memory first)
/// and is limited to 10^9 bytes. secure_delete is off: with Debian's default of zeroing freed pages, deleting 64 MiB
/// takes 175 ms and writes as much as the value.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "persist/backing_store.hpp"
#include "persist/database_files.hpp"
#include "persist/sqlite.hpp"

namespace stepstash::persist {

/// Values up to this size are stored in build_data.value, where a shell can read them; larger ones in value_chunks. At
/// 256 KiB both ways are equally fast; below it, chunks would cost a second index entry and two marker writes per
/// value.
inline constexpr std::size_t kInlineBytes = 256 * 1024;
inline constexpr std::size_t kChunkBytes = 1024 * 1024;
/// A transaction is committed when it has written this much, and the WAL is checkpointed at the same size: it stays
/// near twice that, whatever the batch size.
inline constexpr std::size_t kTransactionBytes = 16 * 1024 * 1024;

class SqliteStore final : public BackingStore {
 public:
  struct Options {
    std::string path;
    /// How long to wait for a lock that another program holds on the database (a shell, a backup).
    std::chrono::milliseconds busy_timeout{1000};
    /// Limit on the size of the database file; beyond it commits fail as on a full disk. 0: no limit of our own.
    std::uint64_t max_bytes = 0;
  };

  /// Opens the database, or creates it (mode 0600, whatever the umask), and migrates it. Permission bits beyond 0600
  /// are removed from an existing database and from files set aside. Follows symbolic links among the directories, but
  /// not at the file itself. `why`, if given, receives a message about a failure. Errors: Errc::unsafe_object (the file
  /// or its -wal, -shm, -journal or -reserve is a link, has a second name, is not regular or not ours),
  /// Errc::corrupt_database (use set_aside() of database_files.hpp), Errc::newer_database, Errc::foreign_database
  /// (another program's), Errc::invalid_argument (no file name), Errc::not_durable (locked, full, I/O), those of the
  /// directory.
  static Result<std::unique_ptr<SqliteStore>> open(const Options& options, std::string* why = nullptr);

  ~SqliteStore() override;
  SqliteStore(const SqliteStore&) = delete;
  SqliteStore& operator=(const SqliteStore&) = delete;

  std::uint64_t store_id() const override { return store_id_; }
  std::uint64_t commit_count() const override { return commit_count_.load(); }
  std::int64_t last_written() const override { return last_written_; }
  /// Before writing, commit checks that the file is still the one at its path: nothing is acknowledged into a deleted
  /// file (Errc::not_durable until the daemon is restarted). On a full disk, space that the batch frees is still freed,
  /// with the help of a small file kept for that purpose (`path`-reserve).
  Result<> commit(const Batch& batch) override;
  Result<std::uint64_t> reserve_ids(std::uint64_t count, std::uint64_t at_least) override;
  Result<Census> census() override;
  /// No other call to this store from within `each`. Rows that violate the contract are skipped, so that one of them
  /// does not cost the rest.
  Result<> load_entries(const std::function<bool(const StoredEntry&)>& each) override;
  std::vector<std::string> skipped() const override;
  Result<> load_builds_with_data(const std::function<bool(const StoredBuild&)>& each) override;
  Result<std::optional<StoredBuild>> load_build(BuildId build) override;
  Result<> load_value(std::uint64_t id, std::uint64_t revision, std::span<std::byte> out) override;
  /// Also deletes orphaned chunks and checkpoints; when all of that is done, truncates the WAL.
  Result<std::uint64_t> vacuum(std::uint64_t pages) override;
  void checkpoint() override;
  /// O(1): eight stat(2) calls.
  Files look() const override;
  std::uint64_t size_bytes() const { return look().bytes; }

  /// The last failure, in SQLite's words; empty if there was none.
  std::string last_error() const override;

 private:
  class Work;
  struct WriterStatements;
  struct ReaderStatements;

  SqliteStore(std::string path, const Options& options);
  Result<> open_connections();
  Result<Connection> open_connection() const;
  Result<std::unique_ptr<WriterStatements>> set_up_writer(Connection& connection);
  Result<> replace_writer();

  bool in_place() const;
  Result<> check_files();
  static int on_commit(void* self, sqlite3* connection, const char* name, int pages);
  int checkpoint_now(sqlite3* connection, int mode);
  bool rescue_full_disk(const std::vector<BuildRow>& builds);
  Result<> write_batch(const Batch& batch);
  Result<> put_build(Work& work, const BuildRow& row);
  Result<> drop_entries(Work& work, BuildId build, std::uint64_t upto);
  Result<> put_entry(Work& work, const EntryRow& row);
  Result<> put_chunks(Work& work, const EntryRow& row);
  Result<std::size_t> delete_chunks(std::int64_t revision);
  Result<> collect_chunks(std::size_t limit);
  bool checkpoint_fits();
  Result<std::uint64_t> free_pages(std::uint64_t pages);
  Result<std::uint64_t> reserve(std::uint64_t count, std::uint64_t at_least);
  Result<> read_value(std::uint64_t id, std::uint64_t revision, std::span<std::byte> out);
  Result<> read_chunks(std::uint64_t revision, std::int64_t chunks, std::span<std::byte> out);

  /// Maps an error to what callers act on (Errc where there is one) and keeps its text.
  std::error_code report(const char* doing, std::error_code error, const Connection& connection);
  void remember(std::string text);

  const std::string path_;
  const std::chrono::milliseconds busy_timeout_;
  const std::uint64_t max_bytes_;
  Connection writer_;
  Connection reader_;
  std::unique_ptr<WriterStatements> write_;  // after the connections: destroyed first
  std::unique_ptr<ReaderStatements> read_;
  bool reopen_writer_ = false;  // reported corruption after a disk error: reopen it first
  FileId file_;
  FileId wal_;
  int wal_pages_ = 0;  // the WAL is checkpointed at this size
  std::uint64_t page_bytes_ = 0;
  std::atomic<std::uint64_t> log_held_bytes_{0};  // by the last checkpoint
  std::uint64_t store_id_ = 0;
  std::int64_t last_written_ = 0;
  std::atomic<std::uint64_t> commit_count_{0};
  std::uint64_t rows_skipped_ = 0;    // by the last load_entries
  std::vector<std::string> skipped_;  // the first of them

  mutable std::mutex error_mutex_;
  std::string last_error_;
};

}  // namespace stepstash::persist
