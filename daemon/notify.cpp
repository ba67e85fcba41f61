// SPDX-License-Identifier: Apache-2.0
#include "daemon/notify.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
#include <time.h>

#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <system_error>
#include <utility>
#include <vector>

#include "base/text.hpp"

namespace stepstash::daemon {
namespace {

/// A status must be one line, and systemctl displays it: it contains paths and texts of libraries.
std::string one_line(const std::string& text) { return visible(text); }

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

Notifier::Notifier() {
  std::uint64_t usec = 0;
  if (::sd_watchdog_enabled(0, &usec) > 0) watchdog_ = std::chrono::microseconds(usec / 2);
}

/// False if the message cannot be sent without blocking. sd_notify(3) would block: systemd reads this socket when it
/// gets round to it, and the kernel queues only ten messages.
bool Notifier::send(const std::string& message) {
  const char* path = std::getenv("NOTIFY_SOCKET");
  if (path == nullptr) return true;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::size_t length = std::strlen(path);
  if ((*path != '/' && *path != '@') || length >= sizeof address.sun_path) {
    return ::sd_notify(0, message.c_str()), true;  // not a unix socket
  }
  std::memcpy(address.sun_path, path, length);
  if (*path == '@') address.sun_path[0] = '\0';
  if (!socket_) socket_ = UniqueFd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const auto bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + length + (*path == '@' ? 0 : 1));
  const ssize_t sent = ::sendto(socket_.get(), message.data(), message.size(), MSG_NOSIGNAL | MSG_DONTWAIT,
                                reinterpret_cast<const sockaddr*>(&address), bytes);
  return sent >= 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != ENOBUFS && errno != EINTR);
}

void Notifier::send_later(std::string message) {
  later_.push_back(std::move(message));
  catch_up();
}

void Notifier::catch_up() {
  while (!later_.empty() && send(later_.front())) later_.pop_front();
}

void Notifier::starting(const std::string& status) {
  catch_up();
  (void)send("WATCHDOG=1\nEXTEND_TIMEOUT_USEC=30000000\nSTATUS=" + one_line(status));
}

void Notifier::ready(const std::string& status) { send_later("READY=1\nSTATUS=" + one_line(status)); }

void Notifier::reloading() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  const auto usec =
      static_cast<unsigned long long>(now.tv_sec) * 1'000'000 + static_cast<unsigned long>(now.tv_nsec) / 1000;
  send_later("RELOADING=1\nMONOTONIC_USEC=" + std::to_string(usec));
}

void Notifier::stopping(const std::string& status) {
  send_later("STOPPING=1\nEXTEND_TIMEOUT_USEC=30000000\nSTATUS=" + one_line(status));
}

void Notifier::status(const std::string& text) {
  catch_up();
  if (text == last_status_ || !later_.empty()) return;
  if (send("STATUS=" + one_line(text))) last_status_ = text;
}

void Notifier::alive() {
  catch_up();
  (void)send("WATCHDOG=1");
}

UniqueFd Notifier::listening_socket(std::string& what_is_wrong) {
  const int count = ::sd_listen_fds(1);
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
    return std::move(passed.front());
  }
  what_is_wrong = "systemd hands over (LISTEN_FDS) what cannot be served: " + what_is_wrong +
                  "; what can be is one listening unix stream socket (ListenStream=/PATH, Accept=no)";
  return {};
}

}  // namespace stepstash::daemon
