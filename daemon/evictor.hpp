// SPDX-License-Identifier: Apache-2.0
/// Eviction and compaction: removes clean values from memory and moves what remains together.
///
/// Only Room calls it. Each call does a bounded amount of work and reports the result, so that the loop can run other
/// work between two calls. It evicts only what the database can give back (the caller's `may_evict`).
#pragma once

#include <chrono>
#include <cstdint>

#include "base/clock.hpp"
#include "daemon/catalog.hpp"
#include "shm/segment.hpp"

namespace stepstash::daemon {

/// Thread safety: the loop's thread only. Lifetime: everything it refers to outlives it.
class Evictor {
 public:
  /// Memory given back to the tmpfs in one step: unmapping 16 MiB takes about a millisecond.
  static constexpr std::uint64_t kPunchAtOnce = 16 << 20;

  struct Counters {
    std::uint64_t evictions = 0;
    std::uint64_t moves = 0;  ///< records moved to compact memory
  };

  Evictor(Catalog& catalog, shm::Segment& segment, const Clock& clock)
      : catalog_(catalog), segment_(segment), clock_(clock) {}

  /// Evicts values from the front of the use lists, a bounded number, until `bytes` are retired, plus some ahead so
  /// that the next sets need not scan the pin pages. Returns whether it evicted any. `for_pages`: the tmpfs is short of
  /// pages.
  bool evict(std::uint64_t bytes, bool for_pages);

  enum class Compacted {
    progress,
    impossible,  // every run of blocks holds one that must stay, whatever is evicted
    unchanged,   // there is a run, but nothing in it could be moved
  };
  /// For when free memory suffices for a block of `bytes` bytes but is scattered: clears the cheapest contiguous run, a
  /// bounded part per call. O(blocks); after `impossible` the next walk waits for nine times as long as this one took.
  /// `evictable`: values may be evicted; otherwise only records may move.
  Compacted compact(std::uint64_t bytes, bool evictable);
  /// For when no value can be evicted and records lie scattered, each keeping a granule's pages allocated: moves
  /// records together, a bounded number per call. False if the tmpfs gains nothing; the next walk then waits.
  /// O(blocks).
  bool compact_records();

  const Counters& counters() const noexcept { return counters_; }
  /// Changes with each value evicted, record moved, or byte that compact_records() gives back.
  std::uint64_t progress() const noexcept { return progress_; }

 private:
  void note_hints();
  bool move_away(Node& node);
  void note_moved(Node& node, const shm::Entry& record, bool evicted);

  Catalog& catalog_;
  shm::Segment& segment_;
  const Clock& clock_;
  std::chrono::nanoseconds next_hints_{0};
  std::chrono::nanoseconds next_compact_{0};  // for requests no smaller than the one the last walk failed for
  std::uint64_t compacted_for_ = 0;
  std::chrono::nanoseconds next_compact_records_{0};
  std::uint64_t progress_ = 0;
  Counters counters_;
};

}  // namespace stepstash::daemon
