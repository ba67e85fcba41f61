// SPDX-License-Identifier: Apache-2.0
/// What systemd is sent, and what it passes (sd_notify(3), sd_listen_fds(3)). A no-op without systemd.
///
/// Nothing here blocks: if the manager does not read, essential messages are sent later and the rest are dropped.
#pragma once

#include <chrono>
#include <deque>
#include <optional>
#include <string>

#include "base/unique_fd.hpp"

namespace stepstash::daemon {

class Notifier {
 public:
  Notifier();
  void starting(const std::string& status);  ///< also asks for more time: recovery of many entries may take long
  void ready(const std::string& status);
  void reloading();
  void stopping(const std::string& status);
  void status(const std::string& text);  ///< sent only if it differs from the last
  void alive();                          ///< pings the watchdog
  void catch_up();                       ///< sends messages that could not be sent before; call it regularly
  /// How often to call alive(): half the interval the unit sets; nullopt without a watchdog.
  std::optional<std::chrono::microseconds> watchdog_interval() const noexcept { return watchdog_; }

 private:
  bool send(const std::string& message);
  void send_later(std::string message);

  std::optional<std::chrono::microseconds> watchdog_;
  UniqueFd socket_;
  std::deque<std::string> later_;  // in this order, and before anything else
  std::string last_status_;
};

}  // namespace stepstash::daemon
