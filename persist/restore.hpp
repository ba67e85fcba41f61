// SPDX-License-Identifier: Apache-2.0
/// A backup of a database, on its way into the place of the database: nothing here is used while a store is open.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.hpp"

namespace stepstash::persist {

/// Copies the database `from`, in WAL mode or not, to the new file `to`, by SQLite's own means, and has it pass
/// everything that can be asked of one: SQLite's integrity check, application, version (older ones are migrated), the
/// list of entries. `to` is on the disk then, and has no companions; after an error there is none. `why` receives a
/// sentence about a failure. Errors: Errc::corrupt_database, Errc::foreign_database, Errc::newer_database,
/// Errc::not_durable (`from` cannot be read, or the disk is full), those of open(2).
struct Copied {
  std::uint64_t entries = 0;
  std::uint64_t builds = 0;  // with entries
};
Result<Copied> copy_whole(const std::string& from, const std::string& to, std::string& why);

/// Has SQLite move what the write-ahead log of the database at `path` holds into the file, and take the log away: the
/// file can be replaced then. Returns the id below which it may have given all; 0 where it cannot be read. One that is
/// damaged is kept under another name (database_files.hpp, set_aside). No file is fine.
/// Errors: Errc::already_held (another program has it open), Errc::foreign_database, Errc::not_durable.
Result<std::uint64_t> close_log(const std::string& path, std::string& why);

/// Has the database at `path` give no id below `id` any more; on the disk, and without companions, when it returns.
/// Errors: Errc::not_durable and SQLite's.
Result<> skip_ids(const std::string& path, std::uint64_t id, std::string& why);

/// Removes the database at `path` with all its companions. What is not there is no error.
void remove_whole(const std::string& path) noexcept;

}  // namespace stepstash::persist
