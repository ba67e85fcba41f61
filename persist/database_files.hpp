// SPDX-License-Identifier: Apache-2.0
/// The files of a database as files: `path`, and beside it SQLite's -wal, -shm and -journal and our -reserve. Which of
/// them may be trusted, whether they are still the ones that were opened, how large they are, and how a damaged
/// database goes out of the way. What stands in them is the store's business.
///
/// Thread safety: all of it may be called from any thread.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "base/result.hpp"

namespace stepstash::persist {

inline constexpr std::array kCompanions = {"-wal", "-shm", "-journal", "-reserve"};

/// Which file it is, whatever its name.
struct FileId {
  std::uint64_t device = 0;
  std::uint64_t inode = 0;
  bool operator==(const FileId&) const = default;
  /// Of what is at `path`, which is not followed; all zeros when nothing is.
  static FileId at(const std::string& path) noexcept;
};

/// `path` with its directory resolved, the last component untouched. SQLite refuses symbolic links anywhere in a path
/// (SQLITE_OPEN_NOFOLLOW), and a linked /var or home directory is nobody's attack. Errors: Errc::invalid_argument (no
/// file name), those of the directory.
Result<std::string> resolve_directory(const std::string& path);

/// Whether there is a file at `path`. Takes bits beyond 0600 away. Errors: Errc::unsafe_object (a link, with a second
/// name, not regular or not ours), those of open(2) and chmod(2).
Result<bool> examine(const std::string& path);

/// Makes an empty file, mode 0600, which is a valid empty database; SQLite gives -wal and -shm the mode of the file
/// itself. Errors: Errc::not_durable (no room, or the device), those of open(2).
Result<> create_file(const std::string& path);

/// Makes a file of `bytes` bytes, or of an eighth of that at least, unless there is one. Without room for it there is
/// none, until there is.
void make_reserve(const std::string& path, std::uint64_t bytes) noexcept;

/// Bytes that the file system beside `path` has left; all there are when it does not say.
std::uint64_t room_beside(const std::string& path) noexcept;
/// 0: it is not there.
std::uint64_t file_bytes(const std::string& path) noexcept;
/// In seconds since 1970; 0: it is not there.
std::int64_t modified_at(const std::string& path) noexcept;

/// Renames the database and its -wal, -shm and -journal to `path`.damaged-<n>, n being the first that is free, and
/// returns the new name. Nobody may have it open. Errors: those of rename(2).
Result<std::string> set_aside(const std::string& path);
/// The paths that set_aside() has given at `path` and that are still there. O(names in the directory).
std::vector<std::string> kept_aside(const std::string& path);

}  // namespace stepstash::persist
