// SPDX-License-Identifier: Apache-2.0
#include "daemon/user_shares.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>

namespace stepstash::daemon {
namespace {

/// The fraction of the room that one user's views may keep in place when others find none.
constexpr std::uint64_t kSharePart = 4;
/// If users together hold more than half of it, the largest holder is also closed for holding this fraction more than
/// the user who needs room.
constexpr std::uint64_t kMarginPart = 64;
/// After a census the loop runs other work for this many times as long.
constexpr int kCensusPause = 9;

}  // namespace

const std::vector<shm::Segment::Held>& UserShares::held() {
  const auto start = clock_.monotonic();
  if (start < next_census_) return held_;
  held_ = segment_.held_by_users();
  const auto now = clock_.monotonic();
  next_census_ = now + kCensusPause * (now - start);
  return held_;
}

/// Closing takes nothing from the user, whose views stay as they are, so there is no reason to make others wait first.
bool UserShares::close_greediest(std::uint32_t for_user, std::uint64_t room) {
  if (clock_.monotonic() < next_census_) return false;
  std::uint64_t in_all = 0;
  std::uint64_t own = 0;
  const shm::Segment::Held* most = nullptr;
  for (const shm::Segment::Held& held : this->held()) {
    if (held.uid == for_user) own = held.bytes;
    if (held.closed) continue;
    in_all += held.bytes;
    if (held.uid != for_user && (most == nullptr || held.bytes > most->bytes)) most = &held;
  }
  // Several users, each below a share, can together leave no room: then the largest holder is closed.
  const bool too_much = most != nullptr && (most->bytes > room / kSharePart ||
                                            (in_all > room / 2 && most->bytes > own + room / kMarginPart));
  if (!too_much) return false;
  const shm::Segment::Held held = *most;
  next_census_ = {};
  closed_at_[held.uid] = held.bytes;  // even if some pages stay open: reopening covers all of them
  if (auto closed = segment_.close_user(held.uid); !closed) {
    spdlog::error("cannot close all pin pages of user {}: {}", held.uid, closed.error().message());
    next_census_ = clock_.monotonic() + std::chrono::seconds(1);
    return false;
  }
  ++closed_;
  spdlog::warn(
      "user {} holds {} of {} bytes in {} views, and others find no room: no more views for this user until half of "
      "that is released; the views that are open stay as they are, and their blocks are written off",
      held.uid, held.bytes, room, held.blocks);
  return true;
}

void UserShares::reopen(std::uint64_t room) {
  if (closed_at_.empty() || clock_.monotonic() < next_census_) return;
  std::map<std::uint32_t, std::uint64_t> now;
  for (const shm::Segment::Held& held : this->held()) now[held.uid] = held.bytes;
  std::erase_if(closed_at_, [&](const auto& closed) {
    const auto& [user, bytes] = closed;
    if (now[user] > std::min(bytes, room / kSharePart) / 2) return false;
    segment_.open_user(user);
    next_census_ = {};
    spdlog::info("user {} holds {} bytes in views now, and may have more again", user, now[user]);
    return true;
  });
}

}  // namespace stepstash::daemon
