// SPDX-License-Identifier: Apache-2.0
/// Brings segment and database together before anything is served: warm, cold, or after damage.
///
/// Never refuses for what the segment contains: what cannot be trusted is set aside under another name and reported,
/// and the rest is served.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "persist/backing_store.hpp"
#include "shm/object.hpp"
#include "shm/writer.hpp"

namespace stepstash::daemon {

struct Startup {
  std::unique_ptr<shm::Writer> segment;
  bool all_dirty = false;            ///< write everything again: the database is another one, or older than the segment
  std::uint64_t entries_kept = 0;    ///< found in the segment
  std::uint64_t entries_loaded = 0;  ///< known from the database only
  std::uint64_t entries_salvaged = 0;      ///< saved out of a segment that was set aside
  std::vector<std::string> set_aside;      ///< what could not be trusted, one line each
  std::vector<std::string> kept;           ///< paths of segments that were damaged, from this start or earlier ones
  std::vector<persist::StoredEntry> lost;  ///< what the database knows to be damaged
  std::chrono::nanoseconds duration{0};
};

/// Attaches to the segment `name`, or makes one of `bytes` bytes (more when the database's entries need more room), and
/// completes it from the database. `progress` is called now and then with what is being done. What could not be trusted
/// is added to `told` when it fails: the next try does not find it again. O(entries + dirty bytes).
/// Errors: those of making a segment (ENOSPC, EACCES, Errc::unsafe_object), and of the database's reading calls.
Result<Startup> open_segment(const shm::ObjectDirectory& directory, const std::string& name, std::uint64_t bytes,
                             persist::BackingStore& database, const std::function<void(const std::string&)>& progress,
                             std::vector<std::string>& told);

/// Attaches to the segment `name` where the database cannot be used at all: what is in the segment is served as it is,
/// and nothing about its database changes. O(entries + dirty bytes). Errors: those of shm::Writer::attach.
Result<Startup> open_segment_alone(const shm::ObjectDirectory& directory, const std::string& name);

}  // namespace stepstash::daemon
