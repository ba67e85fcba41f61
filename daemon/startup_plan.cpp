// SPDX-License-Identifier: Apache-2.0
#include "daemon/startup_plan.hpp"

#include <algorithm>

namespace stepstash::daemon {
namespace {

using Make = Plan::Make;
using List = Plan::List;

/// The configured size, or what the database's list needs.
std::uint64_t fitting(const Found::Room& room) noexcept { return std::max(room.configured, room.list); }

/// The segment changes its size where nothing can be lost by that. A list that needs more than the configured size
/// makes segments larger than it; they stay so as long as it does.
bool must_resize(const Found& found) noexcept {
  const Found::Room& room = found.room;
  return room.segment != room.configured && room.list <= room.configured && room.segment_only <= room.configured &&
         !found.unsettled;
}

Plan keep(const Found& found) noexcept {
  const List list = found.differs() ? List::verify : found.set_aside ? List::add : List::none;
  return {.make = Make::keep, .list = list, .all_dirty = found.differs()};
}

Plan write_out(const Found& found, std::uint64_t bytes) noexcept {
  return {.make = Make::write_out,
          .list = found.differs() ? List::verify : List::none,
          .bytes = bytes,
          .builds = found.room.list_builds,
          .all_dirty = found.differs()};
}

}  // namespace

Plan decide(const Found& found) noexcept {
  const Found::Room& room = found.room;
  const std::uint64_t bytes = fitting(room);
  switch (found.segment) {
    case Found::Segment::none:
      break;
    case Found::Segment::sound:
      if (found.differs() || !must_resize(found)) return keep(found);
      return {.make = Make::resize, .list = List::add, .bytes = bytes, .builds = room.segment_builds};
    case Found::Segment::damaged:
    case Found::Segment::other_layout:
      if (!found.differs()) {
        return {.make = Make::salvage, .list = List::add, .bytes = bytes, .builds = room.list_builds};
      }
      return {.make = Make::salvage_all,
              .list = List::verify,
              .bytes = std::max(bytes, room.both),
              .builds = room.list_builds + room.segment_builds,
              .all_dirty = true};
  }
  return {.make = Make::create, .list = List::add, .bytes = bytes, .builds = room.list_builds};
}

std::optional<Plan> decide_again(const Found& found, const Plan& tried, Obstacle obstacle) noexcept {
  if (obstacle == Obstacle::failed) return std::nullopt;
  switch (tried.make) {
    case Make::resize:
      return keep(found);
    case Make::keep: {
      if (obstacle != Obstacle::list_too_long) return std::nullopt;
      Plan larger = tried;
      larger.make = Make::enlarge;
      larger.bytes = fitting(found.room);
      return larger;
    }
    case Make::salvage:
      if (obstacle == Obstacle::not_made) return std::nullopt;
      return write_out(found, tried.bytes);
    case Make::salvage_all: {
      if (obstacle == Obstacle::list_too_long) return write_out(found, tried.bytes);
      // The sizes were read from a damaged header: they must not fail the start.
      Plan smaller = tried;
      smaller.bytes = fitting(found.room);
      smaller.builds = found.room.list_builds;
      if (obstacle == Obstacle::not_made && smaller != tried) return smaller;
      return std::nullopt;
    }
    case Make::create:
    case Make::enlarge:
    case Make::write_out:
      break;
  }
  return std::nullopt;
}

}  // namespace stepstash::daemon
