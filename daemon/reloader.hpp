// SPDX-License-Identifier: Apache-2.0
/// Reads evicted values back from the database, each once however many clients ask.
/// ("Reload" is that here; SIGHUP, which reads the configuration again, is Server::handle_signals.)
///
/// Across a co_await the entry may be set again, dropped, or evicted again: a reload publishes only a current value.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <system_error>

#include "base/result.hpp"
#include "base/types.hpp"
#include "daemon/catalog.hpp"
#include "daemon/damage_list.hpp"
#include "daemon/database.hpp"
#include "daemon/draft.hpp"
#include "daemon/room.hpp"
#include "daemon/tasks.hpp"
#include "shm/segment.hpp"

namespace stepstash::daemon {

/// Thread safety: the loop's thread only. Lifetime: everything it refers to outlives it.
class Reloader {
 public:
  struct Counters {
    std::uint64_t asked = 0;  ///< gets that went to the daemon
    std::uint64_t reloads = 0;
    std::uint64_t errors = 0;
  };

  Reloader(asio::io_context& loop, Catalog& catalog, shm::Segment& segment, Database& database, Room& room,
           DamageList& damage)
      : loop_(loop), catalog_(catalog), segment_(segment), database_(database), room_(room), damage_(damage) {}

  /// Returns when the value is resident. Errors: not_found, corrupt_value, segment_full, deadline_exceeded, the
  /// database's.
  awaitable<Result<>> load(BuildId build, const std::string& name, Waiter& waiter, TimePoint deadline);
  /// Call a few times a second: forgets failures that nobody waits for.
  void maintain() {
    if (loaded_.empty()) failures_.clear();
  }
  const Counters& counters() const noexcept { return counters_; }

 private:
  /// An evicted entry as it was when its reload began.
  struct Reload {
    explicit Reload(const shm::Entry& record);
    std::string name;
    std::string source;
    shm::Segment::EntryFacts facts;  // name and source are set when this object no longer moves
  };
  awaitable<void> reload(Reload what, OwnedDraft draft);

  asio::io_context& loop_;
  Catalog& catalog_;
  shm::Segment& segment_;
  Database& database_;
  Room& room_;
  DamageList& damage_;
  WaitList loaded_;
  std::map<std::uint64_t, std::error_code> failures_;  // by id, while somebody waits
  Counters counters_;
};

}  // namespace stepstash::daemon
