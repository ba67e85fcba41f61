// SPDX-License-Identifier: Apache-2.0
/// A lock held for the life of the process: one daemon per segment, database and socket.
///
/// flock(2) on a separate file next to what it guards: the kernel drops the lock when the daemon dies, however it dies.
/// The file contains the holder's pid and stays behind unlocked: removing it would allow two daemons to lock two files
/// of the same name.
#pragma once

#include <string>

#include "base/result.hpp"
#include "base/unique_fd.hpp"

namespace stepstash::daemon {

class LockFile {
 public:
  /// Locks `path`, creating it (mode 0600) if missing. If another process has it: Errc::already_held, and `holder`
  /// identifies it ("pid 123"). Errors: Errc::unsafe_object (a link, another user's, not a regular file), those of
  /// open(2).
  static Result<LockFile> acquire(const std::string& path, std::string& holder);

 private:
  explicit LockFile(UniqueFd fd) noexcept : fd_(std::move(fd)) {}
  UniqueFd fd_;
};

}  // namespace stepstash::daemon
