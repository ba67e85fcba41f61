// SPDX-License-Identifier: Apache-2.0
/// What systemd is told, and what it hands over (sd_notify(3), sd_listen_fds(3)). Without systemd all of it is nothing.
///
/// Nothing here waits: where the manager does not read, what it has to know is told later, and the rest is left out.
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
  void starting(const std::string& status);  ///< also asks for more time: recovery of many entries may be long
  void ready(const std::string& status);
  void reloading();
  void stopping(const std::string& status);
  void status(const std::string& text);  ///< sent only when it differs from the last
  void alive();                          ///< feeds the watchdog
  void catch_up();                       ///< tells what could not be told before; call it now and then
  /// How often alive() is due: half of what the unit asks for; nullopt without a watchdog.
  std::optional<std::chrono::microseconds> watchdog_interval() const noexcept { return watchdog_; }

  /// The listening socket that the socket unit passed, if it did; empty: it did not. Call once. `what_is_wrong` is set
  /// where something was passed that cannot be served, or more than one: nobody would ever answer there.
  static UniqueFd listening_socket(std::string& what_is_wrong);

 private:
  bool send(const std::string& message);
  void send_later(std::string message);

  std::optional<std::chrono::microseconds> watchdog_;
  UniqueFd socket_;
  std::deque<std::string> later_;  // in this order, and before anything else
  std::string last_status_;
};

}  // namespace stepstash::daemon
