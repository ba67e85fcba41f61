// SPDX-License-Identifier: Apache-2.0
/// When a build was completed, on the boot clock.
///
/// The horizon deletes data by age, and the wall clock can be wrong or be set. So ages are also measured on
/// CLOCK_BOOTTIME, which nobody can set: this class converts a build's complete_at, a wall time, to it.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "base/clock.hpp"

namespace stepstash::daemon {

/// Thread safety: const functions may be called from any thread. Lifetime: the clock outlives it.
class CompletionClock {
 public:
  /// Create it at the start of the daemon. `last_written`: the wall time of the database's last commit; 0 if there is
  /// none.
  CompletionClock(const Clock& clock, std::int64_t last_written)
      : clock_(clock), started_(clock.boot_time()), wall_at_start_(clock.wall_seconds()) {
    if (last_written != 0) wall_at_start_ = std::min(wall_at_start_, last_written);
  }

  /// Nanoseconds on CLOCK_BOOTTIME; negative: before the boot. A complete_at in the future counts as now.
  std::int64_t on_boot_clock(std::int64_t complete_at) const {
    const std::int64_t now = clamped_wall_seconds();
    // Clamped to a century, so that no complete_at can overflow.
    constexpr std::int64_t kCentury = 100LL * 365 * 86400;
    const std::int64_t age = now - std::clamp(complete_at, now - kCentury, now);
    return (clock_.boot_time() - std::chrono::seconds(age)).count();
  }

 private:
  /// The wall time, without what the clock has jumped ahead since the start or, while no daemon ran, since the last
  /// commit.
  std::int64_t clamped_wall_seconds() const {
    const auto passed = std::chrono::duration_cast<std::chrono::seconds>(clock_.boot_time() - started_);
    return std::min(clock_.wall_seconds(), wall_at_start_ + passed.count());
  }

  const Clock& clock_;
  std::chrono::nanoseconds started_;  // on the boot clock
  std::int64_t wall_at_start_;        // or of the last commit, if that is earlier
};

}  // namespace stepstash::daemon
