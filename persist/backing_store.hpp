// SPDX-License-Identifier: Apache-2.0
/// The daemon's interface to a database, and the seam through which tests inject faults.
///
/// Facts are written in batches, from the segment to the database; they are read back at a cold start and on reload.
/// Thread rule: commit, reserve_ids, vacuum, checkpoint and the other writing calls come from one thread (the
/// flusher's); load_value and load_build may run at the same time on one other thread, and look on a third. A disk may
/// hang in any of these, so none of them is called on the Asio loop. Calls that do no I/O, and may be made there, say
/// "any thread". No call has a default implementation: a store that wraps another one forwards every call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.hpp"
#include "base/types.hpp"

namespace stepstash::persist {

/// One value to write: borrowed bytes, valid until commit returns.
struct EntryRow {
  std::uint64_t id = 0;
  std::uint64_t revision = 0;
  BuildId buildid = 0;
  std::string_view name;
  std::string_view source;
  std::uint64_t value_hash = 0;  ///< XXH3-64 of the value
  std::span<const std::byte> value;
  /// Not 0: the value, of this length, was damaged before it could be written. `value` is empty, and load_value returns
  /// Errc::corrupt_value from then on. A row that already has this very revision is left alone.
  std::uint64_t lost_bytes = 0;
};

/// Changes to one build. Unset members leave the database's values alone.
struct BuildRow {
  BuildId buildid = 0;
  std::optional<std::int64_t> complete_at;  ///< seconds since 1970
  std::optional<bool> held;
  std::uint64_t drop_upto = 0;  ///< delete this build's entries with id <= this; 0: none
};

/// Applied in this order: every BuildRow (deletions included), then every EntryRow.
struct Batch {
  std::vector<BuildRow> builds;
  std::vector<EntryRow> entries;
  bool empty() const noexcept { return builds.empty() && entries.empty(); }
};

/// What a cold start reads of an entry: everything except the value.
struct StoredEntry : EntryInfo {
  std::uint64_t value_hash = 0;
};

struct StoredBuild {
  BuildId buildid = 0;
  std::optional<std::int64_t> complete_at;
  bool held = false;
};

class BackingStore {
 public:
  virtual ~BackingStore() = default;

  /// Identity of this database, drawn at random when it was created: "clean" in a segment refers to one database only.
  /// Any thread.
  virtual std::uint64_t store_id() const = 0;
  /// Number of successful commits of this database, ever. A value lower than the one in the segment means that an older
  /// copy was put back. Any thread.
  virtual std::uint64_t commit_count() const = 0;

  /// Writes the batch; on success everything in it survives power loss (synchronous=FULL). Repeating a batch that
  /// failed or whose outcome is unknown is harmless. A value of any length is accepted; large ones are written in
  /// chunks, in several transactions, and become visible with the last. O(bytes + rows). Errors: Errc::not_durable for
  /// disk full, I/O error and locked (try again later); SQLite's own otherwise.
  virtual Result<> commit(const Batch& batch) = 0;

  /// Reserves ids first .. first+count-1 permanently and durably, and returns first. Never returns 0, nor less than
  /// `at_least`. Counts as a commit (commit_count).
  virtual Result<std::uint64_t> reserve_ids(std::uint64_t count, std::uint64_t at_least) = 0;

  /// Number of entries, and bytes of their names and sources: what a cold start needs room for. O(entries).
  struct Census {
    std::uint64_t entries = 0;
    std::uint64_t text_bytes = 0;
    std::uint64_t builds_with_data = 0;
    std::vector<StoredEntry> lost;  ///< entries whose values were damaged (EntryRow::lost_bytes), the first hundred
  };
  virtual Result<Census> census() = 0;

  /// Calls `each` for every entry, in id order, without reading the values. Stops early when it returns false.
  virtual Result<> load_entries(const std::function<bool(const StoredEntry&)>& each) = 0;
  /// Rows that load_entries skipped because they violate the contract (a shell can write such rows), as messages: the
  /// first hundred, and the number of the rest.
  virtual std::vector<std::string> skipped() const = 0;
  /// Calls `each` for every build that has entries, in buildid order.
  virtual Result<> load_builds_with_data(const std::function<bool(const StoredBuild&)>& each) = 0;

  /// What is recorded about one build; nullopt if nothing is.
  virtual Result<std::optional<StoredBuild>> load_build(BuildId build) = 0;

  /// Fills `out` with the value of entry `id` as of `revision`. `out.size()` must be its length. Errors:
  /// Errc::not_found if the row is missing or of another revision or length; Errc::corrupt_value if it was written as
  /// lost; Errc::corrupt_database.
  virtual Result<> load_value(std::uint64_t id, std::uint64_t revision, std::span<std::byte> out) = 0;

  /// Gives file space back, at most `pages` at a time; returns the pages freed. Called when nothing waits.
  virtual Result<std::uint64_t> vacuum(std::uint64_t pages) = 0;

  /// Moves as much of the write-ahead log as possible into the database; waits for no reader. Called when nothing else
  /// waits.
  virtual void checkpoint() = 0;

  /// The present state of the files.
  struct Files {
    /// Commits go to where the next program will look for them: files can be deleted or replaced while in use.
    bool in_place = true;
    std::uint64_t bytes = 0;      ///< on disk, all files
    std::uint64_t log_bytes = 0;  ///< of these, the write-ahead log
    /// The part of the log that the last checkpoint could not move into the database: a reader that began earlier holds
    /// it back, and the log grows for as long as it does.
    std::uint64_t log_held_bytes = 0;
  };
  virtual Files look() const = 0;

  /// Wall-clock time of the last write before this program opened the database, in seconds since 1970: a lower bound
  /// for the present time, whatever the clock says now. 0: unknown. Any thread.
  virtual std::int64_t last_written() const = 0;

  /// The last failure as a message; empty if there was none. Any thread.
  virtual std::string last_error() const = 0;
};

}  // namespace stepstash::persist
