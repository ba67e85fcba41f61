// SPDX-License-Identifier: Apache-2.0
/// Descriptors 0, 1 and 2 of a program of ours, for it may be started with any of them closed.
///
/// Without this the first files that it opens would take their numbers: a socket that becomes 1 receives what the
/// program prints. A library cannot do that, for they are its program's own: it keeps off them (above_stdio).
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

namespace stepstash {

/// Puts something in the place of those that are closed. It can be neither read nor written (EBADF, as before), nor
/// opened again for that through /dev/stdout: hence a directory, and O_PATH. False, with errno, when that fails.
/// Called first in main(), before anything is opened.
inline bool fill_standard_descriptors() noexcept {
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd) {
    if (::fcntl(fd, F_GETFD) >= 0 || errno != EBADF) continue;
    if (::open("/", O_PATH | O_DIRECTORY | O_CLOEXEC) != fd) return false;  // the lowest that is free: this one
  }
  return true;
}

/// Whether `fd` is one that was closed when the program started.
inline bool was_closed(int fd) noexcept {
  const int flags = ::fcntl(fd, F_GETFL);
  return flags < 0 || (flags & O_PATH) != 0;
}

}  // namespace stepstash
