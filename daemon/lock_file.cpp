// SPDX-License-Identifier: Apache-2.0
#include "daemon/lock_file.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>

#include "base/crash_point.hpp"
#include "base/errc.hpp"

namespace stepstash::daemon {

Result<LockFile> LockFile::acquire(const std::string& path, std::string& holder) {
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600));
  if (!fd) return errno == ELOOP ? make_error_code(Errc::unsafe_object) : last_errno();
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) return last_errno();
  if (!S_ISREG(status.st_mode) || status.st_uid != ::geteuid() || status.st_nlink != 1) return Errc::unsafe_object;
  // Anybody who can open the file can hold the lock and keep the daemon from starting.
  if ((status.st_mode & 07777) != 0600 && ::fchmod(fd.get(), 0600) != 0) return last_errno();
  STEPSTASH_CRASH_POINT("daemon.lock.file.made");
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return last_errno();
    std::array<char, 32> text{};
    const ssize_t got = ::pread(fd.get(), text.data(), text.size() - 1, 0);
    const std::string pid(text.data(), got > 0 ? static_cast<std::size_t>(got) : 0);
    holder = "pid " + pid.substr(0, pid.find_first_not_of("0123456789"));
    return Errc::already_held;
  }
  const std::string pid = std::to_string(::getpid()) + "\n";
  // Informational: the lock itself does not depend on it.
  if (::ftruncate(fd.get(), 0) != 0 || ::pwrite(fd.get(), pid.data(), pid.size(), 0) < 0) return last_errno();
  STEPSTASH_CRASH_POINT("daemon.lock.pid.written");
  return LockFile(std::move(fd));
}

}  // namespace stepstash::daemon
