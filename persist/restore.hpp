// SPDX-License-Identifier: Apache-2.0
/// Prepares a backup to replace a database. Not to be used while a store is open.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.hpp"

namespace stepstash::persist {

/// Copies the database `from`, in WAL mode or not, to the new file `to` with SQLite's backup API, and runs every check
/// on it: SQLite's integrity check, application, version (older ones are migrated), the list of entries. On success
/// `to` is synced to disk and has no companions; after an error it does not exist. `why` receives a message about a
/// failure. Errors: Errc::corrupt_database, Errc::foreign_database, Errc::newer_database, Errc::not_durable (`from`
/// cannot be read, or the disk is full), those of open(2).
struct Copied {
  std::uint64_t entries = 0;
  std::uint64_t builds = 0;  // with entries
};
Result<Copied> copy_whole(const std::string& from, const std::string& to, std::string& why);

/// Checkpoints the write-ahead log of the database at `path` into the file and removes the log, so that the file can be
/// replaced. Returns the id below which all given ids lie; 0 if it cannot be read. A damaged database is set aside
/// (database_files.hpp, set_aside). A missing file is not an error. Errors: Errc::already_held (another program has it
/// open), Errc::foreign_database, Errc::not_durable.
Result<std::uint64_t> close_log(const std::string& path, std::string& why);

/// Makes the database at `path` give out no more ids below `id`; on return it is synced to disk and has no companions.
/// Errors: Errc::not_durable and SQLite's.
Result<> skip_ids(const std::string& path, std::uint64_t id, std::string& why);

/// Removes the database at `path` with all its companions. Missing files are not an error.
void remove_whole(const std::string& path) noexcept;

}  // namespace stepstash::persist
