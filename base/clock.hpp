// SPDX-License-Identifier: Apache-2.0
/// Time behind an interface, so that tests can set the clocks.
///
/// `monotonic` drives flushes and deadlines and never jumps. `wall` is only compared with complete_at; the horizon also
/// uses `boot_time`, which nobody can set.
#pragma once

#include <time.h>

#include <chrono>
#include <cstdint>

namespace stepstash {

class Clock {
 public:
  virtual ~Clock() = default;
  /// Time since boot, CLOCK_MONOTONIC: comparable between processes of one boot.
  virtual std::chrono::nanoseconds monotonic() const = 0;
  /// The same including suspend, CLOCK_BOOTTIME: how long ago something really was.
  virtual std::chrono::nanoseconds boot_time() const = 0;
  /// Whole seconds since 1970-01-01 UTC, as Buildbot stores complete_at.
  virtual std::int64_t wall_seconds() const = 0;
};

class SystemClock final : public Clock {
 public:
  std::chrono::nanoseconds monotonic() const override {
    return std::chrono::steady_clock::now().time_since_epoch();  // CLOCK_MONOTONIC in libstdc++
  }
  std::chrono::nanoseconds boot_time() const override {
    timespec now{};
    ::clock_gettime(CLOCK_BOOTTIME, &now);
    return std::chrono::seconds(now.tv_sec) + std::chrono::nanoseconds(now.tv_nsec);
  }
  std::int64_t wall_seconds() const override {
    using namespace std::chrono;
    return duration_cast<seconds>(system_clock::now().time_since_epoch()).count();
  }
};

}  // namespace stepstash
