// SPDX-License-Identifier: Apache-2.0
/// A clock that stands still until a test moves it.
///
/// Thread safety: any thread may read and move it.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

#include "base/clock.hpp"

namespace stepstash::test {

class ManualClock final : public Clock {
 public:
  std::chrono::nanoseconds monotonic() const override { return std::chrono::nanoseconds(monotonic_.load()); }
  std::chrono::nanoseconds boot_time() const override { return monotonic(); }
  std::int64_t wall_seconds() const override { return wall_.load(); }

  void advance(std::chrono::nanoseconds by) { monotonic_ += by.count(); }
  void set_wall(std::int64_t seconds) { wall_ = seconds; }

 private:
  std::atomic<std::int64_t> monotonic_{1'000'000'000};
  std::atomic<std::int64_t> wall_{1'700'000'000};
};

}  // namespace stepstash::test
