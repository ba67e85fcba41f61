// SPDX-License-Identifier: Apache-2.0
/// Builds: when each was finished, whether it is held, what the database knows of it, and the deletion of its entries
/// (drop, prune, horizon).
///
/// Owns the queries to the database (`ask`). Called by Store for requests, by the
/// flusher's callbacks when a build's row has been written, and by Server for the horizon. A build may be removed and
/// created again across a co_await; only `dropping` keeps its state in place.
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
#include "daemon/completion_clock.hpp"
#include "daemon/damage_list.hpp"
#include "daemon/database.hpp"
#include "daemon/flusher.hpp"
#include "daemon/listing.hpp"
#include "daemon/room.hpp"
#include "daemon/tasks.hpp"
#include "protocol/message.hpp"
#include "shm/segment.hpp"

namespace stepstash::daemon {

/// Thread safety: the loop's thread only. Lifetime: everything it refers to outlives it.
class Builds {
 public:
  struct Counters {
    std::uint64_t pruned = 0;   ///< entries
    std::uint64_t dropped = 0;  ///< entries
    std::uint64_t finishes = 0;
  };

  Builds(asio::io_context& loop, Catalog& catalog, shm::Segment& segment, Database& database, Flusher& flusher,
         Room& room, Listings& listings, DamageList& damage, const Clock& clock);

  /// Call once, when the catalogue has all entries: completes records for which an earlier daemon knew only the wall
  /// time, and queries the database about every build. O(builds).
  void adopt();

  // ---- requests ----

  Result<std::int64_t> finish(BuildId build, std::optional<std::int64_t> complete_at);
  Result<> hold(BuildId build, bool held);
  /// Deletes the entries that exist now; entries set in the meantime stay. Returns the number deleted, once all are
  /// gone.
  awaitable<Result<std::uint64_t>> drop(BuildId build);
  /// Deletes the entries of all builds concerned as of one instant; returns how many. Waits until the database has
  /// answered for the builds that exist now.
  awaitable<Result<std::uint64_t>> prune(std::int64_t older_than, Waiter& waiter, TimePoint deadline);
  /// One page, in order of build number, as of one instant. O(log builds + page).
  protocol::BuildsPage page(const protocol::Builds& request) const;

  // ---- for the store ----

  /// The build's state, with a record in the segment. `spare`: may use the slots kept for requests that must succeed
  /// even in a full table.
  Result<BuildState*> ensure(BuildId build, bool spare);
  /// Like ensure(); for a new build it also queries the database.
  Result<BuildState*> ensure_asked(BuildId build, bool spare);
  /// Removes an entry from the segment and from every structure that refers to it.
  void forget(Node& node);
  /// Releases the record if nothing needs it any more.
  void release_if_idle(BuildState& build);

  // ---- upkeep ----

  void set_horizon(std::optional<std::chrono::milliseconds> horizon) { horizon_ = horizon; }
  /// Prunes builds that have been complete for longer than the horizon. Does nothing while such a run is under way; the
  /// next call catches up.
  awaitable<void> prune_expired();
  /// Repeats queries that the database did not answer. Call a few times a second.
  void maintain();
  const Counters& counters() const noexcept { return counters_; }

 private:
  static bool prunable(const BuildState& build, std::int64_t older_than) noexcept;
  awaitable<std::uint64_t> delete_all(std::vector<BuildState*> builds);
  void set_complete(BuildState& build, std::int64_t complete_at);
  void ask(BuildState& build);
  awaitable<void> load_facts(BuildId build, std::uint64_t question);

  /// Queries to the database about builds, numbered in the order of their start.
  struct Questions {
    std::uint64_t last = 0;
    std::set<std::uint64_t> under_way;
    WaitList answered;
    std::vector<BuildId> failed;        // maintain() repeats these
    std::chrono::nanoseconds again{0};  // no earlier than this
  };

  asio::io_context& loop_;
  Catalog& catalog_;
  shm::Segment& segment_;
  Database& database_;
  Flusher& flusher_;
  Room& room_;
  Listings& listings_;
  DamageList& damage_;
  const Clock& clock_;
  CompletionClock completion_;
  std::optional<std::chrono::milliseconds> horizon_;
  bool pruning_ = false;
  Questions questions_;
  Counters counters_;
};

}  // namespace stepstash::daemon
