// SPDX-License-Identifier: Apache-2.0
/// Named objects: the segment, pin pages and lock files, as files of one directory (a tmpfs).
///
/// By default that is a directory in /dev/shm, where POSIX shared memory lives on Linux. Boost.Interprocess's
/// shared_memory_object can neither rename (an object must never be seen half made) nor use a separate tmpfs (with huge
/// pages), so the objects are opened here and mapped by its mapped_region (mapping.hpp).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.hpp"
#include "base/unique_fd.hpp"

namespace stepstash::shm {

/// Which parts of an object have pages. Touching any other part through a mapping makes the kernel allocate a page, and
/// raises SIGBUS if it cannot. Check the pages of possibly damaged data before following it.
class DataMap {
 public:
  /// O(runs of pages). Errors: those of lseek(2).
  static Result<DataMap> of(int fd);
  /// Whether all of [begin, end) has pages. O(log runs).
  bool contains(std::uint64_t begin, std::uint64_t end) const noexcept;

 private:
  std::vector<std::pair<std::uint64_t, std::uint64_t>> runs_;  // ascending, disjoint and not adjacent
};

/// Thread safety: const calls may run concurrently.
class ObjectDirectory {
 public:
  static Result<ObjectDirectory> open(const std::string& path = "/dev/shm");
  /// Opens a subdirectory after checking that it is a directory, not a link, and owned by this user; closes it to
  /// others (mode 0700). Errors: ENOENT; Errc::unsafe_object; those of openat(2) and fchmod(2).
  Result<ObjectDirectory> open_own_directory(const std::string& name) const;
  /// Creates one with mode 0700. Errors: those of mkdirat(2), among them EEXIST; those of open_own_directory().
  Result<ObjectDirectory> make_directory(const std::string& name) const;

  /// Creates an object, readable and writable, mode 0600 whatever the umask. Errors: those of openat(2), among them
  /// EEXIST.
  Result<UniqueFd> create(const std::string& name) const;

  enum class Access { read_only, read_write };
  /// Opens an object after checking that it is this user's own: a regular file with one link, not a symbolic link.
  /// Errors: ENOENT; Errc::unsafe_object, also if another user's object cannot be opened; those of openat(2).
  Result<UniqueFd> open_own(const std::string& name, Access access) const;

  /// Atomically replaces `to` if it exists. Errors: those of renameat(2).
  Result<> rename(const std::string& from, const std::string& to) const;
  /// Moves an object of another directory here; never replaces anything. Errors: those of renameat2(2).
  Result<> take(const ObjectDirectory& from, const std::string& name, const std::string& as) const;
  /// Gives `from` the first free name of `to`.1, `to`.2, ... and returns it; never replaces anything.
  Result<std::string> set_aside(const std::string& from, const std::string& to) const;
  /// A missing name is not an error.
  Result<> remove(const std::string& name) const;
  /// Names that begin with `prefix`, sorted. O(names in the directory).
  Result<std::vector<std::string>> list(std::string_view prefix) const;

  const std::string& path() const noexcept { return path_; }

 private:
  ObjectDirectory(UniqueFd fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}

  UniqueFd fd_;
  std::string path_;
};

}  // namespace stepstash::shm
