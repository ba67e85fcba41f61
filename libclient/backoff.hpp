// SPDX-License-Identifier: Apache-2.0
/// Retry intervals and deadlines.
#pragma once

#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "libclient/channel.hpp"

namespace stepstash::client {

inline bool passed(Deadline deadline) noexcept { return std::chrono::steady_clock::now() >= deadline; }

/// Pauses between attempts: 1, 2, 4 ... 50 ms. A restarted daemon is back within about a second.
class Backoff {
 public:
  void pause(Deadline deadline) noexcept {
    const auto left = std::max<std::uint32_t>(remaining_ms(deadline), 1);
    const timespec span{0, long{1'000'000} * std::min(next_ms_, std::min<std::uint32_t>(left, 50))};
    ::nanosleep(&span, nullptr);  // a signal may interrupt it: the next attempt comes a little early
    next_ms_ = std::min<std::uint32_t>(next_ms_ * 2, 50);
  }

 private:
  std::uint32_t next_ms_ = 1;
};

}  // namespace stepstash::client
