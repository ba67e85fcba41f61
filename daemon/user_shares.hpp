// SPDX-License-Identifier: Apache-2.0
/// What one user's views may keep in place while others find no room, and what happens to a user who holds more.
///
/// The pages of that user are closed (docs/architecture.md, "Revoking"): his views stay as they are, their blocks are
/// written off, and he gets no new views until he holds at most half of what he held, and half of his share.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <vector>

#include "base/clock.hpp"
#include "shm/writer.hpp"

namespace stepstash::daemon {

/// Thread safety: the loop's thread only. Lifetime: all it refers to outlives it.
class UserShares {
 public:
  UserShares(shm::Writer& segment, const Clock& clock) : segment_(segment), clock_(clock) {}

  /// What the views of each user keep in place; not older than ten times as long as the census takes.
  /// O(pins) when it is taken.
  const std::vector<shm::Writer::Held>& held();
  /// Closes the pages of the user who holds most of `room` bytes, if that is more than a share and somebody else's than
  /// `for_user`; returns whether pages were closed.
  bool close_greediest(std::uint32_t for_user, std::uint64_t room);
  /// Opens the pages of users who have released enough.
  void reopen(std::uint64_t room);
  /// Times that a user held more than a share.
  std::uint64_t closed() const noexcept { return closed_; }

 private:
  shm::Writer& segment_;
  const Clock& clock_;
  std::chrono::nanoseconds next_census_{0};
  std::vector<shm::Writer::Held> held_;
  std::map<std::uint32_t, std::uint64_t> closed_at_;  // users whose pages are closed: what they held then
  std::uint64_t closed_ = 0;
};

}  // namespace stepstash::daemon
