// SPDX-License-Identifier: Apache-2.0
/// Keeps descriptors 0, 1 and 2 occupied in our programs, which may be started with any of them closed.
///
/// Otherwise the first files that they open would get these numbers: a socket that becomes 1 receives what the program
/// prints. A library cannot do this, because the descriptors belong to its program; it avoids them (above_stdio).
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

namespace stepstash {

/// Fills the closed ones with a placeholder. It can be neither read nor written (EBADF, as before), nor reopened for
/// that through /dev/stdout: hence a directory, and O_PATH. Returns false, with errno set, on failure. Call it first in
/// main(), before anything is opened.
inline bool fill_standard_descriptors() noexcept {
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd) {
    if (::fcntl(fd, F_GETFD) >= 0 || errno != EBADF) continue;
    if (::open("/", O_PATH | O_DIRECTORY | O_CLOEXEC) != fd) return false;  // the lowest free one: this one
  }
  return true;
}

/// Whether `fd` was closed when the program started.
inline bool was_closed(int fd) noexcept {
  const int flags = ::fcntl(fd, F_GETFL);
  return flags < 0 || (flags & O_PATH) != 0;
}

}  // namespace stepstash
