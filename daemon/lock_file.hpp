// SPDX-License-Identifier: Apache-2.0
/// A lock held for life: one daemon per segment, database and socket.
///
/// flock(2) on a file of its own beside what it guards: the kernel drops it when the daemon dies, however it dies. The
/// file says which pid holds it, and stays behind unlocked: removing it would let two daemons lock two files of one
/// name.
#pragma once

#include <string>

#include "base/result.hpp"
#include "base/unique_fd.hpp"

namespace stepstash::daemon {

class LockFile {
 public:
  /// Locks `path`, making it (mode 0600) where it is missing. When somebody else has it: Errc::already_held, and
  /// `holder` says who ("pid 123"). Errors: Errc::unsafe_object (a link, foreign, not a regular file), those of
  /// open(2).
  static Result<LockFile> acquire(const std::string& path, std::string& holder);

 private:
  explicit LockFile(UniqueFd fd) noexcept : fd_(std::move(fd)) {}
  UniqueFd fd_;
};

}  // namespace stepstash::daemon
