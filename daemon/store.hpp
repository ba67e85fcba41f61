// SPDX-License-Identifier: Apache-2.0
/// Build data: set, get, list, wait. The only place where segment and database meet.
///
/// Every acknowledged operation is a fact in the segment before its call returns; the flusher writes it to the
/// database. Work that must not run on the loop (reserving and filling large blocks, SQLite) is done by callers on
/// other threads, between reserve() and commit().
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.hpp"
#include "base/result.hpp"
#include "daemon/builds.hpp"
#include "daemon/catalog.hpp"
#include "daemon/damage_list.hpp"
#include "daemon/database.hpp"
#include "daemon/draft.hpp"
#include "daemon/flusher.hpp"
#include "daemon/listing.hpp"
#include "daemon/reloader.hpp"
#include "daemon/room.hpp"
#include "daemon/tasks.hpp"
#include "persist/backing_store.hpp"
#include "protocol/message.hpp"
#include "shm/segment.hpp"

namespace stepstash::daemon {

/// Thread safety: the loop's thread only. Lifetime: everything it refers to outlives it.
class Store {
 public:
  struct Limits {
    Room::Limits room;
    std::optional<std::chrono::milliseconds> horizon;
  };

  Store(asio::io_context& loop, Catalog& catalog, shm::Segment& segment, Database& database, Flusher& flusher,
        const Clock& clock, const Limits& limits);

  /// Builds the catalogue from the segment and queues dirty entries. Call once, before anything else. `all_dirty`: the
  /// database is not the one that the "clean" marks refer to. `lost`: entries whose values the database records as
  /// damaged. O(entries).
  void adopt(bool all_dirty, const std::vector<persist::StoredEntry>& lost = {});

  // ---- setting ----

  /// Finds room for a value of `length` bytes, waiting for evictions and flushes until `deadline`. The tmpfs has the
  /// pages for it beyond those promised to other sets, but they are not reserved yet. Errors: invalid_argument,
  /// too_large (at once), segment_full, ENOSPC, dirty_limit, condition_failed.
  awaitable<Result<OwnedDraft>> reserve(const protocol::SetParams& params, std::uint64_t length, Waiter& waiter,
                                        TimePoint deadline);
  /// Publishes a filled block: from here on every process sees it. With params.durable, waits for the commit.
  awaitable<Result<protocol::SetOk>> publish(const protocol::SetParams& params, OwnedDraft draft, std::uint64_t length,
                                             std::uint64_t value_hash, Waiter& waiter, TimePoint deadline);
  /// Both steps, for a value small enough to be copied on the loop.
  awaitable<Result<protocol::SetOk>> set(const protocol::SetParams& params, std::span<const std::byte> value,
                                         Waiter& waiter, TimePoint deadline);

  // ---- reading ----

  /// Reads an evicted value back (Reloader::load).
  awaitable<Result<>> load(BuildId build, const std::string& name, Waiter& waiter, TimePoint deadline) {
    return reloader_.load(build, name, waiter, deadline);
  }
  /// Waits until the name exists. Errors: deadline_exceeded.
  awaitable<Result<>> wait(BuildId build, const std::string& name, Waiter& waiter, TimePoint deadline);
  /// One page, in id order. O(log entries of the build + page). A multi-page list is kept in `listing`, which belongs
  /// to the connection; all its pages are as of the same instant. Errors: deadline_exceeded: it was cut off.
  Result<protocol::ListPage> list(const protocol::List& request, Listings::Handle& listing);

  // ---- what it is made of ----

  const Catalog& catalog() const noexcept { return catalog_; }
  Room& room() noexcept { return room_; }
  const Room& room() const noexcept { return room_; }
  Builds& builds() noexcept { return builds_; }
  const Builds& builds() const noexcept { return builds_; }
  const Reloader& reloader() const noexcept { return reloader_; }
  const Listings& listings() const noexcept { return *listings_; }
  const DamageList& damage() const noexcept { return damage_; }

  // ---- upkeep ----

  /// Frees what is no longer referenced, and gives memory back. Call a few times a second.
  void maintain();
  void set_limits(const Limits& limits);
  /// Sets published by this daemon.
  std::uint64_t sets() const noexcept { return sets_; }

 private:
  Result<> check(const protocol::SetParams& params) const;
  Result<> check_condition(const protocol::SetParams& params) const;
  Result<std::uint64_t> next_id();
  Result<const shm::Entry*> publish(const protocol::SetParams& params, OwnedDraft draft, std::uint64_t length,
                                    std::uint64_t value_hash, std::uint64_t& place);
  void on_damaged(Node& node);

  Catalog& catalog_;
  shm::Segment& segment_;
  Flusher& flusher_;
  const Clock& clock_;
  std::shared_ptr<Listings> listings_;
  DamageList damage_;
  Room room_;
  Builds builds_;
  Reloader reloader_;
  std::map<std::pair<BuildId, std::string>, WaitList> awaited_;
  std::chrono::nanoseconds next_rekey_{0};
  std::uint64_t sets_ = 0;
};

}  // namespace stepstash::daemon
