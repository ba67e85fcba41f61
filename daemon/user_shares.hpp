// SPDX-License-Identifier: Apache-2.0
/// Limits what one user's views may keep in place when others find no room.
///
/// A user who holds more has their pages closed (docs/architecture.md, "Revoking"): existing views stay as they are,
/// their blocks are written off, and the user gets no new views until they hold at most half of what they held, and
/// half of their share.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <vector>

#include "base/clock.hpp"
#include "shm/segment.hpp"

namespace stepstash::daemon {

/// Thread safety: the loop's thread only. Lifetime: everything it refers to outlives it.
class UserShares {
 public:
  UserShares(shm::Segment& segment, const Clock& clock) : segment_(segment), clock_(clock) {}

  /// What each user's views keep in place; not older than ten times as long as the census takes. O(pins) when a new
  /// census is taken.
  const std::vector<shm::Segment::Held>& held();
  /// Closes the pages of the user that holds most, other than `for_user`, if that is more than a share of `room` bytes,
  /// or if all users together hold more than half of it and that user more than `for_user`; returns whether pages were
  /// closed.
  bool close_greediest(std::uint32_t for_user, std::uint64_t room);
  /// Reopens the pages of users who have released enough.
  void reopen(std::uint64_t room);
  /// How often a user's pages were closed.
  std::uint64_t closed() const noexcept { return closed_; }

 private:
  shm::Segment& segment_;
  const Clock& clock_;
  std::chrono::nanoseconds next_census_{0};
  std::vector<shm::Segment::Held> held_;
  std::map<std::uint32_t, std::uint64_t> closed_at_;  // users whose pages are closed, and what they held at that time
  std::uint64_t closed_ = 0;
};

}  // namespace stepstash::daemon
