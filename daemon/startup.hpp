// SPDX-License-Identifier: Apache-2.0
/// Reconciles segment and database before anything is served: warm start, cold start, or after damage.
///
/// Inspects both, decides (startup_plan.hpp), carries out. Never fails because of the segment's contents: what cannot
/// be trusted is set aside under another name and reported; the rest is served.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "daemon/phase.hpp"
#include "persist/backing_store.hpp"
#include "shm/object.hpp"
#include "shm/segment.hpp"

namespace stepstash::daemon {

struct Startup {
  std::unique_ptr<shm::Segment> segment;
  bool all_dirty = false;              ///< write everything again: the database is a different one, or older than the
                                       ///< segment
  std::uint64_t entries_kept = 0;      ///< found in the segment
  std::uint64_t entries_loaded = 0;    ///< known from the database only
  std::uint64_t entries_salvaged = 0;  ///< copied out of a segment that was set aside
  std::vector<std::string> set_aside;  ///< what could not be trusted, one line each
  std::vector<std::string> kept;       ///< paths of damaged segments kept by this start or earlier ones
  std::vector<persist::StoredEntry> lost;  ///< what the database records as damaged
  std::chrono::nanoseconds duration{0};
  std::vector<PhaseTimes::Time> phases;  ///< of the whole start: the server, which is told of each, fills it in
};

/// Attaches to the segment `name`, or creates one of `bytes` bytes (more if the database's entries need it), and
/// completes it from the database. Calls `progress` when a phase begins. On failure, adds what could not be trusted to
/// `told`: the next try will not find it again. O(entries + dirty bytes). Errors: those of creating a segment (ENOSPC,
/// EACCES, Errc::unsafe_object), and of the database's reading calls.
Result<Startup> open_segment(const shm::ObjectDirectory& directory, const std::string& name, std::uint64_t bytes,
                             persist::BackingStore& database, const std::function<void(Phase)>& progress,
                             std::vector<std::string>& told);

/// Whether `error` of open_segment says that segment or tmpfs are too small.
bool is_lack_of_room(std::error_code error);

/// Attaches to the segment `name` when the database cannot be used at all: serves the segment as it is, and changes
/// nothing recorded about its database. O(entries + dirty bytes). Errors: those of shm::Segment::attach.
Result<Startup> open_segment_alone(const shm::ObjectDirectory& directory, const std::string& name);

}  // namespace stepstash::daemon
