// SPDX-License-Identifier: Apache-2.0
/// Write-behind: commits dirty state to the database in batches, oldest first, on the database's thread.
///
/// Everything dirty has a place (sequence number) in one queue. Durable sets and flush barriers wait for "committed up
/// to place N". Invariants, which hold whenever the loop runs other work:
///
///   F1  Each dirty entry or build has one place, DirtyMark::seq, however often it changes before its turn: what is
///       replaced before it is written is never written. While a batch has it (in_flight), changes get a second place,
///       next_seq, which is younger.
///   F2  A place is the key of one item in the queue, and is never given twice. It leaves the queue only when its state
///       is committed, is found damaged, or joins an older place of the same entry or build. So a wait for a place ends
///       no earlier than the commit of what had it.
///   F3  A failed commit changes nothing: the places stay, and second places join the first.
///   F4  A deleted entry hands its place to its build, which keeps the older of both: until the deletion is written,
///       the database has the value before, so the deletion is due when the deleted value was.
///   F5  Across a co_await of a commit, items in flight stay in the queue, and their blocks are retained. An item whose
///       entry was deleted meanwhile is empty, and names the build that takes its place if the commit fails (heir).
///   F6  The callbacks may call mark_dirty() and forget(): settle_one() keeps no iterator across them.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "base/result.hpp"
#include "daemon/catalog.hpp"
#include "daemon/database.hpp"
#include "daemon/tasks.hpp"
#include "shm/segment.hpp"

namespace stepstash::daemon {

/// Thread safety: the loop's thread only. Lifetime: everything it refers to outlives it, and run() has returned before
/// it is destroyed.
class Flusher {
 public:
  struct Counters {
    std::uint64_t flushes = 0;  ///< batches committed
    std::uint64_t flush_errors = 0;
    std::uint64_t flushed_values = 0;
    std::uint64_t flushed_bytes = 0;
    std::chrono::nanoseconds last_duration{0};
  };

  Flusher(asio::io_context& loop, shm::Segment& segment, Database& database, const Clock& clock,
          std::chrono::milliseconds interval);

  /// Queues it and returns the place to wait for.
  std::uint64_t mark_dirty(Node& node, std::chrono::nanoseconds since);
  std::uint64_t mark_dirty(BuildState& build);
  /// The node is about to be deleted, and its build is about to be marked dirty for that and gets its place (F4).
  void forget(Node& node);

  /// Waits until everything up to `place` is committed. Errors: Errc::not_durable at the deadline.
  awaitable<Result<>> committed(std::uint64_t place, Waiter& waiter, TimePoint deadline);
  std::uint64_t last_place() const noexcept { return last_seq_; }
  /// Whether the value at `place` was found damaged instead of committed; ask right after committed().
  bool found_damaged(std::uint64_t place) const { return damaged_places_.contains(place); }

  /// Flushes without waiting for the interval.
  void kick();
  void set_interval(std::chrono::milliseconds interval);

  /// Called on the loop: on_settled after every batch, committed or failed; on_clean and on_build_clean for what a
  /// commit left clean; on_damaged for each value whose bytes do not match its checksum.
  std::function<void()> on_settled;
  std::function<void(Node&)> on_clean;
  std::function<void(BuildState&)> on_build_clean;
  std::function<void(Node&)> on_damaged;
  /// The flush loop. Returns after stop(), when everything is written, `give_up` has passed, or the database allows no
  /// commits.
  awaitable<void> run();
  void stop(TimePoint give_up);
  std::uint64_t dirty_bytes() const noexcept { return dirty_bytes_; }
  std::uint64_t dirty_values() const noexcept { return dirty_values_; }
  /// Age of the oldest item queued; zero when there is none.
  std::chrono::nanoseconds oldest_age() const;
  bool empty() const noexcept { return queue_.empty(); }
  const Counters& counters() const noexcept { return counters_; }

  /// A commit takes at most this many bytes (or one value): more delays later ones and gains nothing.
  static constexpr std::uint64_t kBatchBytes = 64 << 20;
  static constexpr std::size_t kBatchItems = 8192;

 private:
  struct Item {
    Node* node = nullptr;  // both null: forgotten while in flight
    BuildState* build = nullptr;
    std::chrono::nanoseconds since{0};
    BuildState* heir = nullptr;              // forgotten in flight: takes over the place if the commit fails
    std::vector<std::uint64_t> coalesced{};  // places of later states that failed commits joined to this one
  };
  struct Flight {
    std::uint64_t seq;
    shm::Offset block = 0;
    std::uint64_t bytes = 0;
    // The build's facts at the time of take().
    std::int64_t complete_at = 0;
    shm::Hold hold{};
    std::uint64_t drop_upto = 0;  // what the record may clear once this is committed
  };
  struct Outcome {
    Result<> committed = success();
    std::optional<std::uint64_t> commit_count;  // none: there was nothing to commit
    std::vector<std::uint64_t> damaged;         // places
    std::chrono::nanoseconds duration{0};
  };

  std::uint64_t mark(DirtyMark& mark, Item item, std::uint64_t bytes);
  /// `place` belongs to an item that is not in flight; the build keeps the older of that place and its own.
  void hand_over(std::uint64_t place, BuildState& build);
  std::vector<Flight> take(persist::Batch& batch, std::vector<std::uint64_t>& entry_places, bool builds_only);
  Outcome write(persist::BackingStore& store, persist::Batch& batch, const std::vector<std::uint64_t>& entry_places);
  bool ids_low() const noexcept;
  awaitable<void> reserve_ids();
  void settle(const std::vector<Flight>& flights, const Outcome& outcome, bool builds_only);
  void settle_one(const Flight& flight, bool committed, bool damaged);
  bool due() const;

  // More than 15 members: the queue and the loop that empties it are one class, since F1 to F6 hold only as long as
  // take() and settle() alone move items, and the loop calls nothing else of the queue.
  shm::Segment& segment_;
  Database& database_;
  const Clock& clock_;
  // The queue.
  std::map<std::uint64_t, Item> queue_;
  std::uint64_t last_seq_ = 0;
  std::uint64_t dirty_bytes_ = 0;
  std::uint64_t dirty_values_ = 0;
  WaitList committed_;
  std::set<std::uint64_t> damaged_places_;  // while somebody waits
  // The loop.
  Waiter wake_;
  Waiter pause_;
  std::chrono::milliseconds interval_;
  bool kicked_ = false;
  bool vacuum_due_ = false;
  TimePoint next_checkpoint_{};
  TimePoint next_id_try_{};
  std::optional<TimePoint> give_up_;
  Counters counters_;
};

}  // namespace stepstash::daemon
