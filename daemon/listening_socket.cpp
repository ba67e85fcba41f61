// SPDX-License-Identifier: Apache-2.0
#include "daemon/listening_socket.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "base/crash_point.hpp"
#include "daemon/exit_status.hpp"

namespace stepstash::daemon {
namespace {

/// How a socket that this program made is called when it passes it to itself (LISTEN_FDNAMES).
constexpr const char* kOurs = "stepstash-ours";

/// `a TCP socket on 127.0.0.1:80`.
std::string kind_of(int fd) {
  int domain = 0, type = 0, listening = 0;
  socklen_t size = sizeof domain;
  if (::getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) != 0) return "not a socket";
  size = sizeof type;
  ::getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size);
  size = sizeof listening;
  ::getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size);
  sockaddr_storage address{};
  size = sizeof address;
  ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  if (domain == AF_INET || domain == AF_INET6) {
    char host[INET6_ADDRSTRLEN + 2] = "";
    in_port_t port = 0;
    if (domain == AF_INET) {
      const auto& inet = reinterpret_cast<const sockaddr_in&>(address);
      ::inet_ntop(AF_INET, &inet.sin_addr, host, sizeof host);
      port = inet.sin_port;
    } else {
      const auto& inet = reinterpret_cast<const sockaddr_in6&>(address);
      host[0] = '[';
      ::inet_ntop(AF_INET6, &inet.sin6_addr, host + 1, sizeof host - 2);
      host[std::strlen(host)] = ']';
      port = inet.sin6_port;
    }
    return std::string(type == SOCK_STREAM ? "a TCP socket on " : "a UDP socket on ") + host + ":" +
           std::to_string(ntohs(port));
  }
  if (domain != AF_UNIX) return "a socket of address family " + std::to_string(domain);
  if (type != SOCK_STREAM) return "a unix socket that is no stream";
  return listening != 0 ? "a unix stream socket" : "a connection, not a listening socket";
}

}  // namespace

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

ListeningSocket inherited_socket(std::string& what_is_wrong) {
  char** names = nullptr;
  const int count = ::sd_listen_fds_with_names(1, &names);
  const bool ours = count == 1 && std::strcmp(names[0], kOurs) == 0;
  for (int i = 0; i < count; ++i) std::free(names[i]);
  std::free(names);
  if (count == 0) return {};
  if (count < 0) {
    what_is_wrong = "LISTEN_FDS: " + std::system_category().message(-count);
    return {};
  }
  std::vector<UniqueFd> passed;
  std::string unfit;
  for (int i = 0; i < count; ++i) {
    const int fd = passed.emplace_back(SD_LISTEN_FDS_START + i).get();
    if (::sd_is_socket_unix(fd, SOCK_STREAM, 1, nullptr, 0) > 0) continue;
    unfit += (unfit.empty() ? "" : ", ") + ("descriptor " + std::to_string(fd) + " is " + kind_of(fd));
  }
  if (!unfit.empty()) {
    what_is_wrong = unfit;
  } else if (count > 1) {
    what_is_wrong = "there are " + std::to_string(count);
  } else {
    ::fcntl(passed.front().get(), F_SETFD, FD_CLOEXEC);
    return {std::move(passed.front()), ours};
  }
  what_is_wrong = "systemd hands over (LISTEN_FDS) what cannot be served: " + what_is_wrong +
                  "; what can be is one listening unix stream socket (ListenStream=/PATH, Accept=no)";
  return {};
}

void pass_on(ListeningSocket socket) {
  const bool placed = socket.fd.get() == SD_LISTEN_FDS_START
                          ? ::fcntl(socket.fd.get(), F_SETFD, 0) == 0
                          : ::dup2(socket.fd.get(), SD_LISTEN_FDS_START) >= 0;  // without FD_CLOEXEC
  static_cast<void>(socket.fd.release());
  // Asio accepts connections without FD_CLOEXEC: their clients would wait for a program that does not know them.
  constexpr int kFirst = SD_LISTEN_FDS_START + 1;
  if (::close_range(kFirst, ~0U, CLOSE_RANGE_CLOEXEC) != 0) {  // before Linux 5.11
    std::error_code error;
    for (std::filesystem::directory_iterator at("/proc/self/fd", error), end; !error && at != end;
         at.increment(error)) {
      const auto fd = static_cast<int>(std::strtol(at->path().filename().c_str(), nullptr, 10));
      if (fd >= kFirst) ::fcntl(fd, F_SETFD, FD_CLOEXEC);
    }
  }
  if (!placed) return;  // the next start makes one, or ends and is started again
  ::setenv("LISTEN_PID", std::to_string(::getpid()).c_str(), 1);
  ::setenv("LISTEN_FDS", "1", 1);
  ::setenv("LISTEN_FDNAMES", socket.ours ? kOurs : "systemd", 1);
}

}  // namespace stepstash::daemon
