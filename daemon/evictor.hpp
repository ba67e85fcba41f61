// SPDX-License-Identifier: Apache-2.0
/// Takes clean values out of memory, and moves what is left together: eviction and compaction.
///
/// Who asks is Room alone. Each call does a bounded part and says what came of it, so that the loop serves others
/// between two calls. Nothing is evicted that the database could not give back (the caller's `may_evict`).
#pragma once

#include <chrono>
#include <cstdint>

#include "base/clock.hpp"
#include "daemon/catalog.hpp"
#include "shm/writer.hpp"

namespace stepstash::daemon {

/// Thread safety: the loop's thread only. Lifetime: all it refers to outlives it.
class Evictor {
 public:
  struct Counters {
    std::uint64_t evictions = 0;
    std::uint64_t moves = 0;  ///< records moved to compact memory
  };

  Evictor(Catalog& catalog, shm::Writer& segment, const Clock& clock)
      : catalog_(catalog), segment_(segment), clock_(clock) {}

  /// Evicts values from the front of the use lists, a bounded number, until `bytes` are retired, and some more ahead so
  /// that the next sets need not scan the pin pages; returns whether any went. `for_pages`: the tmpfs lacks them.
  bool evict(std::uint64_t bytes, bool for_pages);

  enum class Compacted {
    progress,
    impossible,  // every run of blocks holds one that must stay, whatever is evicted
    unchanged,   // there is a run, but nothing in it went
  };
  /// Free memory is enough for a block of `bytes` bytes, but scattered: clears the contiguous run that costs least, a
  /// bounded part of it at a time. O(blocks); after `impossible` the next walk waits for nine times as long as this one
  /// took. `evictable`: values may be evicted, not only records moved.
  Compacted compact(std::uint64_t bytes, bool evictable);
  /// No value can be evicted, and records lie scattered, each of which keeps a granule's pages: moves records together,
  /// a bounded part of them at a time. False where the tmpfs gets nothing of it, and then the next walk waits.
  /// O(blocks).
  bool compact_records();

  const Counters& counters() const noexcept { return counters_; }
  /// Changes with each value evicted, record moved, or byte that compact_records() gave back.
  std::uint64_t progress() const noexcept { return progress_; }

 private:
  void note_hints();
  bool move_away(Node& node);
  void note_moved(Node& node, const shm::Entry& record, bool evicted);

  Catalog& catalog_;
  shm::Writer& segment_;
  const Clock& clock_;
  std::chrono::nanoseconds next_hints_{0};
  std::chrono::nanoseconds next_compact_{0};  // for as much as the last walk found nothing for
  std::uint64_t compacted_for_ = 0;
  std::chrono::nanoseconds next_compact_records_{0};
  std::uint64_t progress_ = 0;
  Counters counters_;
};

}  // namespace stepstash::daemon
