// SPDX-License-Identifier: Apache-2.0
/// Room for values: memory that both the segment and its tmpfs have. The only way to find it and to wait for it.
///
/// A value finds room by a try (`attempt`): a draft in the heap, with pages for it in the tmpfs beyond those promised
/// to other sets. If a try fails, a bounded reclaim step evicts, compacts or gives pages back; if no step helps, the
/// caller waits in the queue until something is freed, at most until its deadline.
///
/// Called by Store and Reloader for drafts, by Builds and the flusher's callbacks when something was freed, by Server
/// at each tick. Anything may change across a co_await of find() or the waits: callers look their entries up again.
#pragma once

#include <chrono>
#include <cstdint>
#include <string_view>
#include <system_error>
#include <vector>

#include "base/clock.hpp"
#include "base/result.hpp"
#include "base/types.hpp"
#include "daemon/database.hpp"
#include "daemon/draft.hpp"
#include "daemon/evictor.hpp"
#include "daemon/flusher.hpp"
#include "daemon/room_queue.hpp"
#include "daemon/tasks.hpp"
#include "daemon/upload_table.hpp"
#include "daemon/user_shares.hpp"
#include "persist/backing_store.hpp"
#include "shm/segment.hpp"

namespace stepstash::daemon {

/// Thread safety: the loop's thread only. Lifetime: everything it refers to outlives it.
class Room {
 public:
  struct Limits {
    std::uint64_t max_dirty = 0;               ///< bytes that may wait for the database
    std::chrono::milliseconds punch_after{0};  ///< free memory is given back to the system after this long
  };
  /// A value that needs room.
  struct Wanted {
    BuildId build = 0;
    std::string_view name;
    std::string_view source;
    std::uint64_t length = 0;
    std::uint64_t dirty_bytes = 0;  ///< what it will add to the bytes waiting for the database
  };

  Room(Catalog& catalog, shm::Segment& segment, Database& database, Flusher& flusher, const Clock& clock,
       Limits limits);

  // ---- for a draft ----

  /// Waits until there is room. The tmpfs has the pages, but they are not reserved yet.
  /// Errors: segment_full, ENOSPC, dirty_limit at the deadline; too_many; shutting_down.
  awaitable<Result<OwnedDraft>> find(Wanted wanted, Waiter& waiter, TimePoint deadline);
  /// Extends the draft in place; false if there is no room behind it.
  Result<bool> extend(OwnedDraft& draft, std::uint64_t length);
  /// Counts the draft's capacity as staged, until it is published or discarded.
  void count_staged(OwnedDraft& draft) { draft.count_in(staged_bytes_); }
  /// Counts the pages that the first `length` bytes of a draft's value still lack as promised to it.
  void promise_pages(OwnedDraft& draft, std::uint64_t length) { draft.promise(promised_pages_, length); }
  /// After reserving pages failed with `error`: waits until a new try is worthwhile. `bytes`: what the tmpfs lacks on
  /// top of what drafts were promised. Errors: `error` if it is not ENOSPC, at the deadline, and when the client is
  /// gone.
  awaitable<Result<>> wait_for_pages(std::error_code error, std::uint64_t bytes, Waiter& waiter, TimePoint deadline);
  /// The index failed with `error` to provide a slot for a new key: waits until a new try is worthwhile. Errors: as
  /// above.
  awaitable<Result<>> wait_for_slot(std::error_code error, Waiter& waiter, TimePoint deadline);
  /// Makes room for one entry's record, without waiting: reclaims what `error` says is lacking.
  bool free_for_record(std::error_code error);

  /// Uploads hold room as well: one that its client stalls is aborted when nothing else makes room.
  UploadTable& uploads() noexcept { return uploads_; }

  // ---- something was freed ----

  /// After a commit or a deletion: reclaims what is free now, and has those waiting try again.
  void freed();
  /// Call a few times a second: reclaims, gives memory back, reopens the pages of users who released enough.
  void maintain();
  void set_limits(Limits limits) { limits_ = limits; }

  // ---- figures ----

  struct Counters {
    std::uint64_t tries = 0;  ///< attempts to find room for a value, successful or not
  };
  const Counters& counters() const noexcept { return counters_; }
  const Evictor::Counters& evictions() const noexcept { return evictor_.counters(); }
  UserShares& shares() noexcept { return shares_; }
  const Limits& limits() const noexcept { return limits_; }
  /// The longest value for which there could be room.
  std::uint64_t max_value_bytes() const noexcept;
  /// State of the segment's tmpfs at the last tick.
  const shm::Heap::FileSystem& tmpfs() const noexcept { return tmpfs_; }
  /// Bytes that sets under way have reserved.
  std::uint64_t staged_bytes() const noexcept { return staged_bytes_; }
  /// Bytes of the tmpfs promised to sets under way and not reserved yet.
  std::uint64_t promised_pages() const noexcept { return promised_pages_; }

 private:
  Result<shm::Draft> try_draft(const Wanted& wanted);
  bool free_pages(std::uint64_t bytes, bool give_back);
  bool may_evict() const { return database_.allows(Database::Use::evict); }
  bool rescan();
  std::uint64_t punch();
  bool close_greediest(const Waiter& waiter) { return shares_.close_greediest(waiter.uid(), total()); }
  std::uint64_t total() const noexcept;
  std::uint64_t lacking_pages(std::uint64_t bytes) const noexcept;
  awaitable<Result<>> wait(std::error_code why, std::uint64_t bytes, bool progress, Waiter& waiter, TimePoint deadline);
  /// Changes with everything that makes room: if a step leaves it unchanged, it made none.
  std::uint64_t progress() const noexcept { return evictor_.progress() + given_back_; }

  shm::Segment& segment_;
  Database& database_;
  Flusher& flusher_;
  const Clock& clock_;
  Limits limits_;
  Evictor evictor_;
  UserShares shares_;
  UploadTable uploads_;
  RoomQueue queue_;
  shm::Heap::FileSystem tmpfs_;
  std::uint64_t staged_bytes_ = 0;
  std::uint64_t promised_pages_ = 0;  // in whole granules
  std::uint64_t given_back_ = 0;      // bytes, for a try that lacked them
  std::chrono::nanoseconds next_rescan_{0};
  Counters counters_;
};

}  // namespace stepstash::daemon
