// SPDX-License-Identifier: Apache-2.0
#include "daemon/notify.hpp"

#include <sys/socket.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
#include <time.h>

#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/text.hpp"

namespace stepstash::daemon {
namespace {

/// A status must be one line, and systemctl displays it: it contains paths and texts of libraries.
std::string one_line(const std::string& text) { return visible(text); }

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

}  // namespace stepstash::daemon
