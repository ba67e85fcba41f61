// SPDX-License-Identifier: Apache-2.0
/// The files of a database as files: `path`, with SQLite's -wal, -shm and -journal and our -reserve next to it. Which
/// of them may be trusted, whether they are still the ones that were opened, how large they are, and how a damaged
/// database is set aside. Their contents are the store's business.
///
/// Thread safety: everything here may be called from any thread.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "base/result.hpp"

namespace stepstash::persist {

inline constexpr std::array kCompanions = {"-wal", "-shm", "-journal", "-reserve"};

/// Identity of a file, whatever its name.
struct FileId {
  std::uint64_t device = 0;
  std::uint64_t inode = 0;
  bool operator==(const FileId&) const = default;
  /// Of the file at `path`, without following a link there; all zeros if there is none.
  static FileId at(const std::string& path) noexcept;
};

/// `path` with its directory resolved, the last component untouched. SQLite refuses symbolic links anywhere in a path
/// (SQLITE_OPEN_NOFOLLOW), but a linked /var or home directory is not an attack. Errors: Errc::invalid_argument (no
/// file name), those of the directory.
Result<std::string> resolve_directory(const std::string& path);

/// Whether there is a file at `path`. Removes permission bits beyond 0600. Errors: Errc::unsafe_object (a link, with a
/// second name, not regular or not ours), those of open(2) and chmod(2).
Result<bool> examine(const std::string& path);

/// Creates an empty file, mode 0600, which is a valid empty database; SQLite gives -wal and -shm the mode of the file
/// itself. Errors: Errc::not_durable (no room, or the device), those of open(2).
Result<> create_file(const std::string& path);

/// Creates a file of `bytes` bytes, or of at least an eighth of that, unless there is one. If there is no room, creates
/// none; a later call tries again.
void make_reserve(const std::string& path, std::uint64_t bytes) noexcept;

/// Bytes left on the file system that holds `path`; UINT64_MAX if it does not say.
std::uint64_t room_beside(const std::string& path) noexcept;
/// 0: it does not exist.
std::uint64_t file_bytes(const std::string& path) noexcept;
/// In seconds since 1970; 0: it does not exist.
std::int64_t modified_at(const std::string& path) noexcept;

/// Renames the database and its -wal, -shm and -journal to `path`.damaged-<n>, where n is the first free number, and
/// returns the new name. Nobody may write to it from then on. Errors: those of rename(2).
Result<std::string> set_aside(const std::string& path);
/// The paths that set_aside() has used for `path` and that still exist. O(names in the directory).
std::vector<std::string> kept_aside(const std::string& path);
/// The last of these and when it was renamed, in seconds since 1970; an empty path if there is none. Whatever changes
/// the file's inode counts as a renaming. O(names in the directory).
struct SetAside {
  std::string path;
  std::int64_t at = 0;
};
SetAside last_set_aside(const std::string& path);

}  // namespace stepstash::persist
