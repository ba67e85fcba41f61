// SPDX-License-Identifier: Apache-2.0
#include "daemon/builds.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>

#include "base/crash_point.hpp"
#include "base/errc.hpp"

namespace stepstash::daemon {
namespace {

/// Entries deleted per event-loop turn: one to three milliseconds.
constexpr std::uint64_t kDropAtOnce = 256;
/// Delay after a query that the database did not answer.
constexpr auto kAskAgain = std::chrono::seconds(1);

}  // namespace

Builds::Builds(asio::io_context& loop, Catalog& catalog, shm::Segment& segment, Database& database, Flusher& flusher,
               Room& room, Listings& listings, DamageList& damage, const Clock& clock)
    : loop_(loop),
      catalog_(catalog),
      segment_(segment),
      database_(database),
      flusher_(flusher),
      room_(room),
      listings_(listings),
      damage_(damage),
      clock_(clock),
      completion_(clock, database.last_written()) {}

void Builds::adopt() {
  for (const auto& [id, build] : catalog_.builds()) {
    shm::BuildRecord& record = *build->record;
    if (!build->finished() || record.completed_ns.load(std::memory_order_relaxed) != 0) continue;
    const std::int64_t complete_at = record.complete_at.load(std::memory_order_relaxed);
    record.completed_ns.store(completion_.on_boot_clock(complete_at), std::memory_order_release);
    STEPSTASH_CRASH_POINT("daemon.adopt.clock.stored");
  }
  // Nothing records whether the database already has a build's facts; writing them again is harmless.
  if (!database_.allows(Database::Use::identify)) return;
  for (const auto& [id, build] : catalog_.builds()) {
    flusher_.mark_dirty(*build);
    ask(*build);
  }
}

// ---- records -------------------------------------------------------------------------------------------------------

Result<BuildState*> Builds::ensure(BuildId build, bool spare) {
  if (BuildState* state = catalog_.find_build(build)) return state;
  shm::BuildRecord* record = STEPSTASH_TRY(segment_.add_build(build, spare));
  return &catalog_.add_build(build, *record);
}

Result<BuildState*> Builds::ensure_asked(BuildId build, bool spare) {
  const bool known = catalog_.find_build(build) != nullptr;
  BuildState* state = STEPSTASH_TRY(ensure(build, spare));
  if (!known) ask(*state);
  return state;
}

Result<std::int64_t> Builds::finish(BuildId build, std::optional<std::int64_t> complete_at) {
  if (!valid_build(build)) return Errc::invalid_argument;
  const std::int64_t at = complete_at.value_or(clock_.wall_seconds());
  if (at == shm::kNotComplete) return Errc::invalid_argument;
  BuildState* state = STEPSTASH_TRY(ensure_asked(build, /*spare=*/true));
  set_complete(*state, at);
  flusher_.mark_dirty(*state);
  ++counters_.finishes;
  return at;
}

void Builds::set_complete(BuildState& build, std::int64_t complete_at) {
  const bool was_finished = build.finished();
  // Used later for comparison when the wall clock jumps.
  build.record->completed_ns.store(completion_.on_boot_clock(complete_at), std::memory_order_release);
  STEPSTASH_CRASH_POINT("daemon.finish.clock.stored");
  build.record->complete_at.store(complete_at, std::memory_order_release);  // the fact: one store
  STEPSTASH_CRASH_POINT("daemon.finish.time.stored");
  if (was_finished == build.finished()) return;
  for (const auto& [id, node] : build.entries) {
    if (node->is_linked()) catalog_.touch(*node);
  }
}

Result<> Builds::hold(BuildId build, bool held) {
  if (!valid_build(build)) return Errc::invalid_argument;
  BuildState* state = STEPSTASH_TRY(ensure_asked(build, /*spare=*/true));
  state->record->hold.store(held ? shm::Hold::held : shm::Hold::not_held, std::memory_order_release);
  STEPSTASH_CRASH_POINT("daemon.hold.stored");
  flusher_.mark_dirty(*state);
  return success();
}

void Builds::forget(Node& node) {
  listings_.about_to_change(segment_.entry_at(node.block));
  flusher_.forget(node);
  damage_.remove(node.id);
  const shm::Entry& entry = segment_.entry_at(node.block);
  segment_.erase(entry);
  catalog_.remove(node);
  STEPSTASH_CRASH_POINT("daemon.drop.entry.erased");
}

awaitable<std::uint64_t> Builds::delete_all(std::vector<BuildState*> builds) {
  std::uint64_t count = 0;
  std::vector<shm::BuildRecord*> records;
  records.reserve(builds.size());
  for (BuildState* build : builds) {
    // If another deletion of this build is under way, that one counts its entries; but this one also ends only when
    // they are gone.
    count += build->sums.entries;
    records.push_back(build->record);
    ++build->dropping;  // keeps the record and `build` alive
  }
  // The instant: from here on the entries are deleted for everyone, and a restart after a crash completes the deletion.
  // The caller's check that the builds may be deleted still holds: nothing else has run on the loop since.
  const std::uint64_t upto = segment_.begin_deletion(records);
  STEPSTASH_CRASH_POINT("daemon.drop.fact.stored");
  for (BuildState* build : builds) catalog_.leave_out(*build, upto);
  // Remove them from the index in slices: 100,000 entries would block the loop for a second.
  std::uint64_t in_slice = 0;
  for (BuildState* build : builds) {
    for (;;) {
      if (++in_slice > kDropAtOnce) {
        in_slice = 0;
        segment_.reclaim_if_due();
        co_await asio::post(loop_, asio::use_awaitable);
      }
      if (build->entries.empty() || build->entries.begin()->first > upto) break;  // set after the instant
      forget(*build->entries.begin()->second);
    }
    --build->dropping;
    STEPSTASH_CRASH_POINT("daemon.drop.entries.erased");
    flusher_.mark_dirty(*build);
  }
  segment_.end_deletion();
  room_.freed();
  co_return count;
}

awaitable<Result<std::uint64_t>> Builds::drop(BuildId build) {
  if (!valid_build(build)) co_return Errc::invalid_argument;
  BuildState* state = catalog_.find_build(build);
  if (state == nullptr || (state->sums.entries == 0 && state->dropping == 0)) co_return 0;
  std::vector<BuildState*> builds{state};
  const std::uint64_t count = co_await delete_all(std::move(builds));
  counters_.dropped += count;
  co_return count;
}

awaitable<Result<std::uint64_t>> Builds::prune(std::int64_t older_than, Waiter& waiter, TimePoint deadline) {
  // Ignore queries that start from now on: their builds are new, or somebody who did not wait for this prune finished
  // them. Waiting for those as well could take forever.
  const std::uint64_t asked = questions_.last;
  while (!questions_.under_way.empty() && *questions_.under_way.begin() <= asked && !waiter.gone() &&
         !expired(deadline)) {
    if (waiter.dismissed()) co_return Errc::shutting_down;
    co_await questions_.answered.wait(waiter, deadline);
  }
  std::vector<BuildState*> builds;
  for (const auto& [id, build] : catalog_.builds()) {
    if (prunable(*build, older_than)) builds.push_back(build.get());
  }
  if (builds.empty()) co_return 0;
  const std::uint64_t count = co_await delete_all(std::move(builds));
  counters_.pruned += count;
  co_return count;
}

bool Builds::prunable(const BuildState& build, std::int64_t older_than) noexcept {
  // Not before the database has answered: it may know that the build is held.
  return build.facts_loaded() && build.finished() && !build.held() && build.sums.entries > 0 &&
         build.record->complete_at.load(std::memory_order_relaxed) < older_than;
}

awaitable<void> Builds::prune_expired() {
  if (!horizon_ || pruning_) co_return;
  pruning_ = true;
  const auto horizon = std::chrono::duration_cast<std::chrono::seconds>(*horizon_).count();
  const std::int64_t older_than = clock_.wall_seconds() - horizon;
  // Complete for that long by both clocks: if the wall clock jumps ahead, builds that have just completed stay.
  const std::int64_t latest = (clock_.boot_time() - *horizon_).count();
  std::vector<BuildState*> builds;
  for (const auto& [id, build] : catalog_.builds()) {
    if (!prunable(*build, older_than)) continue;
    const std::int64_t completed = build->record->completed_ns.load(std::memory_order_relaxed);
    if (completed < latest) builds.push_back(build.get());
  }
  if (!builds.empty()) {
    const std::uint64_t count = co_await delete_all(std::move(builds));
    counters_.pruned += count;
    spdlog::info("pruned {} entries of builds that completed before {} (build_data_horizon)", count, older_than);
  }
  pruning_ = false;
}

void Builds::ask(BuildState& build) {
  if (build.facts_loaded() || build.asking != 0 || !database_.allows(Database::Use::load)) return;
  build.asking = ++questions_.last;
  questions_.under_way.insert(build.asking);
  asio::co_spawn(loop_, load_facts(build.id, build.asking), kOrDie);
}

awaitable<void> Builds::load_facts(BuildId build, std::uint64_t question) {
  auto job = [build](persist::BackingStore& store) { return store.load_build(build); };
  const Result<std::optional<persist::StoredBuild>> known = co_await database_.read(job);
  questions_.under_way.erase(question);
  BuildState* state = catalog_.find_build(build);
  // A record released and created again in the meantime has a query of its own.
  if (state != nullptr && state->asking != question) state = nullptr;
  if (state != nullptr) {
    state->asking = 0;
    if (!known) questions_.failed.push_back(build);  // maintain() asks again
  }
  if (state != nullptr && known && known.value()) {
    // Facts set here since then are newer than those in the database.
    const std::int64_t set_here = state->record->complete_at.load(std::memory_order_relaxed);
    if (known.value()->complete_at && set_here == shm::kNotComplete) {
      set_complete(*state, *known.value()->complete_at);
    }
    STEPSTASH_CRASH_POINT("daemon.facts.complete_at.stored");
    if (known.value()->held && state->record->hold.load(std::memory_order_relaxed) == shm::Hold::unknown) {
      state->record->hold.store(shm::Hold::held, std::memory_order_release);
      STEPSTASH_CRASH_POINT("daemon.facts.hold.stored");
    }
  }
  if (state != nullptr && known) state->record->facts_loaded.store(1, std::memory_order_release);
  STEPSTASH_CRASH_POINT("daemon.facts.done");
  questions_.answered.notify_all();
}

void Builds::release_if_idle(BuildState& build) {
  if (build.dirty.dirty() || !build.entries.empty() || build.dropping > 0) return;
  shm::BuildRecord& record = *build.record;
  // Without a database, adopt() marks nothing dirty: facts that an earlier daemon accepted may be in the record only.
  const bool known = record.complete_at.load(std::memory_order_relaxed) != shm::kNotComplete ||
                     record.hold.load(std::memory_order_relaxed) != shm::Hold::unknown ||
                     record.drop_upto.load(std::memory_order_relaxed) != 0;
  if (known && !database_.allows(Database::Use::identify)) return;
  catalog_.remove_build(build.id);
  segment_.remove_build(record);
}

void Builds::maintain() {
  const auto now = clock_.monotonic();
  if (!questions_.under_way.empty() || now < questions_.again) return;
  questions_.again = now + kAskAgain;
  for (const BuildId id : std::exchange(questions_.failed, {})) {
    if (BuildState* build = catalog_.find_build(id)) ask(*build);
  }
}

protocol::BuildsPage Builds::page(const protocol::Builds& request) const {
  protocol::BuildsPage page;
  const auto& all = catalog_.with_data();
  for (auto at = all.upper_bound(request.after); at != all.end(); ++at) {
    if (page.builds.size() == protocol::kBuildsPageRows) {
      page.more = true;
      break;
    }
    const BuildState& build = *at->second;
    BuildInfo row{build.id,     build.sums.entries, build.sums.resident_bytes, build.sums.evicted_bytes,
                  std::nullopt, build.held()};
    if (build.finished()) row.complete_at = build.record->complete_at.load(std::memory_order_relaxed);
    page.builds.push_back(row);
  }
  return page;
}

}  // namespace stepstash::daemon
