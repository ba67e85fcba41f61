// SPDX-License-Identifier: Apache-2.0
#include "daemon/listening_socket.hpp"

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>

#include "base/crash_point.hpp"
#include "daemon/exit_status.hpp"

namespace stepstash::daemon {

Configured<UniqueFd> make_listening_socket(const Config& config) {
  const std::string& path = config.socket;
  struct stat status {};
  if (::lstat(path.c_str(), &status) == 0) {
    // We hold the lock, so a socket of ours that is still there was left by a daemon that died.
    if (!S_ISSOCK(status.st_mode) || status.st_uid != ::geteuid()) {
      return fail(kExitPermission, fmt::format("{}: in the way, and not a socket of this user's own", path));
    }
    if (::unlink(path.c_str()) != 0) return fail(kExitCannotCreate, fmt::format("{}: {}", path, std::strerror(errno)));
  }
  STEPSTASH_CRASH_POINT("daemon.server.socket.place_free");
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  // Mode 0 until owner and mode are right: nobody can connect before then.
  const mode_t mask = ::umask(0777);
  const int bound = ::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
  const int error = errno;
  ::umask(mask);
  STEPSTASH_CRASH_POINT("daemon.server.socket.bound");
  if (bound != 0) return fail(kExitCannotCreate, fmt::format("cannot bind {}: {}", path, std::strerror(error)));
  if (config.socket_group && ::lchown(path.c_str(), static_cast<uid_t>(-1), config.socket_group->id) != 0) {
    return fail(kExitPermission,
                fmt::format("cannot give {} to group {}: {}", path, config.socket_group->text, std::strerror(errno)));
  }
  if (::chmod(path.c_str(), config.socket_mode) != 0 || ::listen(socket.get(), SOMAXCONN) != 0) {
    return fail(kExitCannotCreate, fmt::format("cannot listen on {}: {}", path, std::strerror(errno)));
  }
  STEPSTASH_CRASH_POINT("daemon.server.socket.listening");
  return socket;
}

std::string address_of(const UniqueFd& socket, const std::string& otherwise) {
  sockaddr_un address{};
  socklen_t size = sizeof address;
  if (::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0 && address.sun_path[0] == '/') {
    return address.sun_path;
  }
  if (size > offsetof(sockaddr_un, sun_path) && address.sun_path[0] == 0) {
    // An abstract socket has no file and no group: access follows the configured lists, or the daemon's own group.
    return "@" + std::string(address.sun_path + 1, size - offsetof(sockaddr_un, sun_path) - 1);
  }
  return otherwise;
}

gid_t group_of(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 ? status.st_gid : ::getegid();
}

}  // namespace stepstash::daemon
