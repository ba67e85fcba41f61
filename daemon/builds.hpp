// SPDX-License-Identifier: Apache-2.0
/// Builds: when they were finished, whether they are held, what the database knows of them, and the deletion of what
/// they hold (drop, prune, the horizon).
///
/// Owns the questions to the database (`ask`) and the judgement of clocks. Called by Store for requests, by the
/// flusher's callbacks when a build's row is written, by Server for the horizon. Across a co_await a build may go and
/// come back: only `dropping` keeps its state in place.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <vector>

#include "base/clock.hpp"
#include "base/result.hpp"
#include "base/types.hpp"
#include "daemon/catalog.hpp"
#include "daemon/damage_list.hpp"
#include "daemon/flusher.hpp"
#include "daemon/listing.hpp"
#include "daemon/loader.hpp"
#include "daemon/room.hpp"
#include "daemon/tasks.hpp"
#include "protocol/message.hpp"
#include "shm/writer.hpp"

namespace stepstash::daemon {

/// Thread safety: the loop's thread only. Lifetime: all it refers to outlives it.
class Builds {
 public:
  struct Counters {
    std::uint64_t pruned = 0;   ///< entries
    std::uint64_t dropped = 0;  ///< entries
    std::uint64_t finishes = 0;
  };

  Builds(asio::io_context& loop, Catalog& catalog, shm::Writer& segment, Loader& loader, Flusher& flusher, Room& room,
         Listings& listings, DamageList& damage, const Clock& clock);

  /// Call once, after the catalogue has all entries: completes what an earlier daemon knew only by its wall clock, and
  /// asks the database about every build. O(builds).
  void adopt();

  // ---- requests ----

  Result<std::int64_t> finish(BuildId build, std::optional<std::int64_t> complete_at);
  Result<> hold(BuildId build, bool held);
  /// Deletes what is there now; what is set meanwhile stays. Returns how many entries went, when all of them have.
  awaitable<Result<std::uint64_t>> drop(BuildId build);
  /// Deletes what all the builds hold at one instant; returns how many entries that were. Waits until the database has
  /// answered for the builds that there are now.
  awaitable<Result<std::uint64_t>> prune(std::int64_t older_than, Waiter& waiter, TimePoint deadline);
  /// One page, in the order of the builds' numbers, as of one instant. O(log builds + page).
  protocol::BuildsPage page(const protocol::Builds& request) const;

  // ---- for the store ----

  /// The build's state, with a record in the segment. `spare`: for what must work in a full table, too.
  Result<BuildState*> ensure(BuildId build, bool spare);
  /// As ensure(), and the database is asked about a build that is new here.
  Result<BuildState*> ensure_asked(BuildId build, bool spare);
  /// Takes an entry out of the segment and of everything that knows it.
  void forget(Node& node);
  /// Gives the record up where nothing needs it any more.
  void release_if_idle(BuildState& build);

  // ---- upkeep ----

  void set_horizon(std::optional<std::chrono::milliseconds> horizon) { horizon_ = horizon; }
  /// Prunes builds complete for longer than the horizon, unless that is being done already; what stays undone is done
  /// the next time.
  awaitable<void> prune_expired();
  /// Asks again what the database did not answer. Call it a few times a second.
  void maintain();
  const Counters& counters() const noexcept { return counters_; }

 private:
  static bool prunable(const BuildState& build, std::int64_t older_than) noexcept;
  awaitable<std::uint64_t> delete_all(std::vector<BuildState*> builds);
  void set_complete(BuildState& build, std::int64_t complete_at);
  std::int64_t on_boot_clock(std::int64_t complete_at) const;
  std::int64_t clamped_wall_seconds() const;
  void ask(BuildState& build);
  awaitable<void> merge_from_database(BuildId build, std::uint64_t question);

  asio::io_context& loop_;
  Catalog& catalog_;
  shm::Writer& segment_;
  Loader& loader_;
  Flusher& flusher_;
  Room& room_;
  Listings& listings_;
  DamageList& damage_;
  const Clock& clock_;
  std::optional<std::chrono::milliseconds> horizon_;
  std::chrono::nanoseconds start_on_boot_clock_;
  std::int64_t wall_at_start_;  // or when the database had been written to last, if the clock says more
  bool pruning_ = false;
  WaitList merged_;
  std::set<std::uint64_t> merging_;  // questions to the database that are under way
  std::uint64_t last_question_ = 0;
  std::vector<BuildId> unanswered_;  // builds that the database could not be asked about
  std::chrono::nanoseconds ask_again_{0};
  Counters counters_;
};

}  // namespace stepstash::daemon
