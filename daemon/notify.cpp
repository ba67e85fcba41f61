#include "daemon/notify.hpp"

#include <fcntl.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>
#include <time.h>

#include "base/text.hpp"

namespace stepstash::daemon {
namespace {

/// A status line is one line, and systemctl shows it: messages of libraries and paths appear in it.
std::string one_line(const std::string& text) { return visible(text); }

}  // namespace

Notifier::Notifier() {
  std::uint64_t usec = 0;
  if (::sd_watchdog_enabled(0, &usec) > 0) watchdog_ = std::chrono::microseconds(usec / 2);
}

void Notifier::starting(const std::string& status) {
  ::sd_notifyf(0, "WATCHDOG=1\nEXTEND_TIMEOUT_USEC=30000000\nSTATUS=%s", one_line(status).c_str());
}

void Notifier::ready(const std::string& status) { ::sd_notifyf(0, "READY=1\nSTATUS=%s", one_line(status).c_str()); }

void Notifier::reloading() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  const auto usec =
      static_cast<unsigned long long>(now.tv_sec) * 1'000'000 + static_cast<unsigned long>(now.tv_nsec) / 1000;
  ::sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%llu", usec);
}

void Notifier::stopping(const std::string& status) {
  ::sd_notifyf(0, "STOPPING=1\nEXTEND_TIMEOUT_USEC=30000000\nSTATUS=%s", one_line(status).c_str());
}

void Notifier::status(const std::string& text) {
  if (text == last_status_) return;
  last_status_ = text;
  ::sd_notifyf(0, "STATUS=%s", one_line(text).c_str());
}

void Notifier::alive() { ::sd_notify(0, "WATCHDOG=1"); }

UniqueFd Notifier::listening_socket() {
  const int count = ::sd_listen_fds(1);
  UniqueFd first;
  for (int i = 0; i < count; ++i) {
    UniqueFd fd(SD_LISTEN_FDS_START + i);
    if (!first && ::sd_is_socket_unix(fd.get(), SOCK_STREAM, 1, nullptr, 0) > 0) first = std::move(fd);
  }
  if (first) ::fcntl(first.get(), F_SETFD, FD_CLOEXEC);
  return first;
}

}  // namespace stepstash::daemon
